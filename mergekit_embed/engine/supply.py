"""The elements of the tensors that some jobs share, read once for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..checkpoint import Tensor
from ..kernels import Kernels, Raw, Vector
from .plan import KEEP_BYTES
from .reader import Reader


@dataclass
class _Held:
    """Elements `start` to `stop` of a tensor in memory."""

    start: int
    stop: int
    raw: Raw
    vector: Vector | None = None


class Supply:
    """Ranges of tensors, from files or from merges that are members.

    Tensors that are small enough together are read whole and kept; of others the range that was
    asked for last is, so that all who look at a chunk share one read of it. Used by one thread.
    """

    def __init__(self, tensors: Iterable[Tensor], reader: Reader, kernels: Kernels):
        once = dict.fromkeys(tensors)
        self.tensors = len(once)
        self._reader, self._kernels = reader, kernels
        held = sum(tensor.count * tensor.read_as.itemsize for tensor in once)
        self._keeps_all = held <= KEEP_BYTES
        self._held: dict[Tensor, _Held] = {}

    def raw(self, tensor: Tensor, start: int, stop: int) -> Raw:
        """Elements `start` to `stop` as bytes of the type that the tensor is read as."""
        held, size = self._holding(tensor, start, stop), tensor.read_as.itemsize
        return held.raw[(start - held.start) * size : (stop - held.start) * size]

    def vector(self, tensor: Tensor, start: int, stop: int) -> Vector:
        """The same elements where the kernels want them."""
        held = self._holding(tensor, start, stop)
        if held.vector is None:
            held.vector = self._kernels.load(held.raw, tensor.read_as)
        if (held.start, held.stop) == (start, stop):
            return held.vector
        return self._kernels.part(held.vector, start - held.start, stop - held.start)

    def clear(self) -> None:
        """Let go of what is held."""
        self._held.clear()

    def _holding(self, tensor: Tensor, start: int, stop: int) -> _Held:
        held = self._held.get(tensor)
        if held is None or start < held.start or held.stop < stop:
            if self._keeps_all:
                start, stop = 0, tensor.count
            held = _Held(start, stop, self._reader.read(tensor, start, stop))
            self._held[tensor] = held
        return held
