"""Reading and laying out safetensors files by their headers.

The format: 8 bytes with the length N of the header (little-endian), N bytes of JSON, then the data,
in which every tensor has its own `data_offsets` and no byte is left over. A file that breaks a rule
is refused before anything is read through it: a wrong offset would silently merge other bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..dtypes import DType
from ..errors import CheckpointError
from ..process import uncollected
from .tensor import METADATA, Shape, StoredTensor, is_name, is_possible, short

MAX_HEADER_BYTES = 10_000_000
"""Room for 100,000 tensors. The reference implementation takes ten times as much, but a header is
parsed as a whole, and a hostile one takes 25 times its size in memory."""

LENGTH = struct.Struct("<Q")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, in the order of their data.

    Raises:
        CheckpointError: when the file is not safetensors, truncated, or lies about its contents.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(LENGTH.size)
            if len(prefix) < LENGTH.size:
                raise CheckpointError(path, f"is not safetensors: only {size} bytes long")
            (length,) = LENGTH.unpack(prefix)
            if length > size - LENGTH.size:
                raise CheckpointError(
                    path,
                    f"is truncated or not safetensors: its header should take {length:,} bytes, "
                    f"the file has {size:,}",
                )
            if length > MAX_HEADER_BYTES:
                most = f"no header of more than {MAX_HEADER_BYTES:,} bytes is read"
                raise CheckpointError(path, f"has a header of {length:,} bytes; {most}")
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    start = LENGTH.size + length
    tensors = [
        _tensor(path, name, entry, start, size) for name, entry in _entries(path, raw).items()
    ]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_layout(path, tensors, start, size)
    return {tensor.name: tensor for tensor in tensors}


def _entries(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise CheckpointError(path, f"names {short(name)} twice in its header")
            found[name] = value
        return found

    try:
        # Decoded first: json.loads would take bytes in UTF-16 too, which other readers refuse.
        text = raw.decode()
        with uncollected:
            header = json.loads(text, object_pairs_hook=unique, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"has a header that is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(path, "has a header that is not a JSON object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(map(_is_text, (*metadata, *metadata.values()))):
        raise CheckpointError(path, f"has `{METADATA}` that is not a map of strings")
    return header


def _whole(digits: str) -> float:
    """A number without a fraction; -0, for which other readers have no whole number, is none."""
    return -0.0 if digits == "-0" else int(digits)


def _is_text(value: Any) -> bool:
    """True for a string without half a character, which other readers refuse."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> StoredTensor:
    def refuse(what: str) -> CheckpointError:
        return CheckpointError(path, f"tensor {short(name)}: {what}")

    if not is_name(name):
        raise refuse("impossible name")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse("must have a dtype, a shape and data_offsets, and nothing else")
    try:
        dtype = DType[entry["dtype"]]
    except (KeyError, TypeError):
        raise refuse(f"unknown dtype {short(entry['dtype'])}") from None
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or not is_possible(tuple(shape), dtype):
        raise refuse(f"impossible shape {short(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"impossible data_offsets {short(offsets)}")
    begin, end = offsets
    if end > size - start:
        raise refuse(f"ends at byte {end:,} of {size - start:,}; the file is truncated, or lies")
    tensor = StoredTensor(name, dtype, tuple(shape), path, start + begin)
    if math.prod(shape) * dtype.bits != (end - begin) * 8:
        raise refuse(f"shape {short(shape)} of {dtype} does not take {end - begin:,} bytes")
    return tensor


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63 for v in values
    )


def _check_layout(path: Path, tensors: Iterable[StoredTensor], start: int, size: int) -> None:
    position = start
    for tensor in tensors:
        if tensor.offset != position:
            wrong = "overlaps the one before" if tensor.offset < position else "leaves a hole"
            raise CheckpointError(path, f"tensor {short(tensor.name)}: {wrong} in the data")
        position += tensor.nbytes
    if position != size:
        raise CheckpointError(path, f"holds {size - position:,} bytes that belong to no tensor")


def layout(
    tensors: Mapping[str, tuple[DType, Shape]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int], int]:
    """Lay out a file before any data is there, with `metadata` in its header.

    Tensors are ordered by falling alignment and then by name, as the reference implementation
    does, so that every one is aligned to its element when the file is mapped.

    Returns:
        the bytes up to the data (length and header, padded to 8), the offset of every tensor from
        the start of the file, and the size of the whole file.
    """
    header: dict[str, Any] = {METADATA: {"format": "pt", **(metadata or {})}}
    relative: dict[str, int] = {}
    position = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name][0].bits, name)):
        dtype, shape = tensors[name]
        end = position + (math.prod(shape) * dtype.bits + 7) // 8
        header[name] = {"dtype": str(dtype), "shape": list(shape), "data_offsets": [position, end]}
        relative[name] = position
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = LENGTH.size + len(text)
    offsets = {name: start + offset for name, offset in relative.items()}
    return LENGTH.pack(len(text)) + text, offsets, start + position
