"""Compiling the kernels once for a machine, and whether that has been done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..dtypes import DType
from . import (
    Band,
    Combine,
    Draw,
    FisherWeights,
    Layout,
    Magnitude,
    RankedDraw,
    Variance,
)

MAIN = ("mixture", "block_moments", "consensus", "tally", "gather", "kept_sums")
"""The kernels that nearly every merge needs some of."""


def is_compiled() -> bool:
    """Whether the main kernels are in Numba's cache, as far as the names of its files tell.

    Where they are older than their source, or of another processor, Numba compiles them again.
    """
    folder = Path(__file__).parent / "__pycache__"
    return _has_all(folder) or _has_all(Path(_cache_folder()))


def _has_all(folder: Path) -> bool:
    return all(any(folder.glob(f"numba_*.{name}-*.nbi")) for name in MAIN)


def _cache_folder() -> str:
    """Where Numba puts them: beside their source, or elsewhere where that cannot be written."""
    from .numba_mixtures import mixture

    return str(mixture.stats.cache_path)


def compile_all(tell: Callable[[str], None] = lambda name: None) -> Path:
    """Compile every kernel by using it once; `tell` hears what comes next.

    Returns:
        the folder of the cache.
    """
    from .numba_backend import NumbaKernels

    kernels = NumbaKernels()
    one = kernels.load(np.zeros(8 * 2, np.uint8), DType.F64)
    layout, two, ones = Layout(2), [one, one], np.ones(2)
    combine = Combine(True, False, True, ones, None, ones, 1.0)
    draws = [Draw(1, 0, 0.5)] * 2
    tell("mixtures")
    kernels.mixture(two, None, np.full((1, 1, 2), 0.5), layout, DType.F32)
    kernels.block_moments(two, None, False)
    kernels.vector_moments(two, None, layout, False)
    tell("order statistics")
    for measure in (Magnitude(0), Variance()):
        kernels.histogram(two, one, measure, 0, 48)
        kernels.measured(two, one, measure, 0.0, 1.0)
        kernels.tally(two, one, measure, ones)
    tell("consensus")
    kernels.consensus(two, one, [Band(Magnitude(0), 0.0)] * 2, combine, DType.F32)
    kernels.consensus(two, one, [RankedDraw(1, 0, 2, 0.1, 0.9)] * 2, combine, DType.F32)
    kernels.kept_sums(two, one, draws, squares=True)
    kernels.shared_counts(two, one, draws)
    tell("other methods")
    kernels.centre(two, 0, DType.F32)
    kernels.near(one, one, 1.0, DType.F32)
    kernels.fisher_mean(two, two, FisherWeights(ones, ones, 0.0, False), DType.F32)
    kernels.is_finite(one)
    return Path(_cache_folder())
