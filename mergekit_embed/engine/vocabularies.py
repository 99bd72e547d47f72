"""One vocabulary for all models of a recipe: whose rows go where, and what the files say of it.

The row of a token of a model is the model's own row for that token. Where the model lacks it, it
is the base's row, if the recipe has a base that has it, else the mean of the rows of the members
that do. Rows of tokens that nobody has a row for, and of no token at all, are zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..checkpoint import (
    Checkpoint,
    Matcher,
    RemappedTensor,
    Tables,
    Tensor,
    Vocabulary,
    find_tables,
    has_tokenizer,
    read_vocabulary,
)
from ..checkpoint.remapped import Rows, fallback_for
from ..checkpoint.vocabulary import MAX_ROWS, SENTENCEPIECE
from ..errors import CheckpointError, Problem
from ..recipe import Recipe
from ..recipe.values import Path as Place
from .joining import TOKENIZER
from .models import Models, located
from .tokenizer_files import (
    TokenizerFiles,
    config_of,
    files_of,
    joined_files,
    tokens_in_config,
    unjoinable,
)


@dataclass(frozen=True)
class Remapping:
    """The models with the rows of the result, and what is written beside the weights."""

    models: Models
    files: TokenizerFiles = field(default_factory=TokenizerFiles)
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def plan_vocabulary(recipe: Recipe, models: Models) -> Remapping:
    """Bring the tables of all models to the vocabulary and the rows that the recipe asks for.

    Models that have both already are left as they are, and nothing is read for them but JSON.

    Raises:
        CheckpointError: when a tokenizer is needed and cannot be read.
    """
    if recipe.tokenizer_source is None and recipe.pad_to_multiple_of is None:
        return Remapping(models)
    planning = _Planning(recipe, models)
    if recipe.tokenizer_source is None:
        return planning.padded()
    return planning.remapped()


@dataclass(frozen=True)
class _Model:
    """One model of the recipe, with the tables that its tokenizer has the numbers of."""

    checkpoint: Checkpoint
    place: Place
    tables: tuple[Tables, ...]

    @property
    def rows(self) -> int:
        return self.tables[0].rows if self.tables else 0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tables by their names."""
        if not self.tables:
            return {}
        first = self.tables[0]
        tensors = self.checkpoint.components[first.role].tensors
        return {name: tensors[name] for name in first.names}


@dataclass(frozen=True)
class _Result:
    """The vocabulary of the result.

    Attributes:
        ids: number of each token.
        rows: how many rows the tables have.
        taken: which tokens come from which model, for those that bring any.
    """

    ids: Mapping[str, int]
    rows: int
    taken: tuple[tuple[Checkpoint, frozenset[str]], ...] = ()


