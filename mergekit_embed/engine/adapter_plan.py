"""From a recipe with `adapter_output` to a plan: adapters of one base that become one adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import (
    FoldedTensor,
    Shape,
    StoredTensor,
    Tensor,
    is_derived_buffer,
    layout,
    places,
)
from ..checkpoint.adapter import PREFIX
from ..dtypes import DType, Kind
from ..errors import PlanError, Problem
from ..kernels import NEARLY_ONE
from ..methods import Gram, Unit
from ..recipe import Recipe
from ..recipe.into_adapter import ADVICE
from ..recipe.source import in_file_order
from .adapter_folder import check_adapter_place, lora_config, module_of
from .adapter_members import Members, Touched, open_members, touched
from .folding import FACTOR_BYTES
from .low_rank import BLOCK_ELEMENTS
from .plan import check_space
from .planner import guilty, rehearse

CHUNK = 2**20
"""Elements of a whole tensor that are merged at a time."""

PROCESS_BYTES = 120 * 10**6
"""Memory of a process before it has read a tensor, measured."""


@dataclass(frozen=True)
class Target:
    """One tensor of the base that the result changes.

    Attributes:
        touched: what every member does to it.
        unit: what counts as one vector; `group` names the vector for layers and models.
        parameters: of the method, resolved for this tensor.
        rank: of the stored factors; 0 without.
        truncated: the factors are cut off at the rank; else they are those of all members.
        whole: the name that the tensor is stored under as a whole, if it is.
        a: the name of the stored factor A; `b` likewise; None where the rank is 0.
    """

    touched: Touched
    unit: Unit
    group: str
    parameters: Mapping[str, Any]
    rank: int
    truncated: bool
    whole: str | None
    a: str | None
    b: str | None

    @property
    def key(self) -> str:
        """The tensor's name as users see it."""
        return self.touched.key

    @property
    def may_be_copy(self) -> bool:
        """True for a whole tensor beside factors: PEFT saves a copy of an adapted embedding."""
        return self.whole is not None and self.rank > 0

    def without_whole(self) -> Target:
        """The same with factors alone."""
        bare = replace(self.touched, wholes=(None,) * len(self.touched.wholes), is_whole=False)
        return replace(self, touched=bare, whole=None)

    @property
    def bytes_in(self) -> int:
        """Stored bytes of everything that is read for it."""
        found = self.touched
        factors = sum(u.left.nbytes + u.right.nbytes for u in found.updates if u)
        if self.whole is None:
            return factors
        return factors + found.base.nbytes + sum(w.nbytes for w in found.wholes if w)

    def sources(self) -> tuple[Tensor, ...]:
        """The tensor in every member, with its adapter folded in."""
        found = self.touched
        base = found.base
        return tuple(
            FoldedTensor(base.name, base.dtype, whole or base, update) if whole or update else base
            for whole, update in zip(found.wholes, found.updates, strict=True)
        )


