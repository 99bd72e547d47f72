"""Parameters within bounds: a box, whose points are told by parts of its sides."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .specs import Doubles, Point


class Box:
    """The least and the most of every parameter; `weight` is one for each member."""

    def __init__(self, bounds: Mapping[str, tuple[float, float]], start: Point):
        """Set up the box.

        Args:
            bounds: by the parameter's name.
            start: where a search begins, the middle of the bounds for what it does not say.
        """
        self._bounds, self._start = dict(bounds), start

    @property
    def sides(self) -> list[str]:
        """What each number of a point is called."""
        count = self._start.weights.shape[1]
        found: list[str] = []
        for name in self._bounds:
            found += [f"weight {index}" for index in range(count)] if name == "weight" else [name]
        return found

    def start(self) -> Doubles:
        """The start in parts of the sides, float64 (sides,) from 0 to 1."""
        found = []
        for name, (least, most) in self._bounds.items():
            weights = self._start.weights[0].tolist()
            middle = (least + most) / 2
            own = weights if name == "weight" else [self._start.others.get(name, middle)]
            found += [min(max((value - least) / (most - least), 0.0), 1.0) for value in own]
        return np.array(found)

    def point(self, parts: Doubles) -> Point:
        """What parts of the sides stand for."""
        left = parts.tolist()
        weights, others = self._start.weights, dict(self._start.others)
        for name, (least, most) in self._bounds.items():
            count = weights.shape[1] if name == "weight" else 1
            own = [least + (most - least) * part for part in left[:count]]
            left = left[count:]
            if name == "weight":
                weights = np.array([own])
            else:
                others[name] = own[0]
        return Point(weights, self._start.factor, others)
