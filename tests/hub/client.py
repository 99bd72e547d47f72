"""The Hub's real client, led to a Hub on this machine: its settings are read once, at import."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import huggingface_hub.constants
import huggingface_hub.file_download as client_files
import huggingface_hub.utils._http as client_http

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


class Lives:
    """Pushes in processes of their own, which can be killed; see lives.py. A context manager."""

    def __init__(self, cache: Path):
        self._cache = cache

    def __enter__(self) -> Self:
        path = os.pathsep.join(sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hub.lives"],
            env={**os.environ, "HF_TOKEN": "hf_alice", "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=60)

    def die(
        self, hub: LoopbackHub, at: int, repository: str, folder: Path, recipe: Any = None
    ) -> bool:
        """Push until the Hub has come to a point, and be killed then; whether that was so."""
        told = {"url": hub.url, "cache": str(self._cache), "repository": repository}
        told |= {"folder": str(folder), "recipe": recipe}
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        life: list[int] = []
        born = threading.Event()

        def kill(point: int) -> None:
            if point == at:
                born.wait()
                os.kill(life[0], signal.SIGKILL)
                hub.down = True

        hub.at_point = kill
        print(json.dumps(told), file=requests, flush=True)
        life.append(int(answers.readline()))
        born.set()
        status = int(answers.readline())
        hub.down, hub.at_point = False, lambda point: None
        return status == -signal.SIGKILL
