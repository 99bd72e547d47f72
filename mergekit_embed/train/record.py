"""training.json: what was trained, on what, and what it took; and what a training depends on."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from ..engine.hashing import digest_of, file_digest
from ..engine.lineage.file import LINEAGE
from ..errors import OutputError
from ..version import __version__
from .bags import Member
from .data import Dataset
from .merging import FOLDER
from .places import places
from .specs import EarlyStop, TrainingPlan

RECORD = "training.json"
WORK = ".work"
"""The folder, in that of the run, of members that are not finished."""

FORMAT = 1
"""Of the record, and of what fingerprints are of."""

LIBRARIES = ("torch", "transformers", "sentence-transformers", "accelerate", "peft")
"""Whose versions may change what training gives, to the bit."""


@dataclass(frozen=True)
class Fingerprint:
    """What a member's training depends on, as two digests.

    A finished member stays as it is while `meaning` is the same: of plan, data and base. One that
    is not finished goes on where it was only if `exact` is, that is the libraries as well.
    """

    meaning: str
    exact: str


def fingerprint(
    plan: TrainingPlan, member: Member, datasets: Mapping[str, Dataset], base: str
) -> Fingerprint:
    """The fingerprint of a member.

    Args:
        plan: what it is trained by; what counts for the merge alone has no part in it.
        member: with its rows.
        datasets: by name.
        base: the digest of the base's folder.
    """
    training = asdict(plan.training)
    del training["save_every"]
    spec = {key: getattr(member.spec, key) for key in ("name", "seed", "epochs")}
    spec |= {key: getattr(member.spec, key) for key in ("checkpoints", "ema")}
    stop = plan.early_stop
    content = {
        "format": FORMAT,
        "base": base,
        "pooling": plan.pooling,
        "member": spec,
        "data": [
            [name, _spec_of(datasets[name]), *_digests(datasets[name]), _digest_of(rows)]
            for name, rows in member.rows.items()
        ],
        "order": asdict(plan.order),
        "training": training,
        "lora": asdict(plan.lora) if plan.lora else None,
        "early_stop": _stop_of(plan, stop) if stop else None,
    }
    meaning = digest_of(json.dumps(content, sort_keys=True, default=str).encode())
    exact = digest_of(json.dumps([meaning, versions()], sort_keys=True).encode())
    return Fingerprint(meaning, exact)


def _spec_of(dataset: Dataset) -> dict[str, Any]:
    """How a data set is trained on, without where it lies."""
    said = asdict(dataset.spec)
    for key in ("path", "split", "subset", "columns", "mine", "cluster"):
        del said[key]
    return said | {"negatives": dataset.negatives}


def _digests(dataset: Dataset) -> list[str]:
    """Of its rows, and of the negatives that were mined for them."""
    return [dataset.digest, *([dataset.mined.key] if dataset.mined else [])]


def _digest_of(numbers: Any) -> str:
    return digest_of(numbers.astype("<i8").tobytes())


def _stop_of(plan: TrainingPlan, stop: EarlyStop) -> list[Any]:
    """When training stops early: by what is in the folder of the dev task, wherever that lies."""
    folder = next((one for one in places(plan, stop.task) if one.is_dir()), None)
    return [stop.every, stop.patience, folder_digest(folder) if folder else ""]


OF_MODELS = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".safetensors", ".bin"}
"""Endings of files that a model is made of."""


def model_digest(folder: Path) -> str:
    """The digest of a model's folder, without other formats of it and what is for people.

    Raises:
        CheckpointError: when a file cannot be read.
    """
    return folder_digest(folder, _is_of_model)


def _is_of_model(name: str) -> bool:
    told = name == LINEAGE or name.startswith(("onnx/", "openvino/"))
    return Path(name).suffix in OF_MODELS and not told


def folder_digest(folder: Path, counts: Callable[[str], bool] = lambda name: True) -> str:
    """A digest of the files of a folder that count, and of their names.

    Raises:
        CheckpointError: when one cannot be read.
    """
    found = xxhash.xxh3_128()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if counts(name):
            found.update(f"{name}\0{file_digest(path)}\n".encode())
    return found.hexdigest()


def versions() -> dict[str, str]:
    """Those of this package and of the libraries that train, where they are there."""
    found = {"mergekit_embed": __version__}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def rows_of(member: Member, datasets: Mapping[str, Dataset]) -> dict[str, dict[str, Any]]:
    """How many rows of each data set a member has, and a digest of which."""
    return {
        name: {
            "rows": len(numbers),
            "of": len(datasets[name]),
            "digest": digest_of(datasets[name].identities[numbers].astype("<u8").tobytes()),
        }
        for name, numbers in member.rows.items()
    }


def curve_of(log: Sequence[Mapping[str, Any]], epochs: float) -> list[dict[str, Any]]:
    """The loss over the steps, from the trainer's log: means since the point before.

    Args:
        log: entries with `loss`, `learning_rate`, `grad_norm`, `step` and `epoch`.
        epochs: how many of ours are one of the trainer's.
    """
    return [
        {
            "step": entry["step"],
            "epoch": round(entry["epoch"] * epochs, 4),
            "loss": entry["loss"],
            "learning_rate": entry["learning_rate"],
            "gradient_norm": entry.get("grad_norm"),
        }
        for entry in log
        if "loss" in entry
    ]


def file_sizes(folder: Path) -> dict[str, int]:
    """The weight files of a model and their bytes."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*.safetensors"))
    }


