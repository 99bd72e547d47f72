"""From a YAML file or a dict to a validated `TrainingPlan`, with every error in one go."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import Problem, RecipeError
from ..recipe import source
from ..recipe.bombs import refuse_large_numbers
from ..recipe.shape import Words, shape_problem, unknown
from ..recipe.source import Document, Source
from ..recipe.values import Path as Place
from .expand import exactly, expand
from .merging import problems_of_merge
from .objectives import DEFAULTS, faults_of
from .schema import DatasetEntry, PlanFile, Settings
from .schema_training import OrderEntry
from .specs import (
    OWN_NEGATIVES,
    DatasetSpec,
    EarlyStop,
    Lora,
    Loss,
    Mining,
    Named,
    Order,
    Training,
    TrainingPlan,
)

PLAN = Document("training plan", "`model:` and `data:`")


def load(plan: str | Path | Mapping[str, Any] | TrainingPlan) -> TrainingPlan:
    """Validate a training plan given as a file, a mapping, or already done.

    Raises:
        RecipeError: with every problem of the plan.
    """
    if isinstance(plan, TrainingPlan):
        return plan
    if isinstance(plan, Mapping):
        origin = Source(source.plain(plan), None, "plan")
    else:
        origin = source.read(Path(plan), PLAN)
    return validate(origin)


def validate(origin: Source) -> TrainingPlan:
    """Turn parsed YAML into a `TrainingPlan`.

    Raises:
        RecipeError: with every problem, in the order of the file.
    """
    refuse_large_numbers(origin)
    parsed = _parse(origin)
    problems: list[Problem] = []
    datasets = {name: _dataset(parsed, name) for name in parsed.data}
    problems += _problems_of_tasks(origin, parsed, datasets)
    for name in datasets:
        problems += _problems_of_dataset(origin, parsed, datasets[name])
    training = parsed.training
    members = expand(
        origin,
        parsed.members,
        datasets,
        seed=parsed.seed,
        epochs=training.epochs,
        problems=problems,
    )
    problems += _problems_of_length(origin, parsed)
    problems += _problems_of_stop(origin, parsed)
    problems += _problems_of_order(origin, parsed.schedule, datasets)
    if members and not problems:
        adapters = parsed.lora is not None and not parsed.lora.fold
        problems += problems_of_merge(
            origin, parsed.merge, members, parsed.weights, parsed.model, adapters=adapters
        )
    if problems:
        raise RecipeError(source.in_file_order(problems))
    return TrainingPlan(
        name=origin.file.stem if origin.file else "plan",
        source=origin,
        model=parsed.model,
        pooling=parsed.pooling,
        seed=parsed.seed,
        output=parsed.output,
        datasets=datasets,
        members=members,
        order=_order(parsed.schedule, datasets),
        training=Training(**training.model_dump(exclude={"batch_size", "positives", "negatives"})),
        lora=_lora(parsed),
        early_stop=EarlyStop(**parsed.early_stop.model_dump()) if parsed.early_stop else None,
        weights=parsed.weights,
        merge=parsed.merge,
        bad_rows=exactly(parsed.bad_rows),
    )


def _parse(origin: Source) -> PlanFile:
    from pydantic import ValidationError

    words = Words(_unknown_key, _example, lambda path: str(path[-1]).removesuffix("s"))
    try:
        return PlanFile.model_validate(origin.data)
    except ValidationError as error:
        found = [shape_problem(origin, detail, words) for detail in error.errors()]
        raise RecipeError(source.in_file_order(found)) from error


def _unknown_key(path: Place) -> str:
    """The message for a key that a plan does not have at this place."""
    return unknown("key", str(path[-1]), _fields_at(path[:-1]))


def _fields_at(path: Place) -> Mapping[str, Any]:
    """The keys that the mapping at a place of a plan may have, or those of its nearest parent."""
    fields: Mapping[str, Any] = PlanFile.model_fields
    for part in path:
        if isinstance(part, str) and part in fields:
            model = _model_in(fields[part].annotation)
            fields = model.model_fields if model else fields
    return fields


def _model_in(annotation: Any) -> Any:
    """The pydantic model inside of `X | None`, `list[X]`, `dict[str, X]`; None where none is."""
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        return annotation
    for inner in typing.get_args(annotation):
        if (found := _model_in(inner)) is not None:
            return found
    return None


EXAMPLES = {
    "data": "{path: reviews.jsonl, kind: retrieval}",
    "early_stop": "{task: dev/reviews}",
    "loss": "{name: info_nce, parameters: {temperature: 0.02}}",
    "lora": "{r: 32, alpha: 32}",
    "members": "{ratio: 20}",
    "mine": "{top: 50, keep: 7, below: 0.95}",
    "prompt": "{query: 'query: ', document: 'passage: '}",
    "schedule": "{name: size_power, alpha: 0.5}",
    "tasks": "{batch_size: 256}",
    "training": "{epochs: 1}",
}
"""What a mapping looks like, by the last key that leads to it."""


def _example(path: Place) -> str:
    keys = [part for part in path if isinstance(part, str) and part in EXAMPLES]
    return EXAMPLES[keys[-1]] if keys else "{name: value}"


def _dataset(parsed: PlanFile, name: str) -> DatasetSpec:
    """A data set with what its entry says, else its task, else the plan."""
    entry = parsed.data[name]
    task = entry.task or entry.kind
    said: list[Settings] = [entry, *([parsed.tasks[task]] if task in parsed.tasks else [])]
    scored = entry.kind == "sts"
    query, document = _prompts(said)
    return DatasetSpec(
        name=name,
        kind=entry.kind,
        task=task,
        cluster=entry.cluster,
        path=entry.path,
        split=entry.split,
        subset=entry.subset,
        columns=dict(entry.columns or {}),
        query=query,
        document=document,
        batch_size=_first(said, "batch_size", parsed.training.batch_size),
        positives=1 if scored else _first(said, "positives", parsed.training.positives),
        negatives=0 if scored else _first(said, "negatives", parsed.training.negatives),
        loss=_loss(said, entry),
        mine=Mining(**mine.model_dump()) if (mine := _first(said, "mine", None)) else None,
    )


def _first(said: list[Settings], key: str, default: Any) -> Any:
    """What the most specific says that says anything."""
    return next((v for one in said if (v := getattr(one, key)) is not None), default)


def _prompts(said: list[Settings]) -> tuple[str | None, str | None]:
    """What is put in front of queries and of documents; None for the model's own."""
    for one in said:
        if one.instruction is not None:
            return f"Instruct: {one.instruction}\nQuery: ", ""
        if one.prompt is not None:
            return one.prompt.query, one.prompt.document
    return None, None


