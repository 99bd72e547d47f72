"""Dev tasks: what they measure, and what is told of folders and lines that are wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import BaseEvaluator
from sklearn.linear_model import LogisticRegression
from tiny_models import WORDS, build_minilm

from mergekit_embed.errors import DataError
from mergekit_embed.train.dev import evaluator
from mergekit_embed.train.evaluators import ClassificationEvaluator

from .plans import write_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = build_minilm(tmp_path_factory.mktemp("dev") / "model", 0)
    return SentenceTransformer(str(folder), device="cpu")


def phrases(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 5)) for _ in range(count)]


def task(folder: Path, **files: Sequence[Any]) -> Path:
    for name, rows in files.items():
        write_rows(folder / "task" / f"{name}.jsonl", rows)
    return folder / "task"


def score(model: SentenceTransformer, folder: Path) -> float:
    """The primary metric, as a trainer asks for it."""
    measure = evaluator(folder, 8)
    assert isinstance(measure, BaseEvaluator)
    assert measure.greater_is_better
    metrics = measure(model)
    assert isinstance(metrics, dict)
    assert measure.primary_metric is not None
    assert measure.primary_metric.startswith("task_")
    found = metrics[measure.primary_metric]
    assert measure.samples.score() == pytest.approx(found, abs=1e-6)  # made of single texts
    return found


# --- what is measured -----------------------------------------------------------------------------


def test_retrieval_is_ndcg_of_the_first_ten(tmp_path: Path, model: SentenceTransformer) -> None:
    queries, documents = phrases(12), phrases(40, 1)
    relevant = {i: {i, (7 * i) % 40} for i in range(12)}
    folder = task(
        tmp_path,
        queries=[{"id": f"q{i}", "text": text} for i, text in enumerate(queries)],
        corpus=[{"id": i, "text": text} for i, text in enumerate(documents)],
        qrels=[
            {"query-id": f"q{i}", "corpus-id": str(j), "score": int(j in relevant[i])}
            for i in range(12)
            for j in sorted(relevant[i] | {(i + 1) % 40})
        ],
    )
    left = model.encode(queries, normalize_embeddings=True)
    right = model.encode(documents, normalize_embeddings=True)
    found = []
    for i, row in enumerate(left @ right.T):
        gains = [
            1 / np.log2(r + 2) for r, j in enumerate(np.argsort(-row)[:10]) if j in relevant[i]
        ]
        found.append(sum(gains) / sum(1 / np.log2(r + 2) for r in range(len(relevant[i]))))
    assert score(model, folder) == pytest.approx(np.mean(found), abs=1e-6)


def test_similarity_is_a_rank_correlation(tmp_path: Path, model: SentenceTransformer) -> None:
    left, right = phrases(30), phrases(30, 1)
    scores = np.random.default_rng(2).integers(0, 6, 30).tolist()
    rows = [
        {"sentence1": a, "sentence2": b, "score": s}
        for a, b, s in zip(left, right, scores, strict=True)
    ]
    one, other = (model.encode(texts, normalize_embeddings=True) for texts in (left, right))
    wanted = spearmanr((one * other).sum(1), scores).statistic
    assert score(model, task(tmp_path, pairs=rows)) == pytest.approx(wanted, abs=1e-6)


def test_translations_are_found_both_ways(tmp_path: Path, model: SentenceTransformer) -> None:
    left = phrases(30)
    right = [f"{text} {other}" for text, other in zip(left, phrases(30, 1), strict=True)]
    rows = [{"sentence1": a, "sentence2": b} for a, b in zip(left, right, strict=True)]
    one, other = (model.encode(texts, normalize_embeddings=True) for texts in (left, right))
    cosines = one @ other.T
    wanted = [(cosines.argmax(axis) == np.arange(30)).mean() for axis in (0, 1)]
    assert 0.2 < np.mean(wanted) < 1
    assert score(model, task(tmp_path, pairs=rows)) == pytest.approx(np.mean(wanted))


def classes(count: int) -> list[dict[str, Any]]:
    """Texts that show their class by words of their own."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        label = i % 3
        words = [*random.choice(WORDS[60 * label : 60 * label + 8], 2), *random.choice(WORDS, 3)]
        rows.append({"text": f"{i} " + " ".join(words), "label": f"class {label}"})
    return rows


