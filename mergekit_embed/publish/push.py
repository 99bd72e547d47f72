"""Pushing a model to the Hub: checked before anything is sent, and there in one commit or not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.adapter_folder import is_adapter
from ..engine.fingerprint import recipe_digest
from ..engine.manifest import MANIFEST
from ..engine.stamps import refuse_changed, stamp
from ..recipe import Recipe
from .advice import advised
from .card import write_card
from .check import CARD, File, check_card, check_finite, check_loads, check_whole, files_in
from .lineage import Lineage, find_lineage
from .target import (
    MAIN,
    Changes,
    Target,
    There,
    changes,
    check_owner,
    compare,
    known_files,
    lineage_there,
    listed_at,
    look,
    read_there,
    refuse_foreign,
)

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

MESSAGE = "Merged with mergekit_embed"


@dataclass(frozen=True)
class Prepared:
    """A push that may go ahead.

    Attributes:
        target: where to.
        user: whose token it is.
        there: what is there.
        changes: what is sent, what is there already, and what is removed.
        lineage: of the model, where it has one.
        notes: what the user should know that is no error.
    """

    target: Target
    user: str
    there: There
    changes: Changes
    lineage: Lineage | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pushed:
    """What a push has done.

    Attributes:
        repository: OWNER/NAME.
        url: where to look at it.
        revision: the branch, or the pull request's.
        commit: its last commit; None for a pull request that was there already.
        is_new: False when all was there, and nothing was committed.
        files: how many were sent; `bytes`: of these, whether the Hub knew them already or not.
        notes: what the user should know that is no error.
    """

    repository: str
    url: str
    revision: str
    commit: str | None
    is_new: bool
    files: int
    bytes: int
    notes: tuple[str, ...] = ()


def push(
    folder: str | Path,
    target: Target | str,
    *,
    loads: bool = True,
    message: str = MESSAGE,
    show_progress: bool = False,
    api: HfApi | None = None,
) -> Pushed:
    """Push a model or an adapter to the Hub, in one commit.

    The card of a merged model is told its name there first.

    A push that was cut is continued by the same call: large files that the Hub has are not sent
    again, and where all is there, nothing is committed. The token is found as the Hub's own tools
    find it.

    Args:
        folder: the model's.
        target: where to; a name is that of a repository, which is made if need be.
        loads: try first whether the model loads in sentence-transformers and embeds.
        message: of the commit.
        show_progress: let the Hub's client draw its bars.
        api: the client; several pushes by one ask only once whose token it is.

    Raises:
        PublishError: when the model is not whole, not finite, or does not load.
        HubError: when the place is somebody else's or holds something else, or the Hub refuses.
        UsageError: for what is no name, or no folder.
    """
    with quiet(show_progress=show_progress):
        target = Target(target) if isinstance(target, str) else target
        root = Path(folder).expanduser()
        api = api or open_hub()
        name_card(root, target)
        prepared = prepare(api, root, target, loads=loads)
        return send(api, prepared, message=message)


def name_card(folder: Path, target: Target) -> None:
    """Let the card of a merged model say how it is loaded from the Hub.

    What people wrote into it stays. A folder that cannot be written to is pushed as it is.

    Raises:
        PublishError: when the card that is there cannot be read.
    """
    if find_lineage(folder) is not None and os.access(folder, os.W_OK):
        check_card(folder)
        write_card(folder, name=target.repository)


def open_hub() -> HfApi:
    """The Hub's client."""
    from huggingface_hub import HfApi

    return HfApi(library_name="mergekit_embed")


@contextmanager
def quiet(*, show_progress: bool) -> Iterator[None]:
    """The Hub's client without its warnings, which spell addresses with signatures."""
    from huggingface_hub import utils as untyped

    client: Any = untyped
    level, had_bars = client.logging.get_verbosity(), not client.are_progress_bars_disabled()
    client.logging.set_verbosity_error()
    if had_bars and not show_progress:
        client.disable_progress_bars()
    try:
        yield
    finally:
        client.logging.set_verbosity(level)
        if had_bars and not show_progress:
            client.enable_progress_bars()


def check_place(api: HfApi, target: Target, recipe: Recipe | None) -> tuple[str, There]:
    """Refuse what no merge could be pushed to, before it is merged.

    Whether a model of the same recipe is of this merge, down to the members' bytes, is only known
    once these were read; it passes here.

    Args:
        api: the Hub's client.
        target: where to.
        recipe: of the merge; None for one whose result has no manifest.

    Returns:
        whose token it is, and what is there.

    Raises:
        HubError: when it is somebody else's place, or holds something else.
    """
    user, there = check_owner(api, target), look(api, target)
    if recipe is None:
        return user, there
    raw = read_there(api, target, there, MANIFEST)
    try:
        told = json.loads(raw) if raw else None
    except ValueError:
        told = None
    if not isinstance(told, dict) or told.get("recipe") != recipe_digest(recipe):
        refuse_foreign(target, there, changes((), there.files, whole=True))
    return user, there


