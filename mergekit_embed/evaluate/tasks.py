"""What models are measured on: benchmarks and tasks of mteb, and folders of local tasks.

A local task is an object of mteb's own class for its kind, with data from the folder: the same code
gives the same metrics.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import mteb
import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.task_metadata import TaskMetadata

from ..engine.hashing import digest_of, file_digest
from ..errors import DataError, MergekitEmbedError, Problem, UsageError
from ..task_folder import (
    FILES,
    RETRIEVAL,
    Judged,
    Kind,
    Labelled,
    Paired,
    TaskFolder,
    every_text,
    is_task,
    read_task,
)
from ..train.evaluators import ClassificationEvaluator
from .compare import Group, TaskFacts

MTEB_TYPES: Mapping[Kind, tuple[str, str, type[AbsTask]]] = {
    "retrieval": ("Retrieval", "ndcg_at_10", AbsTaskRetrieval),
    "reranking": ("Reranking", "map_at_1000", AbsTaskRetrieval),
    "classification": ("Classification", "accuracy", AbsTaskClassification),
    "clustering": ("Clustering", "v_measure", AbsTaskClustering),
    "similarity": ("STS", "cosine_spearman", AbsTaskSTS),
    "pair classification": ("PairClassification", "max_ap", AbsTaskPairClassification),
    "bitext": ("BitextMining", "f1", AbsTaskBitextMining),
}
"""The type in mteb, its main score, and the class that measures it."""

PROTOCOL = 1
"""Raised whenever the same files begin to give mteb other data than before."""

LONGEST = 1000
"""Characters of a text that count for how long embedding it takes; models cut texts."""

OVERHEAD = 100
"""Characters that every text costs beside its own."""


class TaskError(MergekitEmbedError):
    """The data of a benchmark is not here and cannot be fetched, or it cannot be evaluated."""


@dataclass(frozen=True)
class Task:
    """A task to run.

    Attributes:
        facts: what is known of it without a model.
        prototype: mteb's object, without data; `fresh` gives one to run.
        folder: of a local task, its content; None for one of the Hub.
        cost: about how long it takes, in characters; None where that is not known.
        texts: that are embedded; None where that is not known.
    """

    facts: TaskFacts
    prototype: AbsTask = field(repr=False)
    folder: TaskFolder | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """As tables print it."""
        return self.facts.name

    @property
    def texts(self) -> int | None:
        """How many are embedded; None where that is not known."""
        return None if self.folder is None else len(every_text(self.folder.content))

    @property
    def cost(self) -> int | None:
        """About how long it takes, in characters; None where that is not known."""
        if self.folder is None:
            return None
        texts = every_text(self.folder.content)
        return sum(min(len(text), LONGEST) + OVERHEAD for text in texts)

    def fresh(self) -> AbsTask:
        """An object to run once, its random numbers at their beginning.

        mteb goes on drawing in an object that is used again, so the second model would be measured
        on other texts than the first.
        """
        made = copy.copy(self.prototype)
        for one in (made, *parts_of(made)):
            one.rng_state = random.Random(one.seed)
            one.np_rng = np.random.default_rng(one.seed)
        return made


def parts_of(task: AbsTask) -> Sequence[AbsTask]:
    """The tasks that a task of several is made of; of any other itself."""
    return task.metadata.tasks if isinstance(task, AbsTaskAggregate) else [task]


def unload_data(task: AbsTask) -> None:
    """Let go of what `load_data` fetched."""
    for part in parts_of(task):
        if part.data_loaded:
            part.unload_data()


def load_data(task: AbsTask) -> None:
    """Fetch what a task is measured on, unless it is there.

    Raises:
        TaskError: when it is not here and cannot be fetched.
    """
    for part in parts_of(task):
        try:
            if not part.data_loaded:
                part.load_data()
        except (OSError, ValueError, RuntimeError) as error:  # whatever `datasets` meets
            where = part.metadata.dataset["path"]
            told = f"{part.metadata.name}: its data ({where}) is not here and cannot be fetched"
            if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
                raise TaskError(
                    f"{told}, as HF_HUB_OFFLINE is set; run once without it, or measure on folders "
                    "of local tasks"
                ) from error
            reason = " ".join(str(error).split())
            raise TaskError(f"{told}: {reason}") from error


def open_tasks(
    names: Sequence[str], in_domain: Sequence[str] = (), out_of_domain: Sequence[str] = ()
) -> tuple[Task, ...]:
    """The tasks of these names, each once, in their order.

    A name is that of a benchmark or a task of mteb, or the path of a folder that is a task or holds
    some. A path with no benchmark of its name, or that begins with a dot or a slash, is a folder.

    Args:
        names: of tasks.
        in_domain: the names of tasks that the members were trained for, whatever folders say.
        out_of_domain: of those that they were not.

    Raises:
        DataError: when a folder of a task is wrong.
        UsageError: when nothing has such a name, or two tasks have the same.
    """
    grouped: dict[str, Group] = dict.fromkeys(in_domain, "in-domain")
    for name in out_of_domain:
        if grouped.setdefault(name, "out-of-domain") == "in-domain":
            raise UsageError(f"{name} is named both in-domain and out-of-domain")
    found: dict[str, Task] = {}
    for task in (task for name in names for task in _named(name, grouped)):
        known = found.setdefault(task.name, task)
        if known.facts != task.facts:
            told = f"two tasks are called {task.name}"
            raise UsageError(f"{told}; give one another `name` in a task.json in its folder")
    unknown = [name for name in grouped if name not in found]
    if unknown:
        listed = ", ".join(found)
        raise UsageError(f"{unknown[0]} is named for a group and is no task of these: {listed}")
    return tuple(found.values())


def _named(name: str, groups: Mapping[str, Group]) -> list[Task]:
    path = Path(name).expanduser()
    if not path.is_dir() and not name.startswith((".", "/", "~")):
        return [_of_hub(task, groups) for task in _of_mteb(name)]
    if is_task(path) or not path.is_dir():
        return [local_task(read_task(path), groups)]
    inner = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and is_task(folder)]
    if not inner:
        read_task(path)  # says what a task has
    return [local_task(read_task(folder), groups) for folder in inner]


def _of_mteb(name: str) -> list[AbsTask]:
    """The tasks of a benchmark, or the one that has this name.

    Raises:
        UsageError: when mteb has neither, with what it finds similar.
    """
    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError as error:
        benchmark = str(error.args[0])
    try:
        return [mteb.get_task(name)]
    except KeyError as error:
        hints = [text for text in (benchmark, str(error.args[0])) if "Did you mean" in text]
    hint = f" {hints[0].partition('not found. ')[2]}" if hints else ""
    raise UsageError(f"{name} is no folder, and no benchmark or task of mteb.{hint}")


def _of_hub(task: AbsTask, groups: Mapping[str, Group]) -> Task:
    about = task.metadata
    facts = TaskFacts(
        name=about.name,
        type=about.type,
        metric=about.main_score,
        group=groups.get(about.name),
        path=about.dataset["path"],
        revision=about.revision,
        split=", ".join(task.eval_splits),
    )
    return Task(facts, task)


def local_task(folder: TaskFolder, groups: Mapping[str, Group] | None = None) -> Task:
    """A folder's task as one of mteb.

    Raises:
        DataError: when mteb's class cannot take what the folder has.
    """
    kind, metric, base = MTEB_TYPES[folder.kind]
    revision = _revision(folder)
    data = _data(folder)

    def load(self: AbsTask, *arguments: Any, **options: Any) -> None:
        self.dataset = data()
        self.data_loaded = True

    metadata = TaskMetadata(
        dataset={"path": folder.name, "revision": revision},
        name=folder.name,
        description=f"local task of {folder.kind}",
        type=cast("Any", kind),
        category="t2c" if kind in ("Classification", "Clustering") else "t2t",
        eval_splits=[folder.about.split],
        eval_langs=[_language(folder)],
        main_score=metric,
    )
    members: dict[str, Any] = {"metadata": metadata, "load_data": load, **_settings(folder)}
    prototype = cast("AbsTask", type(f"Local{kind}", (base,), members)())
    group = (groups or {}).get(folder.name, folder.about.group)
    facts = TaskFacts(folder.name, kind, metric, group, folder.name, revision, folder.about.split)
    return Task(facts, prototype, folder)


def _revision(folder: TaskFolder) -> str:
    """The hash of all that the task's scores depend on: its files, its kind, its prompt."""
    files = {name: file_digest(folder.path / name) for name in FILES if _is(folder.path / name)}
    about = folder.about
    said = [PROTOCOL, folder.kind, folder.name, about.prompt, about.split, sorted(files.items())]
    return digest_of(repr(said).encode())