class _Planning:
    """The models of a recipe on their way to one vocabulary."""

    def __init__(self, recipe: Recipe, models: Models):
        self.recipe, self.given = recipe, models
        self.models = list(_described(models))
        self.shell = self._of(models.shell)
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def _of(self, checkpoint: Checkpoint) -> _Model:
        return next(model for model in self.models if model.checkpoint is checkpoint)

    def _problem(self, place: Place, message: str) -> None:
        self.problems.append(self.recipe.source.problem(place, message))

    def _refuse(self, wrong: Sequence[tuple[Checkpoint, str]]) -> None:
        for checkpoint, message in wrong:
            self._problem(self._of(checkpoint).place, message)

    def padded(self) -> Remapping:
        """The tables with zero rows behind their own; numbers stay."""
        rows = self._rounded(self.shell.rows)
        self._check_tables()
        if self.problems:
            return Remapping(self.given, problems=tuple(self.problems))
        tables: dict[int, dict[str, Tensor]] = {}
        for model in self.models:
            if model.rows < rows:
                own = np.full(rows, -1, dtype=np.int32)
                own[: model.rows] = np.arange(model.rows)
                tables[id(model.checkpoint)] = {
                    name: RemappedTensor(name, tensor, own)
                    for name, tensor in model.tensors.items()
                }
        return self._finished(tables, {}, TokenizerFiles(), None, rows)

    def remapped(self) -> Remapping:
        """The tables in the order of the result's tokens."""
        target = self._target()
        files = files_of(target.checkpoint, self.shell.checkpoint)
        if self.recipe.tokenizer_source == "union":
            others = [m.checkpoint for m in self.models if m is not target]
            self._refuse(unjoinable(target.checkpoint, others))
        alike = all(_alike(model.checkpoint, target.checkpoint) for model in self.models)
        same_rows = {model.rows for model in self.models} == {self._rounded(target.rows)}
        nothing_to_pad = not target.tables and self.recipe.pad_to_multiple_of is None
        if alike and (same_rows or nothing_to_pad):
            return Remapping(self.given, files, problems=tuple(self.problems))
        vocabularies = self._read(target)
        self._check_tables(vocabularies)
        if self.problems:
            return Remapping(self.given, problems=tuple(self.problems))
        result = self._result(target, vocabularies)
        if result.taken:
            files, wrong = joined_files(target.checkpoint, result.taken, result.ids)
            self._refuse(wrong)
        own = [_own_rows(v.ids, result) for v in vocabularies]
        tables = self._gathered(own, result)
        self._tell(vocabularies, result)
        texts = {id(m.checkpoint): v for m, v in zip(self.models, vocabularies, strict=True)}
        return self._finished(tables, texts, files, result.ids, result.rows)

    def _target(self) -> _Model:
        """The model whose tokens keep their numbers."""
        source = self.recipe.tokenizer_source
        if source in {"base", "union"}:
            return self.shell
        base = self.given.base
        if base is not None and base.label == source:
            return self._of(base)
        return self._of(self.given.opened(str(source)))

    def _rounded(self, rows: int) -> int:
        of = self.recipe.pad_to_multiple_of or 1
        return -(-rows // of) * of

    def _read(self, target: _Model) -> list[Vocabulary]:
        """The vocabulary of every model; one without a tokenizer is taken to have the target's."""
        found = self._vocabulary(target)
        alike = [_alike(model.checkpoint, target.checkpoint) for model in self.models]
        return [
            found if same else self._vocabulary(model)
            for model, same in zip(self.models, alike, strict=True)
        ]

    def _vocabulary(self, model: _Model) -> Vocabulary:
        try:
            return read_vocabulary(model.checkpoint)
        except CheckpointError as error:
            raise CheckpointError(error.path, located(self.recipe, model.place, error)) from error

    def _check_tables(self, vocabularies: Sequence[Vocabulary] | None = None) -> None:
        """Every model has one set of tables, of numbers that can be merged, with enough rows."""
        for index, model in enumerate(self.models):
            label = model.checkpoint.label
            if len(model.tables) != 1:
                has = "several tables" if model.tables else "no table that is known"
                self._problem(model.place, f"{label} has {has} of token embeddings")
                continue
            if model.rows > MAX_ROWS:
                message = f"{model.checkpoint.label} has a table of {model.rows:,} rows"
                self._problem(model.place, f"{message}; no more than {MAX_ROWS:,} can be moved")
            for name, tensor in model.tensors.items():
                if not tensor.dtype.is_float:
                    message = f"{label} stores {name} as {tensor.dtype}, whose rows cannot be moved"
                    self._problem(model.place, f"{message}; use the unquantised model")
            size = vocabularies[index].size if vocabularies else 0
            if size > model.rows:
                self._problem(
                    model.place,
                    f"{label} numbers its tokens up to {size - 1}, and {model.tables[0].names[0]} "
                    f"has {model.rows} rows. Resize it to its tokenizer: "
                    "model.resize_token_embeddings(len(tokenizer))",
                )

    def _result(self, target: _Model, vocabularies: Sequence[Vocabulary]) -> _Result:
        ids = dict(vocabularies[self.models.index(target)].ids)
        taken: list[tuple[Checkpoint, frozenset[str]]] = []
        if self.recipe.tokenizer_source == "union":
            following = max(ids.values(), default=-1) + 1
            for model, vocabulary in zip(self.models, vocabularies, strict=True):
                mine = vocabulary.ids
                new = sorted((token for token in mine if token not in ids), key=mine.__getitem__)
                ids |= {token: number for number, token in enumerate(new, start=following)}
                following += len(new)
                taken += [(model.checkpoint, frozenset(new))] if new else []
        size = max(ids.values(), default=-1) + 1
        return _Result(ids, self._rounded(max(size, target.rows)), tuple(taken))

    def _gathered(self, own: Sequence[Rows], result: _Result) -> dict[int, dict[str, Tensor]]:
        """The tables that change, by the model's identity and their names."""
        token = np.zeros(result.rows, dtype=bool)
        token[list(result.ids.values())] = True
        straight = np.arange(result.rows, dtype=np.int32)
        moved = [
            model.rows != result.rows or bool((rows != straight)[token].any())
            for model, rows in zip(self.models, own, strict=True)
        ]
        if not any(moved):
            return {}
        lacked = np.any([(rows < 0) & token for rows in own], axis=0)
        rows = np.flatnonzero(lacked).astype(np.int32)
        sources = list(self._sources(own, rows))
        return {
            id(model.checkpoint): {
                name: self._table(name, tensor, mine, rows, sources)
                for name, tensor in model.tensors.items()
            }
            for model, mine, moves in zip(self.models, own, moved, strict=True)
            if moves or not token.all()
        }

    def _sources(self, own: Sequence[Rows], rows: Rows) -> Iterator[tuple[_Model, Rows]]:
        """Where the members, and first of all the base, have rows for tokens that some lack."""
        places = {
            id(model.checkpoint): mine[rows] for model, mine in zip(self.models, own, strict=True)
        }
        base = [self.given.base] if self.given.base is not None else []
        for checkpoint in (*base, *self.given.members):
            yield self._of(checkpoint), places[id(checkpoint)]

    def _table(
        self,
        name: str,
        tensor: Tensor,
        own: Rows,
        rows: Rows,
        sources: Sequence[tuple[_Model, Rows]],
    ) -> Tensor:
        """One table of one model, with the rows of the same table elsewhere where it lacks some."""
        found: list[tuple[Tensor, Rows]] = []
        taken = np.zeros(len(rows), dtype=bool)
        for index, (model, places) in enumerate(sources):
            theirs = Matcher(model.tensors).find(name)
            if theirs is None or model.tensors[theirs].shape[1:] != tensor.shape[1:]:
                continue
            found.append((model.tensors[theirs], np.where(taken, np.int32(-1), places)))
            if index == 0 and self.given.base is not None:
                taken = places >= 0
        fallback = fallback_for(own, rows, [t for t, _ in found], [p for _, p in found])
        return RemappedTensor(name, tensor, own, fallback)

    def _tell(self, vocabularies: Sequence[Vocabulary], result: _Result) -> None:
        """What the user should know of every model that has other tokens, or other numbers."""
        base = self.given.base
        if all(vocabulary.ids == result.ids for vocabulary in vocabularies):
            return
        for model, vocabulary in zip(self.models, vocabularies, strict=True):
            mine = vocabulary.ids
            lacks = len(result.ids.keys() - mine.keys())
            drops = len(mine.keys() - result.ids.keys())
            told = []
            if any(result.ids.get(token, number) != number for token, number in mine.items()):
                told.append("numbers its tokens otherwise, and its rows are put in order")
            if lacks:
                first = f"{base.label}'s row, or " if base and base is not model.checkpoint else ""
                told.append(f"lacks {_tokens(lacks)}, and takes {first}the members' mean for each")
            if drops:
                told.append(f"has {_tokens(drops)} that the result leaves out")
            if told:
                self.notes.append(f"{model.checkpoint.label} {'; '.join(told)}")
        self.notes.append(f"the result has {_tokens(len(result.ids))} and {result.rows} rows")

    def _finished(
        self,
        tables: Mapping[int, Mapping[str, Tensor]],
        vocabularies: Mapping[int, Vocabulary],
        files: TokenizerFiles,
        ids: Mapping[str, int] | None,
        rows: int,
    ) -> Remapping:
        """The models with their new tables, and configurations that speak of tokens by name."""
        made: dict[int, Checkpoint] = {}
        for model in self.models:
            old = model.checkpoint
            new = _with_tables(model, tables.get(id(old), {}))
            vocabulary = vocabularies.get(id(old))
            if vocabulary is not None:
                new = replace(new, facts=tokens_in_config(new.facts, vocabulary))
            made[id(old)] = new
        given = self.given
        models = replace(
            given,
            members=tuple(made[id(member)] for member in given.members),
            base=made[id(given.base)] if given.base is not None else None,
            shell=made[id(given.shell)],
        )
        if self.shell.tables:
            folder = given.shell.components[self.shell.tables[0].role].path
            mine = vocabularies.get(id(given.shell))
            changed = rows if rows != self.shell.rows else None
            told = config_of(given.shell.root, folder, changed, mine, ids)
            files = replace(files, told={**files.told, **told})
        return Remapping(models, files, tuple(self.notes), tuple(self.problems))


def _described(models: Models) -> Iterator[_Model]:
    """Every model once: the shell, the base, and the members in their order."""
    places = {id(m): p for p, m in reversed([*zip(models.places, models.members, strict=True)])}
    if models.base is not None:
        places[id(models.base)] = ("base_model",)
    ordered = [models.shell, *([models.base] if models.base else []), *models.members]
    for checkpoint in {id(model): model for model in ordered}.values():
        found = [find_tables(component) for component in checkpoint.components.values()]
        tables = tuple(table for table in found if table is not None)
        yield _Model(checkpoint, places[id(checkpoint)], tables)


def _alike(model: Checkpoint, target: Checkpoint) -> bool:
    """True where two models surely number their tokens alike, so that nothing need be read.

    A model without a tokenizer says nothing else. SentencePiece's models are compared by
    their bytes, since nothing else is known of them; other lists are read, as what is added to
    them is kept elsewhere.
    """
    if model is target or not (has_tokenizer(model) and has_tokenizer(target)):
        return True
    facts = [m.facts.get("vocabulary") for m in (model, target)]
    mine, theirs = ({} if fact is None else fact.value for fact in facts)
    if TOKENIZER in mine and TOKENIZER in theirs:
        return bool(mine[TOKENIZER] == theirs[TOKENIZER])
    return any(name in mine and mine[name] == theirs.get(name) for name in SENTENCEPIECE)


def _own_rows(ids: Mapping[str, int], result: _Result) -> Rows:
    """The model's row for each row of the result; -1 for tokens that it lacks, and for none."""
    own = np.full(result.rows, -1, dtype=np.int32)
    common = [(number, ids[token]) for token, number in result.ids.items() if token in ids]
    if common:
        places, rows = zip(*common, strict=True)
        own[list(places)] = rows
    return own


def _tokens(count: int) -> str:
    return f"{count} token{'s' if count > 1 else ''}"


def _with_tables(model: _Model, tables: Mapping[str, Tensor]) -> Checkpoint:
    if not tables:
        return model.checkpoint
    components = dict(model.checkpoint.components)
    component = components[model.tables[0].role]
    components[component.role] = replace(component, tensors={**component.tensors, **tables})
    return replace(model.checkpoint, components=components)
