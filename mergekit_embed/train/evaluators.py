"""What measures a model on a dev task: evaluators that keep the scores of single texts.

They are sentence-transformers' own, which tell a task's score alone, and one for classification,
which it has none for. `samples` says what the score of the last model that was measured is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.evaluation import (
    BaseEvaluator,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    TranslationEvaluator,
)
from torch import Tensor

from ..rows import Plain
from ..samples import Samples
from .draws import distinct, key_of, shuffled
from .layouts import identity_of


class Evaluator(Protocol):
    """An evaluator that keeps the scores of single texts."""

    samples: Samples
    primary_metric: str | None

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """What a SentenceTransformer reaches, by the name of the metric."""


class RetrievalEvaluator(InformationRetrievalEvaluator):
    """nDCG@10, of every query."""

    samples: Samples

    def compute_metrics(self, queries_result_list: list[Any]) -> dict[str, Any]:
        """See the library's; it is asked once, for cosines."""
        (depth,) = self.ndcg_at_k
        found = []
        for query, hits in zip(self.queries_ids, queries_result_list, strict=True):
            relevant = self.relevant_docs[query]
            ranked = sorted(hits, key=lambda hit: (-hit["score"], hit["corpus_id"]))[:depth]
            gained = np.array([hit["corpus_id"] in relevant for hit in ranked], dtype=np.float64)
            found.append(gain(gained) / gain(np.ones(min(len(relevant), depth))))
        self.samples = Samples("mean", np.array([found]))
        told: dict[str, Any] = super().compute_metrics(queries_result_list)
        return told


def gain(relevances: NDArray[np.float64]) -> float:
    """The discounted cumulative gain of a ranking, rel_i / log2(i + 1) summed from i = 1."""
    return float((relevances / np.log2(np.arange(len(relevances)) + 2)).sum())


class SimilarityEvaluator(EmbeddingSimilarityEvaluator):
    """Spearman's correlation, of pairs."""

    samples: Samples

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """See the library's."""
        self._embedded: list[NDArray[np.float64]] = []
        found: dict[str, float] = super().__call__(model, output_path, epoch, steps)
        left, right = (unit(one) for one in self._embedded)
        cosines = (left * right).sum(axis=1)
        self.samples = Samples("spearman", np.array([cosines, self.scores], dtype=np.float64))
        return found

    def embed_inputs(self, model: Any, sentences: Any, **kwargs: Any) -> Any:
        """See the library's, which embeds one side and then the other."""
        found = super().embed_inputs(model, sentences, **kwargs)
        self._embedded.append(doubles(found))
        return found


class BitextEvaluator(TranslationEvaluator):
    """How many sentences find their translation, of pairs: both ways, and the mean counts."""

    samples: Samples

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """See the library's."""
        self._embedded: list[NDArray[np.float64]] = []
        found: dict[str, float] = super().__call__(model, output_path, epoch, steps)
        left, right = (unit(one) for one in self._embedded)
        cosines = left @ right.T
        there = _same(self.target_sentences, cosines.argmax(axis=1))
        back = _same(self.source_sentences, cosines.argmax(axis=0))
        self.samples = Samples("mean", (there + back)[None] / 2)
        return found

    def embed_inputs(self, model: Any, sentences: Any, **kwargs: Any) -> Any:
        """See the library's, which embeds one language and then the other."""
        found = super().embed_inputs(model, sentences, **kwargs)
        self._embedded.append(doubles(found))
        return found


def _same(texts: Sequence[str], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Whether the text at each place is the one that belongs there, float64 (N,)."""
    own = (float(texts[place] == text) for text, place in zip(texts, places, strict=True))
    return np.fromiter(own, np.float64)


def doubles(vectors: Any) -> NDArray[np.float64]:
    """Embeddings as float64 (N, D), from whatever `encode` gives."""
    rows = [one.double().cpu().numpy() if isinstance(one, Tensor) else one for one in vectors]
    return np.asarray(rows, dtype=np.float64)


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = vectors / np.where(lengths > 0, lengths, 1.0)
    return scaled


class ClassificationEvaluator(BaseEvaluator):
    """How well a logistic regression on embeddings tells classes apart, of every text.

    After MTEB's protocol: ten times, a regression on 8 texts of each class, and the mean of its
    accuracies. As there is one file, half of every class are learnt from and the others tested;
    which are which depends on their contents alone.
    """

    EXPERIMENTS = 10
    LEARNT = 8
    samples: Samples

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
        found = np.zeros(len(tested))
        for number in range(self.EXPERIMENTS):
            chosen = self._first(learnt, f"experiment {number}", lambda size: self.LEARNT)
            regression = LogisticRegression(max_iter=1000)
            regression.fit(vectors[chosen], self._classes[chosen])
            found += regression.predict(vectors[tested]) == self._classes[tested]
        self.samples = Samples("mean", found[None] / self.EXPERIMENTS)
        return self.samples.score()

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
