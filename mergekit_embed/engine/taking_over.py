"""What of an earlier run's tensors a run may take over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..checkpoint import Tensor
from ..kernels import cpu_workers
from .hashing import PIECE, Hash, range_digest
from .inputs import leaves
from .journal import Entry
from .nested import MergedTensor
from .plan import Job, Plan
from .reader import Reader


def whole(plan: Plan, folder: Path, entries: Iterable[Entry]) -> list[Entry]:
    """The entries whose file is there, whole, as far as its size tells."""
    sizes = [_size(folder / file.path) == file.size for file in plan.files]
    jobs = {job.name: job for job in plan.jobs}
    return [entry for entry in entries if sizes[jobs[entry.tensor].file]]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def verified(plan: Plan, folder: Path, entries: Iterable[Entry]) -> tuple[list[Entry], str | None]:
    """The entries whose tensors, written and read, still have their hashes; a word on the others.

    What is read in another order than first to last has no hash and does not count as verified.
    """
    jobs = {job.name: job for job in plan.jobs}
    listed = list(entries)
    with Reader(plan.inputs) as reader, ThreadPoolExecutor(cpu_workers()) as pool:

        def is_good(entry: Entry) -> bool:
            job = jobs[entry.tensor]
            path = folder / plan.files[job.file].path
            if range_digest(path, job.offset, entry.size) != entry.digest:
                return False
            return inputs_of(job, reader) == entry.inputs

        good = list(pool.map(is_good, listed))
    kept = [entry for entry, is_kept in zip(listed, good, strict=True) if is_kept]
    if len(kept) == len(listed):
        return kept, None
    return kept, (
        f"{len(listed) - len(kept)} of {len(listed)} tensors that were there, or what they were "
        "made of, have changed or could not be compared, and were merged again"
    )


def inputs_of(job: Job, reader: Reader) -> tuple[str | None, ...] | None:
    """The hashes of all that is read for a job, in the order of `leaves`; None: cannot be had."""
    found = leaves(job.tensors)
    if any(isinstance(part, MergedTensor) for tensor in found for part in _within(tensor)):
        return None
    return tuple(digest_read(tensor, reader) for tensor in found)


def _within(tensor: Tensor) -> Iterator[Tensor]:
    yield tensor
    for part in tensor.parts:
        yield from _within(part)


def digest_read(tensor: Tensor, reader: Reader) -> str:
    """The hash of all elements of a tensor, read from the first to the last.

    Raises:
        CheckpointError: when its file cannot be read.
    """
    digest, step = Hash(), PIECE // tensor.read_as.itemsize
    for start in range(0, tensor.count, step):
        digest.add(reader.read(tensor, start, min(start + step, tensor.count)))
    return digest.digest
