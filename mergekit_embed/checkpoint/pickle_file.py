"""Reading `pytorch_model.bin` without running its pickle and without loading its data.

`torch.load(weights_only=True)` refuses anything but tensors, and under fake tensors it resolves
every storage to its offset in the (uncompressed) zip file. The data is then read like that of a
safetensors file.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dtypes import DType
from ..errors import CheckpointError
from .tensor import StoredTensor

if TYPE_CHECKING:
    import torch

ADVICE = "convert it with transformers' `save_pretrained`, which writes safetensors"


def read_pickle(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a PyTorch checkpoint, in the order of its state dict.

    Raises:
        CheckpointError: when it is not a zip-format checkpoint of plain tensors, or would run code.
    """
    _check_archive(path)
    state = _load_without_data(path)
    if not isinstance(state, Mapping):
        raise CheckpointError(path, f"holds a {type(state).__name__}, not a state dict; {ADVICE}")
    size = path.stat().st_size
    return {
        str(name): _tensor(path, str(name), tensor, size)
        for name, tensor in state.items()
        if tensor is not None
    }


def _check_archive(path: Path) -> None:
    try:
        if not zipfile.is_zipfile(path):
            raise CheckpointError(path, f"is truncated, or of PyTorch before 1.6; {ADVICE}")
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(path, f"holds compressed data ({entry.filename!r})")
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error


def _load_without_data(path: Path) -> Any:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with warnings.catch_warnings(), FakeTensorMode():
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        first = next((line for line in str(error).splitlines() if "GLOBAL" in line), "")
        raise CheckpointError(
            path, f"holds more than tensors, and reading that could run code. {first}".strip()
        ) from error
    except (RuntimeError, ValueError, KeyError, EOFError, TypeError, AttributeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(path, f"is not a readable PyTorch checkpoint: {first}") from error


def _tensor(path: Path, name: str, tensor: Any, size: int) -> StoredTensor:
    import torch

    if not isinstance(tensor, torch.Tensor):
        kind = type(tensor).__name__
        raise CheckpointError(path, f"{name!r} is a {kind}, not a tensor; {ADVICE}")
    dtype = _dtype(path, name, tensor)
    storage: Any = tensor.untyped_storage()
    base = getattr(storage, "_checkpoint_offset", None)
    if base is None or tensor.layout != torch.strided or tensor.is_quantized:
        raise CheckpointError(path, f"tensor {name!r} is not stored as plain numbers; {ADVICE}")
    offset = int(base) + int(tensor.storage_offset()) * dtype.itemsize
    contiguous = tensor.is_contiguous()
    reach = _reach(tuple(tensor.shape), tuple(tensor.stride())) * dtype.itemsize
    inside = int(tensor.storage_offset()) * dtype.itemsize + reach <= storage.nbytes()
    if not inside or offset + reach > size or min(tensor.stride(), default=0) < 0:
        raise CheckpointError(path, f"tensor {name!r} reaches beyond its data")
    strides = None if contiguous else tuple(tensor.stride())
    return StoredTensor(name, dtype, tuple(tensor.shape), path, offset, strides)


def _reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
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
        raise CheckpointError(path, f"tensor {name!r} has the unsupported type {tensor.dtype}")
    return known[tensor.dtype]
