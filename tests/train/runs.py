"""What tests of training share: a tiny model, data, plans that take a second, and what came out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tiny_models import build_minilm

from .plans import rows_of, write_rows

TRAINING = {"batch_size": 4, "precision": "fp32", "learning_rate": 1e-3}


def base_model(path: Path, dropout: float = 0.1) -> Path:
    """A BERT of two layers in a sentence-transformers folder."""
    build_minilm(path, seed=1)
    set_config(path, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return path


def set_config(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | values))


def write_data(folder: Path) -> None:
    """q.jsonl, c.jsonl and s.jsonl: questions, classes, scored pairs."""
    write_rows(folder / "q.jsonl", rows_of("retrieval", 24, 3))
    write_rows(folder / "c.jsonl", rows_of("classification", 18))
    write_rows(folder / "s.jsonl", rows_of("sts", 16))


def plan(folder: Path, name: str = "plan", **changes: Any) -> Path:
    """A plan beside the data; `training` is added to, everything else replaced."""
    content: dict[str, Any] = {
        "model": "./base",
        "data": {
            "q": {"path": "q.jsonl", "kind": "retrieval", "negatives": 2},
            "c": {"path": "c.jsonl", "kind": "classification", "negatives": 2, "batch_size": 6},
            "s": {"path": "s.jsonl", "kind": "sts"},
        },
        "members": [100],
    }
    content |= changes
    content["training"] = TRAINING | changes.get("training", {})
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(content))  # which is YAML too
    return path


def record(out: Path) -> dict[str, Any]:
    """training.json."""
    found: dict[str, Any] = json.loads((out / "training.json").read_text())
    return found


def lasting(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the record says of a member but for what no two runs have in common."""
    return {key: value for key, value in told.items() if key != "seconds"}


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def weight_bytes(out: Path) -> dict[str, bytes]:
    """The weight files of all members, by their places."""
    files = sorted((out / "members").rglob("*.safetensors"))
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def difference(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """The largest between two models' weights."""
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)
