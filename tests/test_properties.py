"""The algebra of every method as a whole: what holds for any members, from folder to folder.

Each method has an entry below, which says how it is asked and which properties it promises; where
it promises one not, the entry gives the reason. A method without an entry fails here.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import reference_consensus
import reference_statistics
from helpers import set_limits
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Array, check_numerics, round_to
from tensor_folders import (
    Tensors,
    largest,
    raw_bytes,
    read_folder,
    stored,
    write_folder,
    write_statistics,
)

import mergekit_embed
from mergekit_embed.kernels import BLOCK
from mergekit_embed.methods import available

METHODS = sorted(available())
WEIGHTS = (0.25, 1.25, 0.5)  # short binary fractions with such a sum: means of `grid` are exact
SEED = 11

Reference = Callable[[Sequence[Array], Array, str], Array]
"""The float64 result of one tensor: from the members', the base's, and its name."""

Models = Sequence[Tensors]


@dataclass(frozen=True)
class Entry:
    """How a method is asked, and which properties it has. A text is the reason for not having one.

    Attributes:
        expected: the reference, for `parameters` and `WEIGHTS`.
        parameters: of the recipe.
        count: how many members it is given.
        weighted: members have weights.
        whole: parameters under which it is task arithmetic (around 0 for methods without deltas)
            of members whose deltas have the same signs, with weights as in `whole_weights`.
        whole_weights: the weights of that task arithmetic; `WEIGHTS` by default.
        identity: parameters under which one member, or any number of equal ones, is the result.
        to_the_bit: the result of `identity` has the member's bytes.
        scaled: the parameters for members and base times a power of two.
        turned: parameters under which the order of the members does not matter.
        squares: lengths or squares are measured, which in float64 have half of the exponents.
        measure: what statistics a member comes with, from its tensors.
    """

    expected: Reference
    parameters: Mapping[str, Any] = field(default_factory=dict)
    count: int = 3
    weighted: bool = True
    whole: Mapping[str, Any] | str = "geometry takes the place of sums"
    whole_weights: tuple[float, ...] | None = None
    identity: Mapping[str, Any] | str = field(default_factory=dict)
    to_the_bit: bool = False
    scaled: Callable[[float], Mapping[str, Any]] | str = lambda factor: {}
    turned: Mapping[str, Any] | str = field(default_factory=dict)
    squares: bool = False
    measure: Callable[[Tensors], Tensors] | None = None


THREE = [0.5, 0.5, 0.5]
ONE_MEMBER = "takes one member"
PLACE = {"density": 1.0}  # what is drawn depends on a member's place: all of it, then


def _drawn(function: Any, **options: Any) -> Reference:
    return lambda m, b, name: function(
        m, b, WEIGHTS, densities=THREE, seed=SEED, tensor=name, **options
    )


def _della(**options: Any) -> Reference:
    return _drawn(reference_consensus.della, epsilons=[0.25] * 3, **options)


def _breadcrumbs(vote: bool) -> Reference:
    return lambda m, b, name: reference_consensus.breadcrumbs(
        m, b, WEIGHTS, THREE, [0.125] * 3, vote=vote
    )


def fisher_of(array: Array) -> Array:
    """Stands for a Fisher: of any scale of the member the same, and 0 where the member is 0."""
    return np.asarray(np.frexp(array)[0]) ** 2


def fishers_of(member: Tensors) -> Tensors:
    return {name: fisher_of(array) for name, array in member.items()}


def gram_of(array: Array) -> Array | None:
    """Stands for a Gram matrix of a matrix' inputs; None for what is no small matrix."""
    if array.ndim != 2 or array.shape[1] > 64:
        return None
    rows = fisher_of(array)
    return rows.T @ rows + np.eye(rows.shape[1])


def grams_of(member: Tensors) -> Tensors:
    grams = {name: gram_of(array) for name, array in member.items()}
    return {name: gram for name, gram in grams.items() if gram is not None}


def _fisher(m: Sequence[Array], b: Array, name: str) -> Array:
    fishers = [fisher_of(x) for x in m]
    return reference_statistics.fisher(m, fishers, WEIGHTS, [1, 1, 1], normalize=False, floor=0.0)


