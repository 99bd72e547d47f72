"""`boom-eval`: compare models on benchmarks and local tasks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from .. import __version__
from .console import ends_with_failure, printable, run
from .evaluated import as_dict, show_found, show_units, write_files
from .evaluating import shown_evaluation
from .options import SETTINGS, device_option, json_option, markdown_help

if TYPE_CHECKING:
    from ..evaluate.compare import Comparison
    from ..evaluate.examine import Health
    from ..evaluate.gate import Gate, Miss
    from ..evaluate.models import Model
    from ..evaluate.run import Opened
    from ..evaluate.tasks import Task

HELP = """Compare MODELs side by side, on benchmarks of MTEB and on tasks of your own.

A model is a folder, a Hub id, either of them with `+ADAPTER`, or a recipe, which is merged straight
into memory. `NAME=MODEL` gives it a name. The first is what the others are compared with.

```sh
boom-eval base out/merged --tasks dev               # folders of tasks
boom-eval base out/merged --tasks "MTEB(eng, v2)"   # or NanoBEIR, or STS12,BIOSSES
boom-eval base soup.yaml --tasks dev --gate "mean >= base - 0.2"
boom-eval base out/merged --tasks dev --health --html report.html
```

Finished results stay in `--results` and are not computed again, whatever a model's folder is
called: what counts is its hash.
"""

EPILOG = """Exit codes: 0 done; 2 the command line, a task or a recipe is wrong, nothing was run;
1 anything else, such as a model that misses a `--gate`. What was interrupted or killed continues
with the same command. Kinds of local tasks, and what every number means: docs/evaluation.md."""

COMMA = re.compile(r",(?![^(]*\))")
"""Between names, and not within `MTEB(eng, v2)`."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for beside models and tasks."""

    gates: tuple[Gate, ...]
    dry_run: bool
    with_health: bool
    health_texts: Path | None
    parents: tuple[str, ...]
    as_json: bool
    files: Mapping[str, Path | None]


def names_from(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Names that were given one by one or between commas, for an option."""
    parts = (part.strip() for value in values for part in COMMA.split(value))
    return tuple(part for part in parts if part)


def numbers_from(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[int, ...]:
    """Whole numbers above zero, each once, for an option.

    Raises:
        click.BadParameter: when one is none.
    """
    names = names_from(context, parameter, values)
    wrong = [name for name in names if not name.isdecimal() or int(name) < 1]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is no number of dimensions", context, parameter)
    return tuple(dict.fromkeys(map(int, names)))


def prompts_from(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Prompts by what they are for, for an option.

    Raises:
        click.BadParameter: when it is not said what one is for.
    """
    found = {}
    for value in values:
        name, equals, prompt = value.partition("=")
        if not equals or not name:
            told = f"{value!r} does not say for what; write query='search for: ' or document=..."
            raise click.BadParameter(told, context, parameter)
        found[name] = prompt
    return found


@click.command(name="eval", help=HELP, epilog=EPILOG, context_settings=SETTINGS)
@markdown_help
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--tasks",
    multiple=True,
    required=True,
    callback=names_from,
    metavar="TASKS",
    help="Benchmarks or tasks of mteb, folders of a task, or folders that hold some; several "
    "times, or with commas between.",
)
@click.option(
    "--in-domain",
    multiple=True,
    callback=names_from,
    metavar="TASKS",
    help="Tasks that the members were trained for; they get a mean of their own.",
)
@click.option(
    "--out-of-domain",
    multiple=True,
    callback=names_from,
    metavar="TASKS",
    help="Tasks that they were not trained for.",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    metavar="DIR",
    help="The folder of finished results, in the layout of mteb.",
)
@click.option(
    "--dimensions",
    multiple=True,
    callback=numbers_from,
    metavar="N,...",
    help="A row for each: the first N dimensions of every vector (Matryoshka).",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    callback=prompts_from,
    metavar="FOR=TEXT",
    help="What is put before texts, in place of a model's own prompt; FOR is query, document, a "
    "task, a type of task, or TASK-query.",
)
@click.option(
    "--gate",
    "gates",
    multiple=True,
    metavar="GATE",
    help='Exit with 1 where a model misses this: "mean >= base - 0.2", "task:sts > 80".',
)
@click.option("--health", "with_health", is_flag=True, help="Measure embeddings without labels.")
@click.option(
    "--health-texts",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The texts for that, one a line. Default: those of the local tasks.",
)
@click.option(
    "--parent",
    "parents",
    multiple=True,
    callback=names_from,
    metavar="MODEL",
    help="A model that drift is measured from. Default: the members of a recipe.",
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a line a model, a column a task.",
)
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the tables, for a model card.",
)
@click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write one page with all of it, that needs nothing but a browser.",
)
@click.option(
    "--update-card",
    is_flag=True,
    help="Put the scores of every model that is a folder into its model card (README.md).",
)
@device_option("Where models run")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="The type they are loaded in; auto is bfloat16 on a CUDA device, else float32.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    metavar="N",
    help="Cut texts off after N tokens. Default: each model's own limit.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Texts that are embedded at once, those of like length together.",
)
@click.option(
    "--dry-run", is_flag=True, help="List what would run and what is there already, and stop."
)
@json_option
@click.version_option(__version__, prog_name="boom-eval")
@click.pass_context
def evaluate(
    context: click.Context, /, models: tuple[str, ...], as_json: bool, **told: Any
) -> None:
    """Open models and tasks, then show what there is to do, or do it and compare."""
    with ends_with_failure(context, as_json=as_json):
        asked = _asked(told, as_json)
        missed = _evaluate(models, asked, told)
        if missed:
            context.exit(1)


