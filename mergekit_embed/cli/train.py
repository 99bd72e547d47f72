"""`boom-train`: train members on parts of the data, ready to be merged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from .. import __version__
from ..errors import MergekitEmbedError, UsageError
from . import cards
from .console import ends_with_failure, run
from .options import SETTINGS, markdown_help, report_option
from .training import as_dict, is_first, one_voice, shown_training, summary

if TYPE_CHECKING:
    from ..train.bags import Member
    from ..train.budget import Budget, Cost, Count
    from ..train.data import Dataset
    from ..train.specs import TrainingPlan

HELP = """Train members as a PLAN says, and write the recipe that merges them.

A plan is a YAML file. This one fine-tunes five members of one base, each on a random part of two
data sets, as BOOM does; what it leaves out has the paper's values:

```yaml
model: ./bert-base
data:
  questions: {path: questions.jsonl, kind: retrieval}
  reviews: {path: reviews.jsonl, kind: classification, batch_size: 64}
members: [20, 40, 60, 80, 100]
```

```sh
boom-train plan.yaml --dry-run             # rows, steps and tokens of every member
boom-train plan.yaml --list-rows bag-20    # which rows a member is trained on
boom-train plan.yaml -o out                # out/members/bag-20, ..., out/merge.yaml
boom-train plan.yaml -o out --merge        # and out/merged
torchrun --nproc-per-node 4 --no-python boom-train plan.yaml -o out
boom-train update --model out/merged --new more.jsonl    # see `boom-train update --help`
```

Each line of a data file is a JSON object:

