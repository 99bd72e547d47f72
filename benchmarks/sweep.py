"""Eight models of four members: one run of a sweep against eight runs, and the bytes they read.

    python benchmarks/sweep.py                       # members of 91 MB (MiniLM's shapes, float32)
    python benchmarks/sweep.py --rows 30522 --width 768 --layers 12

Whole processes take turns; medians are printed. Results go to benchmarks/results/sweep.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from checkpoints import bert, write_bert
from processes import measured, ours

RESULTS = Path(__file__).parent / "results" / "sweep.json"

SWEEPS: dict[str, dict[str, list[float]]] = {
    "linear": {f"models[{i}].parameters.weight": [0.5, 2.0] for i in range(3)},
    "multislerp": {f"models[{i}].parameters.weight": [0.5, 2.0] for i in range(3)},
    "ties": {"density": [0.2, 0.4, 0.6, 0.8], "lambda": [0.8, 1.0]},
}
"""Eight points each."""


def merged(recipes: list[Path], target: Path) -> tuple[float, int, int]:
    """Seconds of one process, bytes it read, and bytes of its inputs."""
    usage, printed = measured(ours(recipes, target, "--json"))
    first = json.loads(printed.splitlines()[0])
    shutil.rmtree(target)
    return usage.wall_s, first["bytes_read"], first["bytes_in"]


def compared(method: str, members: list[Path], base: Path, folder: Path, runs: int) -> Any:
    """Medians of one run of the sweep and of a run for each of its points."""
    from mergekit_embed import load_recipes

    recipe: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": str(member)} for member in members],
        **({"base_model": str(base)} if method != "linear" else {}),
    }
    sweep = folder / f"{method}.yaml"
    sweep.write_text(json.dumps({**recipe, "sweep": SWEEPS[method]}))
    points = []
    for point in load_recipes(sweep):
        points.append(folder / f"{method}-{point.point}.yaml")
        points[-1].write_text(json.dumps(point.source.data))
    together, apart = [], []
    for _ in range(runs):
        together.append(merged([sweep], folder / "out"))
        apart.append([merged([point], folder / "out") for point in points])
    return {
        "models": len(points),
        "one_run_s": statistics.median(seconds for seconds, _, _ in together),
        "apart_s": statistics.median(sum(seconds for seconds, _, _ in taken) for taken in apart),
        "one_run_read_mb": together[0][1] / 1e6,
        "apart_read_mb": sum(read for _, read, _ in apart[0]) / 1e6,
        "input_mb": together[0][2] / 1e6,
    }


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=30522)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wanted = bert(options.rows, options.width, options.layers)
        members = [write_bert(folder / f"member{i}", wanted, i) for i in range(1, 5)]
        base = write_bert(folder / "base", wanted, 0)
        found = {method: compared(method, members, base, folder, options.runs) for method in SWEEPS}
    report = {"cores": os.cpu_count(), "runs": options.runs, "medians": found}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    for method, row in found.items():
        print(
            f"{method:>12}  one run {row['one_run_s']:6.2f} s,"
            f" {row['one_run_read_mb']:6.0f} MB read"
            f"   {row['models']} runs {row['apart_s']:6.2f} s,"
            f" {row['apart_read_mb']:6.0f} MB read   inputs {row['input_mb']:.0f} MB"
        )


if __name__ == "__main__":
    main()