eval = evaluate
"""`boom eval`: a command has the name of its module."""


def _asked(told: Mapping[str, Any], as_json: bool) -> Asked:
    from ..evaluate import require
    from ..evaluate.gate import parse
    from ..report import require as require_charts

    gates = tuple(parse(text) for text in told["gates"])
    os.environ.setdefault("TQDM_DISABLE", "1")  # mteb's own bars; read when tqdm is imported
    require()
    if told["html_file"] is not None:
        require_charts()
    return Asked(
        gates=gates,
        dry_run=told["dry_run"],
        with_health=told["with_health"],
        health_texts=told["health_texts"],
        parents=told["parents"],
        as_json=as_json,
        files={kind: told[f"{kind}_file"] for kind in ("csv", "markdown", "html")},
    )


def _evaluate(models: tuple[str, ...], asked: Asked, told: Mapping[str, Any]) -> list[Miss]:
    """Do what is asked; the gates that were missed."""
    from ..evaluate.encoder import Settings, chosen_dtype
    from ..evaluate.gate import check, refuse_unknown
    from ..evaluate.models import open_models
    from ..evaluate.run import Evaluating
    from ..evaluate.tasks import open_tasks

    tasks = open_tasks(told["tasks"], told["in_domain"], told["out_of_domain"])
    opened = open_models(models)
    groups = {task.facts.group for task in tasks}
    labels = [model.name for model in opened]
    labels += [f"{name}:{size}" for name in labels for size in told["dimensions"]]
    refuse_unknown(list(asked.gates), labels, [task.name for task in tasks], groups)
    dtype = chosen_dtype(told["dtype"], told["device"])
    settings = Settings(dtype, told["prompts"], told["max_length"])
    look, examined = _examining(opened, tasks, asked, told["device"], settings.dtype)
    with shown_evaluation(quiet=asked.as_json or asked.dry_run) as progress:
        evaluating = Evaluating(
            opened,
            tasks,
            results=told["results"],
            settings=settings,
            dimensions=told["dimensions"],
            device=told["device"],
            batch_size=told["batch_size"],
            progress=progress,
            opened=look,
        )
        if asked.dry_run:
            show_units(evaluating.survey(), as_json=asked.as_json)
            return []
        comparison = evaluating.run()
    health = examined()
    missed = [miss for gate in asked.gates for miss in check(gate, comparison)]
    write_files(asked.files, comparison, health)
    cards = _update_cards(opened, comparison) if told["update_card"] else []
    if asked.as_json:
        click.echo(json.dumps(as_dict(comparison, health, missed if asked.gates else None)))
    else:
        show_found(comparison, health, missed, [*asked.files.values(), *cards])
    return missed


def _update_cards(models: Sequence[Model], comparison: Comparison) -> list[Path]:
    """Put the scores of models that are folders into their cards; of all dimensions, if measured.

    Raises:
        CheckpointError, OutputError: when a card cannot be read or written.
    """
    from ..evaluate.show import model_index
    from ..publish.card import update_card

    found = []
    for model in models:
        rows = [row for row in comparison.rows if row.model == model.name]
        row = next((one for one in rows if one.dimension is None), rows[0])
        if model.folder is not None:
            found.append(update_card(model.folder, model_index(comparison, row)))
    return found


def _examining(
    models: Sequence[Model], tasks: Sequence[Task], asked: Asked, device: str, dtype: str
) -> tuple[Opened | None, Callable[[], list[Health]]]:
    """What looks at models while they are open, and then tells their health.

    Texts and parents are opened now, so that what is wrong with them is said before anything runs.
    """
    if not asked.with_health:
        return None, list
    from ..evaluate.examine import Examination, sample_of
    from ..evaluate.models import open_parents

    folders = [task.folder for task in tasks if task.folder is not None]
    examination = Examination(sample_of(folders, asked.health_texts), device, dtype)
    families = [(model, open_parents(model, asked.parents)) for model in models]

    def examined() -> list[Health]:
        found = []
        for model, parents in families:
            if not asked.as_json:
                click.echo(printable(f"health of {model.name}"), err=True)
            found.append(examination.examine(model, parents))
        return found

    return examination.look, examined


def main() -> None:
    """Entry point of `boom-eval`."""
    run(evaluate)
