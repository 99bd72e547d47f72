"""CMA-ES over a few bounded parameters of any method, for what has no gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import UsageError
from .box import Box
from .specs import Doubles, Evaluation, Proposal

SPREAD = 0.3
"""The first standard deviation, in parts of a parameter's range."""


class Evolving:
    """Covariance matrix adaptation, by the package `cma`; see `Strategy`.

    Source: Hansen 2016, arXiv 1604.00772. All it draws comes from the seed, so that its state is
    the list of what it was told: a search that continues asks for the same points again.
    """

    def __init__(self, box: Box, evaluations: int, seed: int):
        """Set up the search.

        Args:
            box: where it searches.
            evaluations: so many points are judged.
            seed: of all draws.

        Raises:
            UsageError: when the package `cma` is missing.
        """
        try:
            import cma
        except ImportError as error:
            raise UsageError("CMA-ES needs `pip install 'mergekit_embed[search]'`") from error
        self._box, self._evaluations = box, evaluations
        self._values: list[float] = []
        random = np.random.default_rng(seed)
        options = {
            "bounds": [0.0, 1.0],
            "randn": lambda *shape: random.standard_normal(shape),
            "seed": float("nan"),  # leaves NumPy's own generator alone
            "verbose": -9,
        }
        self._evolution: Any = cma.CMAEvolutionStrategy(self._box.start(), SPREAD, options)
        self._population: list[Doubles] = []
        self._told: list[float] = []

    @property
    def ended(self) -> str:
        """See `Strategy`."""
        return "all evaluations were made"

    def propose(self) -> Proposal | None:
        """See `Strategy`: the start, then one population after the other."""
        done = len(self._values)
        if done >= self._evaluations:
            return None
        if done == 0:
            return Proposal(self._box.point(self._box.start()), label="start")
        if not self._population:
            self._population = list(self._evolution.ask())
        return Proposal(self._box.point(self._population[len(self._told)]), label=f"point {done}")

    def tell(self, evaluation: Evaluation) -> None:
        """See `Strategy`; what is not finite is worse than all of its population."""
        self._values.append(evaluation.value)
        if len(self._values) == 1:
            return
        self._told.append(evaluation.value)
        if len(self._told) == len(self._population):
            finite = [value for value in self._told if math.isfinite(value)]
            worst = max(finite, default=0.0) + 1.0
            values = [value if math.isfinite(value) else worst for value in self._told]
            self._evolution.tell(self._population, values)
            self._population, self._told = [], []

    def state(self) -> dict[str, Any]:
        """See `Strategy`."""
        return {"values": [value if math.isfinite(value) else None for value in self._values]}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Strategy`: asks for every point again, and tells what was known of it."""
        for value in state["values"]:
            self.propose()
            self.tell(Evaluation(math.nan if value is None else value))