def _regmean(m: Sequence[Array], b: Array, name: str) -> Array:
    grams = [gram_of(x) for x in m]
    if grams[0] is None:
        return reference.linear(m, WEIGHTS)
    # From the mean, which is the same in exact arithmetic: members that hardly differ would
    # cancel in the reference, not in the result.
    mean = reference.linear(m, WEIGHTS)
    return mean + reference_statistics.regmean([x - mean for x in m], grams, WEIGHTS)


RANK = {"density": 1.0, "epsilon": 0.0}
UNTRIMMED = {"density": 1.0, "gamma": 0.0}
SUM = {"normalize": False}
MEAN = {"normalize": True}

ENTRIES: dict[str, Entry] = {
    # --- mixtures
    "linear": Entry(lambda m, b, n: reference.linear(m, WEIGHTS), whole=SUM, to_the_bit=True),
    "task_arithmetic": Entry(
        lambda m, b, n: reference.task_arithmetic(m, b, WEIGHTS, lam=0.5),
        {"lambda": 0.5},
        whole={"lambda": 1.0},
        identity={"lambda": 1.0, **MEAN},
        to_the_bit=True,
    ),
    "ema": Entry(
        lambda m, b, n: reference.ema(m, 0.5),
        {"decay": 0.5},
        weighted=False,
        whole={"decay": 1.0},
        whole_weights=(1 / 3, 1 / 3, 1 / 3),
        to_the_bit=True,
        turned="members are listed in training order",
    ),
    "passthrough": Entry(
        lambda m, b, n: reference.passthrough(m[0], 0.75),
        {"scale": 0.75},
        count=1,
        weighted=False,
        whole={"scale": 0.5},
        whole_weights=(0.5,),
        identity={"scale": 1.0},
        to_the_bit=True,
        turned=ONE_MEMBER,
    ),
    "slerp": Entry(
        lambda m, b, n: reference.slerp(m[0], m[1], 0.25),
        {"t": 0.25},
        count=2,
        weighted=False,
        whole={"t": 1.0},
        whole_weights=(0.0, 1.0),
        to_the_bit=True,
        turned="t runs from the first member to the second; tests/test_methods.py turns it",
        squares=True,
    ),
    "nuslerp": Entry(
        lambda m, b, n: reference.nuslerp(m[0], m[1], *WEIGHTS[:2], base=b),
        count=2,
        to_the_bit=True,
        squares=True,
    ),
    "multislerp": Entry(
        lambda m, b, n: reference.multislerp(m, WEIGHTS, base=b), to_the_bit=True, squares=True
    ),
    "karcher": Entry(lambda m, b, n: reference.karcher(m, WEIGHTS), to_the_bit=True, squares=True),
    "model_stock": Entry(
        lambda m, b, n: reference.model_stock(m, b), weighted=False, to_the_bit=True, squares=True
    ),
    "delta_guided": Entry(
        lambda m, b, n: reference.delta_guided(m, b, WEIGHTS),
        whole={"gamma": 0.0},
        whole_weights=tuple(w / sum(WEIGHTS) for w in WEIGHTS),
        to_the_bit=True,
        squares=True,
    ),
    "self_positioning": Entry(
        lambda m, b, n: reference.self_positioning(m, b, WEIGHTS, lam=0.5),
        {"lambda": 0.5},
        identity={"lambda": 1.0},
        to_the_bit=True,
        turned="members are joined one after the other",
        squares=True,
    ),
    # --- by statistics
    "fisher": Entry(
        _fisher,
        {"normalize_fisher": False, "floor": 0.0},
        whole="members weigh as their Fishers",
        to_the_bit=True,
        squares=True,
        measure=fishers_of,
    ),
    "regmean": Entry(
        _regmean,
        whole="members weigh as what goes into their layers",
        to_the_bit=True,
        squares=True,
        measure=grams_of,
    ),
    # --- consensus
    "ties": Entry(
        lambda m, b, n: reference.ties(m, b, WEIGHTS, THREE),
        {"density": 0.5},
        whole={"density": 1.0, **SUM},
        identity={"density": 1.0},
    ),
    "dare_linear": Entry(
        _drawn(reference_consensus.dare),
        {"density": 0.5},
        whole=PLACE,
        identity={**PLACE, **MEAN},
        turned=PLACE,
    ),
    "dare_ties": Entry(
        _drawn(reference_consensus.dare, vote=True),
        {"density": 0.5},
        whole=PLACE,
        identity={**PLACE, **MEAN},
        turned=PLACE,
    ),
    "della_linear": Entry(
        _della(normalize=False, vote=False),
        {"density": 0.5, "epsilon": 0.25},
        whole=RANK,
        identity={**RANK, **MEAN},
        turned=RANK,
    ),
    "della": Entry(
        _della(normalize=True, vote=True),
        {"density": 0.5, "epsilon": 0.25},
        whole={**RANK, **SUM},
        identity=RANK,
        turned=RANK,
    ),
    "breadcrumbs": Entry(
        _breadcrumbs(vote=False),
        {"density": 0.5, "gamma": 0.125},
        whole=UNTRIMMED,
        identity={**UNTRIMMED, **MEAN},
    ),
    "breadcrumbs_ties": Entry(
        _breadcrumbs(vote=True),
        {"density": 0.5, "gamma": 0.125},
        whole=UNTRIMMED,
        identity={**UNTRIMMED, **MEAN},
    ),
    "sce": Entry(
        lambda m, b, n: reference_consensus.sce(m, b, select_topk=0.5),
        {"select_topk": 0.5},
        weighted=False,
        whole="members weigh as their squares",
        identity={"select_topk": 1.0},
        squares=True,
    ),
    "median": Entry(
        lambda m, b, n: reference_consensus.median(m),
        weighted=False,
        whole="takes one value or two of an element, whatever the others are",
        to_the_bit=True,
    ),
    "trimmed_mean": Entry(
        lambda m, b, n: reference_consensus.trimmed_mean(m, trim=0.375),
        {"trim": 0.375},
        weighted=False,
        whole={"trim": 0.0},
        whole_weights=(1 / 3, 1 / 3, 1 / 3),
        to_the_bit=True,
    ),
    "nearswap": Entry(
        lambda m, b, n: reference_consensus.nearswap(m[0], b, 0.125),
        {"t": 0.125},
        count=1,
        weighted=False,
        whole={"t": 1e9},
        whole_weights=(1.0,),
        identity={"t": 1e9},
        to_the_bit=True,
        scaled=lambda factor: {"t": 0.125 * factor},  # how far is a distance
        turned=ONE_MEMBER,
    ),
    "arcee_fusion": Entry(
        lambda m, b, n: reference_consensus.arcee_fusion(m[0], b),
        count=1,
        weighted=False,
        whole="takes what is outstanding, which not everything can be",
        identity="takes what is outstanding of a member",
        scaled="the softmax of a row changes with its scale",
        turned=ONE_MEMBER,
    ),
    "ram": Entry(
        lambda m, b, n: reference_consensus.ram(m, b, epsilon=0.125),
        {"epsilon": 0.125},
        weighted=False,
        whole="means what members share; see the test of members that share nothing",
        identity={"epsilon": 0.0},
        scaled=lambda factor: {"epsilon": 0.125 * factor},
    ),
    "ramplus_tl": Entry(
        lambda m, b, n: reference_consensus.ramplus_tl(m, b, epsilon=0.125),
        {"epsilon": 0.125},
        weighted=False,
        whole="means what members share; see the test of members that share nothing",
        identity={"epsilon": 0.0},
        scaled=lambda factor: {"epsilon": 0.125 * factor},
    ),
}

