"""The same recipes here and in mergekit, each result against a float64 reference.

    export PYTHONPATH=tests
    python benchmarks/parity.py --mergekit PYTHON
    python benchmarks/parity.py --mergekit PYTHON --sentence-transformers PYTHON --write-docs

PYTHON is an interpreter of an environment that has mergekit, or for SentenceTransformer.merge one
that has sentence-transformers 6 and mergekit. Nothing is installed, nothing is downloaded.

The members are a small Qwen3 with fine-tuned copies of it: changes of 1.4 % of the weights' spread,
half of which (in squares) the members share. mergekit 0.1.5 cannot plan a BertModel. Every recipe
is one file that both tools read as it is; every merge is a process of its own, on the CPU
(SentenceTransformer.merge: one process for each set of members). Three settings:

    float32      float32 members, `dtype: float32`
    bf16 in f32  bfloat16 members, `dtype: float32`, `out_dtype: bfloat16`
    bf16         bfloat16 members, `dtype: bfloat16`

Of each result: the largest difference from the unrounded float64 reference of tests/reference*.py,
the same in ulp of the stored type, and the share of elements that are the correctly rounded value.
Methods that draw at random are compared by what they kept and by how they rescaled it. Last come
the probes: experiments that tell a difference of definition from one of rounding. Results go to
benchmarks/results/parity.json, with --write-docs also to docs/methods.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import reference as mixtures
import reference_consensus as consensus
from processes import MERGEKIT, OURS, ROOT, versions
from reference import Array, round_to, ulp
from tensor_folders import Tensors, largest, read_folder
from tiny_models import build_qwen3, cast, perturb

RESULTS = ROOT / "benchmarks" / "results" / "parity.json"
DOCS = ROOT / "docs" / "methods.md"
HEADING = "## Parity with mergekit, measured"
BEGIN, END = "<!-- parity: table -->", "<!-- parity: end of table -->"

IN_MEMORY = """
import json, sys
from sentence_transformers import SentenceTransformer
for job in json.load(open(sys.argv[1])):
    try:
        SentenceTransformer.merge(**job["arguments"]).save_pretrained(job["target"])
    except Exception as error:
        print(job["target"], type(error).__name__, str(error).splitlines()[0])
"""

WEIGHTS = (0.31, 1.0, 1.77)
SETTINGS: dict[str, tuple[str, dict[str, str], str]] = {
    # name: (members, keys of the recipe, stored type of the result)
    "float32": ("float32", {"dtype": "float32"}, "F32"),
    "bf16 in f32": ("bfloat16", {"dtype": "float32", "out_dtype": "bfloat16"}, "BF16"),
    "bf16": ("bfloat16", {"dtype": "bfloat16"}, "BF16"),
}
TOOLS = ("ours", "mergekit", "SentenceTransformer.merge")

Expected = Callable[[Sequence[Array], Array], Array]


@dataclass(frozen=True)
class Case:
    """One recipe and its reference. `base`: what it names as base, a member's number or "base"."""

    method: str
    expected: Expected
    members: int = 3
    base: int | str | None = None
    weights: Sequence[float] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, folder: Path, keys: Mapping[str, str]) -> dict[str, Any]:
        """The recipe for the members in `folder`: what both tools read."""
        found: dict[str, Any] = {"merge_method": self.method}
        if self.base is not None:
            found["base_model"] = _named(folder, self.base)
        models: list[dict[str, Any]] = [
            {"model": _named(folder, i)} for i in range(1, self.members + 1)
        ]
        for model, weight in zip(models, self.weights or (), strict=False):
            model["parameters"] = {"weight": weight}
        found["models"] = models
        if self.parameters:
            found["parameters"] = dict(self.parameters)
        return found | dict(keys)

    def arguments(self, folder: Path, out_dtype: str) -> dict[str, Any]:
        """The same for SentenceTransformer.merge, which takes no recipe."""
        parameters = dict(self.parameters)
        if self.weights is not None:
            parameters["weight"] = list(self.weights)
        found: dict[str, Any] = {
            "models": [_named(folder, i) for i in range(1, self.members + 1)],
            "method": self.method,
            "parameters": parameters or None,
            "out_dtype": out_dtype,
        }
        if self.base is not None:
            found["base_model"] = _named(folder, self.base)
        return found


