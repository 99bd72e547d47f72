"""The lineage of a model as a tree: what it was made from, what that was made from, and so on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.adapter_config import CONFIG
from ..checkpoint.weights import read_object
from ..engine.destination import is_model
from ..engine.lineage.names import public_name
from ..engine.lineage.records import TRAINING, training_of
from ..errors import CheckpointError
from ..methods import available
from ..recipe.suited import lists_of_models
from .lineage import find_lineage


@dataclass(frozen=True)
class Branch:
    """A model, or a merge that was never a folder, and what it was made from.

    Attributes:
        name: what it is called.
        role: what it is to the one above: "member", "base", "adapter", "statistics"; "" for none.
        facts: what there is to say of it, in a few words each.
        branches: what it was made from.
    """

    name: str
    role: str = ""
    facts: tuple[str, ...] = ()
    branches: tuple[Branch, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def tree_of(folder: str | Path) -> Branch:
    """The tree of whatever is in a folder: a merged model, a trained one, a training, any model.

    Raises:
        CheckpointError: when there is nothing of the kind, or its records cannot be read.
    """
    root = Path(folder).expanduser()
    lineage = find_lineage(root)
    if lineage is not None:
        name = public_name(lineage.path.parent)
        try:
            return _Tree(lineage.ancestors).merge(name, "", lineage.content)
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(lineage.path, f"is no lineage: {error!r}") from error
    if (root / TRAINING).is_file():
        return _training(root)
    if not root.is_dir() or not (is_model(root) or (root / CONFIG).is_file()):
        raise CheckpointError(root, "holds no model, no adapter and no training")
    return _model({"name": public_name(root), "training": training_of(root)}, "", ())


def _training(root: Path) -> Branch:
    """The folder of a training: its members, as far as they are there."""
    names = [name for one in _members(root).values() for name in one.get("models", ())]
    folders = [root / "members" / name for name in names]
    told = [(one.name, training_of(one)) for one in folders if one.is_dir()]
    branches = tuple(_model({"name": name, "training": one}, "member", ()) for name, one in told)
    return Branch(public_name(root), "", (f"a training of {len(branches)} members",), branches)


def _members(root: Path) -> Mapping[str, Mapping[str, Any]]:
    members = read_object(root / TRAINING).get("members")
    if not isinstance(members, dict) or not all(isinstance(o, dict) for o in members.values()):
        raise CheckpointError(root / TRAINING, "is no record of a training")
    return members


@dataclass
class _Tree:
    """A tree that grows. A lineage that comes again is not told again."""

    ancestors: Mapping[str, Mapping[str, Any]]
    seen: set[str] = field(default_factory=set)

    def merge(self, name: str, role: str, content: Mapping[str, Any]) -> Branch:
        """A model that was merged."""
        self.seen.add(content["digest"])
        models = {one["name"]: one for one in content["models"]}
        recipes = content.get("recipes", {})
        branches = tuple(self._made_from(content["recipe"], models, recipes))
        facts = (
            _method(content["recipe"]),
            f"mergekit_embed {content['mergekit_embed']}",
            str(content["times"].get("finished", ""))[:10],
            *_of_search(content.get("search")),
            content["digest"][:8],
        )
        return Branch(name, role, facts, branches)

    def _made_from(
        self,
        recipe: Mapping[str, Any],
        models: Mapping[str, Mapping[str, Any]],
        recipes: Mapping[str, Mapping[str, Any]],
    ) -> Iterator[Branch]:
        """The models of a recipe in its order, each once for every place it has there."""
        members, base = members_of(recipe), recipe.get("base_model")
        for entry in members:
            yield self._named(entry["model"], "member", _said(entry), models, recipes)
            if "statistics" in entry:
                yield Branch(entry["statistics"], "statistics")
        if base is not None and all(entry["model"] != base for entry in members):
            role = "base" if starts_at_base(recipe) else "base, for its files"
            yield self._named(base, role, (), models, recipes)

    def _named(
        self,
        reference: Any,
        role: str,
        said: tuple[str, ...],
        models: Mapping[str, Mapping[str, Any]],
        recipes: Mapping[str, Mapping[str, Any]],
    ) -> Branch:
        inner = reference if isinstance(reference, dict) else recipes.get(reference)
        if inner is not None:
            branches = tuple(self._made_from(inner, models, recipes))
            return Branch(_method(inner), role, (*said, "merged on the way"), branches)
        if reference in models:
            return self._of_model(models[reference], role, said)
        parts = reference.split("+")
        for place in range(1, len(parts)):
            first, last = "+".join(parts[:place]), "+".join(parts[place:])
            if (first in models or first in recipes) and last in models:
                start = self._named(first, "base", (), models, recipes)
                adapter = self._of_model(models[last], "adapter", ())
                return Branch(reference, role, said, (start, adapter))
        return Branch(reference, role, said)

    def _of_model(self, model: Mapping[str, Any], role: str, said: tuple[str, ...]) -> Branch:
        past = self.ancestors.get(model.get("lineage", ""))
        if past is None:
            return _model(model, role, said)
        changed = (f"changed since: {', '.join(model['changed'])}",) if "changed" in model else ()
        if past["digest"] in self.seen:
            return Branch(model["name"], role, (*said, *changed, f"see {past['digest'][:8]}"))
        found = self.merge(model["name"], role, past)
        return Branch(found.name, role, (*said, *changed, *found.facts), found.branches)


def starts_at_base(recipe: Mapping[str, Any]) -> bool:
    """Whether what is merged are differences from the base; it may be there for its files alone."""
    method = available().get(recipe["merge_method"])
    known = method is None or method.base in {"origin", "optional origin"}
    return known and recipe.get("base_model") is not None


def members_of(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of a recipe that are members, for the base may be listed without being one."""
    entries = [entry for _, models in lists_of_models(recipe) for entry in models]
    base = recipe.get("base_model")
    if starts_at_base(recipe):
        return [one for one in entries if one["model"] != base]
    method = available().get(recipe["merge_method"])
    first = method is not None and method.base == "first member" and base is not None
    if first and all(one["model"] != base for one in entries):
        return [{"model": base}, *entries]
    return entries


