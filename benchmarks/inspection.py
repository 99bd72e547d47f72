"""What boom-inspect takes beside reading the same files with `cat`, from a warm and a cold cache.

    python benchmarks/inspection.py [--tiny] [--data FOLDER] [--runs 5] [--cold-runs 2]

Four members and their base in the shapes of Qwen3-Embedding-0.6B, bfloat16. Reading and inspecting
take turns, so that whatever else the machine does falls on both; the least of the runs is told, as
the others are disturbed. Each run has an empty cache for Gram matrices, but for `again`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints import QWEN3, Models, qwen3_models
from processes import ROOT, drop_from_cache, machine, measured

INSPECT = "from mergekit_embed.cli.inspect import main; main()"


def command(models: Models, *flags: str) -> list[str]:
    """The command that inspects the members, and prints no table of layers."""
    members = [str(member) for member in models.members]
    end = ["--base", str(models.base), "--by", "model", "--device", "cpu", *flags]
    return [sys.executable, "-c", INSPECT, *members, *end]


def weights(models: Models) -> list[Path]:
    """Every weight file of the members and the base."""
    folders = (models.base, *models.members)
    return sorted(file for folder in folders for file in folder.glob("*.safetensors"))


def once(models: Models, *flags: str, cold: bool = False, known: bool = False) -> dict[str, float]:
    """Read all files, then inspect them: seconds, processor seconds and megabytes of both."""
    files = weights(models)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        if known:
            measured(command(models, *flags))
        if cold:
            drop_from_cache(files)
        read, _ = measured(["sh", "-c", 'cat "$@" > /dev/null', "sh", *map(str, files)])
        if cold:
            drop_from_cache(files)
        used, _ = measured(command(models, *flags))
    return {
        "read_s": read.wall_s,
        "wall_s": used.wall_s,
        "cpu_s": used.cpu_s,
        "peak_mb": used.peak_mb,
        "peak_anonymous_mb": used.peak_anonymous_mb,
    }


def least(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The least of each figure, and how many times the reading the inspection took."""
    found = {key: round(min(run[key] for run in runs), 3) for key in runs[0]}
    return {**found, "times": round(found["wall_s"] / found["read_s"], 2), "runs": len(runs)}


def measure(models: Models, runs: int, cold_runs: int) -> dict[str, Any]:
    """All kinds of runs."""
    once(models)  # the first reads from the disk, and loads what was never loaded
    found = {
        "warm": least([once(models) for _ in range(runs)]),
        "warm, again": least([once(models, known=True) for _ in range(runs)]),
    }
    if cold_runs:
        found["cold"] = least([once(models, cold=True) for _ in range(cold_runs)])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tiny", action="store_true", help="models of a few megabytes")
    parser.add_argument("--data", type=Path, help="where models are, or are made")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cold-runs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/inspection.json")
    options = parser.parse_args(arguments)
    shape = "tiny" if options.tiny else "qwen3"
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data or Path(scratch)
        models = qwen3_models(data / shape, QWEN3[shape])
        size = sum(file.stat().st_size for file in weights(models))
        about = {"machine": machine(data), "bytes": size}
        found = {shape: {**about, **measure(models, options.runs, options.cold_runs)}}
    options.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