def _named(folder: Path, which: int | str) -> str:
    return str(folder / (which if isinstance(which, str) else f"member{which}"))


HALF = [0.5, 0.5, 0.5]
W = list(WEIGHTS)
CASES: dict[str, Case] = {
    "linear": Case("linear", lambda m, b: mixtures.linear(m, W), weights=W),
    "task_arithmetic": Case(
        "task_arithmetic",
        lambda m, b: mixtures.task_arithmetic(m, b, W, lam=0.73),
        base="base",
        weights=W,
        parameters={"lambda": 0.73},
    ),
    "slerp": Case(
        "slerp",
        lambda m, b: mixtures.slerp(m[0], m[1], 0.37),
        members=2,
        base=1,
        parameters={"t": 0.37},
    ),
    "nuslerp": Case(
        "nuslerp", lambda m, b: mixtures.nuslerp(m[0], m[1], *W[:2]), members=2, weights=W[:2]
    ),
    "nuslerp, deltas": Case(
        "nuslerp",
        lambda m, b: mixtures.nuslerp(m[0], m[1], *W[:2], b),
        members=2,
        base="base",
        weights=W[:2],
    ),
    "nuslerp, deltas, last dimension": Case(
        "nuslerp",
        lambda m, b: mixtures.nuslerp(m[0], m[1], *W[:2], b, flatten=False),
        members=2,
        base="base",
        weights=W[:2],
        parameters={"nuslerp_flatten": False},
    ),
    "nuslerp, deltas, first dimension": Case(
        "nuslerp",
        lambda m, b: mixtures.nuslerp(m[0], m[1], *W[:2], b, flatten=False, row_wise=True),
        members=2,
        base="base",
        weights=W[:2],
        parameters={"nuslerp_flatten": False, "nuslerp_row_wise": True},
    ),
    "multislerp": Case("multislerp", lambda m, b: mixtures.multislerp(m, W), weights=W),
    "multislerp, deltas": Case(
        "multislerp", lambda m, b: mixtures.multislerp(m, W, b), base="base", weights=W
    ),
    "karcher": Case("karcher", lambda m, b: mixtures.karcher(m, [1.0] * 3)),
    "model_stock": Case("model_stock", lambda m, b: mixtures.model_stock(m, b), base="base"),
    "model_stock, filter_wise": Case(
        "model_stock",
        lambda m, b: mixtures.model_stock(m, b, filter_wise=True),
        base="base",
        parameters={"filter_wise": True},
    ),
    "ties": Case(
        "ties",
        lambda m, b: mixtures.ties(m, b, W, HALF),
        base="base",
        weights=W,
        parameters={"density": 0.5},
    ),
    "breadcrumbs": Case(
        "breadcrumbs",
        lambda m, b: consensus.breadcrumbs(m, b, W, HALF, [0.05] * 3),
        base="base",
        weights=W,
        parameters={"density": 0.5, "gamma": 0.05},
    ),
    "breadcrumbs_ties": Case(
        "breadcrumbs_ties",
        lambda m, b: consensus.breadcrumbs(m, b, W, HALF, [0.05] * 3, vote=True),
        base="base",
        weights=W,
        parameters={"density": 0.5, "gamma": 0.05},
    ),
    "sce": Case(
        "sce",
        lambda m, b: consensus.sce(m, b, 0.5),
        base="base",
        parameters={"select_topk": 0.5},
    ),
    "nearswap": Case(
        "nearswap",
        lambda m, b: consensus.nearswap(m[0], b, 1e-4),
        members=1,
        base="base",
        parameters={"t": 1e-4},
    ),
    "arcee_fusion": Case(
        "arcee_fusion", lambda m, b: consensus.arcee_fusion(m[0], b), members=1, base="base"
    ),
    "ram": Case("ram", lambda m, b: consensus.ram(m, b), base="base"),
    "ramplus_tl": Case("ramplus_tl", lambda m, b: consensus.ramplus_tl(m, b), base="base"),
    "passthrough": Case(
        "passthrough",
        lambda m, b: mixtures.passthrough(m[0], 0.7),
        members=1,
        parameters={"scale": 0.7},
    ),
}
DENSITY, EPSILON = 0.4, 0.15
RANDOM: dict[str, Case] = {
    method: Case(
        method,
        lambda m, b: b,
        members=1,
        base="base",
        weights=[1.0],
        parameters={"density": DENSITY} | ({"epsilon": EPSILON} if "della" in method else {}),
    )
    for method in ("dare_linear", "dare_ties", "della_linear", "della")
}


