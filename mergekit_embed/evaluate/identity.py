"""What a model is: a hash of all that its embeddings depend on.

Of the tensors (each by itself, so that shards and formats do not matter), the modules, the
pooling, the tokenizer, the prompts. Not of the folder's name or place, and not of what tells people
of a model. A merge that is not written has the hash of the folder that it would be written to.

Everything is read and hashed each time. A merge's manifest has the same hashes, but nothing says
that the files have not changed since, and a score that is another model's is worse than a second of
reading.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, StoredTensor
from ..engine import Plan
from ..engine.destination import shell_files
from ..engine.hashing import digest_of, file_digest, range_digest
from ..errors import UsageError
from ..kernels import cpu_workers
from ..loading import place_of, result_digests, shell_of

BEHAVING = {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken"}
"""Files beside the weights that may change embeddings."""


def folder_revision(checkpoint: Checkpoint) -> str:
    """The hash of a model in a folder: 32 hexadecimal digits.

    Raises:
        CheckpointError: when a file cannot be read.
        UsageError: for a model that is not stored as it is, such as one with an adapter.
    """
    stored: dict[str, StoredTensor] = {}
    for component in checkpoint.components.values():
        for name, tensor in component.tensors.items():
            if not isinstance(tensor, StoredTensor):
                raise UsageError(f"{checkpoint.label}: is no model in a folder")
            stored[posixpath.join(component.path, name)] = tensor
    with ThreadPoolExecutor(cpu_workers()) as pool:
        digests = dict(zip(stored, pool.map(_digest, stored.values()), strict=True))
    tensors = {
        place: [str(tensor.dtype), list(tensor.shape), digests[place]]
        for place, tensor in stored.items()
    }
    return _revision(tensors, _files(checkpoint.root))


def plan_revision(plan: Plan, device: str = "auto") -> str:
    """The hash that the result of a merge has, as `folder_revision` finds it in the written model.

    Reads the members once and keeps nothing.

    Raises:
        NonFiniteError, CheckpointError, PlanError: as a merge.
    """
    return merged_revision(plan, result_digests(plan, device))


def merged_revision(plan: Plan, digests: Mapping[str, str]) -> str:
    """The hash of the result of a merge, from the hashes of its tensors."""
    tensors = {
        place: [str(job.dtype), list(job.result_shape), digests[place]]
        for place, job in ((place_of(plan, job), job) for job in plan.jobs)
    }
    with shell_of(plan, holes=False) as folder:
        return _revision(tensors, _files(folder))


def _digest(tensor: StoredTensor) -> str:
    if tensor.strides is not None:  # a view, whose elements lie apart
        return f"{file_digest(tensor.file)} {tensor.offset} {list(tensor.strides)}"
    return range_digest(tensor.file, tensor.offset, tensor.nbytes)


def _files(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): file_digest(path)
        for path in shell_files(root)
        if path.suffix in BEHAVING and not path.name.startswith("LICENSE")
    }


def _revision(tensors: Mapping[str, Any], files: Mapping[str, str]) -> str:
    content = {"tensors": tensors, "files": files}
    return digest_of(json.dumps(content, sort_keys=True).encode())