def prepare(api: HfApi, folder: Path, target: Target, *, loads: bool = True) -> Prepared:
    """Check a model and its place on the Hub. Nothing is written.

    Raises:
        PublishError, HubError, UsageError: as `push` does.
    """
    tensors = check_whole(folder)
    check_card(folder)
    files = files_in(folder)
    user = check_owner(api, target)
    there = look(api, target)
    own = find_lineage(folder)
    made = compare(api, target, there, files, own)
    if not made.is_empty:
        check_finite(tensors)
        if loads and not is_adapter(folder):
            check_loads(folder)
    notes = () if (folder / CARD).is_file() else (f"{folder}: there is no {CARD}, the Hub's page",)
    return Prepared(target, user, there, made, own, notes)


def send(api: HfApi, prepared: Prepared, *, message: str = MESSAGE) -> Pushed:
    """Push what was prepared.

    Raises:
        HubError: when the Hub refuses, or the connection fails.
        ChangedError: when a file is not what it was when it was checked.
    """
    target, made = prepared.target, prepared.changes
    done = already_there(api, prepared)
    if done is not None:
        return done
    from huggingface_hub import CommitOperationAdd

    with advised(target.repository):
        head = ensure(api, target, prepared.there)
        added = [CommitOperationAdd(file.path, str(file.source)) for file in made.sent]
        upload(api, target, added)
        for file in made.sent:
            refuse_changed(file.source, stamp(file.source), file.stamp)
        return commit(api, prepared, added, head, message)


def upload(
    api: HfApi, target: Target, added: list[CommitOperationAdd], *, frees: bool = False
) -> None:
    """Send the large ones of some files, which are not to be seen before a commit names them.

    `frees`: forget where those lie that were sent, so that they may be removed.
    """
    api.preupload_lfs_files(
        target.repository,
        added,
        revision=target.branch,
        create_pr=target.create_pr,
        free_memory=frees,
    )


def commit(
    api: HfApi,
    prepared: Prepared,
    added: list[CommitOperationAdd],
    head: str | None,
    message: str,
) -> Pushed:
    """Make the one commit, on top of what was looked at and nothing else."""
    from huggingface_hub import CommitOperationDelete

    target, made = prepared.target, prepared.changes
    operations: list[CommitOperationAdd | CommitOperationDelete] = [*added]
    operations += [CommitOperationDelete(path, is_folder=False) for path in made.deleted]
    done = api.create_commit(
        target.repository,
        operations,
        commit_message=message,
        revision=target.branch,
        create_pr=target.create_pr,
        parent_commit=head,
    )
    if target.create_pr and done.pr_url:
        return result_of(api, prepared, done.oid, is_new=True, url=done.pr_url)
    return result_of(api, prepared, done.oid, is_new=True)


def ensure(api: HfApi, target: Target, there: There) -> str | None:
    """Make the repository and the branch where they are not there; the commit to build on.

    An empty repository, or a branch with what `main` has, is all that can be seen of a push before
    its commit.
    """
    head = there.head
    if not there.exists:
        api.create_repo(target.repository, private=target.private)
        head = api.model_info(target.repository).sha
    if target.branch != MAIN and not there.has_branch and not target.create_pr:
        api.create_branch(target.repository, branch=target.branch, revision=head)
    return head


def already_there(api: HfApi, prepared: Prepared) -> Pushed | None:
    """What is there already: all files, or an open pull request of one's own with just these.

    Raises:
        HubError: when the Hub does not tell.
    """
    target, made = prepared.target, prepared.changes
    if made.is_empty:
        return result_of(api, prepared, prepared.there.head, is_new=False)
    if not target.create_pr:
        return None
    files = [*made.sent, *made.same]
    with advised(target.repository):
        pulls = list(
            api.get_repo_discussions(
                target.repository,
                author=prepared.user,
                discussion_type="pull_request",
                discussion_status="open",
            )
        )
    for pull in pulls:
        revision = f"refs/pr/{pull.num}"
        found = There(head=revision, files=listed_at(api, target, revision))
        known = known_files(prepared.lineage, lineage_there(api, target, found))
        if changes(files, found.files, whole=bool(made.deleted), known=known).is_empty:
            return result_of(api, prepared, None, is_new=False, url=pull.url, revision=revision)
    return None


def result_of(
    api: HfApi,
    prepared: Prepared,
    commit: str | None,
    *,
    is_new: bool,
    url: str | None = None,
    revision: str | None = None,
) -> Pushed:
    """What to tell of a push."""
    target = prepared.target
    page = f"{api.endpoint}/{target.repository}"
    at = "" if target.branch == MAIN else f"/tree/{target.branch}"
    sent: tuple[File, ...] = prepared.changes.sent if is_new else ()
    return Pushed(
        repository=target.repository,
        url=url or page + at,
        revision=revision or target.branch,
        commit=commit,
        is_new=is_new,
        files=len(sent),
        bytes=sum(file.size for file in sent),
        notes=prepared.notes,
    )
