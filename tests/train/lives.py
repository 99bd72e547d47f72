"""Trainings that are killed: `python -m train.lives FOLDER PLAN KILLS`, for tests of continuing.

Every life is a forked process that trains PLAN.yaml into an output. Places in the code are watched:
steps, checkpoints half-written, models about to be renamed, the record about to be written. At the
n-th of these the life ends with SIGKILL, without any farewell, and another begins. Forking spares
every life the seconds that imports take; nothing has been computed before it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mergekit_embed.train.on_ray  # noqa: F401 - imported once, for all lives
from mergekit_embed.engine.staging import Staging
from mergekit_embed.train import fit, keeping, run, trainer
from mergekit_embed.train.run import train


def watch(heard: Callable[[], None]) -> None:
    """Let `heard` be called at every place that is watched."""

    def around(owner: Any, name: str, *, after: bool = False) -> None:
        whole = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            heard()
            result = whole(*args, **kwargs)
            if after:
                heard()
            return result

        setattr(owner, name, watched)

    around(trainer.MemberTrainer, "training_step", after=True)
    around(trainer.MemberTrainer, "_save", after=True)
    around(keeping.Keeping, "on_step_end", after=True)
    around(keeping, "seal", after=True)
    around(keeping, "save_file", after=True)
    around(Staging, "commit", after=True)
    around(fit, "write", after=True)
    around(run.Training, "add", after=True)
    around(run, "write_json", after=True)


def live(plan: Path, out: Path, end: int | None) -> tuple[int, int]:
    """Train in a process that ends at the `end`-th place: its status, and places it came to."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        places = 0

        def heard() -> None:
            nonlocal places
            places += 1
            if places == end:
                os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            watch(heard)
            train(plan, out)
            os.write(writer, str(places).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    counted = os.read(reader, 100)
    os.close(reader)
    return status, int(counted or 0)


def main(folder: Path, name: str, kills: int) -> None:
    """An undisturbed life, then several outputs whose lives are killed; tells of them in JSON."""
    torch.set_num_threads(1)
    plan = folder / f"{name}.yaml"
    status, places = live(plan, folder / "whole", None)
    assert status == 0, "the undisturbed life has failed"
    told: list[Any] = []
    for number in range(kills):
        draw = random.Random(f"{name} {number}")
        out = folder / f"killed-{number}"
        ends = [draw.randint(1, places) for _ in range(draw.randint(1, 3))]
        died = [os.WTERMSIG(live(plan, out, end)[0]) for end in ends]
        status, _ = live(plan, out, None)
        told.append({"out": out.name, "ends": ends, "died": died, "status": status})
    print(json.dumps({"places": places, "lives": told}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