@dataclass(frozen=True)
class AdapterPlan:
    """What a merge of adapters will do.

    `stored` has the type and shape of every tensor of the result; `overwrite` allows the output to
    be an adapter's folder.
    """

    recipe: Recipe
    output: Path
    members: Members
    targets: tuple[Target, ...] = field(repr=False)
    dtype: DType
    stored: Mapping[str, tuple[DType, Shape]] = field(repr=False)
    config: Mapping[str, object] = field(repr=False)
    notes: tuple[str, ...] = ()
    overwrite: bool = False

    @cached_property
    def layout(self) -> tuple[bytes, dict[str, int], int]:
        """The header of the weight file, the offset of every tensor, the size."""
        return layout(self.stored)

    @property
    def modules(self) -> tuple[Target, ...]:
        """The tensors that have factors in the result."""
        return tuple(target for target in self.targets if target.rank)

    @property
    def bytes_in(self) -> int:
        """Bytes of all inputs, each counted once."""
        return sum(target.bytes_in for target in self.targets)

    @property
    def bytes_out(self) -> int:
        """Bytes of the weight file."""
        return self.layout[2]

    @property
    def peak_memory(self) -> int:
        """An upper estimate of the resident bytes of a run.

        The factors of one matrix in float64, side by side, with their copies while they are
        decomposed; of a tensor that is stored whole, a chunk of every member.
        """
        held = [0]
        for target in self.targets:
            total = sum(update.rank for update in target.touched.updates if update)
            if total:
                held.append(8 * total * (4 * sum(target.touched.base.shape) + 8 * total))
            if target.whole:
                held.append(8 * CHUNK * (2 * len(self.members.adapters) + 6) + FACTOR_BYTES)
        return PROCESS_BYTES + 32 * BLOCK_ELEMENTS + max(held)

    def check(self) -> None:
        """Refuse an output that is taken.

        Raises:
            OutputExistsError: saying what is there and what would replace it.
        """
        adapters = zip(self.members.labels, self.members.adapters, strict=True)
        sources = [(self.members.base.label, self.members.base.root)]
        sources += [(label, adapter.root) for label, adapter in adapters]
        role = "one of the models to be merged"
        check_adapter_place(self.output, sources, role, overwrite=self.overwrite)

    def check_disk(self) -> None:
        """Refuse a plan that the disk cannot hold.

        Raises:
            OutputError: when the output needs more than is free.
        """
        check_space(self.output, self.bytes_out)


def plan_adapter(
    recipe: Recipe, output: str | Path | None = None, *, overwrite: bool = False
) -> AdapterPlan:
    """Plan a merge of adapters into one, without reading a weight or writing a byte.

    Args:
        recipe: a loaded recipe with `adapter_output`.
        output: the folder to write; by default the recipe's, else `merged/<recipe name>`.
        overwrite: allow `output` to be an adapter's folder, which is then replaced whole.

    Raises:
        RecipeError, PlanError: with everything that keeps the members from becoming one adapter.
        CheckpointError: when the base or an adapter is broken.
        OutputExistsError: when the output is taken.
    """
    target = Path(output or recipe.output or Path("merged") / recipe.name).expanduser()
    members = open_members(recipe)
    found = touched(recipe, members)
    resolved, problems = _resolve(recipe, members, found.tensors)
    problems = [*found.problems, *problems]
    if problems:
        raise PlanError(in_file_order(problems))
    targets = [_target(recipe, one, *resolved[one.key]) for one in found.tensors]
    dtype = recipe.dtype or _widest(found.tensors)
    made = AdapterPlan(
        recipe=recipe,
        output=target,
        members=members,
        targets=tuple(targets),
        dtype=dtype,
        stored=dict(stored_tensors(targets, dtype)),
        config=_config(members, targets, found.saved),
        notes=found.notes,
        overwrite=overwrite,
    )
    made.check()
    return made


Resolved = tuple[Unit, str, Mapping[str, Any]]
"""What counts as one vector, that vector's name, and the method's parameters."""


def _resolve(
    recipe: Recipe, members: Members, found: Sequence[Touched]
) -> tuple[dict[str, Resolved], list[Problem]]:
    """The parameters of every tensor of the base, all of which the method must be able to merge.

    What no adapter touches counts too: it stays as it is only if the method leaves it.
    """
    base = members.base
    floats = {
        component.key(name): component
        for component in base.components.values()
        for name, tensor in component.tensors.items()
        if tensor.dtype.kind is Kind.FLOAT and not is_derived_buffer(name)
    }
    located = places(c.key(name) for c in base.components.values() for name in c.tensors)
    wanted = {one.key for one in found}
    problems: dict[str, Problem] = {}
    seen: set[str] = set()
    resolved: dict[str, Resolved] = {}
    for key, component in floats.items():
        place = located[key]
        parameters = recipe.values_for(key, place.depth)
        unit = recipe.method.unit_of(parameters) or recipe.granularity
        if key in wanted:
            group = "model" if unit == "model" else f"{component.path}/{place.group}"
            resolved[key] = (unit, group, parameters)
        shown = repr(sorted((n, np.asarray(value).tolist()) for n, value in parameters.items()))
        if shown in seen:
            continue
        seen.add(shown)
        wrong = _unsuited(recipe, parameters, unit)
        if wrong and wrong not in problems:
            where = "" if len(seen) == 1 else f" (for {key})"
            problems[wrong] = recipe.source.problem(guilty(recipe), f"{wrong}{where}")
    return resolved, list(problems.values())


