"""The work of a study: training, merging, searching, measuring. What is there is not made again."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mergekit_embed import merge
from mergekit_embed.evaluate.compare import Comparison, Row
from mergekit_embed.evaluate.encoder import Settings
from mergekit_embed.evaluate.models import open_models
from mergekit_embed.evaluate.run import Evaluating
from mergekit_embed.evaluate.tasks import open_tasks
from mergekit_embed.search import search
from mergekit_embed.train.run import train

from .setting import Setting, corpus_of, digest

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
"""The types of weights that models are measured in, by the precision of training."""


@dataclass(frozen=True)
class Cost:
    """What a model took: steps of training, tokens in them, and steps of a search."""

    steps: int = 0
    tokens: int = 0
    searched: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.steps + other.steps, self.tokens + other.tokens, self.searched + other.searched
        )


@dataclass(frozen=True)
class Candidate:
    """A model to measure: a folder, or the recipe that makes it.

    Attributes:
        reference: of the folder or of the recipe's file.
        weight: rows that it was trained on, what it weighs in a merge.
        cost: of all training and search behind it.
    """

    label: str
    reference: Path
    weight: float = 1.0
    cost: Cost = field(default_factory=Cost)

    def named(self, label: str) -> Candidate:
        """The same model under another name."""
        return Candidate(label, self.reference, self.weight, self.cost)


class Lab:
    """Makes and measures models; all that it makes lies in `setting.out`, by what it is.

    Attributes:
        whole: measure on all texts of the dev tasks, not on a part.
    """

    def __init__(self, setting: Setting, *, whole: bool = False):
        self.setting, self.whole = setting, whole
        self.corpus = corpus_of(setting)

    def data(
        self, names: Sequence[str] | None = None, *, fresh: bool = False
    ) -> dict[str, dict[str, Any]]:
        """Data sets as a plan or a search names them; `fresh`: of rows nobody is trained on."""
        corpus = self.corpus
        return {
            name: {"path": str(path.resolve()), "kind": corpus.kinds[name]}
            | ({"negatives": 1} if corpus.kinds[name] == "classification" else {})
            for name, path in (corpus.fresh if fresh else corpus.train).items()
            if names is None or name in names
        }

    def tasks(self, data: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """What some data sets of a task have in common."""
        loss = {"name": "info_nce", "parameters": {"temperature": self.setting.temperature}}
        known = {one["kind"] for one in data.values()}
        return {"retrieval": {"loss": loss}} if "retrieval" in known else {}

    @property
    def base(self) -> Candidate:
        """The model that all members start from."""
        return Candidate("base", Path(self.setting.base).resolve(), 0.0)

    def trained(
        self,
        members: Sequence[Any],
        seed: int,
        *,
        data: Mapping[str, Any] | None = None,
        **plan: Any,
    ) -> list[Candidate]:
        """The members of a plan, in the order of their names there.

        Args:
            members: as a plan has them.
            seed: of all draws.
            data: data sets, all by default.
            plan: other keys of the plan; those of `training` are added to the study's own.
        """
        own = self.setting
        training = {
            "batch_size": own.rows,
            "learning_rate": own.learning_rate,
            "max_length": own.max_length,
            "precision": own.precision,
            "epochs": own.epochs,
            **plan.pop("training", {}),
        }
        if "steps" in training:
            del training["epochs"]
        data = self.data() if data is None else dict(data)
        content = {
            "model": str(self.base.reference),
            "seed": seed,
            "data": data,
            "tasks": self.tasks(data),
            "members": list(members),
            "training": training,
            **plan,
        }
        place = own.out / "trained" / digest(content)
        place.mkdir(parents=True, exist_ok=True)
        path = place / "study.yaml"
        write_yaml(path, content)
        if not (place / "run").is_dir():
            tell(f"training {', '.join(_named(entry) for entry in members)}")
        found: list[Candidate] = []
        for record in train(path, place / "run").members.values():
            weight = float(sum(one["rows"] for one in record["rows"].values()))
            cost = Cost(record["steps"], record["tokens"])
            for name in record["models"]:  # several, where checkpoints of a run are members
                folder = (place / "run" / "members" / name).resolve()
                found.append(Candidate(name, folder, weight, cost))
                cost = Cost()  # the run is paid once
        return found

    def merged(
        self,
        label: str,
        members: Sequence[Candidate],
        method: str = "multislerp",
        *,
        equal: bool = False,
        base: Candidate | None = None,
        **recipe: Any,
    ) -> Candidate:
        """The merge of some members, weighed by their rows or all alike."""
        content = self.recipe(members, method, equal=equal, base=base, **recipe)
        return self.candidate(label, content, members)

    def candidate(
        self, label: str, recipe: Mapping[str, Any], members: Sequence[Candidate]
    ) -> Candidate:
        """What a recipe makes of some members."""
        path = self.setting.out / "recipes" / f"{digest(recipe)}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_yaml(path, recipe)
        return Candidate(label, path.resolve(), *_together(members))

    def written(self, made: Candidate) -> Candidate:
        """The model of a recipe as a folder, as a search needs its members."""
        recipe = made.reference
        place = self.setting.out / "merged" / digest(recipe.read_text(encoding="utf-8"))
        if not place.is_dir():  # it appears whole
            merge(recipe, place, device=self.setting.device)
        return Candidate(made.label, place.resolve(), made.weight, made.cost)

    def recipe(
        self,
        members: Sequence[Candidate],
        method: str,
        *,
        equal: bool = False,
        base: Candidate | None = None,
        weighed: bool = True,
        **recipe: Any,
    ) -> dict[str, Any]:
        """The recipe of a merge as plain data; weights sum to 1."""
        models: list[dict[str, Any]] = [{"model": str(one.reference)} for one in members]
        if weighed:
            weights = [1.0 if equal else one.weight for one in members]
            for model, weight in zip(models, weights, strict=True):
                model["parameters"] = {"weight": weight / sum(weights)}
        content: dict[str, Any] = {"merge_method": method, "models": models, **recipe}
        if method not in {"linear", "karcher"}:
            content["base_model"] = str((base or self.base).reference)
        return content

    def searched(
        self, label: str, recipe: Mapping[str, Any], members: Sequence[Candidate], seed: int
    ) -> Candidate:
        """What a search finds from a recipe with a `search`, and its report beside it."""
        content = {**recipe, "search": {"seed": seed, **recipe["search"]}}
        place = self.setting.out / "searched" / digest(content)
        found = place / "found.yaml"
        if not (place / "search.json").is_file():
            place.mkdir(parents=True, exist_ok=True)
            write_yaml(place / "study.yaml", content)
            tell(f"searching {label}")
            search(place / "study.yaml", place, device=self.setting.device)
        report = json.loads((place / "search.json").read_text())
        weight, cost = _together(members)
        steps = len(report["losses"]) + len(report["judged"])
        return Candidate(label, found, weight, cost + Cost(searched=steps))

    def probe(self, *, fresh: bool = False) -> dict[str, Any]:
        """The `search` block of a study: its data and the way members are trained."""
        data = self.data(fresh=fresh)
        return {
            "data": data,
            "tasks": self.tasks(data),
            "batch_size": self.setting.rows,
            "max_length": self.setting.max_length,
        }

    def measured(
        self,
        candidates: Sequence[Candidate],
        trained: set[str],
        names: Sequence[str] | None = None,
    ) -> Comparison:
        """Models side by side on dev tasks.

        Args:
            candidates: the models; each is measured once, whatever it is called.
            trained: data sets whose tasks count as in-domain.
            names: of the tasks, all by default.
        """
        dev = self.corpus.whole if self.whole else self.corpus.dev
        names = list(dev) if names is None else names
        folders = [str(dev[name]) for name in names]
        inside = [name for name in names if name in trained]
        outside = [name for name in names if name not in trained]
        tasks = open_tasks(folders, inside, outside)
        tell(f"measuring {len(candidates)} models in {len(names)} tasks")
        by_place = {one.reference: f"model-{i}" for i, one in enumerate(candidates)}
        references = [f"{name}={place}" for place, name in by_place.items()]
        found = Evaluating(
            open_models(references),
            tasks,
            results=self.setting.out / "results",
            settings=Settings(DTYPES[self.setting.precision], max_length=self.setting.max_length),
            device=self.setting.device,
        ).run()
        rows = {row.model: row for row in found.rows}
        named = [_renamed(rows[by_place[one.reference]], one.label) for one in candidates]
        return Comparison(found.tasks, tuple(named))


def _together(members: Sequence[Candidate]) -> tuple[float, Cost]:
    """What several members weigh and took."""
    return sum(one.weight for one in members), sum((one.cost for one in members), Cost())


def _renamed(row: Row, label: str) -> Row:
    return Row(label, row.revision, row.dimension, row.scores, row.samples, row.seconds)


def _named(entry: Mapping[str, Any]) -> str:
    """A member of a plan, as it is there."""
    return " ".join(f"{key} {value}" for key, value in entry.items())


def tell(what: str) -> None:
    """Say what is done now, as it may take minutes."""
    print(f"{datetime.now():%H:%M:%S}  {what}", file=sys.stderr, flush=True)


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a recipe or a plan whole, as another process may be reading it."""
    yaml = YAML()
    yaml.width = 4096
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        yaml.dump(dict(content), file)
    partial.replace(path)
