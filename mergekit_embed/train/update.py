"""Updates: a model learns new data at a part of what training it again would cost.

A member is trained from the model's base on the new data and on the core, a random part of the data
that the model has learnt from, and merged into the model with an equal weight: BOOM's incremental
learning (arXiv 2602.05787).

The core of a data set are the rows that draw the least under the name `core`, with the seed of the
model's own training: see `bags`. It follows from the data set and is stored nowhere. What was new
in one update is history in the next, with a core of its own, so that the tenth update is made as
the first, and costs (new + r old) / (new + old) of a full training whenever it comes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..checkpoint.locate import is_folder, locate
from ..checkpoint.reference import split
from ..engine.hashing import digest_of
from ..errors import OutputExistsError, UsageError
from . import run
from .ancestry import HERE, Ancestry, ancestry
from .bags import members
from .budget import budget
from .data import Dataset, open_datasets
from .places import content_in, from_folder
from .plan import load
from .progress import Progress
from .record import model_digest, rows_of
from .specs import TrainingPlan
from .update_data import Entry, entries

MEMBER, CORE, WHOLE = "update", "core", "full-retraining"
"""The member that is trained, the name that the core is drawn by, and what it is compared with."""

RATIO = 0.4
"""The part of the history that is the core, where nobody says otherwise: the paper's."""


@dataclass(frozen=True)
class Saving:
    """What an update costs, and what training on all data once would cost."""

    rows: int
    full_rows: int
    steps: int
    full_steps: int

    @property
    def part(self) -> float:
        """(new + r old) / (new + old), in rows."""
        return self.rows / self.full_rows


@dataclass(frozen=True)
class Update:
    """An update that can be made.

    Attributes:
        plan: that trains its member, with paths from the working directory.
        target: the folder to write.
        model: the model that is updated.
        about: what the record says of it, but for digests of models.
        saving: what it costs.
        notes: what the user should know.
        ancestry: where the model comes from.
    """

    plan: TrainingPlan
    target: Path
    model: str
    about: Mapping[str, Any]
    saving: Saving
    notes: tuple[str, ...]
    ancestry: Ancestry


def plan_update(
    model: str | Path,
    new: Sequence[str | Path],
    history: Sequence[str | Path] = (),
    *,
    ratio: float | None = None,
    base: str | Path | None = None,
    plan: str | Path | None = None,
    output: str | Path | None = None,
) -> Update:
    """Find out what an update takes. Nothing is written.

    Args:
        model: the model to update, a folder or a Hub id.
        new: files of new rows, perhaps with a kind before them (`sts:FILE`); see `RULE`.
        history: files of the rows that the model has learnt from; none: those of its plan.
        ratio: the part of the history that is trained on again, above 0 and at most 1; by default
            that of the update before, else 0.4.
        base: what the model was trained from; by default what lies beside it says so.
        plan: what the model was trained by, whose settings hold for the update; by default the one
            beside it.
        output: the folder to write; by default `trained/update-NUMBER`.

    Raises:
        UsageError: when the ratio is none, base or history are not known, or there is nothing new.
        NotFoundError: when the model is not there.
        RecipeError: when the plan is not in order.
        DataError: when data is not there or bad.
        OutputExistsError: when the output would lie in the model, or hold it.
    """
    model = str(model)
    if ratio is not None and not 0 < ratio <= 1:
        message = "must be above 0 and at most 1: 0.4 for 40 percent"
        raise UsageError(f"the part of the history is {ratio:g}, and {message}")
    where = ancestry(model, str(base) if base else None, Path(plan) if plan else None)
    number = int(where.update.get("number", 0)) + 1
    target = Path(output or Path("trained") / f"update-{number}").expanduser()
    _check_place(model, target)
    part = ratio if ratio is not None else float(where.update.get("ratio", RATIO))
    old, fresh, notes = entries(
        [str(one) for one in history], [str(one) for one in new], where.plan.get("data") or {}
    )
    made = _Made(where, model, part, old, fresh)
    datasets = made.open()
    saving = made.saving(datasets)
    about = {"number": number, "model": {"name": model}, **made.about(datasets, saving)}
    notes += made.notes(datasets)
    return Update(made.plan(), target, model, about, saving, tuple(notes), where)


