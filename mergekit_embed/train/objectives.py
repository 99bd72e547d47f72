"""Which loss the rows of a kind are trained with, and what is wrong with one that a plan names."""

from __future__ import annotations

from ..errors import Problem
from .specs import Kind, Loss

DEFAULTS: dict[Kind, Loss] = {
    "retrieval": Loss("info_nce", {}),
    "pair": Loss("info_nce", {}),
    "classification": Loss("info_nce", {"negatives": "own"}),
    "clustering": Loss("info_nce", {"negatives": "own"}),
    "sts": Loss("cosent", {}),
}
"""BOOM's InfoNCE, with own negatives only where others of the batch may be alike; CoSENT for rows
with scores, which is our choice."""


def wrong_with(loss: Loss, kind: Kind) -> tuple[Problem, ...]:
    """Everything that is wrong with a loss for rows of this kind, found without torch.

    `where` is "" for the loss itself, else the parameter's name.
    """
    same = loss.name == DEFAULTS[kind].name
    scored = {DEFAULTS["sts"].name, "angle", "codiemb_sts"}
    if same or (loss.name in scored) == (kind == "sts"):
        return ()
    rows = "scores" if loss.name in scored else "positives"
    return (Problem("", f"{loss.name} needs rows with {rows}, which {kind} rows have not"),)
