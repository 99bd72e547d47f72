"""The tasks of the corpus: who belongs to which part, and the rows of every file."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from corpus_sources import Package, Pair, clean

Row = dict[str, Any]
Files = dict[str, list[Row]]
"""The rows of every file, by its path in the corpus."""

PARTS = {"train": 0.70, "dev": 0.85, "test": 1.0}
"""Up to which number from 0 to 1, that a group's name hashes to, it is in a part."""

SECTIONS = {
    "admin",
    "database",
    "editors",
    "electronics",
    "fonts",
    "games",
    "gnome",
    "graphics",
    "hamradio",
    "interpreters",
    "kernel",
    "localization",
    "mail",
    "math",
    "net",
    "science",
    "sound",
    "text",
    "video",
    "web",
}
"""Sections of the archive that tell what a package is about; `libs` or `misc` do not."""

OF_ONE_GROUP = 3
"""Packages of one source at most: it often has dozens that differ in a word."""

PAIRS_OF_TRAINING = 8000
QUERIES = 500
DOCUMENTS = 2000
DOCSTRING_QUERIES = 300
OF_A_SECTION = {"train": 250, "dev": 60, "test": 60}
GRADED = {"train": 6000, "dev": 1200, "test": 1200}
TRANSLATED = 600

LEAST_TAGS = 4
"""Tags of a package in graded pairs: fewer say too little for two packages to be alike by them."""

SENTENCE = 300
"""Characters of a text in graded pairs: the synopsis, and how the description begins."""

PASSES = 4
"""Graded pairs that a package can begin."""


T = TypeVar("T")
Grouped = TypeVar("Grouped", Package, Pair)


@dataclass(frozen=True)
class Corpus:
    """All that the tasks are made from, duplicates removed, in an order drawn by the seed."""

    packages: Sequence[Package]
    docstrings: Sequence[Pair]
    commands: Sequence[Pair]
    seed: int

    def files(self) -> Files:
        """Every file of the corpus but those that describe it."""
        found: Files = {}
        parts = {part: self._of(part, self.packages) for part in PARTS}
        classes = _classes(parts.values())
        for part, here in parts.items():
            described = [Pair(one.group, one.synopsis, one.description) for one in here]
            found |= _retrieval("debian-retrieval", part, described, QUERIES, DOCUMENTS)
            found |= _sections(part, here, classes)
            found |= self._graded(part, here)
            for task, every, queries in (
                ("python-docstrings", self.docstrings, DOCSTRING_QUERIES),
                ("commands", self.commands, QUERIES),
            ):
                found |= _retrieval(task, part, self._of(part, every), queries, DOCUMENTS)
            if part != "train":
                found |= _translated(part, here)
        return found

    def _of(self, part: str, every: Sequence[Grouped]) -> list[Grouped]:
        return [one for one in every if part_of(one.group, self.seed) == part]

    def _graded(self, part: str, here: Sequence[Package]) -> Files:
        weights = inverse_frequencies([one.tags for one in self.packages if one.tags])
        tagged = [one for one in here if len(one.tags) >= LEAST_TAGS]
        rows = graded_pairs(tagged, weights, GRADED[part], self.seed)
        return {_path("debian-sts", part, "pairs.jsonl"): rows}


def draw(
    packages: Sequence[Package],
    docstrings: Sequence[Pair],
    commands: Sequence[Pair],
    seed: int,
    most: int | None,
) -> Corpus:
    """What the tasks are made from.

    Args:
        packages: of the archive.
        docstrings: signatures and their docstrings.
        commands: purposes and descriptions.
        seed: of the parts and of every draw.
        most: packages that are taken; None for all.
    """

    def key(*texts: str) -> int:
        return hashed(seed, "order", *texts)

    drawn = sorted(packages, key=lambda one: key(one.name))
    unique = _unique(drawn, lambda one: [(0, one.synopsis), (1, one.description)])
    counts: Counter[str] = Counter()
    few = []
    for one in unique:
        counts[one.group] += 1
        if counts[one.group] <= OF_ONE_GROUP:
            few.append(one)

    def pairs(every: Iterable[Pair]) -> list[Pair]:
        shuffled = sorted(every, key=lambda one: key(one.group, one.query, one.document))
        return list(_unique(shuffled, lambda one: [(0, one.query), (1, one.document)]))

    return Corpus(few[:most], pairs(docstrings), pairs(commands), seed)


def too_few(files: Files) -> list[str]:
    """The files with less than two rows, classes or grades: nothing can be told apart by them."""

    def kinds(rows: Sequence[Row]) -> int:
        told = (row.get("label", row.get("score", i)) for i, row in enumerate(rows))
        return len(rows) if rows and "query-id" in rows[0] else len(set(told))

    return sorted(path for path, rows in files.items() if kinds(rows) < 2)


