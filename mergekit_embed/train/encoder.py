"""A model that embeds texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.locate import HUB_ID, is_folder, locate
from ..errors import CheckpointError, NonFiniteError, UsageError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BATCH = 32
"""Texts that are run at once."""

TINY = 1e-300
"""Less than any length but 0."""


def at_hand(reference: str, folders: tuple[Path, ...]) -> Path | None:
    """The folder of a model that is on this machine already; None for one that is not."""
    if is_folder(reference, folders):
        return locate(reference, folders)
    found = HUB_ID.fullmatch(reference)
    if found is None or reference.startswith("."):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        name, revision = found["id"], found["revision"]
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


class Encoder:
    """A model in float32, without dropout, on a CUDA device if there is one.

    Attributes:
        device: the name of its torch device.
    """

    def __init__(self, folder: Path, pooling: str | None, max_length: int):
        """Load a model.

        Args:
            folder: of the model.
            pooling: of a bare transformer, as plans have it; None for the mean.
            max_length: tokens of a text, at most the model's own limit.

        Raises:
            UsageError: when sentence-transformers is missing.
            CheckpointError: when the model cannot be loaded.
        """
        self._folder = folder
        self._model = _load(folder, pooling)
        longest = self._model.max_seq_length
        self._model.max_seq_length = min(max_length, longest or max_length)
        self.device = str(self._model.device)

    def embed(
        self, texts: Sequence[str], prompt: str | None, own: str | None
    ) -> NDArray[np.float32]:
        """Unit vectors, float32 (texts, dimension).

        Args:
            texts: what is embedded.
            prompt: put in front of them; None for the model's own.
            own: "query" or "document": which of its own; None for its default one, if any.

        Raises:
            NonFiniteError: when the model gives what is no number.
        """
        model = self._model
        embed: Callable[..., Any] = model.encode
        if own is not None:
            embed = model.encode_query if own == "query" else model.encode_document
        found = embed(list(texts), prompt=prompt, batch_size=BATCH, show_progress_bar=False)
        vectors = np.asarray(found, dtype=np.float64)
        if not np.isfinite(vectors).all():
            bad = texts[int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]
            raise NonFiniteError(f"{self._folder}: embeds a text as what is no number: {bad[:80]}")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        units: NDArray[np.float32] = (vectors / np.maximum(lengths, TINY)).astype(np.float32)
        return units


def _load(folder: Path, pooling: str | None) -> SentenceTransformer:
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError as error:
        message = "embedding texts needs `pip install mergekit_embed[train]`"
        raise UsageError(message) from error
    from transformers.utils import logging

    from ..kernels.torch_backend import choose_device
    from .models import POOLING

    device, options = str(choose_device("auto")), {"dtype": "float32"}
    shown = logging.is_progress_bar_enabled()
    hide: Callable[[], None] = logging.disable_progress_bar
    show: Callable[[], None] = logging.enable_progress_bar
    hide()
    try:
        if pooling is None or (folder / "modules.json").exists():
            model = SentenceTransformer(
                str(folder), device=device, local_files_only=True, model_kwargs=options
            )
        else:
            transformer = Transformer(str(folder), model_kwargs=options)
            size = transformer.get_embedding_dimension()
            modules = [transformer, Pooling(size, POOLING[pooling])]
            model = SentenceTransformer(modules=modules, device=device)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        message = f"cannot be loaded by sentence-transformers: {reason}"
        raise CheckpointError(folder, message) from error
    finally:
        if shown:
            show()
    return model.eval()
