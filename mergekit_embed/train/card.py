"""The model card of a member: that of sentence-transformers, from what the plan says.

Texts of the data, paths and the names of people have no place in it: members are given away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.model_card import (
    SentenceTransformerModelCardCallback,
)
from sentence_transformers.util import fullname
from torch import nn

from .bags import Member
from .data import Dataset
from .examples import columns_of
from .specs import TrainingPlan


class Card(SentenceTransformerModelCardCallback):
    """Leaves to `describe` what the library would gather of data and arguments as it trains."""

    def on_init_end(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is known yet."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The arguments are ours; the plan says more."""

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """The log has it, also that of an earlier run."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """As `on_evaluate`."""


def describe(
    model: SentenceTransformer,
    plan: TrainingPlan,
    member: Member,
    datasets: Mapping[str, Dataset],
    losses: Mapping[str, nn.Module],
    base_name: str,
) -> None:
    """Fill in what a model's card says of how it was trained.

    Args:
        model: the model.
        plan: how it was trained.
        member: which member it is.
        datasets: by name.
        losses: the loss of each data set.
        base_name: the base's Hub id and revision, or the name of its folder.
    """
    card = model.model_card_data
    card.add_tags("generated_from_trainer")
    hub, _, revision = base_name.partition("@")
    if revision:
        card.base_model, card.base_model_revision = hub, revision
    card.model_name = f"{member.name}, trained from {base_name}"
    card.set_losses(list({id(loss): loss for loss in losses.values()}.values()))
    card.train_datasets = [
        _data(datasets[name], len(rows), losses[name]) for name, rows in member.rows.items()
    ]
    card.add_tags(f"dataset_size:{member.total}")
    settings = {key: value for key, value in asdict(plan.training).items() if value is not None}
    settings["epochs"] = member.spec.epochs
    settings |= {"schedule": plan.order.name, "seed": member.spec.seed}
    settings |= {
        f"lora_{key}": value for key, value in (asdict(plan.lora) if plan.lora else {}).items()
    }
    card.all_hyperparameters = settings


def tell_curve(model: SentenceTransformer, curve: Sequence[Mapping[str, float]]) -> None:
    """Add the losses of a run, as `record` has them, to a model's card."""
    model.model_card_data.training_logs = [
        {"Epoch": point["epoch"], "Step": point["step"], "Training Loss": point["loss"]}
        for point in curve
    ]


def _data(dataset: Dataset, rows: int, loss: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": dataset.spec.name,
        "size": rows,
        "columns": [f"<code>{column}</code>" for column in columns_of(dataset)],
        "loss": {"fullname": fullname(loss)},
    }
    configured = getattr(loss, "get_config_dict", None)
    if callable(configured):
        config = json.dumps(configured(), indent=4, default=_name_of)
        found["loss"]["config_code"] = "\n".join(f"  {line}" for line in _fenced(config))
    return found


def _fenced(code: str) -> list[str]:
    return ["```json", *code.splitlines(), "```"]


def _name_of(value: Any) -> str:
    """What stands in a card for what JSON cannot hold, such as a loss inside another."""
    return getattr(value, "__name__", type(value).__name__)
