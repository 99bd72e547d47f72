"""`boom stats`: what data-aware merges need to know of a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from .console import duration_of, ends_with_failure, show_notes, size_of
from .options import SETTINGS, device_option, json_option, markdown_help

if TYPE_CHECKING:
    from ..statistics import Collected
    from ..statistics.progress import Progress

HELP = """Measure MODEL on a probe set, for the merge methods `fisher` and `regmean`.

`regmean` wants the **Gram matrices** of what goes into each linear layer; texts are all it takes, a
few hundred are plenty. `fisher` wants the **Fisher**: squared gradients of the loss that the model
is trained with. Measure every member, each on the data that it was trained for:

```sh
boom stats ./bert-legal --data legal.jsonl -o stats/legal
boom stats ./bert-medical --data medical.jsonl -o stats/medical
```

and name the folders in the recipe, beside the models:

```yaml
merge_method: regmean
models:
  - {model: ./bert-legal, statistics: stats/legal}
  - {model: ./bert-medical, statistics: stats/medical}
```

Each line of FILE is a JSON object:

- `{"query": "...", "pos": ["..."], "neg": ["..."]}`: a contrastive loss with in-batch negatives, of
  the first `pos` and all `neg`
- `{"anchor": "...", "positive": "...", "negative": "..."}`: the same
- `{"sentence1": "...", "sentence2": "...", "score": 0.8}`: CoSENT
- `{"text": "..."}`, perhaps with a `"label"`: for the Gram matrices alone

Queries and documents get the prompts that the model has for them.
"""

EPILOG = """A Gram matrix has the square of a layer's inputs: of BERT base, 0.6 GB in all, and twice
as much while it is measured. The Fisher is as large as the model in float32."""


@click.command(
    name="stats",
    help=HELP,
    epilog=EPILOG,
    context_settings=SETTINGS,
)
@markdown_help
@click.argument("model")
@click.option(
    "-d",
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    multiple=True,
    required=True,
    help="JSON Lines; may be given several times.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="The folder to write.",
)
@click.option("--fisher/--no-fisher", default=True, show_default=True, help="Measure the Fisher.")
@click.option(
    "--gram/--no-gram", default=True, show_default=True, help="Measure the Gram matrices."
)
@click.option(
    "--max-examples",
    type=click.IntRange(min=1),
    metavar="N",
    help="Use N rows, drawn at random. Default: all.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Texts that are run at once; for the Fisher, examples that are compared with each other, "
    "as in training.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    metavar="N",
    help="Cut texts to N tokens. Default, and most: the model's own limit.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=0.02,
    show_default=True,
    help="Of the losses.",
)
@device_option("Where to run the model")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the order of the rows.",
)
@click.option("--overwrite", is_flag=True, help="Replace a folder of statistics, whole.")
@json_option
@click.pass_context
def stats(
    context: click.Context,
    /,
    model: str,
    data: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure, and say what was measured."""
    from ..statistics import Options, collect_statistics

    with ends_with_failure(context, as_json=as_json), _shown() as progress:
        done = collect_statistics(
            model, data, output, Options(**options), overwrite=overwrite, progress=progress
        )
    if as_json:
        click.echo(json.dumps(_as_dict(done)))
    else:
        _show(done)


def _as_dict(done: Collected) -> dict[str, object]:
    return {
        "status": "done",
        "output": str(done.path),
        **done.summary,
        "bytes_written": done.bytes_written,
        "seconds": round(done.seconds, 3),
        "notes": list(done.notes),
    }


def _show(done: Collected) -> None:
    show_notes(done.notes)
    gram, fisher = done.summary.get("gram"), done.summary.get("fisher")
    measured = []
    if gram is not None:
        measured.append(f"Gram matrices on {gram['tokens']} tokens of {gram['texts']} texts")
    if fisher is not None:
        rows, batches = fisher["examples"], fisher["batches"]
        measured.append(f"Fisher on {rows} examples in {batches} batches")
    told = f"{size_of(done.bytes_written)}, {duration_of(done.seconds)}"
    click.echo(f"measured {' and '.join(measured)}   {told}")
    click.echo(f"statistics: {json.dumps(str(done.path), ensure_ascii=False)}")


class _Bar:
    """Progress as a bar for every pass."""

    def __init__(self, bar: Any):
        self._bar = bar
        self._task: Any = None

    def start(self, what: str, total: int) -> None:
        """See `Progress.start`."""
        self._task = self._bar.add_task(what, total=total)

    def advance(self, count: int) -> None:
        """See `Progress.advance`."""
        self._bar.advance(self._task, count)


@contextmanager
def _shown() -> Iterator[Progress | None]:
    """Bars on a terminal, on standard error; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bar(bars)
