"""The result of a recipe as a model that runs, without a model being written.

The model is built from a folder that has everything but the weights: files of the planned sizes
with the planned headers and a hole where the tensors would be, which take no room on the disk. The
merge then streams its bytes into the parameters.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .checkpoint import open_checkpoint
from .checkpoint.folder import Checkpoint
from .engine import Plan
from .engine.destination import copy_shell
from .engine.hashing import Hash
from .engine.merge import RecipeLike
from .engine.plan import Job
from .engine.planner import Planner
from .engine.run import Learned, Progress, Silent, Sink, run
from .engine.staging import write_json
from .errors import CheckpointError, RecipeError, UsageError
from .kernels import Raw, open_kernels
from .kernels.torch_backend import TORCH_TYPES, choose_device
from .recipe import load as load_recipe
from .statistics.embedder import quietly, stored_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentence_transformers import SentenceTransformer

SMALL = 10**9
"""Bytes of inputs below which compiling kernels takes longer than the merge."""


class IntoModel:
    """Takes the result of a merge into the tensors of a model; see `engine.run.Sink`."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        """`tensors`: of the model, by the job's name; a job of another name is left out."""
        self._tensors = tensors

    def wants(self, job: Job) -> bool:
        """See `Sink`: what the model has."""
        return job.name in self._tensors

    def write(self, job: Job, start: int, raw: Raw) -> None:
        """See `Sink`. Floats are rounded to the type that the model is loaded in."""
        tensor = self._tensors[job.name].detach()
        values = torch.from_numpy(np.ascontiguousarray(raw))
        values = values.view(TORCH_TYPES.get(job.dtype, tensor.dtype))
        tensor.view(-1)[start : start + len(values)].copy_(values)

    def finished(self, job: Job, learned: Learned) -> None:
        """See `Sink`: there is no file to close."""

    def notes(self, job: Job) -> Sequence[str]:
        """See `Sink`: nothing is there from before."""
        return ()


class _IntoHashes:
    """Takes the result of a merge into hashes, and keeps nothing else; see `engine.run.Sink`."""

    def __init__(self) -> None:
        self._hashes: dict[str, Hash] = {}

    def digests(self, plan: Plan) -> dict[str, str]:
        """The hash of every tensor, by the path of its file and its name."""
        return {place_of(plan, job): self._hashes[job.name].digest for job in plan.jobs}

    def wants(self, job: Job) -> bool:
        return True

    def write(self, job: Job, start: int, raw: Raw) -> None:
        self._hashes.setdefault(job.name, Hash()).add(raw)

    def finished(self, job: Job, learned: Learned) -> None:
        self._hashes.setdefault(job.name, Hash())

    def notes(self, job: Job) -> Sequence[str]:
        return ()


class _IntoBoth:
    """Takes the result of a merge into a model and into hashes at once; see `engine.run.Sink`."""

    def __init__(self, model: IntoModel, hashes: _IntoHashes):
        self._model, self._hashes = model, hashes

    def wants(self, job: Job) -> bool:
        return True

    def write(self, job: Job, start: int, raw: Raw) -> None:
        self._hashes.write(job, start, raw)
        if self._model.wants(job):
            self._model.write(job, start, raw)

    def finished(self, job: Job, learned: Learned) -> None:
        self._hashes.finished(job, learned)

    def notes(self, job: Job) -> Sequence[str]:
        return ()


def load(
    recipe: RecipeLike,
    *,
    device: str = "auto",
    dtype: str | None = None,
    progress: Progress | None = None,
) -> SentenceTransformer:
    """The merged model of a recipe, ready to embed texts; no model is written.

    It has the weights that `SentenceTransformer` finds in what `merge` writes, to the bit. Members
    are read once, chunk by chunk: the model is the only one that is ever whole in memory.

    Args:
        recipe: a YAML file, a mapping with the same keys, or a loaded `Recipe`.
        device: where the model is: "auto" (a CUDA device when there is one), "cpu", "cuda:1".
        dtype: of its weights ("float32", "bfloat16"); None for the one that its files name.
        progress: told of bytes and tensors as they are done.

    Raises:
        RecipeError, PlanError, CheckpointError: when the recipe or its models are wrong.
        UsageError: when it makes an adapter, or sentence-transformers is missing.
    """
    plan = planned(recipe)
    model, tensors = _opened(plan, device, dtype)
    _run(plan, IntoModel(tensors), device, progress)
    return model


def load_and_digest(
    plan: Plan, *, device: str = "auto", dtype: str | None = None
) -> tuple[SentenceTransformer, dict[str, str]]:
    """What `load` and `result_digests` give, for one streaming read of the members.

    Raises:
        NonFiniteError, CheckpointError, PlanError, UsageError: as these do.
    """
    model, tensors = _opened(plan, device, dtype)
    hashes = _IntoHashes()
    _run(plan, _IntoBoth(IntoModel(tensors), hashes), device)
    return model, hashes.digests(plan)


