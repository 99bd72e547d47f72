"""Counting tokens with the model's own tokenizer, without the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.locate import HUB_ID, NotFoundError, is_folder
from ..errors import CheckpointError, UsageError
from .budget import Count


def token_counter(model: str, folders: tuple[Path, ...], max_length: int) -> Count:
    """How many tokens texts are, cut to a length, with the tokens that the model puts around them.

    Args:
        model: a folder or a Hub id.
        folders: that a relative path counts from.
        max_length: tokens that a text is cut to.

    Raises:
        NotFoundError: when the model is not there, or has no `tokenizer.json`.
        CheckpointError: when that cannot be read.
        UsageError: when the library `tokenizers` is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        message = "tokens are counted by `tokenizers`: `pip install mergekit_embed[train]`"
        raise UsageError(message) from error
    file = _tokenizer_of(model, folders)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise CheckpointError(file, f"is no tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoding) for encoding in tokenizer.encode_batch(list(texts))]

    return count


FILE = "tokenizer.json"


def _tokenizer_of(model: str, folders: tuple[Path, ...]) -> Path:
    """The file of a model's tokenizer; of the Hub no other file is downloaded."""
    if is_folder(model, folders):
        found = [folder / Path(model).expanduser() / FILE for folder in folders]
        file = next((file for file in found if file.is_file()), None)
        if file is None:
            raise NotFoundError(f"{model} has no {FILE}")
        return file
    name = HUB_ID.fullmatch(model)
    if name is None or model.startswith("."):
        raise NotFoundError(f"there is no folder {model}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:  # as models are fetched: without a network it says so at once, where one file is retried
        held = snapshot_download(name["id"], revision=name["revision"], allow_patterns=[FILE])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        message = f"there is no folder {model}, and {FILE} cannot be had of the Hub: {reason}"
        raise NotFoundError(message) from error
    if not (Path(held) / FILE).is_file():
        raise NotFoundError(f"{model} has no {FILE}")
    return Path(held) / FILE
