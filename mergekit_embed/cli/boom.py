"""`boom`: the umbrella over all commands."""

from __future__ import annotations

import importlib

import rich_click as click

from .. import __version__
from .console import run
from .options import SETTINGS, markdown_help

COMMANDS = (
    "train",
    "inspect",
    "search",
    "merge",
    "eval",
    "push",
    "extract-lora",
    "stats",
    "verify",
    "lineage",
    "compile",
    "schema",
)
"""Every command, in the order of a user's way; its module has the same name, with `_` for `-`."""


class LazyGroup(click.RichGroup):
    """A group whose commands are imported when they are used, so that `boom --help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See `click.Group`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command = getattr(importlib.import_module(f".{name}", __package__), name)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=LazyGroup,
    context_settings=SETTINGS,
    epilog='Shell completion: `eval "$(_BOOM_COMPLETE=bash_source boom)"` (or zsh, fish).',
)
@markdown_help
@click.version_option(__version__, prog_name="boom")
def boom() -> None:
    """Merge text-embedding models.

    Train members on parts of your data with `boom train`, or take models that you have. Write a
    recipe, look at its plan with `boom merge --dry-run`, and merge. Compare what you have with
    `boom eval`.
    """


def main() -> None:
    """Entry point of `boom`."""
    run(boom)
