"""What the corpus is made from: an archive's index, docstrings, manual pages; read and cleaned."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import lzma
import platform
import re
import subprocess
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from corpus_roff import sections

LANGUAGES = ("en", "fr")
LONGEST = 600
"""Characters of a document; what follows is cut off at a word."""
SHORTEST = 60
"""Characters that a document has at least."""
SHORTEST_QUERY = 12

APT_HELPER = Path("/usr/lib/apt/apt-helper")
"""Reads indices in whatever way apt compressed them."""

NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "turtledemo"}
"""Folders beside the standard library's modules that are not for its users."""

SAYS_NOTHING = re.compile(
    r"\b(transitional|dummy|empty|meta-?)\s*packages?\b|packaged by debcargo", re.IGNORECASE
)
"""In texts of packages that are there for their dependencies, or are described by a program."""


class SourceError(Exception):
    """What the corpus is made from is missing or too little; says what to do."""


@dataclass(frozen=True)
class Source:
    """What was read, so that others can tell whether theirs is the same.

    Attributes:
        name: of the file or the collection.
        version: as the source tells it.
        sha256: of the contents that texts come from, uncompressed.
    """

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Package:
    """A package of the archive: what is said of it.

    Attributes:
        group: its source package without version numbers: gcc-11 and gcc-12 are one group.
        tags: the debtags, `facet::tag`; empty for most.
        french: its synopsis in French, or "".
    """

    name: str
    group: str
    section: str
    tags: frozenset[str]
    synopsis: str
    description: str
    french: str


@dataclass(frozen=True)
class Pair:
    """A query, and the document that answers it."""

    group: str
    query: str
    document: str


def clean(text: str, longest: int = LONGEST) -> str:
    """A text in one line, in composed Unicode, without control characters, cut at a word."""
    words = unicodedata.normalize("NFC", text).split()
    shown = ("".join(c for c in word if c.isprintable()) for word in words)
    line = " ".join(word for word in shown if word)
    if len(line) <= longest:
        return line
    return line[: longest + 1].rsplit(" ", 1)[0][:longest].rstrip()


def read_packages(lists: Path) -> tuple[list[Package], list[Source]]:
    """The packages of Debian's `main` in apt's lists that say enough of themselves, by name.

    Of a package in several suites or architectures the first is taken, by the file's name.

    Raises:
        SourceError: when there is no index, or no descriptions in a language.
    """
    indices = _indices(lists)
    sources: list[Source] = []
    fields = {"Package", "Source", "Section", "Tag", "Description", "Description-md5"}
    stanzas: dict[str, dict[str, str]] = {}
    for path, version in indices["Packages"]:
        with _Hashed(path) as file:
            for stanza in _stanzas(file, fields):
                stanzas.setdefault(stanza["Package"], stanza)
        sources.append(Source(path.name, version, file.sha256()))
    texts: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        key = f"Description-{language}"
        known = texts.setdefault(language, {})
        for path, version in indices[f"Translation-{language}"]:
            with _Hashed(path) as file:
                for stanza in _stanzas(file, {"Description-md5", key}):
                    known.setdefault(stanza["Description-md5"], stanza[key])
            sources.append(Source(path.name, version, file.sha256()))
    found = (_package(stanzas[name], texts["en"], texts["fr"]) for name in sorted(stanzas))
    return [package for package in found if package is not None], sources


def _indices(lists: Path) -> dict[str, list[tuple[Path, str]]]:
    """The files of each kind with the suite's version, of suites that Debian itself releases."""
    kinds = ("Packages", *(f"Translation-{language}" for language in LANGUAGES))
    found: dict[str, list[tuple[Path, str]]] = {kind: [] for kind in kinds}
    for release in sorted(lists.glob("*Release")):
        head = dict(re.findall(r"^(Origin|Codename|Date): (.*)$", release.read_text("utf-8"), re.M))
        if head.get("Origin") != "Debian":
            continue
        suite = re.sub(r"(In)?Release$", "", release.name)
        version = f"{head.get('Codename', '?')}, {head.get('Date', '?')}"
        for kind in kinds:
            for path in sorted(lists.glob(f"{suite}main_*_{kind}*")):
                if re.search(rf"_{kind}(\.\w+)?$", path.name):
                    found[kind].append((path, version))
    missing = [kind for kind in kinds if not found[kind]]
    if missing:
        languages = ",".join(LANGUAGES)
        raise SourceError(
            f"{lists}: no {' and no '.join(missing)} of Debian's main. As root, "
            f"`apt-get -o Acquire::Languages={languages} update`; or let `--sources DIR --fetch` "
            "download them to a folder of your own."
        )
    return found


