"""What a lineage says of each model that was read: its files and their hashes, and its own past."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...checkpoint import StoredTensor
from ...checkpoint.pickle_file import read_pickle
from ...checkpoint.safetensors_file import read_header
from ..hashing import digest_of, file_digest
from .cards import card_of
from .file import LINEAGE, read_content
from .names import Names, on_hub, public_name
from .records import training_of

SETTINGS = {".jinja", ".json", ".model", ".tiktoken", ".txt"}
"""Endings of files that say how a model is used: configuration, tokenizer, prompts."""

OF_ONE_MAKING = {
    "merge_manifest.json",
    LINEAGE,
    "trainer_state.json",
    "train_results.json",
}
"""Files with such endings that tell of a model's making alone."""

Hashed = Mapping[tuple[str, int], str]
"""Hashes of stored tensors that were read from the first element to the last, by their places: the
file, as it is called without links, and the offset in it."""

TensorDigest = Callable[[StoredTensor], str | None]


@dataclass(frozen=True)
class Input:
    """A folder that a merge reads from.

    Attributes:
        root: the folder.
        weights: its weight files that are read, by their paths in it.
        inner: folders in it that have settings too.
        parent: the lineage of the model, where it has one.
        training: what is recorded of its training, where that is known.
        card: what its model card says of licence, languages and data.
    """

    root: Path
    weights: Mapping[str, Path]
    inner: tuple[str, ...] = ()
    parent: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None
    card: Mapping[str, Any] = field(default_factory=dict)


def inputs_of(roots: Mapping[Path, Iterable[str]], weights: Iterable[Path]) -> tuple[Input, ...]:
    """What is known of folders before anything is merged.

    Args:
        roots: the folders, with the folders in each that have settings too.
        weights: every weight file that is read.

    Raises:
        CheckpointError: when the lineage of one of them, or the record of its training, is broken.
    """
    spelled: dict[str, list[Path]] = {}
    for root in roots:
        spelled.setdefault(os.path.realpath(root), []).append(root)
    files = list(weights)
    return tuple(_input(same, roots[same[0]], files) for same in spelled.values())


def _input(same: Sequence[Path], inner: Iterable[str], files: Iterable[Path]) -> Input:
    """One folder, by all the paths that it goes by."""
    own: dict[str, Path] = {}
    for path in files:
        for root in same:
            if path.is_relative_to(root):
                own.setdefault(path.relative_to(root).as_posix(), path)
    there = same[0] / LINEAGE
    parent = read_content(there) if there.is_file() else None
    return Input(same[0], own, tuple(inner), parent, training_of(same[0]), card_of(same[0]))


def told(one: Input, names: Names, hashed: Hashed) -> dict[str, Any]:
    """What the lineage says of a folder that was read.

    Weights that are not those that the model's own lineage tells of are named as `changed`.

    Raises:
        CheckpointError: when a file cannot be read.
    """
    found: dict[str, Any] = {"name": names[one.root]}
    hub = on_hub(one.root)
    if hub is not None:
        found["hub"] = {"id": hub.id, "revision": hub.revision}
    else:
        found["folder"] = public_name(one.root)
    found["files"] = dict(sorted({**_weights(one, hashed), **_settings(one)}.items()))
    if one.card:
        found["card"] = one.card
    if one.training is not None:
        found["training"] = one.training
    if one.parent is not None:
        found["lineage"] = one.parent["digest"]
        changed = [
            name
            for name in one.weights
            if "without" not in found["files"][name]
            and one.parent["outputs"].get(name) != found["files"][name]["digest"]
        ]
        found |= {"changed": changed} if changed else {}
    return found


def _weights(one: Input, hashed: Hashed) -> dict[str, Any]:
    def digest(tensor: StoredTensor) -> str | None:
        return hashed.get(place_of(tensor))

    return {name: weights_told(path, digest) for name, path in one.weights.items()}


def place_of(tensor: StoredTensor) -> tuple[str, int]:
    """Where a tensor lies; see `Hashed`."""
    return os.path.realpath(tensor.file), tensor.offset


def weights_told(path: Path, digest: TensorDigest) -> dict[str, Any]:
    """What is said of a weight file: its size, a hash of its tensors, and which have no part in it.

    The hash is of a line for each tensor, in the order of their names: name, type, shape and hash.
    So it is the same for the same tensors in a file of another layout.

    Raises:
        CheckpointError: when the file cannot be read.
    """
    stored = stored_in(path)
    lines, without = [], []
    for name in sorted(stored):
        tensor = stored[name]
        found = digest(tensor) if tensor.count else ""
        if found is None:
            without.append(name)
        else:
            lines.append(line_of(name, str(tensor.dtype), tensor.shape, found))
    said: dict[str, Any] = {"size": path.stat().st_size, "digest": digest_of_lines(lines)}
    if without:
        said["without"] = without
    return said


def line_of(name: str, dtype: str, shape: Iterable[int], digest: str) -> str:
    """The line of a tensor in the hash of its file."""
    return f"{name} {dtype} {list(shape)} {digest}\n"


def digest_of_lines(lines: Iterable[str]) -> str:
    """The hash of a file's tensors."""
    return digest_of("".join(lines).encode())


def stored_in(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a weight file.

    Raises:
        CheckpointError: when the file is broken.
    """
    return read_header(path) if path.suffix == ".safetensors" else read_pickle(path)


def _settings(one: Input) -> dict[str, Any]:
    found = {}
    for folder in dict.fromkeys((one.root, *(one.root / inner for inner in one.inner))):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if is_setting(path):
                name = path.relative_to(one.root).as_posix()
                found[name] = {"size": path.stat().st_size, "digest": file_digest(path)}
    return found


def is_setting(path: Path) -> bool:
    """Whether a file says how the model is used."""
    name = path.name
    if path.suffix not in SETTINGS or name in OF_ONE_MAKING or name.endswith(".index.json"):
        return False
    return path.is_file()
