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

from mergekit_embed.publish.push import push

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


def _push(url: str, cache: Path, folder: Path, repository: str) -> None:
    os.environ["HF_TOKEN"] = "hf_alice"
    lead(url, cache, setattr)
    push(folder, repository, loads=False)


def push_and_die(hub: LoopbackHub, cache: Path, folder: Path, repository: str, at: int) -> bool:
    """Push from a process that is killed when the Hub has come to a point; whether it was.

    Processes are forked from one that has imported everything, which spares them seconds.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["hub.client"])
    process = context.Process(target=_push, args=(hub.url, cache, folder, repository))

    def kill(point: int) -> None:
        if point == at and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            process.join(10)

    hub.at_point = kill
    process.start()
    process.join(60)
    return process.exitcode == -signal.SIGKILL
