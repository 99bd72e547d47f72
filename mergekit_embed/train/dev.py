"""Dev tasks: how good a model is on held-out data, told while it is trained.

A task is a folder; see `task_folder` for its files. Retrieval is measured by nDCG@10,
classification by accuracy, similarity by Spearman's rank correlation, and two languages by how many
sentences are nearest to their translation.

Vectors are compared by their cosine, as training does, and texts get the model's own prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentence_transformers.util import cos_sim

from ..errors import DataError, Problem
from ..task_folder import Judged, Kind, Labelled, Paired, read_task
from .evaluators import (
    BitextEvaluator,
    ClassificationEvaluator,
    Evaluator,
    RetrievalEvaluator,
    SimilarityEvaluator,
)

MEASURED: tuple[Kind, ...] = ("retrieval", "classification", "similarity", "bitext")
"""What is told while a model is trained; of other tasks there is `boom-eval` alone."""


def evaluator(folder: Path, batch_size: int = 32) -> Evaluator:
    """What measures a model on a dev task.

    Args:
        folder: of the task; its name is that of the metric.
        batch_size: texts that are embedded at once.

    Returns:
        an evaluator of sentence-transformers that keeps the scores of single texts. Its
        `primary_metric` is one of which more is better.

    Raises:
        DataError: when the folder holds no task, or more than one, or bad lines.
    """
    task = read_task(folder)
    if task.kind not in MEASURED or (isinstance(task.content, Labelled) and task.content.learnt):
        message = f"is a task of {task.kind} that `boom-eval` alone measures"
        raise DataError([Problem(str(folder), message)])
    return _evaluator_of(task.content, {"name": folder.name, "batch_size": batch_size})


def _evaluator_of(content: Judged | Labelled | Paired, told: Mapping[str, Any]) -> Evaluator:
    if isinstance(content, Judged):
        relevant = {
            query: {document for document, score in scores.items() if score > 0}
            for query, scores in content.relevant.items()
        }
        return RetrievalEvaluator(
            dict(content.queries),
            dict(content.documents),
            {query: documents for query, documents in relevant.items() if documents},
            accuracy_at_k=[1],
            precision_recall_at_k=[10],
            score_functions={"cosine": cos_sim},
            main_score_function="cosine",
            write_csv=False,
            **told,
        )
    if isinstance(content, Labelled):
        return ClassificationEvaluator(content.texts, content.labels, **told)
    left, right = list(content.left), list(content.right)
    if not content.scores:
        return BitextEvaluator(left, right, write_csv=False, **told)
    return SimilarityEvaluator(
        left, right, list(content.scores), main_similarity="cosine", write_csv=False, **told
    )