BASED = [name for name in METHODS if available()[name].base != "files"]


def _promising(of: Callable[[Entry], Any]) -> list[str]:
    """The methods that have a property. Those without an entry are there too, and fail."""
    return [n for n in METHODS if n not in ENTRIES or not isinstance(of(ENTRIES[n]), str)]


def test_every_method_has_an_entry() -> None:
    assert sorted(ENTRIES) == METHODS


# --- merging, on disk but quickly ---------------------------------------------------------


def merge(
    name: str,
    root: Path,
    members: Models,
    base: Tensors,
    dtype: str,
    weights: Sequence[float] = WEIGHTS,
    **parameters: Any,
) -> Path:
    """Merge folders of the tensors into a folder, written and read as any model is."""
    entry = ENTRIES[name]
    paths = [write_folder(root / f"m{i}", member, dtype) for i, member in enumerate(members)]
    recipe = recipe_of(name, paths, write_folder(root / "base", base, dtype), weights)
    recipe["parameters"] = {**entry.parameters, **parameters}
    mergekit_embed.merge(recipe, root / "out", device="cpu")
    return root / "out"


def recipe_of(
    name: str, paths: Sequence[Path], base: Path, weights: Sequence[float] = WEIGHTS
) -> dict[str, Any]:
    models: list[dict[str, Any]] = [{"model": str(path)} for path in paths]
    if ENTRIES[name].weighted:
        for model, weight in zip(models, weights, strict=False):
            model["parameters"] = {"weight": weight}
    measure, kind = ENTRIES[name].measure, available()[name].statistics
    if measure is not None and kind is not None:
        for model, path in zip(models, paths, strict=True):
            folder = path.parent / f"{path.name}-{kind}"
            if not folder.exists():
                write_statistics(folder, kind, measure(read_folder(path)), dtype="F64")
            model["statistics"] = str(folder)
    recipe = {"merge_method": name, "models": models, "parameters": ENTRIES[name].parameters}
    if available()[name].base.endswith("origin"):
        recipe["base_model"] = str(base)
    if name == "self_positioning":
        recipe["granularity"] = "tensor"  # as the references
    return {**recipe, "seed": SEED}


