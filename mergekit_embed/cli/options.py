"""What the commands have in common where they are declared: their help, and options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

Command = TypeVar("Command", bound=Callable[..., Any])

SETTINGS = {"help_option_names": ["-h", "--help"]}
"""Of every command."""

markdown_help = click.rich_config(
    help_config=click.RichHelpConfiguration(text_markup="markdown", width=96)
)
"""For a command whose help is written in Markdown."""

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on standard output."
)


report_option = click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page about it (HTML with pictures, which needs nothing but itself).",
)
"""For commands whose result has a page."""


def device_option(what: str = "Where to compute") -> Callable[[Command], Command]:
    """`--device`, with what happens there."""
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="DEVICE",
        help=f"{what}: `auto` (a CUDA device when there is one), `cpu`, `cuda`, `cuda:1`.",
    )
