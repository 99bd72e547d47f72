"""Hard negatives: for every query the nearest documents of its data set that do not answer it.

The documents are all positives of the data set, and the negatives that rows bring themselves. Those
of a query do not count that answer it in any of its rows, that a row has as negatives already, and
the query's own text; in data sets of pairs, which are alike both ways, neither do those that it
answers. Of the `top` nearest that are left, those pass whose cosine is below `below` times that of
the positive, or of the least alike of several (for a positive of a negative cosine, as far below
it); of these the `keep` nearest are taken.

What was found is kept by the contents of rows and model, see `mined_file`.
"""

from __future__ import annotations

import hashlib
import json
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..checkpoint.locate import NotFoundError, locate
from ..errors import UsageError
from ..rows import Ranked
from . import mined_file
from .data import Dataset, Mined
from .encoder import Encoder, at_hand
from .nearest import Pairs, Vectors, cosines_of, nearest
from .record import model_digest
from .specs import Mining, TrainingPlan

if TYPE_CHECKING:
    from .nearest import Nearest

CHUNK = 4096
"""Texts that are in memory at once, on their way into the model."""

EVERY = 30.0
"""Seconds between two notes of how far it is."""

Say = Callable[[str], None]
"""Told in words what is done."""

Hashes = NDArray[np.uint64]


def mined(dataset: Dataset, plan: TrainingPlan, say: Say | None = None) -> Dataset:
    """The data set with the negatives that are found for it, or were found before.

    Args:
        dataset: a data set of the plan; it comes back as it is when it does not ask for any.
        plan: names the model, and says how long texts may be.
        say: told that it begins, and now and then how far it is.

    Raises:
        NotFoundError, CheckpointError: when the encoder is not there, broken, or cannot be loaded.
        UsageError: when sentence-transformers is missing.
        NonFiniteError: when it embeds a text as what is no number.
        DataError: when the file has changed since it was checked.
        OutputError: when the cache cannot be written.
    """
    wanted = dataset.spec.mine
    if wanted is None:
        return dataset
    folder = locate(wanted.encoder or plan.model, plan.source.folders)
    key = _key(dataset, plan, wanted, folder)
    found = mined_file.read(key, len(dataset))
    if found is None:
        encoder = Encoder(folder, _pooling(plan, wanted), plan.training.max_length)
        found = _Mine(dataset, wanted, encoder, say).found(key)
        mined_file.write(found)
    return _with(dataset, found)


def mined_before(dataset: Dataset, plan: TrainingPlan) -> Dataset:
    """The data set with the negatives that were found for it before; as it is, where none were.

    It loads no model, and downloads none.
    """
    wanted = dataset.spec.mine
    if wanted is None:
        return dataset
    try:
        folder = at_hand(wanted.encoder or plan.model, plan.source.folders)
    except NotFoundError:
        return dataset
    if folder is None:
        return dataset
    key = _key(dataset, plan, wanted, folder)
    found = mined_file.read(key, len(dataset))
    return dataset if found is None else _with(dataset, found)


def mine_all(
    datasets: Mapping[str, Dataset], plan: TrainingPlan, say: Say | None = None
) -> dict[str, Dataset]:
    """`mined` for every data set of a plan, by name."""
    return {name: mined(dataset, plan, say) for name, dataset in datasets.items()}


def _pooling(plan: TrainingPlan, wanted: Mining) -> str | None:
    """The plan's pooling is that of its own model."""
    return plan.pooling if wanted.encoder in {None, plan.model} else None


