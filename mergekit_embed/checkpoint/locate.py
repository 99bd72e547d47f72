"""From what a recipe calls a model to a folder on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import MergekitEmbedError
from .hub_errors import UNKNOWN_TOKEN, is_of_the_way, is_unknown_token, without_secrets

HUB_ID = re.compile(r"(?P<id>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")

WANTED = (
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.py",
    "*.tiktoken",
    "LICENSE*",
    "README.md",
)
SKIPPED = ("onnx/*", "openvino/*", "*/checkpoint-*/*", "checkpoint-*/*")


class NotFoundError(MergekitEmbedError):
    """A model reference leads nowhere; the message says where was looked."""

    exit_code = 2


PICKLES = "pytorch_model*.bin*"


def is_folder(reference: str, folders: tuple[Path, ...]) -> bool:
    """True for a path that leads to a folder from one of `folders`."""
    try:
        return any((folder / Path(reference).expanduser()).is_dir() for folder in folders)
    except (OSError, RuntimeError):  # a name too long, no permission, no such ~user
        return False


def locate(reference: str, folders: tuple[Path, ...], pickles: str = PICKLES) -> Path:
    """The folder of a model: a path counted from each of `folders`, or a Hub id.

    `pickles` are the files to download from the Hub where it has no safetensors.

    Raises:
        NotFoundError: when it is neither; the message says where was looked.
    """
    tried = []
    for folder in dict.fromkeys(folders):
        try:
            path = folder / Path(reference).expanduser()
            if path.is_dir():
                return path
            if path.exists():
                raise NotFoundError(f"{path} is a file; a model is a folder")
        except (OSError, RuntimeError) as error:  # a name too long, no permission, no such ~user
            raise NotFoundError(f"{reference} cannot be looked up: {error}") from error
        tried.append(str(path))
    looked = f"there is no folder {' or '.join(dict.fromkeys(tried))}"
    found = HUB_ID.fullmatch(reference)
    if found is None or reference.startswith("."):
        raise NotFoundError(looked)
    return _download(found["id"], found["revision"], looked, pickles)


def _download(repository: str, revision: str | None, looked: str, pickles: str) -> Path:
    """The folder of a model of the Hub, from the cache or downloaded; resumable by its client."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(weights: str) -> Path:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[*WANTED, weights],
                ignore_patterns=list(SKIPPED),
            )
        )

    shown = f"{repository}@{revision}" if revision else repository
    try:
        folder = fetch("*.safetensors")
        if not any(folder.rglob("*.safetensors")):
            folder = fetch(pickles)
        return folder
    except GatedRepoError as error:
        raise NotFoundError(
            f"{shown} is gated: ask for access on its page of the Hub, then run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise NotFoundError(f"the Hub has {repository}, but not its revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"{looked}, and the Hub has no model {repository} (or it is private: `hf auth login`)"
        ) from error
    except HFValidationError as error:
        raise NotFoundError(f"{looked}, and {repository!r} is no Hub id") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        offline = "HF_HUB_OFFLINE is set" if _is_offline() else "the Hub cannot be reached"
        raise NotFoundError(f"{looked}; {shown} is not in the Hub's cache and {offline}") from error
    except Exception as error:
        if not (isinstance(error, HfHubHTTPError | OSError) or is_of_the_way(error)):
            raise
        if is_unknown_token(error):
            raise NotFoundError(f"{shown} could not be downloaded: {UNKNOWN_TOKEN}") from error
        reason = without_secrets(str(error)) or type(error).__name__
        again = "; run the same command again: files that have come are kept"
        told = reason + again if is_of_the_way(error) else reason
        raise NotFoundError(f"{shown} could not be downloaded: {told}") from error


def _is_offline() -> bool:
    from huggingface_hub.constants import is_offline_mode

    return is_offline_mode()
