"""Scores of single texts, taken where mteb's own classes compute the score of a task.

Nothing is measured again: the methods that see predictions are wrapped, in one task object. Whether
what was taken gives the score that mteb found is checked by who reads it (`samples.agree`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from mteb.abstasks import (
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.abstask import AbsTask

from ..samples import Doubles, Samples

PAIR_SCORES = (
    ("similarity_scores", 1),
    ("cosine_scores", 1),
    ("manhattan_distances", -1),
    ("euclidean_distances", -1),
    ("dot_scores", 1),
)
"""What mteb compares pairs by, and whether more is more alike."""


class Recorder:
    """Takes the samples of a task's parts while the task is evaluated."""

    def __init__(self) -> None:
        self._taken: dict[str, Samples] = {}
        self._part = ""
        self._predictions: list[Doubles] = []

    def take_out(self) -> dict[str, Samples]:
        """What was taken since the last call, by split and subset."""
        taken, self._taken = self._taken, {}
        return taken

    def watch(self, task: AbsTask) -> None:
        """Take samples of this task object from now on, where its kind has some."""
        self._wrap(task, "_evaluate_subset", self._begin, before=True)
        metric = task.metadata.main_score
        if isinstance(task, AbsTaskRetrieval):
            column = _column(metric)
            if column is not None:
                self._wrap(task, "task_specific_scores", self._queries_by(column))
        elif isinstance(task, AbsTaskClassification) and metric == "accuracy":
            self._wrap(task, "_run_experiment", self._experiment)
        elif isinstance(task, AbsTaskSTS) and metric == "cosine_spearman":
            self._wrap(task, "_calculate_scores", self._similar)
        elif isinstance(task, AbsTaskPairClassification) and metric == "max_ap":
            self._wrap(task, "_compute_metrics", self._same)
        elif isinstance(task, AbsTaskBitextMining) and metric == "f1":
            self._wrap(task, "_compute_metrics", self._translated)

    def _wrap(
        self, task: AbsTask, name: str, told: Callable[..., None], *, before: bool = False
    ) -> None:
        """Tell of every call of a method: its arguments, and its result first unless before."""
        method = getattr(task, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            if before:
                told(*arguments, **options)
            result = method(*arguments, **options)
            if not before:
                told(result, *arguments, **options)
            return result

        setattr(task, name, wrapped)

    def _begin(self, *arguments: Any, hf_split: str, hf_subset: str, **options: Any) -> None:
        self._part, self._predictions = f"{hf_split}/{hf_subset}", []

    def _queries_by(self, column: str) -> Callable[..., None]:
        def told(
            result: Any, scores: Mapping[str, Mapping[str, float]], *rest: Any, **options: Any
        ) -> None:
            values = [scores[query][column] for query in sorted(scores)]
            self._put(Samples("mean", np.array([values], dtype=np.float64)))

        return told

    def _experiment(
        self, result: Any, learnt: Any, tested: Any, *rest: Any, **options: Any
    ) -> None:
        labels = np.asarray(tested["label"])
        self._predictions.append((np.asarray(result[1]) == labels).astype(np.float64))
        if len({len(one) for one in self._predictions}) == 1:
            self._put(Samples("mean", np.mean(self._predictions, axis=0)[None]))

    def _similar(
        self, result: Any, scores: Mapping[str, Sequence[float]], right: Sequence[float]
    ) -> None:
        columns = np.array([scores["cosine_scores"], right], dtype=np.float64)
        self._put(Samples("spearman", columns))

    def _same(
        self, result: Any, scores: Mapping[str, Sequence[float]], labels: Sequence[int]
    ) -> None:
        found = [sign * np.asarray(scores[name], dtype=np.float64) for name, sign in PAIR_SCORES]
        self._put(Samples("precision", np.array([np.asarray(labels, dtype=np.float64), *found])))

    def _translated(
        self, result: Any, nearest: Sequence[Mapping[str, Any]], gold: Sequence[tuple[int, int]]
    ) -> None:
        """F1 of every translation, whose mean is the weighted F1 as each is right for one text."""
        found = np.array([one["corpus_id"] for one in nearest], dtype=np.int64)
        right = np.array([pair[1] for pair in gold], dtype=np.int64)
        chosen = np.bincount(found, minlength=right.max() + 1)[right]
        values = 2 * (found == right) / (chosen + 1)
        self._put(Samples("mean", values[None].astype(np.float64)))

    def _put(self, samples: Samples) -> None:
        self._taken[self._part] = samples


def _column(metric: str) -> str | None:
    """What pytrec_eval calls a metric of mteb: ndcg_at_10 is its ndcg_cut_10."""
    found = re.fullmatch(r"(ndcg|map|recall|precision|hit_rate)_at_(\d+)", metric)
    if found is None:
        return None
    names = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P"}
    return f"{names.get(found[1], 'success')}_{found[2]}"
