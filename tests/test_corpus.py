"""The builder of the corpus, on small made-up sources: what it reads, who is in which part."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import corpus
import corpus_fetch
import pytest
from corpus_roff import plain, sections
from corpus_sources import (
    Package,
    SourceError,
    clean,
    read_commands,
    read_docstrings,
    read_packages,
)
from corpus_tasks import (
    OF_ONE_GROUP,
    draw,
    graded_pairs,
    inverse_frequencies,
    part_of,
    similarity,
)
from train.plans import plan_of

from mergekit_embed.train.data import open_dataset
from mergekit_embed.train.dev import evaluator

ROOT = Path(__file__).parent.parent
SUITE = "mirror_debian_dists_made_"
RELEASE = "Origin: Debian\nCodename: made\nDate: Sat, 11 Jul 2026 10:16:37 UTC\n"
KINDS = {
    "debian-retrieval": "retrieval",
    "debian-section": "classification",
    "debian-sts": "sts",
    "python-docstrings": "retrieval",
    "commands": "retrieval",
}
FACETS = ["use::x", "role::y", "field::z", "works-with::u", "suite::v", "interface::w"]


def words(*seed: object) -> str:
    """Twelve words of letters alone that no other seed has."""
    digest = hashlib.sha256(repr(seed).encode()).hexdigest()
    letters = digest.translate(str.maketrans("0123456789", "ghijklmnop"))
    return " ".join(letters[i : i + 5] for i in range(0, 60, 5))


def stanza(name: str, digest: str, source: str, section: str, tags: str) -> str:
    return (
        f"Package: {name}\nSource: {source} (1.0-1)\nDescription: a synopsis of {words(name)}\n"
        f"Description-md5: {digest}\n{f'Tag: {tags}' if tags else 'Homepage: none'}\n"
        f"Section: {section}\n\n"
    )


def translation(language: str, name: str, digest: str) -> str:
    return (
        f"Package: {name}\nDescription-md5: {digest}\n"
        f"Description-{language}: {'a synopsis of' if language == 'en' else 'résumé de'} "
        f"{words(name)}\n It is for {words(name, 'long')}.\n .\n  * and is made-up.\n\n"
    )


def page(name: str) -> str:
    return (
        f'.TH {name} 1\n.SH NAME\n{name} \\- handle {words(name)}\n.SH "DESCRIPTION"\n'
        f".B {name}\nhandles {words(name, 'long')}.\n"
    )


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lists/ with 240 packages of 80 sources, man/ with 40 commands; library/ with 40 modules."""
    folder = tmp_path_factory.mktemp("sources")
    files = dict.fromkeys(("binary-amd64_Packages", "i18n_Translation-en", "i18n_Translation-fr"))
    texts = {name: [""] for name in files}
    for source, number in product(range(80), range(3)):
        letters = "".join("abcdefghij"[int(d)] for d in f"{source:02}")
        name, section = f"lib{letters}-{number}", ("mail", "games")[source % 2]
        chosen = [facet + str((source >> i) & 1) for i, facet in enumerate(FACETS)]
        tags = ",\n ".join(chosen[: 3 + number])
        packages, english, french = texts.values()
        packages.append(stanza(name, f"m{name}", letters, section, tags))
        english.append(translation("en", name, f"m{name}"))
        french.append(translation("fr", name, f"m{name}"))
    (folder / "lists").mkdir()
    (folder / "lists" / f"{SUITE}InRelease").write_text(RELEASE)
    for name, parts in texts.items():
        (folder / "lists" / f"{SUITE}main_{name}").write_text("".join(parts))
    for i in range(40):
        name = "made-" + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"[i]
        manual = folder / "man" / "made_1_all" / "man" / f"man{(1, 8)[i % 2]}"
        manual.mkdir(parents=True, exist_ok=True)
        (manual / f"{name}.{(1, 8)[i % 2]}.gz").write_bytes(gzip.compress(page(name).encode()))
        module = folder / "library" / f"module_{i}.py"
        module.parent.mkdir(exist_ok=True)
        text = f'"""Module."""\n\ndef f_{words(i)[:9].replace(" ", "_")}(a, b=1):\n'
        module.write_text(f'{text}    """Return {words(i, "doc")}.\n\n    Always.\n    """\n')
    return folder