def read(output: Path) -> dict[str, dict[str, Any]]:
    """What the record in a folder says of each member; nothing where there is none of ours.

    Raises:
        OutputError: when it cannot be read.
    """
    members = read_all(output).get("members")
    return members if isinstance(members, dict) else {}


def read_update(output: Path) -> dict[str, Any] | None:
    """What the record in a folder says of the update that it is of; None where it is of none.

    Raises:
        OutputError: when it cannot be read.
    """
    update = read_all(output).get("update")
    return update if isinstance(update, dict) else None


def read_all(output: Path) -> dict[str, Any]:
    """The record in a folder; nothing where there is none of ours.

    Raises:
        OutputError: when it cannot be read.
    """
    path = output / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path}: cannot be read: {error}; remove it, or pass --restart"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return {}
    return content


def is_finished(found: Mapping[str, Any] | None, wanted: Fingerprint, output: Path) -> bool:
    """Whether a member is as it would be trained, and its models are where they were put."""
    if found is None or found.get("fingerprint") != wanted.meaning:
        return False
    return all(
        (output / FOLDER / name).is_dir() and file_sizes(output / FOLDER / name) == sizes
        for name, sizes in found["models"].items()
    )


def content(
    plan: TrainingPlan,
    base: Mapping[str, str],
    datasets: Mapping[str, Dataset],
    members: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What the record says.

    Args:
        plan: what was trained by.
        base: what it is called, and the digest of its folder.
        datasets: by name.
        members: what there is to say of each.
    """
    return {
        "format": FORMAT,
        "plan": plan.name,
        "model": dict(base),
        "seed": plan.seed,
        "schedule": plan.order.name,
        "training": asdict(plan.training),
        "lora": asdict(plan.lora) if plan.lora else None,
        "data": {
            name: {
                "kind": dataset.spec.kind,
                "rows": len(dataset),
                "bad_rows": dataset.bad_count,
                "negatives": dataset.negatives,
                "batch_size": dataset.spec.batch_size,
                "loss": {"name": dataset.spec.loss.name, **dataset.spec.loss.parameters},
                "digest": dataset.digest,
                "mined": dataset.mined.key if dataset.mined else None,
            }
            for name, dataset in datasets.items()
        },
        "members": dict(members),
        "cost": {key: _sum(members.values(), key) for key in COSTS},
        "versions": versions(),
    }


COSTS = ("steps", "examples", "tokens", "seconds")
"""What the members took together."""


def _sum(members: Iterable[Mapping[str, Any]], key: str) -> float:
    total: float = sum(member[key] for member in members)
    return round(total, 3)
