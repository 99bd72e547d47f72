"""`boom lineage`: what a model was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from .console import ends_with_failure, printable
from .options import SETTINGS, json_option, markdown_help

if TYPE_CHECKING:
    from rich.tree import Tree

    from ..publish.lineage_tree import Branch

HELP = """Show what the model in DIR was made from, as a tree.

Every merged model carries `merge_lineage.json`: its recipe, and what is known of the models that it
was merged from, of those that these were merged from, and of how members were trained. DIR may also
be a member that `boom-train` has trained, the folder of a training, or any model.

```sh
boom lineage out/merged
boom-merge out/merged/merge_lineage.json -o again   # the same merge, and the same bytes
```
"""


@click.command(
    help=HELP,
    epilog="Exit codes: 0 done; 1 there is no model, or what lies beside it cannot be read.",
    context_settings=SETTINGS,
)
@markdown_help
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def lineage(context: click.Context, folder: Path, as_json: bool) -> None:
    """Print the tree, or all that is known of it as JSON."""
    from ..publish.lineage import find_lineage
    from ..publish.lineage_tree import tree_of

    with ends_with_failure(context, as_json=as_json):
        found = tree_of(folder)
        if as_json:
            told = find_lineage(folder)
            said = {"tree": found.as_dict(), "lineage": told.content if told else None}
            click.echo(json.dumps(said))
            return
        _show(found)


def _show(found: Branch) -> None:
    import sys

    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    Console(file=sys.stdout, width=width, highlight=False).print(_tree(found))


def _tree(branch: Branch) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    label = Text(printable(branch.name), style="bold")
    facts = [fact for fact in (branch.role, *branch.facts) if fact and fact != "member"]
    if facts:
        label.append(f"   {printable(', '.join(facts))}", style="not bold")
    tree = Tree(label)
    for inner in branch.branches:
        tree.children.append(_tree(inner))
    return tree