- `{"query": "...", "pos": ["..."], "neg": ["..."]}` or `{"anchor": "...", "positive": "..."}`
- `{"text": "...", "label": "..."}`
- `{"sentence1": "...", "sentence2": "...", "score": 0.8}`
"""

EPILOG = """Exit codes: 0 done; 2 the plan, its data or the command line is wrong, nothing was
touched; 1 anything else. A training that was interrupted or killed continues with the same
command, and finished members are not trained again. All keys of a plan, and what they mean:
docs/training.md."""


class PlanOrUpdate(click.RichCommand):
    """The command of plans; with `update` as its first word that of updates.

    No group of two commands, as a plan needs no word before it. `./update` is a plan of that name.
    """

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """See `click.Command`."""
        if args[:1] == ["update"]:
            from .train_update import update

            return update.make_context(f"{info_name} update", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """See `click.Command`."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(
    name="train",
    cls=PlanOrUpdate,
    help=HELP,
    epilog=EPILOG,
    context_settings=SETTINGS,
)
@markdown_help
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder to write. Default: the plan's `output`, else `trained/<plan name>`.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check plan and data, print what training would take (rows, batches, steps, tokens), and "
    "stop.",
)
@click.option(
    "--list-rows",
    metavar="MEMBER",
    help="Print every row that a member is trained on, as data set and `file:line`, and stop.",
)
@click.option(
    "--mine",
    is_flag=True,
    help="Mine the hard negatives that the plan asks for, and stop; training finds them then.",
)
@click.option("--merge", is_flag=True, help="Merge the members too, into `merged` in the folder.")
@click.option(
    "--restart", is_flag=True, help="Train all anew, also what is finished or was interrupted."
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where to train: here, or each member on a machine of a Ray cluster, all of which see "
    "model, data and output on the same storage.",
)
@click.option(
    "--ray-address",
    metavar="HOST:PORT",
    help="The head of the Ray cluster. Default: the cluster that this machine belongs to, else "
    "this machine alone.",
)
@report_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="One JSON object on standard output; with `--list-rows` one a row.",
)
@click.version_option(__version__, prog_name="boom-train")
@click.pass_context
def train(
    context: click.Context,
    plan: Path,
    output: Path | None,
    dry_run: bool,
    list_rows: str | None,
    mine: bool,
    merge: bool,
    restart: bool,
    executor: str,
    ray_address: str | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Check the plan and its data, then show what is asked for, or train."""
    from ..train.plan import load

    with one_voice(), ends_with_failure(context, as_json=as_json):
        loaded = load(plan)
        if list_rows is not None:
            _list_rows(loaded, list_rows, as_json=as_json)
        elif dry_run:
            _show_budget(loaded, output, as_json=as_json)
        elif mine:
            _mine(loaded, as_json=as_json)
        else:
            run_as: dict[str, Any] = {"merge": merge, "restart": restart}
            run_as |= {"executor": executor, "ray_address": ray_address}
            _train(loaded, output, run_as, report, as_json=as_json)


def _train(
    plan: TrainingPlan,
    output: Path | None,
    run_as: dict[str, Any],
    report: Path | None,
    *,
    as_json: bool,
) -> None:
    from ..train.run import train as train_members

    if report is not None:
        from ..report import require

        require()
    first = is_first()
    with shown_training(quiet=as_json or not first) as progress:
        result = train_members(plan, output, progress=progress, **run_as)
    if not first:
        return
    cards.write(one.path for one in result.merged)
    if report is not None:
        from ..train.page import write_page

        write_page(report, result.path)
    if as_json:
        click.echo(json.dumps({"status": "done", **as_dict(result)}))
        return
    for line in summary(result):
        click.echo(line)


def _mine(plan: TrainingPlan, *, as_json: bool) -> None:
    from ..train.data import open_datasets
    from ..train.mining import mine_all

    with shown_training(quiet=as_json) as progress:
        say = progress.note if progress else None
        found = mine_all(open_datasets(plan), plan, say)
    told = {
        name: {"rows": len(dataset), "negatives": dataset.negatives, "fewer": dataset.short}
        for name, dataset in found.items()
        if dataset.mined is not None
    }
    if as_json:
        click.echo(json.dumps({"status": "mined", "data": told}))
        return
    for name, one in told.items():
        fewer = f", {one['fewer']:,} rows have fewer" if one["fewer"] else ""
        click.echo(f"{name}   {one['rows']:,} rows, {one['negatives']} negatives a row{fewer}")
    if not told:
        click.echo("no data set of the plan has `mine`")


def _drawn(plan: TrainingPlan) -> tuple[dict[str, Dataset], tuple[Member, ...]]:
    """The data sets of a plan and its members."""
    from ..train.bags import members
    from ..train.data import open_datasets

    datasets = open_datasets(plan)
    return datasets, members(plan, datasets)


def _list_rows(plan: TrainingPlan, name: str, *, as_json: bool) -> None:
    names = [member.name for member in plan.members]
    if name not in names:
        from ..recipe.shape import unknown

        raise UsageError(f"{name}: {unknown('member', name, names)}")
    datasets, found = _drawn(plan)
    member = next(member for member in found if member.name == name)
    for line in _lines(member, datasets, as_json=as_json):
        click.echo(line)


def _lines(member: Member, datasets: Mapping[str, Dataset], *, as_json: bool) -> Iterator[str]:
    for name, numbers in member.rows.items():
        for number in numbers:
            place = datasets[name].place(int(number))
            if as_json:
                row = {"member": member.name, "dataset": name, "row": int(number), "place": place}
                yield json.dumps(row, ensure_ascii=False)
            else:
                yield f"{name}\t{place}"


def _counter(plan: TrainingPlan) -> tuple[Count | None, str | None]:
    """What counts tokens; where there is nothing that can, why."""
    from ..train.tokens import token_counter

    try:
        return token_counter(plan.model, plan.source.folders, plan.training.max_length), None
    except MergekitEmbedError as error:
        return None, str(error)


def _show_budget(plan: TrainingPlan, output: Path | None, *, as_json: bool) -> None:
    from ..train.budget import as_dict, budget
    from ..train.merging import merge_recipe
    from ..train.mining import mined_before

    drawn, found = _drawn(plan)
    datasets = {name: mined_before(dataset, plan) for name, dataset in drawn.items()}
    count, why_not = _counter(plan)
    planned = budget(plan, datasets, found, count)
    notes = (*planned.notes, *([f"tokens are not counted: {why_not}"] if why_not else []))
    target = output or plan.target
    if not as_json:
        _show(plan, target, datasets, planned, notes)
        return
    rows = {member.name: member.total for member in found}
    facts: dict[str, Any] = {
        "status": "planned",
        "plan": plan.source.shown,
        "output": str(target),
        "model": plan.model,
        "schedule": plan.order.name,
        "data": {
            name: {
                "rows": len(dataset),
                "bad_rows": dataset.bad_count,
                "negatives": dataset.negatives,
                "digest": dataset.digest,
            }
            for name, dataset in datasets.items()
        },
        **as_dict(planned),
        "notes": list(notes),
        "merge": merge_recipe(plan, rows, plan.model),
    }
    click.echo(json.dumps(facts))


def _show(
    plan: TrainingPlan,
    target: Path,
    datasets: Mapping[str, Dataset],
    planned: Budget,
    notes: tuple[str, ...],
) -> None:
    rows = [
        ("plan", plan.source.shown),
        ("model", plan.model),
        ("output", str(target)),
        ("schedule", plan.order.name),
        *(("data", _described(dataset)) for dataset in datasets.values()),
    ]
    for cost in planned.costs:
        rows.append(("member", f"{cost.name}   {_total(cost)}"))
        for name, share in cost.shares.items():
            size = datasets[name].spec.batch_size
            batches = f"{share.batches:,} batch{'' if share.batches == 1 else 'es'}"
            told = f"{share.rows:,} rows, {batches} of {size}"
            rest = f", {share.left_out:,} rows left over" if share.left_out else ""
            rows.append(("", f"{name}: {told}{rest}"))
    rows.append(("in all", _spent(planned.steps, planned.tokens)))
    if planned.sampled:
        from ..train.budget import SAMPLE

        listed = ", ".join(sorted(planned.sampled))
        rows.append(("estimated", f"the tokens of {listed}, from {SAMPLE} rows of each"))
    rows += [("note", note) for note in notes]
    for label, value in rows:
        click.echo(click.style(f"{label:>12}  ", bold=True) + value)


def _described(dataset: Dataset) -> str:
    spec = dataset.spec
    negatives = f", {dataset.negatives} negatives a row" if dataset.negatives else ""
    return f"{spec.name}   {len(dataset):,} rows, {spec.kind}, {spec.loss.name}{negatives}"


def _total(cost: Cost) -> str:
    epochs = f"{cost.epochs} epoch{'s' if cost.epochs > 1 else ''}"
    return f"{epochs}, {cost.examples:,} rows, {_spent(cost.steps, cost.tokens)}"


def _spent(steps: int, tokens: int | None) -> str:
    counted = "" if tokens is None else f", {tokens:,} tokens"
    return f"{steps:,} steps{counted}"


def main() -> None:
    """Entry point of `boom-train`."""
    run(train)