def built(sources: Path, out: Path, seed: int = 0, packages: int | None = None) -> dict[str, Any]:
    places = (sources / name for name in ("lists", "man", "library"))
    return corpus.build(out, *places, seed, packages)


@pytest.fixture(scope="session")
def made(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "out"
    built(sources, out)
    return out


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- the whole --------------------------------------------------------------------------------


def test_training_reads_every_file_without_a_bad_or_repeated_row(made: Path) -> None:
    assert {path.stem for path in (made / "train").iterdir()} == KINDS.keys()
    for name, kind in KINDS.items():
        path = made / "train" / f"{name}.jsonl"
        plan = plan_of({"a": {"path": str(path), "kind": kind}})
        dataset = open_dataset(plan.datasets["a"])
        assert (dataset.bad_count, dataset.repeated) == (0, 0)
        assert len(dataset) == len(rows(path)) > 10


@pytest.mark.parametrize("part", ["dev", "test"])
def test_dev_and_test_are_read_as_dev_tasks(made: Path, part: str) -> None:
    found = {path.name: type(evaluator(path)).__name__ for path in (made / part).iterdir()}
    assert found == {
        **dict.fromkeys(
            ("debian-retrieval", "python-docstrings", "commands"), "RetrievalEvaluator"
        ),
        "debian-section": "ClassificationEvaluator",
        "debian-sts": "SimilarityEvaluator",
        "bitext-fr": "BitextEvaluator",
    }


def test_each_query_is_answered_by_the_text_of_its_own_group(made: Path, sources: Path) -> None:
    packages, _ = read_packages(sources / "lists")
    answers = {one.synopsis: one.description for one in packages}
    task = made / "dev" / "debian-retrieval"
    queries, documents = (
        {row["id"]: row["text"] for row in rows(task / f"{name}.jsonl")}
        for name in ("queries", "corpus")
    )
    judged = rows(task / "qrels.jsonl")
    assert {row["query-id"] for row in judged} == queries.keys()
    for row in judged:
        assert answers[queries[row["query-id"]]] == documents[row["corpus-id"]]


def texts(value: Any) -> Iterator[str]:
    """All strings in a row but its names, the answers to a query with it."""
    for key, one in value.items():
        if not key.endswith("id") and key != "label":
            yield from one if isinstance(one, list) else [one] if isinstance(one, str) else []


def test_no_group_crosses(made: Path, sources: Path) -> None:
    groups: dict[str, str] = {}
    packages, _ = read_packages(sources / "lists")
    for one in packages:
        sentence = clean(f"{one.synopsis}. {one.description}", 300)
        groups |= dict.fromkeys((one.synopsis, one.description, one.french, sentence), one.group)
    for pairs, _ in (
        read_docstrings(sources / "library"),
        read_commands(sources / "man"),
    ):
        for pair in pairs:
            groups |= dict.fromkeys((pair.query, pair.document), pair.group)
    found: dict[str, set[str]] = {}
    for part in ("train", "dev", "test"):
        for path in (made / part).rglob("*.jsonl"):
            for row in rows(path):
                for text in texts(row):
                    found.setdefault(groups[text], set()).add(part)
    assert len(found) == 160  # every source, module and command
    assert all(parts == {part_of(group, 0)} for group, parts in found.items())


def test_the_same_sources_give_the_same_bytes(made: Path, sources: Path, tmp_path: Path) -> None:
    code = (
        "import sys, corpus; from pathlib import Path; s = Path(sys.argv[1]); "
        "corpus.build(Path(sys.argv[2]), s / 'lists', s / 'man', s / 'library', 0, None)"
    )
    out = tmp_path / "again"
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT / "benchmarks")}
    command = [sys.executable, "-c", code, str(sources), str(out)]
    subprocess.run(command, env=environment, check=True)
    assert contents(out) == contents(made)


def test_another_seed_gives_another_split(made: Path, sources: Path, tmp_path: Path) -> None:
    built(sources, tmp_path / "out", seed=1)
    names = ["train/commands.jsonl", "dev/debian-section/labelled.jsonl"]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() != (made / name).read_bytes()


