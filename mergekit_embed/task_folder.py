"""Folders of local tasks: labelled texts that a model is measured on.

The files in a folder say which kind of task it is:

- `queries.jsonl`, `corpus.jsonl` (`id`, `text`, perhaps `title`) and `qrels.jsonl` (`query-id`,
  `corpus-id`, `score`): retrieval; with `candidates.jsonl` (`query-id`, `corpus-ids`): reranking;
- `labelled.jsonl` (`text`, `label`): classification, perhaps with texts to learn from in
  `learnt.jsonl`; or clustering, when `task.json` says so;
- `pairs.jsonl` (`sentence1`, `sentence2`): with `score` similarity, with `label` (0 or 1) pair
  classification, with neither two languages (bitext).

`task.json` or `task.yaml` may say more: see `About`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import DataError, Problem
from .rows import Plain, Scored, decoded, row_of, text_at

RETRIEVAL = ("queries.jsonl", "corpus.jsonl", "qrels.jsonl")
CANDIDATES = "candidates.jsonl"
LABELLED = "labelled.jsonl"
LEARNT = "learnt.jsonl"
PAIRS = "pairs.jsonl"
ABOUT = ("task.json", "task.yaml")
FILES = (*RETRIEVAL, CANDIDATES, LABELLED, LEARNT, PAIRS)

SHOWN = 20
"""How many bad lines are listed one by one."""

Kind = Literal[
    "retrieval",
    "reranking",
    "classification",
    "clustering",
    "similarity",
    "pair classification",
    "bitext",
]
Group = Literal["in-domain", "out-of-domain"]


class About(BaseModel):
    """What `task.json` or `task.yaml` may say of a task.

    Attributes:
        kind: classification or clustering, for labelled.jsonl; else what the files say anyway.
        name: what the task is called; its folder's name by default.
        group: whether the members were trained on such data; means are told of both groups.
        split: what results call this part of the data.
        prompt: put before the texts, or the queries and documents, in place of the model's own.
        language: as ISO 639-3 and ISO 15924 write it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind | None = None
    name: str | None = Field(default=None, min_length=1, pattern=r"^[^/\\]*$")
    group: Group | None = None
    split: str = Field(default="dev", min_length=1)
    prompt: str | dict[Literal["query", "document"], str] | None = None
    language: str = "eng-Latn"


