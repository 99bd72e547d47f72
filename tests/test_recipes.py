"""Every recipe in recipes/ runs, on tiny members under the names that it gives."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from helpers import LINEAGE, boom_merge, files
from tiny_models import build_minilm, build_qwen3, embed, perturb, read_tensors

from mergekit_embed.recipe import load

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))

Merged = Callable[[Sequence[Any], Any], Any]
"""What becomes of one tensor, from the members' and the base's."""


def _in_groups(members: Sequence[Any], base: Any) -> Any:
    halves = [reference.delta_guided(own, base, [1, 1]) for own in (members[:2], members[2:])]
    return reference.delta_guided(halves, base, [2, 2])


EXPECTED: dict[str, Merged] = {
    "boom": lambda m, b: reference.multislerp(m, [20, 40, 60, 80, 100], base=b),
    "codiemb": _in_groups,
    "incremental-boom": lambda m, b: reference.multislerp(m, [1, 1], base=b),
    "nemotron": lambda m, b: np.mean(m, axis=0),
    "quickstart": lambda m, b: reference.multislerp(m, [1, 1, 1], base=b),
    "qwen3-embedding": lambda m, b: reference.slerp(b, m[-1], 0.5),
}
"""By the name of a recipe that merges tensor by tensor."""


Tensors = Sequence[Any]
Whole = Callable[[Sequence[Tensors], Tensors, Sequence[str]], Tensors]
"""What becomes of all tensors, from the members' and the base's, and their names."""


def _positioned(members: Sequence[Tensors], base: Tensors, _: Sequence[str]) -> Tensors:
    return reference.self_positioning_grouped(members, base, [1.3, 0.8, 0.6], lam=0.9)


def _by_layer(members: Sequence[Tensors], base: Tensors, names: Sequence[str]) -> Tensors:
    layers: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        number = re.match(r"encoder\.layer\.(\d+)\.", name)
        rest = "embeddings" if "embed" in name else f"{name.rpartition('/')[0]} head"
        layers.setdefault(number[1] if number else rest, []).append(place)
    assert list(layers) == ["2_Dense head", "embeddings", "0", "1", " head"]
    found = dict[int, Any]()
    for places in layers.values():
        own = [[member[place] for place in places] for member in members]
        origin = [base[place] for place in places]
        merged = reference.delta_guided_grouped(own, origin, [1] * len(members))
        found |= dict(zip(places, merged, strict=True))
    return [found[place] for place in range(len(names))]


EXPECTED_WHOLE: dict[str, Whole] = {"best": _by_layer, "self-positioning": _positioned}
"""By the name of a recipe that merges models as a whole: what becomes of all their tensors."""

DECODERS = {"nemotron", "qwen3-embedding"}


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """What members are made from: an encoder, and a decoder (True)."""
    root = tmp_path_factory.mktemp("starts")
    return {
        False: build_minilm(root / "encoder", 0, dense=True),
        True: build_qwen3(root / "decoder", 0),
    }


def test_every_recipe_has_its_expectation() -> None:
    assert [recipe.stem for recipe in RECIPES] == sorted(EXPECTED | EXPECTED_WHOLE)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_that_we_ship_runs_as_printed(
    recipe: Path, starts: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(recipe)
    start = starts[recipe.stem in DECODERS]
    members = list(dict.fromkeys(member.reference for member in loaded.members))
    others = [name for name in (*members, loaded.base) if name is not None]
    assert all(not Path(name).is_absolute() for name in others)
    if loaded.base is not None:
        shutil.copytree(start, loaded.base)
    for seed, name in enumerate(members):
        if not Path(name).exists():
            perturb(start, Path(name), seed, scale=0.02 * (seed + 1))

    ran = boom_merge(recipe)
    assert (ran.code, ran.err) == (0, "")
    assert loaded.output is not None
    assert ran.last == f'SentenceTransformer("{loaded.output}")'

    output = Path(loaded.output)
    models = [read_tensors(Path(name)) for name in members]
    base = read_tensors(Path(loaded.base)) if loaded.base else None
    merged = read_tensors(output)
    own = [[model[name][1] for name in merged] for model in models]
    origin = [base[name][1] if base else None for name in merged]
    if recipe.stem in EXPECTED_WHOLE:
        wanted = list(EXPECTED_WHOLE[recipe.stem](own, origin, list(merged)))
    else:
        tensors = zip(zip(*own, strict=True), origin, strict=True)
        wanted = [EXPECTED[recipe.stem](one, b) for one, b in tensors]
    for (name, (dtype, found)), exact in zip(merged.items(), wanted, strict=True):
        assert dtype == "F32"
        assert np.allclose(found, exact, rtol=1e-6, atol=1e-9), name
    text = ["a quick brown fox"]
    vector = embed(output, text)
    assert np.isfinite(vector).all()
    assert all(not np.allclose(vector, embed(Path(name), text), atol=1e-6) for name in members)

    ran = boom_merge(output / LINEAGE, "-o", "again")
    assert (ran.code, ran.err) == (0, "")
    assert files(Path("again")) == files(output)
