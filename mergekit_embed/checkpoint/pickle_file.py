"""Reading `pytorch_model.bin` without running its pickle and without loading its data.

`torch.load(weights_only=True)` refuses anything but tensors, and under fake tensors it resolves
every storage to its offset in the (uncompressed) zip file. The data is then read like that of a
safetensors file.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..dtypes import DType
from ..errors import CheckpointError
from .tensor import Shape, StoredTensor, is_name, is_possible, short

if TYPE_CHECKING:
    import torch

LOCAL_HEADER = struct.Struct("<4s22xHH")
"""What precedes an entry of a zip file: its mark, and the lengths of its name and its padding."""

FORBIDDEN = re.compile(r"GLOBAL (\S{1,100})")
"""How torch names what a pickle calls for and may not have."""

SHARED = {"BINUNICODE", "GLOBAL", "REDUCE", "BINPERSID"}
"""What makes the values that torch takes more than once."""

MAX_AGAIN = 16
"""Other values that may be taken again."""

MAX_PROGRAM_BYTES = 2**22
"""Of the pickle without the data: room for 20,000 tensors."""

ORDER = b"little"

ADVICE = "convert it with transformers' `save_pretrained`, which writes safetensors"


def read_pickle(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a PyTorch checkpoint, in the order of its state dict.

    Raises:
        CheckpointError: when it is not a zip-format checkpoint of plain tensors, or would run code.
    """
    records = _records(path)
    state = _load_without_data(path)
    if not isinstance(state, Mapping):
        raise CheckpointError(path, f"holds a {type(state).__name__}, not a state dict; {ADVICE}")
    return {
        name: _tensor(path, name, tensor, records)
        for name, tensor in state.items()
        if tensor is not None
    }


def _records(path: Path) -> dict[int, int]:
    """The pieces of data in the archive: where each starts in the file, and how long it is."""
    try:
        if not zipfile.is_zipfile(path):
            raise CheckpointError(path, f"is truncated, or of PyTorch before 1.6; {ADVICE}")
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            records = {}
            for entry in archive.infolist():
                offset = _data_offset(path, file, entry)
                records[offset] = entry.file_size
                if entry.filename.endswith("data.pkl"):
                    file.seek(offset)
                    _refuse_bomb(path, file, entry.file_size)
            return records
    except (OSError, ValueError, struct.error, NotImplementedError, zipfile.BadZipFile) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error


def _data_offset(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry start: behind its header, its name and its padding."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise CheckpointError(path, f"holds compressed data ({short(entry.filename)})")
    file.seek(entry.header_offset)
    mark, name, padding = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    if mark != b"PK\3\4":
        raise CheckpointError(path, f"is broken: {short(entry.filename)} is not where it should be")
    file.seek(name + padding, os.SEEK_CUR)
    offset = file.tell()
    # torch crashes when it is to swap the bytes of data that it has not loaded.
    if entry.filename.lower().endswith("byteorder") and file.read(len(ORDER)) != ORDER:
        raise CheckpointError(path, f"does not hold little-endian numbers; {ADVICE}")
    return offset


def _refuse_bomb(path: Path, file: BinaryIO, size: int) -> None:
    """Refuse a program that takes too long to run; it is what comes next in the file.

    It may make a tuple that holds another twice, which holds another twice, and so on; as the name
    of a tensor that is hashed, which never ends. What torch writes takes strings, classes and
    results again from what it has made before, and no tuples.
    """
    if size > MAX_PROGRAM_BYTES:
        told = f"a pickle of {size:,} bytes; no more than {MAX_PROGRAM_BYTES:,} are read"
        raise CheckpointError(path, f"has {told}; {ADVICE}")
    plain: set[int] = set()
    again, last = 0, ""
    for operation, argument, _ in pickletools.genops(file.read(size)):
        if "PUT" in operation.name and last in SHARED:
            plain.add(int(argument or 0))
        elif "GET" in operation.name:
            again += int(argument or 0) not in plain
        last = operation.name
    if again > MAX_AGAIN:
        raise CheckpointError(path, f"holds the same values again and again; {ADVICE}")


def _load_without_data(path: Path) -> Any:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with warnings.catch_warnings(), FakeTensorMode():
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # what torch raises on a broken pickle is anything at all
        code = FORBIDDEN.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise CheckpointError(
                path, f"holds more than tensors ({code[1]}), and reading that could run code"
            ) from error
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            path, f"is not a PyTorch checkpoint of plain tensors ({first}); {ADVICE}"
        ) from error


def _tensor(path: Path, name: Any, tensor: Any, records: Mapping[int, int]) -> StoredTensor:
    import torch

    if not is_name(name):
        raise CheckpointError(path, f"has {short(name)} for the name of a tensor; {ADVICE}")
    if not isinstance(tensor, torch.Tensor):
        kind = type(tensor).__name__
        raise CheckpointError(path, f"{short(name)} is a {kind}, not a tensor; {ADVICE}")
    plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_neg()
    storage: Any = tensor.untyped_storage() if plain else None
    base = getattr(storage, "_checkpoint_offset", None)
    if base is None:
        raise CheckpointError(
            path, f"tensor {short(name)} is not stored as plain numbers; {ADVICE}"
        )
    dtype = _dtype(path, name, tensor)
    # torch only reckons where a storage lies, and enlarges it to hold whatever a tensor claims.
    if records.get(base) != storage.nbytes():
        raise CheckpointError(
            path,
            f"tensor {short(name)} reaches beyond its data, or another program than torch packed "
            f"the file; {ADVICE}",
        )
    shape = tuple(tensor.shape)
    # A stride along one element leads nowhere, and may be too large for NumPy.
    strides = tuple(s if n > 1 else 0 for n, s in zip(shape, tensor.stride(), strict=True))
    first = int(tensor.storage_offset())
    end = (first + _reach(shape, strides)) * dtype.itemsize
    if end > storage.nbytes() or min(strides, default=0) < 0 or not is_possible(shape, dtype):
        raise CheckpointError(path, f"tensor {short(name)} reaches beyond its data")
    offset = base + first * dtype.itemsize
    packed = tensor.is_contiguous()
    return StoredTensor(name, dtype, shape, path, offset, None if packed else strides)


def _reach(shape: Shape, strides: Shape) -> int:
    """Elements from the first to the last of a strided tensor, both counted."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _dtype(path: Path, name: str, tensor: torch.Tensor) -> DType:
    import torch

    known = {
        torch.float64: DType.F64,
        torch.float32: DType.F32,
        torch.float16: DType.F16,
        torch.bfloat16: DType.BF16,
        torch.int64: DType.I64,
        torch.int32: DType.I32,
        torch.int16: DType.I16,
        torch.int8: DType.I8,
        torch.uint8: DType.U8,
        torch.bool: DType.BOOL,
    }
    if tensor.dtype not in known:
        raise CheckpointError(path, f"tensor {short(name)} has the unsupported {tensor.dtype}")
    return known[tensor.dtype]