def test_it_tells_what_it_has_and_was_made_from(made: Path, sources: Path) -> None:
    about = json.loads((made / "corpus.json").read_text())
    files = {name: one for name, one in contents(made).items() if name.endswith(".jsonl")}
    assert about["files"] == {n: hashlib.sha256(one).hexdigest() for n, one in files.items()}
    counts = about["tasks"]["debian-retrieval"]
    assert counts["train"] == {"rows": len(rows(made / "train" / "debian-retrieval.jsonl"))}
    queries = rows(made / "test" / "debian-retrieval" / "queries.jsonl")
    assert counts["test"] == {"queries": len(queries), "documents": len(queries)}
    assert about["tasks"]["bitext-fr"]["train"] == {}
    index = sources / "lists" / f"{SUITE}main_binary-amd64_Packages"
    assert about["sources"][0] == {
        "name": index.name,
        "version": "made, Sat, 11 Jul 2026 10:16:37 UTC",
        "sha256": hashlib.sha256(index.read_bytes()).hexdigest(),
    }
    assert about["sources"][-1]["version"] == "made_1_all"
    readme = (made / "README.md").read_text()
    for task, one in about["tasks"].items():
        assert f"| {task} | {one['kind']} | " in readme
    assert f"{counts['train']['rows']} rows" in readme
    assert all(one["sha256"] in readme for one in about["sources"])


def test_the_command_builds_from_a_folder_of_sources(
    sources: Path,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(corpus.sysconfig, "get_paths", lambda: {"stdlib": sources / "library"})
    (tmp_path / "out").mkdir()
    corpus.main([str(tmp_path / "out"), "--sources", str(sources)])
    assert contents(tmp_path / "out") == contents(made)
    assert "wrote" in capsys.readouterr().out


# --- what is wrong ----------------------------------------------------------------------------


def test_all_that_is_missing_is_told_at_once_and_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    with pytest.raises(SystemExit) as told:
        corpus.main([str(tmp_path / "out"), "--sources", str(tmp_path)])
    assert "no Packages and no Translation-en and no Translation-fr" in str(told.value)
    assert "`apt-get -o Acquire::Languages=en,fr update`" in str(told.value)
    assert "no manual pages" in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["lists"]


def test_too_little_is_told_by_file_and_nothing_written(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"too little for .*dev/debian-sts/pairs\.jsonl.*--packa"):
        built(sources, tmp_path / "out", packages=5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["full"], "full is there; remove it"),
        (["new", "--fetch"], "--fetch needs `--sources DIR`"),
        (["new", "--packages", "0"], "--packages must be 1 or more"),
    ],
)
def test_a_wrong_command_line_touches_nothing(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(SystemExit) as error:
        corpus.main(arguments)
    assert error.value.code == 2
    assert told in capsys.readouterr().err
    assert contents(tmp_path) == {"full/mine": b"mine"}


# --- the archive ------------------------------------------------------------------------------


def archive(folder: Path, packages: str, english: str, release: str = RELEASE) -> Path:
    (folder / f"{SUITE}InRelease").write_text(release)
    for name, text in (
        ("binary-amd64_Packages", packages),
        ("i18n_Translation-en", english),
        ("i18n_Translation-fr", "Description-md5: none\nDescription-fr: rien\n"),
    ):
        (folder / f"{SUITE}main_{name}").write_text(text)
    return folder


def test_a_package_as_it_is_read(tmp_path: Path) -> None:
    packages = stanza("gcc-12", "m", "gcc-12", "devel", "special::a, role::b,\n use::c")
    lists = archive(tmp_path, packages, translation("en", "gcc-12", "m"))
    (one,), _ = read_packages(lists)
    assert one == Package(
        name="gcc-12",
        group="gcc",
        section="devel",
        tags=frozenset({"role::b", "use::c"}),
        synopsis=f"a synopsis of {words('gcc-12')}",
        description=f"It is for {words('gcc-12', 'long')}. * and is made-up.",
        french="",
    )


@pytest.mark.parametrize(
    ("source", "group"),
    [("gcc-12", "gcc"), ("php8.2", "php"), ("llvm-toolchain-15", "llvm-toolchain"), ("0", "0")],
)
def test_versions_of_a_source_are_one_group(tmp_path: Path, source: str, group: str) -> None:
    lists = archive(tmp_path, stanza("a", "m", source, "x", ""), translation("en", "a", "m"))
    (one,), _ = read_packages(lists)
    assert one.group == group


@pytest.mark.parametrize(
    "long", [" Too short.\n", f" This is a dummy\n package for {words(1)}, to be removed.\n"]
)
def test_packages_that_say_nothing_are_left_out(tmp_path: Path, long: str) -> None:
    english = f"Description-md5: m\nDescription-en: some synopsis\n{long}"
    assert read_packages(archive(tmp_path, stanza("a", "m", "a", "x", ""), english))[0] == []


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_indices_are_the_same(
    sources: Path, tmp_path: Path, suffix: str, pack: Any
) -> None:
    for path in (sources / "lists").iterdir():
        index = not path.name.endswith("Release")
        target = tmp_path / (path.name + suffix if index else path.name)
        target.write_bytes(pack(path.read_bytes()) if index else path.read_bytes())
    packages, found = read_packages(tmp_path)
    plain_packages, plain_found = read_packages(sources / "lists")
    assert packages == plain_packages
    assert [one.sha256 for one in found] == [one.sha256 for one in plain_found]


def test_archives_of_others_and_other_languages_are_not_read(sources: Path, tmp_path: Path) -> None:
    for path in (sources / "lists").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / f"{SUITE}main_i18n_Translation-en_GB").write_text("Description-md5: broken\n")
    other = "other_dists_made_"
    (tmp_path / f"{other}InRelease").write_text("Origin: Other\n")
    theirs = tmp_path / f"{other}main_binary-amd64_Packages"
    theirs.write_text(stanza("theirs", "t", "theirs", "x", ""))
    assert read_packages(tmp_path) == read_packages(sources / "lists")


