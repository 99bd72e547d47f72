"""From the order of batches to what a model takes: keys of rows, examples, columns of tokens.

A key says everything of an example: the epoch, the data set and the number of the row. So the same
keys give the same batch in whatever process, and whether or not the run was interrupted before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from .bags import Member
from .data import Dataset
from .examples import Example, Examples, columns_of, label_of
from .schedules import schedule, walk
from .specs import TrainingPlan


class Key(NamedTuple):
    """Which example: the epoch from 0, the data set's name, the row's number in it."""

    epoch: int
    dataset: str
    number: int


def steps_of(plan: TrainingPlan, member: Member, datasets: Mapping[str, Dataset]) -> int:
    """How many batches a member is trained on; every epoch has as many.

    Raises:
        UsageError: when no data set of the member has rows enough for one batch.
    """
    once = len(schedule(plan, member, datasets, 0))
    return plan.training.steps or member.spec.epochs * once


class Order(Sampler[list[Key]]):
    """Every batch of a member's training, in order: the keys of its rows.

    For several devices each global batch comes as that many equal pieces, one after the other:
    accelerate gives each process every n-th. The whole training is one epoch to the trainer, so
    that a place in the order is one number, also across our epochs.
    """

    batch_size = None
    """Data sets have batches of their own sizes; this tells accelerate so."""
    drop_last = True

    def __init__(
        self,
        plan: TrainingPlan,
        member: Member,
        datasets: Mapping[str, Dataset],
        devices: int,
    ):
        self._plan, self._member, self._datasets = plan, member, datasets
        self._devices = devices
        self._length = steps_of(plan, member, datasets) * devices

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[Key]]:
        for epoch, batch in walk(self._plan, self._member, self._datasets):
            for piece in batch.pieces(self._devices):
                yield [Key(epoch, name, number) for name, number in piece]


class Rows(TorchDataset[tuple[str, Example]]):
    """The examples of a member by their keys, each with the name of its data set."""

    def __init__(self, member: Member, datasets: Mapping[str, Dataset], size: int):
        """`size` is the number of examples in the whole training."""
        self._member, self._datasets, self._size = member, datasets, size
        self._open: dict[tuple[int, str], Examples] = {}

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: Key) -> tuple[str, Example]:
        epoch, name, number = key
        examples = self._open.get((epoch, name))
        if examples is None:
            # Batches come epoch by epoch; what is known of an earlier one is not needed again.
            self._open = {found: one for found, one in self._open.items() if found[0] == epoch}
            examples = Examples(self._datasets[name], self._member, epoch)
            self._open[epoch, name] = examples
        return name, examples[number]


class Columns:
    """Makes a batch of examples: for each column of texts its tokens, labels, and which loss.

    It does what the collator of sentence-transformers does, for rows of several data sets as well,
    of which each has prompts of its own.
    """

    def __init__(
        self,
        preprocess: Callable[..., Mapping[str, Any]],
        datasets: Mapping[str, Dataset],
        prompts: Mapping[str, Mapping[str, str]],
        losses: Mapping[str, str],
    ):
        """Prepare for some data sets.

        Args:
            preprocess: the model's; makes features of texts, and of a prompt before all of them.
            datasets: by name.
            prompts: what is put before the texts of a column, by data set and column.
            losses: what the trainer calls the loss of each data set.
        """
        self._preprocess = preprocess
        self._columns = {name: columns_of(dataset) for name, dataset in datasets.items()}
        self._labels = {name: label_of(dataset) for name, dataset in datasets.items()}
        self._prompts, self._losses = prompts, losses

    def __call__(self, rows: Sequence[tuple[str, Example]]) -> dict[str, Any]:
        """The features of each column, by `COLUMN_NAME` as the trainer takes them apart."""
        first = rows[0][0]
        batch: dict[str, Any] = {"dataset_name": self._losses[first]}
        label = self._labels[first]
        if label is not None:
            batch["label"] = torch.tensor([example[label] for _, example in rows])
        for column in self._columns[first]:
            prompts = [self._prompts[name].get(column, "") for name, _ in rows]
            texts = [str(example[column]) for _, example in rows]
            for key, value in self._features(texts, prompts).items():
                batch[f"{column}_{key}"] = value
        return batch

    def _features(self, texts: list[str], prompts: list[str]) -> Mapping[str, Any]:
        if len(set(prompts)) == 1:
            return self._preprocess(texts, prompt=prompts[0] or None)
        return self._preprocess([a + b for a, b in zip(prompts, texts, strict=True)])
