"""`boom-push`: put a model on the Hub."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from .. import __version__
from .console import ends_with_failure, run, show_notes, size_of
from .options import SETTINGS, json_option, markdown_help

if TYPE_CHECKING:
    from ..publish.push import Prepared, Pushed

HELP = """Push the model (or adapter) in DIR to the repository OWNER/NAME of the Hugging Face Hub.

It is checked first: files complete, every tensor finite, loads in sentence-transformers, a card
that the Hub can read, and a repository that is yours. Then all files appear in one commit, or none.
A push that was cut goes on where it was when the same command is run again.

The token is that of `hf auth login`, or HF_TOKEN. Nothing is asked.
"""

EPILOG = """Exit codes: 0 it is there; 2 the command line is wrong; 1 anything else, and the
repository is as it was."""


@click.command(help=HELP, epilog=EPILOG, context_settings=SETTINGS)
@markdown_help
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private, if it is made.")
@click.option(
    "--revision", metavar="BRANCH", help="The branch to push to, made if need be. Default: `main`."
)
@click.option(
    "--create-pr", is_flag=True, help="Propose the files as a pull request; change nothing."
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace what the repository holds, if another merge or somebody's hand put it there.",
)
@click.option(
    "--skip-load", is_flag=True, help="Do not try whether the model loads in sentence-transformers."
)
@click.option("--dry-run", is_flag=True, help="Check, print what would go where, and stop.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.version_option(__version__, prog_name="boom-push")
@click.pass_context
def push(
    context: click.Context,
    folder: Path,
    repository: str,
    private: bool,
    revision: str | None,
    create_pr: bool,
    overwrite: bool,
    skip_load: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check, push, and say where it is."""
    from ..publish import push as pushing
    from ..publish.target import Target

    silent = quiet or as_json or not sys.stderr.isatty()
    with (
        ends_with_failure(context, as_json=as_json),
        pushing.quiet(show_progress=not silent),
    ):
        target = Target(repository, private or None, revision, create_pr, overwrite)
        api = pushing.open_hub()
        if not dry_run:
            pushing.name_card(folder.expanduser(), target)
        prepared = pushing.prepare(api, folder.expanduser(), target, loads=not skip_load)
        if dry_run:
            show_prepared(prepared, as_json=as_json)
            return
        show_pushed(pushing.send(api, prepared), as_json=as_json, quiet=quiet)


def show_prepared(prepared: Prepared, *, as_json: bool) -> None:
    """What a push would do."""
    made, target = prepared.changes, prepared.target
    if as_json:
        told = {
            "status": "planned",
            "repository": target.repository,
            "revision": target.branch,
            "creates": not prepared.there.exists,
            "sends": {file.path: file.size for file in made.sent},
            "same": {file.path: file.size for file in made.same},
            "deletes": list(made.deleted),
            "notes": list(prepared.notes),
        }
        click.echo(json.dumps(told))
        return
    new = "" if prepared.there.exists else ", which is made"
    rows = [
        ("repository", f"{target.repository}{new}"),
        ("revision", "a pull request" if target.create_pr else target.branch),
        *(("sends", f"{file.path}   {size_of(file.size)}") for file in made.sent),
        *(("there", f"{file.path}   {size_of(file.size)}") for file in made.same),
        *(("removes", path) for path in made.deleted),
        ("in all", f"{len(made.sent)} files, {size_of(sum(f.size for f in made.sent))} to send"),
        *(("note", note) for note in prepared.notes),
    ]
    for name, value in rows:
        click.echo(click.style(f"{name:>12}  ", bold=True) + value)


def show_pushed(pushed: Pushed, *, as_json: bool, quiet: bool) -> None:
    """What a push has done."""
    if as_json:
        click.echo(json.dumps({"status": "done", **as_dict(pushed)}))
        return
    if quiet:
        return
    show_notes(pushed.notes)
    click.echo(summary(pushed))


def summary(pushed: Pushed) -> str:
    """One line on a push."""
    if not pushed.is_new:
        return f"all is there   {pushed.url}"
    files = "1 file" if pushed.files == 1 else f"{pushed.files} files"
    return f"pushed {files}, {size_of(pushed.bytes)}   {pushed.url}"


def as_dict(pushed: Pushed) -> dict[str, Any]:
    """A push for scripts."""
    return {**asdict(pushed), "notes": list(pushed.notes)}


def main() -> None:
    """Entry point of `boom-push`."""
    run(push)