def hashed(seed: int, *texts: str) -> int:
    """A number of 64 bits that depends on the seed and the texts alone."""
    content = "\0".join((str(seed), *texts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def part_of(group: str, seed: int) -> str:
    """The part that all of a group is in."""
    place = hashed(seed, "part", group) / 2**64
    return next(part for part, end in PARTS.items() if place < end)


def fingerprint(text: str) -> str:
    """The letters of a text: what differs in numbers, case or punctuation alone is the same."""
    return re.sub(r"[\W\d_]+", "", text.casefold())


def _unique(every: Iterable[T], texts: Callable[[T], Sequence[tuple[int, str]]]) -> Iterator[T]:
    """Those none of whose texts was there before, in its role: so no query has two answers."""
    seen: set[tuple[int, str]] = set()
    for one in every:
        prints = {(role, fingerprint(text)) for role, text in texts(one)}
        if seen.isdisjoint(prints):
            seen |= prints
            yield one


def _path(task: str, part: str, file: str) -> str:
    return f"train/{task}.jsonl" if part == "train" else f"{part}/{task}/{file}"


def _retrieval(task: str, part: str, pairs: Sequence[Pair], queries: int, documents: int) -> Files:
    """Pairs to train on; or the documents, of which the first have a query."""
    if part == "train":
        some = pairs[:PAIRS_OF_TRAINING]
        rows: list[Row] = [{"query": p.query, "pos": [p.document], "neg": []} for p in some]
        return {_path(task, part, ""): rows}
    asked, corpus = pairs[:queries], pairs[:documents]
    return {
        _path(task, part, "queries.jsonl"): [
            {"id": f"q{i}", "text": pair.query} for i, pair in enumerate(asked)
        ],
        _path(task, part, "corpus.jsonl"): [
            {"id": f"d{i}", "text": pair.document} for i, pair in enumerate(corpus)
        ],
        _path(task, part, "qrels.jsonl"): [
            {"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1} for i in range(len(asked))
        ],
    }


def _classes(parts: Iterable[Sequence[Package]]) -> set[str]:
    """The sections that have two texts or more in every part: one to learn from, one to test."""
    counts = [Counter(one.section for one in here) for here in parts]
    return {section for section in SECTIONS if all(count[section] > 1 for count in counts)}


def _sections(part: str, packages: Sequence[Package], classes: set[str]) -> Files:
    """Descriptions and their sections, no section with more than so many."""
    counts: Counter[str] = Counter()
    rows: list[Row] = []
    for one in packages:
        if one.section in classes and counts[one.section] < OF_A_SECTION[part]:
            counts[one.section] += 1
            rows.append({"text": one.description, "label": one.section})
    return {_path("debian-section", part, "labelled.jsonl"): rows}


def _translated(part: str, packages: Sequence[Package]) -> Files:
    """French and English synopses: of groups that are not trained on, nor in another part."""
    pairs = [
        Pair(one.group, one.french, one.synopsis)
        for one in packages
        if len(fingerprint(one.french)) > 8
        and "<trans>" not in one.french
        and fingerprint(one.french) != fingerprint(one.synopsis)
    ]
    unique = _unique(pairs, lambda pair: [(0, pair.query)])
    rows: list[Row] = [{"sentence1": pair.query, "sentence2": pair.document} for pair in unique]
    return {_path("bitext-fr", part, "pairs.jsonl"): rows[:TRANSLATED]}


def inverse_frequencies(every: Sequence[frozenset[str]]) -> dict[str, float]:
    """ln(N / n) of each tag: N packages have tags, and n have this one."""
    counts = Counter(tag for tags in every for tag in tags)
    return {tag: math.log(len(every) / count) for tag, count in counts.items()}


def similarity(left: frozenset[str], right: frozenset[str], weights: Mapping[str, float]) -> float:
    """5 x weighted Jaccard: the weight of the tags that both have, by that of all they have.

    0 where no tag has a weight, which is where every package has all of them.
    """
    union = math.fsum(weights[tag] for tag in left | right)
    return 5 * math.fsum(weights[tag] for tag in left & right) / union if union else 0.0


def graded_pairs(
    tagged: Sequence[Package], weights: Mapping[str, float], most: int, seed: int
) -> list[Row]:
    """Pairs of packages and how alike they are, as even over the grades as can be had.

    Two packages drawn at random are hardly alike. So each package meets, besides one at random,
    one for each of its tags that has it too; of these pairs the one is kept whose grade (of five:
    0 to 1, ..., 4 to 5) has the fewest so far, while it has less than its fifth.
    """
    sharing: dict[str, list[int]] = defaultdict(list)
    for number, one in enumerate(tagged):
        for tag in one.tags:
            sharing[tag].append(number)
    filled = [0] * 5
    met: set[tuple[int, int]] = set()
    rows: list[Row] = []
    for turn in range(PASSES):
        for number, one in enumerate(tagged):
            pools = [range(len(tagged)), *(sharing[tag] for tag in sorted(one.tags))]
            best: tuple[int, float, int] | None = None
            for place, pool in enumerate(pools):
                other = pool[hashed(seed, "pair", one.name, str(turn), str(place)) % len(pool)]
                pair = (min(number, other), max(number, other))
                if pair in met or tagged[other].group == one.group:
                    continue
                score = similarity(one.tags, tagged[other].tags, weights)
                grade = min(int(score), 4)
                if filled[grade] < most // 5 and (best is None or filled[grade] < filled[best[0]]):
                    best = (grade, score, other)
            if best is not None:
                grade, score, other = best
                filled[grade] += 1
                met.add((min(number, other), max(number, other)))
                rows.append(
                    {
                        "sentence1": _sentence(one),
                        "sentence2": _sentence(tagged[other]),
                        "score": round(score, 3),
                    }
                )
    rows.sort(key=lambda row: hashed(seed, "order", row["sentence1"], row["sentence2"]))
    return rows


def _sentence(package: Package) -> str:
    return clean(f"{package.synopsis.removesuffix('.')}. {package.description}", SENTENCE)
