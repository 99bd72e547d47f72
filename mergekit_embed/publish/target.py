"""Where a model goes on the Hub, and what is there already."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..checkpoint.hub_errors import TOKENS
from ..checkpoint.weights import MAX_JSON_BYTES
from ..errors import CheckpointError, HubError, UsageError
from .advice import advised
from .check import File
from .lineage import LINEAGE, Lineage, read_lineage

if TYPE_CHECKING:
    from huggingface_hub import HfApi

NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)

MAIN = "main"

ALWAYS_THERE = ".gitattributes"
"""A file that the Hub puts into every repository, and keeps itself."""

STALE = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
"""Weights that another merge left would be loaded in place of those that are pushed."""

WRITES = {"admin", "contributor", "write"}
"""Roles in an organisation with which one may write; the Hub decides in the end."""


@dataclass(frozen=True)
class Target:
    """Where to push.

    Attributes:
        repository: OWNER/NAME.
        private: for a repository that is made; None: as the Hub does by default.
        revision: a branch, made if need be; None: `main`.
        create_pr: propose the files as a pull request, and change nothing.
        overwrite: replace what another merge, or somebody's hand, put there.
    """

    repository: str
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.repository):
            raise UsageError(f"{self.repository!r} is no name of a repository; write OWNER/NAME")

    @property
    def branch(self) -> str:
        """The branch that is written to, or that a pull request is for."""
        return self.revision or MAIN


@dataclass(frozen=True)
class Remote:
    """A file on the Hub: its size, its git hash, and its SHA-256 where it is a large object."""

    size: int
    oid: str
    sha256: str | None


@dataclass(frozen=True)
class There:
    """What is on the Hub.

    Attributes:
        exists: whether there is a repository.
        has_branch: whether it has the branch.
        head: the commit that the branch, or what it will start from, is at.
        files: of that commit, but for what the Hub puts there itself.
        is_own: the branch has commits of its own; a new one has what it starts from.
    """

    exists: bool = False
    has_branch: bool = False
    head: str | None = None
    files: Mapping[str, Remote] = field(default_factory=dict)
    is_own: bool = False


@dataclass(frozen=True)
class Changes:
    """What a push does: files that are new or other than there, the same, and in the way."""

    sent: tuple[File, ...]
    same: tuple[File, ...]
    deleted: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """True when all is there."""
        return not (self.sent or self.deleted)


def check_owner(api: HfApi, target: Target) -> str:
    """Refuse a place that is somebody else's, unless the files are only proposed.

    Returns:
        whose token it is.

    Raises:
        HubError: naming whose it is, or saying that the token may only read.
    """
    with advised(target.repository):
        told = api.whoami(cache=True)
    name, owner = str(told["name"]), target.repository.partition("/")[0]
    if told.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(
            f"{target.repository}: the token of {name} may only read; make one with the right to "
            f"write ({TOKENS})"
        )
    roles = {str(one["name"]): one.get("roleInOrg") for one in told.get("orgs", ())}
    if target.create_pr or owner.lower() == name.lower():
        return name
    known = {organisation.lower(): role for organisation, role in roles.items()}
    if owner.lower() not in known:
        raise HubError(
            f"{target.repository}: {owner} is neither you ({name}) nor an organisation of yours; "
            f"push to {name}/{target.repository.partition('/')[2]}, or propose with --create-pr"
        )
    role = known[owner.lower()]
    if role is not None and role not in WRITES:
        raise HubError(
            f"{target.repository}: you ({name}) may only read in {owner}; ask for the right to "
            "write, or propose with --create-pr"
        )
    return name


def look(api: HfApi, target: Target) -> There:
    """What is at a target.

    Raises:
        HubError: when the Hub does not tell, when there is nothing that could get a pull request,
            or when a public repository is to be private.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with advised(target.repository):
        try:
            info = api.model_info(target.repository)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:
                raise
            if target.create_pr:
                raise HubError(
                    f"{target.repository} is not there, or you may not see it; a pull request "
                    "needs a repository"
                ) from error
            return There()
        if target.private and not info.private:
            raise HubError(
                f"{target.repository} is public already; make it private in its settings on the "
                "Hub, or push without --private"
            )
        refs = api.list_repo_refs(target.repository)
        heads = {branch.name: branch.target_commit for branch in refs.branches}
        head = heads.get(target.branch, heads.get(MAIN))
        if head is None:
            return There(exists=True)
        is_own = target.branch == MAIN or head != heads.get(MAIN)
        return There(True, target.branch in heads, head, _listed(api, target, head), is_own)


