"""How points are found: a strategy proposes one, is told what became of it, and proposes the next.

A strategy knows numbers alone: no model and no data. What it has to remember is plain data, so that
a search that was killed continues.
"""

from __future__ import annotations

from typing import Any, Protocol

from .specs import Evaluation, Proposal


class Strategy(Protocol):
    """Proposes points until it has none left."""

    def propose(self) -> Proposal | None:
        """The next point; the same again until it is told of it. None at the end."""

    def tell(self, evaluation: Evaluation) -> None:
        """What is known of the point that was proposed last."""

    def state(self) -> dict[str, Any]:
        """All that it remembers, as JSON can hold it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""

    @property
    def ended(self) -> str:
        """Why there is nothing left to propose, in words."""