# --- running ------------------------------------------------------------------------------


def make_members(folder: Path, dtype: str, scale: float = 0.01) -> Path:
    """`folder`/base and three fine-tuned copies with half of their change in common."""
    folder.mkdir(parents=True)
    build_qwen3(folder / "base", 0, hidden_size=64, layers=3)
    perturb(folder / "base", folder / "common", 100, scale)
    for i in (1, 2, 3):
        perturb(folder / "common", folder / f"member{i}", i, scale)
    shutil.rmtree(folder / "common")
    for path in sorted(folder.iterdir()):
        cast(path, dtype)
    return folder


def read_members(folder: Path) -> tuple[list[Tensors], Tensors]:
    """The three members and the base, in float64."""
    return [read_folder(folder / f"member{i}") for i in (1, 2, 3)], read_folder(folder / "base")


@dataclass(frozen=True)
class Run:
    """One merge of one recipe by one tool."""

    tool: str
    setting: str
    case: str
    target: Path
    command: Sequence[str]


class Runner:
    """Runs commands in processes of their own, a few at a time, and remembers what failed."""

    def __init__(self, scratch: Path, mergekit: str, jobs: int) -> None:
        self.scratch = scratch
        self.mergekit = mergekit
        self.jobs = jobs
        self.failed: dict[str, str] = {}
        self.made: dict[tuple[str, str, str], Run] = {}

    def recipe(
        self, setting: str, name: str, case: Case, members: Path, keys: Mapping[str, str]
    ) -> list[Run]:
        """Write the recipe of a case, once; one run of it for each tool."""
        folder = (
            self.scratch
            / "runs"
            / setting.replace(" ", "-")
            / "".join(letter if letter.isalnum() else "-" for letter in name)
        )
        folder.mkdir(parents=True)
        recipe = folder / "recipe.yaml"
        recipe.write_text(json.dumps(case.recipe(members, keys), indent=1) + "\n")
        ours, theirs = folder / "ours", folder / "mergekit"
        runs = [
            Run(
                "ours",
                setting,
                name,
                ours,
                [sys.executable, "-c", OURS, str(recipe), "-o", str(ours), "-q"],
            ),
            Run(
                "mergekit",
                setting,
                name,
                theirs,
                [self.mergekit, "-c", MERGEKIT, str(recipe), str(theirs), "--quiet"],
            ),
        ]
        self.made |= {(setting, name, run.tool): run for run in runs}
        return runs

    def run(self, runs: Iterable[Run]) -> None:
        """Run them all; what fails is in `failed`, with the last line that it said."""
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self._one, runs))

    def _one(self, run: Run) -> None:
        said = _process(run.command)
        if said is not None:
            self.failed[f"{run.case} ({run.setting}): {run.tool}"] = said

    def result(self, run: Run) -> Tensors | None:
        """The tensors that a run wrote, None if it failed."""
        return read_folder(run.target) if run.target.is_dir() else None


