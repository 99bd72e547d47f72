"""Losses in several processes: `python -m train.processes RANK WORLD FOLDER MODEL`.

Every process takes its share of the rows and writes, for each case, its loss and the parameters'
gradients after DistributedDataParallel has averaged them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mergekit_embed.train import losses
from mergekit_embed.train.losses import mixing

from .embeddings import Linear, columns, features

ROWS = 6
CLASSES = torch.tensor([0, 1, 0, 2, 1, 3])
SCORES = torch.tensor([3.0, 0.5, 3.0, 5.0, 1.0, 0.5])

Case = tuple[Callable[[Any], Any], int, Tensor]


def _named(name: str, count: int, labels: Tensor, **parameters: Any) -> Case:
    return lambda model: losses.named(name).build(model, **parameters), count, labels


def _wrapped(wrapper: str, inner: Case, **parameters: Any) -> Case:
    build, count, labels = inner
    return (
        lambda model: losses.wrapper(wrapper).build(model, build(model), **parameters),
        count,
        labels,
    )


INFO_NCE = _named("info_nce", 4, CLASSES, temperature=0.2)
CASES: dict[str, Case] = {
    "plain": INFO_NCE,
    "no negatives": _named("info_nce", 2, CLASSES, temperature=0.2),
    "two positives": _named("info_nce", 6, CLASSES, positives=2, temperature=0.2),
    "own": _named("info_nce", 4, CLASSES, negatives="own"),
    "hard": _named("info_nce", 4, CLASSES, negatives="hard", temperature=0.2),
    "class": _named("info_nce", 4, CLASSES, negatives="class", temperature=0.2),
    "all weights": _named(
        "info_nce",
        4,
        CLASSES,
        temperature=0.2,
        false_negative_margin=0.1,
        hardness=5.0,
        focal=0.5,
        mixed=2,
    ),
    "cached": _named(
        "info_nce", 6, CLASSES, positives=2, temperature=0.2, focal=0.5, mini_batch_size=2
    ),
    "multiple_negatives": _named("multiple_negatives", 4, CLASSES, compare="all"),
    "codiemb_sts": _named("codiemb_sts", 2, SCORES),
    "codiemb_sts cached": _named("codiemb_sts", 2, SCORES, mini_batch_size=2),
    "cosent": _named("cosent", 2, SCORES),
    "cosent cached": _named("cosent", 2, SCORES, mini_batch_size=2),
    "angle": _named("angle", 2, SCORES),
    "matryoshka": _wrapped("matryoshka", INFO_NCE, dims=[2, 6], weights=[0.5, 1]),
    "matryoshka cached": _wrapped(
        "matryoshka", _named("info_nce", 4, CLASSES, mini_batch_size=2), dims=[2, 6]
    ),
}
SENTENCES = [
    ("the quick brown fox", "a fox that is quick"),
    ("the lazy dog", "a slow cat"),
    ("snow in winter", "winter and snow"),
    ("a boat on the sea", "the ship and the lake"),
]


def same_draws(mixed: int, negatives: int, rows: int, like: Tensor) -> mixing.Draws:
    """What each row draws, however the rows are spread over processes."""
    first = torch.arange(mixed)[:, None].expand(mixed, rows) % negatives
    return mixing.Draws(first, (first + 1) % negatives, torch.full((mixed, rows), 0.3).to(like))


def give(loss: Any, model: Any) -> None:
    """Put the wrapped model into a loss, as the trainer does."""
    loss.model = model
    if isinstance(getattr(loss, "loss", None), torch.nn.Module):
        give(loss.loss, model)


def measure(case: Case, share: slice, parallel: bool) -> tuple[Tensor, Tensor]:
    """The loss of these rows and the gradient, in one process or as one of several."""
    build, count, labels = case
    model = Linear()
    loss = build(model)
    if parallel:
        wrapped: Any = DistributedDataParallel(model)
        wrapped.get_embedding_dimension = model.get_embedding_dimension
        give(loss, wrapped)
    rows = [column[share] for column in columns(ROWS, count)]
    value = loss(features(rows), labels[share])
    value.backward()
    assert model.weight.grad is not None
    return value.detach(), model.weight.grad


def measure_middle(path: str, share: slice, parallel: bool) -> tuple[Tensor, Tensor]:
    """As `measure`, with the middle layer of a real model: all its gradients in one vector."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(path, device="cpu").double().eval()
    loss = losses.named("codiemb_sts").build(model, middle=1.0)
    if parallel:
        give(loss, DistributedDataParallel(model, find_unused_parameters=True))
    rows = [model.preprocess([pair[k] for pair in SENTENCES[share]]) for k in (0, 1)]
    value = loss(rows, SCORES[:4][share])
    value.backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return value.detach(), torch.cat(found)


def measure_all(path: str, rank: int = 0, world: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    """Every case, by name."""
    mixing.draw = same_draws
    each, few = ROWS // world, len(SENTENCES) // world
    share = slice(rank * each, (rank + 1) * each)
    found = {name: measure(case, share, world > 1) for name, case in CASES.items()}
    some = slice(rank * few, (rank + 1) * few)
    return {**found, "middle": measure_middle(path, some, world > 1)}


def main(rank: int, world: int, folder: Path, path: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    torch.save(measure_all(path, rank, world), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
