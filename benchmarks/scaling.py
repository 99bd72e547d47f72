"""What a merge of 100 models of 70 billion parameters would take on 1 to 64 machines, on paper.

    python benchmarks/scaling.py                     # measure this machine, then print the tables
    python benchmarks/scaling.py --write-docs        # the tables into docs/scaling.md, as measured
    python benchmarks/scaling.py --price 2 --cores 32 --network 6.25

Measured: CPU time per element and member, and bytes read per byte of input, of one worker as a
task has it, on random bfloat16 members in the page cache, with no memory to keep what was read.
Simulated: every tensor of the model is a task; a task reads and computes by turns; the tasks of a
machine share its network, all machines the storage; the largest tensor begins first. Assumed: see
`Machines`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "scaling.json"
DOCS = HERE.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"

RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear"},
    "multislerp": {"merge_method": "multislerp"},
    "ties": {"merge_method": "ties", "base_model": "base", "parameters": {"density": 0.2}},
}
MEMBERS = (4, 16, 64, 100)
MACHINES = (1, 2, 4, 8, 16, 32, 64)
RUNS = 3
ELEMENTS = 2**22
BYTES = 2
"""Of a bfloat16."""


@dataclass(frozen=True)
class Machines:
    """What is assumed of machines and storage; GB are 10^9 bytes.

    Attributes:
        cores: of a machine that a task can have.
        network: GB/s that a machine reads from the storage.
        stream: GB/s that one task reads by itself.
        storage: GB/s that the storage gives to all machines together.
        price: of a machine for an hour, in whatever currency.
        start: seconds until the first task runs, and at the end to commit.
    """

    cores: int = 64
    network: float = 12.5
    stream: float = 1.5
    storage: float = 200.0
    price: float = 4.0
    start: float = 30.0


# --- measuring ----------------------------------------------------------------------------


class Nowhere:
    """A sink that hashes what it gets, as a worker does, and lets go of it."""

    def __init__(self) -> None:
        from mergekit_embed.engine.hashing import Hash

        self._hash = Hash()

    def wants(self, job: Any) -> bool:
        return True

    def write(self, job: Any, start: int, raw: Any) -> None:
        self._hash.add(raw)

    def finished(self, job: Any, learned: Any) -> None:
        for tensor in job.tensors:
            learned.digest_of(tensor)

    def notes(self, job: Any) -> tuple[str, ...]:
        return ()


def write_member(path: Path, seed: int) -> None:
    """A folder with one tensor of random bfloat16 numbers around those of seed 0."""
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "bert"}')
    shape = [ELEMENTS // 2048, 2048]
    name = "encoder.layer.0.intermediate.dense.weight"
    entry = {"dtype": "BF16", "shape": shape, "data_offsets": [0, BYTES * ELEMENTS]}
    header = json.dumps({name: entry}).encode()
    values = np.random.default_rng(0).standard_normal(ELEMENTS, dtype=np.float32) * 0.02
    values += np.random.default_rng(seed).standard_normal(ELEMENTS, dtype=np.float32) * 0.002
    raw = (values.view(np.uint32) >> 16).astype(np.uint16)
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + raw.tobytes())


def measured_once(method: str, folder: Path, count: int) -> tuple[float, float]:
    """Nanoseconds of CPU for an element of a member, and bytes read for a byte of input."""
    import mergekit_embed
    from mergekit_embed.engine.run import Silent, run
    from mergekit_embed.kernels import open_kernels

    models = [{"model": str(folder / f"m{i}")} for i in range(1, count + 1)]
    recipe: dict[str, Any] = {**RECIPES[method], "models": models}
    if "base_model" in recipe:
        recipe["base_model"] = str(folder / recipe["base_model"])
    plan = mergekit_embed.plan(recipe, folder / "out")
    kernels = open_kernels("cpu")
    kernels.workers = 1
    started = time.process_time()
    ran = run([plan], kernels, [Nowhere()], Silent())
    seconds = time.process_time() - started
    return 1e9 * seconds / (ELEMENTS * count), ran.bytes_read / plan.bytes_in


def measure() -> dict[str, Any]:
    """All methods with all numbers of members: the fastest of some runs."""
    from mergekit_embed.engine import run as running
    from mergekit_embed.engine.merge import peak_memory

    running.KEEP_BYTES = 0  # a tensor of such a model is larger than what is ever kept
    found: dict[str, Any] = {method: {} for method in RECIPES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_member(folder / "base", 0)
        for number in range(1, max(MEMBERS) + 1):
            write_member(folder / f"m{number}", number)
        for method in RECIPES:
            measured_once(method, folder, 2)  # compiles the kernels
            for count in MEMBERS:
                runs = [measured_once(method, folder, count) for _ in range(RUNS)]
                found[method][str(count)] = {
                    "ns": round(min(ns for ns, _ in runs), 3),
                    "reads": round(runs[0][1], 2),
                }
                print(method, count, found[method][str(count)], file=sys.stderr)
    return {
        "cores": os.cpu_count(),
        "elements": ELEMENTS,
        "runs": RUNS,
        "peak_mb": round(peak_memory() / 1e6),
        "methods": found,
    }


# --- the model and the machines -----------------------------------------------------------


def tensors_of_70b() -> Iterator[int]:
    """Elements of every tensor of a decoder of 70 billion parameters with a tied head.

    80 layers of width 8192, 8 of 64 heads with keys and values, 28672 wide within.
    """
    width, inner, keys = 8192, 28672, 1024
    yield 152064 * width
    for _ in range(80):
        yield from (width * width, keys * width, keys * width, width * width)
        yield from (inner * width, inner * width, inner * width)
        yield from (width, width)
    yield width


def simulate(measured: dict[str, float], count: int, machines: Machines) -> float:
    """Seconds of a merge. Machines get the tensors by turns, the largest first.

    While n tasks run on a machine, each reads at the n-th part of its network, or of its part of
    the storage, but never faster than one task can.
    """
    tensors = sorted(tensors_of_70b(), reverse=True)
    parts = [tensors[machine::count] for machine in range(count)]
    share = min(machines.network, machines.storage / count)
    return machines.start + max(_one_machine(part, measured, share, machines) for part in parts)


def _one_machine(
    tensors: list[int], measured: dict[str, float], network: float, machines: Machines
) -> float:
    """Seconds until a machine has merged its tensors.

    All tasks that run at a time go at the same pace, so they end in the order of the pace that each
    is done at: a queue of these, as in processor sharing.
    """
    per_byte = measured["ns"] * 1e-9 / (BYTES * measured["reads"])
    pace = now = 0.0
    running: list[float] = []
    waiting = [BYTES * measured["reads"] * MEMBERS[-1] * elements for elements in tensors]
    while waiting or running:
        while waiting and len(running) < machines.cores:
            heapq.heappush(running, pace + waiting.pop(0))
        rate = min(machines.stream * 1e9, network * 1e9 / len(running))
        end = heapq.heappop(running)
        now += (end - pace) * (1 / rate + per_byte)
        pace = end
    return now


# --- tables -------------------------------------------------------------------------------


def tables(report: dict[str, Any], machines: Machines) -> str:
    """What docs/scaling.md shows, in Markdown."""
    lines = [
        "CPU time for an element of a member, and bytes read for a byte of input, measured:",
        "",
        "| method | " + " | ".join(f"{count} members" for count in MEMBERS) + " | read |",
        "|---|" + "---:|" * (len(MEMBERS) + 1),
    ]
    for method, by_count in report["methods"].items():
        cells = [f"{by_count[str(count)]['ns']:.2f} ns" for count in MEMBERS]
        reads = f"{by_count[str(MEMBERS[-1])]['reads']:.1f} times"
        lines.append(f"| `{method}` | {' | '.join(cells)} | {reads} |")
    total = sum(tensors_of_70b())
    lines += [
        "",
        f"100 members of {total / 1e9:.1f} billion parameters in bfloat16, "
        f"{BYTES * total * 100 / 1e12:.1f} TB in, {BYTES * total / 1e9:.0f} GB out, simulated on "
        f"machines of {machines.cores} cores that read {machines.network:g} GB/s "
        f"({machines.stream:g} GB/s a task) from storage that gives {machines.storage:g} GB/s in "
        f"all, at {machines.price:g} an hour each; {machines.start:.0f} s to start and commit:",
        "",
        "| machines | " + " | ".join(f"`{m}` | cost" for m in RECIPES) + " |",
        "|---:|" + "---:|" * (2 * len(RECIPES)),
    ]
    at_most = {method: by_count[str(MEMBERS[-1])] for method, by_count in report["methods"].items()}
    for count in MACHINES:
        cells = []
        for measured in at_most.values():
            seconds = simulate(measured, count, machines)
            cells += [_time(seconds), f"{count * seconds / 3600 * machines.price:.2f}"]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    largest = [max(tensors_of_70b())]
    cells = [_time(_one_machine(largest, m, machines.network, machines)) for m in at_most.values()]
    lines.append("| largest tensor | " + " | | ".join(cells) + " | |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def main() -> None:
    """Measure, unless only the docs are to be written, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in vars(Machines()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--write-docs", action="store_true")
    options = vars(parser.parse_args())
    writes = options.pop("write_docs")
    if not writes:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(measure(), indent=2) + "\n")
    text = tables(json.loads(RESULTS.read_text()), Machines(**options))
    print(text)
    if writes:
        page = DOCS.read_text()
        before, after = page[: page.index(BEGIN)], page[page.index(END) :]
        DOCS.write_text(f"{before}{BEGIN}\n{text}\n{after}")


if __name__ == "__main__":
    main()
