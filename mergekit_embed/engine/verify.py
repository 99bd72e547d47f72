"""Checking a merged model: against its manifest, and against what its recipe gives again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ..checkpoint.safetensors_file import read_header
from ..checkpoint.tensor import StoredTensor
from ..checkpoint.weights import inside, read_object
from ..errors import CheckpointError, Problem
from ..kernels import BLOCK, cpu_workers, open_kernels
from ..recipe import Recipe, load_all
from .destination import NOT_SHELL
from .fingerprint import recipe_digest
from .hashing import digest_of, file_digest, range_digest
from .manifest import FORMAT, MANIFEST
from .merge import RecipeLike
from .plan import Job, Plan
from .planner import Planner
from .run import derive

Ranges = dict[str, list[tuple[int, int]]]
"""Elements of tensors: the first, and the one after the last, by the tensor's name."""


@dataclass(frozen=True)
class Verified:
    """What a check of a model found.

    Attributes:
        path: the model's folder.
        tensors: how many were compared with their hashes.
        files: how many other files were.
        samples: how many ranges of elements were merged again and compared.
        faults: everything that is not as it should be, with the file or the tensor.
    """

    path: Path
    tensors: int
    files: int
    samples: int
    faults: tuple[Problem, ...]

    @property
    def is_whole(self) -> bool:
        """True when nothing is wrong."""
        return not self.faults


@dataclass(frozen=True)
class _Manifest:
    """A manifest whose form has been checked."""

    recipe: str
    files: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, Any]]


def verify(
    folder: str | Path,
    recipe: RecipeLike | None = None,
    *,
    samples: int = 64,
    seed: int | None = None,
    device: str = "auto",
) -> Verified:
    """Check a model that was merged: every tensor and file against the manifest in its folder.

    With the recipe also against its members: elements of tensors drawn at random are merged again
    and compared bit by bit. What a method has to measure of a whole tensor is measured for those
    that are drawn.

    Args:
        folder: the model's.
        recipe: what `merge` was given.
        samples: how many ranges of elements are merged again, of up to 65,536 elements each.
        seed: for the choice of these; another one every time by default.
        device: where to compute, as for `merge`.

    Raises:
        CheckpointError: when the folder has no manifest that can be read.
        MergekitEmbedError: what `plan` raises for the recipe.
    """
    root = Path(folder).expanduser()
    told = _read(root)
    faults = list(_file_faults(root, told))
    headers = {name: _header(root / name) for name in told.files if _is_weights(told, name)}
    faults += [found for found in headers.values() if isinstance(found, Problem)]
    stored = {name: found for name, found in headers.items() if isinstance(found, dict)}
    faults += _tensor_faults(root, told, stored)
    drawn = 0
    if recipe is not None:
        drawn, wrong = _against_recipe(root, told, recipe, samples, seed, device)
        faults += wrong
    others = len(told.files) - len(headers)
    return Verified(root, len(told.tensors), others, drawn, tuple(faults))


def _read(root: Path) -> _Manifest:
    path = root / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            root, f"holds no {MANIFEST}, which every merge writes; there is nothing to check it by"
        )
    content = read_object(path)
    if content.get("format") != FORMAT or content.get("hash") != "xxh3_128":
        raise CheckpointError(path, "is of another version of mergekit_embed")
    recipe, files, tensors = (content.get(key) for key in ("recipe", "files", "tensors"))
    if (
        not isinstance(recipe, str)
        or not _is_table(files)
        or not _is_table(tensors)
        or not all(isinstance(entry.get("size"), int) for entry in files.values())
    ):
        raise CheckpointError(path, "is not a manifest: `recipe`, `files` or `tensors` is wrong")
    for name in files:
        inside(root, name, path)
    return _Manifest(recipe, files, tensors)


def _is_table(value: object) -> TypeGuard[dict[str, dict[str, Any]]]:
    """Whether it is a JSON object of objects."""
    return isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values())


def _is_weights(told: _Manifest, name: str) -> bool:
    return "header" in told.files[name]


def _file_faults(root: Path, told: _Manifest) -> Iterator[Problem]:
    """Files that are missing, other than they were, or not of the merge."""
    for name, known in told.files.items():
        path = root / name
        if not path.is_file():
            yield Problem(name, "is missing")
        elif path.stat().st_size != known.get("size"):
            yield Problem(name, f"has {path.stat().st_size:,} bytes and had {known.get('size'):,}")
        elif not _is_weights(told, name) and file_digest(path) != known.get("digest"):
            yield Problem(name, "has changed")
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root)
        if place.as_posix() in told.files or NOT_SHELL.intersection(place.parts):
            continue
        if path.is_file():
            yield Problem(place.as_posix(), "does not belong to the merge")


