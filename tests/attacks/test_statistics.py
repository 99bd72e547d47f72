"""Folders of statistics that lie; their headers are read as those of weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensor_folders import write_statistics

from .attack import NAME, Ground, hole, one, packed, write_json

SUMMARY = "statistics.json"


def written(ground: Ground, kind: str) -> tuple[Path, Path]:
    """Sound statistics of both models, and the recipe that uses them."""
    for name in ("s1", "s2"):
        write_statistics(ground.root / name, kind, {NAME: np.eye(4)})
    models = [
        {"model": str(ground.good), "statistics": str(ground.root / "s1")},
        {"model": str(ground.hostile), "statistics": str(ground.root / "s2")},
    ]
    method = {"fisher": "fisher", "gram": "regmean"}[kind]
    return ground.write(merge_method=method, models=models), ground.root / "s2"


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_the_statistics_that_are_spoilt_below_are_sound(kind: str, ground: Ground) -> None:
    ground.merged(written(ground, kind)[0])


SUMMARIES: dict[str, tuple[str, Any, str]] = {
    # what is wrong: (the kind, the summary, what the refusal says)
    "deep": ("fisher", b'{"fisher": ' + b"[" * 500 + b"]" * 500 + b"}", "nested more than"),
    "deeper than Python goes": ("gram", b"[" * 100_000, "is not valid JSON"),
    "a key twice": ("fisher", b'{"fisher": {"norm": 1, "norm": 2}}', "twice"),
    "a list": ("fisher", [], "is not a JSON object"),
    "norm of 400 digits": ("fisher", {"fisher": {"norm": 10**400}}, "`norm` must be"),
    "norm of nothing": ("fisher", {"fisher": {"norm": 0}}, "`norm` must be"),
    "norm below nothing": ("fisher", {"fisher": {"norm": -1.0}}, "`norm` must be"),
    "norm that is no number": ("fisher", {"fisher": {"norm": float("nan")}}, "`norm` must be"),
    "norm that is infinite": ("fisher", {"fisher": {"norm": float("inf")}}, "`norm` must be"),
    "norm that is true": ("fisher", {"fisher": {"norm": True}}, "`norm` must be"),
    "no norm": ("fisher", {"fisher": {}}, "`norm` must be"),
    "transposed without names": ("gram", {"gram": {"transposed": [1]}}, "must be a list"),
    "transposed in a map": ("gram", {"gram": {"transposed": {"a": 1}}}, "must be a list"),
}


@pytest.mark.parametrize("case", SUMMARIES)
def test_a_hostile_summary_is_refused(case: str, ground: Ground) -> None:
    kind, content, said = SUMMARIES[case]
    recipe, folder = written(ground, kind)
    write_json(folder / SUMMARY, content)
    ground.refused(recipe, names=folder / SUMMARY, says=said)


FILES: dict[str, tuple[str, bytes, str]] = {
    "cut off": ("fisher", one(bytes(7)), "truncated"),
    "a hole": ("gram", one(bytes(9), data_offsets=[1, 9]), "leaves a hole"),
    "a size that wraps": ("gram", one(shape=[2**63, 2]), "impossible shape"),
    "whole numbers": ("fisher", one(dtype="I32"), "is no statistic"),
    "brackets": ("gram", packed(b"[" * 100_000), "not JSON"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_hostile_file_of_statistics_is_refused(case: str, ground: Ground) -> None:
    kind, content, said = FILES[case]
    recipe, folder = written(ground, kind)
    (folder / f"{kind}.safetensors").write_bytes(content)
    ground.refused(recipe, names=folder / f"{kind}.safetensors", says=said)


@pytest.mark.parametrize("kind", ["fisher", "gram"])
@pytest.mark.parametrize("shape", [[2], [2**60, 0], [0], [4, 4, 1], [4, 2]], ids=str)
def test_statistics_of_other_shapes_are_refused(
    shape: list[int], kind: str, ground: Ground
) -> None:
    recipe, folder = written(ground, kind)
    size = 4 * int(np.prod(shape, dtype=object))
    content = one(bytes(size), shape=shape, data_offsets=[0, size])
    (folder / f"{kind}.safetensors").write_bytes(content)
    ground.refused(recipe, names=folder, says="do not fit")


def test_a_summary_of_a_terabyte_is_refused(ground: Ground) -> None:
    recipe, folder = written(ground, "gram")
    hole(folder / SUMMARY, 2**40)
    ground.refused(recipe, names=folder / SUMMARY, says="is too large")


def test_a_summary_that_is_a_folder_is_refused(ground: Ground) -> None:
    recipe, folder = written(ground, "gram")
    (folder / SUMMARY).unlink()
    (folder / SUMMARY).mkdir()
    ground.refused(recipe, names=folder / SUMMARY, says="is not a file")


def test_statistics_for_no_tensor_of_the_model_are_refused(ground: Ground) -> None:
    recipe, folder = written(ground, "gram")
    names = {f"other.{i}.weight": np.eye(4) for i in range(2000)}
    (folder / SUMMARY).unlink()
    (folder / "gram.safetensors").unlink()
    folder.rmdir()
    write_statistics(folder, "gram", {NAME: np.eye(4), **names})
    ground.refused(recipe, names=folder, says="and 1996 more")