class _Hashed:
    """Lines of a file, uncompressed, and the hash of all that was read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Hashed:
        self._file = self._open()
        return self

    def _open(self) -> IO[bytes]:
        if self._path.suffix in (".lz4", ".zst", ".bz2"):
            if not APT_HELPER.exists():
                raise SourceError(f"{self._path}: needs apt's {APT_HELPER}; `apt install apt`")
            command = [str(APT_HELPER), "cat-file", str(self._path)]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert self._process.stdout is not None
            return self._process.stdout
        if self._path.suffix == ".gz":
            return io.BufferedReader(gzip.open(self._path))
        return lzma.open(self._path) if self._path.suffix == ".xz" else self._path.open("rb")

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self._hash.update(line)
            yield line.decode()

    def __exit__(self, *error: object) -> None:
        self._file.close()
        if self._process is not None and self._process.wait() and error[0] is None:
            raise SourceError(f"{self._path}: apt cannot read it; `apt-get update` makes it anew")

    def sha256(self) -> str:
        return self._hash.hexdigest()


def _stanzas(lines: _Hashed, wanted: set[str]) -> Iterator[dict[str, str]]:
    """The wanted fields of each stanza; a field of many lines keeps its line breaks."""
    stanza: dict[str, str] = {}
    name = ""
    for line in lines:
        if line.startswith((" ", "\t")):
            if name in wanted:
                stanza[name] += line
        elif line.strip():
            name, _, value = line.partition(":")
            if name in wanted:
                stanza[name] = value.strip() + "\n"
        elif stanza:
            yield stanza
            stanza = {}
    if stanza:
        yield stanza


def _package(
    stanza: dict[str, str], english: dict[str, str], french: dict[str, str]
) -> Package | None:
    """The package, if it says something of itself."""
    digest = stanza.get("Description-md5", "")
    synopsis, _, long = english.get(digest, stanza.get("Description", "")).partition("\n")
    synopsis, description = clean(synopsis), clean(re.sub(r"(?m)^ \.$", "", long))
    if len(synopsis) < SHORTEST_QUERY or len(description) < SHORTEST:
        return None
    if SAYS_NOTHING.search(synopsis) or SAYS_NOTHING.search(description):
        return None
    name = stanza["Package"].strip()
    source = stanza.get("Source", name).split()[0]
    tags = (tag.strip() for tag in stanza.get("Tag", "").split(","))
    return Package(
        name=name,
        group=re.sub(r"[-.~+]?\d[\d.]*", "", source) or source,
        section=stanza.get("Section", "").strip(),
        tags=frozenset(tag for tag in tags if "::" in tag and not tag.startswith("special::")),
        synopsis=synopsis,
        description=description,
        french=clean(french.get(digest, "").partition("\n")[0]),
    )


def read_docstrings(library: Path) -> tuple[list[Pair], Source]:
    """Signatures and docstrings of the functions in a library's modules, by file.

    A group is a module with all that is in it: `json` and `json.decoder` are one.

    Raises:
        SourceError: when there are none.
    """
    found: list[Pair] = []
    total = hashlib.sha256()
    for path in sorted(library.rglob("*.py")):
        inside = path.relative_to(library)
        if NOT_LIBRARY & set(inside.parts):
            continue
        content = path.read_bytes()
        before = len(found)
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                document = clean(ast.get_docstring(node) or "")
                query = clean(f"def {node.name}({ast.unparse(node.args)})")
                if len(document) >= SHORTEST and len(query) >= SHORTEST_QUERY:
                    found.append(Pair(inside.parts[0].removesuffix(".py"), query, document))
        if len(found) > before:  # of the others some are made by the installation
            total.update(f"{inside.as_posix()} {len(content)}\n".encode() + content)
    if not found:
        raise SourceError(f"{library}: no modules with docstrings; use a Python with its library")
    version = platform.python_version()
    return found, Source("Python's standard library", version, total.hexdigest())


def read_commands(manuals: Path) -> tuple[list[Pair], Source]:
    """Purposes and descriptions of the commands with an English page in sections 1 and 8, by file.

    A group is what the first two words of a name share: git-remote and git-remote-ext are one.

    Raises:
        SourceError: when there are no pages.
    """
    found: list[Pair] = []
    total = hashlib.sha256()
    pages = sorted(path for path in manuals.rglob("man[18]/*") if path.parents[1].name == "man")
    for path in pages:
        if path.is_symlink() or not path.is_file():
            continue
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        total.update(f"{path.name} {len(content)}\n".encode() + content)
        pair = _command(path.name, _text(content))
        if pair is not None:
            found.append(pair)
    if not found:
        raise SourceError(
            f"{manuals}: no manual pages of commands; images of containers are made without. "
            "`--sources DIR --fetch` downloads some."
        )
    packages = sorted({path.parents[2].name for path in pages} - {manuals.parent.name})
    version = " ".join(packages).replace("%3a", ":") or "as installed"
    return found, Source("manual pages", version, total.hexdigest())


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:  # pages from before UTF-8
        return content.decode("latin-1")


def _command(file: str, page: str) -> Pair | None:
    """What a page says of its command; None for a page that has no such sections."""
    found = sections(page)
    purpose = re.split(r"\s-{1,3}\s", found.get("NAME", ""), maxsplit=1)[1:]
    query, document = clean("".join(purpose)), clean(found.get("DESCRIPTION", ""))
    if len(query) < SHORTEST_QUERY or len(document) < SHORTEST:
        return None
    name = re.sub(r"\.[18]\w*(\.gz)?$", "", file)
    return Pair("-".join(re.split(r"[-_.]", name)[:2]), query, document)