def update(
    planned: Update,
    *,
    merge: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
) -> run.TrainingResult:
    """Train the member of an update, and write the recipe that merges it into the model.

    One that was interrupted or killed goes on where it was.

    Args:
        planned: the update.
        merge: merge too.
        restart: train anew.
        progress: is told how far it is.

    Raises:
        OutputExistsError: when the output holds another training.
        UsageError: when the base is not what the model was trained from.
        MergekitEmbedError: see `run.train`.
    """
    _check_same(planned)
    parts = [locate(part, HERE) for part in split(planned.model, HERE) if part is not None]
    digests = [model_digest(part) for part in parts]
    called = {
        "name": from_folder(planned.plan, planned.model, planned.target),
        "digest": digests[0] if len(digests) == 1 else digest_of("".join(digests).encode()),
    }
    _check_base(planned)
    return run.train(
        planned.plan,
        planned.target,
        merge=merge,
        restart=restart,
        progress=progress,
        update={**planned.about, "model": called},
    )


def _check_place(model: str, target: Path) -> None:
    """Refuse to write where the model is: an update never replaces what it starts from."""
    for part in split(model, HERE):
        if part is not None and is_folder(part, HERE):
            place, resolved = locate(part, HERE).resolve(), target.resolve()
            if place.is_relative_to(resolved) or resolved.is_relative_to(place):
                relation = "holds" if place.is_relative_to(resolved) else "lies inside"
                message = f"{target}: {relation} {part}, the model to update; choose another folder"
                raise OutputExistsError(f"{message} with -o")


def _check_same(planned: Update) -> None:
    """Refuse a folder with another training in it; the same update goes on."""
    there = planned.target / run.PLAN
    wanted = content_in(planned.plan, planned.target)
    if there.is_file() and json.loads(json.dumps(load(there).source.data)) != wanted:
        message = "holds another training; choose another folder with -o, or remove it"
        raise OutputExistsError(f"{planned.target}: {message}")


def _check_base(planned: Update) -> None:
    """Refuse a base that is not the one that the model's record tells of."""
    wanted = (planned.ancestry.record.get("model") or {}).get("digest")
    base = locate(planned.plan.model, HERE)
    if wanted is not None and model_digest(base) != wanted:
        raise UsageError(
            f"{base}: is not what {planned.model} was trained from, or has changed since; deltas "
            "have to start at the same point: name the base with --base"
        )