def described(name: str, group: str, synopsis: str, tags: str = "", long: str = "") -> Package:
    parts = frozenset(tags.split())
    return Package(name, group, "mail", parts, synopsis, long or words(name, "long"), "")


def test_texts_that_differ_in_numbers_are_there_once_whoever_says_them() -> None:
    every = [
        described("a", "a", "Reads mail, version 1"),
        described("b", "b", "reads mail (version 2)"),
        described("c", "c", "another synopsis", long=words("a", "long") + " 3"),
        described("d", "d", "a fourth synopsis"),
    ]
    kept = {one.name for one in draw(every, [], [], 0, None).packages}
    # c shares a's description, a shares b's synopsis: the drawn order says who stays
    assert kept in ({"a", "d"}, {"b", "c", "d"})
    backwards = draw(every[::-1], [], [], 0, None).packages
    assert {one.name for one in backwards} == kept


def test_of_a_source_only_a_few_packages_are_taken() -> None:
    every = [described(c, "one", f"synopsis {words(c)}") for c in "abcdefgh"]
    assert len(draw(every, [], [], 0, None).packages) == OF_ONE_GROUP
    assert len(draw(every, [], [], 0, 2).packages) == 2


def test_parts_have_their_share() -> None:
    found = [part_of(f"group {i}", 3) for i in range(10_000)]
    shares = {part: found.count(part) / len(found) for part in ("train", "dev", "test")}
    assert shares == pytest.approx({"train": 0.70, "dev": 0.15, "test": 0.15}, abs=0.015)


# --- grades -----------------------------------------------------------------------------------


def test_similarity_by_hand() -> None:
    every = [frozenset(tags.split()) for tags in ("a b", "a c", "a b c", "a d")]
    weights = inverse_frequencies(every)
    # a is in all four, b and c in two, d in one: ln 1, ln 2, ln 2, ln 4 = 2 ln 2
    assert weights == pytest.approx(
        {"a": 0.0, "b": math.log(2), "c": math.log(2), "d": math.log(4)}
    )
    assert similarity(every[0], every[1], weights) == 0  # they share a, which says nothing
    assert similarity(every[0], every[2], weights) == pytest.approx(5 * 1 / 2)
    assert similarity(frozenset("bd"), frozenset("bc"), weights) == pytest.approx(5 * 1 / 4)
    assert similarity(frozenset("cd"), frozenset("bd"), weights) == pytest.approx(5 * 2 / 4)
    assert similarity(every[3], every[3], weights) == 5
    assert similarity(frozenset("a"), frozenset("a"), weights) == 0  # nothing is known of them


