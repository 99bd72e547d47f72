"""Reads ranges of stored tensors, from any thread, and counts the bytes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from ..checkpoint import FoldedTensor, LowRank, RemappedTensor, StoredTensor, Tensor
from ..errors import CheckpointError
from ..kernels import Raw
from .folding import FACTOR_BYTES, Doubles, add_product, pieces, widened
from .gathering import read_rows
from .nested import MergedTensor
from .stamps import Stamp, refuse_changed, stamp

ReadMerged = Callable[[MergedTensor, int, int], Raw]
"""Makes elements `start` to `stop` of a nested recipe's tensor, as bytes."""


def _no_merged(tensor: MergedTensor, start: int, stop: int) -> Raw:
    raise LookupError(f"{tensor.name} is read outside of a run that merges it")


class Reader:
    """Open files by path; a context manager that closes them.

    It ends with a `ChangedError` where one of them was written to meanwhile: what has been read
    before and after need not belong together.

    Reads by position (`pread`), not through a mapping: mapped pages would count as memory of the
    process and grow with the checkpoint.
    """

    def __init__(self, stamps: Mapping[Path, Stamp] | None = None) -> None:
        """`stamps` is how files were when the merge was planned, and have to be still."""
        self._stamps = stamps or {}
        self._files: dict[Path, int] = {}
        self._opened: dict[Path, Stamp] = {}
        self._factors: OrderedDict[StoredTensor, Doubles] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes_read = 0
        self.merged: ReadMerged = _no_merged

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.refuse_changed()
        finally:
            with self._lock:
                for descriptor in self._files.values():
                    os.close(descriptor)
                self._files.clear()

    def refuse_changed(self) -> None:
        """Refuse files that have been written to since they were opened, or replaced.

        Raises:
            ChangedError: naming the first.
            CheckpointError: when one is gone.
        """
        with self._lock:
            for path, descriptor in self._files.items():
                refuse_changed(path, Stamp.of(os.fstat(descriptor)), self._opened[path])
                refuse_changed(path, stamp(path), self._opened[path])

    def read(self, tensor: Tensor, start: int, stop: int) -> Raw:
        """Elements `start` to `stop` of the tensor in C order, as bytes of the type `read_as`.

        Raises:
            CheckpointError: when the file cannot be read or has become shorter.
        """
        if isinstance(tensor, MergedTensor):
            return self.merged(tensor, start, stop)
        if isinstance(tensor, FoldedTensor):
            return self._read_folded(tensor, start, stop)
        if isinstance(tensor, RemappedTensor):
            return read_rows(tensor, start, stop, self.read)
        if not isinstance(tensor, StoredTensor):
            raise TypeError(f"no reader for {type(tensor).__name__}")
        if tensor.strides is not None:
            return self._read_strided(tensor, start, stop)
        buffer = np.empty((stop - start) * tensor.dtype.itemsize, dtype=np.uint8)
        self._fill(buffer, tensor, start)
        return buffer

    def read_into(self, buffer: Raw, tensor: Tensor, start: int, stop: int) -> None:
        """As `read`, into memory that is at hand.

        Raises:
            CheckpointError: as `read` does.
        """
        if isinstance(tensor, StoredTensor) and tensor.strides is None:
            self._fill(buffer, tensor, start)
        else:
            buffer[:] = self.read(tensor, start, stop)

    def _fill(self, buffer: Raw, tensor: StoredTensor, start: int) -> None:
        """Read stored elements from `start` on until the buffer is full."""
        view = memoryview(buffer.data)
        position = tensor.offset + start * tensor.dtype.itemsize
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

    def _read_folded(self, tensor: FoldedTensor, start: int, stop: int) -> Raw:
        """What the values begin with, and the update of just these elements added to it."""
        raw = self.read(tensor.start, start, stop)
        update = tensor.update
        if update is None:
            return raw
        values = widened(raw, tensor.start.read_as)
        right = self._right(update)
        columns = tensor.shape[1]
        for piece in pieces(start, stop, columns):
            first = piece.top * columns + piece.left - start
            shape = (piece.bottom - piece.top, piece.right - piece.left)
            part = values[first : first + shape[0] * shape[1]].reshape(shape)
            left = self._left(update, piece.top, piece.bottom)
            add_product(part, left, right[:, piece.left : piece.right], update.scale)
        return values.view(np.uint8)

    def _left(self, update: LowRank, top: int, bottom: int) -> Doubles:
        """The rows of the left factor, (rank, rows); only these are read."""
        stored, rank = update.left, update.rank
        if not update.transposed:
            raw = self.read(stored, top * rank, bottom * rank)
            return np.ascontiguousarray(widened(raw, stored.dtype).reshape(-1, rank).T)
        rows = stored.shape[1]
        ranges = [self.read(stored, k * rows + top, k * rows + bottom) for k in range(rank)]
        return np.stack([widened(raw, stored.dtype) for raw in ranges])

    def _right(self, update: LowRank) -> Doubles:
        """The right factor, (rank, columns), which every range of rows needs whole."""
        stored = update.right
        with self._lock:
            if stored in self._factors:
                self._factors.move_to_end(stored)
                return self._factors[stored]
        found = widened(self.read(stored, 0, stored.count), stored.dtype).reshape(stored.shape)
        found = np.ascontiguousarray(found.T) if update.transposed else found
        with self._lock:
            self._factors[stored] = found
            held = sum(factor.nbytes for factor in self._factors.values())
            while held > FACTOR_BYTES and len(self._factors) > 1:
                held -= self._factors.popitem(last=False)[1].nbytes
        return found

    def _read_strided(self, tensor: StoredTensor, start: int, stop: int) -> Raw:
        """Gather elements of a view, such as a transposed matrix, through a short-lived mapping."""
        assert tensor.strides is not None
        size = tensor.dtype.itemsize
        try:
            with open(self._descriptor(tensor.file), "rb", closefd=False) as file:
                mapped = np.memmap(file, dtype=np.uint8, mode="r")
            whole: np.ndarray[tuple[int, ...], np.dtype[np.void]] = np.ndarray(
                tensor.shape,
                dtype=np.dtype((np.void, size)),
                buffer=mapped,
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
                # Opening a pipe, which somebody may have put in the place of the file, would wait.
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
                self._files[path] = os.open(path, flags)
                self._opened[path] = Stamp.of(os.fstat(self._files[path]))
                refuse_changed(path, self._opened[path], self._stamps.get(path))
            return self._files[path]

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_read += size
