"""Losses of scored pairs are what their formulas say, and calm where there is nothing to learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergekit_embed.errors import UsageError
from mergekit_embed.train.losses.scored_pairs import (
    CachedAnglELoss,
    CachedCoDiEmbSTSLoss,
    CachedCoSENTLoss,
    CoDiEmbSTSLoss,
    GatheredAnglELoss,
    GatheredCoSENTLoss,
    Terms,
)
from mergekit_embed.train.losses.similarity import pearson_loss, pro_loss, rank_kl_loss

from . import reference_losses as reference
from .embeddings import Linear, columns, features, tensors

SCORES = [3.0, 0.5, 3.0, 5.0, 1.0, 0.5, 2.5]
TERMS: dict[str, tuple[Callable[..., Tensor], Callable[..., float]]] = {
    "pearson": (pearson_loss, reference.pearson),
    "rank_kl": (rank_kl_loss, lambda x, y: reference.rank_kl(x, y, 0.05)),
    "pro": (pro_loss, lambda x, y: reference.pro(x, y, 0.05)),
}

cosines = st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=2, max_size=7)


@given(cosines, st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", TERMS)
def test_each_term_is_its_formula(name: str, x: list[float], data: st.DataObject) -> None:
    same = st.integers(0, 5).map(float)
    y = data.draw(st.lists(same, min_size=len(x), max_size=len(x)))
    if len(set(x)) == 1 or len(set(y)) == 1:
        return
    ours, formula = TERMS[name]
    found = ours(torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64))
    assert found.item() == pytest.approx(formula(x, y), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", TERMS)
def test_each_gradient_is_that_of_the_formula(name: str) -> None:
    y = torch.tensor(SCORES, dtype=torch.float64)
    x = torch.linspace(-0.4, 0.9, len(y), dtype=torch.float64).flip(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: TERMS[name][0](x, y), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TERMS)
def test_scores_that_are_all_the_same_teach_nothing(name: str, dtype: torch.dtype) -> None:
    for rows in (1, 5):
        x = torch.linspace(0, 1, rows, dtype=dtype, requires_grad=True)
        loss = TERMS[name][0](x, torch.full((rows,), 0.1, dtype=dtype))
        loss.backward()
        assert loss == 0
        assert x.grad is not None
        assert not x.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TERMS)
def test_cosines_that_are_all_the_same_give_moderate_gradients(
    name: str, dtype: torch.dtype
) -> None:
    """Rounding errors are no direction."""
    x = torch.full((7,), 0.7, dtype=dtype)
    x[0] += torch.finfo(dtype).eps
    x.requires_grad_()
    loss = TERMS[name][0](x, torch.tensor(SCORES, dtype=dtype))
    loss.backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() < 200  # a few times the largest score over the temperature


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_rank_kl_and_pearson_do_not_depend_on_the_scale_of_scores(a: float, b: float) -> None:
    y = torch.tensor(SCORES, dtype=torch.float64)
    x = torch.linspace(-0.4, 0.9, len(y), dtype=torch.float64)
    for loss in (rank_kl_loss, pearson_loss):
        torch.testing.assert_close(loss(x, a * y + b), loss(x, y), rtol=1e-8, atol=1e-10)


@given(st.permutations(range(7)))
@settings(max_examples=25)
def test_the_order_of_pairs_does_not_matter(order: list[int]) -> None:
    y = torch.tensor(SCORES, dtype=torch.float64)
    x = torch.linspace(-0.4, 0.9, len(y), dtype=torch.float64)
    for loss, _ in TERMS.values():
        torch.testing.assert_close(loss(x[order], y[order]), loss(x, y))


def test_the_better_order_costs_less() -> None:
    y = torch.tensor([0.0, 1.0, 2.0, 3.0])
    right, wrong = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    for loss, _ in TERMS.values():
        assert loss(right, y) < loss(wrong, y)


def sts(**terms: float) -> CoDiEmbSTSLoss:
    return CoDiEmbSTSLoss(Linear(), Terms(**terms))


@pytest.mark.parametrize("terms", [(2.0, 5.0, 0.5), (1.0, 0.0, 0.0), (0.0, 1.0, 3.0)])
@pytest.mark.parametrize("labels", [SCORES, [int(score) for score in SCORES]])
def test_the_terms_add_up_as_in_codiemb(
    terms: tuple[float, float, float], labels: list[float]
) -> None:
    first, second = columns(7, 2)
    loss = sts(pearson=terms[0], rank_kl=terms[1], pro=terms[2])
    found = loss.compute_loss_from_embeddings(tensors([first, second]), torch.tensor(labels))
    expected = reference.codiemb_sts(first, second, labels, *terms)
    assert found.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 3.0, 9.0])
def test_the_middle_layer_is_anchored_on_pairs_from_the_threshold_on(threshold: float) -> None:
    first, second = columns(7, 2)
    loss = sts(middle_threshold=threshold, middle_temperature=0.1)
    found = loss.middle_loss(tensors([first, second]), torch.tensor(SCORES))
    expected = reference.middle(first, second, SCORES, threshold, 0.1)
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_zero_vectors_and_single_pairs_make_no_nan() -> None:
    for rows in (1, 2, 7):
        arrays = columns(rows, 2)
        arrays[0][0] = 0
        inputs = tensors(arrays, gradient=True)
        loss = sts()
        labels = torch.tensor(SCORES[:rows])
        found = loss.compute_loss_from_embeddings(inputs, labels)
        found = found + loss.middle_loss(inputs, labels)
        found.backward()
        assert torch.isfinite(found)
        assert all(column.grad is not None and column.grad.isfinite().all() for column in inputs)


def test_halves_are_computed_in_float32_even_under_autocast() -> None:
    halves = [column.bfloat16() for column in tensors(columns(16, 2, dim=32))]
    labels = torch.arange(16.0)
    for loss in (sts(), GatheredCoSENTLoss(Linear()), GatheredAnglELoss(Linear())):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = loss.compute_loss_from_embeddings(halves, labels)
        expected = loss.compute_loss_from_embeddings([half.double() for half in halves], labels)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_cosent_is_its_formula() -> None:
    first, second = columns(7, 2)
    x = [reference.cosine(a, b) for a, b in zip(first, second, strict=True)]
    loss = GatheredCoSENTLoss(Linear(), 1 / 0.05)
    found = loss.compute_loss_from_embeddings(tensors([first, second]), torch.tensor(SCORES))
    assert found.item() == pytest.approx(reference.cosent(x, SCORES, 0.05), rel=1e-10)


@pytest.mark.parametrize(
    ("whole", "parts"),
    [
        (CoDiEmbSTSLoss, CachedCoDiEmbSTSLoss),
        (GatheredCoSENTLoss, CachedCoSENTLoss),
        (GatheredAnglELoss, CachedAnglELoss),
    ],
)
@pytest.mark.parametrize("mini_batch_size", [1, 3, 64])
def test_in_mini_batches_gradients_are_the_same(
    whole: Any, parts: Any, mini_batch_size: int
) -> None:
    inputs, labels = features(columns(7, 2)), torch.tensor(SCORES)
    found = []
    for loss in (whole(Linear()), parts(Linear(), mini_batch_size=mini_batch_size)):
        value = loss(inputs, labels)
        value.backward()
        found.append((value.detach(), loss.model.weight.grad))
        with torch.no_grad():
            torch.testing.assert_close(loss(inputs, labels), value.detach())
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Terms(temperature=0.0),
        lambda: Terms(middle_temperature=-1.0),
        lambda: Terms(pro=-0.1),
        lambda: CachedCoDiEmbSTSLoss(Linear(), Terms(middle=1.0)),
        lambda: sts().compute_loss_from_embeddings(tensors(columns(3, 2)), None),
        lambda: sts().compute_loss_from_embeddings(tensors(columns(3, 3)), torch.ones(3)),
        lambda: sts().compute_loss_from_embeddings(tensors(columns(3, 2)), torch.ones(4)),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError):
        wrong()


def test_the_reference_ranks_as_the_paper_says() -> None:
    """Average ranks: of 3, 0.5, 3, 5, 1, 0.5, 2.5 they are 1.5, 5.5, 1.5, 0, 4, 5.5, 3."""
    ranks = np.array([1.5, 5.5, 1.5, 0, 4, 5.5, 3])
    g = (6 - ranks) / 6
    wanted = np.exp(g / 0.05) / np.exp(g / 0.05).sum()
    uniform = float((wanted * np.log(wanted * 7)).sum())
    assert reference.rank_kl([0.3] * 7, SCORES, 0.05) == pytest.approx(uniform, rel=1e-10)