def _key(dataset: Dataset, plan: TrainingPlan, wanted: Mining, folder: Path) -> str:
    """What the result depends on, as the name of a file."""
    spec = dataset.spec
    parts = {
        "format": mined_file.FORMAT,
        "rows": dataset.digest,
        "kind": spec.kind,
        "encoder": model_digest(folder),
        "pooling": _pooling(plan, wanted),
        "max_length": plan.training.max_length,
        "query": spec.query,
        "document": spec.document,
        "mine": [wanted.top, wanted.keep, wanted.below],
    }
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _with(dataset: Dataset, found: mined_file.Found) -> Dataset:
    """The data set with what was found, and its numbers of negatives brought up to date."""
    counts = found.given + (found.mined.rows >= 0).sum(axis=1)
    wanted = min(dataset.spec.negatives, int(counts.max()))
    return replace(
        dataset,
        negatives=wanted,
        short=int((counts < wanted).sum()),
        mined=found.mined,
    )


@dataclass(frozen=True)
class _Texts:
    """Texts that are there once each, in the order of their hashes, which no order of rows changes.

    Attributes:
        hashes: uint64 (T,), ascending.
        rows: int64 (T,), where a text is: the number of a row.
        places: int32 (T,), and which of its documents; -1 for its query.
        of: int64, for every text as it came its number among these.
    """

    hashes: Hashes
    rows: NDArray[np.int64]
    places: NDArray[np.int32]
    of: NDArray[np.int64]

    @classmethod
    def among(cls, hashes: Hashes, rows: NDArray[np.int64], places: NDArray[np.int32]) -> _Texts:
        """The texts among those with these hashes."""
        found, first, of = np.unique(hashes, return_index=True, return_inverse=True)
        return cls(found, rows[first], places[first], of)

    def __len__(self) -> int:
        return len(self.hashes)

    def find(self, hashes: Hashes) -> NDArray[np.int64]:
        """The number of each text with one of these hashes; -1 where it is not there."""
        places = np.searchsorted(self.hashes, hashes).clip(max=len(self) - 1)
        return np.where(self.hashes[places] == hashes, places, -1)


