"""What a search is compared with: the members alone, and merges that need no search."""

from __future__ import annotations

import numpy as np

from ..methods import Gram, available
from ..methods.notes import collected_notes
from .dev import DevTasks, Measured
from .prepare import Scene
from .specs import Doubles

FOUND = "found"
"""What a comparison calls the point that a search ends with."""

UNIFORM = "uniform"
MULTISLERP = "multislerp"


def alone(scene: Scene, tasks: DevTasks) -> dict[str, Measured]:
    """What the members reach by themselves; the model moves."""
    found: dict[str, Measured] = {}
    for label, weights in zip(scene.labels, np.eye(len(scene.labels)), strict=True):
        scene.position.put(np.tile(weights, (len(scene.jobs), 1)))
        found[label] = tasks.measured(scene.embedder.model)
    return found


def plain_merges(scene: Scene) -> dict[str, Doubles]:
    """The coefficients of merges that need no search, float64 (T, K): equal weights."""
    count = len(scene.labels)
    uniform = np.full((len(scene.jobs), count), 1.0 / count)
    multislerp = available()["multislerp"].function
    with collected_notes():  # vectors that cancel are the members' own affair
        found = [multislerp(Gram(gram), weight=np.ones(count)) for gram in scene.grams]
    return {UNIFORM: uniform, MULTISLERP: np.stack(found)}