def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="properties-")


# --- properties of any numbers ------------------------------------------------------------

shapes = st.lists(
    st.sampled_from([(), (1,), (5,), (1, 6), (7, 1), (4, 9), (2, 3, 5)]), min_size=1, max_size=4
)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(["F32", "BF16", "F64", "F16"])
few = settings(max_examples=6, deadline=None)


def grid(generator: np.random.Generator, shape: tuple[int, ...], low: int, high: int) -> Array:
    """Multiples of 1/64: any sum of some of them is exact, and bfloat16 holds them."""
    return np.asarray(generator.integers(low, high, endpoint=True, size=shape) / 64.0)


def models_of(
    seed: int, sizes: Sequence[tuple[int, ...]], count: int, agreeing: bool = False
) -> tuple[list[Tensors], Tensors]:
    """Members and their base; with deltas of the same signs if they shall be `agreeing`."""
    generator = np.random.default_rng(seed)
    names = [f"tensor.{i}" for i in range(len(sizes))]
    named = list(zip(names, sizes, strict=True))
    base = {n: grid(generator, shape, -64, 64) for n, shape in named}
    signs = {n: grid(generator, shape, 0, 1) * 128 - 1 for n, shape in named}
    members = []
    for _ in range(count):
        deltas = {n: grid(generator, shape, 1, 63) for n, shape in named}
        if not agreeing:
            signs = {n: grid(generator, shape, 0, 1) * 128 - 1 for n, shape in named}
        members.append({n: base[n] + signs[n] * deltas[n] for n in names})
    return members, base


@pytest.mark.parametrize("name", _promising(lambda entry: entry.whole))
@few
@given(seed=seeds, sizes=shapes, dtype=dtypes)
def test_with_everything_kept_it_is_task_arithmetic(
    name: str, seed: int, sizes: list[tuple[int, ...]], dtype: str
) -> None:
    entry = ENTRIES[name]
    assert not isinstance(entry.whole, str)
    members, base = models_of(seed, sizes, entry.count, agreeing=True)
    weights = entry.whole_weights or WEIGHTS
    with folder() as root:
        result = read_folder(merge(name, Path(root), members, base, dtype, **entry.whole))
    for tensor, found in result.items():
        start = base[tensor] if name in BASED else np.zeros_like(base[tensor])
        exact = reference.task_arithmetic([m[tensor] for m in members], start, weights)
        if all((64 * weight).is_integer() for weight in weights):
            assert np.array_equal(found, round_to(exact, dtype))  # every sum is exact
        check_numerics(found, exact, dtype, largest([base, *members], tensor))


