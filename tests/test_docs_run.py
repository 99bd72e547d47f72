"""Every recipe that the documentation shows runs as printed, on tiny models of those names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from helpers import LINEAGE, boom_merge
from lora import adapt
from tensor_folders import read_folder, write_statistics
from test_docs import YAML
from tiny_models import build_minilm, build_qwen3, embed, perturb
from train.plans import rows_of, write_rows
from vocabularies import grow, permuted

from mergekit_embed import load_recipes

TABLE = "embeddings.word_embeddings.weight"
LINEAR = {"minilm": ["query", "value"], "qwen3": ["q_proj", "down_proj"]}


def kind_of(name: str) -> str:
    return "qwen3" if "qwen3" in name.lower() else "minilm"


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("starts")
    return {
        "minilm": build_minilm(root / "minilm", 0, layers=12),
        "qwen3": build_qwen3(root / "qwen3", 0),
    }


class Shelf:
    """Puts a model or an adapter where a reference looks for it, once."""

    def __init__(self, root: Path, starts: dict[str, Path], *, by_token: bool):
        self.root, self.starts, self.by_token = root, starts, by_token
        self.made: set[str] = set()

    def put(self, reference: str) -> None:
        model, _, adapter = reference.partition("+")
        if model not in self.made:
            self.made.add(model)
            self._model(model)
        if adapter and adapter not in self.made:
            self.made.add(adapter)
            start = self.starts[kind_of(model)]
            adapt(
                start, self._place(adapter), len(self.made), target_modules=LINEAR[kind_of(model)]
            )

    def _model(self, name: str) -> None:
        start, place, seed = self.starts[kind_of(name)], self._place(name), len(self.made)
        if self.by_token and name.endswith("-chemistry"):
            start = permuted(start, self.root / "permuted", TABLE, seed)
        perturb(start, place, seed, scale=0.02 * seed)
        if self.by_token and name.endswith("-legal"):
            grow(place, TABLE, seed, tokens=["habeas", "corpus"])

    def _place(self, name: str) -> Path:
        """A folder here, or in the Hub's cache for a reference with a revision."""
        repository, _, revision = name.partition("@")
        place = self.root / repository
        if revision:
            cached = self.root / "hub" / f"models--{repository.replace('/', '--')}"
            (cached / "refs").mkdir(parents=True)
            (cached / "refs" / revision).write_text("a" * 40)
            place = cached / "snapshots" / ("a" * 40)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def statistics(self, kind: str, folder: str, model: str) -> None:
        """Positive Fishers, or Gram matrices of random inputs, as `boom stats` writes them."""
        draw, tensors = np.random.default_rng(len(folder)), read_folder(self.root / model)
        if kind == "fisher":
            found = {name: draw.random(values.shape) + 0.1 for name, values in tensors.items()}
        else:
            layers = {n: v for n, v in tensors.items() if v.ndim == 2 and "embeddings" not in n}
            rows = {name: draw.standard_normal((99, v.shape[1])) for name, v in layers.items()}
            found = {name: inputs.T @ inputs for name, inputs in rows.items()}
        write_statistics(self.root / folder, kind, found)


@pytest.mark.parametrize(("page", "block"), YAML, ids=lambda value: getattr(value, "name", ""))
def test_a_recipe_of_the_docs_runs(
    page: Path,
    block: str,
    starts: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    Path("shown.yaml").write_text(block.replace("search:\n", "search:\n  steps: 2\n"))
    for file, kind in re.findall(r"path: (\S+), kind: (\w+)", block):
        write_rows(tmp_path / file, rows_of(kind, 64))
    shelf = Shelf(tmp_path, starts, by_token="tokenizer_source" in block)
    for reference in references(load_recipes("shown.yaml")[0].source.data):
        shelf.put(reference)
    for model, folder in re.findall(r"model: (\S+)\n +statistics: (\S+)", block):
        shelf.statistics("fisher" if "fisher" in block else "gram", folder, model)
    ran = boom_merge("shown.yaml", "--json")
    assert (ran.code, ran.err) == (0, "")
    made = [json.loads(line)["output"] for line in ran.out.splitlines()]
    assert len(made) == (6 if "sweep" in block else 1)
    for output in made:
        if "adapter_output" in block:
            assert (Path(output) / "adapter_model.safetensors").exists()
        else:
            assert np.isfinite(embed(Path(output), ["a quick brown fox"])).all()
    ran = boom_merge(Path(made[0], LINEAGE), "-o", "again", "-q")
    assert (ran.code, ran.err) == (0, "")
    for name in ("*.safetensors", "tokenizer.json"):
        for path in Path(made[0]).rglob(name):
            again = Path("again", path.relative_to(made[0]))
            assert again.read_bytes() == path.read_bytes()


def references(data: Any) -> list[str]:
    """Every model that a recipe names, in those within it too."""
    if isinstance(data, dict):
        own = [data[key] for key in ("model", "base_model") if isinstance(data.get(key), str)]
        return own + [found for value in data.values() for found in references(value)]
    if isinstance(data, list):
        return [found for value in data for found in references(value)]
    return []
