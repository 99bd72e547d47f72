"""Pushes that can be killed: `python -m hub.lives`, a line of JSON for each on its standard input.

Every life is a forked process, whose number is printed and, when it has ended, how: minus the
signal that killed it. Forking spares each life the seconds that imports take.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub

import mergekit_embed
from mergekit_embed.kernels import open_kernels
from mergekit_embed.publish.push import push
from mergekit_embed.publish.stream import stream_to_hub

from .client import lead


def live(url: str, cache: str, repository: str, folder: str, recipe: Any) -> NoReturn:
    """Push a folder, or merge a recipe beside it into a repository."""
    lead(url, Path(cache), setattr)
    if recipe is None:
        push(folder, repository, loads=False)
    else:
        stream_to_hub(mergekit_embed.plan(recipe, folder), repository)
    os._exit(0)


def main() -> None:
    """Lives, one after the other."""
    open_kernels("cpu", small=True)
    for name in ("CommitOperationAdd", "HfApi", "ModelCard"):  # which are imported when asked for
        getattr(huggingface_hub, name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            live(**json.loads(line))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