@pytest.mark.parametrize("name", ["ram", "ramplus_tl"])
@few
@given(seed=seeds, sizes=shapes, dtype=dtypes)
def test_of_members_that_share_nothing_ram_is_the_sum(
    name: str, seed: int, sizes: list[tuple[int, ...]], dtype: str
) -> None:
    members, base = models_of(seed, sizes, 3)
    owner = np.random.default_rng(seed)
    for tensor, origin in base.items():
        whose = owner.integers(0, 3, size=origin.shape)
        for index, member in enumerate(members):
            member[tensor] = np.where(whose == index, member[tensor], origin)
    with folder() as root:
        result = read_folder(merge(name, Path(root), members, base, dtype, epsilon=0.0))
    for tensor, found in result.items():
        exact = reference.task_arithmetic([m[tensor] for m in members], base[tensor], [1, 1, 1])
        assert np.array_equal(found, round_to(exact, dtype))


@pytest.mark.parametrize("name", _promising(lambda entry: entry.identity))
@few
@given(seed=seeds, sizes=shapes, dtype=dtypes, copies=st.integers(1, 4))
def test_equal_members_are_the_result(
    name: str, seed: int, sizes: list[tuple[int, ...]], dtype: str, copies: int
) -> None:
    """Among them the one member of a merge of one."""
    entry = ENTRIES[name]
    assert not isinstance(entry.identity, str)
    exactly = available()[name].exactly
    generator = np.random.default_rng(seed)
    names = [f"tensor.{i}" for i in range(len(sizes))]
    member, base = (
        stored({n: generator.standard_normal(s) for n, s in zip(names, sizes, strict=True)}, dtype)
        for _ in range(2)
    )
    weights = generator.uniform(0.1, 2.0, size=4).tolist()
    with folder() as root:
        output = merge(
            name, Path(root), [member] * (exactly or copies), base, dtype, weights, **entry.identity
        )
        if entry.to_the_bit:
            assert raw_bytes(output) == raw_bytes(Path(root) / "m0")
        result = read_folder(output)
    for tensor, found in result.items():
        check_numerics(found, member[tensor], dtype, largest([base, member], tensor))


@pytest.mark.parametrize("name", _promising(lambda entry: entry.scaled))
@few
@given(seed=seeds, sizes=shapes, dtype=dtypes, power=st.integers(-7, 7))
def test_a_power_of_two_passes_through(
    name: str, seed: int, sizes: list[tuple[int, ...]], dtype: str, power: int
) -> None:
    entry = ENTRIES[name]
    assert not isinstance(entry.scaled, str)
    members, base = models_of(seed, sizes, entry.count)
    factor = 2.0**power
    larger, start = (
        [{n: x * factor for n, x in model.items()} for model in models]
        for models in (members, [base])
    )
    with folder() as root:
        one = read_folder(merge(name, Path(root) / "one", members, base, dtype))
        own = entry.scaled(factor)
        other = read_folder(merge(name, Path(root) / "other", larger, start[0], dtype, **own))
    for tensor, found in one.items():
        # The smallest numbers of float16 are subnormal here, and round otherwise.
        normal = np.minimum(np.abs(found), np.abs(other[tensor])) >= 2.0**-14
        assert np.array_equal((found * factor)[normal], other[tensor][normal])
        assert np.allclose(found * factor, other[tensor], atol=2.0**-24 * max(1.0, factor))


