"""`boom schema`: the JSON Schema of recipes, for editors."""

from __future__ import annotations

import json

import rich_click as click

from .options import SETTINGS


@click.command(context_settings=SETTINGS)
def schema() -> None:
    """Print the JSON Schema of recipes.

    Save it, and name it in the first line of a recipe for completion and checks in your editor:
    `# yaml-language-server: $schema=recipe.schema.json`
    """
    from ..recipe.reference import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