def test_classification_is_accuracy_with_few_examples(
    tmp_path: Path, model: SentenceTransformer
) -> None:
    rows = classes(90)
    folder = task(tmp_path, labelled=rows)
    measure = evaluator(folder)
    assert isinstance(measure, ClassificationEvaluator)
    learnt, tested = measure.halves()
    assert sorted([*learnt, *tested]) == list(range(90))
    labels = np.array([row["label"] for row in rows])
    for half in (learnt, tested):
        assert np.unique(labels[half], return_counts=True)[1].tolist() == [15, 15, 15]
    vectors = model.encode([row["text"] for row in rows])
    # With random examples of each class the accuracy is what it is with ours, but for their luck.
    random, luck = np.random.default_rng(1), []
    for _ in range(40):
        chosen = np.concatenate(
            [
                random.choice(learnt[labels[learnt] == c], 8, replace=False)
                for c in np.unique(labels)
            ]
        )
        fitted = LogisticRegression(max_iter=1000).fit(vectors[chosen], labels[chosen])
        luck.append(fitted.score(vectors[tested], labels[tested]))
    found = score(model, folder)
    assert abs(found - np.mean(luck)) < 5 * np.std(luck) * np.sqrt(1 / 40 + 1 / 10)
    assert found > 0.45


def test_classification_depends_on_the_rows_and_not_on_their_order(
    tmp_path: Path, model: SentenceTransformer
) -> None:
    rows = classes(60)
    first = score(model, task(tmp_path / "a", labelled=rows))
    assert score(model, task(tmp_path / "b", labelled=rows[::-1])) == pytest.approx(first)


def test_a_title_is_part_of_a_document(tmp_path: Path) -> None:
    folder = task(
        tmp_path,
        queries=[{"_id": "q", "text": "sea"}],
        corpus=[{"_id": "d", "title": "The sea", "text": "is blue"}, {"_id": "e", "text": "no"}],
        qrels=[{"query-id": "q", "corpus-id": "d", "score": 1}],
    )
    measure: Any = evaluator(folder)
    assert measure.corpus == ["The sea is blue", "no"]


# --- what is wrong --------------------------------------------------------------------------------

QUERIES = [{"id": "q", "text": "sea"}]
CORPUS = [{"id": "d", "text": "blue"}]
QRELS = [{"query-id": "q", "corpus-id": "d", "score": 1}]
PAIR = {"sentence1": "a", "sentence2": "b"}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "task: is no folder; a dev task has queries.jsonl, corpus.jsonl and qrels.jsonl, or"),
        ({"other": []}, "task: holds no dev task; a dev task has queries.jsonl"),
        ({"labelled": [], "pairs": []}, "task: holds labelled.jsonl, pairs.jsonl; a dev task has"),
        ({"queries": [], "corpus": []}, "task: has no qrels.jsonl"),
        (
            {"queries": QUERIES, "corpus": [{"id": "d"}], "qrels": []},
            "corpus.jsonl:1: `text` must be a text that is not empty",
        ),
        (
            {"queries": [{"text": "a"}], "corpus": CORPUS, "qrels": []},
            "queries.jsonl:1: `id` must be a name or a number",
        ),
        (
            {"queries": QUERIES, "corpus": CORPUS, "qrels": [{"query-id": "q", "corpus-id": "x"}]},
            'qrels.jsonl:1: "x" is not in corpus.jsonl',
        ),
        (
            {"queries": QUERIES, "corpus": CORPUS, "qrels": [{**QRELS[0], "score": "1"}]},
            "qrels.jsonl:1: `score` must be a number, above 0",
        ),
        (
            {"queries": QUERIES, "corpus": CORPUS, "qrels": [{**QRELS[0], "score": 0}]},
            "qrels.jsonl: names no document that answers a query",
        ),
        ({"labelled": [{"text": "a"}]}, "labelled.jsonl:1: must have `text`, and `label`"),
        ({"labelled": []}, "labelled.jsonl: has 0 classes; there must be two"),
        (
            {"labelled": [{"text": "a", "label": "x"}] * 2 + [{"text": "b", "label": "y"}]},
            'labelled.jsonl: has one text of "y"; there must be two classes or more',
        ),
        ({"pairs": [PAIR, {**PAIR, "score": 1}]}, "pairs.jsonl:2: all lines must have a `score`"),
        ({"pairs": [{**PAIR, "score": 1}, PAIR]}, "pairs.jsonl:2: all lines must have a `score`"),
        ({"pairs": [{**PAIR, "score": 1}] * 2}, "pairs.jsonl: has one score alone"),
        ({"pairs": [PAIR]}, "pairs.jsonl: has 1 pairs, and nothing to be ranked"),
        ({"pairs": [{"sentence1": "a"}]}, "pairs.jsonl:1: `sentence2` must be a text"),
        ({"pairs": [["a"]]}, "pairs.jsonl:1: is not an object"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(
    files: dict[str, list[Any]], told: str, tmp_path: Path
) -> None:
    task(tmp_path, **files)
    with pytest.raises(DataError) as error:
        evaluator(tmp_path / "task")
    assert f"{tmp_path}/" in str(error.value)
    assert told in str(error.value)


def test_twenty_bad_lines_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "labelled.jsonl").write_text("".join(json.dumps({"x": i}) + "\n" for i in range(30)))
    with pytest.raises(DataError) as error:
        evaluator(folder)
    assert len(error.value.problems) == 21
    assert str(error.value).endswith("and 10 more bad lines")
