"""The weight files of one folder: a single file, or an index with shards; safetensors or pickle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import CheckpointError
from .pickle_file import read_pickle
from .safetensors_file import read_header
from .tensor import StoredTensor, is_name, short

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"

MAX_JSON_BYTES = 256 * 2**20
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


def read_json(path: Path) -> Any:
    """A JSON file of a model folder.

    Raises:
        CheckpointError: when it is missing, huge, or not JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(path, "is too large for a JSON file of a model")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is not valid JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of a model folder that must hold an object; empty when there is no such file.

    Raises:
        CheckpointError: when it is huge, not JSON, or anything but an object.
    """
    if not path.is_file():
        return {}
    content = read_json(path)
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
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name, file in weight_map.items():
        path = inside(index.parent, file, index)
        if file not in shards:
            if not path.is_file():
                raise CheckpointError(index, f"names the shard {short(file)}, which is not there")
            shards[file] = reader(path)
        if name not in shards[file]:
            raise CheckpointError(
                index, f"places {short(name)} in {short(file)}, which does not hold it"
            )
        found[name] = shards[file][name]
    return found