def _process(command: Sequence[str]) -> str | None:
    """Run a command; what it said last if it failed."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(ROOT) if command[0] == sys.executable else "",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


# --- measuring ----------------------------------------------------------------------------


def measure(
    result: Tensors, exact: Tensors, dtype: str, models: Sequence[Tensors]
) -> dict[str, float]:
    """How far a stored result is from the float64 reference, over all tensors.

    An ulp is that of the largest magnitude among the models' element and the exact one, so that
    terms that cancel do not make it vanish.
    """
    right = total = beyond = 0
    difference = ulps = 0.0
    for name, wanted in exact.items():
        error = np.abs(result[name] - wanted)
        in_ulp = error / ulp(np.maximum(np.abs(wanted), largest(models, name)), dtype)
        right += int(np.count_nonzero(result[name] == round_to(wanted, dtype)))
        total += wanted.size
        beyond += int(np.count_nonzero(in_ulp > 1.0))
        difference = max(difference, float(np.max(error)))
        ulps = max(ulps, float(np.max(in_ulp)))
    return {
        "max_abs": difference,
        "max_ulp": ulps,
        "correctly_rounded": right / total,
        "beyond_1_ulp": beyond / total,
    }


def exact_result(expected: Expected, members: Sequence[Tensors], base: Tensors) -> Tensors:
    """The reference of every tensor."""
    return {name: expected([m[name] for m in members], base[name]) for name in base}


def measure_random(result: Tensors, member: Tensors, base: Tensors) -> dict[str, float]:
    """What a random method kept of one delta, and what it made of it. float32 only."""
    kept = count = 0
    least: list[float] = []
    most: list[float] = []
    from_l1 = from_density = difference = 0.0
    for name, origin in base.items():
        delta, out = member[name] - origin, result[name] - origin
        mask = out != 0.0
        kept += int(np.count_nonzero(mask))
        count += mask.size
        if delta.ndim != 2 or not mask.any():
            continue
        order = np.argsort(np.abs(delta), axis=-1)
        ranked = np.take_along_axis(mask, order, axis=-1)
        tenth = delta.shape[-1] // 10
        least.append(float(np.mean(ranked[:, :tenth])))
        most.append(float(np.mean(ranked[:, -tenth:])))
        held = np.where(mask, delta, 0.0)
        factor = float(np.sum(out * held) / np.sum(held * held))
        ratio = float(np.sum(np.abs(delta)) / np.sum(np.abs(held)))
        from_l1 = max(from_l1, abs(factor / ratio - 1.0))
        from_density = max(from_density, abs(factor * DENSITY - 1.0))
        difference = max(difference, float(np.max(np.abs(out - ratio * held))))
    return {
        "kept": kept / count,
        "kept_of_least_tenth": float(np.mean(least)),
        "kept_of_largest_tenth": float(np.mean(most)),
        "factor_from_l1_ratio": from_l1,
        "factor_from_1_over_density": from_density,
        "max_abs_given_what_was_kept": difference,
    }


# --- the parts of the report --------------------------------------------------------------


def measure_methods(
    runner: Runner, folders: Mapping[str, Path], in_memory: str | None
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """{setting: {case: {tool: measurements}}} of all CASES."""
    runs: dict[tuple[str, str, str], Run] = {}
    for setting, (kind, keys, _) in SETTINGS.items():
        for name, case in CASES.items():
            for run in runner.recipe(setting, name, case, folders[kind], keys):
                runs[setting, name, run.tool] = run
    runner.run(runs.values())
    for setting in SETTINGS if in_memory else ():
        if setting != "bf16":  # SentenceTransformer.merge computes in float32 unless told not to
            for run in _merge_in_memory(runner, in_memory or "", setting, folders):
                runs[setting, run.case, run.tool] = run
    report: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for setting, (kind, _, stored) in SETTINGS.items():
        members, base = read_members(folders[kind])
        for name, case in CASES.items():
            exact = exact_result(case.expected, members[: case.members], base)
            for tool in TOOLS:
                run = runs.get((setting, name, tool))
                result = None if run is None else runner.result(run)
                if result is not None:
                    found = report.setdefault(setting, {}).setdefault(name, {})
                    found[tool] = measure(result, exact, stored, [*members, base])
    return report


def _merge_in_memory(
    runner: Runner, python: str, setting: str, folders: Mapping[str, Path]
) -> list[Run]:
    """All CASES by SentenceTransformer.merge, in one process for a setting."""
    kind, keys, _ = SETTINGS[setting]
    folder = runner.scratch / "in-memory" / setting.replace(" ", "-")
    folder.mkdir(parents=True)
    runs = [
        Run(TOOLS[2], setting, name, folder / f"{number}", ())
        for number, (name, case) in enumerate(CASES.items())
        if case.members > 1  # it takes two models or more
    ]
    out_dtype = keys.get("out_dtype", "float32")
    jobs = [
        {"arguments": CASES[r.case].arguments(folders[kind], out_dtype), "target": str(r.target)}
        for r in runs
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    said = _process([python, "-c", IN_MEMORY, str(folder / "jobs.json")])
    for run in runs:
        if not run.target.is_dir():
            runner.failed[f"{run.case} ({setting}): {run.tool}"] = said or "refused"
    return runs


def measure_draws(runner: Runner, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """{method: {tool: what it kept and how it rescaled}} of the RANDOM methods."""
    runs = [
        run
        for name, case in RANDOM.items()
        for run in runner.recipe("draws", name, case, folder, {"dtype": "float32"})
    ]
    runner.run(runs)
    members, base = read_members(folder)
    report: dict[str, dict[str, dict[str, float]]] = {}
    for run in runs:
        result = runner.result(run)
        if result is not None:
            found = measure_random(result, members[0], base)
            report.setdefault(run.case, {})[run.tool] = found
    return report


@dataclass(frozen=True)
class Probe:
    """One recipe on members that moved by `scale`, against several readings of the method."""

    title: str
    scale: float
    case: Case
    readings: Mapping[str, Expected]


def _sce(equal: bool = False, normalize: bool = False, plain_sign: bool = False) -> Expected:
    """SCE, perhaps with equal weights, divided by them, or with the sign of the unweighted sum."""

    def reading(m: Sequence[Array], b: Array) -> Array:
        deltas = [x - b for x in m]
        mean = np.mean(deltas, axis=0)
        variance = np.mean([(delta - mean) ** 2 for delta in deltas], axis=0)
        mask = mixtures.keep_largest(variance, 0.5)
        kept = [np.where(mask, delta, 0.0) for delta in deltas]
        squares = [1.0 if equal else float(np.sum(delta**2)) for delta in kept]
        weights = mixtures.normalised(squares)
        weighted = [w * delta for w, delta in zip(weights, kept, strict=True)]
        sign = np.where(np.sum(kept if plain_sign else weighted, axis=0) < 0.0, -1.0, 1.0)
        agrees = [np.sign(delta) == sign for delta in weighted]
        total = np.sum(np.where(agrees, weighted, 0.0), axis=0)
        shares = np.tensordot(weights, np.asarray(agrees, dtype=float), axes=1)
        return b + (total / np.where(shares == 0.0, 1.0, shares) if normalize else total)

    return reading


def _fusion_in_float32(m: Sequence[Array], b: Array) -> Array:
    """arcee_fusion with the sums of the importance in float32."""
    x, y = m[0].astype(np.float32), b.astype(np.float32)
    tiny = np.float32(1e-8)
    p, q = (np.exp(z - z.max(-1, keepdims=True)) for z in (x, y))
    p, q = (z / z.sum(-1, keepdims=True) + tiny for z in (p, q))
    importance = np.abs(x - y) * np.sum(p * np.log(p / q), axis=-1, keepdims=True)
    low, middle, high = np.quantile(importance.astype(np.float64), [0.25, 0.5, 0.75])
    return np.where(importance >= middle + 1.5 * (high - low), m[0], b)


def _only_the_base(m: Sequence[Array], b: Array) -> Array:
    return b


def _sce_case(**parameters: Any) -> Case:
    return Case("sce", _sce(), base="base", parameters={"select_topk": 0.5, **parameters})


GRADIENT = Case(
    "task_arithmetic",
    lambda m, b: b,
    members=1,
    base="base",
    parameters={"weight": [0.0, 1.0]},
)
TINY, USUAL, LARGE = 1e-5, 0.01, 0.5
FUSION = {"definition": CASES["arcee_fusion"].expected, "sums in float32": _fusion_in_float32}
SCE = {
    "definition": _sce(),
    "definition, normalize": _sce(normalize=True),
    "equal weights, normalize": _sce(equal=True, normalize=True),
    "sign of the plain sum, normalize": _sce(normalize=True, plain_sign=True),
}
STOCK = {"definition": CASES["model_stock"].expected, "the base": _only_the_base}
PROBES = (
    Probe("model_stock", TINY, CASES["model_stock"], STOCK),
    Probe("karcher", LARGE, CASES["karcher"], {"definition": CASES["karcher"].expected}),
    Probe("arcee_fusion", USUAL, CASES["arcee_fusion"], FUSION),
    Probe("arcee_fusion", LARGE, CASES["arcee_fusion"], FUSION),
    Probe("sce", USUAL, _sce_case(), SCE),
    Probe("sce", LARGE, _sce_case(), SCE),
    Probe("sce, normalize: false", LARGE, _sce_case(normalize=False), SCE),
)


def measure_probes(runner: Runner, folders: Mapping[float, Path]) -> list[dict[str, Any]]:
    """For every probe and tool, how far the result is from each reading of the method."""
    runs = [
        (probe, run)
        for number, probe in enumerate(PROBES)
        for run in runner.recipe(
            "probes",
            f"{number} {probe.title}",
            probe.case,
            folders[probe.scale],
            {"dtype": "float32"},
        )
    ]
    runner.run(run for _, run in runs)
    loaded = {scale: read_members(folder) for scale, folder in folders.items()}
    report = []
    for probe, run in runs:
        result = runner.result(run)
        if result is None:
            continue
        members, base = loaded[probe.scale]
        for reading, expected in probe.readings.items():
            exact = exact_result(expected, members[: probe.case.members], base)
            found = measure(result, exact, "F32", [*members, base])
            report.append(
                {"recipe": probe.title, "change": probe.scale, "tool": run.tool, "reading": reading}
                | found
            )
    return report


def measure_thresholds(
    runner: Runner, folders: Mapping[str, Path]
) -> dict[str, dict[str, dict[str, int]]]:
    """Of mergekit's elements beyond 1 ulp, how many have a member at an end of what it keeps."""
    report: dict[str, dict[str, dict[str, int]]] = {}
    for setting in ("float32", "bf16 in f32"):
        kind, _, stored = SETTINGS[setting]
        members, base = read_members(folders[kind])
        for name, gamma in (("ties", 0.0), ("breadcrumbs", 0.05), ("breadcrumbs_ties", 0.05)):
            result = runner.result(runner.made[setting, name, "mergekit"])
            if result is None:
                continue
            wrong = explained = at_threshold = 0
            exact = exact_result(CASES[name].expected, members, base)
            for tensor, wanted in exact.items():
                top = np.maximum(np.abs(wanted), largest([*members, base], tensor))
                off = np.abs(result[tensor] - wanted) > ulp(top, stored)
                tied = np.zeros(wanted.shape, dtype=bool)
                for member in members:
                    size = np.abs(member[tensor] - base[tensor])
                    kept = size[consensus.keep_between(size, 0.5, gamma)]
                    for end in (kept.min(), kept.max()):
                        if np.count_nonzero(size == end) > 1:
                            tied |= size == end
                wrong += int(np.count_nonzero(off))
                explained += int(np.count_nonzero(off & tied))
                at_threshold += int(np.count_nonzero(tied))
            report.setdefault(setting, {})[name] = {
                "beyond_1_ulp": wrong,
                "of_these_tied_at_a_threshold": explained,
                "tied_at_a_threshold": at_threshold,
            }
    return report