def test_graded_pairs_are_of_two_groups_once_each_and_even_over_grades() -> None:
    tags = [" ".join(f"{facet}{(i >> bit) & 1}" for bit, facet in enumerate(FACETS))
            for i in range(64)]  # fmt: skip
    every = [
        described(f"p{i}", f"g{i // 2}", f"synopsis {words(i)}", tags[i % 64]) for i in range(256)
    ]
    weights = inverse_frequencies([one.tags for one in every])
    found = graded_pairs(every, weights, 100, 0)
    known = {clean(f"{one.synopsis}. {one.description}", 300): one for one in every}
    pairs = set()
    for row in found:
        left, right = known[row["sentence1"]], known[row["sentence2"]]
        assert left.group != right.group
        assert row["score"] == round(similarity(left.tags, right.tags, weights), 3)
        pairs.add(frozenset((left.name, right.name)))
    assert len(pairs) == len(found) == 100
    grades = [min(int(row["score"]), 4) for row in found]
    assert [grades.count(grade) for grade in range(5)] == [20] * 5


def test_packages_of_few_tags_are_in_no_graded_pair(made: Path, sources: Path) -> None:
    packages, _ = read_packages(sources / "lists")
    few = {one.synopsis for one in packages if len(one.tags) < 4}
    assert len(few) == 80
    graded = rows(made / "train" / "debian-sts.jsonl")
    used = {row[name].partition(".")[0] for row in graded for name in ("sentence1", "sentence2")}
    assert len(used) > 50
    assert not used & few


# --- docstrings and manual pages --------------------------------------------------------------


def test_docstrings_of_functions_and_methods_not_of_tests(tmp_path: Path) -> None:
    code = (
        f'class A:\n    async def get(self, *, key: str = "x") -> int:\n        """{words(1)}."""\n'
        f'def short_one():\n    """Too short."""\n'
    )
    for path in ("json/a.py", "json/test/a.py", "site-packages/a.py"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(code)
    (pair,), source = read_docstrings(tmp_path)
    assert (pair.group, pair.query) == ("json", "def get(self, *, key: str='x')")
    assert pair.document == f"{words(1)}."
    (tmp_path / "made_at_installation.py").write_text("paths = []\n")
    assert read_docstrings(tmp_path)[1].sha256 == source.sha256
    (tmp_path / "json/a.py").write_text(code + "# changed\n")
    assert read_docstrings(tmp_path)[1].sha256 != source.sha256


PERLDOC = r"""
.de Sh \" Subsection heading
.if t .Sp
made up text
..
.ie \n(.g .ds Aq \(aq
.el       .ds Aq '
.SH "NAME"
fs_examine \- Shows data about a volume\(aqs files
.SH "DESCRIPTION"
.IX Header "DESCRIPTION"
The \fBfs examine\fR command displays \f(CWinformation\fR about the volume's \s-1ID\s0 number.
.Vb 1
\&  code
.Ve
.PP
It ends\&.
"""
DOCBOOK = r"""
.SH "NAME"
loginctl \- Control the systemd login manager
.SH "DESCRIPTION"
.PP
\fBloginctl\fR
may be used to introspect the
\fBsystemd\fR(1)
login manager
.BR systemd-logind.service (8) .
.RS 4
.ie n \{\
\h'-04'\(bu\h'+03'\c
.\}
.el \{\
.sp -1
.IP \(bu 2.3
.\}
See the \m[blue]\fBpage\fR\m[]\&. \*(Lqquoted\*(Rq
.SH "OPTIONS"
not this
"""
PANDOC = r"""
.SH NAME
.PP
\f[B]tpm2_create\f[R](1) - Create a \[lq]child\[rq] object \[em] or two.
.SH DESCRIPTION
.PP
Create\c
 it. A \(em B, caf\[u00E9], C:\\dir \e end \" comment
.nf
code
.fi
.B "bold words" more
.IR file \|[ ... ]
"""


@pytest.mark.parametrize(
    ("text", "name", "description"),
    [
        (
            PERLDOC,
            "fs_examine - Shows data about a volume's files",
            "The fs examine command displays information about the volume's ID number. It ends.",
        ),
        (
            DOCBOOK,
            "loginctl - Control the systemd login manager",
            "loginctl may be used to introspect the systemd(1) login manager "
            "systemd-logind.service(8). See the page. quoted",
        ),
        (
            PANDOC,
            'tpm2_create(1) - Create a "child" object - or two.',
            "Create it. A - B, café, C:\\dir \\ end bold words more file[...]",
        ),
    ],
)
def test_the_words_of_manual_pages(text: str, name: str, description: str) -> None:
    found = sections(text)
    assert found["NAME"] == name
    assert found["DESCRIPTION"] == description


def test_a_backslash_at_the_end_joins_nothing_and_stays_nowhere() -> None:
    assert plain("a \\") == "a "


def test_commands_are_english_pages_of_sections_1_and_8(tmp_path: Path) -> None:
    good = tmp_path / "man" / "man1"
    for folder in (good, tmp_path / "man" / "fr" / "man1", tmp_path / "man" / "man3"):
        folder.mkdir(parents=True)
        (folder / "git-remote-ext.1ssl").write_bytes(page("café").encode("latin-1"))
    (good / "link.1").symlink_to("git-remote-ext.1ssl")
    (good / "mdoc.1").write_text(page("mdoc").replace(".SH", ".Sh"))
    (pair,), source = read_commands(tmp_path / "man")
    assert (pair.group, pair.query) == ("git-remote", f"handle {words('café')}")
    assert pair.document == f"café handles {words('café', 'long')}."
    assert source.version == "as installed"


# --- texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "longest", "expected"),
    [
        (" a\n b\t\u200b c\x07 ", 10, "a b c"),
        ("e\u0301", 10, "é"),
        ("one two three", 8, "one two"),
        ("one two three", 7, "one two"),
        ("one two three", 6, "one"),
        ("unbroken", 4, "unbr"),
    ],
)
def test_clean(text: str, longest: int, expected: str) -> None:
    assert clean(text, longest) == expected


