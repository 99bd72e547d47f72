"""The calls that a Hub answers, each a function of the request."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .store import LARGE, Blob, RefusedError, Repository

ROUTES: list[tuple[str, Callable[..., None]]] = []
"""Patterns of `METHOD /path`, and what answers."""

ID = r"(?P<name>[\w.-]+/[\w.-]+)"
MODEL = rf"/api/models/{ID}"
REVISION = r"(?P<revision>[^/]+)"


def route(pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a function answer requests of a pattern."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        ROUTES.append((pattern, function))
        return function

    return register


def readable(request: Any, name: str) -> Repository:
    """A repository that the user may look at."""
    repository: Repository = request.hub.store.repository(name)
    if repository.private and not may_write(request, name):
        raise RefusedError(404 if request.user else 401, "RepoNotFound", "Repository not found")
    return repository


def may_write(request: Any, name: str) -> bool:
    """Whether the user's name, or an organisation that it writes for, comes first in the name."""
    owner, user = name.split("/")[0], request.user
    return user is not None and (owner == user.name or user.organisations.get(owner) == "write")


def writable(request: Any, name: str, *, proposes: bool = False) -> None:
    """Refuse who may not write; to propose, one only has to be somebody."""
    if request.user is None:
        raise RefusedError(401, None, "Invalid username or password.")
    if request.user.role == "read" or not (proposes or may_write(request, name)):
        raise RefusedError(403, None, "You don't have the rights to write to this repo")


@route("GET /api/whoami-v2")
def whoami(request: Any) -> None:
    user = request.user
    if user is None:
        raise RefusedError(401, None, "Invalid username or password.")
    orgs = [{"name": name, "roleInOrg": role} for name, role in user.organisations.items()]
    told = {"type": "user", "name": user.name, "orgs": orgs}
    request.answer(told | {"auth": {"accessToken": {"role": user.role}}})


@route("POST /api/repos/create")
def create(request: Any) -> None:
    told = request.json()
    owner = told.get("organization") or (request.user and request.user.name)
    name = f"{owner}/{told['name']}"
    writable(request, name)
    request.hub.store.create(name, private=told.get("visibility") == "private")
    request.answer({"url": f"{request.hub.url}/{name}"})


@route("POST /api/validate-yaml")
def validate(request: Any) -> None:
    content = request.json()["content"]
    if "license: [" in content:
        request.answer({"errors": [{"message": '"license" must be a string'}]}, 400)
    else:
        request.answer({"errors": [], "warnings": []})


@route(f"GET {MODEL}(/revision/{REVISION})?")
def model(request: Any, name: str, revision: str = "main") -> None:
    repository = readable(request, name)
    commit = repository.commit_of(revision)
    request.answer(
        {
            "id": name,
            "modelId": name,
            "sha": commit,
            "private": repository.private,
            "siblings": [{"rfilename": path} for path in repository.commits[commit]],
        }
    )


@route(f"GET {MODEL}/refs")
def refs(request: Any, name: str) -> None:
    repository = readable(request, name)

    def listed(start: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(start), "ref": ref, "targetCommit": commit}
            for ref, commit in repository.refs.items()
            if ref.startswith(start)
        ]

    told = {"branches": listed("refs/heads/"), "converts": [], "tags": []}
    request.answer(told | {"pullRequests": listed("refs/pr/")})


@route(f"GET {MODEL}/discussions")
def discussions(request: Any, name: str) -> None:
    pulls = [p for p in readable(request, name).pulls if request.query.get("author") == p["author"]]
    told = [
        {
            "num": pull["number"],
            "title": pull["title"],
            "author": {"name": pull["author"]},
            "createdAt": "2026-11-21T00:00:00.000Z",
            "status": "open",
            "repo": {"name": name, "type": "model"},
            "isPullRequest": True,
        }
        for pull in pulls
    ]
    request.answer({"count": len(told), "start": 0, "discussions": told})


@route(f"POST {MODEL}/branch/{REVISION}")
def branch(request: Any, name: str, revision: str) -> None:
    writable(request, name)
    start = request.json().get("startingPoint", "main")
    request.hub.store.branch(name, revision, start)
    request.answer({})


