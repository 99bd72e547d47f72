"""The manifest of a merged model: a hash of everything in it, and of what it was made of.

It names no path of the machine that made it: a model is called by its Hub id and revision, or by
the name of its folder. A continued merge has the same manifest as one that was left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import StoredTensor
from ..version import __version__
from .fingerprint import recipe_digest
from .hashing import digest_of, file_digest
from .inputs import leaves
from .journal import Entry
from .lineage.names import public_name
from .plan import Plan
from .staging import JOURNAL

MANIFEST = "merge_manifest.json"

FORMAT = 1
"""Of the manifest; readers refuse others."""


def manifest(plan: Plan, entries: Mapping[str, Entry], folder: Path) -> dict[str, Any]:
    """What the manifest says of a model whose every other file is in the folder.

    Of weight files it has the hashes of the header and of every tensor, of the others that of the
    file. `inputs` has the files that were read, and the hashes of those of their tensors that were
    read from the first element to the last, as they are stored.

    Raises:
        OSError: when a file cannot be read.
    """
    return {
        "format": FORMAT,
        "mergekit_embed": __version__,
        "hash": "xxh3_128",
        "recipe": recipe_digest(plan.recipe),
        "files": _files(plan, folder),
        "tensors": {
            job.name: {
                "file": plan.files[job.file].path,
                "name": job.tensor,
                "dtype": str(job.dtype),
                "shape": list(job.result_shape),
                "digest": entries[job.name].digest,
            }
            for job in plan.jobs
        },
        "inputs": _inputs(plan, entries),
    }


def _files(plan: Plan, folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    weights = {file.path: file for file in plan.files}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted((there | weights.keys()) - {JOURNAL}):
        if name in weights:  # which may be on the Hub already, and no longer here
            found[name] = {"size": weights[name].size, "header": digest_of(weights[name].header)}
        else:
            path = folder / name
            found[name] = {"size": path.stat().st_size, "digest": file_digest(path)}
    return found


def input_folders(plan: Plan) -> dict[Path, str]:
    """What is read, in the order of the recipe, and what each folder is called."""
    models = {model.root: public_name(model.root) for model in plan.opened}
    models |= {model.adapter: public_name(model.adapter) for model in plan.opened if model.adapter}
    models |= {
        path.parent: public_name(path.parent)
        for path in plan.inputs
        if not any(path.is_relative_to(root) for root in models)
    }
    return models


def _inputs(plan: Plan, entries: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """The models that were read, in the order of the recipe."""
    models = input_folders(plan)
    files: dict[Path, dict[str, dict[str, Any]]] = {root: {} for root in models}

    def told(path: Path) -> dict[str, Any]:
        root = next(root for root in models if path.is_relative_to(root))
        name = path.relative_to(root).as_posix()
        return files[root].setdefault(name, {"size": plan.inputs[path].size, "tensors": {}})

    for path in plan.inputs:
        told(path)
    for job in plan.jobs:
        for tensor, digest in zip(leaves(job.tensors), entries[job.name].inputs, strict=True):
            if isinstance(tensor, StoredTensor) and digest is not None:
                told(tensor.file)["tensors"][tensor.name] = digest
    return [{"model": name, "files": files[root]} for root, name in models.items()]
