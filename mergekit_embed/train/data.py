"""Data sets: rows that are checked once, one by one, and read again by their number."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..errors import DataError, Problem
from ..rows import Plain, Ranked, Row
from .draws import Identities, distinct
from .layouts import TAKES, identity_of, row_for
from .sources import Found, Rows, find_rows
from .specs import OWN_NEGATIVES, DatasetSpec, TrainingPlan

SHOWN = 20
"""How many bad rows are listed one by one."""


@dataclass(frozen=True)
class Mined:
    """Negatives that were found for rows: places of texts in the data set that they are taken from.

    Attributes:
        key: the hash of all that they depend on: rows, encoder, parameters.
        rows: int64 (N, most), for each row the numbers of other rows, the nearest first, then -1
            where it has fewer.
        texts: int32 (N, most), which text it is there: of the positives, and then of the negatives.
    """

    key: str
    rows: NDArray[np.int64]
    texts: NDArray[np.int32]

    def places(self, number: int) -> Iterator[tuple[int, int]]:
        """The row and the text of every negative that was found for a row."""
        for row, text in zip(self.rows[number], self.texts[number], strict=True):
            if row >= 0:
                yield int(row), int(text)


@dataclass(frozen=True)
class Dataset:
    """The good rows of a data set. They are numbered from 0, bad ones are not counted.

    Attributes:
        spec: how it is trained on.
        identities: uint64 (N,), all different: what draws depend on. Of the row's content; equal
            rows are told apart by their order.
        labels: int64 (N,), the number of each row's class; None for rows without labels.
        negatives: hard negatives of every row, after filling up; 0 when no row has any.
        short: rows with fewer than that.
        repeated: rows that are there before.
        digest: of all rows in their order, whatever the format of the file.
        bad: rows that were left out, the first of them by place and fault.
        bad_count: how many they are.
        mined: negatives that were found for its rows; None where nobody looked for any.
    """

    spec: DatasetSpec
    rows: Rows = field(repr=False)
    identities: Identities = field(repr=False)
    labels: NDArray[np.int64] | None = field(repr=False)
    negatives: int
    short: int
    repeated: int
    digest: str
    bad: tuple[Problem, ...]
    bad_count: int
    mined: Mined | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.identities)

    def __getitem__(self, number: int) -> Row:
        """The row of this number, with the negatives that were found for it after its own.

        Raises:
            DataError: when the file has changed since it was checked.
        """
        row = self.given(number)
        if self.mined is None:
            return row
        assert isinstance(row, Ranked)
        found = (self.text(*place) for place in self.mined.places(int(number)))
        return replace(row, negatives=(*row.negatives, *found))

    def text(self, number: int, index: int) -> str:
        """A text of a row of a query: of its positives, and then of its own negatives."""
        row = self.given(number)
        assert isinstance(row, Ranked)
        return (*row.positives, *row.negatives)[index]

    def given(self, number: int) -> Row:
        """The row of this number as the file has it.

        Raises:
            DataError: when the file has changed since it was checked.
        """
        try:
            return _row(self.spec, self.rows.read(int(number)))
        except ValueError as error:
            message = f"has changed since it was checked: {error}"
            raise DataError([Problem(self.place(number), message)]) from error

    def place(self, number: int) -> str:
        """Where the row of this number is: `file:line`."""
        return self.rows.place(int(number))


def open_datasets(plan: TrainingPlan) -> dict[str, Dataset]:
    """Read and check every data set of a plan, by name.

    Raises:
        DataError: with what cannot be read, and the bad rows of every data set that has too many.
    """
    found: dict[str, Dataset] = {}
    problems: list[Problem] = []
    for name, spec in plan.datasets.items():
        try:
            found[name] = open_dataset(spec, plan.source.folders, float(plan.bad_rows))
        except DataError as error:
            path = ("data", name, "path")
            problems += [
                p if p.where else plan.source.problem(path, p.message) for p in error.problems
            ]
    if problems:
        raise DataError(problems)
    return found


def open_dataset(
    spec: DatasetSpec, folders: Sequence[Path] = (Path(),), bad_rows: float = 0.0
) -> Dataset:
    """Read and check one data set.

    Args:
        spec: the data set.
        folders: that a relative path counts from, in this order.
        bad_rows: percent of its rows that may be bad.

    Raises:
        DataError: when it cannot be read, has no rows, or more bad ones.
    """
    source = find_rows(spec, folders)
    check = _Check(spec)
    kept = [index for index, found in enumerate(source.all()) if check.accepts(found)]
    return check.dataset(source.shown, source.only(np.array(kept, dtype=np.int64)), bad_rows)


def _row(spec: DatasetSpec, content: Mapping[str, Any]) -> Row:
    """The row, with the columns under the names that rows have.

    Raises:
        ValueError: telling what is wrong with it.
    """
    if spec.columns:
        theirs = set(spec.columns.values())
        named = {ours: content[name] for ours, name in spec.columns.items() if name in content}
        content = {key: value for key, value in content.items() if key not in theirs} | named
    row = row_for(spec.kind, content)
    if isinstance(row, Ranked) and spec.kind in OWN_NEGATIVES and not row.negatives:
        raise ValueError(f"has no negatives, and {spec.kind} compares rows with their own")
    return row


class _Check:
    """What is known of a data set after so many of its rows."""

    def __init__(self, spec: DatasetSpec):
        self._spec = spec
        self._layout: type[Row] | None = None
        self._identities = array("Q")
        self._negatives = array("i")
        self._labels: list[str] = []
        self._digest = xxhash.xxh3_128()
        self._bad: list[Problem] = []
        self._bad_count = 0

    def accepts(self, found: Found) -> bool:
        """Take a row if it is good, else remember why not."""
        try:
            if isinstance(found.content, ValueError):
                raise found.content
            row = _row(self._spec, found.content)
            self._layout = self._layout or type(row)
            if type(row) is not self._layout:
                raise ValueError("has other keys than the first row")
        except ValueError as error:
            self._bad_count += 1
            if len(self._bad) < SHOWN:
                self._bad.append(Problem(found.place, str(error)))
            return False
        self._add(row)
        return True

    def _add(self, row: Row) -> None:
        identity = identity_of(row)
        negatives = row.negatives if isinstance(row, Ranked) else ()
        self._identities.append(identity)
        self._negatives.append(len(negatives))
        if isinstance(row, Plain):
            self._labels.append(str(row.label))
        self._digest.update(identity.to_bytes(8, "little"))
        self._digest.update("\0".join(negatives).encode("utf-8", "surrogatepass") + b"\n")

    def dataset(self, shown: str, rows: Rows, bad_rows: float) -> Dataset:
        """The data set of the rows that were accepted.

        Raises:
            DataError: when there is none, too many were not, or they are all of one class.
        """
        good = len(self._identities)
        if self._bad_count * 100 > bad_rows * (good + self._bad_count):
            raise DataError([*self._bad, *self._rest(good, bad_rows)])
        if not good:
            message = f"holds no rows; one of kind {self._spec.kind} has {TAKES[self._spec.kind]}"
            raise DataError([Problem(shown, message)])
        classes = sorted(set(self._labels))
        if len(classes) == 1:
            message = f'has no class but "{classes[0]}", and nothing to tell it apart from'
            raise DataError([Problem(shown, message)])
        numbers = {label: number for number, label in enumerate(classes)}
        labels = np.array([numbers[label] for label in self._labels], dtype=np.int64)
        identities = np.frombuffer(self._identities, dtype=np.uint64)
        counts = np.frombuffer(self._negatives, dtype=np.int32)
        most = self._spec.negatives
        wanted = most if classes else min(most, int(counts.max()))
        return Dataset(
            spec=self._spec,
            rows=rows,
            identities=distinct(identities),
            labels=labels if classes else None,
            negatives=wanted,
            short=0 if classes else int((counts < wanted).sum()),
            repeated=good - len(np.unique(identities)),
            digest=self._digest.hexdigest(),
            bad=tuple(self._bad),
            bad_count=self._bad_count,
        )

    def _rest(self, good: int, bad_rows: float) -> list[Problem]:
        """How many bad rows there are in all, and how many there may be."""
        count, total = self._bad_count, good + self._bad_count
        limit = f"`bad_rows: {bad_rows:g}` allows {bad_rows:g} percent"
        return [Problem("", f"{self._spec.name}: {count} of {total} rows are bad; {limit}")]
