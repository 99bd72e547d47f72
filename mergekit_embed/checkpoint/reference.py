"""Model references: a folder or a Hub id, and perhaps an adapter behind a `+`."""

from __future__ import annotations

from pathlib import Path

from .adapter import PICKLE, fold
from .folder import Checkpoint, open_checkpoint
from .locate import HUB_ID, NotFoundError, is_folder, locate


def open_reference(reference: str, folders: tuple[Path, ...]) -> Checkpoint:
    """Describe the model that a reference names, with its adapter folded into it.

    Raises:
        NotFoundError: when the model or the adapter is not there.
        CheckpointError: when one of them is broken, or the adapter does not fit the model.
    """
    model, adapter = split(reference, folders)
    opened = open_checkpoint(locate(model, folders), reference)
    if adapter is None:
        return opened
    if not adapter:
        raise NotFoundError(f"{reference} names no adapter after its `+`")
    return fold(opened, locate(adapter, folders, pickles=PICKLE))


def split(reference: str, folders: tuple[Path, ...]) -> tuple[str, str | None]:
    """The model and the adapter of a reference; no adapter for a folder that has a `+` in its name.

    Of several `+`, that one counts which has folders on both sides, or else what may be Hub ids.
    """
    if "+" not in reference or is_folder(reference, folders):
        return reference, None
    parts = reference.split("+")
    pairs = [("+".join(parts[:i]), "+".join(parts[i:])) for i in range(1, len(parts))]

    def likely(name: str) -> int:
        if is_folder(name, folders):
            return 2
        return int(HUB_ID.fullmatch(name) is not None and not name.startswith("."))

    return max(pairs, key=lambda pair: (min(map(likely, pair)), sum(map(likely, pair))))
