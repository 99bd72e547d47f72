"""What a search makes small: a loss on batches, and a judgement of the model as it stands."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor

from ..train.data import Dataset
from ..train.draws import key_of, shuffled
from ..train.examples import Example, Examples, columns_of, label_of
from ..train.models import prompts
from ..train.objectives import built
from ..train.schedules import Batch
from .probe import ProbeSet
from .specs import Evaluation


class Objective(Protocol):
    """Measures the model where it stands; small is good."""

    def step(self, number: int) -> float:
        """The loss of the batch of this step; its gradient is left in the model's parameters."""

    def judge(self) -> Evaluation:
        """What the model is worth, the same whenever it stands at the same point."""

    def start_from(self, tasks: Mapping[str, float]) -> None:
        """Go on with a search whose first point had these values in its tasks."""


@dataclass(frozen=True)
class Tokens:
    """A batch as the model takes it: features of every column of texts, and labels.

    Kept small: whole numbers as 32 bits.
    """

    name: str
    columns: tuple[Mapping[str, Any], ...]
    labels: Tensor | None

    def on(self, device: torch.device) -> tuple[list[dict[str, Any]], Tensor | None]:
        """Features and labels for the loss."""
        columns = [
            batch_to_device({key: _wide(value) for key, value in one.items()}, device)
            for one in self.columns
        ]
        return columns, None if self.labels is None else self.labels.to(device)


class ProbeLoss:
    """The loss that each data set is trained with, on batches that are tokenised once.

    Losses of different kinds are not alike: CoSENT may be 9 where InfoNCE is 0.2, and a plain mean
    would give all for the first. So, unless asked otherwise, every task counts the same, and its
    loss is a multiple of what it was at the first point that is judged. The model is as when it
    embeds, without dropout.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        datasets: Mapping[str, Dataset],
        probe: ProbeSet,
        seed: int,
        *,
        balanced: bool = True,
    ):
        """Tokenise the probe set.

        Args:
            model: that moves.
            datasets: by name.
            probe: their rows and batches.
            seed: of the order of batches, and of losses that draw.
            balanced: whether tasks count alike; otherwise batches do, with losses as they are.

        Raises:
            UsageError: when a loss does not suit the model.
            DataError: when rows are not what they were, or lack what their loss needs.
        """
        self._device, self._seed = model.device, seed
        self._losses = {
            name: built(dataset.spec.loss, model, dataset.spec.positives).to(model.device)
            for name, dataset in datasets.items()
        }
        self._tasks = {name: dataset.spec.task for name, dataset in datasets.items()}
        examples = {name: Examples(one, probe.rows, 0) for name, one in datasets.items()}
        once = {
            id(batch): _tokenised(model, examples[batch.names[0]], batch)
            for batch in {id(batch): batch for batch in (*probe.taught, *probe.judged)}.values()
        }
        self._taught = [once[id(batch)] for batch in probe.taught]
        self._judged = [once[id(batch)] for batch in probe.judged]
        self._model = model
        self._batches = Counter(self._tasks[one.name] for one in self._taught)
        self._balanced = balanced
        self._weights: dict[str, float] | None = None

    def start_from(self, tasks: Mapping[str, float]) -> None:
        """See `Objective`; a task whose loss is 0 from the start counts as it is."""
        if self._weights is None and tasks:
            self._weights = {task: 1.0 / loss if loss > 0 else 1.0 for task, loss in tasks.items()}

    def step(self, number: int) -> float:
        """See `Objective`. Every epoch goes through all batches in another order."""
        epoch, place = divmod(number, len(self._taught))
        identities = np.arange(len(self._taught), dtype=np.uint64)
        order = shuffled(key_of("search", self._seed, epoch), identities)
        torch.manual_seed(key_of("step", self._seed, number) % 2**63)  # of losses that draw
        self._model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            batch = self._taught[order[place]]
            loss = self._loss(batch) * self._share(self._tasks[batch.name])
            if bool(loss.isfinite()):
                torch.autograd.backward(loss)
        return float(loss.detach())

    @torch.no_grad()
    def judge(self) -> Evaluation:
        """See `Objective`: the mean over batches, and by task."""
        torch.manual_seed(key_of("judge", self._seed) % 2**63)
        found = [(self._tasks[one.name], float(self._loss(one))) for one in self._judged]
        tasks = {task: [loss for name, loss in found if name == task] for task, _ in found}
        means = {task: sum(own) / len(own) for task, own in tasks.items()}
        if not self._balanced:
            return Evaluation(sum(loss for _, loss in found) / len(found), tasks=means)
        if all(math.isfinite(loss) for loss in means.values()):
            self.start_from(means)
        weights = self._weights or {}
        values = [weights.get(task, 1.0) * loss for task, loss in means.items()]
        return Evaluation(sum(values) / len(values), tasks=means)

    def _share(self, task: str) -> float:
        """What the loss of a batch is multiplied by, so that steps mean what is judged."""
        if not self._balanced:
            return 1.0
        even = self._batches.total() / (len(self._batches) * self._batches[task])
        return even * (self._weights or {}).get(task, 1.0)

    def _loss(self, batch: Tokens) -> Tensor:
        columns, labels = batch.on(self._device)
        loss: Tensor = self._losses[batch.name](columns, labels)
        return loss


def _tokenised(model: SentenceTransformer, examples: Examples, batch: Batch) -> Tokens:
    dataset = examples.dataset
    rows: Sequence[Example] = [examples[int(number)] for number in batch.numbers]
    before = prompts(model, dataset)
    columns = []
    for column in columns_of(dataset):
        texts = [str(row[column]) for row in rows]
        features = model.preprocess(texts, prompt=before[column] or None)
        columns.append({key: _narrow(value) for key, value in features.items()})
    label = label_of(dataset)
    labels = None if label is None else torch.tensor([row[label] for row in rows])
    return Tokens(dataset.spec.name, tuple(columns), labels)


def _narrow(value: Any) -> Any:
    whole = isinstance(value, Tensor) and value.dtype == torch.int64
    return value.to(torch.int32) if whole else value


def _wide(value: Any) -> Any:
    whole = isinstance(value, Tensor) and value.dtype == torch.int32
    return value.to(torch.int64) if whole else value
