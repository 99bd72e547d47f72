"""Descent along the gradient: Self-Positioning, and linear coefficients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from .mapping import Mapping, Raw, gradients
from .specs import Descent, Evaluation, Point, Proposal


class Descending:
    """Steps of SGD or Adam, with a judgement every so many. See `Strategy`."""

    def __init__(self, settings: Descent, mapping: Mapping, start: Point):
        self._settings, self._mapping = settings, mapping
        self._raw: Raw = [one.detach() for one in mapping.start(start)]
        self._optimizer = _optimizer(settings, self._raw)
        self._step = 0
        self._judged_at = -1
        self._best = math.inf
        self._stale = 0
        self._ended = ""

    @property
    def ended(self) -> str:
        """See `Strategy`."""
        return self._ended

    def propose(self) -> Proposal | None:
        """See `Strategy`: judged at the start, every so many steps, and at the end."""
        if self._ended:
            return None
        point = self._mapping.point(self._raw)
        last = self._step == self._settings.steps
        due = self._step % self._settings.evaluate_every == 0 or last
        if due and self._judged_at != self._step:
            return Proposal(point, label=f"step {self._step}")
        return Proposal(point, descend=True, label=f"step {self._step}")

    def tell(self, evaluation: Evaluation) -> None:
        """See `Strategy`."""
        if not math.isfinite(evaluation.value):
            self._ended = f"the loss is not finite after step {self._step}; try a lower rate"
        elif evaluation.gradient is None:
            self._judge(evaluation.value)
        else:
            self._descend(torch.from_numpy(evaluation.gradient))

    def _judge(self, value: float) -> None:
        self._judged_at = self._step
        better = value < self._best
        self._best = min(self._best, value)
        self._stale = 0 if better else self._stale + 1
        if self._step == self._settings.steps:
            self._ended = "all steps were made"
        elif self._stale >= self._settings.patience:
            self._ended = f"{self._stale} judgements brought nothing better"

    def _descend(self, by_coefficients: Tensor) -> None:
        rate = self._settings.learning_rate * falling(
            self._settings.schedule, self._step / self._settings.steps
        )
        found = gradients(self._mapping, self._raw, by_coefficients)
        if not all(bool(one.isfinite().all()) for one in found):
            self._ended = f"the gradient is not finite after step {self._step}; try a lower rate"
            return
        for one, gradient in zip(self._raw, found, strict=True):
            one.grad = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        # A gradient that stays moves SGD by so much a step, once momentum has gathered.
        heavy = self._settings.momentum if self._settings.optimizer == "sgd" else 0.0
        self._mapping.shrink(self._raw, rate / (1.0 - heavy))
        self._step += 1

    def state(self) -> dict[str, Any]:
        """See `Strategy`."""
        return {
            "raw": [one.tolist() for one in self._raw],
            "optimizer": _plain(self._optimizer.state_dict()["state"]),
            "step": self._step,
            "judged_at": self._judged_at,
            "best": self._best if math.isfinite(self._best) else None,
            "stale": self._stale,
            "ended": self._ended,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See `Strategy`."""
        for one, values in zip(self._raw, state["raw"], strict=True):
            one.copy_(torch.tensor(values, dtype=torch.float64))
        whole = self._optimizer.state_dict()
        whole["state"] = {int(key): _tensors(value) for key, value in state["optimizer"].items()}
        self._optimizer.load_state_dict(whole)
        self._step, self._judged_at = state["step"], state["judged_at"]
        self._best = math.inf if state["best"] is None else state["best"]
        self._stale, self._ended = state["stale"], state["ended"]


def _optimizer(settings: Descent, raw: Raw) -> Optimizer:
    if settings.optimizer == "adam":
        return Adam(raw, lr=settings.learning_rate)
    return SGD(raw, lr=settings.learning_rate, momentum=settings.momentum)


def falling(schedule: str, progress: float) -> float:
    """The part of the learning rate that is left after this part of the steps."""
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return (1.0 + math.cos(math.pi * progress)) / 2.0
    return 1.0 - progress


def _plain(state: dict[int, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        str(key): {
            name: value.tolist() if isinstance(value, Tensor) else value
            for name, value in one.items()
        }
        for key, one in state.items()
    }


def _tensors(one: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's memory of one tensor; counts of steps are float32, as torch has them."""
    found: dict[str, Any] = {}
    for name, value in one.items():
        dtype = torch.float32 if name == "step" else torch.float64
        found[name] = None if value is None else torch.tensor(value, dtype=dtype)
    return found