def _unsuited(recipe: Recipe, parameters: Mapping[str, Any], unit: Unit) -> str | None:
    """What keeps the mixture with these parameters from being a sum of adapters."""
    method, count = recipe.method, len(recipe.members)
    wrong = rehearse(recipe, parameters, count)
    if wrong:
        return wrong
    arguments = method.arguments(parameters, count)
    if unit not in {"tensor", "layer", "model"}:
        return f"every {unit} with coefficients of its own gives no sum of adapters. {ADVICE}"
    if method.absolute and method.absolute(**arguments):
        return f"an L1 length does not follow from the factors of adapters. {ADVICE}"
    if not method.base.endswith("origin"):
        total = float(np.sum(method.function(Gram(np.eye(count)), **arguments)))
        if abs(total - 1.0) > NEARLY_ONE * count:
            told = f"the coefficients of {method.name} sum to {total:g}, which scales the base too"
            return f"{told}; an adapter cannot. Let them sum to 1, or use task_arithmetic"
    return None


def _target(
    recipe: Recipe, one: Touched, unit: Unit, group: str, parameters: Mapping[str, Any]
) -> Target:
    total = sum(update.rank for update in one.updates if update)
    limit = recipe.adapter_output.rank if recipe.adapter_output else None
    truncated = limit is not None and total > limit
    rank = min(limit, *one.base.shape) if truncated and limit is not None else total
    module = f"{PREFIX}{module_of(one.name)}"
    a, b = ("embedding_A", "embedding_B") if one.embedding else ("A.weight", "B.weight")
    return Target(
        touched=one,
        unit=unit,
        group=group,
        parameters=parameters,
        rank=rank,
        truncated=truncated,
        whole=f"{PREFIX}{one.stored_name}" if one.is_whole else None,
        a=f"{module}.lora_{a}" if rank else None,
        b=f"{module}.lora_{b}" if rank else None,
    )


def _widest(found: Sequence[Touched]) -> DType:
    """Float32, which holds every 16-bit number; float64 where that is what is read."""
    read: list[StoredTensor] = []
    for one in found:
        read += [one.base] if one.is_whole else []
        read += [whole for whole in one.wholes if whole]
        read += [side for update in one.updates if update for side in (update.left, update.right)]
    return DType.F64 if any(tensor.dtype is DType.F64 for tensor in read) else DType.F32


def stored_tensors(
    targets: Sequence[Target], dtype: DType
) -> Iterator[tuple[str, tuple[DType, Shape]]]:
    """The type and shape of everything that is stored for these tensors, by its name."""
    for target in targets:
        shape = target.touched.base.shape
        if target.whole:
            yield target.whole, (dtype, shape)
        if target.a and target.b:
            out, into = reversed(shape) if target.touched.transposed else shape
            yield target.a, (dtype, (target.rank, into))
            yield target.b, (dtype, (out, target.rank))


def _config(members: Members, targets: Sequence[Target], saved: frozenset[str]) -> dict[str, Any]:
    """adapter_config.json."""
    configs = [adapter.config for adapter in members.adapters]
    tasks = {config.task for config in configs}
    ranks = {module_of(t.touched.name): t.rank for t in targets if t.rank}
    wholes = [t.touched.name for t in targets if t.whole]
    linear = [u for t in targets if not t.touched.embedding for u in t.touched.updates if u]
    return lora_config(
        members.base.label,
        ranks,
        saved,
        biases=any(n.endswith(".bias") and module_of(n) not in saved for n in wholes),
        fan_in_fan_out=any(update.transposed for update in linear),
        task=tasks.pop() if len(tasks) == 1 else None,
    )
