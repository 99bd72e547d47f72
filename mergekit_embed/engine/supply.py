"""The elements of the tensors that some jobs share, read once for all of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from ..checkpoint import Tensor
from ..kernels import Doubles, Kernels, Raw, Vector
from ..kernels.lines import room
from .hashing import Hashes
from .nested import MergedTensor
from .reader import Reader


@dataclass
class _Held:
    """Elements `start` to `stop` of a tensor in memory."""

    start: int
    stop: int
    raw: Raw
    vector: Vector | None = None

    def has(self, start: int, stop: int) -> bool:
        return self.start <= start and stop <= self.stop


class Supply:
    """Ranges of tensors, from files or from merges that are members.

    The range that was asked for last is at hand, so that all who look at a chunk share one read of
    it. What is kept stays at hand from the first time that it is read. Used by one thread.

    Attributes:
        keep: whether there is memory to keep all of them.
        reuse: whether nobody looks at a range any more when another of the tensor is asked for.
        samples: of what is measured on them, for those who share them.
        hashes: takes in the bytes of tensors that files hold, where these are asked for.
    """

    def __init__(self, tensors: Iterable[Tensor], reader: Reader, kernels: Kernels):
        self._tensors = tuple(dict.fromkeys(tensors))
        self._reader, self._kernels = reader, kernels
        self._held: dict[Tensor, _Held] = {}
        self._kept: dict[Tensor, _Held] = {}
        self._buffers: dict[Tensor, Raw] = {}
        self._on_device: dict[tuple[Tensor, int, int], Vector] = {}
        self.keep = False
        self.reuse = False
        self.samples: dict[Hashable, Doubles] = {}
        self.hashes: Hashes | None = None

    @property
    def tensors(self) -> int:
        """How many there are."""
        return len(self._tensors)

    @property
    def size(self) -> int:
        """Bytes of all of them, as they are read."""
        return sum(tensor.count * tensor.read_as.itemsize for tensor in self._tensors)

    def raw(self, tensor: Tensor, start: int, stop: int) -> Raw:
        """Elements `start` to `stop` as bytes of the type that the tensor is read as."""
        held, size = self._holding(tensor, start, stop), tensor.read_as.itemsize
        return held.raw[(start - held.start) * size : (stop - held.start) * size]

    def vector(self, tensor: Tensor, start: int, stop: int) -> Vector:
        """The same elements where the kernels want them."""
        held = self._holding(tensor, start, stop)
        if held.vector is None:
            held.vector = self._loaded(tensor, held)
        if (held.start, held.stop) == (start, stop):
            return held.vector
        return self._kernels.part(held.vector, start - held.start, stop - held.start)

    def _loaded(self, tensor: Tensor, held: _Held) -> Vector:
        """The vector of what is held; on a device, what is kept is copied there once."""
        if not (self.keep and self._kernels.copies):
            return self._kernels.load(held.raw, tensor.read_as)
        key = (tensor, held.start, held.stop)
        if key not in self._on_device:
            self._on_device[key] = self._kernels.load(held.raw, tensor.read_as)
        return self._on_device[key]

    def windows(self, tensor: Tensor, number: int, step: int, size: int) -> Vector:
        """Elements from all over a tensor: `size` of every `step`, so many times, as one vector."""
        if self.keep:
            width = step * tensor.read_as.itemsize
            raw = self.raw(tensor, 0, tensor.count)[: number * width].reshape(number, width)
            chosen = raw[:, : size * tensor.read_as.itemsize].reshape(-1)
        else:
            starts = range(0, number * step, step)
            chosen = np.concatenate([self._reader.read(tensor, s, s + size) for s in starts])
        return self._kernels.load(chosen, tensor.read_as)

    def clear(self) -> None:
        """Let go of what is held and kept."""
        self._held.clear()
        self._kept.clear()
        self._buffers.clear()
        self._on_device.clear()

    def _holding(self, tensor: Tensor, start: int, stop: int) -> _Held:
        held = self._held.get(tensor)
        if held is None or not held.has(start, stop):
            read = self._keeping if self.keep else self._reading
            held = _Held(start, stop, read(tensor, start, stop))
            self._held[tensor] = held
            if self.hashes is not None and not isinstance(tensor, MergedTensor):
                self.hashes.see(tensor, start, held.raw)
        return held

    def _reading(self, tensor: Tensor, start: int, stop: int) -> Raw:
        """The elements, in memory that the range before may have been in."""
        if not self.reuse:
            return self._reader.read(tensor, start, stop)
        size = (stop - start) * tensor.read_as.itemsize
        buffer = self._buffers.get(tensor)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[tensor] = room(size)
        self._reader.read_into(buffer[:size], tensor, start, stop)
        return buffer[:size]

    def _keeping(self, tensor: Tensor, start: int, stop: int) -> Raw:
        """The elements, with all before them read once; memory of those after is not touched."""
        size, kept = tensor.read_as.itemsize, self._kept.get(tensor)
        if kept is None:
            kept = _Held(0, 0, room(tensor.count * size))
            self._kept[tensor] = kept
        if stop > kept.stop:
            fresh = kept.raw[kept.stop * size : stop * size]
            self._reader.read_into(fresh, tensor, kept.stop, stop)
            kept.stop = stop
        return kept.raw[start * size : stop * size]
