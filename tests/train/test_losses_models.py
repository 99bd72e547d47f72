"""Losses with real models: wrapped, with the middle layer, in sentence-transformers' trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from tiny_models import build_minilm

from mergekit_embed.errors import UsageError
from mergekit_embed.train import losses
from mergekit_embed.train.losses.layers import with_middle

ANCHORS = ["the quick brown fox", "snow in winter", "a boat on the sea", "tea and bread"]
POSITIVES = ["a fox that is quick", "winter and snow", "the ship and the lake", "bread with milk"]
NEGATIVES = ["a slow cat", "summer sun", "a horse on the hill", "the old house and the garden"]
SCORES = [5.0, 4.0, 2.0, 3.0]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_minilm(tmp_path_factory.mktemp("models") / "minilm", seed=0, layers=3)


@pytest.fixture
def model(path: Path) -> SentenceTransformer:
    return SentenceTransformer(str(path), device="cpu").double().eval()


def tokens(model: SentenceTransformer, *columns: list[str]) -> list[dict[str, Any]]:
    return [model.preprocess(column) for column in columns]


def gradients(model: SentenceTransformer, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_with_dropout_mini_batches_draw_the_same_masks_again(model: SentenceTransformer) -> None:
    """One mini-batch of each column is the whole column: so gradients are those of one pass."""
    model.train()
    inputs = tokens(model, ANCHORS, POSITIVES, NEGATIVES)
    loss = losses.named("info_nce").build(model, mini_batch_size=4, temperature=0.1)
    torch.manual_seed(1)
    value = loss(inputs, None)
    found = gradients(model, value)
    torch.manual_seed(1)
    columns = [model(dict(column))["sentence_embedding"] for column in inputs]
    plain = losses.named("info_nce").build(model, temperature=0.1)
    expected = plain.compute_loss_from_embeddings(columns, None)
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(found, gradients(model, expected), rtol=1e-6, atol=1e-12)


GROUPS = {"info_nce": {"temperature": 0.1, "focal": 0.5}, "multiple_negatives": {}}
PAIRS: dict[str, dict[str, Any]] = {"codiemb_sts": {}, "cosent": {}, "angle": {}}


@pytest.mark.parametrize("mini_batch_size", [None, 3])
@pytest.mark.parametrize("name", [*GROUPS, *PAIRS])
def test_matryoshka_is_the_sum_over_embeddings_cut_short(
    model: SentenceTransformer, name: str, mini_batch_size: int | None
) -> None:
    columns = (ANCHORS, POSITIVES, NEGATIVES) if name in GROUPS else (ANCHORS, POSITIVES)
    inputs, labels = tokens(model, *columns), torch.tensor(SCORES)
    parameters = {**GROUPS, **PAIRS}[name]
    plain = losses.named(name).build(model, **parameters)
    inner = losses.named(name).build(model, **parameters, mini_batch_size=mini_batch_size)
    wrapped = losses.wrapper("matryoshka").build(model, inner, dims=[8, 32], weights=[0.5, 1])
    value = wrapped(inputs, labels)
    embeddings = [model(dict(column))["sentence_embedding"] for column in inputs]
    expected = sum(
        weight
        * plain.compute_loss_from_embeddings(
            [torch.nn.functional.normalize(e[:, :dim]) for e in embeddings], labels
        )
        for dim, weight in ((8, 0.5), (32, 1.0))
    )
    assert isinstance(expected, torch.Tensor)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    found = gradients(model, value)
    torch.testing.assert_close(found, gradients(model, expected), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("wrapper", ["matryoshka_2d", "adaptive_layer"])
@pytest.mark.parametrize("name", ["info_nce", "codiemb_sts"])
def test_lower_layers_learn_too(model: SentenceTransformer, wrapper: str, name: str) -> None:
    columns = (ANCHORS, POSITIVES, NEGATIVES) if name in GROUPS else (ANCHORS, POSITIVES)
    labels = torch.tensor(SCORES)
    inner = losses.named(name).build(model)
    dims = {"dims": [32], "dims_per_step": -1} if wrapper == "matryoshka_2d" else {}
    wrapped = losses.wrapper(wrapper).build(model, inner, layers_per_step=-1, kl_weight=0.0, **dims)
    value = wrapped(tokens(model, *columns), labels)
    expected = 0.0
    inputs = tokens(model, *columns)
    transformer: Any = model[0]
    for layer in range(4):
        embeddings = []
        for column in inputs:
            states = transformer.auto_model(**column, output_hidden_states=True).hidden_states
            embeddings.append(pooled(states[layer], column["attention_mask"]))
        share = 1.0 if layer == 3 else 1 / 3
        expected += share * inner.compute_loss_from_embeddings(embeddings, labels).item()
    assert value.item() == pytest.approx(expected, rel=1e-9)


def pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[..., None].double()
    return (states * weights).sum(1) / weights.sum(1)


def test_the_middle_layer_is_pooled_as_the_last(model: SentenceTransformer) -> None:
    (column,) = tokens(model, ANCHORS)
    keys = set(column)
    last, middle = with_middle(model, column)
    transformer: Any = model[0]
    states = transformer.auto_model(**column, output_hidden_states=True).hidden_states
    normalize = torch.nn.functional.normalize
    for found, layer in ((last, 3), (middle, 2)):
        torch.testing.assert_close(
            found, normalize(pooled(states[layer], column["attention_mask"]))
        )
    assert not transformer.auto_model.config.output_hidden_states
    assert set(column) == keys


def test_the_middle_layer_adds_its_loss(model: SentenceTransformer) -> None:
    inputs, labels = tokens(model, ANCHORS, POSITIVES), torch.tensor(SCORES)
    loss = losses.named("codiemb_sts").build(model, middle=0.7, middle_threshold=3)
    value = loss(inputs, labels)
    columns = [with_middle(model, column) for column in inputs]
    expected = loss.compute_loss_from_embeddings([last for last, _ in columns], labels)
    expected = expected + 0.7 * loss.middle_loss([middle for _, middle in columns], labels)
    torch.testing.assert_close(value, expected)
    found = gradients(model, value)
    plain = losses.named("codiemb_sts").build(model)(inputs, labels)
    alone = gradients(model, plain)
    above = next(name for name in alone if name.endswith("layer.2.output.dense.weight"))
    below = above.replace("layer.2", "layer.1")
    torch.testing.assert_close(alone[above], found[above], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(alone[below], found[below])


def test_the_middle_layer_is_not_cut_by_matryoshka(model: SentenceTransformer) -> None:
    inputs, labels = tokens(model, ANCHORS, POSITIVES), torch.tensor(SCORES)
    loss = losses.named("codiemb_sts").build(model, middle=1.0)
    columns = [with_middle(model, column) for column in inputs]
    middle = loss.middle_loss([middle for _, middle in columns], labels)
    cut = [last[:, :8] for last, _ in columns]
    expected = loss.compute_loss_from_embeddings(cut, labels) + middle
    wrapped = losses.wrapper("matryoshka").build(model, loss, dims=[8, 32], weights=[1, 0])
    torch.testing.assert_close(wrapped(inputs, labels), expected)


@pytest.mark.parametrize("wrapper", ["matryoshka_2d", "adaptive_layer"])
def test_mini_batches_do_not_go_with_fewer_layers(model: SentenceTransformer, wrapper: str) -> None:
    inner = losses.named("info_nce").build(model, mini_batch_size=2)
    dims = {"dims": [32]} if wrapper == "matryoshka_2d" else {}
    with pytest.raises(UsageError, match="mini_batch_size does not go with"):
        losses.wrapper(wrapper).build(model, inner, **dims)


def test_the_trainer_of_sentence_transformers_lowers_them(path: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(path), device="cpu")
    groups = {"anchor": ANCHORS, "positive": POSITIVES, "negative": NEGATIVES}
    pairs = {"sentence1": ANCHORS, "sentence2": NEGATIVES, "score": SCORES}
    classes = {"text": ANCHORS, "same": POSITIVES, "other": NEGATIVES, "label": [0, 1, 1, 0]}
    build = {
        "groups": losses.wrapper("matryoshka").build(
            model, losses.named("info_nce").build(model, mini_batch_size=2), dims=[16, 32]
        ),
        "pairs": losses.named("codiemb_sts").build(model, middle=1.0),
        "classes": losses.named("info_nce").build(model, negatives="class", mixed=0),
    }
    rows = {"groups": groups, "pairs": pairs, "classes": classes}
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            str(tmp_path / "run"),
            num_train_epochs=10,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=3,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        {name: Dataset.from_dict(columns) for name, columns in rows.items()},
        loss=build,
    )
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == 10
    assert history[-1] < 0.7 * history[0]
    trainer.save_model(str(tmp_path / "trained"))
    card = (tmp_path / "trained" / "README.md").read_text()
    assert all(word in card for word in ("CachedInfoNCELoss", "rank_kl", "2508.11442"))
