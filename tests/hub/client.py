"""The Hub's real client, led to a Hub on this machine: its settings are read once, at import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.file_download as client_files
import huggingface_hub.utils._http as client_http

import mergekit_embed
from mergekit_embed.publish.push import push
from mergekit_embed.publish.stream import stream_to_hub

from .server import LoopbackHub

TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"


class NoWait:
    """`time` for a client that tries again at once."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    @staticmethod
    def sleep(seconds: float) -> None:
        """Not at all."""


def lead(url: str, cache: Path, put: Callable[[Any, str, Any], object]) -> None:
    """Let the client of this process talk to a Hub; `put` sets an attribute.

    Its large files go by LFS, and what fails is tried again without waiting.
    """
    constants = huggingface_hub.constants
    put(constants, "ENDPOINT", url)
    put(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + TEMPLATE)
    put(constants, "HF_HUB_OFFLINE", False)
    put(constants, "HF_HUB_DISABLE_XET", True)
    put(constants, "HF_HUB_CACHE", str(cache))
    put(client_http, "time", NoWait())
    put(client_files, "time", NoWait())


def environment(hub: LoopbackHub, cache: Path, **more: str) -> dict[str, str]:
    """Of a process of its own that talks to a Hub."""
    told = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(cache)}
    told |= {"HF_TOKEN": "hf_alice", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**os.environ, **told, **more}


def _push(folder: Path, repository: str) -> None:
    push(folder, repository, loads=False)


def _stream(recipe: dict[str, Any], out: Path, repository: str) -> None:
    stream_to_hub(mergekit_embed.plan(recipe, out), repository)


def _live(url: str, cache: Path, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ["HF_TOKEN"] = "hf_alice"
    lead(url, cache, setattr)
    act(*arguments)


def push_and_die(hub: LoopbackHub, cache: Path, at: int, folder: Path, repository: str) -> bool:
    """Push from a process that is killed when the Hub has come to a point; whether it was."""
    return _die(hub, cache, at, _push, (folder, repository))


def stream_and_die(
    hub: LoopbackHub, cache: Path, at: int, recipe: dict[str, Any], out: Path, repository: str
) -> bool:
    """The same for a merge that goes straight to the Hub."""
    return _die(hub, cache, at, _stream, (recipe, out, repository))


def _die(
    hub: LoopbackHub, cache: Path, at: int, act: Callable[..., None], arguments: tuple[Any, ...]
) -> bool:
    """Processes are forked from one that has imported everything, which spares them seconds."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["hub.client"])
    process = context.Process(target=_live, args=(hub.url, cache, act, arguments))

    def kill(point: int) -> None:
        if point == at and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            process.join(10)

    hub.at_point = kill
    process.start()
    process.join(60)
    hub.at_point = lambda point: None
    return process.exitcode == -signal.SIGKILL
