"""Points within bounds by optuna, for one value or for several that are traded off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from .box import Box
from .specs import Evaluation, Proposal


class Sampling:
    """Tree-structured Parzen estimators, by the package `optuna`; see `Strategy`.

    Source: Watanabe 2023, arXiv 2304.11127; for several values, Ozaki et al. 2022 (JAIR 73). All
    it draws comes from the seed, so that its state is the list of what it was told: a search that
    continues asks for the same points again.
    """

    def __init__(
        self, box: Box, evaluations: int, seed: int, axes: Mapping[str, Sequence[str]], sign: float
    ):
        """Set up the search.

        Args:
            box: where it searches.
            evaluations: so many points are judged.
            seed: of all draws.
            axes: tasks by the name of their axis; none for the value of a point alone.
            sign: 1 where small values of tasks are good, -1 where large ones are.

        Raises:
            UsageError: when the package `optuna` is missing.
        """
        try:
            import optuna
        except ImportError as error:
            raise UsageError("optuna needs `pip install 'mergekit_embed[search]'`") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._box, self._evaluations, self._axes, self._sign = box, evaluations, dict(axes), sign
        self._told: list[list[float] | None] = []
        self._study = optuna.create_study(
            directions=["minimize"] * max(len(self._axes), 1),
            sampler=optuna.samplers.TPESampler(seed=seed),
        )
        self._failed = optuna.trial.TrialState.FAIL
        side = optuna.distributions.FloatDistribution(0.0, 1.0)
        self._sides: dict[str, Any] = dict.fromkeys(box.sides, side)
        self._study.enqueue_trial(dict(zip(box.sides, box.start().tolist(), strict=True)))
        self._trial: Any = None

    @property
    def ended(self) -> str:
        """See `Strategy`."""
        return "all evaluations were made"

    def propose(self) -> Proposal | None:
        """See `Strategy`: the start, then what the estimators draw."""
        done = len(self._told)
        if done >= self._evaluations:
            return None
        if self._trial is None:
            self._trial = self._study.ask(self._sides)
        parts = np.array([self._trial.params[side] for side in self._sides])
        return Proposal(self._box.point(parts), label=f"point {done}" if done else "start")

    def tell(self, evaluation: Evaluation) -> None:
        """See `Strategy`; what is not finite is passed over."""
        self._learn(self._values(evaluation) if math.isfinite(evaluation.value) else None)

    def _values(self, evaluation: Evaluation) -> list[float]:
        if not self._axes:
            return [evaluation.value]
        own = along(self._axes, evaluation.tasks)
        return [self._sign * value for value in own.values()]

    def _learn(self, values: list[float] | None) -> None:
        if values is None:
            self._study.tell(self._trial, state=self._failed)
        else:
            self._study.tell(self._trial, values)
        self._told.append(values)
        self._trial = None

    def state(self) -> dict[str, Any]:
        """See `Strategy`."""
        return {"told": self._told}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Strategy`: asks for every point again, and tells what was known of it."""
        for values in state["told"]:
            self.propose()
            self._learn(values)


def along(axes: Mapping[str, Sequence[str]], tasks: Mapping[str, float]) -> dict[str, float]:
    """The mean of the tasks of every axis."""
    return {name: sum(tasks[task] for task in own) / len(own) for name, own in axes.items()}


def front(points: Sequence[Mapping[str, float] | None], sign: float) -> list[int]:
    """The points that no other beats: those to which none is as good on all axes and better on one.

    Args:
        points: values by axis; None for a point without finite values.
        sign: 1 where small values are good, -1 where large ones are.

    Returns:
        the numbers of these points, by their value on the first axis, the best first; of points
        that are equal on all axes the first.
    """
    axes = next((list(one) for one in points if one), [])
    known = [(i, [sign * one[axis] for axis in axes]) for i, one in enumerate(points) if one]
    found: list[tuple[list[float], int]] = []
    for number, values in known:
        beaten = any(
            all(a <= b for a, b in zip(other, values, strict=True))
            and (other != values or rival < number)
            for rival, other in known
            if rival != number
        )
        if not beaten:
            found.append((values, number))
    return [number for _, number in sorted(found)]