def measure_gradient(runner: Runner, folder: Path) -> dict[str, dict[str, float]]:
    """How much of the one member each tool takes, by `weight: [0, 1]` over three layers."""
    runs = runner.recipe("gradient", "gradient", GRADIENT, folder, {"dtype": "float32"})
    runner.run(runs)
    members, base = read_members(folder)
    report = {}
    for run in runs:
        result = runner.result(run)
        if result is not None:
            report[run.tool] = {
                name: _share(result[name] - base[name], members[0][name] - base[name])
                for name in base
                if name.endswith(("up_proj.weight", "embed_tokens.weight")) or name == "norm.weight"
            }
    return report


def _share(moved: Array, delta: Array) -> float:
    return round(float(np.sum(moved * delta) / np.sum(delta * delta)), 4)


def measure_stored(runner: Runner) -> dict[str, list[str]]:
    """The results of `dtype: bfloat16` that are not stored as bfloat16, and as what they are."""
    from safetensors import deserialize

    found = {}
    for (setting, name, tool), run in runner.made.items():
        if setting == "bf16" and run.target.is_dir():
            files = sorted(run.target.glob("*.safetensors"))
            kinds = {
                entry["dtype"] for file in files for _, entry in deserialize(file.read_bytes())
            }
            if kinds != {"BF16"}:
                found[f"{name}: {tool}"] = sorted(kinds)
    return found


