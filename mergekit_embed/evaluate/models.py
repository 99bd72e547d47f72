"""The models that are compared: what a command line calls them, and what they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint, open_reference
from ..checkpoint.reference import split
from ..engine import Plan
from ..engine.lineage.names import public_name
from ..errors import UsageError
from ..loading import load, load_and_digest, open_model, planned
from ..recipe import Recipe, load_all
from ..recipe import load as load_recipe
from ..recipe.nested import ENDINGS
from .identity import folder_revision, merged_revision, plan_revision

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

NAMED = re.compile(r"(?P<name>[\w.@+-]+)=(?P<reference>.+)")


@dataclass(frozen=True)
class Model:
    """A model that can be opened: a folder, or a recipe, whose result is never written.

    Attributes:
        name: what tables call it.
        reference: what the command line calls it.
        source: the folder as it was opened, or the plan of the merge.
        folder: where it lies, if it is a folder that users named.
        parents: of a recipe's result, the members and the base, with the folders they count from.
    """

    name: str
    reference: str
    source: Checkpoint | Plan = field(repr=False)
    folder: Path | None = None
    parents: tuple[str, ...] = ()
    folders: tuple[Path, ...] = (Path(),)

    @property
    def is_merged(self) -> bool:
        """True for the result of a recipe, which is known once the merge has run."""
        return isinstance(self.source, Plan)

    def revision(self, device: str = "auto") -> str:
        """The hash of all that its embeddings depend on; a recipe is merged for it."""
        if isinstance(self.source, Plan):
            return plan_revision(self.source, device)
        return folder_revision(self.source)

    def open(self, device: str, dtype: str) -> SentenceTransformer:
        """The model, ready to embed; errors as those of `loading.load`."""
        if isinstance(self.source, Plan):
            return load(self.source.recipe, device=device, dtype=dtype)
        return open_model(self.source.root, device, dtype)

    def merge(self, device: str, dtype: str) -> tuple[SentenceTransformer, str]:
        """What `open` and `revision` give of a recipe, whose members are read once for both."""
        assert isinstance(self.source, Plan)
        model, digests = load_and_digest(self.source, device=device, dtype=dtype)
        return model, merged_revision(self.source, digests)


def open_models(references: Sequence[str]) -> tuple[Model, ...]:
    """The models of a command line, each by a name of its own.

    A reference is a folder, a Hub id with perhaps `@revision`, either with `+ADAPTER`, or a recipe;
    a recipe with a sweep stands for all its models. `NAME=REFERENCE` gives a name.

    Raises:
        NotFoundError, CheckpointError, RecipeError, PlanError: when one is not there or broken.
        UsageError: when two have the same name and nothing tells them apart.
    """
    found = [model for reference in references for model in _opened(reference)]
    counts = Counter(model.name for model in found)
    named = [
        replace(model, name=_spelled(model)) if counts[model.name] > 1 else model for model in found
    ]
    twice = [name for name, count in Counter(one.name for one in named).items() if count > 1]
    if twice:
        raise UsageError(f"two models are called {twice[0]}; name one with `NAME={twice[0]}`")
    return tuple(named)


def _spelled(model: Model) -> str:
    given = NAMED.fullmatch(model.reference)
    return given["name"] if given and not Path(model.reference).exists() else model.reference


def _opened(reference: str) -> Iterator[Model]:
    given = NAMED.fullmatch(reference)
    if given and not Path(reference).exists():
        for model in _opened(given["reference"]):
            own = model.name.partition("/")[2]  # the point of a sweep
            name = f"{given['name']}/{own}" if own and _is_recipe(given["reference"]) else None
            yield replace(model, name=name or given["name"], reference=reference)
        return
    if _is_recipe(reference):
        for recipe in load_all(reference):
            yield _of_recipe(recipe, reference)
        return
    if split(reference, (Path(),))[1] is not None:
        folded = load_recipe({"merge_method": "passthrough", "models": [{"model": reference}]})
        yield replace(_of_recipe(folded, reference), name=Path(reference).name)
        return
    checkpoint = open_reference(reference, (Path(),))
    folder = checkpoint.root if Path(reference).expanduser().is_dir() else None
    yield Model(public_name(checkpoint.root), reference, checkpoint, folder)


def _is_recipe(reference: str) -> bool:
    path = Path(reference)
    return path.suffix in ENDINGS and not path.is_dir()


def _of_recipe(recipe: Recipe, reference: str) -> Model:
    plan = planned(recipe)
    parents = [member.reference for member in recipe.members]
    if recipe.base is not None:
        parents.append(recipe.base)
    name = f"{recipe.name}/{recipe.point}" if recipe.point else recipe.name
    found = tuple(dict.fromkeys(parents))
    return Model(name, reference, plan, None, found, recipe.source.folders)


def open_parents(model: Model, named: Sequence[str]) -> tuple[Model, ...]:
    """The models that drift is measured from: those that are named, else the members of a recipe.

    A member that is a recipe itself is opened as one; one that is written in place is left out.

    Raises:
        NotFoundError, CheckpointError, RecipeError, PlanError: when one is not there or broken.
    """
    if named:
        return open_models(named)
    found = []
    for reference in model.parents:
        paths = [folder / reference for folder in model.folders if _exists(folder / reference)]
        if paths or _is_hub(reference):
            found += list(_opened(str(paths[0]) if paths else reference))
    return tuple(found)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no name of a file, but what spells a recipe that is written in place
        return False


def _is_hub(reference: str) -> bool:
    from ..checkpoint.locate import HUB_ID

    return HUB_ID.fullmatch(reference.partition("+")[0]) is not None
