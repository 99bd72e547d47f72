"""A tensor where it lies: a place in a file, not yet read."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeGuard

from ..dtypes import DType

Shape = tuple[int, ...]

METADATA = "__metadata__"
"""What a safetensors header calls its own entry; no tensor can have this name."""

MAX_NAME_CHARACTERS = 4096
MAX_DIMENSIONS = 64
MAX_BYTES = 2**63 - 1
"""What files and NumPy can address."""


class Tensor(Protocol):
    """A tensor of a model, described by headers alone; hashable.

    Files store most of them as they are; others are made of several when they are read.
    """

    @property
    def name(self) -> str:
        """As the model spells it."""

    @property
    def dtype(self) -> DType:
        """Stored type, and that of a result by default."""

    @property
    def read_as(self) -> DType:
        """Type of the values when they are read."""

    @property
    def shape(self) -> Shape:
        """Sizes, first to last dimension."""

    @property
    def count(self) -> int:
        """Number of elements; 1 for a scalar."""

    @property
    def nbytes(self) -> int:
        """Stored bytes that are read for the whole tensor."""

    @property
    def file(self) -> Path:
        """The file that the values begin with."""

    @property
    def offset(self) -> int:
        """Of their first byte, from the start of the file."""

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that this one is made of; none for a stored one."""

    def renamed(self, name: str) -> Tensor:
        """The same tensor under another name."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint, described by its file's header alone.

    Attributes:
        name: as the file spells it.
        offset: of its first byte, from the start of the file.
        strides: in elements, for the pickled tensors that are views; None when contiguous.
    """

    name: str
    dtype: DType
    shape: Shape
    file: Path
    offset: int
    strides: Shape | None = None

    @property
    def read_as(self) -> DType:
        """Type of the values when they are read: the stored one."""
        return self.dtype

    @property
    def count(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, packed."""
        return (self.count * self.dtype.bits + 7) // 8

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """None: it is stored as it is."""
        return ()

    def renamed(self, name: str) -> StoredTensor:
        """The same tensor under another name."""
        return replace(self, name=name)


def is_name(name: object) -> TypeGuard[str]:
    """True for a name that can be written again and shown: of sane length, all of it printable.

    Half characters (surrogates) cannot be written; line ends, escapes and marks that turn the
    direction of text would let a name write to the terminal what no command has said.
    """
    if not isinstance(name, str) or len(name) > MAX_NAME_CHARACTERS or name == METADATA:
        return False
    return name.isprintable()


def is_possible(shape: Shape, dtype: DType) -> bool:
    """True for a shape that a tensor can have, empty or not.

    Zeros do not count: NumPy, torch and the safetensors library all fail on a product of the other
    sizes that overflows, even though no element is there.
    """
    if len(shape) > MAX_DIMENSIONS:
        return False
    return math.prod(size for size in shape if size) * dtype.bits <= 8 * MAX_BYTES


_SHOWN = reprlib.Repr()
_SHOWN.maxlevel = 4
_SHOWN.maxlist = _SHOWN.maxtuple = _SHOWN.maxdict = 20
_SHOWN.maxstring = _SHOWN.maxlong = _SHOWN.maxother = 160


def short(value: object) -> str:
    """A value from a file as an error shows it: a hostile one may fill many screens.

    It may also be nested so deeply, or hold itself so often, that spelling it out would never end.
    """
    try:
        spelled = _SHOWN.repr(value)
    except ValueError:  # Python spells no whole number of many thousands of digits
        return f"a very large {type(value).__name__}"
    return spelled if len(spelled) <= 160 else spelled[:157] + "..."
