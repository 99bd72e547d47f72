"""`boom schema`: the JSON Schema of recipes and training plans, for editors."""

from __future__ import annotations

import json

import rich_click as click

from .options import SETTINGS


@click.command(context_settings=SETTINGS)
@click.argument("kind", type=click.Choice(["recipe", "plan"]), default="recipe")
def schema(kind: str) -> None:
    """Print the JSON Schema of recipes, or of training plans (`boom schema plan`).

    Save it, and name it in the first line of a file for completion and checks in your editor:
    `# yaml-language-server: $schema=recipe.schema.json`
    """
    if kind == "plan":
        from ..train.json_schema import json_schema
    else:
        from ..recipe.reference import json_schema
    click.echo(json.dumps(json_schema(), indent=2))
