"""What models are called where their places mean nothing, each by a name of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OnHub:
    """A model of the Hub: its id, and the revision as the commit's digest."""

    id: str
    revision: str


def on_hub(folder: Path) -> OnHub | None:
    """What the Hub's cache tells by its places: `models--OWNER--NAME/snapshots/REVISION`."""
    parts = _parts(folder)
    for place, part in enumerate(parts[:-2]):
        if part.startswith("models--") and parts[place + 1] == "snapshots":
            return OnHub(part.removeprefix("models--").replace("--", "/"), parts[place + 2])
    return None


def public_name(folder: Path) -> str:
    """A model's Hub id and revision, or the name of its folder."""
    found = on_hub(folder)
    if found is not None:
        return f"{found.id}@{found.revision}"
    return "model" if _is_home(folder) else _parts(folder)[-1]


def _is_home(folder: Path) -> bool:
    """Whether a folder would tell the user's name."""
    try:
        return folder.resolve() == Path.home().resolve()
    except RuntimeError:  # of a user without a home
        return False


def _parts(folder: Path) -> tuple[str, ...]:
    return Path(os.path.normpath(folder.absolute())).parts  # not resolved: links keep their names


class Names:
    """A name for every folder; folders that are called alike are numbered, as they come."""

    def __init__(self, folders: Iterable[Path]):
        self._names: dict[str, str] = {}
        for folder in folders:
            self._add(folder)

    def _add(self, folder: Path) -> None:
        place = os.path.realpath(folder)
        if place in self._names:
            return
        name, number, taken = public_name(folder), 1, set(self._names.values())
        while (name if number == 1 else f"{name}-{number}") in taken:
            number += 1
        self._names[place] = name if number == 1 else f"{name}-{number}"

    def __getitem__(self, folder: Path) -> str:
        return self._names[os.path.realpath(folder)]

    def numbered(self) -> Names:
        """The same with `#0`, `#1` and so on: what is alike whatever folders are called."""
        found = Names(())
        found._names = {place: f"#{number}" for number, place in enumerate(self._names)}
        return found
