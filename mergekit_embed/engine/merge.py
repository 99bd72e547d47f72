"""The whole way: recipe, plan, stream, commit."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..recipe import Recipe, load
from .destination import Destination, check_destination
from .plan import Plan
from .planner import make_plan
from .run import Progress, Silent, run


@dataclass(frozen=True)
class MergeResult:
    """What a merge made, and what it took.

    Attributes:
        path: the model's folder.
        members: how many models were merged.
        seconds: from the recipe to the renamed folder.
        bytes_read: of weights, counting a byte as often as it was read.
        bytes_in: of weights, counting every input byte once.
        bytes_written: of all files of the model.
        peak_memory: the highest resident bytes of this process so far, code included.
        notes: what the user should know that is no error.
    """

    path: Path
    members: int
    seconds: float
    bytes_read: int
    bytes_in: int
    bytes_written: int
    peak_memory: int
    notes: tuple[str, ...]


RecipeLike = str | Path | Mapping[str, Any] | Recipe


def plan(recipe: RecipeLike, output: str | Path | None = None, *, overwrite: bool = False) -> Plan:
    """Plan a merge: read the recipe and every header, no weight, and write nothing.

    Args:
        recipe: a YAML file, a mapping with the same keys, or a loaded `Recipe`.
        output: the folder to write; by default the recipe's, else `merged/<recipe name>`.
        overwrite: allow `output` to be a model's folder, which the merge then replaces whole.

    Raises:
        RecipeError, PlanError: with everything that is wrong with the recipe and its models.
        CheckpointError: when a model's files are broken.
        OutputExistsError: when the output is taken.
        UsageError: for a recipe with `adapter_output`, which `plan_adapter` plans.
    """
    loaded = load(recipe)
    if loaded.adapter_output is not None:
        raise UsageError(f"{loaded.name} makes an adapter; plan it with `plan_adapter`")
    target = Path(output or loaded.output or Path("merged") / loaded.name).expanduser()
    made = replace(make_plan(loaded, target), overwrite=overwrite)
    check_destination(made)
    return made


def merge(
    recipe: RecipeLike,
    output: str | Path | None = None,
    *,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge models as a recipe says, and write the result as a model folder, or as an adapter's.

    Args:
        recipe: a YAML file, a mapping with the same keys, or a loaded `Recipe`.
        output: the folder to write; by default the recipe's, else `merged/<recipe name>`.
        device: where to compute: "auto" (a CUDA device when there is one), "cpu", "cuda", "cuda:1".
        overwrite: replace a model that is already there, whole and only at the very end.
        progress: told of bytes and tensors as they are done.

    Raises:
        MergekitEmbedError: one of its kinds, saying what is wrong and what to do. The output is
            then as it was before.
    """
    started = time.perf_counter()
    loaded = load(recipe)
    if loaded.adapter_output is not None:
        from .adapter_plan import plan_adapter
        from .adapters import merge_adapters

        made = plan_adapter(loaded, output, overwrite=overwrite)
        return merge_adapters(made, progress=progress, started=started)
    return execute(
        plan(loaded, output, overwrite=overwrite),
        device=device,
        progress=progress,
        started=started,
    )


def execute(
    planned: Plan,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    started: float | None = None,
) -> MergeResult:
    """Run a plan made by `plan`; see `merge`. `started`: when its clock began (perf_counter)."""
    from ..kernels import open_kernels

    started = time.perf_counter() if started is None else started
    planned.check_disk()
    kernels = open_kernels(device)
    with Destination(planned) as destination:
        ran = run(planned, kernels, destination.write, progress or Silent())
        destination.commit()
    return MergeResult(
        path=planned.output,
        members=len(planned.members),
        seconds=time.perf_counter() - started,
        bytes_read=ran.bytes_read,
        bytes_in=planned.bytes_in,
        bytes_written=destination.bytes_written,
        peak_memory=peak_memory(),
        notes=(*planned.notes, *ran.notes),
    )


def peak_memory() -> int:
    """The highest resident bytes of this process.

    Linux keeps `ru_maxrss` across exec, so that a small process started by a large one reports
    the large one's memory; the high-water mark in /proc begins anew.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
