"""Finding the models of a lineage again: by their names, and known by their hashes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.locate import NotFoundError, locate
from ..checkpoint.weights import inside
from ..engine.hashing import file_digest
from ..engine.lineage.inputs import weights_told
from ..engine.reader import Reader
from ..engine.taking_over import digest_read
from ..errors import CheckpointError, Problem, RecipeError
from .lineage import LINEAGE, Lineage

DEPTH = 3
"""How deep in the usual places a member's folder may lie: `out/members/bag-20` is."""

DEPTH_TOLD = 6
"""The same in the folders that a user names."""

MOST = 20_000
"""Folders that are looked at in one place: even a home folder is done with in a second."""


def find_members(lineage: Lineage, places: Sequence[Path] = ()) -> dict[str, Path]:
    """The folder of every model of a lineage, by what the lineage calls it.

    A model of the Hub is taken from there, or its cache, by its revision. Any other has the name
    that its folder had. It is looked for in `places`, beside and above the lineage's folder and in
    the working directory, up to three folders deep there. A folder counts only if all that was read
    of it has the same hashes: weights are read for that.

    Args:
        lineage: of a merge.
        places: folders that are searched first, deeper: a member's own, or one that it lies in.

    Raises:
        RecipeError: naming every model that is not there, or not as it was.
    """
    around = lineage.path.absolute().parent
    usual = [around, around.parent, Path.cwd()]
    looked: dict[Path, int] = {place.expanduser(): DEPTH_TOLD for place in places}
    looked |= {place: DEPTH for place in usual if place not in looked}
    found: dict[str, Path] = {}
    problems = []
    for model in lineage.models:
        try:
            found[model["name"]] = _find(model, looked)
        except NotFoundError as error:
            problems.append(Problem(str(lineage.path), f"{model['name']}: {error}"))
    if problems:
        raise RecipeError(problems)
    return found


def _find(model: Mapping[str, Any], looked: Mapping[Path, int]) -> Path:
    """The folder of one model.

    Raises:
        NotFoundError: saying why there is none, or what is wrong with the first of its name.
    """
    if "hub" in model:
        candidates = iter([locate(f"{model['hub']['id']}@{model['hub']['revision']}", ())])
    else:
        candidates = _local(model, looked)
    wrong = None
    for folder in candidates:
        fault = _fault(folder, model["files"])
        if fault is None:
            return folder
        wrong = wrong or fault
    raise NotFoundError(f"is not what it was: {wrong}" if wrong else _missing(model, looked))


def _local(model: Mapping[str, Any], looked: Mapping[Path, int]) -> Iterator[Path]:
    """Every folder of the name of a model's, each once."""
    seen: set[Path] = set()
    for place, depth in looked.items():
        for folder in _folders(place, depth):
            if folder.name == model["folder"] and folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def _folders(place: Path, depth: int) -> Iterator[Path]:
    """A folder and those in it, the nearest first; what is hidden is left out."""
    level, count = [place.absolute()], 0
    for _ in range(depth + 1):
        inner: list[Path] = []
        for folder in level:
            yield folder
            count += 1
            if count > MOST:
                return
            inner += _within(folder)
        level = inner


def _within(folder: Path) -> list[Path]:
    try:
        return sorted(
            one for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")
        )
    except OSError:  # what cannot be looked into holds none that could be read
        return []


def _missing(model: Mapping[str, Any], looked: Mapping[Path, int]) -> str:
    places = ", ".join(str(place.absolute()) for place in looked)
    return (
        f"there is no folder called {model['folder']} in {places}; "
        "name the one that it lies in with --members"
    )


def _fault(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why a folder is not the model that was read; None where it is."""
    for name, known in files.items():
        path = inside(folder, name, folder / LINEAGE)
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != known["size"]:
            return f"{path} has {path.stat().st_size:,} bytes and had {known['size']:,}"
    weights = {name for name in files if Path(name).suffix in {".safetensors", ".bin"}}
    for name in sorted(files.keys() - weights):
        if file_digest(folder / name) != files[name]["digest"]:
            return f"{folder / name} is not what it was"
    for name in sorted(weights):
        try:
            same = _hash(folder / name, files[name]) == files[name]["digest"]
        except CheckpointError as error:
            return str(error)
        if not same:
            return f"{folder / name} holds other weights than were merged"
    return None


def _hash(path: Path, known: Mapping[str, Any]) -> str:
    """The hash of those tensors of a file that the known one is of."""
    without = set(known.get("without", ()))
    with Reader() as reader:
        told = weights_told(
            path, lambda one: None if one.name in without else digest_read(one, reader)
        )
    return str(told["digest"])
