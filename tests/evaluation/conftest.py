"""Local tasks of every kind, made once: short texts, so that models take no time for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import WORDS


def write_task(folder: Path, about: dict[str, Any] | None = None, **files: Sequence[Any]) -> Path:
    """A folder with these rows, and with what is said of its task."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    if about is not None:
        (folder / "task.json").write_text(json.dumps(about))
    return folder


def phrases(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(3, 8))) for _ in range(count)]


def retrieval(count: int = 20) -> dict[str, list[Any]]:
    """Queries that are parts of their documents, some with a second and better answer."""
    documents = phrases(2 * count, 1)
    queries = [" ".join(text.split()[:2]) for text in documents[:count]]
    qrels = [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1} for i in range(count)]
    qrels += [
        {"query-id": f"q{i}", "corpus-id": f"d{count + i}", "score": 1} for i in range(0, count, 4)
    ]
    return {
        "queries": [{"id": f"q{i}", "text": text} for i, text in enumerate(queries)],
        "corpus": [{"id": f"d{i}", "text": text} for i, text in enumerate(documents)],
        "qrels": qrels,
    }


def reranking(count: int = 20) -> dict[str, list[Any]]:
    made = retrieval(count)
    random = np.random.default_rng(2)
    candidates = []
    for i in range(count):
        right = [row["corpus-id"] for row in made["qrels"] if row["query-id"] == f"q{i}"]
        others = [
            f"d{j}" for j in random.choice(2 * count, 8, replace=False) if f"d{j}" not in right
        ]
        candidates.append({"query-id": f"q{i}", "corpus-ids": [*right, *others]})
    return {**made, "candidates": candidates}


def labelled(count: int = 60) -> list[Any]:
    """Texts that show their class by words of their own."""
    random = np.random.default_rng(3)
    rows = []
    for i in range(count):
        label = i % 3
        own = random.choice(WORDS[60 * label : 60 * label + 10], 2)
        rows.append({"text": " ".join([*own, *random.choice(WORDS, 3)]), "label": f"class {label}"})
    return rows


def pairs(count: int = 30) -> list[tuple[str, str]]:
    """Texts, and others that share their beginnings with them, the later the less."""
    made = []
    for i, (one, other) in enumerate(zip(phrases(count, 4), phrases(count, 5), strict=True)):
        kept = one.split()[: max(1, 5 - 6 * i // count)]
        made.append((one, " ".join([*kept, *other.split()[:3]])))
    return made


@pytest.fixture(scope="session")
def task_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of every kind, seven in all."""
    root = tmp_path_factory.mktemp("tasks")
    both = [{"sentence1": one, "sentence2": other} for one, other in pairs()]
    scored = [{**row, "score": 5 - 5 * i / 30} for i, row in enumerate(both)]
    same = [{**row, "label": int(i < 15)} for i, row in enumerate(both)]
    write_task(root / "retrieval", {"group": "in-domain"}, **retrieval())
    write_task(root / "reranking", **reranking())
    write_task(root / "classes", labelled=labelled())
    write_task(root / "clusters", {"kind": "clustering"}, labelled=labelled())
    write_task(root / "similarity", {"group": "out-of-domain"}, pairs=scored)
    write_task(root / "sameness", pairs=same)
    write_task(root / "bitext", {"group": "out-of-domain"}, pairs=both)
    return root