# --- downloads --------------------------------------------------------------------------------

APT = """#!{python}
import sys
from pathlib import Path
given = dict(one[2:].split("=", 1) for one in sys.argv if one.startswith("-o"))
lists = Path(given["Dir::State::lists"])
assert (lists / "partial").is_dir() and given["Acquire::Languages"] == "en,fr"
(line,) = Path(given["Dir::Etc::sourcelist"]).read_text().splitlines()
if sys.argv[-1] == "update":
    if "broken" in line:
        sys.exit("E: The repository does not have a Release file.")
    (lists / "made_InRelease").write_text(line)
else:
    assert "git-man" in sys.argv
    Path("git-man_1%3a2_all.deb").write_text("a package")
"""
DPKG = """#!{python}
import io, sys, tarfile
assert open(sys.argv[2]).read() == "a package"
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as files:
    for name in {names}:
        member = tarfile.TarInfo(name)
        member.size = 4
        files.addfile(member, io.BytesIO(b"page"))
"""
PAGES = ("man1/git.1.gz", "man5/no.5.gz", "fr/man1/no.1.gz", "man8/gitd.8.gz")


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs called apt-get and dpkg-deb that download nothing."""
    names = ["./usr/share/man/" + name for name in PAGES]
    (tmp_path / "bin").mkdir()
    for name, code in (("apt-get", APT), ("dpkg-deb", DPKG)):
        program = tmp_path / "bin" / name
        program.write_text(code.format(python=sys.executable, names=names))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(corpus_fetch, "KEYRING", keyring)


@pytest.mark.usefixtures("apt")
def test_a_download_keeps_lists_and_pages_of_commands(tmp_path: Path) -> None:
    for _ in range(2):  # the second replaces the first
        corpus_fetch.fetch(tmp_path / "to", "http://mirror/debian", "made")
    found = contents(tmp_path / "to")
    signed = f"[signed-by={tmp_path / 'keyring.gpg'}]"
    assert found == {
        "lists/made_InRelease": f"deb {signed} http://mirror/debian made main".encode(),
        "man/git-man_1%3a2_all/man/man1/git.1.gz": b"page",
        "man/git-man_1%3a2_all/man/man8/gitd.8.gz": b"page",
    }


@pytest.mark.usefixtures("apt")
def test_a_failed_download_says_what_apt_says(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not have a Release file"):
        corpus_fetch.fetch(tmp_path / "to", "http://mirror/debian", "broken")


def test_a_machine_without_apt_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="apt-get and dpkg-deb not found"):
        corpus_fetch.fetch(tmp_path / "to", "http://mirror/debian", "made")
    assert not list(tmp_path.iterdir())