def _model(model: Mapping[str, Any], role: str, said: tuple[str, ...]) -> Branch:
    """A model that was not merged, as far as is known."""
    training = model.get("training")
    if not training:
        return Branch(model["name"], role, said)
    rows = sum(one.get("rows", 0) for one in training.get("data", {}).values())
    facts = [f"trained on {rows:,} rows", f"seed {training['seed']}"]
    if training.get("loss"):
        facts.append(f"loss {training['loss']['first']:.4g} to {training['loss']['last']:.4g}")
    if training.get("update"):
        facts.append(f"update {training['update'].get('number', '')} of a model".replace("  ", " "))
    base = Branch(training["base"]["name"], "base")
    return Branch(model["name"], role, (*said, *facts), (base,))


def _method(recipe: Mapping[str, Any]) -> str:
    count = len(members_of(recipe))
    return f"{recipe['merge_method']} of {count} model{'s' if count > 1 else ''}"


def _said(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What a recipe says of one of its models: parameters of its own, layers, group."""
    own = (entry.get("parameters") or {}).items()
    found = [f"{name} {value:g}" for name, value in own if isinstance(value, int | float)]
    found += [f"{name} by tensor" for name, value in own if not isinstance(value, int | float)]
    if "layer_range" in entry:
        found.append(f"layers {entry['layer_range'][0]} to {entry['layer_range'][1] - 1}")
    if entry.get("group"):
        found.append(f"group {entry['group']}")
    return tuple(found)


def _of_search(search: Mapping[str, Any] | None) -> tuple[str, ...]:
    if not search:
        return ()
    value = search.get("value", {})
    shown = [f"{one:.4g}" for one in (value.get("first"), value.get("best")) if one is not None]
    return (f"searched by {search['strategy']}: {search['objective']} {' to '.join(shown)}",)
