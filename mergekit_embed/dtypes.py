"""The element types of stored tensors, by their safetensors names.

NumPy has no bfloat16, so a stored tensor is handled as raw bytes plus a `DType`; only the kernels
give the bits a meaning.
"""

from __future__ import annotations

import enum


class Kind(enum.Enum):
    """What may be done with the elements of a tensor."""

    FLOAT = "float"  # merged
    INTEGER = "integer"  # must be equal in all members; copied
    OPAQUE = "opaque"  # quantised, packed or complex: known by name and size, never merged


class DType(enum.Enum):
    """A stored element type: its name in safetensors, its size in bits, its kind."""

    F64 = ("F64", 64, Kind.FLOAT)
    F32 = ("F32", 32, Kind.FLOAT)
    F16 = ("F16", 16, Kind.FLOAT)
    BF16 = ("BF16", 16, Kind.FLOAT)
    I64 = ("I64", 64, Kind.INTEGER)
    I32 = ("I32", 32, Kind.INTEGER)
    I16 = ("I16", 16, Kind.INTEGER)
    I8 = ("I8", 8, Kind.INTEGER)
    U64 = ("U64", 64, Kind.INTEGER)
    U32 = ("U32", 32, Kind.INTEGER)
    U16 = ("U16", 16, Kind.INTEGER)
    U8 = ("U8", 8, Kind.INTEGER)
    BOOL = ("BOOL", 8, Kind.INTEGER)
    C64 = ("C64", 64, Kind.OPAQUE)
    F8_E4M3 = ("F8_E4M3", 8, Kind.OPAQUE)
    F8_E5M2 = ("F8_E5M2", 8, Kind.OPAQUE)
    F8_E4M3FNUZ = ("F8_E4M3FNUZ", 8, Kind.OPAQUE)
    F8_E5M2FNUZ = ("F8_E5M2FNUZ", 8, Kind.OPAQUE)
    F8_E8M0 = ("F8_E8M0", 8, Kind.OPAQUE)
    F6_E2M3 = ("F6_E2M3", 6, Kind.OPAQUE)
    F6_E3M2 = ("F6_E3M2", 6, Kind.OPAQUE)
    F4 = ("F4", 4, Kind.OPAQUE)

    def __init__(self, label: str, bits: int, kind: Kind):
        self.label = label
        self.bits = bits
        self.kind = kind

    @property
    def itemsize(self) -> int:
        """Bytes of one element (rounded up for the packed types, which are never taken apart)."""
        return (self.bits + 7) // 8

    @property
    def is_float(self) -> bool:
        """True for the types that are merged; the others are copied or refused."""
        return self.kind is Kind.FLOAT

    def __str__(self) -> str:
        return self.label


FLOAT_NAMES = {
    "float64": DType.F64,
    "float32": DType.F32,
    "float16": DType.F16,
    "bfloat16": DType.BF16,
}
"""The spellings of `dtype` in recipes and in config.json."""