def _listed(api: HfApi, target: Target, revision: str) -> dict[str, Remote]:
    from huggingface_hub.hf_api import RepoFile

    listed = api.list_repo_tree(target.repository, recursive=True, revision=revision)
    return {
        file.path: Remote(file.size, file.blob_id, file.lfs.sha256 if file.lfs else None)
        for file in listed
        if isinstance(file, RepoFile) and file.path != ALWAYS_THERE
    }


def listed_at(api: HfApi, target: Target, revision: str) -> dict[str, Remote]:
    """The files of a revision, such as a pull request's.

    Raises:
        HubError: when the Hub does not tell.
    """
    with advised(target.repository):
        return _listed(api, target, revision)


def changes(
    files: Sequence[File],
    there: Mapping[str, Remote],
    *,
    whole: bool,
    known: Collection[str] = (),
) -> Changes:
    """What has to be sent and removed so that the files are there, and (`whole`) no others.

    Otherwise only weights are removed, which would be loaded in place of the new ones. `known` are
    the paths of files that are known to say the same.
    """
    sent: list[File] = []
    same: list[File] = []
    for file in files:
        other = there.get(file.path)
        is_same = other is not None and (file.path in known or _is_same(file, other))
        (same if is_same else sent).append(file)
    names = {file.path for file in files}
    extra = [path for path in there if path not in names]
    deleted = [path for path in extra if whole or path.endswith(STALE)]
    return Changes(tuple(sent), tuple(same), tuple(sorted(deleted)))


def _is_same(file: File, other: Remote) -> bool:
    if file.size != other.size:
        return False
    if other.sha256 is not None:
        return (file.sha256 or digest(file.source)) == other.sha256
    if file.sha256 is not None:
        return False
    content = file.source.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == other.oid


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lineage_there(api: HfApi, target: Target, there: There) -> Lineage | None:
    """The lineage of the model that is there; None where it has none.

    Raises:
        HubError: when the Hub does not give the file.
    """
    content = read_there(api, target, there, LINEAGE)
    if content is None:
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder, LINEAGE)
        path.write_bytes(content)
        try:
            return read_lineage(path)
        except CheckpointError:  # of a later version, or made by hand: then it is not this one
            return None


def read_there(api: HfApi, target: Target, there: There, path: str) -> bytes | None:
    """A small file that is there; None where it is not.

    Raises:
        HubError: when the Hub does not give it.
    """
    if path not in there.files or there.files[path].size > MAX_JSON_BYTES:
        return None
    with TemporaryDirectory() as folder, advised(target.repository):
        found = api.hf_hub_download(target.repository, path, revision=there.head, local_dir=folder)
        return Path(found).read_bytes()


def compare(
    api: HfApi, target: Target, there: There, files: Sequence[File], own: Lineage | None
) -> Changes:
    """What a push of these files does.

    The lineage of a model that was merged once more tells other times and nothing else; then the
    one that is there stays.

    Args:
        api: the Hub's client.
        target: where to.
        there: what is there.
        files: what is pushed.
        own: the lineage among the files.

    Raises:
        HubError: when it would replace what another merge, or somebody's hand, put there.
    """
    other = lineage_there(api, target, there) if own else None
    is_same = own is not None and other is not None and own.digest == other.digest
    made = changes(files, there.files, whole=not is_same, known=known_files(own, other))
    if not is_same:
        refuse_foreign(target, there, made)
    return made


def known_files(own: Lineage | None, other: Lineage | None) -> set[str]:
    """The paths of files that say the same as those that are there, whatever their bytes."""
    return {LINEAGE} if own and other and _timeless(own) == _timeless(other) else set()


def _timeless(lineage: Lineage) -> dict[str, Any]:
    return {key: value for key, value in lineage.content.items() if key != "times"}


def refuse_foreign(target: Target, there: There, made: Changes) -> None:
    """Refuse to touch files that this merge did not write.

    What a branch has that was only just made is not its own; and to add files touches none.

    Raises:
        HubError: naming some of them, and what would replace them.
    """
    if target.overwrite or target.create_pr or not there.is_own:
        return
    names = {file.path for file in made.same}
    foreign = sorted(path for path in there.files if path not in names)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise HubError(
            f"{target.repository}: holds {', '.join(foreign[:3])}{more}, which this merge did not "
            "write. To replace all that is there, in one commit that can be undone: overwrite; or "
            "choose another name, another revision, or propose with --create-pr"
        )
