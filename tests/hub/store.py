"""What a Hub stores: repositories with commits, branches and pull requests, and objects.

Everything lies in a folder. A commit is there whole or not at all, and every state that anybody
could ever have seen is remembered.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
"""What a repository of the Hub holds from the start, in .gitattributes."""

LARGE = 5_000_000
"""Bytes from which on a file is no part of git."""


class RefusedError(Exception):
    """What is asked for cannot be done: an HTTP status, a code for the client, and words."""

    def __init__(self, status: int, code: str | None, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Blob:
    """A file in a commit: its git hash, its size, and its SHA-256 when it is a large object."""

    oid: str
    size: int
    sha256: str | None = None


@dataclass
class Repository:
    """A model's repository: commits by their hash, and what names them."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)

    def commit_of(self, revision: str) -> str:
        """The commit that a branch, a pull request or a hash stands for."""
        for name in (revision, f"refs/heads/{revision}"):
            if name in self.refs:
                return self.refs[name]
        if revision in self.commits:
            return revision
        raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")


@dataclass(frozen=True)
class Visible:
    """A state that could be seen: what a name led to, from some moment on."""

    repository: str
    ref: str
    commit: str
    files: Mapping[str, Blob]


def git_oid(content: bytes) -> str:
    """The hash that git has for a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Store:
    """The folder of a Hub. Safe from any thread."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}
        self.history: list[Visible] = []
        for name in ("blobs", "large", "parts"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if (folder / "repositories.json").exists():
            for told in json.loads((folder / "repositories.json").read_text()):
                commits = {
                    commit: {path: Blob(**blob) for path, blob in files.items()}
                    for commit, files in told.pop("commits").items()
                }
                self.repositories[told["name"]] = Repository(**told, commits=commits)

    def repository(self, name: str) -> Repository:
        """A repository by its name."""
        if name not in self.repositories:
            raise RefusedError(404, "RepoNotFound", "Repository not found")
        return self.repositories[name]

    def create(self, name: str, *, private: bool = False, gated: bool = False) -> Repository:
        """A repository with nothing but its .gitattributes."""
        with self.lock:
            if name in self.repositories:
                raise RefusedError(409, None, "You already created this model repo")
            made = self.repositories[name] = Repository(name, private, gated)
            files = {".gitattributes": self.blob(ATTRIBUTES)}
            self._move(made, "refs/heads/main", files, "initial commit")
            return made

    def blob(self, content: bytes) -> Blob:
        """Store a small file."""
        found = Blob(git_oid(content), len(content))
        self._write(self.folder / "blobs" / found.oid, content)
        return found

    def large(self, sha256: str) -> Path:
        """Where a large object is, or would be."""
        return self.folder / "large" / sha256

    def branch(self, name: str, branch: str, start: str) -> None:
        """A new branch that starts where another is."""
        with self.lock:
            repository = self.repository(name)
            ref = f"refs/heads/{branch}"
            if ref in repository.refs:
                raise RefusedError(409, None, "Reference already exists")
            commit = repository.commit_of(start)
            self._point(repository, ref, commit)

    def commit(
        self, name: str, revision: str, lines: Iterable[Mapping[str, Any]], author: str, *, pr: bool
    ) -> tuple[str, int | None]:
        """One commit on a branch, or on a new pull request: its hash, and the request's number."""
        with self.lock:
            repository = self.repository(name)
            head = repository.commit_of(revision)
            files, title = dict(repository.commits[head]), ""
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    title = value["summary"]
                    if value.get("parentCommit") not in (None, head):
                        raise RefusedError(412, None, "A commit has happened since")
                else:
                    self._apply(files, line["key"], value)
            if not pr:
                return self._move(repository, f"refs/heads/{revision}", files, title), None
            number = len(repository.pulls) + 1
            repository.pulls.append({"number": number, "title": title, "author": author})
            return self._move(repository, f"refs/pr/{number}", files, title), number

    def content(self, blob: Blob) -> Path:
        """Where the bytes of a file are."""
        return self.large(blob.sha256) if blob.sha256 else self.folder / "blobs" / blob.oid

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """All files of a revision, but for what every repository has."""
        repository = self.repository(name)
        found = repository.commits[repository.commit_of(revision)]
        return {
            path: self.content(blob).read_bytes()
            for path, blob in found.items()
            if path != ".gitattributes"
        }

    def _apply(self, files: dict[str, Blob], key: str, value: Mapping[str, Any]) -> None:
        import base64

        path = value["path"]
        if key == "file":
            files[path] = self.blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if not self.large(value["oid"]).exists():
                raise RefusedError(
                    400, None, f"LFS pointer pointed to a file that is not there: {path}"
                )
            pointer = (
                "version https://git-lfs.github.com/spec/v1\n"
                f"oid sha256:{value['oid']}\nsize {value['size']}\n"
            )
            files[path] = Blob(git_oid(pointer.encode()), value["size"], value["oid"])
        elif key == "deletedFile":
            if path not in files:
                raise RefusedError(404, "EntryNotFound", "A file with this name doesn't exist")
            del files[path]
        else:
            raise RefusedError(400, None, f"unknown operation {key}")

    def _move(self, repository: Repository, ref: str, files: dict[str, Blob], title: str) -> str:
        parent = repository.refs.get(ref, "")
        told = json.dumps([parent, title, sorted((p, b.oid) for p, b in files.items())])
        commit = hashlib.sha1(f"{told}{len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = files
        repository.titles[commit] = title
        self._point(repository, ref, commit)
        return commit

    def _point(self, repository: Repository, ref: str, commit: str) -> None:
        repository.refs[ref] = commit
        files = repository.commits[commit]
        self.history.append(Visible(repository.name, ref, commit, dict(files)))
        told = json.dumps([asdict(one) for one in self.repositories.values()])
        self._write(self.folder / "repositories.json", told.encode())

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        fresh = path.with_name(f"{path.name}.{threading.get_ident()}")
        fresh.write_bytes(content)
        fresh.replace(path)
