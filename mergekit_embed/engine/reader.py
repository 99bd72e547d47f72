"""Reads ranges of stored tensors, from any thread, and counts the bytes."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import StoredTensor
from ..errors import CheckpointError


class Reader:
    """Open files by path; a context manager that closes them.

    Reads by position (`pread`), not through a mapping: mapped pages would count as memory of the
    process and grow with the checkpoint.
    """

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()
        self.bytes_read = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def read(self, tensor: StoredTensor, start: int, stop: int) -> NDArray[np.uint8]:
        """Elements `start` to `stop` of the tensor in C order, as stored bytes.

        Raises:
            CheckpointError: when the file cannot be read or has become shorter.
        """
        if tensor.strides is not None:
            return self._read_strided(tensor, start, stop)
        size = tensor.dtype.itemsize
        buffer = np.empty((stop - start) * size, dtype=np.uint8)
        view = memoryview(buffer.data)
        position = tensor.offset + start * size
        try:
            descriptor = self._descriptor(tensor.file)
            while len(view):
                got = os.preadv(descriptor, [view], position)
                if not got:
                    raise CheckpointError(tensor.file, "has become shorter while it was read")
                view, position = view[got:], position + got
        except OSError as error:
            raise CheckpointError(tensor.file, f"cannot be read: {error.strerror}") from error
        self._count(buffer.nbytes)
        return buffer

    def _read_strided(self, tensor: StoredTensor, start: int, stop: int) -> NDArray[np.uint8]:
        """Gather elements of a view, such as a transposed matrix, through a short-lived mapping."""
        assert tensor.strides is not None
        size = tensor.dtype.itemsize
        try:
            whole: np.ndarray[tuple[int, ...], np.dtype[np.void]] = np.ndarray(
                tensor.shape,
                dtype=np.dtype((np.void, size)),
                buffer=np.memmap(tensor.file, dtype=np.uint8, mode="r"),
                offset=tensor.offset,
                strides=[stride * size for stride in tensor.strides],
            )
        except OSError as error:
            raise CheckpointError(tensor.file, f"cannot be read: {error.strerror}") from error
        except (TypeError, ValueError) as error:  # smaller than the tensor's place in it
            raise CheckpointError(tensor.file, "has become shorter while it was read") from error
        chosen = np.array(whole.flat[start:stop])
        self._count(chosen.nbytes)
        return chosen.view(np.uint8).reshape(-1)

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._files[path]

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_read += size