@pytest.mark.parametrize("name", _promising(lambda entry: entry.turned))
@few
@given(seed=seeds, sizes=shapes, dtype=dtypes, order=st.permutations(range(3)))
def test_the_order_of_members_and_their_weights_does_not_matter(
    name: str, seed: int, sizes: list[tuple[int, ...]], dtype: str, order: list[int]
) -> None:
    entry = ENTRIES[name]
    assert not isinstance(entry.turned, str)
    members, base = models_of(seed, sizes, entry.count)
    places = [place for place in order if place < entry.count]
    others, weights = [members[place] for place in places], [WEIGHTS[place] for place in places]
    with folder() as root:
        one = read_folder(merge(name, Path(root) / "one", members, base, dtype, **entry.turned))
        there = merge(name, Path(root) / "other", others, base, dtype, weights, **entry.turned)
        other = read_folder(there)
    for tensor, found in one.items():
        most = largest([base, *members], tensor)
        check_numerics(other[tensor], found, dtype, most)
        if not entry.squares:  # sums of these numbers are exact in any order
            assert np.array_equal(found, other[tensor])


# --- tensors at the edge ------------------------------------------------------------------

SHAPES = {
    "scalar": (),
    "empty": (0,),
    "no rows": (0, 4),
    "no columns": (4, 0),
    "one element": (1,),
    "one by one": (1, 1),
    "one row": (1, 37),
    "one column": (37, 1),
    "rows of one": (4, 3, 1),
    "cube": (3, 5, 7),
}

VALUES = (
    "zero deltas",
    "a zero delta",
    "a zero base",
    "zeros",
    "signed zeros",
    "smallest",
    "largest",
    "tiny deltas",
    "opposite",
)

LENGTHS = {  # around a block, around the chunk of a few blocks, and longer rows than a block
    "below a block": (BLOCK - 1,),
    "a block": (BLOCK,),
    "above a block": (BLOCK + 1,),
    "below four": (4 * BLOCK - 1,),
    "above four": (4 * BLOCK + 1,),
    "long rows": (2, BLOCK + 4465),
    "long column": (3001, 1),
}


def edge(kind: str, dtype: str, squares: bool, generator: np.random.Generator) -> list[Array]:
    """Three members and their base of one kind, as values that `dtype` holds."""
    shape = SHAPES.get(kind, LENGTHS.get(kind, (6, 7)))
    precision, least, most = reference.FORMATS[dtype]
    start = generator.standard_normal(shape)
    deltas = generator.standard_normal((3, *shape)) * 0.25
    if kind == "zero deltas":
        deltas *= 0.0
    elif kind == "a zero delta":
        deltas[1] = 0.0
    elif kind == "a zero base":
        start *= 0.0
    elif kind == "zeros":
        start, deltas = start * 0.0, deltas * 0.0
    elif kind == "opposite":
        # Of few bits, so that no exact result is half-way between two numbers of a stored type.
        one = np.clip(np.rint(16.0 * deltas[0]), -7.0, 7.0) / 8.0
        start, deltas = start * 0.0, np.stack([one, -0.5 * one, 2.0 * one])
    elif kind == "tiny deltas":
        start, deltas = np.sign(start) * (np.abs(start) < 1), deltas * 2.0 ** (3 - precision)
    elif kind == "smallest":
        unit = 2.0 ** (least - precision + 1)
        if dtype == "F64":  # in which we compute: products need some bits, squares the exponents
            unit = 2.0**-350 if squares else 2.0**38 * unit
        return [generator.integers(-60, 60, size=shape) * unit for _ in range(4)]
    elif kind == "largest":
        unit = 2.0**350 if squares and dtype == "F64" else 2.0 ** (most - 8)
        start, deltas = np.clip(start, -2, 2) * 56 * unit, np.clip(deltas, -1, 1) * unit
    models = [*(start + delta for delta in deltas), start]
    if kind == "signed zeros":
        zeros = generator.choice([0.0, -0.0, 0.5], size=(4, *shape), p=[0.4, 0.4, 0.2])
        zeros[:, 0] = -0.0
        return list(zeros)
    return [round_to(np.asarray(model), dtype) for model in models]


def edges(kinds: Iterable[str], dtype: str, squares: bool) -> tuple[list[Tensors], Tensors]:
    generator = np.random.default_rng(3)
    found = {kind: edge(kind, dtype, squares, generator) for kind in kinds}
    *members, base = [{kind: found[kind][i] for kind in found} for i in range(4)]
    return members, base