def planned(recipe: RecipeLike) -> Plan:
    """The plan of a merge whose result is not written.

    Raises:
        RecipeError, PlanError, CheckpointError: as those of `engine.plan`.
        UsageError: for a recipe that makes an adapter.
    """
    loaded = load_recipe(recipe)
    if loaded.adapter_output is not None:
        raise UsageError(
            f"{loaded.name} makes an adapter, which is no model by itself; merge it, and use "
            "MODEL+ADAPTER"
        )
    if loaded.search is not None:
        message = "has to be done first: `boom-search` writes a recipe of what it finds"
        raise RecipeError([loaded.source.problem(("search",), message, key=True)])
    return replace(Planner().plan(loaded, Path(loaded.name)), output=Path(loaded.name))


def result_digests(plan: Plan, device: str = "auto") -> dict[str, str]:
    """The hashes of the tensors that a merge gives, by the path of their file and their name.

    The members are read once and nothing is written.

    Raises:
        NonFiniteError, CheckpointError, PlanError: as a merge.
    """
    sink = _IntoHashes()
    _run(plan, sink, device)
    return sink.digests(plan)


def _run(plan: Plan, sink: Sink, device: str, progress: Progress | None = None) -> None:
    kernels = open_kernels(str(choose_device(device)), small=plan.bytes_in < SMALL)
    run([plan], kernels, [sink], progress or Silent())


def _opened(
    plan: Plan, device: str, dtype: str | None
) -> tuple[SentenceTransformer, dict[str, torch.Tensor]]:
    """The model of a plan before it has its weights, and the tensors that the jobs fill."""
    with shell_of(plan, holes=True) as folder:
        model = open_model(folder, device, dtype)
        checkpoint = open_checkpoint(folder, plan.recipe.name)
        return model, _by_job(plan, checkpoint, _tensors_of(model, checkpoint))


def place_of(plan: Plan, job: Job) -> str:
    """Where a tensor is: its component's folder and its name there, whatever shard holds it."""
    return posixpath.join(posixpath.dirname(plan.files[job.file].path), job.tensor)


@contextmanager
def shell_of(plan: Plan, *, holes: bool) -> Iterator[Path]:
    """A folder that is gone afterwards, with every file of the result but for its weights.

    `holes`: with weight files of the planned sizes and headers too, that have no data.
    """
    with TemporaryDirectory(prefix="mergekit_embed-") as place:
        folder = Path(place) / plan.recipe.name
        folder.mkdir(parents=True)
        copy_shell(plan, folder)
        for file in plan.files if holes else ():
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.header)
            with path.open("r+b") as opened:
                opened.truncate(file.size)
        for index in plan.indexes if holes else ():
            write_json(folder / index.path, index.content)
        yield folder


def open_model(folder: Path, device: str, dtype: str | None) -> SentenceTransformer:
    """The model of a folder, by sentence-transformers, without dropout.

    Raises:
        CheckpointError: when it cannot be loaded.
        UsageError: when sentence-transformers is missing.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UsageError("running a model needs `pip install 'mergekit_embed[train]'`") from error
    options: dict[str, Any] = {} if dtype is None else {"model_kwargs": {"dtype": dtype}}
    try:
        with quietly():
            model = SentenceTransformer(
                str(folder), device=str(choose_device(device)), local_files_only=True, **options
            )
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            folder, f"cannot be loaded by sentence-transformers: {reason}"
        ) from error
    return model.eval()


def _tensors_of(model: SentenceTransformer, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The model's parameters and stored buffers, by the checkpoint's key of each.

    Raises:
        CheckpointError: when the model holds what it has read under another name or shape.
    """
    tensors = model.state_dict(keep_vars=True)
    keys, unknown = stored_names(
        model, checkpoint, lambda module: module.state_dict(keep_vars=True).items()
    )
    known = {tensors[name].data_ptr() for name in keys}  # one that is tied has a second name
    for name in unknown:
        one = tensors[name]
        # What the files lack starts as the class makes it; a matrix of zeros came from a hole.
        if one.dim() > 1 and one.numel() and one.data_ptr() not in known and not one.any():
            told = f"has a tensor that is read into {name} under another name or shape"
            raise CheckpointError(checkpoint.label, f"{told}; merge it, and load the folder")
    return {key: tensors[name] for name, key in keys.items()}


def _by_job(
    plan: Plan, checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of the model, by the jobs that fill them."""
    jobs = {place_of(plan, job): job.name for job in plan.jobs}
    return {jobs[key]: tensor for key, tensor in tensors.items()}
