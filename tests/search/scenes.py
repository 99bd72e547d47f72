"""What tests of searches share: a family, its probe data, recipes, planted mixtures."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers import Ran, ran
from ruamel.yaml import YAML
from tiny_models import WORDS, build_minilm, perturb
from train.plans import write_rows

from mergekit_embed.cli.search import search as command
from mergekit_embed.engine.reader import Reader
from mergekit_embed.search.load import load_search
from mergekit_embed.search.loop import Searching, Silent
from mergekit_embed.search.prepare import Scene, open_scene, planned
from mergekit_embed.search.run import strategy_of
from mergekit_embed.search.specs import Doubles, Evaluation, SearchSpec
from mergekit_embed.search.start import Merging, starting_point

DATA = {
    "questions": {"path": "questions.jsonl", "kind": "retrieval"},
    "similar": {"path": "similar.jsonl", "kind": "sts"},
    "topics": {"path": "topics.jsonl", "kind": "classification"},
}


def make_family(root: Path) -> Path:
    """A base with a 2_Dense, three fine-tunes, and rows for three tasks."""
    build_minilm(root / "base", 0, dense=True)
    for seed in (1, 2, 3):
        perturb(root / "base", root / f"m{seed}", seed, scale=0.3)
    drawn = random.Random(0)

    def text() -> str:
        return " ".join(drawn.choices(WORDS, k=6))

    write_rows(
        root / "questions.jsonl",
        [{"query": text(), "pos": [text()], "neg": [text(), text()]} for _ in range(40)],
    )
    write_rows(
        root / "similar.jsonl",
        [{"sentence1": text(), "sentence2": text(), "score": drawn.random()} for _ in range(40)],
    )
    write_rows(root / "topics.jsonl", [{"text": text(), "label": f"c{i % 3}"} for i in range(40)])
    return root


def recipe_of(root: Path, method: str = "self_positioning", **search: Any) -> Path:
    """A recipe that searches with the family, written into its folder."""
    content = {
        "merge_method": method,
        "base_model": "base",
        "models": [{"model": "m1"}, {"model": "m2"}, {"model": "m3"}],
        "search": {"data": DATA, "batch_size": 8, "steps": 12, "evaluate_every": 4, **search},
    }
    return write_recipe(root / "recipe.yaml", content)


def write_recipe(path: Path, content: Any) -> Path:
    with path.open("w") as file:
        YAML().dump(content, file)
    return path


def dev_folders(root: Path) -> list[str]:
    """Two tasks beside a recipe: similarity, and retrieval."""
    drawn = random.Random(7)

    def text() -> str:
        return " ".join(drawn.choices(WORDS, k=5))

    pairs = [{"sentence1": text(), "sentence2": text(), "score": drawn.random()} for _ in range(30)]
    write_rows(root / "dev" / "pairs" / "pairs.jsonl", pairs)
    found = root / "dev" / "found"
    write_rows(found / "queries.jsonl", [{"id": f"q{i}", "text": text()} for i in range(10)])
    write_rows(found / "corpus.jsonl", [{"id": f"d{i}", "text": text()} for i in range(20)])
    relevant = [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1} for i in range(10)]
    write_rows(found / "qrels.jsonl", relevant)
    return ["dev/pairs", "dev/found"]


@contextmanager
def opened_scene(
    recipe: Path, cache: str | int = "auto", *, double: bool = False
) -> Iterator[tuple[SearchSpec, Scene]]:
    """The model among its members, as a search has it; in float64 on request."""
    spec = load_search(recipe)
    plan = planned(spec, recipe.parent / "out")
    with Reader(plan.inputs) as reader:
        scene = open_scene(spec, plan, reader, "cpu", cache)
        if double:
            scene.embedder.model.double()
        yield spec, scene


def boom_search(*arguments: str | Path) -> Ran:
    """Run `boom-search`, as `ran` does."""
    return ran(command, *arguments)


class KilledError(Exception):
    """What stands for the end of a process."""


@dataclass
class Kill(Silent):
    """Progress that ends a search at a step, or where a point of this name is judged."""

    step: int | None = None
    label: str | None = None

    def stepped(self, number: int, loss: float) -> None:
        if number == self.step:
            raise KilledError

    def judged(self, label: str, value: float, best: float) -> None:
        if label == self.label:
            raise KilledError


@dataclass
class Planted:
    """Half the squared distance to a point of the span, divided by what a start is off."""

    scene: Scene
    target: dict[str, torch.Tensor]
    scale: float

    @classmethod
    def at(cls, scene: Scene, coefficients: Doubles, scale: float) -> Planted:
        scene.position.put(coefficients)
        target = {name: one.clone() for name, one in scene.position.flat().items()}
        return cls(scene, target, scale)

    def _distance(self) -> float:
        total = 0.0
        for name, parameter in self.scene.embedder.parameters():
            difference = parameter.data - self.target[name]
            parameter.grad = difference / self.scale
            total += float(difference.double().square().sum()) / (2 * self.scale)
        return total

    def step(self, number: int) -> float:
        return self._distance()

    def judge(self) -> Evaluation:
        return Evaluation(self._distance())

    def start_from(self, tasks: Mapping[str, float]) -> None:
        """There are none."""


def searching_of(spec: SearchSpec, scene: Scene, objective: Any) -> Searching:
    """A search as the command runs it, with an objective of the test's own."""
    start = starting_point(spec, scene.jobs, scene.grouping)
    merging = Merging(spec.recipe, scene.jobs, scene.cells)
    return Searching(
        strategy=strategy_of(spec, scene, start),
        objective=objective,
        move=lambda point: scene.position.put(merging.coefficients(point)),
        pull=lambda: scene.cells.summed(scene.position.pulls()),
        save=lambda state: None,
        progress=Silent(),
    )