# --- the report ---------------------------------------------------------------------------


def table(methods: Mapping[str, Any]) -> str:
    """The measurements of CASES as Markdown: largest difference in ulp, share correctly rounded."""
    heads = [f"{setting}: {tool}" for setting in SETTINGS for tool in TOOLS[:2]]
    lines = ["| method | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 1) + "|"]
    for name in CASES:
        cells = []
        for setting in SETTINGS:
            for tool in TOOLS[:2]:
                found = methods.get(setting, {}).get(name, {}).get(tool)
                cells.append("failed" if found is None else _cell(found))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: Mapping[str, float]) -> str:
    ulps, share = found["max_ulp"], 100.0 * found["correctly_rounded"]
    size = f"{ulps:.2f}" if ulps < 100.0 else f"{ulps:.0e}"
    digits = f"{share:.3f}" if share < 100.0 else "100"
    return f"{size}, {digits} %"


def agreement(methods: Mapping[str, Any]) -> tuple[int, int]:
    """How many results of SentenceTransformer.merge measure as mergekit's do, of how many."""
    pairs = [
        (found[TOOLS[1]], found[TOOLS[2]])
        for cases in methods.values()
        for found in cases.values()
        if TOOLS[1] in found and TOOLS[2] in found
    ]
    return sum(a == b for a, b in pairs), len(pairs)


