"""Dev tasks: how good a model is on held-out data, told while it is trained.

A task is a folder. The files in it say which of these it is:

- `queries.jsonl`, `corpus.jsonl` (`id`, `text`, perhaps `title`) and `qrels.jsonl` (`query-id`,
  `corpus-id`, `score`): retrieval, nDCG@10;
- `labelled.jsonl` (`text`, `label`): classification, accuracy;
- `pairs.jsonl` (`sentence1`, `sentence2`, `score`): similarity, Spearman's rank correlation;
- `pairs.jsonl` without scores: two languages, how many sentences are nearest to their translation.

Vectors are compared by their cosine, as training does, and texts get the model's own prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
from ..rows import Plain, Scored, decoded, row_of, text_at
from .draws import distinct, key_of, shuffled
from .layouts import identity_of

RETRIEVAL = ("queries.jsonl", "corpus.jsonl", "qrels.jsonl")
LABELLED = "labelled.jsonl"
PAIRS = "pairs.jsonl"

SHOWN = 20
"""How many bad lines are listed one by one."""


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
    told = {"name": folder.name, "batch_size": batch_size}
    files = [file for file in (*RETRIEVAL, LABELLED, PAIRS) if (folder / file).is_file()]
    if files and set(files) <= set(RETRIEVAL):
        return _retrieval(folder, told)
    if files == [LABELLED]:
        return _classification(folder / LABELLED, told)
    if files == [PAIRS]:
        return _pairs(folder / PAIRS, told)
    wanted = f"{', '.join(RETRIEVAL[:2])} and {RETRIEVAL[2]}, or {LABELLED}, or {PAIRS}"
    found = f"holds {', '.join(files)}" if files else "holds no dev task"
    if not folder.is_dir():
        found = "is no folder"
    raise DataError([Problem(str(folder), f"{found}; a dev task has {wanted}")])


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


T = TypeVar("T")


class _Problems:
    """What is wrong with the lines of a task."""

    def __init__(self) -> None:
        self._found: list[Problem] = []
        self._count = 0

    def lines(self, path: Path, parse: Callable[[Mapping[str, Any]], T]) -> list[T]:
        """What every line of a file is, but for those that are wrong."""
        found = []
        try:
            with path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    try:
                        if raw.strip():
                            found.append(parse(decoded(raw)))
                    except ValueError as error:
                        self.add(f"{path}:{number}", str(error))
        except OSError as error:
            self.add(str(path), f"cannot be read: {error.strerror}")
        return found

    def add(self, where: str, message: str) -> None:
        """Remember one; only the first of many are told."""
        self._count += 1
        if self._count <= SHOWN:
            self._found.append(Problem(where, message))

    def refuse(self) -> None:
        """Raise a DataError when there are any."""
        if self._count > SHOWN:
            self._found.append(Problem("", f"and {self._count - SHOWN} more bad lines"))
        if self._found:
            raise DataError(self._found)


def _retrieval(folder: Path, told: Mapping[str, Any]) -> BaseEvaluator:
    missing = [file for file in RETRIEVAL if not (folder / file).is_file()]
    if missing:
        raise DataError([Problem(str(folder), f"has no {' and no '.join(missing)}")])
    problems = _Problems()
    files = [folder / file for file in RETRIEVAL]
    queries: dict[str, Any] = dict(problems.lines(files[0], _text))
    corpus: dict[str, Any] = dict(problems.lines(files[1], _text))
    relevant: dict[str, set[str]] = {}
    for query, document, score in problems.lines(files[2], partial(_judged, queries, corpus)):
        if score > 0:
            relevant.setdefault(query, set()).add(document)
    problems.refuse()
    if not relevant:
        raise DataError([Problem(str(files[2]), "names no document that answers a query")])
    return InformationRetrievalEvaluator(
        queries,
        corpus,
        relevant,
        accuracy_at_k=[1],
        precision_recall_at_k=[10],
        score_functions={"cosine": cos_sim},
        main_score_function="cosine",
        write_csv=False,
        **told,
    )


def _text(content: Mapping[str, Any]) -> tuple[str, str]:
    """The name and the text of a query or a document."""
    title, text = content.get("title"), text_at(content, "text")
    name = _name(content, "id" if "id" in content else "_id")
    return name, f"{title} {text}" if isinstance(title, str) and title.strip() else text


def _name(content: Mapping[str, Any], key: str) -> str:
    name = content.get(key)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError(f"`{key.removeprefix('_')}` must be a name or a number")
    return str(name)


def _judged(
    queries: Mapping[str, Any], corpus: Mapping[str, Any], content: Mapping[str, Any]
) -> tuple[str, str, float]:
    """What a line of qrels says: the query, the document, and how well it answers."""
    query, document = _name(content, "query-id"), _name(content, "corpus-id")
    for name, known, file in ((query, queries, RETRIEVAL[0]), (document, corpus, RETRIEVAL[1])):
        if name not in known:
            raise ValueError(f'"{name}" is not in {file}')
    score = content.get("score", 1)
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError("`score` must be a number, above 0 for a document that answers the query")
    return query, document, float(score)


def _classification(path: Path, told: Mapping[str, Any]) -> BaseEvaluator:
    problems = _Problems()
    rows = problems.lines(path, _labelled)
    problems.refuse()
    counts = Counter(row.label for row in rows).most_common()
    if len(counts) < 2 or counts[-1][1] < 2:
        few = f'one text of "{counts[-1][0]}"' if len(counts) > 1 else f"{len(counts)} classes"
        message = f"has {few}; there must be two classes or more, with two texts or more each"
        raise DataError([Problem(str(path), message)])
    texts, labels = [row.text for row in rows], [str(row.label) for row in rows]
    return ClassificationEvaluator(texts, labels, **told)


def _labelled(content: Mapping[str, Any]) -> Plain:
    row = row_of(content)
    if not isinstance(row, Plain) or row.label is None:
        raise ValueError("must have `text`, and `label` with the name of a class")
    return row


def _pairs(path: Path, told: Mapping[str, Any]) -> BaseEvaluator:
    problems = _Problems()
    scored: set[bool] = set()

    def pair(content: Mapping[str, Any]) -> tuple[str, str, float | None]:
        scored.add(content.get("score") is not None)
        if len(scored) == 2:
            raise ValueError("all lines must have a `score`, or none")
        if scored == {False}:
            return text_at(content, "sentence1"), text_at(content, "sentence2"), None
        row = row_of(content)
        if not isinstance(row, Scored):
            raise ValueError("must have `sentence1` and `sentence2`, and perhaps `score`")
        return row.left, row.right, row.score

    rows = problems.lines(path, pair)
    problems.refuse()
    scores = [score for _, _, score in rows if score is not None]
    if len(rows) < 2 or len(set(scores)) == 1:
        what = "has one score alone" if len(rows) > 1 else f"has {len(rows)} pairs"
        raise DataError([Problem(str(path), f"{what}, and nothing to be ranked")])
    left, right = [row[0] for row in rows], [row[1] for row in rows]
    if not scores:
        return TranslationEvaluator(left, right, write_csv=False, **told)
    return EmbeddingSimilarityEvaluator(
        left, right, scores, main_similarity="cosine", write_csv=False, **told
    )
