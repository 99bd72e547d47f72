"""The folder of a PEFT adapter: what adapter_config.json says, and where the folder is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Shape, layout
from ..checkpoint.adapter import PICKLE, SAFETENSORS
from ..checkpoint.adapter_config import CONFIG
from ..dtypes import DType
from .destination import is_model
from .folding import NUMPY_TYPES, Doubles
from .staging import Staging, check_place, write_json


class Entry(NamedTuple):
    """A tensor to be written: its stored type, its shape, and its bytes."""

    dtype: DType
    shape: Shape
    raw: NDArray[np.uint8]


def entry(values: Doubles, dtype: DType = DType.F32) -> Entry:
    """Numbers to be stored as a type, each rounded once."""
    stored = np.ascontiguousarray(narrowed(values, dtype))
    return Entry(dtype, stored.shape, stored.reshape(-1).view(np.uint8))


def narrowed(values: Doubles, dtype: DType) -> NDArray[Any]:
    """Float64 numbers as a stored type, each rounded once to the nearest (ties to even).

    Returns:
        NumPy floats of that type; for bfloat16, which NumPy lacks, its bits as uint16.
    """
    if dtype is not DType.BF16:
        with np.errstate(over="ignore"):  # infinity is told by whoever writes it, by name
            return values.astype(NUMPY_TYPES[dtype])
    # Going over float32 would round twice. Rounded to odd, it keeps in its last bit that something
    # was lost, and the second rounding is the only one.
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    back = single.astype(np.float64)
    bits = single.view(np.uint32) - (np.abs(back) > np.abs(values))
    bits = np.where(back != values, bits | 1, bits)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def is_adapter(folder: Path) -> bool:
    """True for a folder that holds an adapter, and no model beside it."""
    weights = any((folder / name).is_file() for name in (SAFETENSORS, PICKLE))
    return weights and (folder / CONFIG).is_file() and not is_model(folder)


def check_adapter_place(
    output: Path, sources: Sequence[tuple[str, Path]], role: str, *, overwrite: bool
) -> None:
    """Refuse a place for an adapter that is taken, or that is one of the folders it is made from.

    Raises:
        OutputExistsError: saying what is there and what would replace it.
    """
    check_place(output, sources, role, "an adapter", is_adapter, overwrite=overwrite)


def write_adapter(
    staging: Staging, entries: Mapping[str, Entry], config: Mapping[str, object]
) -> None:
    """Write the files of an adapter whose tensors are in memory.

    Raises:
        OutputError: when they cannot be written.
    """
    header, offsets, size = layout({n: (e.dtype, e.shape) for n, e in entries.items()})
    with staging.explained():
        file = staging.create(SAFETENSORS, header, size)
        write_json(staging.folder / CONFIG, config)
    for name, offset in offsets.items():
        staging.put(file, offset, entries[name].raw)


def lora_config(
    base: str,
    ranks: Mapping[str, int],
    saved: Collection[str],
    *,
    biases: bool,
    fan_in_fan_out: bool,
    task: str | None,
) -> dict[str, object]:
    """adapter_config.json of factors whose product is added as it is: alpha is the rank.

    Args:
        base: what the base model is called.
        ranks: of the factors of every module, by its whole name.
        saved: the modules that are stored whole.
        biases: whether biases are stored by themselves.
        fan_in_fan_out: whether linear layers store (in, out).
        task: PEFT's `task_type`.
    """
    usual = max(ranks.values())
    other = {f"^{module}": rank for module, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "fan_in_fan_out": fan_in_fan_out,
        "init_lora_weights": True,
        "bias": "all" if biases else "none",
        "target_modules": list(ranks),
        "modules_to_save": sorted(saved) or None,
        "rank_pattern": other,
        "alpha_pattern": other,
    }


def module_of(name: str) -> str:
    """The module of a tensor: its name without the last part."""
    return name.rpartition(".")[0]


def savable(
    wanted: Collection[str], modules: Collection[str], adapted: Collection[str]
) -> set[str]:
    """The modules to save for the sake of those `wanted`.

    PEFT takes every module whose name ends as a saved one is called. A module is left out where
    that would also take one that has factors, or one that has modules in it.

    Args:
        wanted: modules with a tensor that is to be stored whole.
        modules: every module of the model that has tensors.
        adapted: the modules that have factors.
    """
    found: set[str] = set()
    for module in set(wanted) - {""}:
        alike = {other for other in modules if other.endswith(module)}
        inner = any(other.startswith(f"{one}.") for one in alike for other in modules)
        if not inner and not alike & set(adapted):
            found |= alike
    return found
