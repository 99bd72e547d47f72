"""What a study is run with, and the data at its scale."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What a study is run with.

    Attributes:
        data: a folder with `train/*.jsonl` and `dev/TASK/`.
        base: the model that members start from.
        out: the folder for everything that is made.
        scale: the part of every training file's rows that is used; `measured`: of the dev tasks'
            queries, texts and pairs.
        epochs: of every training, over its own rows.
        rows: of a batch; `max_length`: tokens of a text.
        device: where models run, as `boom-eval` takes it.
    """

    data: Path
    base: str
    out: Path
    scale: float = 0.15
    measured: float = 0.5
    epochs: int = 1
    learning_rate: float = 1e-4
    rows: int = 32
    max_length: int = 48
    temperature: float = 0.05
    precision: str = "bf16"
    device: str = "auto"

    @property
    def told(self) -> dict[str, Any]:
        """What results depend on, without places on this machine."""
        own = asdict(self)
        del own["out"]
        return own | {"data": self.data.name, "base": Path(self.base).name}


FEWEST = 4
"""Rows of a class that a smaller scale keeps at least."""


def digest(content: Any) -> str:
    """A short name for JSON data, the same for the same content."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def kind_of(row: Mapping[str, Any]) -> str:
    """The kind of a training file, from its first row."""
    if "label" in row:
        return "classification"
    return "sts" if "score" in row else "retrieval"


@dataclass(frozen=True)
class Corpus:
    """The data at the scale of a study.

    Attributes:
        train: training files by the name of their data set; `kinds`: what their rows are.
        fresh: as many other rows, which no model is trained on; none where the scale leaves none.
        dev: folders of dev tasks by name; `whole`: of the same before they were cut.
    """

    train: Mapping[str, Path]
    kinds: Mapping[str, str]
    fresh: Mapping[str, Path]
    dev: Mapping[str, Path]
    whole: Mapping[str, Path]


def corpus_of(setting: Setting) -> Corpus:
    """The data of a setting, cut to its scale in files beside the study."""
    place = setting.out / "corpus" / f"{setting.scale:g}-{setting.measured:g}"
    train = {path.stem: path for path in sorted((setting.data / "train").glob("*.jsonl"))}
    dev = {path.name: path for path in sorted((setting.data / "dev").iterdir()) if path.is_dir()}
    kinds = {name: kind_of(next(_rows(path))) for name, path in train.items()}
    cut = {name: place / "train" / path.name for name, path in train.items()}
    left = train if setting.scale <= 0.5 else {}
    fresh = {name: place / "fresh" / path.name for name, path in left.items()}
    for name, path in train.items():
        key = "query" if kinds[name] == "retrieval" else None
        _sample(path, cut[name], setting.scale, key)
        if name in fresh:
            _sample(path, fresh[name], setting.scale, key, others=True)
    smaller = {name: place / "dev" / name for name in dev}
    for name, folder in dev.items():
        _sample_task(folder, smaller[name], setting.measured)
    return Corpus(cut, kinds, fresh, smaller, dev)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _draw(row: Mapping[str, Any], key: str | None = None) -> str:
    """What a row draws: rows that draw the least are taken."""
    return digest(row if key is None else row[key])


def _sample(
    path: Path, out: Path, part: float, key: str | None = None, *, others: bool = False
) -> None:
    """Write the part of the rows that draw the least, in their order; of classes a part of each.

    `others`: as many of those that follow.
    """
    if out.exists():
        return
    rows = list(_rows(path))
    classes: dict[str, list[str]] = {}
    for row in rows:
        classes.setdefault(str(row.get("label")), []).append(_draw(row, key))
    first: set[str] = set()
    following: set[str] = set()
    for own in classes.values():
        count, ordered = max(FEWEST, round(part * len(own))), sorted(own)
        first |= set(ordered[:count])
        following |= set(ordered[count : 2 * count])
    chosen = following - first if others else first
    _write(out, [row for row in rows if _draw(row, key) in chosen])


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial.write_text(text, encoding="utf-8")
    partial.replace(out)


def _sample_task(folder: Path, out: Path, part: float) -> None:
    """A dev task with fewer queries, pairs or texts; the documents stay, so that it is as hard."""
    if out.exists():
        return
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder, partial)
    for name, key in (("queries", "text"), ("pairs", None), ("labelled", "text")):
        path = partial / f"{name}.jsonl"
        if path.is_file():
            path.unlink()
            _sample(folder / path.name, path, part, key)
    if (partial / "qrels.jsonl").is_file():
        asked = {row["id"] for row in _rows(partial / "queries.jsonl")}
        judged = [row for row in _rows(folder / "qrels.jsonl") if row["query-id"] in asked]
        _write(partial / "qrels.jsonl", judged)
    partial.replace(out)