def described(path: str, blob: Blob) -> dict[str, Any]:
    """A file as listings have it."""
    told: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    if blob.sha256:
        told["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
    return told


@route(f"GET {MODEL}/tree/{REVISION}")
def tree(request: Any, name: str, revision: str) -> None:
    repository = readable(request, name)
    files = repository.commits[repository.commit_of(revision)]
    request.answer([described(path, blob) for path, blob in sorted(files.items())])


@route(f"POST {MODEL}/preupload/{REVISION}")
def preupload(request: Any, name: str, revision: str) -> None:
    writable(request, name, proposes="create_pr" in request.query)
    repository = readable(request, name)
    there = repository.commits[repository.commit_of(revision)]
    answers = []
    for file in request.json()["files"]:
        path, blob = file["path"], there.get(file["path"])
        base64.b64decode(file["sample"])
        large = path.endswith((".safetensors", ".bin")) or file["size"] > LARGE
        told = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if blob is not None:
            told["oid"] = blob.sha256 or blob.oid
        answers.append(told)
    request.answer({"files": answers})


@route(rf"POST /{ID}\.git/info/lfs/objects/batch")
def batch(request: Any, name: str) -> None:
    writable(request, name, proposes=True)
    hub, answers = request.hub, []
    for wanted in request.json()["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        told: dict[str, Any] = {"oid": oid, "size": size}
        if not hub.store.large(oid).exists():
            upload: dict[str, Any] = {"href": f"{hub.url}/objects/{oid}?secret=signature"}
            if size > hub.part_size:
                count = -(-size // hub.part_size)
                parts = {
                    str(n): f"{hub.url}/objects/{oid}/{n}?secret=signature"
                    for n in range(1, count + 1)
                }
                upload["header"] = {"chunk_size": str(hub.part_size), **parts}
            verify = {"href": f"{hub.url}/{name}.git/info/lfs/verify"}
            told["actions"] = {"upload": upload, "verify": verify}
        answers.append(told)
    request.answer({"objects": answers, "transfer": "basic"})


def received(request: Any, path: Path) -> None:
    """Store what is sent, once all of it is there."""
    fresh = path.with_name(f"{path.name}.{time.monotonic_ns()}")
    with fresh.open("wb") as file:

        def take(piece: bytes) -> None:
            request.hub.sent += len(piece)
            file.write(piece)

        request.body(take)
    fresh.rename(path)


def named(path: Path, oid: str) -> None:
    """Refuse an object that is not what it is called."""
    if hashlib.sha256(path.read_bytes()).hexdigest() != oid:
        path.unlink()
        raise RefusedError(400, None, "the object is not what it is called")


@route(r"PUT /objects/(?P<oid>\w+)")
def put(request: Any, oid: str) -> None:
    path = request.hub.store.large(oid)
    whole = path.with_name(f"{oid}.whole")
    received(request, whole)
    named(whole, oid)
    whole.rename(path)
    request.answer({})


@route(r"PUT /objects/(?P<oid>\w+)/(?P<part>\d+)")
def put_part(request: Any, oid: str, part: str) -> None:
    received(request, request.hub.store.folder / "parts" / f"{oid}-{part}")
    request.answer({}, headers={"ETag": f'"{oid[:8]}-{part}"'})


@route(r"POST /objects/(?P<oid>\w+)")
def complete(request: Any, oid: str) -> None:
    store, told = request.hub.store, request.json()
    whole = store.large(oid).with_name(f"{oid}.whole")
    with whole.open("wb") as file:
        for part in told["parts"]:
            file.write((store.folder / "parts" / f"{oid}-{part['partNumber']}").read_bytes())
    named(whole, oid)
    whole.rename(store.large(oid))
    request.answer({})


@route(rf"POST /{ID}\.git/info/lfs/verify")
def verify(request: Any, name: str) -> None:
    told = request.json()
    path = request.hub.store.large(told["oid"])
    if not path.exists() or path.stat().st_size != told["size"]:
        raise RefusedError(422, None, "the object is not there")
    request.answer({})


@route(f"POST {MODEL}/commit/{REVISION}")
def commit(request: Any, name: str, revision: str) -> None:
    proposes = "create_pr" in request.query
    writable(request, name, proposes=proposes)
    lines = [json.loads(line) for line in request.body().splitlines()]
    store = request.hub.store
    if request.hub.xet:  # such objects are elsewhere, and known by their hash alone
        for line in lines:
            if line["key"] == "lfsFile":
                store.large(line["value"]["oid"]).touch()
    made, number = store.commit(name, revision, lines, request.user.name, pr=proposes)
    told = {"commitUrl": f"{request.hub.url}/{name}/commit/{made}", "commitOid": made}
    if number is not None:
        told["pullRequestUrl"] = f"{request.hub.url}/{name}/discussions/{number}"
    request.answer(told)


@route(rf"(GET|HEAD) /{ID}/resolve/{REVISION}/(?P<path>.+)")
def resolve(request: Any, name: str, revision: str, path: str) -> None:
    repository = readable(request, name)
    user = request.user
    if repository.gated and (user is None or user.name not in request.hub.gate.get(name, ())):
        told = f"Access to model {name} is restricted. You must be authenticated to access it."
        raise RefusedError(403 if user else 401, "GatedRepo", told)
    head = repository.commit_of(revision)
    blob = repository.commits[head].get(path)
    if blob is None:
        raise RefusedError(404, "EntryNotFound", "Entry not found")
    content = request.hub.store.content(blob)
    size, start, status = content.stat().st_size, 0, 200
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    headers = {"ETag": f'"{blob.sha256 or blob.oid}"', "X-Repo-Commit": head}
    if asked:
        start, status = int(asked[1]), 206
        headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
    send(request, content, start, status, headers)


def send(request: Any, path: Path, start: int, status: int, headers: dict[str, str]) -> None:
    """A file from a byte on, in pieces, after each of which the connection may be cut."""
    request.hub.point()
    request.send_response(status)
    length = path.stat().st_size - start
    for key, value in {**headers, "Content-Length": str(length)}.items():
        request.send_header(key, value)
    request.end_headers()
    if request.command == "HEAD":
        return
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(65536):
            request.wfile.write(piece)
            request.wfile.flush()
            request.hub.point()


@route(f"GET {MODEL}/xet-(read|write)-token/{REVISION}")
def xet_token(request: Any, name: str, revision: str) -> None:
    if not request.hub.xet:
        raise RefusedError(404, None, "no Xet here")
    end = int(time.time()) + 3600
    headers = {
        "X-Xet-Cas-Url": request.hub.xet,
        "X-Xet-Access-Token": "xet_secret",
        "X-Xet-Token-Expiration": str(end),
    }
    told = {"casUrl": request.hub.xet, "accessToken": "xet_secret", "exp": end}
    request.answer(told, headers=headers)