def _loss(said: list[Settings], entry: DatasetEntry) -> Loss:
    given = _first(said, "loss", None)
    if given is None:
        return DEFAULTS[entry.kind]
    wrap = tuple(Named(one.name, one.parameters) for one in given.wrap)
    return Loss(given.name, given.parameters, wrap)


def _problems_of_tasks(
    origin: Source, parsed: PlanFile, datasets: Mapping[str, DatasetSpec]
) -> Iterator[Problem]:
    known = {spec.task for spec in datasets.values()}
    for task in parsed.tasks:
        if task not in known:
            yield origin.problem(("tasks", task), unknown("task", task, known), key=True)


def _problems_of_dataset(origin: Source, parsed: PlanFile, spec: DatasetSpec) -> Iterator[Problem]:
    entry, here = parsed.data[spec.name], ("data", spec.name)

    def place(key: str) -> Place:
        """Where the setting stands that counts for the data set."""
        if getattr(entry, key) is not None:
            return (*here, key)
        in_task = spec.task in parsed.tasks and getattr(parsed.tasks[spec.task], key) is not None
        return ("tasks", spec.task, key) if in_task else here

    if spec.kind == "sts":
        for key in ("positives", "negatives", "mine"):
            if getattr(entry, key) is not None:
                yield origin.problem((*here, key), "rows with scores have none", key=True)
    elif spec.kind in OWN_NEGATIVES and spec.mine is not None:
        message = f"is for retrieval and pair; {spec.kind} rows have texts of other classes"
        yield origin.problem(place("mine"), message, key=True)
    elif spec.kind in OWN_NEGATIVES and not spec.negatives:
        message = f"{spec.kind} compares rows with their own negatives, and needs one at least"
        yield origin.problem(place("negatives"), message)
    elif spec.mine is not None and spec.mine.keep > spec.mine.top:
        message = f"`keep` is {spec.mine.keep}, more than the {spec.mine.top} that are looked at"
        yield origin.problem(place("mine"), message)
    for fault in faults_of(spec.loss, spec.kind):
        yield origin.problem((*place("loss"), *fault.path), fault.message, key=fault.key)


