"""The lineage of adapters that became one adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...checkpoint import StoredTensor
from ...checkpoint.adapter import SAFETENSORS
from ...checkpoint.adapter_config import CONFIG
from ...checkpoint.weights import read_object
from ..adapter_plan import AdapterPlan
from ..hashing import digest_of, file_digest
from ..inputs import stored_within
from ..reader import Reader
from ..taking_over import digest_read
from .inputs import place_of, weights_told
from .names import Names
from .of_merge import Origins, Recipes, content_of, origins_of
from .recipe import resolved


def origins(plan: AdapterPlan) -> Origins:
    """Look at what lies beside the adapters, their base and the recipe.

    Raises:
        CheckpointError: when a lineage of one of them, or a record of its training, is broken.
    """
    base = plan.members.base
    roots: dict[Path, tuple[str, ...]] = {base.root: tuple(one.path for one in base.modules)}
    roots |= {adapter.root: () for adapter in plan.members.adapters}
    tensors = [tensor for one in base.components.values() for tensor in one.tensors.values()]
    files = {stored.file: None for tensor in tensors for stored in stored_within(tensor)}
    files |= {tensor.file: None for tensor in _tensors(plan)}
    return origins_of(plan.recipe, roots, files)


def lineage_of(plan: AdapterPlan, found: Origins, folder: Path) -> dict[str, Any]:
    """The lineage of an adapter whose every other file is in the folder.

    The adapters' tensors, which are small, are read once more for it. Of their base no tensor is:
    of its files only the sizes are told.

    Raises:
        CheckpointError: when a file cannot be read any more.
    """
    with Reader() as reader:
        hashed = {place_of(one): digest_read(one, reader) for one in _tensors(plan)}
        written = weights_told(folder / SAFETENSORS, lambda one: digest_read(one, reader))
    others = sorted(path for path in folder.iterdir() if path.name != SAFETENSORS)
    outputs = {path.name: file_digest(path) for path in others if path.is_file()}
    outputs[CONFIG] = config_digest(folder / CONFIG)
    outputs[SAFETENSORS] = written["digest"]

    def told(names: Names) -> Recipes:
        base = names[plan.members.base.root]
        references = [member.reference for member in plan.recipe.members]
        adapters = dict(zip(references, plan.members.adapters, strict=True))

        def call(reference: str) -> str:
            adapter = adapters.get(reference)
            return base if adapter is None else f"{base}+{names[adapter.root]}"

        return resolved(plan.recipe, names, call), {}

    return content_of(found, told, hashed, (), outputs, result="adapter")


def config_digest(path: Path) -> str:
    """The hash of an adapter's configuration, but for where its base lies.

    Raises:
        CheckpointError: when it cannot be read.
    """
    content = {**read_object(path), "base_model_name_or_path": None}
    return digest_of(json.dumps(content, sort_keys=True).encode())


def _tensors(plan: AdapterPlan) -> list[StoredTensor]:
    """Every tensor of the adapters that become one."""
    found = []
    for adapter in plan.members.adapters:
        found += [side for one in adapter.updates.values() for side in (one.left, one.right)]
        found += adapter.whole.values()
    return found
