"""What the JSON files of the result say otherwise than those of the model they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.weights import read_object
from ..dtypes import FLOAT_NAMES, DType
from .lineage.names import on_hub

LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")

OF_THEIR_MACHINE = {
    "config.json": ("_name_or_path",),
    "tokenizer_config.json": (
        "name_or_path",
        "special_tokens_map_file",
        "tokenizer_file",
        "vocab_file",
    ),
}
"""Keys under which libraries have stored where a file lay on the machine that wrote it. Nothing
reads them again."""

Told = Mapping[str, Mapping[str, Any]]
"""Keys and their values, by the path of the file in the model's folder."""


def configs_told(shell: Checkpoint, dtype: DType | None, layers: tuple[int, ...] | None) -> Told:
    """What the configurations of transformers are to say of the stored type and of the layers.

    Raises:
        CheckpointError: when one of them is broken.
    """
    folders = [module.path for module in shell.modules if "ransformer" in module.kind] or [""]
    found: dict[str, Mapping[str, Any]] = {}
    for folder in folders:
        path = f"{folder}/config.json" if folder else "config.json"
        content = read_object(shell.root / path)
        if not content:
            continue
        content |= shell.told.get(path, {})
        wanted = content if dtype is None else _with_dtype(content, dtype)
        wanted = wanted if layers is None else _with_layers(wanted, layers)
        changed = {k: v for k, v in wanted.items() if k not in content or content[k] != v}
        found |= {path: changed} if changed else {}
    return found


def without_places(shell: Checkpoint) -> Told:
    """What stands for paths of the machine that wrote the files: the last names of these.

    Raises:
        CheckpointError: when one of the files is broken.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for folder in dict.fromkeys(("", *(module.path for module in shell.modules))):
        for file, keys in OF_THEIR_MACHINE.items():
            path = f"{folder}/{file}" if folder else file
            content = read_object(shell.root / path)
            places = {key: content[key] for key in keys if is_path(content.get(key))}
            if places:
                found[path] = {key: last_name(place) for key, place in places.items()}
    return found


def is_path(name: Any) -> bool:
    """True for what is no Hub id: an absolute path, or one of more than two parts."""
    if not isinstance(name, str):
        return False
    return name.startswith((".", "~")) or "\\" in name or name.count("/") > 1 or name[:1] == "/"


def last_name(path: str) -> str:
    """Of a path of whatever system; of a place in the Hub's cache, the model's id."""
    hub = on_hub(Path(path))
    return hub.id if hub else re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def joined(*told: Told) -> Told:
    """All of them, the later ones on top."""
    found: dict[str, dict[str, Any]] = {}
    for one in told:
        for path, content in one.items():
            found[path] = {**found.get(path, {}), **content}
    return found


def _with_dtype(config: Mapping[str, Any], dtype: DType) -> Mapping[str, Any]:
    name = next(name for name, known in FLOAT_NAMES.items() if known is dtype)
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    return {**config, **dict.fromkeys(keys, name)}


def _with_layers(config: Mapping[str, Any], layers: tuple[int, ...]) -> Mapping[str, Any]:
    """A configuration for these layers of the model: their number, and what is listed for each."""
    counts = [count for key in LAYER_COUNTS if isinstance(count := config.get(key), int)]
    edited: dict[str, Any] = {}
    for key, value in config.items():
        if key in LAYER_COUNTS:
            edited[key] = len(layers)
        elif isinstance(value, list) and counts and len(value) == counts[0] > max(layers):
            edited[key] = [value[layer] for layer in layers]
        else:
            edited[key] = value
    return edited
