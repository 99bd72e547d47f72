"""InfoNCE in all its forms is what its formula says."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from mergekit_embed.errors import UsageError
from mergekit_embed.train.losses import mixing
from mergekit_embed.train.losses.contrast import Contrast
from mergekit_embed.train.losses.info_nce import CachedInfoNCELoss, InfoNCELoss

from . import reference_losses as reference
from .embeddings import Linear, columns, features, tensors

CLASSES = [0, 1, 0, 2, 1]


def loss_of(arrays: list[Any], positives: int = 1, mixed: int = 0, **contrast: Any) -> Any:
    loss = InfoNCELoss(Linear(), Contrast(**contrast), positives, mixed)
    return loss.compute_loss_from_embeddings(tensors(arrays), torch.tensor(CLASSES))


FORMS = [
    {"negatives": use, "false_negative_margin": margin, "hardness": hardness, "focal": focal}
    for use, margin, hardness, focal in product(
        ("batch", "own", "hard", "class"), (None, -0.2, 0.1), (0.0, 5.0), (0.0, 0.5, 2.0)
    )
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("positives", "negatives"), [(1, 0), (1, 3), (2, 4)])
def test_it_is_the_formula(form: dict[str, Any], positives: int, negatives: int) -> None:
    anchors, *texts = columns(5, 1 + positives + negatives)
    expected = reference.info_nce(
        anchors,
        texts[:positives],
        texts[positives:],
        0.3,
        form["negatives"],
        form["false_negative_margin"],
        form["hardness"],
        form["focal"],
        CLASSES,
    )
    found = loss_of([anchors, *texts], positives, temperature=0.3, **form)
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-10, abs=1e-14)


def test_mixtures_are_further_negatives_of_their_row(monkeypatch: pytest.MonkeyPatch) -> None:
    anchors, positive, *negatives = columns(5, 5)
    draws = mixing.draw(4, 3, 5, torch.zeros((), dtype=torch.float64))
    monkeypatch.setattr(mixing, "draw", lambda *_: draws)
    more = reference.mixed(
        negatives, draws.first.numpy(), draws.second.numpy(), draws.share.numpy()
    )
    for use in ("batch", "own"):
        every = [*negatives, *more]
        expected = reference.info_nce(anchors, [positive], every, 0.3, use, hardness=5.0)
        found = loss_of(
            [anchors, positive, *negatives], mixed=4, temperature=0.3, negatives=use, hardness=5.0
        )
        assert found.item() == pytest.approx(np.mean(expected), rel=1e-10)


def test_what_is_mixed_are_two_negatives_with_a_share_of_beta_2_2() -> None:
    draws = mixing.draw(400, 3, 50, torch.zeros((), dtype=torch.float64))
    assert not (draws.first == draws.second).any()
    assert set(draws.first.unique().tolist()) == set(draws.second.unique().tolist()) == {0, 1, 2}
    # Beta(2, 2): mean 1/2, variance 1/20, distribution 3 x^2 - 2 x^3.
    assert draws.share.mean().item() == pytest.approx(0.5, abs=0.01)
    assert draws.share.var().item() == pytest.approx(0.05, abs=0.002)
    assert (draws.share < 0.25).double().mean().item() == pytest.approx(0.15625, abs=0.01)


@pytest.mark.parametrize("form", FORMS[::5], ids=str)
def test_its_gradient_is_that_of_the_formula(form: dict[str, Any]) -> None:
    # Hardness is a constant to the gradient, which differences of the loss cannot know.
    form = {**form, "hardness": 0.0}
    loss = InfoNCELoss(Linear(), Contrast(temperature=0.5, **form), positives=2)
    labels = torch.tensor(CLASSES)
    inputs = tensors(columns(5, 5, dim=3), gradient=True)
    assert torch.autograd.gradcheck(
        lambda *inputs: loss.compute_loss_from_embeddings(list(inputs), labels), inputs
    )


def test_hardness_is_a_constant_to_the_gradient() -> None:
    arrays = columns(4, 4)
    inputs = tensors(arrays, gradient=True)
    loss = InfoNCELoss(Linear(), Contrast(0.5, hardness=5.0))
    loss.compute_loss_from_embeddings(inputs, None).backward()
    anchors, positive, *negatives = tensors(arrays, gradient=True)
    unit = torch.nn.functional.normalize
    s = torch.einsum("bd,knd->bkn", unit(anchors), unit(torch.stack([positive, *negatives]), dim=2))
    own = torch.eye(4)[:, None, :] * torch.tensor([0.0, 1.0, 1.0])[None, :, None]
    logits = s / 0.5 + (5.0 * s * own).detach()
    total = logits.logsumexp((1, 2)) - logits[:, 0].diagonal()
    total.mean().backward()
    assert inputs[0].grad is not None
    assert anchors.grad is not None
    torch.testing.assert_close(inputs[0].grad, anchors.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("hardness", [0.0, 5.0])
def test_plain_it_is_that_of_sentence_transformers(hardness: float) -> None:
    inputs = features(columns(5, 4))
    options = {"hardness_mode": "hard_negatives", "hardness_strength": hardness} if hardness else {}
    theirs = MultipleNegativesRankingLoss(Linear(), scale=20, **options)
    ours = InfoNCELoss(Linear(), Contrast(0.05, hardness=hardness))
    expected, found = theirs(inputs, None), ours(inputs, None)
    expected.backward(), found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(ours.model.weight.grad, theirs.model.weight.grad, rtol=1e-9, atol=0)


@given(st.permutations(range(5)), st.sampled_from(FORMS), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_order_of_rows_does_not_matter(
    order: list[int], form: dict[str, Any], seed: int
) -> None:
    arrays = columns(5, 5, seed=seed)
    loss = InfoNCELoss(Linear(), Contrast(**form), positives=2)
    labels = torch.tensor(CLASSES)
    before = loss.compute_loss_from_embeddings(tensors(arrays), labels)
    moved = tensors([array[order] for array in arrays])
    after = loss.compute_loss_from_embeddings(moved, labels[order])
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)


@given(st.sampled_from(["own", "hard", "class", "margin"]), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_what_does_not_count_does_not_matter(rule: str, seed: int) -> None:
    """Change texts that the first row must not see; its loss and gradients stay as they are."""
    anchors, positive, negative = columns(3, 3, seed=seed)
    changed_positive, changed_negative = positive.copy(), negative.copy()
    if rule in ("own", "hard"):
        changed_positive[1:] *= -1
    if rule in ("own", "class"):
        changed_negative[1:] *= -1
    if rule == "class":
        changed_positive[1] *= -1  # of the first row's class, unlike the third
    if rule == "margin":
        negative[1], changed_negative[1] = anchors[0], 2 * anchors[0] + 1e-3
        form = {"false_negative_margin": -0.5}
        positive[0] = changed_positive[0] = anchors[0] + 0.01
    else:
        form = {"negatives": rule}
    found = []
    for texts in ([positive, negative], [changed_positive, changed_negative]):
        losses = _each([anchors, *texts], [7, 7, 8], **form)
        found.append(losses[0])
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_a_negative_as_near_as_the_positive_is_within_the_margin() -> None:
    anchors, positive = columns(1, 2)
    found = loss_of([anchors, positive, positive], false_negative_margin=0.0)
    assert found.item() == pytest.approx(np.log(2), rel=1e-10)


def _each(arrays: list[Any], classes: list[int], **form: Any) -> list[float]:
    from mergekit_embed.train.losses.contrast import row_losses

    loss = InfoNCELoss(Linear(), Contrast(0.3, **form))
    batch = loss.batch(tensors(arrays), torch.tensor(classes))
    return row_losses(batch, loss.contrast).tolist()


@given(st.integers(0, 1000), st.floats(0.1, 4))
@settings(max_examples=25, deadline=None)
def test_focal_weighs_down_and_zero_leaves_alone(seed: int, gamma: float) -> None:
    arrays = columns(4, 4, seed=seed)
    plain = _each(arrays, [0] * 4)
    assert _each(arrays, [0] * 4, focal=0.0) == plain
    assert all(
        weighed <= loss
        for weighed, loss in zip(_each(arrays, [0] * 4, focal=gamma), plain, strict=True)
    )


@pytest.mark.parametrize("form", FORMS[::3], ids=str)
@pytest.mark.parametrize(("rows", "count"), [(1, 2), (1, 4), (3, 2), (3, 4)])
def test_neither_lonely_rows_nor_zero_vectors_make_a_nan(
    form: dict[str, Any], rows: int, count: int
) -> None:
    loss = InfoNCELoss(Linear(), Contrast(**form))
    for zeroed in (False, True):
        arrays = columns(rows, count)
        if zeroed:
            for array in arrays:
                array[0] = 0
        inputs = tensors(arrays, gradient=True)
        found = loss.compute_loss_from_embeddings(inputs, torch.arange(rows))
        found.backward()
        assert torch.isfinite(found)
        assert all(column.grad is not None and column.grad.isfinite().all() for column in inputs)


def test_a_row_without_negatives_costs_nothing() -> None:
    inputs = tensors(columns(1, 2), gradient=True)
    loss = InfoNCELoss(Linear(), Contrast(focal=0.5))
    found = loss.compute_loss_from_embeddings(inputs, None)
    found.backward()
    assert found == 0
    assert inputs[0].grad is not None
    assert not inputs[0].grad.any()


def test_a_loss_near_zero_keeps_its_digits() -> None:
    anchor, positive = np.eye(2)[:1], np.eye(2)[:1]
    negative = -anchor
    found = loss_of([anchor, positive, negative], temperature=0.02)
    assert found.item() == pytest.approx(np.exp(-100), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32_even_under_autocast(dtype: torch.dtype) -> None:
    halves = [column.to(dtype) for column in tensors(columns(16, 4, dim=32))]
    loss = InfoNCELoss(Linear())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss.compute_loss_from_embeddings(halves, None)
    expected = loss.compute_loss_from_embeddings([half.double() for half in halves], None)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("mini_batch_size", [1, 2, 5, 64])
@pytest.mark.parametrize("form", FORMS[::7], ids=str)
def test_in_mini_batches_gradients_are_the_same(form: dict[str, Any], mini_batch_size: int) -> None:
    inputs = features(columns(5, 6))
    labels = torch.tensor(CLASSES)
    whole = InfoNCELoss(Linear(), Contrast(0.1, **form), 2, 2)
    parts = CachedInfoNCELoss(
        Linear(),
        Contrast(0.1, **form),
        2,
        2,
        mini_batch_size=mini_batch_size,
    )
    found = []
    for loss in (whole, parts):
        torch.manual_seed(3)
        value = loss(inputs, labels)
        (2 * value).backward()
        found.append((value.detach(), loss.model.weight.grad))
        with torch.no_grad():
            torch.manual_seed(3)
            torch.testing.assert_close(loss(inputs, labels), value.detach())
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Contrast(temperature=0.0),
        lambda: Contrast(temperature=-1.0),
        lambda: Contrast(temperature=float("nan")),
        lambda: Contrast(temperature=float("inf")),
        lambda: Contrast(negatives="some"),
        lambda: Contrast(focal=-1.0),
        lambda: InfoNCELoss(Linear(), positives=0),
        lambda: CachedInfoNCELoss(Linear(), mini_batch_size=0),
        lambda: loss_of(columns(5, 2), positives=2),
        lambda: loss_of(columns(5, 3), mixed=1),
        lambda: loss_of(columns(4, 3), negatives="class"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError):
        wrong()


def test_it_tells_what_it_is_made_of() -> None:
    loss = InfoNCELoss(Linear(), Contrast(focal=0.5, hardness=5.0), positives=2)
    assert loss.get_config_dict()["focal"] == 0.5
    assert [key in loss.citation for key in ("1807.03748", "2506.20923", "2509.20354")] == [
        True
    ] * 3
    assert "2506.05176" not in loss.citation
