"""The lineage of a merge: what a model was made from, written into its folder as it is committed.

Of weights it has the hashes that were taken as they went by; nothing is read for it but the
settings of the models, which are small.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from ...checkpoint import StoredTensor
from ...recipe import Recipe
from ...version import __version__
from ..fingerprint import NUMERICS
from ..hashing import digest_of
from ..inputs import leaves
from ..journal import Entry
from ..measured import statistics_folder
from ..nested import plans_within
from ..plan import Plan
from .file import FORMAT
from .inputs import (
    Hashed,
    Input,
    digest_of_lines,
    inputs_of,
    line_of,
    place_of,
    told,
)
from .names import Names
from .recipe import recipe_told
from .records import search_of

Recipes = tuple[dict[str, Any], dict[str, dict[str, Any]]]
"""See `recipe_told`."""


@dataclass(frozen=True)
class Origins:
    """What is known of a merge before it runs.

    Attributes:
        recipe: what is merged.
        inputs: the folders that are read.
        names: what they are called.
        search: what the recipe's search has found, where it comes from one.
        began: when the merge began.
    """

    recipe: Recipe
    inputs: tuple[Input, ...]
    names: Names
    search: Mapping[str, Any] | None
    began: datetime


def origins(plan: Plan) -> Origins:
    """Look at what lies beside the models and the recipe of a merge.

    Raises:
        CheckpointError: when a model's own lineage, or a record of its training, is broken.
    """
    return origins_of(plan.recipe, _roots(plan), plan.inputs)


def origins_of(
    recipe: Recipe, roots: Mapping[Path, Iterable[str]], weights: Iterable[Path]
) -> Origins:
    """As `origins`, of folders that are read and their weight files; see `inputs_of`.

    Raises:
        CheckpointError: as `origins` does.
    """
    search = search_of(recipe.source.file)
    return Origins(recipe, inputs_of(roots, weights), Names(roots), search, datetime.now(UTC))


def _roots(plan: Plan) -> dict[Path, tuple[str, ...]]:
    """The models, then the adapters, then the statistics, as the manifest has them."""
    found = {model.root: tuple(one.path for one in model.modules) for model in plan.opened}
    within = plans_within(plan)
    models = [
        model for one in within for model in (*one.members, *([one.base] if one.base else []))
    ]
    found |= {model.adapter: () for model in models if model.adapter}
    for one in within:
        for member in one.recipe.members:
            if member.statistics is not None:
                found[statistics_folder(one.recipe, member.statistics)] = ()
    return found


def lineage_of(
    plan: Plan, found: Origins, entries: Mapping[str, Entry], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """The lineage of a merged model.

    Args:
        plan: of the merge.
        found: by `origins`, before it ran.
        entries: what was written and read, by the jobs' names.
        manifest: of the same model.

    Raises:
        CheckpointError: when a file of a model cannot be read any more.
    """
    hashed: dict[tuple[str, int], str] = {}
    composed: list[str] = []
    for job in plan.jobs:
        for tensor, digest in zip(leaves(job.tensors), entries[job.name].inputs, strict=True):
            if isinstance(tensor, StoredTensor):
                hashed |= {place_of(tensor): digest} if digest is not None else {}
            elif digest is not None:
                composed.append(line_of(job.name, str(tensor.read_as), tensor.shape, digest))
    return content_of(
        found, lambda names: recipe_told(plan, names), hashed, composed, _outputs(manifest)
    )


def _outputs(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The hash of every file, from those of its tensors where it has some."""
    found = {name: one["digest"] for name, one in manifest["files"].items() if "digest" in one}
    tensors = sorted(manifest["tensors"].values(), key=lambda one: (one["file"], one["name"]))
    for file, own in groupby(tensors, key=lambda one: str(one["file"])):
        lines = (line_of(o["name"], o["dtype"], o["shape"], o["digest"]) for o in own)
        found[file] = digest_of_lines(lines)
    for name in manifest["files"].keys() - found.keys():  # a weight file without tensors
        found[name] = digest_of_lines(())
    return dict(sorted(found.items()))


def content_of(
    found: Origins,
    told_with: Callable[[Names], Recipes],
    hashed: Hashed,
    composed: Iterable[str],
    outputs: Mapping[str, str],
    *,
    result: str = "model",
) -> dict[str, Any]:
    """What a lineage says.

    Args:
        found: what was known before the merge.
        told_with: tells the recipe with the models called by such names.
        hashed: what was read as it is stored.
        composed: lines of what was made of several tensors as it was read.
        outputs: the hash of every file that was written.
        result: "model" or "adapter".

    Raises:
        CheckpointError: when a file of a model cannot be read any more.
    """
    recipe, files = told_with(found.names)
    models = [told(one, found.names, hashed) for one in found.inputs]
    joined = digest_of_lines(composed)
    alike = told_with(found.names.numbered())
    determined = [NUMERICS, *alike, [one["files"] for one in models], joined]
    now = datetime.now(UTC)
    content: dict[str, Any] = {
        "lineage": FORMAT,
        "mergekit_embed": __version__,
        "numerics": NUMERICS,
        "hash": "xxh3_128",
        "name": found.recipe.name,
        "point": found.recipe.point,
        "result": result,
        "digest": digest_of(json.dumps(_whole(determined), sort_keys=True).encode()),
        "recipe": recipe,
        "recipes": files,
        "models": models,
        "composed": joined,
        "search": found.search,
        "outputs": dict(outputs),
        "ancestors": _ancestors(found.inputs),
        "times": {
            "finished": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "seconds": round((now - found.began).total_seconds(), 3),
        },
    }
    optional = {"point", "recipes", "search"}
    return {key: value for key, value in content.items() if value or key not in optional}


def _whole(value: Any) -> Any:
    """The same with whole numbers for those that are: 1 and 1.0 say the same."""
    if isinstance(value, dict):
        return {key: _whole(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


MAX_ANCESTORS = 6_000_000
"""Characters of the lineages of ancestors: what is read of a JSON file has an end too."""


def _ancestors(inputs: Iterable[Input]) -> dict[str, Any]:
    """The lineages of the models, and of theirs, each once, by their digests: the nearest first.

    The farthest are left out where a family has grown so large that nobody could read all of it.
    """
    parents = [one.parent for one in inputs if one.parent is not None]
    nearest = [
        (one["digest"], {k: v for k, v in one.items() if k != "ancestors"}) for one in parents
    ]
    farther = [pair for one in parents for pair in one["ancestors"].items()]
    found: dict[str, Any] = {}
    size = 0
    for digest, lineage in (*nearest, *farther):
        if digest not in found:
            size += len(json.dumps(lineage, indent=2))
            if size > MAX_ANCESTORS:
                break
            found[digest] = lineage
    return found


def _alone(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """A lineage without those of its ancestors."""
    return {key: value for key, value in lineage.items() if key != "ancestors"}
