"""The whole way: recipes, plans, stream, commit."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import RecipeError, UsageError
from ..recipe import Recipe, load, load_all
from .adapter_plan import AdapterPlan, plan_adapter
from .destination import Destination, check_destination, check_disk
from .executors import Wanted, opened
from .keeping import kept
from .plan import Plan, bytes_of
from .planner import Planner
from .run import Progress, Silent


@dataclass(frozen=True)
class MergeResult:
    """What a merge made, and what it took.

    Of several models that are merged in one run, `seconds`, `bytes_read`, `bytes_in` and
    `peak_memory` are those of the run.

    Attributes:
        path: the model's folder.
        members: how many models were merged.
        seconds: from the recipe to the renamed folder.
        bytes_read: of weights, counting a byte as often as it was read.
        bytes_in: of weights, counting every input byte once.
        bytes_written: of all files of the model.
        peak_memory: the highest resident bytes of this process so far, code included.
        notes: what the user should know that is no error.
        resumed: how many tensors were there already, from a run that was interrupted.
    """

    path: Path
    members: int
    seconds: float
    bytes_read: int
    bytes_in: int
    bytes_written: int
    peak_memory: int
    notes: tuple[str, ...]
    resumed: int = field(default=0, kw_only=True)


SMALL = 10**9
"""Bytes of inputs below which a merge takes less time than compiling its kernels."""

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
    return _checked(Planner(), loaded, output, overwrite=overwrite)


def plan_many(
    recipes: RecipeLike | Sequence[RecipeLike],
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    planner: Planner | None = None,
) -> list[Plan | AdapterPlan]:
    """Plan the merges of several recipes, or of one with a `sweep`.

    Args:
        recipes: one or several of what `plan` takes.
        output: of several recipes each gets a folder of its name in there, and of a sweep each
            model one named after its values; by default in that of the recipe.
        overwrite: as for `plan`.
        planner: remembers what it has opened; that of earlier plans that will run with these.

    Raises:
        UsageError: when two models would share a folder.
        RecipeError, PlanError, CheckpointError, OutputExistsError: as `plan` does.
    """
    planner = planner or Planner()
    listed = [recipes] if isinstance(recipes, str | Path | Mapping | Recipe) else list(recipes)
    loaded = [load_all(recipe) for recipe in listed]
    found: list[Plan | AdapterPlan] = []
    for one in loaded:
        for recipe in one:
            target = Path(output) if output else None
            if target and len(listed) > 1:
                target /= recipe.name
            if target and recipe.point:
                target /= recipe.point
            if recipe.adapter_output is not None:
                found.append(plan_adapter(recipe, target, overwrite=overwrite))
            else:
                found.append(_checked(planner, recipe, target, overwrite=overwrite))
    refuse_shared_outputs(found)
    return found


def _checked(
    planner: Planner, recipe: Recipe, output: str | Path | None, *, overwrite: bool
) -> Plan:
    if recipe.search is not None:
        message = (
            "has to be done first: `boom-merge` does both, `mergekit_embed.search.search` this"
        )
        raise RecipeError([recipe.source.problem(("search",), message, key=True)])
    target = Path(output).expanduser() if output else recipe.target
    made = replace(planner.plan(recipe, target), overwrite=overwrite)
    check_destination(made)
    return made


def refuse_shared_outputs(plans: Sequence[Plan | AdapterPlan]) -> None:
    """Refuse plans of which one would write into the folder of another.

    Raises:
        UsageError: naming the two.
    """
    taken: dict[Path, Plan | AdapterPlan] = {}
    for made in plans:
        output = made.output.resolve()
        for other, first in taken.items():
            if output.is_relative_to(other) or other.is_relative_to(output):
                raise UsageError(
                    f"{made.output}: {first.recipe.source.shown} writes to {first.output}; give "
                    "one of them another `output`, or another name"
                )
        taken[output] = made


def merge(
    recipe: RecipeLike,
    output: str | Path | None = None,
    *,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    restart: bool = False,
    verify: bool = False,
    memory: int | None = None,
    executor: str = "local",
    ray_address: str | None = None,
) -> MergeResult:
    """Merge models as a recipe says, and write the result as a model folder, or as an adapter's.

    A merge of a model that was interrupted or killed goes on where it was when the same is asked
    for again; a note of the error tells how much is there.

    Args:
        recipe: a YAML file, a mapping with the same keys, or a loaded `Recipe`.
        output: the folder to write; by default the recipe's, else `merged/<recipe name>`.
        device: where to compute: "auto" (a CUDA device when there is one), "cpu", "cuda", "cuda:1".
        overwrite: replace a model that is already there, whole and only at the very end.
        progress: told of bytes and tensors as they are done.
        restart: do not go on with what an interrupted merge left, but begin anew.
        verify: before going on, compare what is there, and the members, with the hashes of then.
        memory: bytes of memory to stay below; by default, what is read is kept for another pass up
            to 256 MB. On a cluster it is that of each worker.
        executor: "local" for threads of this process, "ray" for the machines of a Ray cluster; the
            bytes are the same. An adapter is merged here in either case.
        ray_address: of the cluster's head; None for one that this machine belongs to or that
            RAY_ADDRESS names, else one of this machine alone.

    Raises:
        MergekitEmbedError: one of its kinds, saying what is wrong and what to do. The output is
            then as it was before.
    """
    started = time.perf_counter()
    loaded = load(recipe)
    if loaded.adapter_output is not None:
        from .adapters import merge_adapters

        made = plan_adapter(loaded, output, overwrite=overwrite)
        return merge_adapters(made, progress=progress, started=started)
    planned = plan(loaded, output, overwrite=overwrite)
    return execute(
        [planned],
        device=device,
        progress=progress,
        started=started,
        restart=restart,
        verify=verify,
        memory=memory,
        executor=executor,
        ray_address=ray_address,
    )[0]


def merge_many(
    recipes: RecipeLike | Sequence[RecipeLike],
    output: str | Path | None = None,
    *,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    restart: bool = False,
    verify: bool = False,
    memory: int | None = None,
    executor: str = "local",
    ray_address: str | None = None,
) -> list[MergeResult]:
    """Merge as several recipes say, or as one with a `sweep` does, in one run.

    What the recipes have in common is read, and as far as it is the same computed, once. No model
    is put in its place before all are done. Adapters (`adapter_output`) follow, one by one.

    Args:
        recipes: as for `plan_many`.
        output: as for `plan_many`.
        device: as for `merge`.
        overwrite: as for `merge`.
        progress: as for `merge`.
        restart: as for `merge`.
        verify: as for `merge`.
        memory: as for `merge`.
        executor: as for `merge`.
        ray_address: as for `merge`.

    Returns:
        A result for every model, in the order of the recipes and of the sweep's grid.

    Raises:
        MergekitEmbedError: as `merge` does; all models' folders are then as they were before.
    """
    from .adapters import merge_adapters

    started = time.perf_counter()
    planned = plan_many(recipes, output, overwrite=overwrite)
    models = [one for one in planned if isinstance(one, Plan)]
    done = iter(
        execute(
            models,
            device=device,
            progress=progress,
            started=started,
            restart=restart,
            verify=verify,
            memory=memory,
            executor=executor,
            ray_address=ray_address,
        )
        if models
        else []
    )
    return [
        next(done) if isinstance(one, Plan) else merge_adapters(one, progress=progress)
        for one in planned
    ]


def execute(
    planned: Sequence[Plan],
    *,
    device: str = "auto",
    progress: Progress | None = None,
    started: float | None = None,
    restart: bool = False,
    verify: bool = False,
    memory: int | None = None,
    executor: str = "local",
    ray_address: str | None = None,
) -> list[MergeResult]:
    """Run plans together; see `merge_many`. `started`: when the clock began (perf_counter)."""
    started = time.perf_counter() if started is None else started
    check_disk(planned)
    keep = None if memory is None else room(planned, memory)
    bytes_in = bytes_of(job for one in planned for job in one.jobs)
    wanted = Wanted(device, small=bytes_in < SMALL, keep=keep)
    destinations = [Destination(one, restart=restart, verify=verify) for one in planned]
    try:
        with ExitStack() as stack:
            chosen = stack.enter_context(opened(executor, wanted, ray_address))
            for destination in destinations:
                stack.enter_context(destination)
            with kept(destinations):
                ran = chosen.run(planned, destinations, progress or Silent())
                for destination in destinations:
                    destination.commit()
    except BaseException as error:
        _tell_kept(error, destinations)
        raise
    seconds, peak = time.perf_counter() - started, peak_memory()
    return [
        MergeResult(
            path=one.output,
            members=len(one.members),
            seconds=seconds,
            bytes_read=ran.bytes_read,
            bytes_in=bytes_in,
            bytes_written=destination.bytes_written,
            peak_memory=peak,
            notes=(*((destination.remark,) if destination.remark else ()), *one.notes, *notes),
            resumed=destination.resumed,
        )
        for one, destination, notes in zip(planned, destinations, ran.notes, strict=True)
    ]


def room(planned: Sequence[Plan], memory: int) -> int:
    """Bytes that may be kept so that a run stays below so much memory.

    Raises:
        UsageError: when it cannot, saying how much it needs.
    """
    least = max(plan.least_memory for plan in planned)
    if memory < least:
        raise UsageError(
            f"the merge needs up to {least / 1e6:,.0f} MB of memory; {memory / 1e6:,.0f} MB "
            "were allowed"
        )
    return memory - least


def _tell_kept(error: BaseException, destinations: Sequence[Destination]) -> None:
    """Add to an error that what was done before it is kept."""
    there = sum(destination.kept for destination in destinations)
    if there:
        tensors = sum(len(destination.plan.jobs) for destination in destinations)
        error.add_note(f"{there} of {tensors} tensors are done; the same command continues")


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
