"""Time and memory of whole merges, beside the script that everybody writes first.

    python benchmarks/merge.py                       # four members of 440 MB (BERT-base, float32)
    python benchmarks/merge.py --rows 150000 --width 1000 --layers 0
    python benchmarks/merge.py --members A B C --base D

Members are real folders, or random ones of a BERT's shapes. Every run is a process of its own; runs
of all contestants take turns, and medians are printed. The peak is the kernel's count of resident
memory. "in memory" loads every member's state dict and averages them in torch, as model-soup
scripts do. Results go to benchmarks/results/merge.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from checkpoints import bert, write_bert
from processes import measured, ours

RESULTS = Path(__file__).parent / "results" / "merge.json"

IN_MEMORY = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
*members, target = sys.argv[1:]
models = [load_file(Path(member) / "model.safetensors") for member in members]
merged = {}
for name in models[0]:
    merged[name] = sum(model[name] for model in models) / len(models)
Path(target).mkdir(parents=True)
save_file(merged, Path(target) / "model.safetensors", metadata={"format": "pt"})
"""


def contestants(members: list[Path], base: Path, folder: Path) -> dict[str, list[str]]:
    """Name and command of everything that is timed; each writes to folder/out."""
    commands = {
        "in memory, mean": [sys.executable, "-c", IN_MEMORY, *map(str, members), f"{folder}/out"]
    }
    for method, options in {
        "linear": {},
        "multislerp": {"base_model": str(base)},
        "ties": {"base_model": str(base), "parameters": {"density": 0.3}},
    }.items():
        recipe = folder / f"{method}.yaml"
        models = [{"model": str(member)} for member in members]
        recipe.write_text(json.dumps({"merge_method": method, "models": models, **options}))
        commands[f"boom-merge {method}"] = ours([recipe], folder / "out", "-q")
    return commands


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--members", nargs="+", type=Path, help="folders to merge")
    parser.add_argument("--base", type=Path, help="the base of --members")
    parser.add_argument("--rows", type=int, default=30522)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        members, base = options.members, options.base
        if members is None:
            wanted = bert(options.rows, options.width, options.layers)
            members = [write_bert(folder / f"member{i}", wanted, i) for i in range(1, 5)]
            base = write_bert(folder / "base", wanted, 0)
        commands = contestants(members, base or members[0], folder)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for _ in range(options.runs):
            for name, command in commands.items():
                runs[name].append(asdict(measured(command)[0]))
                shutil.rmtree(folder / "out")
        size = sum((m / "model.safetensors").stat().st_size for m in members) / len(members)
    report = {
        "members": len(members),
        "member_mb": size / 1e6,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "medians": {
            name: {key: statistics.median(run[key] for run in taken) for key in taken[0]}
            for name, taken in runs.items()
        },
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{len(members)} members of {size / 1e6:.0f} MB, {options.runs} runs each, medians")
    for name, found in report["medians"].items():
        print(
            f"{name:>22}  {found['wall_s']:6.2f} s wall  {found['cpu_s']:6.2f} s cpu  "
            f"{found['peak_mb']:7.0f} MB peak"
        )


if __name__ == "__main__":
    main()