def _header(path: Path) -> dict[str, StoredTensor] | Problem | None:
    """The tensors of a weight file, or why they cannot be told; None where there is no file."""
    try:
        return read_header(path) if path.is_file() else None
    except CheckpointError as error:
        return Problem(path.name, str(error).removeprefix(f"{error.path}: "))


def _tensor_faults(
    root: Path, told: _Manifest, stored: Mapping[str, Mapping[str, StoredTensor]]
) -> Iterator[Problem]:
    known: dict[str, set[str]] = {file: set() for file in stored}
    listed: list[tuple[str, str, StoredTensor, Any]] = []
    for key, entry in told.tensors.items():
        file, name = str(entry.get("file")), str(entry.get("name"))
        if file not in stored:
            if file not in told.files:
                yield Problem(key, "is in no file, says the manifest")
            continue  # or the file was told of already: missing, or no safetensors
        known[file].add(name)
        tensor = stored[file].get(name)
        if tensor is None:
            yield Problem(key, f"is missing from {file}")
        elif (str(tensor.dtype), list(tensor.shape)) != (entry.get("dtype"), entry.get("shape")):
            yield Problem(key, f"is {tensor.dtype} {list(tensor.shape)} in {file}, and was not")
        else:
            listed.append((key, file, tensor, entry.get("digest")))
    for file, tensors in stored.items():
        for name in sorted(tensors.keys() - known[file]):
            yield Problem(file, f"holds {name}, which does not belong to the merge")
        if digest_of(_raw_header(root / file, tensors)) != told.files[file]["header"]:
            yield Problem(file, "has another header")
    with ThreadPoolExecutor(cpu_workers()) as pool:
        digests = pool.map(_digest, [tensor for _, _, tensor, _ in listed])
        for (key, file, _, digest), found in zip(listed, digests, strict=True):
            if found != digest:
                yield Problem(key, f"has other bytes in {file} than were merged")


def _digest(tensor: StoredTensor) -> str:
    return range_digest(tensor.file, tensor.offset, tensor.nbytes)


def _raw_header(path: Path, tensors: Mapping[str, StoredTensor]) -> bytes:
    """The bytes of a file up to its data."""
    first = min((tensor.offset for tensor in tensors.values()), default=None)
    with path.open("rb") as file:
        return file.read() if first is None else file.read(first)


def _against_recipe(
    root: Path, told: _Manifest, recipe: RecipeLike, samples: int, seed: int | None, device: str
) -> tuple[int, list[Problem]]:
    """How many ranges were merged again, and which of them have other bytes in the folder."""
    points: Sequence[Recipe] = load_all(recipe)
    chosen = next((one for one in points if recipe_digest(one) == told.recipe), None)
    if chosen is None:
        return 0, [Problem(points[0].source.shown, "is not the recipe of this model")]
    plan = Planner().plan(chosen, root)
    wrong = [
        Problem(file.path, "is laid out otherwise than the recipe and its members give now")
        for file in plan.files
        if digest_of(file.header) != told.files.get(file.path, {}).get("header")
    ]
    if wrong:
        return 0, wrong
    ranges = _drawn([job for job in plan.jobs if job.result_count], samples, random.Random(seed))
    derived = derive(plan, open_kernels(device), ranges)
    for name, chunks in derived.items():
        job = next(job for job in plan.jobs if job.name == name)
        for (start, stop), raw in zip(ranges[name], chunks, strict=True):
            if raw.tobytes() != _stored(root, plan, job, start, stop):
                message = f"elements {start:,} to {stop - 1:,} are not what the members give"
                wrong.append(Problem(name, message))
    return sum(map(len, ranges.values())), wrong


def _drawn(jobs: Sequence[Job], samples: int, chance: random.Random) -> Ranges:
    """Ranges of tensors, each tensor as likely as the other."""
    found: Ranges = {}
    for job in chance.choices(jobs, k=samples) if jobs else ():
        start = chance.randrange(job.result_count)
        found.setdefault(job.name, []).append((start, min(start + BLOCK, job.result_count)))
    return found


def _stored(root: Path, plan: Plan, job: Job, start: int, stop: int) -> bytes:
    """Elements of the folder's own; fewer bytes where the file is missing or too short."""
    path = root / plan.files[job.file].path
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(job.offset + start * job.dtype.itemsize)
        return file.read((stop - start) * job.dtype.itemsize)