def bits(array: Array) -> Any:
    return np.ascontiguousarray(array).view(np.int64)


def check_all(name: str, result: Tensors, members: Models, base: Tensors, dtype: str) -> None:
    entry = ENTRIES[name]
    assert result.keys() == base.keys()
    for tensor, found in result.items():
        own = [np.asarray(member[tensor]) for member in members[: entry.count]]
        start = np.asarray(base[tensor]) if name in BASED else np.zeros_like(base[tensor])
        try:
            exact = entry.expected(own, start, tensor)
            limit = largest([base, *members], tensor)
            if name == "regmean" and limit.size:  # its terms are products with whole rows
                limit = np.full_like(limit, limit.max())
            check_numerics(found, exact, dtype, limit)
        except AssertionError as error:
            raise AssertionError(f"{tensor}: {error}") from error
        if name in LEAVES_WHAT_IS_COMMON:
            inputs = own if name not in BASED else [*own, start]
            common = np.logical_and.reduce([bits(x) == bits(inputs[0]) for x in inputs])
            assert np.array_equal(bits(found)[common], bits(inputs[0])[common]), tensor


LEAVES_WHAT_IS_COMMON = {
    *(name for name in METHODS if available()[name].base == "origin"),
    *("linear", "ema", "median", "trimmed_mean", "fisher"),
}
"""An element that base and members share comes back, zeros with their sign."""


UNDECIDED = {
    # Softmaxes that differ in their last bit only: their divergence is rounding, here and there.
    ("arcee_fusion", "F64", "tiny deltas"),
    # What is left of members that oppose each other is the rounding of two orders of summation.
    ("regmean", "F32", "opposite"),
    ("regmean", "BF16", "opposite"),
    ("regmean", "F16", "opposite"),
}


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16"])
@pytest.mark.parametrize("name", METHODS)
def test_edges_are_merged_as_the_reference_says(name: str, dtype: str, tmp_path: Path) -> None:
    kinds = [kind for kind in (*SHAPES, *VALUES) if (name, dtype, kind) not in UNDECIDED]
    members, base = edges(kinds, dtype, ENTRIES[name].squares)
    output = merge(name, tmp_path, members[: ENTRIES[name].count], base, dtype)
    check_all(name, read_folder(output), members, base, dtype)


class Long:
    """Members of long tensors in float32, in one file each and turned round into three."""

    def __init__(self, root: Path):
        self.root = root
        self.members, self.base = edges([*LENGTHS, *SHAPES], "F32", squares=True)
        models = {"base": self.base, **{f"m{i}": member for i, member in enumerate(self.members)}}
        for label, model in models.items():
            write_folder(root / "one" / label, model, "F32")
            turned = dict(reversed(model.items()))
            write_folder(root / "three" / label, turned, "F32", shards=3)

    def merged(self, name: str, layout: str) -> Path:
        """Merge the first members of a layout, unless it has been done."""
        output = self.root / "out" / layout / name
        if not output.exists():
            paths = [self.root / layout / f"m{i}" for i in range(ENTRIES[name].count)]
            recipe = recipe_of(name, paths, self.root / layout / "base")
            mergekit_embed.merge(recipe, output, device="cpu")
        return output


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Long:
    return Long(tmp_path_factory.mktemp("long"))


@pytest.mark.parametrize("name", METHODS)
def test_long_tensors_are_merged_as_the_reference_says(
    name: str, long: Long, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_consensus, "uniform", drawn_once)
    found = read_folder(long.merged(name, "one"))
    check_all(name, found, long.members, long.base, "F32")


drawn_once = functools.cache(reference_consensus.uniform)


@pytest.mark.parametrize("name", METHODS)
def test_neither_chunks_nor_threads_nor_files_show_in_the_bytes(
    name: str, long: Long, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = raw_bytes(long.merged(name, "one"))
    set_limits(monkeypatch, workers=3, blocks=1)
    assert raw_bytes(long.merged(name, "three")) == one
