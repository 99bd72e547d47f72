"""A folder of statistics: what `boom stats` measured of a model, described by headers alone.

`gram.safetensors` holds, under the name of each linear layer's weight, the Gram matrix of the
layer's inputs; `fisher.safetensors`, under the name of each parameter, the diagonal of the Fisher
matrix. Names are those of the model's tensors, with the component's folder in front where there is
one. `statistics.json` says what was measured, and how.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .safetensors_file import read_header
from .tensor import StoredTensor, short
from .weights import read_object

SUMMARY = "statistics.json"

FILES = {"fisher": "fisher.safetensors", "gram": "gram.safetensors"}
"""The file of each kind of statistics."""


@dataclass(frozen=True)
class Statistics:
    """What was measured of one model.

    Attributes:
        tensors: by the names of the model's tensors.
        transposed: names of the weights that are stored (in, out).
        norm: L2 norm over all tensors; None for Gram matrices.
    """

    root: Path
    tensors: Mapping[str, StoredTensor] = field(repr=False)
    transposed: frozenset[str] = frozenset()
    norm: float | None = None


def open_statistics(root: Path, kind: str) -> Statistics:
    """Describe the statistics in a folder: `kind` is "fisher" or "gram".

    Raises:
        CheckpointError: when there are none of this kind, or a file is broken.
    """
    file = root / FILES[kind]
    if not file.is_file():
        found = [name for name, other in FILES.items() if (root / other).is_file()]
        holds = f"; it holds {found[0]} statistics" if found else ""
        raise CheckpointError(
            root, f"holds no {FILES[kind]}{holds}. Measure them with `boom stats MODEL --{kind}`"
        )
    try:
        summary = read_object(root / SUMMARY).get(kind)
    except OSError as error:
        raise CheckpointError(root, f"cannot be read: {error.strerror or error}") from error
    if not isinstance(summary, dict):
        raise CheckpointError(root, f"holds no {SUMMARY} that tells of its {FILES[kind]}")
    tensors = read_header(file)
    for name, tensor in tensors.items():
        if not tensor.dtype.is_float:
            raise CheckpointError(file, f"tensor {short(name)}: {tensor.dtype} is no statistic")
    if kind == "gram":
        return Statistics(root, tensors, _names(root, summary.get("transposed", [])))
    return Statistics(root, tensors, norm=_norm(root, summary.get("norm")))


def _names(root: Path, listed: Any) -> frozenset[str]:
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise CheckpointError(root / SUMMARY, "`transposed` must be a list of tensors")
    return frozenset(listed)


def _norm(root: Path, norm: Any) -> float:
    number = isinstance(norm, int | float) and not isinstance(norm, bool)
    if not number or not 0.0 < norm <= sys.float_info.max:
        raise CheckpointError(root / SUMMARY, f"`norm` must be above 0, not {short(norm)}")
    return float(norm)
