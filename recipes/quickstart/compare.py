"""Compare base, members and merge on retrieval in the three domains, with texts nobody trained on.

    python recipes/quickstart/compare.py demo

reads demo/base, demo/trained/members/* and demo/merged. Further merges to compare are named after
the folder: `compare.py demo demo/merged demo/another`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

# Read when the libraries are imported: nothing here comes from the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

DEV = Path(__file__).with_name("dev")
DOMAINS = ("packages", "docstrings", "commands")
TOKENS = 96  # read of each text; the models could read 256, in more time

console = Console(highlight=False)


@dataclass(frozen=True)
class Row:
    """One model's nDCG@10 in each domain, in the order of DOMAINS, times 100."""

    name: str
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the domains."""
        return mean(self.scores)


def read(path: Path) -> list[dict[str, str]]:
    """The objects of a file of JSON Lines."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def retrieval_task(folder: Path) -> InformationRetrievalEvaluator:
    """The held-out queries and documents of one domain."""
    relevant: dict[str, set[str]] = {}
    for row in read(folder / "qrels.jsonl"):
        relevant.setdefault(row["query-id"], set()).add(row["corpus-id"])
    return InformationRetrievalEvaluator(
        queries={row["id"]: row["text"] for row in read(folder / "queries.jsonl")},
        corpus={row["id"]: row["text"] for row in read(folder / "corpus.jsonl")},
        relevant_docs=relevant,
        name=folder.name,
    )


def score(folder: Path, name: str, tasks: list[InformationRetrievalEvaluator]) -> Row:
    """The model's nDCG@10 in every domain."""
    model = SentenceTransformer(str(folder))
    model.max_seq_length = TOKENS
    results = [task(model)[f"{task.name}_{model.similarity_fn_name}_ndcg@10"] for task in tasks]
    return Row(name, tuple(100 * result for result in results))


def table(base: Row, members: list[Row], merges: list[Row]) -> Table:
    """All rows, the best of each column in bold."""
    columns = [*DOMAINS, "mean"]
    grid = Table(title="nDCG@10 x 100 on held-out retrieval")
    grid.add_column("model")
    for column in columns:
        grid.add_column(column, justify="right")
    rows = [base, *members, *merges]
    cells = [[f"{value:.1f}" for value in (*row.scores, row.mean)] for row in rows]
    best = [max(column, key=float) for column in zip(*cells, strict=True)]
    for row, values in zip(rows, cells, strict=True):
        marked = [
            f"[bold]{value}[/bold]" if value == top else value
            for value, top in zip(values, best, strict=True)
        ]
        ends_group = row is base or (bool(members) and row is members[-1])
        grid.add_row(row.name, *marked, end_section=ends_group)
    return grid


def difference(merge: Row, other: Row, label: str) -> str:
    """In words: how far the merge is from the other row on the mean, as the table shows both."""
    points = round(round(merge.mean, 1) - round(other.mean, 1), 1)
    if points == 0:
        return f"equals {label}"
    direction = "above" if points > 0 else "below"
    return f"is {abs(points):.1f} points {direction} {label}"


def verdict(merge: Row, base: Row, members: list[Row]) -> str:
    """One sentence: the merge against the base and against the best member."""
    best = max(members, key=lambda member: member.mean)
    against_base = difference(merge, base, "the base")
    against_best = difference(merge, best, f"the best member ({best.name})")
    return f"On the mean, {merge.name} {against_base} and {against_best}."


def main() -> None:
    """Score every model, print the table and what it says."""
    parser = argparse.ArgumentParser(description="Compare the base, the members and the merge.")
    parser.add_argument("folder", type=Path, help="where base/ and members/ are, for example demo")
    parser.add_argument("merges", type=Path, nargs="*", help="merges to compare (FOLDER/merged)")
    options = parser.parse_args()
    folder: Path = options.folder
    members = [folder / "trained" / "members" / domain for domain in DOMAINS]
    merges: list[Path] = options.merges or [folder / "merged"]
    folders = [folder / "base", *members, *merges]
    for path, remedy in [
        *((path, "boom-train recipes/quickstart/plan.yaml") for path in folders[:4]),
        *((path, f"boom-merge recipes/quickstart.yaml -o {path}") for path in merges),
    ]:
        if not (path / "modules.json").is_file():
            parser.exit(1, f"{path} is not a model folder yet; run: {remedy}\n")

    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    tasks = [retrieval_task(DEV / domain) for domain in DOMAINS]
    rows: list[Row] = []
    columns = (TextColumn("scoring {task.description:<12}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(folders))
        for path in folders:
            progress.update(bar, description=path.name)
            rows.append(score(path, path.name, tasks))
            progress.advance(bar)

    base_row, member_rows, merge_rows = rows[0], rows[1:4], rows[4:]
    console.print(table(base_row, member_rows, merge_rows))
    for merge in merge_rows:
        console.print(verdict(merge, base_row, member_rows), soft_wrap=True)


if __name__ == "__main__":
    main()
