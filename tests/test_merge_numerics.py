"""Whole merges, from folder to folder, against the float64 references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from reference import check_numerics
from tensor_folders import (
    SHAPES,
    Tensors,
    largest,
    random_model,
    raw_bytes,
    read_folder,
    stored,
    write_folder,
)

import mergekit_embed
from mergekit_embed.checkpoint import places

WEIGHTS = [0.3, 1.0, 1.9]  # none of them but 1 a short binary fraction

Expected = Callable[[Sequence[Any], Any], Any]


def _pair(function: Callable[..., Any], *arguments: Any, **options: Any) -> Expected:
    return lambda members, base: function(members[0], members[1], *arguments, **options)


CASES: dict[str, tuple[dict[str, Any], int, bool, Expected]] = {
    # name: (recipe, members, base, reference of one tensor)
    "linear": ({}, 3, False, lambda m, b: reference.linear(m, WEIGHTS)),
    "linear sums": (
        {"parameters": {"normalize": False}},
        3,
        False,
        lambda m, b: reference.linear(m, WEIGHTS, normalize=False),
    ),
    "task_arithmetic": (
        {"parameters": {"lambda": 0.7}},
        3,
        True,
        lambda m, b: reference.task_arithmetic(m, b, WEIGHTS, lam=0.7),
    ),
    "task_arithmetic means": (
        {"parameters": {"normalize": True}},
        3,
        True,
        lambda m, b: reference.task_arithmetic(m, b, WEIGHTS, normalize=True),
    ),
    "slerp": ({"parameters": {"t": 0.3}}, 2, False, _pair(reference.slerp, 0.3)),
    "nuslerp": ({}, 2, False, _pair(reference.nuslerp, 0.3, 1.0)),
    "nuslerp of deltas": (
        {},
        2,
        True,
        lambda m, b: reference.nuslerp(m[0], m[1], 0.3, 1.0, base=b),
    ),
    "nuslerp of rows": (
        {"parameters": {"nuslerp_flatten": False}},
        2,
        True,
        lambda m, b: reference.nuslerp(m[0], m[1], 0.3, 1.0, base=b, flatten=False),
    ),
    "nuslerp of columns": (
        {"parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True}},
        2,
        False,
        lambda m, b: reference.nuslerp(m[0], m[1], 0.3, 1.0, flatten=False, row_wise=True),
    ),
    "multislerp": ({}, 3, False, lambda m, b: reference.multislerp(m, WEIGHTS)),
    "multislerp of deltas": ({}, 3, True, lambda m, b: reference.multislerp(m, WEIGHTS, base=b)),
    "karcher": ({}, 3, False, lambda m, b: reference.karcher(m, WEIGHTS)),
    "model_stock": ({}, 3, True, lambda m, b: reference.model_stock(m, b)),
    "model_stock of rows": (
        {"parameters": {"filter_wise": True}},
        3,
        True,
        lambda m, b: reference.model_stock(m, b, filter_wise=True),
    ),
    "ema": ({"parameters": {"decay": 0.6}}, 3, False, lambda m, b: reference.ema(m, 0.6)),
    "self_positioning": (
        {"granularity": "tensor", "parameters": {"lambda": 0.7}},
        3,
        True,
        lambda m, b: reference.self_positioning(m, b, WEIGHTS, lam=0.7),
    ),
    "passthrough": (
        {"parameters": {"scale": 0.9}},
        1,
        False,
        lambda m, b: reference.passthrough(m[0], 0.9),
    ),
    "ties": (
        {"parameters": {"density": 0.3}},
        3,
        True,
        lambda m, b: reference.ties(m, b, WEIGHTS, [0.3] * 3),
    ),
    "ties whole": ({}, 3, True, lambda m, b: reference.ties(m, b, WEIGHTS, [1.0] * 3)),
    "ties sums": (
        {"parameters": {"density": 0.5, "normalize": False, "rescale": True, "lambda": 0.8}},
        3,
        True,
        lambda m, b: reference.ties(
            m, b, WEIGHTS, [0.5] * 3, lam=0.8, normalize=False, rescale=True
        ),
    ),
}

for _gamma in (-1.0, 0.0, 1.0, 2.5):
    CASES[f"delta_guided gamma {_gamma:g}"] = (
        {"parameters": {"gamma": _gamma}},
        3,
        True,
        lambda m, b, gamma=_gamma: reference.delta_guided(m, b, WEIGHTS, gamma=gamma),
    )
for _norm in ("l1", "rms", "relative"):
    CASES[f"delta_guided {_norm}"] = (
        {"parameters": {"norm": _norm}},
        3,
        True,
        lambda m, b, norm=_norm: reference.delta_guided(m, b, WEIGHTS, norm=norm),
    )
for _unit in ("row", "element"):
    CASES[f"delta_guided {_unit}"] = (
        {"granularity": _unit},
        3,
        True,
        lambda m, b, unit=_unit: reference.delta_guided(m, b, WEIGHTS, granularity=unit),
    )


def _recipe(name: str, paths: Sequence[Path], base: Path | None) -> dict[str, Any]:
    options = CASES[name][0] if name in CASES else {}
    method = name.split(" ")[0]
    weighted = method not in {"slerp", "model_stock", "ema", "passthrough"}
    models = [
        {"model": str(path), **({"parameters": {"weight": weight}} if weighted else {})}
        for path, weight in zip(paths, WEIGHTS, strict=False)
    ]
    recipe: dict[str, Any] = {"merge_method": method, "models": models, **options}
    if base is not None:
        recipe["base_model"] = str(base)
    return recipe


class Zoo:
    """A base and three fine-tunes of it, stored as one type, in one file each or sharded."""

    def __init__(self, root: Path, dtype: str, shards: int):
        self.dtype = dtype
        base = random_model(0)
        self.base = stored(base, dtype)
        self.members = [stored(random_model(seed, around=base), dtype) for seed in (1, 2, 3)]
        self.base_path = write_folder(root / "base", self.base, dtype, shards)
        self.paths = [
            write_folder(root / f"member{i}", member, dtype, shards)
            for i, member in enumerate(self.members)
        ]


@pytest.fixture(scope="module", params=["F32-1", "BF16-1", "F32-3", "BF16-2", "F16-1", "F64-1"])
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    dtype, shards = request.param.split("-")
    return Zoo(tmp_path_factory.mktemp(request.param), dtype, int(shards))


def _check(
    result: Tensors, expected: dict[str, Any], zoo: Zoo, inputs: Sequence[Tensors], dtype: str
) -> None:
    assert result.keys() == set(SHAPES)
    for name in SHAPES:
        check_numerics(result[name], expected[name], dtype, largest(inputs, name))


@pytest.mark.parametrize("name", CASES)
def test_every_method_equals_its_float64_reference(name: str, zoo: Zoo, tmp_path: Path) -> None:
    _, count, based, expected = CASES[name]
    recipe = _recipe(name, zoo.paths[:count], zoo.base_path if based else None)
    mergekit_embed.merge(recipe, tmp_path / "out", device="cpu")
    exact = {
        tensor: expected([member[tensor] for member in zoo.members[:count]], zoo.base[tensor])
        for tensor in SHAPES
    }
    _check(read_folder(tmp_path / "out"), exact, zoo, [zoo.base, *zoo.members[:count]], zoo.dtype)


@pytest.mark.parametrize("unit", ["layer", "model"])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_layers_and_models_are_measured_as_one_vector(
    unit: str, norm: str, zoo: Zoo, tmp_path: Path
) -> None:
    recipe = _recipe("delta_guided", zoo.paths, zoo.base_path)
    recipe |= {"granularity": unit, "parameters": {"norm": norm, "gamma": 2.0}}
    mergekit_embed.merge(recipe, tmp_path / "out", device="cpu")
    groups: dict[str, list[str]] = {}
    for name, place in places(SHAPES).items():
        groups.setdefault("all" if unit == "model" else place.group, []).append(name)
    assert len(groups) == (1 if unit == "model" else 5)
    exact: dict[str, Any] = {}
    for names in groups.values():
        merged = reference.delta_guided_grouped(
            [[member[n] for n in names] for member in zoo.members],
            [zoo.base[n] for n in names],
            WEIGHTS,
            gamma=2.0,
            norm=norm,
        )
        exact |= dict(zip(names, merged, strict=True))
    _check(read_folder(tmp_path / "out"), exact, zoo, [zoo.base, *zoo.members], zoo.dtype)


def test_self_positioning_takes_the_whole_model_as_one_vector(zoo: Zoo, tmp_path: Path) -> None:
    recipe = _recipe("self_positioning", zoo.paths, zoo.base_path)
    del recipe["granularity"]
    mergekit_embed.merge(recipe, tmp_path / "out", device="cpu")
    merged = reference.self_positioning_grouped(
        [list(member.values()) for member in zoo.members], list(zoo.base.values()), WEIGHTS, lam=0.7
    )
    exact = dict(zip(zoo.base, merged, strict=True))
    _check(read_folder(tmp_path / "out"), exact, zoo, [zoo.base, *zoo.members], zoo.dtype)


MIXTURES = [name for name in CASES if not name.startswith(("ties", "passthrough", "linear sums"))]


@pytest.mark.parametrize(
    "name", [n for n in MIXTURES if n not in {"task_arithmetic", "self_positioning"}]
)
def test_merging_a_model_with_itself_gives_its_bytes(name: str, zoo: Zoo, tmp_path: Path) -> None:
    _, count, based, _ = CASES[name]
    member = zoo.paths[0]
    recipe = _recipe(name, [member] * count, zoo.base_path if based else None)
    mergekit_embed.merge(recipe, tmp_path / "out", device="cpu")
    assert raw_bytes(tmp_path / "out") == raw_bytes(member)


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n][2]])
def test_merging_a_base_with_itself_gives_its_bytes(name: str, zoo: Zoo, tmp_path: Path) -> None:
    """Whatever the coefficients, deltas of zero change nothing, not even the sign of a zero."""
    count = CASES[name][1]
    tensors = {
        n: np.where(np.indices(a.shape).sum(axis=0) % 3 == 0, -0.0, a) if a.ndim else a
        for n, a in zoo.base.items()
    }
    paths = [write_folder(tmp_path / f"copy{i}", tensors, zoo.dtype) for i in range(count)]
    base = write_folder(tmp_path / "base", tensors, zoo.dtype)
    mergekit_embed.merge(_recipe(name, paths, base), tmp_path / "out", device="cpu")
    assert raw_bytes(tmp_path / "out") == raw_bytes(base)


SYMMETRIC = [n for n in CASES if not n.startswith(("slerp", "ema", "passthrough", "self_"))]


@pytest.mark.parametrize("name", SYMMETRIC)
def test_the_order_of_members_does_not_matter(name: str, zoo: Zoo, tmp_path: Path) -> None:
    _, count, based, _ = CASES[name]
    recipe = _recipe(name, zoo.paths[:count], zoo.base_path if based else None)
    if name.startswith("ties"):
        # Sums of these are exact. Others may cancel to 0 in one order and to 1e-19 in another,
        # and the sign that is elected there decides about the element.
        for model, weight in zip(recipe["models"], (0.5, 1.0, 2.0), strict=True):
            model["parameters"] = {"weight": weight}
    turned = {**recipe, "models": recipe["models"][::-1]}
    mergekit_embed.merge(recipe, tmp_path / "out", device="cpu")
    mergekit_embed.merge(turned, tmp_path / "turned", device="cpu")
    one, other = read_folder(tmp_path / "out"), read_folder(tmp_path / "turned")
    for tensor in SHAPES:
        cancelled = 2.0**-40 * largest([zoo.base, *zoo.members], tensor)
        near = cancelled if zoo.dtype == "F64" else reference.ulp(one[tensor], zoo.dtype)
        near = np.maximum(near, cancelled)
        assert np.all(np.abs(one[tensor] - other[tensor]) <= near), tensor


def test_a_model_with_other_prefixes_and_types_merges_with_the_rest(tmp_path: Path) -> None:
    base, member = random_model(0), random_model(1)
    first = write_folder(tmp_path / "first", stored(base, "F32"), "F32")
    named = {f"bert.{name}": array for name, array in stored(member, "BF16").items()}
    second = write_folder(tmp_path / "second", named, "BF16")
    recipe = {"merge_method": "linear", "models": [{"model": str(p)} for p in (first, second)]}
    result = mergekit_embed.merge(recipe, tmp_path / "out", device="cpu")
    assert any("different float types" in note for note in result.notes)
    merged = read_folder(tmp_path / "out")
    for name in SHAPES:
        exact = (stored(base, "F32")[name] + stored(member, "BF16")[name]) / 2
        check_numerics(merged[name], exact, "F32", np.abs(exact) + 1)


@pytest.mark.parametrize("out", ["float32", "bfloat16", "float16", "float64"])
def test_the_stored_type_can_be_chosen(out: str, tmp_path: Path) -> None:
    models = [stored(random_model(seed), "F32") for seed in range(2)]
    paths = [write_folder(tmp_path / f"m{i}", model, "F32") for i, model in enumerate(models)]
    recipe = {"merge_method": "linear", "models": [{"model": str(p)} for p in paths]}
    recipe |= {"dtype": "bfloat16", "out_dtype": out}
    mergekit_embed.merge(recipe, tmp_path / "out", device="cpu")
    label = mergekit_embed.open_checkpoint(tmp_path / "out").components["Transformer"].tensors
    dtype = {str(t.dtype) for t in label.values()}
    assert dtype == {{"float32": "F32", "bfloat16": "BF16", "float16": "F16"}.get(out, "F64")}
    merged = read_folder(tmp_path / "out")
    for name in SHAPES:
        exact = (models[0][name] + models[1][name]) / 2
        check_numerics(
            merged[name],
            exact,
            dtype.pop() if len(dtype) > 1 else next(iter(dtype)),
            largest(models, name),
        )
