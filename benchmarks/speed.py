"""Time and memory of whole merges of real shapes, beside peers and beside what the machine allows.

    python benchmarks/speed.py --data DIR                           # ours and the floors
    python benchmarks/speed.py --data DIR --mergekit PYTHON --sentence-transformers PYTHON
    python benchmarks/speed.py --data DIR --cold --write-docs ...   # everything
    python benchmarks/speed.py --tiny                               # does it all work? seconds

The models are made once, in DIR: a base and four members, sharded, in bfloat16, of the shape of
Qwen3-Embedding-0.6B (1.2 GB each) and, with `--shape qwen3 large`, of 4 GB each. PYTHON is an
interpreter that has mergekit, or sentence-transformers 6 with mergekit. Nothing is downloaded.

Every run is a process of its own, and contestants take turns. `--cold` adds runs with the inputs
dropped from the page cache first, of ours and the floors. Results go to
benchmarks/results/speed.json, with --write-docs also to docs/performance.md and performance.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from checkpoints import QWEN3, Models, Qwen3, qwen3_models
from contestants import FLOOR, METHODS, OURS, PEER_METHODS, PEERS, Contestant, Race, cat
from direct_read import REFUSED
from processes import ROOT, Failed, drop_from_cache, machine, measured, versions

RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
DOCS = ROOT / "docs"

# --- running ------------------------------------------------------------------------------


def run_once(contestant: Contestant, target: Path, *, cold: bool) -> dict[str, float]:
    """One run, from inputs that are in the page cache, or out of it. Failed if it fails.

    What earlier runs wrote goes to the disk first, so that nobody pays for another's bytes.
    """
    os.sync()
    if cold:
        drop_from_cache(contestant.inputs)
    else:
        measured(cat(contestant.inputs))
    try:
        usage, printed = measured(contestant.command)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    found = asdict(usage)
    if contestant.tool == OURS:
        told = json.loads(printed.splitlines()[0])
        found["run_s"] = told["seconds"]
        found["read_mb"] = told["bytes_read"] / 1e6
        found["written_mb"] = told["bytes_written"] / 1e6
    return found


def run_all(race: Race, *, cold: bool) -> list[dict[str, Any]]:
    """All contestants in turn, `runs` times; a peer that fails once is left out after that."""
    contestants = [*race.floors(cold=cold), *race.merges(with_peers=not cold)]
    taken: dict[str, list[dict[str, float]]] = {str(c): [] for c in contestants}
    failed: dict[str, str] = {}
    for turn in range(race.runs):
        for contestant in contestants:
            name = str(contestant)
            if name in failed or (contestant.tool in PEERS and turn >= race.peer_runs):
                continue
            try:
                found = run_once(contestant, race.target, cold=cold)
            except Failed as error:
                refused = contestant.tool == FLOOR and error.status == REFUSED
                if not (refused or contestant.tool in PEERS):
                    raise SystemExit(f"{name} failed:\n{error.said}") from None
                failed[name] = str(error)
                print(f"{name:<36} {error}")
                continue
            taken[name].append(found)
            print(
                f"{name:<36} {found['wall_s']:7.2f} s wall {found['cpu_s']:7.2f} s cpu "
                f"{found['peak_mb']:6.0f} MB peak {found['peak_anonymous_mb']:6.0f} MB anonymous",
                flush=True,
            )
    return [entry(c, taken[str(c)], failed.get(str(c))) for c in contestants]


def entry(
    contestant: Contestant, runs: Sequence[Mapping[str, float]], failed: str | None
) -> dict[str, Any]:
    """What the results say of one contestant."""
    found: dict[str, Any] = {"tool": contestant.tool, "what": contestant.what}
    if failed is not None:
        return found | {"failed": failed}
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return found | {
        "median": {key: round(value, 4) for key, value in medians.items()},
        "runs": [{key: round(value, 4) for key, value in run.items()} for run in runs],
    }


def warm_up(race: Race, models: Models) -> None:
    """Everything once on tiny models: compiled code is stored, and libraries are in the cache."""
    tiny = replace(race, models=models, peer_methods=race.peer_methods[:1])
    for contestant in tiny.merges(with_peers=True):
        try:
            run_once(contestant, tiny.target, cold=False)
        except Failed as error:
            raise SystemExit(f"{contestant} fails on tiny models:\n{error.said}") from None


# --- the whole ----------------------------------------------------------------------------


def race_of(options: argparse.Namespace, data: Path, shape: str, scratch: Path) -> Race:
    """The race that the command line asks for."""
    given = (options.mergekit, options.sentence_transformers)
    return Race(
        models=qwen3_models(data / shape, QWEN3[shape]),
        scratch=scratch,
        methods=options.methods,
        peer_methods=options.peer_methods,
        peers={peer: python for peer, python in zip(PEERS, given, strict=True) if python},
        runs=options.runs,
        peer_runs=options.peer_runs,
    )


def measure(options: argparse.Namespace, data: Path, shape: str) -> dict[str, Any]:
    """All that one shape gives: {"about": ..., "warm": [...], perhaps "cold": [...]}."""
    print(f"{shape}: models of {QWEN3[shape].nbytes() / 1e9:.2f} GB in {data / shape}")
    with tempfile.TemporaryDirectory(dir=data, prefix="run-") as scratch:
        race = race_of(options, data, shape, Path(scratch))
        found: dict[str, Any] = {"about": about(race, QWEN3[shape], data)}
        if not options.tiny:
            warm_up(race, qwen3_models(data / "tiny", QWEN3["tiny"]))
        found["warm"] = run_all(race, cold=False)
        if options.cold:
            print("inputs out of the page cache:")
            found["cold"] = run_all(race, cold=True)
    return found


def about(race: Race, size: Qwen3, data: Path) -> dict[str, Any]:
    """What was run, on what."""
    return {
        "model_bytes": size.nbytes(),
        "files": len(size.shards()),
        "shape": asdict(size),
        "runs": race.runs,
        "peer_runs": race.peer_runs,
        "machine": machine(data),
        "versions": {
            name: versions(python) for name, python in {OURS: sys.executable, **race.peers}.items()
        },
    }


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the models, kept and used again")
    parser.add_argument("--shape", nargs="+", choices=["qwen3", "large"], default=["qwen3"])
    parser.add_argument("--tiny", action="store_true", help="tiny models, once, in seconds")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--runs", type=int, help="of ours and the floors (default 5)")
    parser.add_argument("--cold", action="store_true", help="also from inputs out of the cache")
    parser.add_argument("--mergekit", metavar="PYTHON")
    parser.add_argument("--sentence-transformers", metavar="PYTHON")
    parser.add_argument("--peer-methods", nargs="*", choices=METHODS, default=list(PEER_METHODS))
    parser.add_argument("--peer-runs", type=int, default=1)
    parser.add_argument("--results", type=Path, help="default benchmarks/results/speed.json")
    parser.add_argument("--write-docs", action="store_true", help="docs/performance.{md,svg}")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.shape = ["tiny"]
        if options.write_docs:
            parser.error("--tiny measures nothing that belongs into the docs")
    elif options.data is None:
        parser.error("--data: where to put the models (6 GB; `large`: 21 GB)")
    if not options.tiny:
        options.results = options.results or RESULTS
    options.runs = options.runs or (1 if options.tiny else 5)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; write its results and perhaps the docs."""
    options = parsed(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        data = (options.data or Path(scratch)).resolve()
        data.mkdir(parents=True, exist_ok=True)
        for shape in options.shape:
            found = {shape: measure(options, data, shape)}
            if options.results is not None:
                write_results(options.results, found)
    if options.write_docs:
        from performance_page import write_docs

        write_docs(json.loads(options.results.read_text()), DOCS)


def write_results(path: Path, found: dict[str, Any]) -> None:
    """Put the results of a shape in the file, in place of older ones of that shape."""
    before: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(before | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
