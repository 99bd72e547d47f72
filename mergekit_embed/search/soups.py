"""Weights without a gradient: few-shot weights, greedy soup, forward selection."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .specs import Doubles, Evaluation, Point, Proposal


def point_of(weights: Doubles) -> Point:
    """One set of weights for the whole model, of float64 (K,)."""
    return Point(np.asarray(weights, dtype=np.float64)[None], np.ones(1))


class _Judging:
    """A strategy that is told values and remembers nothing else, so that state is their list.

    `labels` names the members.
    """

    def __init__(self, labels: list[str]):
        self._labels, self._values = labels, list[float]()

    @property
    def count(self) -> int:
        """How many members there are."""
        return len(self._labels)

    def tell(self, evaluation: Evaluation) -> None:
        """See `Strategy`; what is not finite is the worst."""
        self._values.append(evaluation.value if math.isfinite(evaluation.value) else math.inf)

    def state(self) -> dict[str, Any]:
        """See `Strategy`."""
        return {"values": [value if math.isfinite(value) else None for value in self._values]}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Strategy`."""
        self._values = [math.inf if value is None else value for value in state["values"]]

    def _alone(self, index: int) -> Proposal:
        return Proposal(point_of(np.eye(self.count)[index]), label=f"{self._labels[index]} alone")

    def _mean(self, chosen: list[int]) -> Proposal:
        """The mean of some members; one that is there twice counts twice."""
        weights = np.bincount(chosen, minlength=self.count) / len(chosen)
        if len(chosen) == 1:
            return self._alone(chosen[0])
        names = " + ".join(self._labels[index] for index in chosen)
        return Proposal(point_of(weights), label=names)

    def _order(self) -> list[int]:
        """The members by what they are worth alone, the best first."""
        return sorted(range(self.count), key=lambda index: self._values[index])


class FewShot(_Judging):
    """Weights `softmax(-value_k / T)` of what each member is worth by itself. See `Strategy`.

    Source: LM-Cocktail (arXiv 2311.13534), whose value is the loss on a few examples.
    """

    def __init__(self, labels: list[str], temperature: float):
        super().__init__(labels)
        self._temperature = temperature

    @property
    def ended(self) -> str:
        """See `Strategy`."""
        return "the weights follow from the members' own values"

    def propose(self) -> Proposal | None:
        """See `Strategy`: every member, then what they give together."""
        done = len(self._values)
        if done < self.count:
            return self._alone(done)
        if done > self.count:
            return None
        scaled = -np.array(self._values) / self._temperature
        if not np.isfinite(scaled).any():
            return None
        weights = np.exp(scaled - scaled.max())
        return Proposal(point_of(weights / weights.sum()), label="softmax of all")


class GreedySoup(_Judging):
    """Members joined in the order of their own worth, each kept if the mean is no worse with it.

    Source: Wortsman et al. 2022, arXiv 2203.05482, recipe 1. See `Strategy`.
    """

    @property
    def ended(self) -> str:
        """See `Strategy`."""
        return "every member was tried"

    def propose(self) -> Proposal | None:
        """See `Strategy`."""
        if len(self._values) < self.count:
            return self._alone(len(self._values))
        order = self._order()
        soup, best = [order[0]], self._values[order[0]]
        for index, value in zip(order[1:], self._values[self.count :], strict=False):
            if value <= best:
                soup, best = [*soup, index], value
        tried = len(self._values) - self.count
        return self._mean([*soup, order[1 + tried]]) if tried + 1 < self.count else None


class ForwardSelection(_Judging):
    """At every turn the member whose joining makes the mean best, until none makes it better.

    A member may join again, and so weigh more (Caruana et al. 2004, ensemble selection with
    replacement). See `Strategy`.
    """

    MOST = 20
    """Members of a mean, counted as often as they are in it."""

    @property
    def ended(self) -> str:
        """See `Strategy`."""
        return "no member makes the mean better"

    def propose(self) -> Proposal | None:
        """See `Strategy`."""
        soup: list[int] = []
        best = math.inf
        at = 0
        while at + self.count <= len(self._values):
            turn = self._values[at : at + self.count]
            winner = int(np.argmin(turn))
            if not turn[winner] < best or len(soup) == self.MOST:
                return None
            soup, best = [*soup, winner], turn[winner]
            at += self.count
        if len(soup) == self.MOST:
            return None
        return self._mean([*soup, len(self._values) - at])
