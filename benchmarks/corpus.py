"""Make a corpus of many tasks to train and test text embeddings on, from what Debian carries.

    python benchmarks/corpus.py OUT --sources DIR --fetch   # downloads to DIR; needs no root
    python benchmarks/corpus.py OUT --sources DIR           # again from there: the same bytes
    python benchmarks/corpus.py OUT                         # from apt's lists and /usr/share/man

Sources are an archive's package index with its translations (as root: `apt-get -o
Acquire::Languages=en,fr update`), manual pages, and the library of the Python that runs this.
OUT gets train/*.jsonl for `boom-train`, dev/<task>/ and test/<task>/ for its dev tasks and for
evaluation, README.md with counts, and corpus.json with the sources' versions and hashes.

To repeat a study to the byte: take `--mirror` at snapshot.debian.org (/archive/debian/ and a time),
the same Python and the same seed, and compare corpus.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corpus_fetch import fetch
from corpus_sources import (
    Source,
    SourceError,
    read_commands,
    read_docstrings,
    read_packages,
)
from corpus_tasks import PARTS, Files, draw, too_few

KINDS = {
    "debian-retrieval": "a package's synopsis finds its description",
    "debian-section": "classify a description into sections of the archive",
    "debian-sts": "graded similarity 0..5: 5 x IDF-weighted Jaccard of the packages' debtags",
    "python-docstrings": "a signature finds its docstring",
    "commands": "a command's purpose finds its description",
    "bitext-fr": "a French synopsis finds the English one (no training data: out of domain)",
}
COUNTED = {
    "queries.jsonl": "queries",
    "corpus.jsonl": "documents",
    "labelled.jsonl": "texts",
    "pairs.jsonl": "pairs",
}

README = """# A corpus for text embeddings, of many tasks

Made by `benchmarks/corpus.py` of mergekit_embed (seed {seed}) from what Debian carries. Split by
source package (without version numbers), module or command group, by a hash of the group's name:
70 % train, 15 % dev, 15 % test. No group crosses. Texts that differ in numbers, case and
punctuation alone are there once. The same sources, the same Python and the same seed give the same
bytes.

| task | kind | train | dev | test |
|---|---|---|---|---|
{tasks}

`train/*.jsonl`: `{{"query", "pos": [..], "neg": []}}`, `{{"text", "label"}}`, or `{{"sentence1",
"sentence2", "score"}}`. `dev/<task>/` and `test/<task>/`: `corpus.jsonl`, `queries.jsonl` and
`qrels.jsonl` (retrieval), `labelled.jsonl`, or `pairs.jsonl`. No hard negatives are given: mine
them. `corpus.json` has the counts and the hash of every file and source.

Made from:

| source | version | SHA-256, uncompressed |
|---|---|---|
{sources}

The texts are under the licences of their packages (/usr/share/doc/PACKAGE/copyright) and of Python.
"""


def write(files: Files, sources: Sequence[Source], seed: int, out: Path) -> dict[str, Any]:
    """Write a corpus to a folder that is not there or empty: all of it, or nothing.

    Returns:
        what corpus.json says.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as made:
        folder = Path(made) / "corpus"
        hashes = {}
        for path, rows in sorted(files.items()):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
            hashes[path] = hashlib.sha256(content).hexdigest()
        about = {
            "seed": seed,
            "tasks": {task: {"kind": kind, **_counts(files, task)} for task, kind in KINDS.items()},
            "sources": [vars(source) for source in sources],
            "files": hashes,
        }
        (folder / "corpus.json").write_text(json.dumps(about, indent=2) + "\n")
        (folder / "README.md").write_text(_readme(about), "utf-8")
        if out.exists():
            out.rmdir()
        folder.rename(out)
    return about


def _counts(files: Files, task: str) -> dict[str, Any]:
    """How much each part of a task has; classes and what is in each, where it has any."""
    found: dict[str, Any] = {}
    for part in PARTS:
        rows = {
            name: files.get(f"{part}/{task}/{name}", files.get(f"{part}/{task}.jsonl", []))
            for name in (COUNTED if part != "train" else ("rows",))
        }
        found[part] = {COUNTED.get(name, name): len(some) for name, some in rows.items() if some}
        labels = Counter(row["label"] for some in rows.values() for row in some if "label" in row)
        if labels:
            found[part]["classes"] = dict(sorted(labels.items()))
    return found


def _readme(about: Mapping[str, Any]) -> str:
    def told(counts: Mapping[str, Any]) -> str:
        numbers = (f"{number} {what}" for what, number in counts.items() if what != "classes")
        classes = [f"{len(counts['classes'])} classes"] if "classes" in counts else []
        return ", ".join([*numbers, *classes]) or "-"

    tasks = (
        f"| {name} | {one['kind']} | " + " | ".join(told(one[part]) for part in PARTS) + " |"
        for name, one in about["tasks"].items()
    )
    sources = (
        f"| {one['name']} | {one['version']} | `{one['sha256']}` |" for one in about["sources"]
    )
    return README.format(seed=about["seed"], tasks="\n".join(tasks), sources="\n".join(sources))


def build(
    out: Path, lists: Path, manuals: Path, library: Path, seed: int, packages: int | None
) -> dict[str, Any]:
    """Read the sources and write the corpus.

    Raises:
        SourceError: naming everything that is missing, or the files that would have too little.
    """
    problems = []
    try:
        described, indices = read_packages(lists)
    except SourceError as error:
        problems.append(str(error))
    try:
        commands, pages = read_commands(manuals)
    except SourceError as error:
        problems.append(str(error))
    if problems:
        raise SourceError("\n".join(problems))
    docstrings, python = read_docstrings(library)
    files = draw(described, docstrings, commands, seed, packages).files()
    few = too_few(files)
    if few:
        raise SourceError(f"too little for {', '.join(few)}; take more --packages, or all")
    return write(files, [*indices, python, pages], seed, out)


def main(arguments: Sequence[str]) -> None:
    """Build a corpus as the command line says, and print what it has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="a folder that is not there, or empty")
    parser.add_argument("--sources", type=Path, help="with lists/ and man/; default: the machine's")
    parser.add_argument("--fetch", action="store_true", help="first download to --sources")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="to download from")
    parser.add_argument("--suite", default="bookworm", help="to download (default: bookworm)")
    parser.add_argument("--packages", type=int, help="of the archive, at most; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the parts and every draw")
    given = parser.parse_args(arguments)
    if given.fetch and given.sources is None:
        parser.error("--fetch needs `--sources DIR`, a folder to download to")
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        parser.error(f"{given.out} is there; remove it, or name another folder")
    if given.packages is not None and given.packages < 1:
        parser.error("--packages must be 1 or more")
    lists, manuals = Path("/var/lib/apt/lists"), Path("/usr/share/man")
    if given.sources is not None:
        lists, manuals = given.sources / "lists", given.sources / "man"
    library = Path(sysconfig.get_paths()["stdlib"])
    try:
        if given.fetch:
            fetch(given.sources, given.mirror, given.suite)
        about = build(given.out, lists, manuals, library, given.seed, given.packages)
    except SourceError as error:
        sys.exit(str(error))
    for task, one in about["tasks"].items():
        print(task, *(f"{part}: {one[part]}" for part in PARTS))
    print(f"wrote {given.out}: README.md tells what it has")


if __name__ == "__main__":
    main(sys.argv[1:])