@dataclass(frozen=True)
class Judged:
    """Queries, documents, and how well some of these answer some of those, by their names.

    `candidates` are the documents that are put in order for a query; None for all of them.
    """

    queries: Mapping[str, str]
    documents: Mapping[str, str]
    relevant: Mapping[str, Mapping[str, float]]
    candidates: Mapping[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Labelled:
    """Texts and the names of their classes; `learnt` are others, that a classifier learns from."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    learnt: Labelled | None = None


@dataclass(frozen=True)
class Paired:
    """Texts side by side: how alike they are, or whether (0 or 1), or two languages."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    scores: tuple[float, ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class TaskFolder:
    """A task as its folder has it, checked."""

    path: Path
    kind: Kind
    about: About
    content: Judged | Labelled | Paired

    @property
    def name(self) -> str:
        """What it is called."""
        return self.about.name or self.path.name


def is_task(folder: Path) -> bool:
    """True for a folder that holds a task, whole or not."""
    return any((folder / name).is_file() for name in FILES)


def read_task(folder: Path) -> TaskFolder:
    """The task of a folder.

    Raises:
        DataError: when the folder holds no task, or more than one, or bad lines.
    """
    about = _about(folder)
    files = [name for name in FILES if (folder / name).is_file()]
    judged = {*RETRIEVAL, CANDIDATES}
    if files and set(files) <= judged:
        kind: Kind = "reranking" if CANDIDATES in files else "retrieval"
        return TaskFolder(folder, _same(folder, about, kind), about, _judged(folder))
    if files in ([LABELLED], [LABELLED, LEARNT]):
        labelled: Kind = "clustering" if about.kind == "clustering" else "classification"
        return TaskFolder(folder, _same(folder, about, labelled), about, _labelled(folder))
    if files == [PAIRS]:
        pairs = _pairs(folder / PAIRS)
        paired: Kind = "bitext"
        if pairs.scores or pairs.labels:
            paired = "similarity" if pairs.scores else "pair classification"
        return TaskFolder(folder, _same(folder, about, paired), about, pairs)
    wanted = f"{', '.join(RETRIEVAL[:2])} and {RETRIEVAL[2]}, or {LABELLED}, or {PAIRS}"
    found = f"holds {', '.join(files)}" if files else "holds no dev task"
    if not folder.is_dir():
        found = "is no folder"
    raise DataError([Problem(str(folder), f"{found}; a dev task has {wanted}")])


def _about(folder: Path) -> About:
    """What the folder says of its task; all by default where it says nothing."""
    found = [folder / name for name in ABOUT if (folder / name).is_file()]
    if not found:
        return About()
    if len(found) > 1:
        raise DataError([Problem(str(folder), f"has both {' and '.join(ABOUT)}; remove one")])
    try:
        return About.model_validate(_parsed(found[0]))
    except ValidationError as error:
        problems = [
            Problem(str(found[0]), f"{'.'.join(map(str, one['loc'])) or 'content'}: {one['msg']}")
            for one in error.errors()
        ]
        raise DataError(problems) from error


def _parsed(path: Path) -> Any:
    """The content of a JSON or a YAML file.

    Raises:
        DataError: when it is neither.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else YAML(typ="safe").load(text)
    except (OSError, ValueError, RecursionError, YAMLError) as error:
        told = " ".join(str(error).split())
        raise DataError([Problem(str(path), f"cannot be read: {told}")]) from error


def _same(folder: Path, about: About, kind: Kind) -> Kind:
    """The kind that the files are of, when what is said of them is the same."""
    if about.kind not in (None, kind):
        told = f"its files are those of {kind}, and it says `kind: {about.kind}`"
        raise DataError([Problem(str(folder), told)])
    return kind


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


def _judged(folder: Path) -> Judged:
    missing = [file for file in RETRIEVAL if not (folder / file).is_file()]
    if missing:
        raise DataError([Problem(str(folder), f"has no {' and no '.join(missing)}")])
    problems = _Problems()
    files = [folder / file for file in RETRIEVAL]
    queries: dict[str, str] = dict(problems.lines(files[0], _text))
    corpus: dict[str, str] = dict(problems.lines(files[1], _text))
    relevant: dict[str, dict[str, float]] = {}
    for query, document, score in problems.lines(files[2], partial(_judgement, queries, corpus)):
        relevant.setdefault(query, {})[document] = score
    candidates = None
    if (folder / CANDIDATES).is_file():
        parse = partial(_candidates, queries, corpus)
        candidates = dict(problems.lines(folder / CANDIDATES, parse))
    problems.refuse()
    if not any(score > 0 for scores in relevant.values() for score in scores.values()):
        raise DataError([Problem(str(files[2]), "names no document that answers a query")])
    return Judged(queries, corpus, relevant, candidates)


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


def _known(name: str, names: Mapping[str, str], file: str) -> str:
    if name not in names:
        raise ValueError(f'"{name}" is not in {file}')
    return name


def _judgement(
    queries: Mapping[str, str], corpus: Mapping[str, str], content: Mapping[str, Any]
) -> tuple[str, str, float]:
    """What a line of qrels says: the query, the document, and how well it answers."""
    query = _known(_name(content, "query-id"), queries, RETRIEVAL[0])
    document = _known(_name(content, "corpus-id"), corpus, RETRIEVAL[1])
    score = content.get("score", 1)
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError("`score` must be a number, above 0 for a document that answers the query")
    return query, document, float(score)


def _candidates(
    queries: Mapping[str, str], corpus: Mapping[str, str], content: Mapping[str, Any]
) -> tuple[str, tuple[str, ...]]:
    """What a line of candidates says: the query, and the documents to put in order."""
    query = _known(_name(content, "query-id"), queries, RETRIEVAL[0])
    named = content.get("corpus-ids")
    if not isinstance(named, list) or not named:
        raise ValueError("`corpus-ids` must be a list of names of documents")
    listed = [_name({"corpus-ids": name}, "corpus-ids") for name in named]
    return query, tuple(_known(name, corpus, RETRIEVAL[1]) for name in listed)


def _labelled(folder: Path) -> Labelled:
    problems = _Problems()
    rows = problems.lines(folder / LABELLED, _labelled_row)
    others = folder / LEARNT
    learnt = problems.lines(others, _labelled_row) if others.is_file() else None
    problems.refuse()
    if learnt is None:
        _refuse_few(folder / LABELLED, rows)
        return _as_labelled(rows)
    _refuse_few(others, learnt)
    strange = sorted({str(row.label) for row in rows} - {str(row.label) for row in learnt})
    if strange or not rows:
        told = f'has the class "{strange[0]}", which {LEARNT} has not' if rows else "has no texts"
        raise DataError([Problem(str(folder / LABELLED), told)])
    found = _as_labelled(rows)
    return Labelled(found.texts, found.labels, _as_labelled(learnt))


def _as_labelled(rows: Sequence[Plain]) -> Labelled:
    return Labelled(tuple(row.text for row in rows), tuple(str(row.label) for row in rows))


def _refuse_few(path: Path, rows: Sequence[Plain]) -> None:
    counts = Counter(row.label for row in rows).most_common()
    if len(counts) < 2 or counts[-1][1] < 2:
        few = f'one text of "{counts[-1][0]}"' if len(counts) > 1 else f"{len(counts)} classes"
        message = f"has {few}; there must be two classes or more, with two texts or more each"
        raise DataError([Problem(str(path), message)])


def _labelled_row(content: Mapping[str, Any]) -> Plain:
    row = row_of(content)
    if not isinstance(row, Plain) or row.label is None:
        raise ValueError("must have `text`, and `label` with the name of a class")
    return row


def _pairs(path: Path) -> Paired:
    problems = _Problems()
    shapes: set[str] = set()

    def pair(content: Mapping[str, Any]) -> tuple[str, str, float]:
        found = [key for key in ("score", "label") if content.get(key) is not None]
        shapes.add(found[0] if found else "")
        if len(shapes) == 2:
            raise ValueError("all lines must have a `score`, or a `label`, or none")
        return _pair(content, found[0] if found else "")

    rows = problems.lines(path, pair)
    problems.refuse()
    values = tuple(value for _, _, value in rows)
    alone = next(iter(shapes), "")
    if len(rows) < 2 or (alone and len(set(values)) == 1):
        what = f"has one {alone} alone" if len(rows) > 1 else f"has {len(rows)} pairs"
        raise DataError([Problem(str(path), f"{what}, and nothing to be ranked")])
    left, right = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
    if alone == "label":
        return Paired(left, right, labels=tuple(map(int, values)))
    return Paired(left, right, scores=values if alone == "score" else ())


def _pair(content: Mapping[str, Any], value: str) -> tuple[str, str, float]:
    """Two texts, and what is known of the two."""
    if value == "score":
        row = row_of(content)
        if not isinstance(row, Scored):
            raise ValueError("must have `sentence1` and `sentence2`, and perhaps `score`")
        return row.left, row.right, row.score
    if value == "label" and content["label"] not in (0, 1):
        raise ValueError("`label` must be 1 for texts that say the same, and 0 for others")
    label = float(content["label"]) if value else 0.0
    return text_at(content, "sentence1"), text_at(content, "sentence2"), label


def every_text(content: Judged | Labelled | Paired) -> tuple[str, ...]:
    """All texts that are embedded to measure a model on a task."""
    if isinstance(content, Judged):
        return (*content.queries.values(), *content.documents.values())
    if isinstance(content, Labelled):
        return (*content.texts, *(content.learnt.texts if content.learnt else ()))
    return (*content.left, *content.right)
