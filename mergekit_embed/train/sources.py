"""Where rows come from: lines of JSON, Parquet files, data sets of the Hub.

Of JSON Lines only the place of every row is kept in memory (24 bytes), so a file may be larger than
the memory. Parquet files and data sets of the Hub are read by the library `datasets`, which maps
them into memory.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, Problem, UsageError
from ..rows import decoded
from .specs import DatasetSpec

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """What is at a place of a data set: the keys and values of a row, or why there are none."""

    place: str
    content: Mapping[str, Any] | ValueError


class Rows(Protocol):
    """Rows that can be read by their number, also in another process."""

    def read(self, number: int) -> Mapping[str, Any]:
        """The keys and values of a row.

        Raises:
            DataError: when the file cannot be read.
            ValueError: when there is no such row there any more.
        """

    def place(self, number: int) -> str:
        """Where the row is: `file:line`, or the data set and the number."""


class Source(Rows, Protocol):
    """A data set before its rows are checked."""

    @property
    def shown(self) -> str:
        """What messages call it."""

    def all(self) -> Iterator[Found]:
        """What is at every place of it, in order, good or bad."""

    def only(self, numbers: Numbers) -> Rows:
        """These of what `all` has given, counted from 0."""


def find_rows(spec: DatasetSpec, folders: Sequence[Path]) -> Source:
    """The source of a data set.

    Args:
        spec: says where it is.
        folders: that a relative path counts from, in this order.

    Raises:
        DataError: when it is not there, or cannot be read.
        UsageError: when a library is missing that reads it.
    """
    path = _local(spec.path, folders)
    if path is None or path.suffix == ".parquet":
        return Table.open(spec, path)
    return JsonLines(path)


OURS = {".jsonl", ".json", ".ndjson", ".parquet"}
"""Endings that no data set of the Hub has."""


def _local(path: str, folders: Sequence[Path]) -> Path | None:
    """The file; None for what may be a data set of the Hub.

    Raises:
        DataError: when there is no such file, and it cannot be one of the Hub.
    """
    try:
        tried = list(dict.fromkeys(folder / Path(path).expanduser() for folder in folders))
        for file in tried:
            if file.is_file():
                return file
            if file.is_dir():
                raise DataError([Problem(str(file), "is a folder; name a file of rows")])
    except (OSError, RuntimeError) as error:  # a name too long, no permission, no such ~user
        raise DataError([Problem("", f"{path} cannot be looked up: {error}")]) from error
    if Path(path).suffix in OURS or path.startswith((".", "/", "~")) or path.count("/") != 1:
        listed = " or ".join(map(str, tried))
        raise DataError([Problem("", f"there is no file {listed}")])
    return None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError([Problem(str(path), f"cannot be read: {error.strerror}")])


@dataclass
class JsonLines:
    """The lines of a file.

    `starts`, `sizes` and `lines` have an entry for every line that is not empty: its first byte,
    how many bytes it has, and its number.
    """

    path: Path
    starts: Sequence[int] | Numbers = field(default_factory=lambda: array("q"), repr=False)
    sizes: Sequence[int] | Numbers = field(default_factory=lambda: array("q"), repr=False)
    lines: Sequence[int] | Numbers = field(default_factory=lambda: array("q"), repr=False)
    _file: int | None = None

    @property
    def shown(self) -> str:
        """See `Source`."""
        return str(self.path)

    def all(self) -> Iterator[Found]:
        """See `Source`."""
        starts, sizes, lines = array("q"), array("q"), array("q")
        start = 0
        try:
            with self.path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    if raw.strip():
                        starts.append(start)
                        sizes.append(len(raw))
                        lines.append(number)
                        yield Found(f"{self.path}:{number}", _content(raw))
                    start += len(raw)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        self.starts, self.sizes, self.lines = starts, sizes, lines

    def only(self, numbers: Numbers) -> JsonLines:
        """See `Source`."""
        return JsonLines(
            self.path,
            np.asarray(self.starts, dtype=np.int64)[numbers],
            np.asarray(self.sizes, dtype=np.int64)[numbers],
            np.asarray(self.lines, dtype=np.int64)[numbers],
        )

    def read(self, number: int) -> Mapping[str, Any]:
        """See `Rows`."""
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return decoded(os.pread(self._file, int(self.sizes[number]), int(self.starts[number])))
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def place(self, number: int) -> str:
        """See `Rows`."""
        return f"{self.path}:{int(self.lines[number])}"

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, which belongs to this process."""
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)


def _content(raw: bytes) -> Mapping[str, Any] | ValueError:
    try:
        return decoded(raw)
    except ValueError as error:
        return error


@dataclass
class Table:
    """A table of the library `datasets`, or some of its rows: `numbers` are theirs in it."""

    shown: str
    table: Any = field(repr=False)
    numbers: Numbers = field(repr=False)

    @classmethod
    def open(cls, spec: DatasetSpec, path: Path | None) -> Table:
        """The Parquet file, or the data set of the Hub where there is none; errors: `find_rows`."""
        try:
            import datasets
        except ImportError as error:
            message = (
                "Parquet files and data sets of the Hub need `pip install mergekit_embed[train]`"
            )
            raise UsageError(message) from error
        datasets.disable_progress_bars()
        shown = str(path or spec.path)
        name, _, revision = spec.path.partition("@")
        try:
            if path is not None:
                table: Any = datasets.Dataset.from_parquet(str(path))
            else:
                table = datasets.load_dataset(
                    name, spec.subset, split=spec.split, revision=revision or None
                )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError([Problem(shown, f"cannot be read: {reason[:500]}")]) from error
        return cls(shown, table, np.arange(len(table), dtype=np.int64))

    def all(self) -> Iterator[Found]:
        """See `Source`."""
        for number, content in enumerate(self.table):
            yield Found(f"{self.shown}:{number + 1}", _filled(content))

    def only(self, numbers: Numbers) -> Table:
        """See `Source`."""
        return Table(self.shown, self.table, numbers)

    def read(self, number: int) -> Mapping[str, Any]:
        """See `Rows`."""
        return _filled(self.table[int(self.numbers[number])])

    def place(self, number: int) -> str:
        """See `Rows`; rows of tables are counted from 1, as lines are."""
        return f"{self.shown}:{int(self.numbers[number]) + 1}"


def _filled(content: Mapping[str, Any]) -> dict[str, Any]:
    """The row without the columns that are empty in it."""
    return {key: value for key, value in content.items() if value is not None}
