"""The journal of a merge: which tensors are on the disk, for a run that continues a killed one.

A text file of lines, each with a hash of itself before it, so that a line which a crash has torn is
known for what it is and dropped. The first tells of which merge it is (fingerprint.py), every other
of one finished tensor. Lines are only ever added, and only for bytes that are on the disk already.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

FORMAT = 1
"""Of the journal itself; one of another format is not continued."""

Fingerprint = Mapping[str, Any]
"""Of which merge a journal is: JSON data (see fingerprint.py)."""


@dataclass(frozen=True)
class Entry:
    """A finished tensor; plain data, which other processes can send.

    Attributes:
        tensor: the job's name.
        size: of its bytes.
        digest: of its bytes.
        inputs: the digests of what was read for it, in the order of `leaves`; None where elements
            were not read in order.
        notes: what the method said of it.
    """

    tensor: str
    size: int
    digest: str
    inputs: tuple[str | None, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What a journal tells."""

    fingerprint: Fingerprint
    entries: tuple[Entry, ...]


def read_journal(path: Path) -> Found | None:
    """What a journal tells, without the lines that are torn; None where it tells nothing."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:  # none there, or none that can be read: there is nothing to continue
        return None
    first, *rest = map(_content, lines)
    if first is None or first.get("journal") != FORMAT:
        return None
    found = {entry.tensor: entry for entry in map(_entry, rest) if entry is not None}
    return Found(first["fingerprint"], tuple(found.values()))


def _line(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def _content(line: bytes) -> dict[str, Any] | None:
    digest, _, text = line.partition(b" ")
    if not text or xxhash.xxh3_64_hexdigest(text).encode() != digest:
        return None
    content = json.loads(text)
    assert isinstance(content, dict)
    return content


def _entry(content: dict[str, Any] | None) -> Entry | None:
    if content is None:
        return None
    lists = {key: tuple(content[key]) for key in ("inputs", "notes")}
    return Entry(**(content | lists))


class Journal:
    """A journal being written."""

    def __init__(self, path: Path, fingerprint: Fingerprint, entries: Iterable[Entry] = ()):
        """Begin a journal anew, in place of one that may be there, with what is finished already.

        Raises:
            OSError: when it cannot be written; what was there is then still there.
        """
        fresh = path.with_name(path.name + ".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(fresh, flags, 0o644)
        try:
            self._write([{"journal": FORMAT, "fingerprint": fingerprint}, *map(asdict, entries)])
            fresh.rename(path)
        except BaseException:
            self.close()
            raise

    def add(self, entries: Iterable[Entry]) -> None:
        """Add finished tensors, whose bytes are on the disk, and wait until the journal is.

        Raises:
            OSError: when it cannot be written.
        """
        self._write([asdict(entry) for entry in entries])

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _write(self, contents: Iterable[Mapping[str, Any]]) -> None:
        left = memoryview(b"".join(map(_line, contents)))
        while len(left):
            left = left[os.write(self._descriptor, left) :]
        os.fsync(self._descriptor)