def show(report: Mapping[str, Any]) -> None:
    """Print what was measured."""
    for setting, cases in report["methods"].items():
        print(f"\n{setting:<34}  {'max abs':>8} {'max ulp':>9} {'rounded':>9}")
        for name, tools in cases.items():
            for tool, found in tools.items():
                print(
                    f"{name:<34}  {found['max_abs']:8.1e} {found['max_ulp']:9.3g} "
                    f"{100 * found['correctly_rounded']:8.3f}%  {tool}"
                )
    print("\nrandom draws: kept, of the least and largest tenth of a row; factor / (L1 ratio) - 1")
    for name, tools in report["draws"].items():
        for tool, found in tools.items():
            print(
                f"{name:<14} {found['kept']:.4f} {found['kept_of_least_tenth']:.3f} "
                f"{found['kept_of_largest_tenth']:.3f}  {found['factor_from_l1_ratio']:.0e}  {tool}"
            )
    print("\nprobes: recipe, size of the change, tool, reading: max abs, beyond 1 ulp")
    for found in report["probes"]:
        print(
            f"{found['recipe']:<22} {found['change']:<6g} {found['tool']:<9} "
            f"{found['reading']:<33} {found['max_abs']:8.1e} {found['beyond_1_ulp']:8.2%}"
        )
    for part in ("thresholds", "gradient", "not_stored_as_bfloat16", "failed"):
        print(f"\n{part}: {json.dumps(report[part], indent=1)}")
    same, count = report["in_memory_equals_mergekit"]
    print(f"SentenceTransformer.merge measures as mergekit in {same} of {count}")


def write_docs(report: Mapping[str, Any]) -> None:
    """Put the table between its marks in docs/methods.md."""
    text = DOCS.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    DOCS.write_text(f"{text[:start]}\n{table(report['methods'])}\n{text[end:]}")


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mergekit", required=True, metavar="PYTHON")
    parser.add_argument("--sentence-transformers", metavar="PYTHON")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="merges at a time")
    parser.add_argument("--write-docs", action="store_true", help="the table of docs/methods.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        kinds = ("float32", "bfloat16")
        folders = {kind: make_members(scratch / "members" / kind, kind) for kind in kinds}
        moved = {USUAL: folders["float32"]} | {
            scale: make_members(scratch / "members" / f"{scale}", "float32", scale)
            for scale in (TINY, LARGE)
        }
        runner = Runner(scratch, options.mergekit, options.jobs)
        methods = measure_methods(runner, folders, options.sentence_transformers)
        report = {
            "machine": platform.machine(),
            "versions": {
                "ours": versions(sys.executable),
                "mergekit": versions(options.mergekit),
            }
            | (
                {TOOLS[2]: versions(options.sentence_transformers)}
                if options.sentence_transformers
                else {}
            ),
            "methods": methods,
            "in_memory_equals_mergekit": agreement(methods),
            "draws": measure_draws(runner, folders["float32"]),
            "probes": measure_probes(runner, moved),
            "thresholds": measure_thresholds(runner, folders),
            "gradient": measure_gradient(runner, folders["float32"]),
            "not_stored_as_bfloat16": measure_stored(runner),
            "failed": runner.failed,
        }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    if options.write_docs:
        write_docs(report)


if __name__ == "__main__":
    main()
