"""Whether a folder may be published: whole, finite, loadable, with a card that the Hub can read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import StoredTensor, open_checkpoint
from ..checkpoint.adapter import PICKLE, SAFETENSORS
from ..checkpoint.pickle_file import read_pickle
from ..checkpoint.safetensors_file import read_header
from ..checkpoint.weights import read_object
from ..dtypes import DType
from ..engine.adapter_folder import is_adapter
from ..engine.inputs import files_of
from ..engine.manifest import MANIFEST
from ..engine.reader import Reader
from ..engine.staging import JOURNAL
from ..engine.stamps import Stamp, stamp
from ..errors import CheckpointError, Problem, PublishError, UsageError
from ..kernels import Raw, cpu_workers

CARD = "README.md"

LEFT_OUT = {
    "checkpoints",
    "optimizer.pt",
    "rng_state.pth",
    "runs",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
    "wandb",
}
"""What a training leaves in its folder, and nobody needs who uses the model."""

PIECE = 2**22
"""Elements that are looked at in one go."""

FLOATS = {DType.F64: np.float64, DType.F32: np.float32, DType.F16: np.float16}


@dataclass(frozen=True)
class File:
    """A file that goes to the Hub.

    Attributes:
        path: on the Hub.
        source: where it is here, or was.
        stamp: how it was when it was found.
        sha256: of one that is gone from here, since the Hub has it.
    """

    path: str
    source: Path
    stamp: Stamp
    sha256: str | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return self.stamp.size


def files_in(folder: Path) -> list[File]:
    """The files of a model that are published: all but hidden ones and what a training leaves.

    Raises:
        PublishError: for links to folders, and for what is no file.
    """
    found: list[File] = []
    problems: list[Problem] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_left_out(name))
        for name in (*folders, *names):
            path = Path(root, name)
            place = path.relative_to(folder).as_posix()
            if name in folders:
                if path.is_symlink():
                    problems.append(Problem(place, "is a link to a folder; put the folder there"))
            elif _is_left_out(name):
                continue
            elif not path.is_file():
                problems.append(Problem(place, "is not a file, nor a link to one"))
            else:
                found.append(File(place, path, stamp(path)))
    if problems:
        raise PublishError(problems)
    return sorted(found, key=lambda file: file.path)


def _is_left_out(name: str) -> bool:
    return name.startswith((".", "checkpoint-")) or name in LEFT_OUT


def check_whole(folder: Path) -> list[StoredTensor]:
    """Every tensor of a model or adapter whose files are all there and fit each other.

    Raises:
        PublishError: naming what is missing, broken, or not finished.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name that of a model")
    if (folder / JOURNAL).exists():
        raise PublishError([Problem(str(folder), "is a merge that has not come to its end")])
    problems = list(_missing(folder))
    try:
        if is_adapter(folder):
            safe = folder / SAFETENSORS
            named = read_header(safe) if safe.is_file() else read_pickle(folder / PICKLE)
            tensors = list(named.values())
        else:
            opened = open_checkpoint(folder)
            listed = [t for part in opened.components.values() for t in part.tensors.values()]
            tensors = [tensor for tensor in listed if isinstance(tensor, StoredTensor)]
    except CheckpointError as error:
        problems.append(Problem("", str(error)))
    if problems:
        raise PublishError(problems)
    return tensors


def _missing(folder: Path) -> Iterator[Problem]:
    """Files that the merge wrote and that are no longer there, or weights of another size."""
    files = read_object(folder / MANIFEST).get("files", {})
    for name, known in files.items():
        path = folder / name
        if not path.is_file():
            yield Problem(name, "is missing; the merge had written it")
        elif "header" in known and path.stat().st_size != known.get("size"):
            yield Problem(name, f"has {path.stat().st_size:,} bytes and had {known.get('size'):,}")


def check_finite(tensors: Sequence[StoredTensor]) -> None:
    """Read every float tensor, a piece at a time.

    Raises:
        PublishError: naming those that hold not-a-number or infinity.
        CheckpointError: when a file cannot be read.
    """
    floats = [tensor for tensor in tensors if tensor.dtype.is_float]
    stamps = {path: stamp(path) for path in files_of(floats)}
    with Reader(stamps) as reader, ThreadPoolExecutor(cpu_workers()) as pool:

        def is_finite(tensor: StoredTensor) -> bool:
            return all(
                _is_finite(reader.read(tensor, start, min(start + PIECE, tensor.count)), tensor)
                for start in range(0, tensor.count, PIECE)
            )

        good = list(pool.map(is_finite, floats))
    problems = [
        Problem(tensor.name, f"holds not-a-number or infinity ({tensor.file.name})")
        for tensor, is_good in zip(floats, good, strict=True)
        if not is_good
    ]
    if problems:
        raise PublishError(problems)


def _is_finite(raw: Raw, tensor: StoredTensor) -> bool:
    if tensor.dtype is DType.BF16:  # which NumPy lacks: all bits of the exponent set
        return not bool(np.any((raw.view(np.uint16) & 0x7F80) == 0x7F80))
    return bool(np.all(np.isfinite(raw.view(FLOATS[tensor.dtype]))))


def check_loads(folder: Path) -> None:
    """Load a model in sentence-transformers, and embed a sentence. No code of the model is run.

    Raises:
        PublishError: when it does not load, or embeds to what is not finite.
        UsageError: when sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UsageError(
            "trying whether the model loads needs sentence-transformers: "
            "`pip install 'mergekit_embed[train]'`, or pass --skip-load"
        ) from error
    try:
        with _silent():
            model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
            embedding: Any = model.encode("A sentence to embed.", show_progress_bar=False)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        told = f"does not load in sentence-transformers: {reason}"
        raise PublishError(
            [Problem(str(folder), f"{told}. To push it all the same: --skip-load")]
        ) from error
    if not np.all(np.isfinite(embedding)):
        raise PublishError([Problem(str(folder), "embeds a sentence to not-a-number or infinity")])


@contextmanager
def _silent() -> Iterator[None]:
    """Loading without the library's bars and reports, which say nothing that is not told here."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def check_card(folder: Path) -> None:
    """Refuse a card whose metadata the Hub would refuse, as far as that shows without it.

    Raises:
        PublishError: saying what is wrong with it.
    """
    path = folder / CARD
    if not path.is_file():
        return
    from huggingface_hub import ModelCard

    try:
        content = path.read_text(encoding="utf-8")
        card: Any = ModelCard(content)
        again: Any = ModelCard(str(card))
    except Exception as error:  # YAML's own, and those of the classes of metadata
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise PublishError(
            [Problem(CARD, f"has metadata that cannot be read: {reason}")]
        ) from error
    if again.data.to_dict() != card.data.to_dict():
        raise PublishError([Problem(CARD, "has metadata that changes when it is written again")])
