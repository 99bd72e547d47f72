"""The weight files of one folder: a single file, or an index with shards; safetensors or pickle."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import CheckpointError
from ..process import uncollected
from .pickle_file import read_pickle
from .safetensors_file import read_header
from .tensor import StoredTensor, is_name, short

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"

MAX_JSON_BYTES = 10_000_000
"""Of settings and indexes; an index of 100,000 tensors fits."""

MAX_TOKENIZER_BYTES = 2**26
"""Of files with a vocabulary; the largest that are known take half of it."""

MAX_JSON_DEPTH = 64
"""Whatever looks at a value goes down into it, and Python cannot go down for ever."""

BYTES_A_LIST = 8
"""Real files have more bytes for each list or object; those of nothing but brackets would take 25
times their size in memory. Not asked of small files."""

MAX_PATH_BYTES = 255
"""What file systems take for one name; no model needs more for a whole path."""

Reader = Callable[[Path], dict[str, StoredTensor]]


def has_weights(folder: Path) -> bool:
    """True when the folder holds weights in a format we read."""
    return any((folder / name).is_file() for name in (SINGLE, INDEX, PICKLE, PICKLE_INDEX))


def read_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor stored in the folder itself, by its stored name. Safetensors are preferred.

    Raises:
        CheckpointError: when there are none, when it is unclear which files count, or when a file
            is broken.
    """
    for single, index, reader in (
        (SINGLE, INDEX, read_header),
        (PICKLE, PICKLE_INDEX, read_pickle),
    ):
        if (folder / single).is_file() and (folder / index).is_file():
            raise CheckpointError(
                folder,
                f"holds both {single} and {index}; one of them is stale. Remove it: "
                f"transformers would load {single}",
            )
        if (folder / single).is_file():
            return reader(folder / single)
        if (folder / index).is_file():
            return _read_shards(folder / index, reader)
    raise CheckpointError(folder, f"holds no weights ({SINGLE}, {INDEX} or {PICKLE})")


def is_file(path: Path) -> bool:
    """True for a file, and for a link to one: the Hub's cache is made of links.

    Raises:
        CheckpointError: for anything else in its place, which must not be taken for nothing.
    """
    if path.is_file():
        return True
    if os.path.lexists(path):
        raise CheckpointError(path, "is not a file, nor a link to one; remove it or put it right")
    return False


def read_bytes(path: Path, most: int) -> bytes:
    """A file that must not be large, whole.

    Raises:
        CheckpointError: when it is missing, or larger than `most`.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                told = f"no more than {most:,} are read of such a file"
                raise CheckpointError(path, f"is too large, {size:,} bytes; {told}")
            return file.read(size)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> Any:
    """A JSON file of a model folder.

    Raises:
        CheckpointError: when it is missing, larger than `most` bytes, not JSON, says one thing
            twice, or is nested without end.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
            raise CheckpointError(path, f"has {short(twice)} twice in one object")
        return found

    raw = read_bytes(path, most)
    if raw.count(b"[") + raw.count(b"{") > max(len(raw) // BYTES_A_LIST, 100_000):
        raise CheckpointError(path, "has more lists and objects in it than a file of a model")
    try:
        with uncollected:
            content = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is not valid JSON: {error}") from error
    if _is_deep(content):
        raise CheckpointError(path, f"is nested more than {MAX_JSON_DEPTH} deep")
    return content


def _is_deep(content: Any) -> bool:
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(MAX_JSON_DEPTH):
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def read_object(path: Path, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON file of a model folder that must hold an object; empty when there is no such file.

    Raises:
        CheckpointError: as for `read_json`, or when it holds anything but an object.
    """
    if not is_file(path):
        return {}
    content = read_json(path, most)
    if not isinstance(content, dict):
        raise CheckpointError(path, "is not a JSON object")
    return content


def inside(folder: Path, relative: Any, told_by: Path) -> Path:
    """The file or folder that `told_by` names, which must lie inside the model's folder.

    Raises:
        CheckpointError: for absolute paths, drive letters, paths that climb out with `..`, and
            what no file system takes.
    """
    refused = CheckpointError(
        told_by, f"names {short(relative)}, which is not inside the model's folder"
    )
    if not is_name(relative) or "\0" in relative or len(relative.encode()) > MAX_PATH_BYTES:
        raise refused
    posix, windows = PurePosixPath(relative), PureWindowsPath(relative)
    if ".." in posix.parts or ".." in windows.parts or posix.is_absolute() or windows.anchor:
        raise refused
    return folder / posix


def _read_shards(index: Path, reader: Reader) -> dict[str, StoredTensor]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(index, "has no `weight_map` from tensors to files")
    found: dict[str, StoredTensor] = {}
    paths: dict[str, Path] = {}
    shards: dict[Path, dict[str, StoredTensor]] = {}
    for name, file in weight_map.items():
        path = paths.get(file) if isinstance(file, str) else None
        if path is None:
            path = inside(index.parent, file, index)  # one path, however often `./` is in front
            paths[file] = path
        if path not in shards:
            if not path.is_file():
                raise CheckpointError(index, f"names the shard {short(file)}, which is not there")
            shards[path] = reader(path)
        if name not in shards[path]:
            raise CheckpointError(
                index, f"places {short(name)} in {short(file)}, which does not hold it"
            )
        found[name] = shards[path][name]
    return found
