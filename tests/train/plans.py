"""What tests of training plans share: plans, data files, data sets without files, and draws.

The draws are written independently of the package, in Python's own integers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mergekit_embed.train.data import Dataset
from mergekit_embed.train.plan import load
from mergekit_embed.train.specs import TrainingPlan

MASK = 2**64 - 1


def splitmix(key: int, identity: int) -> int:
    z = (key + (identity + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def key(*parts: str | int) -> int:
    text = json.dumps(list(parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def half_up(percent: Fraction, rows: int) -> int:
    whole, rest = divmod(percent * rows, 100)
    return int(whole) + (1 if rest >= 50 else 0)


def least(identities: Sequence[int], count: int, *parts: str | int) -> list[int]:
    """The numbers of the rows that draw the least, ascending."""
    k = key("rows", *parts)
    order = sorted(range(len(identities)), key=lambda i: (splitmix(k, identities[i]), i))
    return sorted(order[:count])


@dataclass
class NoRows:
    """Rows of a data set that nobody reads."""

    name: str

    def read(self, number: int) -> Mapping[str, Any]:
        raise AssertionError("nobody should read these rows")

    def place(self, number: int) -> str:
        return f"{self.name}:{number + 1}"


def identities(name: str, rows: int) -> np.ndarray:
    return np.array([splitmix(key(name), i) for i in range(rows)], dtype=np.uint64)


def hollow(plan: TrainingPlan, sizes: Mapping[str, int]) -> dict[str, Dataset]:
    """Data sets of a plan that have so many rows, and no file."""
    return {
        name: Dataset(
            spec=spec,
            rows=NoRows(name),
            identities=identities(name, sizes[name]),
            labels=np.arange(sizes[name]) % 3 if spec.kind == "classification" else None,
            negatives=0 if spec.kind == "sts" else spec.negatives,
            short=0,
            repeated=0,
            digest="",
            bad=(),
            bad_count=0,
        )
        for name, spec in plan.datasets.items()
    }


def plan_of(data: Mapping[str, Mapping[str, Any]], **more: Any) -> TrainingPlan:
    """A plan with these data sets: retrieval in files of their names, unless they say otherwise."""
    entries = {
        name: {"path": f"{name}.jsonl", "kind": "retrieval", **entry}
        for name, entry in data.items()
    }
    return load({"model": "base", "data": entries, **more})


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """A file of JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def rows_of(kind: str, count: int, negatives: int = 0) -> list[dict[str, Any]]:
    """Rows of a kind, all different."""
    if kind == "sts":
        return [
            {"sentence1": f"left {i}", "sentence2": f"right {i}", "score": i % 6 / 5}
            for i in range(count)
        ]
    if kind in {"classification", "clustering"}:
        return [{"text": f"text {i}", "label": f"class {i % 3}"} for i in range(count)]
    return [
        {
            "query": f"query {i}",
            "pos": [f"answer {i}"],
            "neg": [f"wrong {i} {j}" for j in range(negatives)],
        }
        for i in range(count)
    ]


def close(found: float, wanted: float, trials: int, spread: float) -> bool:
    """Within five standard errors."""
    return abs(found - wanted) < 5 * spread / math.sqrt(trials)