class _Mine:
    """The search in one data set."""

    def __init__(self, dataset: Dataset, wanted: Mining, encoder: Encoder, say: Say | None):
        self._dataset, self._wanted, self._encoder = dataset, wanted, encoder
        self._read()
        self._say = say or (lambda text: None)
        self._done, self._total = 0, len(self._queries) + len(self._documents)
        self._spoke = time.monotonic()
        self._say(f"{dataset.spec.name}: hard negatives are mined among {self._total:,} texts")

    def _read(self) -> None:
        """Go through all rows once, and remember of their texts the hash and the place."""
        queries, documents = array("Q"), array("Q")
        rows, places, given = array("q"), array("i"), array("i")
        for number in range(len(self._dataset)):
            row = self._dataset.given(number)
            if not isinstance(row, Ranked):
                message = f"{self._dataset.spec.name}: rows with scores or labels have no queries"
                raise UsageError(f"{message}, and nothing is mined for them")
            queries.append(_hash(row.query))
            given.append(len(row.negatives))
            for place, text in enumerate((*row.positives, *row.negatives)):
                documents.append(_hash(text))
                rows.append(number)
                places.append(place)
        count = len(queries)
        everywhere = np.arange(count, dtype=np.int64)
        self._given = np.frombuffer(given, dtype=np.int32)
        self._owners = np.frombuffer(rows, dtype=np.int64)
        self._places = np.frombuffer(places, dtype=np.int32)
        self._queries = _Texts.among(
            np.frombuffer(queries, dtype=np.uint64), everywhere, np.full(count, -1, dtype=np.int32)
        )
        self._documents = _Texts.among(
            np.frombuffer(documents, dtype=np.uint64), self._owners, self._places
        )

    def found(self, key: str) -> mined_file.Found:
        """The negatives of every row, under their key."""
        without, answers = self._pairs()
        queries, documents = self._embedded(self._queries), self._embedded(self._documents)
        limits = self._limits(cosines_of(queries, documents, answers), answers)
        most = min(self._wanted.top, len(self._documents))
        chosen = np.full((len(self._queries), self._wanted.keep), -1, dtype=np.int64)
        for block in nearest(queries, documents, without, most, self._encoder.device):
            here = slice(block.first, block.first + len(block.documents))
            chosen[here] = self._passing(block, limits[here])
        return self._by_row(key, chosen)

    def _pairs(self) -> tuple[Pairs, Pairs]:
        """The documents of each query that are not mined for it, and those that answer it."""
        queries, documents = self._queries, self._documents
        asked = queries.of[self._owners]
        positive = self._places < self._positives()[self._owners]
        answers = Pairs.of(asked[positive], documents.of[positive])
        left, right = [asked], [documents.of]
        same = documents.find(queries.hashes)
        left.append(np.flatnonzero(same >= 0))
        right.append(same[same >= 0])
        if self._dataset.spec.kind == "pair":
            back = queries.find(documents.hashes)[answers.documents]
            forth = documents.find(queries.hashes)[answers.queries]
            both = (back >= 0) & (forth >= 0)
            left.append(back[both])
            right.append(forth[both])
        return Pairs.of(np.concatenate(left), np.concatenate(right)), answers

    def _positives(self) -> NDArray[np.int64]:
        """How many positives each row has."""
        texts: NDArray[np.int64] = np.bincount(self._owners, minlength=len(self._given))
        return texts - self._given

    def _limits(self, cosines: NDArray[np.float32], answers: Pairs) -> NDArray[np.float64]:
        """What a negative of each query has to be below: float64 (Q,)."""
        least = np.full(len(self._queries), np.inf)
        np.minimum.at(least, answers.queries, cosines.astype(np.float64))
        limits: NDArray[np.float64] = least - (1 - self._wanted.below) * np.abs(least)
        return limits

    def _passing(self, block: Nearest, limits: NDArray[np.float64]) -> NDArray[np.int64]:
        """The documents that are kept for the queries of a block: (queries, keep), -1 for none."""
        keep = self._wanted.keep
        passes = (block.documents >= 0) & (block.cosines < limits[:, None])
        order = np.argsort(~passes, axis=1, kind="stable")[:, :keep]
        kept = np.where(passes, block.documents, -1)
        chosen = np.full((len(limits), keep), -1, dtype=np.int64)
        chosen[:, : order.shape[1]] = np.take_along_axis(kept, order, axis=1)
        return chosen

    def _by_row(self, key: str, chosen: NDArray[np.int64]) -> mined_file.Found:
        """What was chosen for queries, as places of texts for the rows that ask them."""
        numbers = chosen[self._queries.of]
        there = numbers >= 0
        rows = np.where(there, self._documents.rows[numbers], -1)
        texts = np.where(there, self._documents.places[numbers], -1)
        return mined_file.Found(Mined(key, rows, texts.astype(np.int32)), self._given)

    def _embedded(self, texts: _Texts) -> Vectors:
        """The unit vectors of texts, in a file that is mapped into memory: (T, dimension)."""
        spec = self._dataset.spec
        alike = spec.kind == "pair"
        of_queries = texts is self._queries
        prompt = spec.query if of_queries or alike else spec.document
        own = None if alike else "query" if of_queries else "document"
        vectors: Vectors | None = None
        for start in range(0, len(texts), CHUNK):
            here = range(start, min(start + CHUNK, len(texts)))
            found = self._encoder.embed([self._text(texts, i) for i in here], prompt, own)
            if vectors is None:
                vectors = mined_file.scratch((len(texts), found.shape[1]))
            vectors[start : start + len(found)] = found
            self._done += len(found)
            if time.monotonic() - self._spoke >= EVERY:
                self._spoke = time.monotonic()
                percent = 100 * self._done // self._total
                self._say(f"{spec.name}: {percent} % of the texts are embedded")
        assert vectors is not None
        return vectors

    def _text(self, texts: _Texts, index: int) -> str:
        number, place = int(texts.rows[index]), int(texts.places[index])
        if place >= 0:
            return self._dataset.text(number, place)
        row = self._dataset.given(number)
        assert isinstance(row, Ranked)
        return row.query


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))