@dataclass
class _Made:
    """An update that is put together."""

    where: Ancestry
    model: str
    ratio: float
    old: dict[str, Entry]
    new: dict[str, Entry]

    @property
    def percent(self) -> float:
        """The ratio in percent, as the decimal number that was written."""
        return float(Fraction(repr(float(self.ratio))) * 100)

    def content(self) -> dict[str, Any]:
        """The plan of the update."""
        ratios = dict.fromkeys(self.old, self.percent) | dict.fromkeys(self.new, 100.0)
        data = self.old | self.new
        tasks = {entry.get("task") or entry["kind"] for entry in data.values()}
        said = dict(self.where.plan) or _settings(self.where.record)
        if "tasks" in said:
            said["tasks"] = {task: one for task, one in said["tasks"].items() if task in tasks}
        return said | {
            "model": self.where.base,
            "seed": self.where.seed,
            "data": data,
            "members": [{"name": MEMBER, "ratio": ratios, "draw": CORE}],
            "weights": "equal",
            "merge": {"merge_method": "multislerp", "models": [{"model": self.model}]},
        }

    def plan(self) -> TrainingPlan:
        """The plan, validated."""
        return replace(load(self.content()), name=MEMBER)

    def open(self) -> dict[str, Dataset]:
        """The data sets. What the model has learnt under another name gets that again.

        The core is drawn by the name of a data set, and a file that was moved has the same core.
        """
        datasets = open_datasets(self.plan())
        learnt = {digest: name for name, digest in self.where.digests.items()}
        called = {name: learnt.get(datasets[name].digest, name) for name in self.old}
        called = {name: name if now in datasets else now for name, now in called.items()}
        if len(set(called.values())) < len(called):
            twice = next(now for now in called.values() if list(called.values()).count(now) > 1)
            raise UsageError(f"{twice} is in the history twice, under other names of its file")
        if any(name != now for name, now in called.items()):
            known = self.where.plan.get("data") or {}
            self.old = {
                now: {**known.get(now, self.old[name]), "path": self.old[name]["path"]}
                for name, now in called.items()
            }
            datasets = open_datasets(self.plan())
        digests = {datasets[name].digest: name for name in self.old}
        for name in self.new:
            same = digests.get(datasets[name].digest)
            if same is not None:
                raise UsageError(f"--new {self.new[name]['path']}: is {same}, which is not new")
        return datasets

    def saving(self, datasets: Mapping[str, Dataset]) -> Saving:
        """What the update costs, and what one training on all rows would."""
        content = self.content()
        content["members"].append({"name": WHOLE, "ratio": 100, "merge": False})
        plan = load(content)
        costs = budget(plan, datasets, members(plan, datasets)).costs
        rows = [sum(share.rows for share in cost.shares.values()) for cost in costs]
        return Saving(rows[0], rows[1], costs[0].steps, costs[1].steps)

    def about(self, datasets: Mapping[str, Dataset], saving: Saving) -> dict[str, Any]:
        """What the record says of the update: its data, its core, its cost, and what was before."""
        (member,) = members(self.plan(), datasets)
        core = rows_of(member, datasets)
        record = self.where.record
        before = [*self.where.update.get("before", [])]
        if record:
            kept = {key: record.get(key) for key in ("plan", "model", "seed")}
            own = {key: one for key, one in self.where.update.items() if key != "before"}
            before.append({**kept, "data": self.where.digests, **({"update": own} if own else {})})
        return {
            "new": {name: _told(datasets[name]) for name in self.new},
            "history": {name: _told(datasets[name]) for name in self.old},
            "core": {name: core[name] for name in self.old if name in core},
            "ratio": self.ratio,
            "draw": CORE,
            "seed": self.where.seed,
            "cost": {
                "rows": saving.rows,
                "full_rows": saving.full_rows,
                "steps": saving.steps,
                "full_steps": saving.full_steps,
                "part": round(saving.part, 6),
            },
            "before": before,
        }

    def notes(self, datasets: Mapping[str, Dataset]) -> list[str]:
        """What the user should know before it begins."""
        found = []
        if not self.where.plan:
            found.append(
                f"the plan that {self.model} was trained by is not known; losses, prompts and "
                "batch sizes are the defaults: name it with --plan"
            )
        for name, digest in self.where.digests.items():
            if name not in datasets:
                found.append(f"{name} is not in the history: none of it is trained on again")
            elif datasets[name].digest != digest:
                found.append(f"{name} has changed since the model learnt it; its core may have")
        before = self.where.update.get("ratio", self.ratio)
        if before != self.ratio:
            found.append(f"the update before had a core of {before:g}, this one of {self.ratio:g}")
        return found


def _told(dataset: Dataset) -> dict[str, Any]:
    return {"rows": len(dataset), "digest": dataset.digest}


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the record alone tells of how members were trained."""
    found: dict[str, Any] = {}
    if record.get("training"):
        training = {key: value for key, value in record["training"].items() if value is not None}
        if "steps" in training:
            training.pop("epochs", None)
        found["training"] = training
    if record.get("lora"):
        found["lora"] = dict(record["lora"])
    return found
