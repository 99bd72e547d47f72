"""What a row becomes in training: columns of texts, all rows of a data set with the same ones.

A row of a query has `anchor`, its positives and its hard negatives; a row of a class has another
text of its class as positive and texts of other classes as negatives; a row of two sentences has
these and its `score`. What a row has too many of is drawn, anew in every epoch. What it has too few
of is filled up: positives are repeated; negatives are positives of other rows of the member where
those of the whole batch count as negatives anyway, and are repeated where only a row's own do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, Problem
from ..rows import Plain, Ranked, Scored
from .bags import Member, RowNumbers
from .data import Dataset
from .draws import draws, key_of, shuffled
from .specs import OWN_NEGATIVES, DatasetSpec

Example = Mapping[str, str | float | int]

TRIES = 64
"""Other rows that are looked at for each negative that is missing, before rows that are near."""


def columns_of(dataset: Dataset) -> tuple[str, ...]:
    """The columns of texts of every example of a data set, in the order that losses expect."""
    if dataset.spec.kind == "sts":
        return "sentence1", "sentence2"
    positives = _numbered("positive", dataset.spec.positives)
    return "anchor", *positives, *_numbered("negative", dataset.negatives)


def label_of(dataset: Dataset) -> str | None:
    """The column beside the texts: `score`, `label`, or none."""
    if dataset.spec.kind == "sts":
        return "score"
    return None if dataset.labels is None else "label"


def prompts_of(dataset: Dataset) -> dict[str, str]:
    """What is put in front of the texts of each column; none for columns left to the model.

    Documents are the positives and negatives of rows that have a query; all other texts are alike
    and get the prompt of queries.
    """
    spec = dataset.spec
    alike = spec.kind in {"sts", "pair"} or dataset.labels is not None
    found = {}
    for column in columns_of(dataset):
        prompt = spec.query if alike or column == "anchor" else spec.document
        if prompt is not None:
            found[column] = prompt
    return found


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return (name,) if count == 1 else tuple(f"{name}_{i}" for i in range(1, count + 1))


@dataclass(frozen=True)
class Examples:
    """The examples of a member's rows of one data set, in one epoch."""

    dataset: Dataset
    member: Member
    epoch: int

    @property
    def _spec(self) -> DatasetSpec:
        return self.dataset.spec

    @property
    def _pool(self) -> RowNumbers:
        """The member's rows, which positives and negatives are taken from."""
        return self.member.rows[self._spec.name]

    def __getitem__(self, number: int) -> Example:
        """The example of the row of this number in the data set.

        Raises:
            DataError: when the file has changed, or has no texts that could be negatives.
        """
        row = self.dataset[number]
        if isinstance(row, Scored):
            return {"sentence1": row.left, "sentence2": row.right, "score": row.score}
        if isinstance(row, Ranked):
            positives = self._choose(row.positives, self._spec.positives, "positives", number)
            negatives = self._negatives(row, number)
            return self._example(row.query, positives, negatives)
        labels = self.dataset.labels
        assert labels is not None
        label = int(labels[number])
        first, last = np.searchsorted(self._classes[0], [label, label + 1]).tolist()
        own = int(np.flatnonzero(self._classes[1][first:last] == number)[0])
        alike = _picked(self._key("positives", number), last - first - 1, self._spec.positives)
        # A class of one row has that row alone to be like; its two embeddings differ by dropout.
        same = [first + i + (i >= own) for i in alike] or [first] * self._spec.positives
        others = len(self._pool) - (last - first)
        unlike = _picked(self._key("negatives", number), others, self.dataset.negatives)
        different = [i if i < first else i + (last - first) for i in unlike]
        texts = [[self._text(place) for place in places] for places in (same, different)]
        return {**self._example(row.text, *texts), "label": label}

    @cached_property
    def _classes(self) -> tuple[NDArray[np.int64], RowNumbers]:
        """The labels of the member's rows in ascending order, and the rows in that order."""
        assert self.dataset.labels is not None
        labels = self.dataset.labels[self._pool]
        order = np.argsort(labels, kind="stable")
        return labels[order], self._pool[order]

    def _text(self, place: int) -> str:
        """The text at a place of the rows by classes."""
        row = self.dataset[int(self._classes[1][place])]
        assert isinstance(row, Plain)
        return row.text

    def _example(
        self, anchor: str, positives: Sequence[str], negatives: Sequence[str]
    ) -> dict[str, str | float | int]:
        texts = (anchor, *positives, *negatives)
        return dict(zip(columns_of(self.dataset), texts, strict=True))

    def _key(self, purpose: str, number: int) -> int:
        identity = int(self.dataset.identities[number])
        spec = self.member.spec
        return key_of(purpose, spec.seed, self._spec.name, spec.name, self.epoch, identity)

    def _choose(
        self, texts: Sequence[str], count: int, purpose: str, number: int
    ) -> tuple[str, ...]:
        """So many of the texts: drawn, or all of them again and again; () of none."""
        return tuple(texts[i] for i in _picked(self._key(purpose, number), len(texts), count))

    def _negatives(self, row: Ranked, number: int) -> tuple[str, ...]:
        wanted = self.dataset.negatives
        own = len(row.negatives)
        if own >= wanted or self._spec.kind in OWN_NEGATIVES:
            return self._choose(row.negatives, wanted, "negatives", number)
        found = list(self._choose(row.negatives, own, "negatives", number))
        known = {row.query, *row.positives, *found}
        for text in self._others(number, wanted - own):
            if text not in known:
                known.add(text)
                found.append(text)
            if len(found) == wanted:
                return tuple(found)
        message = f"has {own} negatives, and other rows of {self.member.name} have no {wanted}"
        problem = Problem(self.dataset.place(number), f"{message}; set `negatives` lower")
        raise DataError([problem])

    def _others(self, number: int, wanted: int) -> Iterator[str]:
        """Positives of other rows: drawn, and after many tries of all rows in their order."""
        pool = self._pool
        drawn = draws(self._key("fill", number), np.arange(TRIES * wanted, dtype=np.uint64))
        for place in itertools.chain(drawn % np.uint64(len(pool)), range(len(pool))):
            row = self.dataset[int(pool[int(place)])]
            assert isinstance(row, Ranked)
            yield row.positives[0]


def _picked(key: int, size: int, count: int) -> list[int]:
    """So many random numbers below the size: different ones, or all of them again and again.

    None where the size is 0.
    """
    if not size or not count:
        return []
    if size <= 4 * count:
        order = shuffled(key, np.arange(size, dtype=np.uint64))
        return [int(i) for i in itertools.islice(itertools.cycle(order), count)]
    found: dict[int, None] = {}
    for start in itertools.count(step=2 * count):
        numbers = np.arange(start, start + 2 * count, dtype=np.uint64)
        found.update(dict.fromkeys(int(i) for i in draws(key, numbers) % np.uint64(size)))
        if len(found) >= count:
            break
    return list(found)[:count]