def _is(path: Path) -> bool:
    return path.is_file()


def _language(folder: TaskFolder) -> str:
    from mteb.languages import check_language_code

    try:
        check_language_code(folder.about.language)
    except ValueError as error:
        raise DataError([Problem(str(folder.path), f"`language`: {error}")]) from error
    return folder.about.language


def _settings(folder: TaskFolder) -> dict[str, Any]:
    """What of mteb's class is set otherwise, so that small data is measured whole."""
    if folder.kind == "clustering":
        count = len(every_text(folder.content))
        return {
            "max_fraction_of_documents_to_embed": None,
            "max_document_to_embed": None,
            "max_documents_per_cluster": min(count, AbsTaskClustering.max_documents_per_cluster),
            "input_column_name": "text",
            "label_column_name": "label",
        }
    content = folder.content
    if folder.kind == "similarity" and isinstance(content, Paired):
        return {"min_score": min(content.scores), "max_score": max(content.scores)}
    return {}


def _data(folder: TaskFolder) -> Any:
    """What makes the data of a task, as mteb's class for it wants it, anew at every call."""
    content, split = folder.content, folder.about.split
    if isinstance(content, Judged):
        relevant = _graded(folder, content)
        return lambda: {"default": {split: _judged(content, relevant)}}
    if isinstance(content, Labelled):
        return lambda: DatasetDict(_labelled(folder, content, split))
    columns: dict[str, Any] = {"sentence1": content.left, "sentence2": content.right}
    if content.scores:
        columns["score"] = content.scores
    if content.labels:
        columns["labels"] = content.labels
    return lambda: DatasetDict({split: _table(columns)})


