"""Bagging, merging and searching on a multi-task corpus: the claims of the papers, in small.

    python benchmarks/boom_study.py --data DATA --base MODEL              # all tables
    python benchmarks/boom_study.py --data DATA --base MODEL --table 3    # one
    python benchmarks/boom_study.py --write                               # docs/study.md

DATA has `train/*.jsonl` and `dev/TASK/`; `benchmarks/corpus.py` makes such a folder. Models, merges
and scores are kept in `--out`; a study that was interrupted or killed continues, and tables share
what they have in common. `--scale` is the part of the training rows that is used.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from study.compare import lines, told
from study.lab import Lab, tell
from study.page import page, picture
from study.setting import Setting, digest
from study.table import Table
from study.tables import TABLES, best

from mergekit_embed.process import claim

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "study"
FINDINGS = HERE / "study" / "findings.md"
PAGE = HERE.parent / "docs" / "study.md"
LIBRARIES = ("mergekit_embed", "torch", "transformers", "sentence-transformers", "mteb")


def run(table: Table, setting: Setting, seeds: list[int]) -> dict[str, Any]:
    """All rows of a table for all seeds, measured."""
    lab = Lab(setting, whole=table.whole)
    measured = []
    for seed in seeds:
        tell(f"table {table.number}, seed {seed}")
        measured.append(table.measured(lab, seed))
    return {
        "table": table.number,
        "title": table.title,
        "setting": setting.told | ({"measured": 1.0} if table.whole else {}),
        "seeds": seeds,
        "best_recipe": digest(best()),
        "versions": {name: version(name) for name in LIBRARIES},
        "device": device(setting),
        "rows": told(lines(measured)),
    }


def device(setting: Setting) -> str:
    """What the study ran on."""
    import torch

    if setting.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores, {platform.machine()}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder with train/ and dev/")
    parser.add_argument("--base", help="the folder of the model that members start from")
    parser.add_argument("--out", type=Path, default=Path("study"), help="default: study/")
    parser.add_argument("--table", type=int, action="append", choices=range(len(TABLES)))
    parser.add_argument("--seeds", default="1,2", help="default: 1,2")
    parser.add_argument("--scale", type=float, default=Setting.scale)
    parser.add_argument("--measured", type=float, default=Setting.measured)
    parser.add_argument("--epochs", type=int, default=Setting.epochs)
    parser.add_argument("--learning-rate", type=float, default=Setting.learning_rate)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="make docs/study.md from the results")
    given = parser.parse_args()
    claim()
    if given.data is not None:
        if given.base is None:
            parser.error("--base is needed with --data")
        setting = Setting(
            data=given.data,
            base=given.base,
            out=given.out,
            scale=given.scale,
            measured=given.measured,
            epochs=given.epochs,
            learning_rate=given.learning_rate,
            device=given.device,
        )
        seeds = [int(seed) for seed in given.seeds.split(",")]
        for table in TABLES:
            if given.table is None or table.number in given.table:
                write(given.results, run(table, setting, seeds))
    elif not given.write:
        parser.error("name --data and --base, or --write the page")
    if given.write:
        found = {
            content["table"]: content
            for path in sorted(given.results.glob("table-*.json"))
            for content in [json.loads(path.read_text())]
        }
        findings = FINDINGS.read_text(encoding="utf-8") if FINDINGS.is_file() else ""
        PAGE.write_text(page(found, findings), encoding="utf-8")
        for number, result in found.items():
            drawn = picture(result)
            if drawn is not None:
                PAGE.with_name(f"study-{number}.svg").write_text(drawn, encoding="utf-8")


def write(folder: Path, result: dict[str, Any]) -> None:
    """Keep the results of a table, and show them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"table-{result['table']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["rows"]:
        means = [row["in_domain"], row["out_of_domain"]]
        shown = "  ".join("-" if one is None else f"{one['mean']:6.2f}" for one in means)
        print(f"{shown}  {row['label']}")
    print(path)


if __name__ == "__main__":
    main()
