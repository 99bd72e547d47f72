"""The algebra of merging: what each method computes, free of files and devices."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from functools import cache

from .consensus import (
    Above,
    Centre,
    Consensus,
    Drawn,
    DrawnByRank,
    Elementwise,
    FisherMean,
    Largest,
    MostVaried,
    Near,
    Outlying,
    Regression,
    Selection,
)
from .gram import Coefficients, Gram, normalised
from .notes import MergeWarning, note
from .registry import (
    GRANULARITIES,
    Groups,
    Members,
    Method,
    Param,
    Parameter,
    StatisticsKind,
    Unit,
    Weights,
    consensus,
    mixture,
    registered,
)

BUILT_IN = (
    "dare",
    "delta_guided",
    "fisher",
    "karcher",
    "linear",
    "model_stock",
    "multislerp",
    "ram",
    "regmean",
    "robust",
    "sce",
    "self_positioning",
    "slerp",
    "ties",
)
"""The modules of our own methods; importing one registers what it defines."""

for _module in BUILT_IN:
    importlib.import_module(f".{_module}", __name__)

ENTRY_POINTS = "mergekit_embed.methods"


@cache
def _load_entry_points() -> None:
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        entry_point.load()


def available() -> Mapping[str, Method]:
    """Every method by name: the built-in ones and those of installed packages."""
    _load_entry_points()
    return registered()


__all__ = [
    "GRANULARITIES",
    "Above",
    "Centre",
    "Coefficients",
    "Consensus",
    "Drawn",
    "DrawnByRank",
    "Elementwise",
    "FisherMean",
    "Gram",
    "Groups",
    "Largest",
    "Members",
    "MergeWarning",
    "Method",
    "MostVaried",
    "Near",
    "Outlying",
    "Param",
    "Parameter",
    "Regression",
    "Selection",
    "StatisticsKind",
    "Unit",
    "Weights",
    "available",
    "consensus",
    "mixture",
    "normalised",
    "note",
    "registered",
]
