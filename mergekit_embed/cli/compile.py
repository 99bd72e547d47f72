"""`boom compile`."""

from __future__ import annotations

import time

import rich_click as click

from ..errors import UsageError
from ..kernels import has_numba
from .console import duration_of, failure
from .options import SETTINGS


@click.command(name="compile", context_settings=SETTINGS)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.pass_context
def compile(context: click.Context, quiet: bool) -> None:
    """Compile the fast kernels for this machine, once.

    Numba keeps them on disk. Without this, the first large merge compiles what it needs, and small
    merges, which that would make slower, go through torch.
    """
    if not has_numba():
        error = UsageError("numba is not there; run `pip install 'mergekit_embed[fast]'`")
        failure(error, as_json=False)
        context.exit(error.exit_code)
    from ..kernels.compilation import compile_all

    started = time.perf_counter()
    folder = compile_all(lambda name: None if quiet else click.echo(f"compiling {name}", err=True))
    if not quiet:
        click.echo(f"compiled into {folder}   {duration_of(time.perf_counter() - started)}")
