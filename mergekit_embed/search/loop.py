"""The loop of every search: propose, evaluate, tell, and remember the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..errors import NonFiniteError
from .objective import Objective
from .specs import Doubles, Evaluation, Point, Proposal
from .strategy import Strategy

SAVE_EVERY = 5.0
"""Seconds between two writings of what a search remembers."""


class Progress(Protocol):
    """Told how a search is getting on."""

    def judged(self, label: str, value: float, best: float) -> None:
        """A point was judged."""

    def stepped(self, number: int, loss: float) -> None:
        """A step of a descent was made."""


class Silent:
    """Progress that nobody watches."""

    def judged(self, label: str, value: float, best: float) -> None:
        """See `Progress.judged`."""

    def stepped(self, number: int, loss: float) -> None:
        """See `Progress.stepped`."""


@dataclass
class Trail:
    """What has happened so far; plain data, so that it survives a kill.

    Attributes:
        judged: every point that was judged, with its value; `steps`: the loss of every batch.
        best: the index of the best of `judged`; None before the first.
        seconds: that were spent, in all runs together.
    """

    judged: list[dict[str, Any]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    best: int | None = None
    seconds: float = 0.0
    stopped: str = ""

    @property
    def best_point(self) -> Point:
        """The best point that was judged."""
        assert self.best is not None
        return self.point(self.best)

    @property
    def best_value(self) -> float:
        """What it is worth; infinite before the first."""
        return math.inf if self.best is None else float(self.judged[self.best]["value"])

    @property
    def first_value(self) -> float:
        """What the start is worth; not a number when that is not finite."""
        value = self.judged[0]["value"]
        return math.nan if value is None else float(value)

    def point(self, number: int) -> Point:
        """A point that was judged."""
        told = self.judged[number]
        return Point(np.array(told["weights"]), np.array(told["factor"]), told["parameters"])

    def add(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Remember a judged point."""
        value = evaluation.value
        better = math.isfinite(value) and value < self.best_value
        self.judged.append(
            {
                "label": proposal.label,
                "value": value if math.isfinite(value) else None,
                "tasks": dict(evaluation.tasks) if math.isfinite(value) else {},
                "weights": proposal.point.weights.tolist(),
                "factor": proposal.point.factor.tolist(),
                "parameters": dict(proposal.point.others),
            }
        )
        if better:
            self.best = len(self.judged) - 1


Save = Callable[[dict[str, Any]], None]
"""Keeps what a search remembers."""


@dataclass
class Searching:
    """A search on its way.

    Attributes:
        move: puts the model at a point.
        pull: the gradient of the loss by the coefficients where it stands, float64 (C, K).
        save: is given the state now and then, and when the search is interrupted.
        limit: seconds after which it stops; None for never.
    """

    strategy: Strategy
    objective: Objective
    move: Callable[[Point], None]
    pull: Callable[[], Doubles]
    save: Save
    progress: Progress
    limit: float | None = None
    trail: Trail = field(default_factory=Trail)
    _standing: Point | None = None
    _safe: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Trail:
        """Go on until the strategy has nothing left to propose, or time is up.

        Raises:
            NonFiniteError: when no point that was judged has a finite value.
        """
        began, before = time.monotonic(), self.trail.seconds
        saved = began
        try:
            while (proposal := self.strategy.propose()) is not None:
                self._safe = self._marked()
                self.strategy.tell(self._evaluate(proposal))
                now = time.monotonic()
                self.trail.seconds = before + now - began
                if self.limit is not None and self.trail.seconds >= self.limit:
                    self.trail.stopped = "the time limit was reached"
                    break
                if now - saved >= SAVE_EVERY:
                    saved = now
                    self._safe = self._marked()
                    self.save(self.state())
        except BaseException as error:
            if self._safe:
                self.save(self.state())
                error.add_note("what was searched so far is kept; the same command continues")
            raise
        if self.trail.best is None:
            raise NonFiniteError(
                "no point that was judged has a finite value: the loss of the members themselves "
                "is not a number on this probe set; look at its texts, or at the members"
            )
        self.trail.stopped = self.trail.stopped or self.strategy.ended
        self._safe = self._marked()
        self.save(self.state())
        return self.trail

    def _marked(self) -> dict[str, Any]:
        """Where it is between two proposals: an interrupt may come at any moment in one."""
        trail = self.trail
        return {
            "strategy": self.strategy.state(),
            "judged": len(trail.judged),
            "steps": len(trail.steps),
            "best": trail.best,
        }

    def state(self) -> dict[str, Any]:
        """All that is needed to go on after the last proposal that was told of."""
        safe, trail = self._safe, self.trail
        steps = trail.steps[: safe["steps"]]
        return {
            "strategy": safe["strategy"],
            "judged": trail.judged[: safe["judged"]],
            "steps": [loss if math.isfinite(loss) else None for loss in steps],
            "best": safe["best"],
            "seconds": trail.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.strategy.restore(state["strategy"])
        steps = [math.nan if loss is None else loss for loss in state["steps"]]
        self.trail = Trail(state["judged"], steps, state["best"], state["seconds"])
        first: dict[str, float] = next(
            (one["tasks"] for one in state["judged"] if one["tasks"]), {}
        )
        self.objective.start_from(first)

    def stand(self, point: Point) -> None:
        """Put the model at a point, unless it is there."""
        if self._standing is not point:
            self.move(point)
            self._standing = point

    def _evaluate(self, proposal: Proposal) -> Evaluation:
        if not proposal.point.is_finite:
            return Evaluation(math.nan)
        self.stand(self._same(proposal.point))
        if proposal.descend:
            loss = self.objective.step(len(self.trail.steps))
            self.trail.steps.append(loss)
            self.progress.stepped(len(self.trail.steps), loss)
            if not math.isfinite(loss):
                return Evaluation(loss)
            return Evaluation(loss, gradient=self.pull())
        evaluation = self.objective.judge()
        self.trail.add(proposal, evaluation)
        self.progress.judged(proposal.label, evaluation.value, self.trail.best_value)
        return evaluation

    def _same(self, point: Point) -> Point:
        """The point where the model stands, if it is an equal one."""
        standing = self._standing
        return standing if standing is not None and standing.equals(point) else point