def _problems_of_length(origin: Source, parsed: PlanFile) -> Iterator[Problem]:
    """Epochs and steps both say when training ends."""
    if parsed.training.steps is None:
        return
    if "epochs" in parsed.training.model_fields_set:
        yield origin.problem(("training", "steps"), "and `epochs` exclude each other", key=True)
    for index, member in enumerate(parsed.members):
        if member.epochs is not None:
            message = "and the plan's `steps` exclude each other"
            yield origin.problem(("members", index, "epochs"), message, key=True)


def _problems_of_stop(origin: Source, parsed: PlanFile) -> Iterator[Problem]:
    """Where training may stop early, the best weights are kept, and no others can be asked for."""
    if parsed.early_stop is None:
        return
    for index, member in enumerate(parsed.members):
        for key in ("checkpoints", "ema"):
            if getattr(member, key) is not None:
                message = "and `early_stop`, which keeps the best weights, exclude each other"
                yield origin.problem(("members", index, key), message, key=True)


def _problems_of_order(
    origin: Source, entry: OrderEntry, datasets: Mapping[str, DatasetSpec]
) -> Iterator[Problem]:
    for key, owner in (("alpha", "size_power"), ("first", "two_stage")):
        if key in entry.model_fields_set and entry.name != owner:
            yield origin.problem(("schedule", key), f"is of {owner}, not {entry.name}", key=True)
    if entry.name != "two_stage":
        return
    known = set(datasets) | {spec.task for spec in datasets.values()}
    wrong = [name for name in entry.first or () if name not in known]
    for name in wrong:
        message = f'"{name}": {unknown("data set or task", name, known)}'
        yield origin.problem(("schedule", "first"), message)
    if not wrong and not all(_stages(entry, datasets)):
        message = "leaves one of the two stages empty; name the data sets or tasks of the first"
        yield origin.problem(("schedule", "first"), message)


def _stages(entry: OrderEntry, datasets: Mapping[str, DatasetSpec]) -> tuple[tuple[str, ...], ...]:
    first = entry.first
    if first is None:
        early = [name for name, spec in datasets.items() if spec.kind in {"retrieval", "pair"}]
    else:
        early = [name for name, spec in datasets.items() if name in first or spec.task in first]
    return tuple(early), tuple(name for name in datasets if name not in early)


def _order(entry: OrderEntry, datasets: Mapping[str, DatasetSpec]) -> Order:
    stages = _stages(entry, datasets) if entry.name == "two_stage" else ()
    return Order(entry.name, entry.alpha, stages)


def _lora(parsed: PlanFile) -> Lora | None:
    if parsed.lora is None:
        return None
    given = parsed.lora.model_dump()
    if isinstance(given["targets"], list):
        given["targets"] = tuple(given["targets"])
    return Lora(**given)
