"""Dev tasks: how good a model is on held-out data, told while it is trained.

A task is a folder; see `task_folder` for its files. Retrieval is measured by nDCG@10,
classification by accuracy, similarity by Spearman's rank correlation, and two languages by how many
sentences are nearest to their translation.

Vectors are compared by their cosine, as training does, and texts get the model's own prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.evaluation import (
    BaseEvaluator,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    TranslationEvaluator,
)
from sentence_transformers.util import cos_sim

from ..errors import DataError, Problem
from ..rows import Plain
from ..task_folder import Judged, Kind, Labelled, Paired, read_task
from .draws import distinct, key_of, shuffled
from .layouts import identity_of

MEASURED: tuple[Kind, ...] = ("retrieval", "classification", "similarity", "bitext")
"""What is told while a model is trained; of other tasks there is `boom-eval` alone."""


def evaluator(folder: Path, batch_size: int = 32) -> BaseEvaluator:
    """What measures a model on a dev task.

    Args:
        folder: of the task; its name is that of the metric.
        batch_size: texts that are embedded at once.

    Returns:
        an evaluator of sentence-transformers. Its `primary_metric` is one of which more is better.

    Raises:
        DataError: when the folder holds no task, or more than one, or bad lines.
    """
    task = read_task(folder)
    if task.kind not in MEASURED or (isinstance(task.content, Labelled) and task.content.learnt):
        message = f"is a task of {task.kind} that `boom-eval` alone measures"
        raise DataError([Problem(str(folder), message)])
    return _evaluator_of(task.content, {"name": folder.name, "batch_size": batch_size})


class ClassificationEvaluator(BaseEvaluator):
    """How well a logistic regression on embeddings tells classes apart.

    After MTEB's protocol: ten times, a regression on 8 texts of each class, and the mean of its
    accuracies. As there is one file, half of every class are learnt from and the others tested;
    which are which depends on their contents alone.
    """

    EXPERIMENTS = 10
    LEARNT = 8

    def __init__(self, texts: Sequence[str], labels: Sequence[str], name: str, batch_size: int):
        """`texts` and their `labels`, of two classes or more with two texts or more each."""
        begin: Callable[[], None] = super().__init__
        begin()
        self.name = name
        self.primary_metric = "accuracy"
        self._texts, self._batch_size = list(texts), batch_size
        self._classes = np.unique(np.array(labels), return_inverse=True)[1]
        rows = (Plain(text, label) for text, label in zip(texts, labels, strict=True))
        self._identities = distinct(np.array([identity_of(row) for row in rows], dtype=np.uint64))

    def __call__(
        self,
        model: Any,
        output_path: str | None = None,
        epoch: int = -1,
        steps: int = -1,
    ) -> dict[str, float]:
        """The accuracy of a SentenceTransformer, under the name of the task."""
        vectors = model.encode(self._texts, batch_size=self._batch_size, show_progress_bar=False)
        found = self.prefix_name_to_metrics({"accuracy": self.accuracy(vectors)}, self.name)
        self.store_metrics_in_model_card_data(model, found, epoch, steps)
        return found

    def accuracy(self, vectors: NDArray[Any]) -> float:
        """The mean accuracy with these embeddings (texts, dimension)."""
        from sklearn.linear_model import LogisticRegression

        learnt, tested = self.halves()
        scores = []
        for number in range(self.EXPERIMENTS):
            chosen = self._first(learnt, f"experiment {number}", lambda size: self.LEARNT)
            regression = LogisticRegression(max_iter=1000)
            regression.fit(vectors[chosen], self._classes[chosen])
            scores.append(regression.score(vectors[tested], self._classes[tested]))
        return float(np.mean(scores))

    def halves(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The numbers of the texts that are learnt from, and of those that are tested."""
        every = np.arange(len(self._texts))
        learnt = self._first(every, "half", lambda size: (size + 1) // 2)
        return learnt, np.setdiff1d(every, learnt)

    def _first(
        self, numbers: NDArray[np.int64], purpose: str, count: Callable[[int], int]
    ) -> NDArray[np.int64]:
        """Of each class among these texts so many, drawn for a purpose."""
        order = numbers[shuffled(key_of("dev", purpose), self._identities[numbers])]
        classes = self._classes[order]
        kinds = [order[classes == kind] for kind in np.unique(classes)]
        return np.sort(np.concatenate([some[: count(len(some))] for some in kinds]))


def _evaluator_of(content: Judged | Labelled | Paired, told: Mapping[str, Any]) -> BaseEvaluator:
    if isinstance(content, Judged):
        relevant = {
            query: {document for document, score in scores.items() if score > 0}
            for query, scores in content.relevant.items()
        }
        return InformationRetrievalEvaluator(
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
        return TranslationEvaluator(left, right, write_csv=False, **told)
    return EmbeddingSimilarityEvaluator(
        left, right, list(content.scores), main_similarity="cosine", write_csv=False, **told
    )