def _table(columns: Mapping[str, Iterable[Any]]) -> Dataset:
    return Dataset.from_dict({name: list(values) for name, values in columns.items()})


def _graded(folder: TaskFolder, content: Judged) -> dict[str, dict[str, int]]:
    """How well documents answer, in whole numbers; queries that none answers are left out."""
    found: dict[str, dict[str, int]] = {}
    for query, scores in content.relevant.items():
        if any(score > 0 for score in scores.values()):
            found[query] = {name: max(int(score), 0) for name, score in scores.items()}
            if any(score > 0 and score != int(score) for score in scores.values()):
                told = f'`score` of "{query}" must be a whole number for nDCG'
                raise DataError([Problem(str(folder.path / RETRIEVAL[2]), told)])
    if content.candidates is not None:
        missing = [query for query in found if query not in content.candidates]
        if missing:
            told = f'has no line for "{missing[0]}", which qrels.jsonl has an answer for'
            raise DataError([Problem(str(folder.path / "candidates.jsonl"), told)])
    return found


def _judged(content: Judged, relevant: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    queries = {name: text for name, text in content.queries.items() if name in relevant}
    ranked = None
    if content.candidates is not None:
        ranked = {query: list(content.candidates[query]) for query in queries}
    documents = content.documents
    return {
        "queries": _table({"id": queries.keys(), "text": queries.values()}),
        "corpus": _table({"id": documents.keys(), "text": documents.values()}),
        "relevant_docs": {query: dict(scores) for query, scores in relevant.items()},
        "top_ranked": ranked,
    }


def _labelled(folder: TaskFolder, content: Labelled, split: str) -> dict[str, Dataset]:
    """The texts that are tested, and for classification those that are learnt from.

    Where the folder has one file, half of every class is learnt from, as while training
    (`train.dev`), chosen by the texts alone.
    """
    names = {name: number for number, name in enumerate(sorted({*content.labels}))}
    if folder.kind == "clustering":
        return {split: _numbered(names, content.texts, content.labels)}
    if content.learnt is not None:
        names = {name: number for number, name in enumerate(sorted({*content.learnt.labels}))}
        learnt = _numbered(names, content.learnt.texts, content.learnt.labels)
        return {"train": learnt, split: _numbered(names, content.texts, content.labels)}
    halves = ClassificationEvaluator(content.texts, content.labels, folder.name, 1).halves()
    tables = [
        _numbered(names, [content.texts[i] for i in half], [content.labels[i] for i in half])
        for half in halves
    ]
    return {"train": tables[0], split: tables[1]}


def _numbered(names: Mapping[str, int], texts: Sequence[str], labels: Sequence[str]) -> Dataset:
    return _table({"text": texts, "label": [names[label] for label in labels]})
