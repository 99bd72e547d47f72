"""Whether a merge was done before: by the manifest in its place, as `make` goes by times."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.weights import read_object
from ..errors import CheckpointError
from .fingerprint import recipe_digest
from .hashing import digest_of
from .manifest import FORMAT, MANIFEST, input_folders
from .plan import Plan


def is_done(plan: Plan) -> bool:
    """True when the plan's place holds what it would write there.

    It was written by the same recipe from models of the same names and revisions, is laid out as it
    would be now, and no file of these models is younger than it. No weight is read.
    """
    path = plan.output / MANIFEST
    try:
        told = read_object(path)
    except CheckpointError:
        return False
    if told.get("format") != FORMAT or told.get("recipe") != recipe_digest(plan.recipe):
        return False
    folders = input_folders(plan)
    if [one.get("model") for one in told.get("inputs", ())] != [*folders.values()]:
        return False
    files = told.get("files", {})
    for file in plan.files:
        there = plan.output / file.path
        if files.get(file.path, {}).get("header") != digest_of(file.header):
            return False
        if not there.is_file() or there.stat().st_size != file.size:
            return False
    return all(_youngest(folder) <= path.stat().st_mtime_ns for folder in folders)


def _youngest(folder: Path) -> int:
    """When a file of a model was last written to; links are followed, to the Hub's cache."""
    return max((p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()), default=0)
