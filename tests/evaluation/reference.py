"""The metrics again, from their definitions, in NumPy and float64."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import v_measure_score


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def unit(model: Any, texts: Sequence[str]) -> NDArray[np.float64]:
    vectors = np.asarray(model.encode(list(texts), show_progress_bar=False), dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ranked(model: Any, folder: Path) -> list[tuple[NDArray[Any], int]]:
    """Of every query, whether the documents in their order are right, and how many are."""
    queries, corpus = rows_of(folder / "queries.jsonl"), rows_of(folder / "corpus.jsonl")
    right: dict[str, set[str]] = {}
    for row in rows_of(folder / "qrels.jsonl"):
        right.setdefault(row["query-id"], set()).add(row["corpus-id"])
    names = np.array([row["id"] for row in corpus])
    allowed: Mapping[str, list[str]] = {}
    if (folder / "candidates.jsonl").is_file():
        found = rows_of(folder / "candidates.jsonl")
        allowed = {row["query-id"]: row["corpus-ids"] for row in found}
    left = unit(model, [row["text"] for row in queries])
    cosines = left @ unit(model, [row["text"] for row in corpus]).T
    orders = []
    for query, row in zip(queries, cosines, strict=True):
        if query["id"] in right:
            chosen = np.isin(names, allowed.get(query["id"], names))
            order = names[chosen][np.argsort(-row[chosen])]
            orders.append((np.isin(order, [*right[query["id"]]]), len(right[query["id"]])))
    return orders


def ndcg(model: Any, folder: Path) -> float:
    discounts = 1 / np.log2(np.arange(10) + 2)
    gains = [
        (hits[:10] * discounts).sum() / discounts[:count].sum()
        for hits, count in ranked(model, folder)
    ]
    return float(np.mean(gains))


def mean_average_precision(model: Any, folder: Path) -> float:
    found = [
        (hits * np.cumsum(hits) / (np.arange(len(hits)) + 1)).sum() / count
        for hits, count in ranked(model, folder)
    ]
    return float(np.mean(found))


def cosines(model: Any, folder: Path) -> NDArray[np.float64]:
    rows = rows_of(folder / "pairs.jsonl")
    left = unit(model, [row["sentence1"] for row in rows])
    return (left * unit(model, [row["sentence2"] for row in rows])).sum(axis=1)


def spearman(model: Any, folder: Path) -> float:
    right = np.array([row["score"] for row in rows_of(folder / "pairs.jsonl")])
    ranks = [np.argsort(np.argsort(values)) for values in (cosines(model, folder), right)]
    return float(np.corrcoef(*ranks)[0, 1])


def average_precision(model: Any, folder: Path) -> float:
    right = np.array([row["label"] for row in rows_of(folder / "pairs.jsonl")])
    hits = right[np.argsort(-cosines(model, folder))]
    return float((hits * np.cumsum(hits) / (np.arange(len(hits)) + 1)).sum() / hits.sum())


def bitext(model: Any, folder: Path) -> float:
    """F1 of every translation, its precision and recall over all texts."""
    rows = rows_of(folder / "pairs.jsonl")
    left = unit(model, [row["sentence1"] for row in rows])
    found = (left @ unit(model, [row["sentence2"] for row in rows]).T).argmax(axis=1)
    scores = []
    for i in range(len(rows)):
        hit = float(found[i] == i)
        precision = hit / max((found == i).sum(), 1)
        scores.append(2 * precision * hit / (precision + hit) if precision + hit else 0.0)
    return float(np.mean(scores))


def accuracy(model: Any, learnt: Sequence[Any], tested: Sequence[Any]) -> float:
    """Of ten regressions on 8 texts of every class, drawn one after the other from one order."""
    vectors = model.encode([row["text"] for row in learnt], show_progress_bar=False)
    labels = np.array([row["label"] for row in learnt])
    unseen = model.encode([row["text"] for row in tested], show_progress_bar=False)
    right = np.array([row["label"] for row in tested])
    order, found = list(range(len(learnt))), []
    for _ in range(10):
        np.random.RandomState(42).shuffle(order)
        chosen = [i for c in np.unique(labels) for i in [j for j in order if labels[j] == c][:8]]
        chosen.sort(key=order.index)
        fitted = LogisticRegression(max_iter=100).fit(vectors[chosen], labels[chosen])
        found.append((fitted.predict(unseen) == right).mean())
    return float(np.mean(found))


def v_measure(model: Any, folder: Path) -> float:
    """Of ten clusterings of texts that are drawn with replacement."""
    rows, chance = rows_of(folder / "labelled.jsonl"), random.Random(42)
    vectors = model.encode([row["text"] for row in rows], show_progress_bar=False)
    names = sorted({row["label"] for row in rows})
    labels = np.array([names.index(row["label"]) for row in rows])
    means = MiniBatchKMeans(len(names), batch_size=512, init="k-means++", n_init=1, random_state=42)
    found = []
    for _ in range(10):
        drawn = chance.choices(range(len(rows)), k=len(rows))
        found.append(v_measure_score(labels[drawn], means.fit_predict(vectors[drawn])))
    return float(np.mean(found))
