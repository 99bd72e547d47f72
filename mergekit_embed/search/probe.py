"""The probe set: rows drawn evenly over tasks, disjoint from what is measured on later."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from ..errors import DataError, Problem
from ..rows import Ranked, Row, Scored
from ..train.bags import Member, RowNumbers, drawn, shared
from ..train.data import Dataset
from ..train.schedules import Batch, schedule
from ..train.specs import TrainingPlan

NAME = "probe"
"""What rows and batches are drawn under, as members of a training plan are by their names."""

SHOWN = 5
"""How many rows that are also in a dev task are listed."""

FIELDS = {
    "queries.jsonl": ("text",),
    "labelled.jsonl": ("text",),
    "pairs.jsonl": ("sentence1", "sentence2"),
}
"""The texts of dev tasks that must not be in a probe set. Documents may be: a corpus is shared."""


@dataclass(frozen=True)
class ProbeSet:
    """Batches of the probe set: those that give gradients, and those that are judged on.

    Where a data set has a single batch it is both. `dropped`: how many rows were left out because
    dev tasks have them.
    """

    rows: Member
    taught: tuple[Batch, ...]
    judged: tuple[Batch, ...]
    dropped: int = 0


def draw_probe(
    plan: TrainingPlan,
    datasets: Mapping[str, Dataset],
    rows: int,
    held_out: float,
    dev: Sequence[Path] = (),
    *,
    drop: bool = False,
) -> ProbeSet:
    """Draw a probe set, and cut it into batches of one data set each.

    Every task gives as many rows, or all that it has; within a task, data sets give in proportion
    to their size.

    Args:
        plan: of the data; its seed is what rows are drawn by.
        datasets: by name.
        rows: so many at most.
        held_out: the part of a data set's batches that is judged on and gives no gradient.
        dev: folders of dev tasks, which must not have texts of the probe set.
        drop: leave out rows that they have; otherwise these are an error.

    Raises:
        DataError: when a data set has no rows for a single batch, or dev tasks have some of them.
    """
    numbers = {
        name: drawn(datasets[name], count, plan.seed, NAME)
        for name, count in _counts(datasets, rows).items()
    }
    known = {digest: place for folder in dev for digest, place in _digests(folder)}
    shared_with_dev = list(_overlap(numbers, datasets, known)) if known else []
    if shared_with_dev and not drop:
        raise DataError(_told(shared_with_dev, datasets))
    for name, number, _ in shared_with_dev:
        numbers[name] = numbers[name][numbers[name] != number]
    problems = [_too_few(datasets[name], own) for name, own in numbers.items()]
    if found := [problem for problem in problems if problem]:
        raise DataError(found)
    member = Member(plan.members[0], numbers)
    batches = schedule(plan, member, datasets, 0)
    taught: list[Batch] = []
    judged: list[Batch] = []
    for name in datasets:
        own = [batch for batch in batches if batch.names == (name,)]
        kept = len(own) if held_out == 0 else max(1, round(held_out * len(own)))
        judged += own[:kept]
        taught += own[kept:] if kept < len(own) else own
    return ProbeSet(member, tuple(taught), tuple(judged), len(shared_with_dev))


def _counts(datasets: Mapping[str, Dataset], rows: int) -> dict[str, int]:
    """How many rows of each data set."""
    tasks: dict[str, list[str]] = {}
    for name, dataset in datasets.items():
        tasks.setdefault(dataset.spec.task, []).append(name)
    sizes = {task: sum(len(datasets[name]) for name in names) for task, names in tasks.items()}
    counts: dict[str, int] = {}
    left = rows
    by_size = sorted(tasks, key=lambda task: sizes[task])
    for place, task in enumerate(by_size):  # what a small task lacks, the others give
        own = min(sizes[task], left // (len(by_size) - place))
        left -= own
        weights = {i: float(len(datasets[name])) for i, name in enumerate(tasks[task])}
        for i, count in shared(own, weights).items():
            counts[tasks[task][i]] = min(count, len(datasets[tasks[task][i]]))
    return {name: counts[name] for name in datasets}


def _too_few(dataset: Dataset, numbers: RowNumbers) -> Problem | None:
    size = dataset.spec.batch_size
    if len(numbers) < size:
        told = f"{len(numbers)} of {len(dataset)} rows of {dataset.spec.name} are in the probe set"
        return Problem("", f"{told}, no batch of {size}; raise `probe`, or lower `batch_size`")
    labels = dataset.labels
    if labels is not None and len(np.unique(labels[numbers])) == 1:
        told = f"the rows of {dataset.spec.name} in the probe set are of one class"
        return Problem("", f"{told}; raise `probe`")
    return None


def _overlap(
    numbers: Mapping[str, RowNumbers], datasets: Mapping[str, Dataset], known: Mapping[int, str]
) -> Iterator[tuple[str, int, str]]:
    """Rows that dev tasks have: the data set, the row's number, and where they have it.

    Compared are queries, sentences and labelled texts, by their content without case and outer
    space.
    """
    for name, own in numbers.items():
        for number in own:
            place = _found(datasets[name][int(number)], known)
            if place is not None:
                yield name, int(number), place


def _told(found: Sequence[tuple[str, int, str]], datasets: Mapping[str, Dataset]) -> list[Problem]:
    problems = [
        Problem(datasets[name].place(number), f"is in the dev task too ({place})")
        for name, number, place in found[:SHOWN]
    ]
    rows = "1 row of the probe set is" if len(found) == 1 else f"{len(found)} rows of it are"
    told = f"{rows} in dev tasks; coefficients would be found on what they are measured by"
    return [*problems, Problem("", f"{told}. Leave such rows out with `overlap: drop`")]


def _digests(folder: Path) -> Iterator[tuple[int, str]]:
    for file, fields in FIELDS.items():
        path = folder / file
        if not path.is_file():
            continue
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    content = json.loads(line) if line.strip() else {}
                    texts = [content[field] for field in fields] if content else []
                except (ValueError, KeyError, TypeError) as error:
                    message = f"is no row with {', '.join(fields)}: {error}"
                    raise DataError([Problem(f"{path}:{number}", message)]) from error
                if texts:
                    yield _digest(*map(str, texts)), f"{path}:{number}"


def _found(row: Row, known: Mapping[int, str]) -> str | None:
    """Where the dev tasks have what a row asks."""
    if isinstance(row, Scored):
        sides = (row.left, row.right), (row.right, row.left)
        return next((known[d] for pair in sides if (d := _digest(*pair)) in known), None)
    return known.get(_digest(row.query if isinstance(row, Ranked) else row.text))


def _digest(*texts: str) -> int:
    plain = "\0".join(" ".join(text.lower().split()) for text in texts)
    return xxhash.xxh3_64_intdigest(plain.encode("utf-8", "surrogatepass"))
