"""The adapters of a recipe with `adapter_output`, held against their one base and each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..checkpoint import (
    Checkpoint,
    LowRank,
    NotFoundError,
    StoredTensor,
    bare,
    is_derived_buffer,
    locate,
    open_checkpoint,
)
from ..checkpoint.adapter import PICKLE, Adapter, Place, read_adapter, spelled
from ..checkpoint.locate import PICKLES, is_folder
from ..checkpoint.reference import split
from ..errors import CheckpointError, Problem, RecipeError
from ..recipe import Recipe
from ..recipe.source import in_file_order
from ..recipe.values import Path as RecipePath
from .adapter_folder import module_of, savable
from .models import located

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Members:
    """The base, and every member's adapter with its label. `base.label` is how PEFT finds it."""

    base: Checkpoint
    adapters: tuple[Adapter, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Touched:
    """A tensor of the base that some member changes, or that is stored beside one.

    Attributes:
        key: as users see it, with the component's folder.
        place: its component's role, and its name in the base.
        name: as the result spells it, in the model that PEFT wraps.
        updates: what each member adds to it.
        wholes: what each member has in its place.
        embedding: rows of it are looked up.
        transposed: the factors are those of the transposed matrix.
        is_whole: it is stored whole.
        wrapped: it is stored whole in a module that has factors too.
    """

    key: str
    place: Place
    name: str
    base: StoredTensor
    updates: tuple[LowRank | None, ...]
    wholes: tuple[StoredTensor | None, ...]
    embedding: bool
    transposed: bool
    is_whole: bool
    wrapped: bool = False

    @property
    def stored_name(self) -> str:
        """The name of the whole tensor, as PEFT looks for it."""
        module, _, leaf = self.name.rpartition(".")
        return f"{module}.base_layer.{leaf}" if self.wrapped else self.name


@dataclass(frozen=True)
class Found:
    """Every tensor that the result changes, the modules it saves whole, and what does not fit."""

    tensors: tuple[Touched, ...]
    saved: frozenset[str]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def open_members(recipe: Recipe) -> Members:
    """Locate the base and every adapter, and read their headers.

    Raises:
        RecipeError: naming every member that is not there, or no adapter of the one base.
        CheckpointError: when the base or an adapter is broken, or does not fit the base.
    """
    folders = recipe.source.folders
    problems: list[Problem] = []
    roots: list[tuple[str, Path]] = []
    adapters: list[tuple[RecipePath, Path]] = []

    def find(reference: str, place: RecipePath, pickles: str = PICKLES) -> Path | None:
        try:
            return locate(reference, folders, pickles)
        except NotFoundError as error:
            problems.append(recipe.source.problem(place, str(error)))
            return None

    def model(reference: str, place: RecipePath) -> None:
        root = find(reference, place)
        if root is None:
            return
        roots.append((reference, root))
        first, home = roots[0]
        if root.resolve() != home.resolve():
            told = f"{reference} is not {first}; adapters become one only if their base is the same"
            problems.append(recipe.source.problem(place, told))

    if recipe.base is not None:
        model(recipe.base, ("base_model",))
    for member in recipe.members:
        place = (*member.place, "model")
        reference, adapter = split(member.reference, folders)
        if not adapter:
            told = "names no adapter; with `adapter_output`, each member is `BASE+ADAPTER`"
            problems.append(recipe.source.problem(place, told))
            continue
        model(reference, place)
        found = find(adapter, place, PICKLE)
        adapters += [(place, found)] if found else []
    if problems:
        raise RecipeError(in_file_order(problems))
    first, root = roots[0]
    base = _read(
        recipe, ("base_model",), lambda: open_checkpoint(root, _label(first, root, folders))
    )
    read = tuple(_read(recipe, at, partial(read_adapter, base, folder)) for at, folder in adapters)
    return Members(base, read, tuple(member.reference for member in recipe.members))


def _read(recipe: Recipe, place: RecipePath, read: Callable[[], Opened]) -> Opened:
    try:
        return read()
    except CheckpointError as error:
        raise CheckpointError(error.path, located(recipe, place, error)) from error


def touched(recipe: Recipe, members: Members) -> Found:
    """Every tensor that some member changes, under one spelling, and what is stored beside it."""
    base = members.base
    given = [_given(members, (role, name)) for role, name in _float_places(base)]
    given = [one for one in given if any(one.updates) or any(one.wholes)]
    problems = [f"{one.key} {wrong}" for one in given if (wrong := _misfit(one))]
    linear = {u.transposed for one in given for u in one.updates if u and not one.embedding}
    if len(linear) > 1:
        problems.append("the adapters do not agree on `fan_in_fan_out`")
    if not any(any(one.updates) for one in given):
        problems.append("no adapter has factors, without which PEFT loads none")
    prefixes, notes = _prefixes(base, given, problems)
    named = {
        (role, name): f"{prefixes[role]}{bare(name)}"
        for role, name in _float_places(base)
        if role in prefixes
    }
    tensors, saved = _with_saved(members, given, named, problems)
    return Found(
        tensors=tuple(tensors),
        saved=saved,
        problems=tuple(recipe.source.problem(("models",), told) for told in problems),
        notes=tuple(notes),
    )


def _float_places(base: Checkpoint) -> list[Place]:
    return [
        (role, name)
        for role, component in base.components.items()
        for name, tensor in component.tensors.items()
        if tensor.dtype.is_float and not is_derived_buffer(name)
    ]


def _given(members: Members, place: Place) -> Touched:
    """A tensor as the members' adapters have it, under the base's name."""
    role, name = place
    component = members.base.components[role]
    base = component.tensors[name]
    assert isinstance(base, StoredTensor)
    updates = tuple(adapter.updates.get(place) for adapter in members.adapters)
    wholes = tuple(adapter.whole.get(place) for adapter in members.adapters)
    return Touched(
        key=component.key(name),
        place=place,
        name=name,
        base=base,
        updates=updates,
        wholes=wholes,
        embedding=any(spelled(update.left).embedding for update in updates if update),
        transposed=any(update.transposed for update in updates if update),
        is_whole=any(wholes),
    )


def _misfit(one: Touched) -> str | None:
    """What keeps the factors of one tensor from standing side by side."""
    updates = [update for update in one.updates if update]
    if len({spelled(update.left).embedding for update in updates}) > 1:
        return "is an embedding to one adapter and a linear layer to another"
    if len({update.transposed for update in updates}) > 1 and one.embedding:
        return "has factors that stand across each other"
    return None


def _prefixes(
    base: Checkpoint, given: Sequence[Touched], problems: list[str]
) -> tuple[dict[str, str], list[str]]:
    """What the result puts before the bare names of each component that is touched.

    PEFT's names are those of the model that it wrapped: a bare transformer, one with a head, or the
    modules of sentence-transformers. Adapters that agree keep theirs; where they differ, the
    result is one of the bare transformer.
    """
    seen: dict[str, set[str]] = {}
    for one in given:
        role, name = one.place
        factors = [update.left for update in one.updates if update]
        for tensor in (*factors, *(whole for whole in one.wholes if whole)):
            prefix = spelled(tensor).name.removesuffix(bare(name))
            seen.setdefault(role, set()).add(prefix)
    roles = list(base.components)
    main = next((role for role in roles if "ransformer" in role), roles[0])
    agreed = all(len(found) == 1 for found in seen.values())
    if set(seen) <= {main}:
        mixed = f"the adapters were trained on {main}s with other names; the result is for the "
        notes = [] if agreed else [f"{mixed}bare one, as AutoModel loads it"]
        return {main: next(iter(seen.get(main, {""}))) if agreed else ""}, notes
    numbered = all(prefix[:1].isdigit() for found in seen.values() for prefix in found)
    if not agreed or not numbered:
        problems.append(
            "the adapters change several modules, under names of different models. Train them on "
            "the same, such as the whole SentenceTransformer"
        )
    return {role: min(found) for role, found in seen.items()}, []


def _with_saved(
    members: Members, given: Sequence[Touched], named: Mapping[Place, str], problems: list[str]
) -> tuple[list[Touched], frozenset[str]]:
    """The tensors under the result's names, with those that a saved module needs beside them."""
    adapted = {module_of(named[one.place]) for one in given if any(one.updates)}
    wholes = [named[one.place] for one in given if one.is_whole]
    wanted = {module_of(n) for n in wholes if not n.endswith(".bias")} - adapted
    saved = savable(wanted, {module_of(name) for name in named.values()} - {""}, adapted)
    lost = sorted(wanted - saved) + [name for name in wholes if not module_of(name)]
    if lost:
        problems.append(
            f"{', '.join(name or 'a tensor outside all modules' for name in lost[:3])} cannot be "
            "saved whole: PEFT would take other modules for it too"
        )
    known = {one.place: one for one in given}
    found = []
    for place, name in named.items():
        module = module_of(name)
        one = known.get(place)
        if one is not None:
            found.append(replace(one, name=name, wrapped=module in adapted))
        elif module in saved:
            found.append(replace(_given(members, place), name=name, is_whole=True))
    return found, frozenset(saved)


def _label(reference: str, root: Path, folders: tuple[Path, ...]) -> str:
    """What PEFT finds the base by: its folder, or its id on the Hub."""
    return str(root) if is_folder(reference, folders) else reference.partition("@")[0]
