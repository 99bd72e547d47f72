"""Mined negatives on the disk, by the content of what they were found in.

A file is called by the hash of everything that its content depends on, written beside its place and
renamed, and holds its own hash: one that is broken, or of another version, counts as not there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..disk import CACHE, cache_folder
from ..errors import OutputError
from .data import Mined

FORMAT = 1
"""Of the files, and of how negatives are found."""

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Found:
    """Negatives that were found, and int32 (N,) how many each row had before."""

    mined: Mined
    given: NDArray[np.int32]


def folder() -> Path:
    """Where files are kept: in the folder of caches, under `mined`.

    Raises:
        OutputError: for a user without a home who does not name one.
    """
    found = cache_folder("mined")
    if found is None:
        raise OutputError(f"there is no place to keep mined negatives; set {CACHE} to a folder")
    return found


def read(key: str, rows: int) -> Found | None:
    """What was found under a key, for a data set of so many rows; None where there is no such."""
    from safetensors import SafetensorError, safe_open

    path = folder() / f"{key}.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            found = {name: file.get_tensor(name) for name in ("rows", "texts", "given")}
            digest = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    whole = digest == _digest(found)
    if not whole or len(found["given"]) != rows:
        return None
    return Found(Mined(key, found["rows"], found["texts"]), found["given"])


def write(found: Found) -> None:
    """Keep what was found under its key.

    Raises:
        OutputError: when it cannot be written.
    """
    from safetensors.numpy import save

    tensors: Tensors = {"rows": found.mined.rows, "texts": found.mined.texts, "given": found.given}
    metadata = {"digest": _digest(tensors)}
    target = folder() / f"{found.mined.key}.safetensors"
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=f".{target.stem}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(save(tensors, metadata))
                file.flush()
                os.fsync(file.fileno())
            Path(partial).replace(target)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise


def scratch(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Room for float32 numbers on the disk, in a file without a name: a killed run leaves nothing.

    Raises:
        OutputError: when there is no room.
    """
    place = folder()
    with explained(place):
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as file:
            if hasattr(os, "posix_fallocate"):  # not on macOS; a full disk shows here, not in use
                os.posix_fallocate(file.fileno(), 0, 4 * shape[0] * shape[1])
            return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What the system says of a file of the cache, as an error that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        message = f"{path}: cannot be written: {reason}; free some space, or set {CACHE}"
        raise OutputError(f"{message} to a folder that can") from error


def _digest(tensors: Tensors) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
