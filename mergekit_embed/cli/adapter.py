"""How the commands speak of adapters: `boom-merge` with `adapter_output`, `boom extract-lora`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import rich_click as click

from . import cards
from .console import duration_of, show_notes, shown_progress, size_of

if TYPE_CHECKING:
    from ..engine.adapter_plan import AdapterPlan, Target
    from ..engine.adapters import AdapterResult
    from ..engine.extract import Part


def run_one(planned: AdapterPlan, *, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Run a plan of an adapter, or only print it."""
    if dry_run:
        _show_plan(planned, as_json=as_json)
        planned.check_disk()
        return
    from ..engine.adapters import merge_adapters

    with shown_progress(quiet=quiet or as_json) as progress:
        result = merge_adapters(planned, progress=progress)
    cards.write([result.path])
    if as_json:
        recipe = planned.recipe.source.shown
        click.echo(json.dumps({"status": "done", "recipe": recipe, **_as_dict(result)}))
    elif not quiet:
        _show(planned, result)


def show_parts(parts: Sequence[Part], kept: float) -> None:
    """A table of the tensors of an adapter, and what it keeps of each and in all."""
    width = max(len("tensor"), *(len(part.name) for part in parts))
    click.echo(click.style(f"{'tensor':<{width}}  {'as':<8}  rank     kept", bold=True))
    for part in parts:
        rank = str(part.rank or "")
        click.echo(f"{part.name:<{width}}  {part.form:<8}  {rank:>4}  {_percent(part.kept)}")
    click.echo(f"{'in all':<{width}}  {'':<8}  {'':>4}  {_percent(kept)}")


def _percent(share: float) -> str:
    return f"{100 * share:>5.1f} %"


def _show(planned: AdapterPlan, result: AdapterResult) -> None:
    if any(target.truncated for target in planned.targets):
        show_parts(result.parts, result.kept)
    show_notes(result.notes)
    adapters = "adapter" if result.members == 1 else "adapters"
    click.echo(
        f"merged {result.members} {adapters} into {result.path}   "
        f"{size_of(result.bytes_written)}, {duration_of(result.seconds)}, "
        f"peak {size_of(result.peak_memory)}, {_modules(planned)}"
    )
    base, folder = (_quoted(name) for name in (planned.members.base.label, str(result.path)))
    click.echo(f"PeftModel.from_pretrained({_loader(planned)}({base}), {folder})")
    click.echo(f"model: {_quoted(f'{planned.members.base.label}+{result.path}')}")


def _loader(planned: AdapterPlan) -> str:
    """What loads the model under whose names the adapter is stored."""
    first = planned.modules[0].touched.name
    return "SentenceTransformer" if first[:1].isdigit() else "AutoModel.from_pretrained"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _modules(planned: AdapterPlan) -> str:
    ranks = sorted({target.rank for target in planned.modules})
    spread = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    count = len(planned.modules)
    return f"{count} module{'s' if count > 1 else ''} of rank {spread}"


def _as_dict(result: AdapterResult) -> dict[str, Any]:
    return {
        "output": str(result.path),
        "members": result.members,
        "kept": result.kept,
        "tensors": [asdict(part) for part in result.parts],
        "seconds": round(result.seconds, 3),
        "bytes_read": result.bytes_read,
        "bytes_in": result.bytes_in,
        "bytes_written": result.bytes_written,
        "peak_memory": result.peak_memory,
        "notes": list(result.notes),
    }


def _show_plan(planned: AdapterPlan, *, as_json: bool) -> None:
    from ..engine.plan import free_space

    recipe = planned.recipe.source.shown

    modules, wholes = planned.modules, [t for t in planned.targets if t.whole]
    free = free_space(planned.output)
    if as_json:
        facts = {
            "output": str(planned.output),
            "method": planned.recipe.method.name,
            "members": list(planned.members.labels),
            "base": planned.members.base.label,
            "modules": {target.key: target.rank for target in modules},
            "whole": [target.key for target in wholes],
            "dtype": str(planned.dtype),
            "bytes_in": planned.bytes_in,
            "bytes_out": planned.bytes_out,
            "peak_memory": planned.peak_memory,
            "disk_needed": planned.bytes_out,
            "disk_free": free,
            "notes": list(planned.notes),
        }
        click.echo(json.dumps({"status": "planned", "recipe": recipe, **facts}))
        return
    rows = [
        ("recipe", recipe),
        ("method", planned.recipe.method.name),
        *(("member", label) for label in planned.members.labels),
        ("base", planned.members.base.label),
        *(("module", f"{t.key}   rank {_ranks(t)}") for t in modules),
        *(
            ("whole", f"{t.key}{', unless it equals the base' if t.may_be_copy else ''}")
            for t in wholes
        ),
        ("reads", size_of(planned.bytes_in)),
        ("writes", f"{planned.output}   {size_of(planned.bytes_out)} of {planned.dtype}"),
        ("memory", f"at most {size_of(planned.peak_memory)}"),
        ("disk", f"{size_of(planned.bytes_out)} needed, {size_of(free)} free"),
        *(("note", note) for note in planned.notes),
    ]
    for name, value in rows:
        click.echo(click.style(f"{name:>12}  ", bold=True) + value)


def _ranks(target: Target) -> str:
    """The rank of the result, and of the members' factors that it is made of."""
    own = [str(update.rank) if update else "0" for update in target.touched.updates]
    sign = "of" if target.truncated else "="
    return f"{target.rank} {sign} {' + '.join(own)}"
