"""Hashes of tensors as their bytes go by: XXH3 with 128 bits, which keeps up with memory.

It finds what changed by accident. It does not withstand somebody who wants two files to look alike.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import xxhash

from ..checkpoint import Tensor
from ..errors import CheckpointError
from ..kernels import Raw

PIECE = 2**22
"""Bytes of a file that are read and hashed at a time."""

DigestOf = Callable[[Tensor], str | None]
"""The hash of all elements of a tensor as they were read; None where that was not in order."""


class Hash:
    """The hash of bytes that come in pieces, first to last."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()
        self.size = 0

    def add(self, raw: Raw | bytes) -> None:
        """Take in the next bytes."""
        self._state.update(raw if isinstance(raw, bytes) else raw.data)
        self.size += len(raw)

    @property
    def digest(self) -> str:
        """Of all bytes so far: 32 hexadecimal digits."""
        return self._state.hexdigest()


def digest_of(raw: bytes) -> str:
    """The hash of bytes at hand: 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(raw)


def range_digest(path: Path, offset: int, size: int) -> str:
    """The hash of a range of a file; of what there is, where the file is too short.

    Raises:
        CheckpointError: when the file cannot be read.
    """
    digest = Hash()
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while digest.size < size and (raw := file.read(min(PIECE, size - digest.size))):
                digest.add(raw)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    return digest.digest


def file_digest(path: Path) -> str:
    """The hash of a whole file.

    Raises:
        CheckpointError: when it cannot be read.
    """
    return range_digest(path, 0, path.stat().st_size)


class Hashes:
    """Hashes of tensors whose ranges are read, most of them first to last, some of them again."""

    def __init__(self) -> None:
        self._found: dict[Tensor, Hash] = {}

    def see(self, tensor: Tensor, start: int, raw: Raw) -> None:
        """Take in the elements from `start` on, unless they were seen, or some before were not."""
        found = self._found.setdefault(tensor, Hash())
        seen = found.size - start * tensor.read_as.itemsize
        if 0 <= seen < len(raw):
            found.add(raw[seen:])

    def digest(self, tensor: Tensor) -> str | None:
        """See `DigestOf`."""
        found = self._found.get(tensor, Hash())
        return found.digest if found.size == tensor.count * tensor.read_as.itemsize else None
