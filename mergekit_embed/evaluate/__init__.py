"""Benchmarks and local tasks: comparing models side by side.

`evaluate(["base", "out/merged", "recipe.yaml"], ["dev/sts", "NanoBEIR"])` is what `boom-eval` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from .compare import Comparison
    from .progress import Progress


def evaluate(
    models: Sequence[str],
    tasks: Sequence[str],
    *,
    in_domain: Sequence[str] = (),
    out_of_domain: Sequence[str] = (),
    results: str | Path = "results",
    dtype: str = "auto",
    max_length: int | None = None,
    prompts: Mapping[str, str] | None = None,
    dimensions: Sequence[int] = (),
    device: str = "auto",
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Comparison:
    """Measure models on tasks, but for what was measured before, and compare them.

    Args:
        models: folders, Hub ids or recipes, as `models.open_models` takes them; the first is what
            the others are compared with.
        tasks: of mteb, or folders, as `tasks.open_tasks` takes them.
        in_domain: tasks that the members were trained for.
        out_of_domain: tasks that they were not.
        results: the folder of finished results.
        dtype: of weights: "float32", "bfloat16"; "auto" for bfloat16 on a CUDA device alone.
        max_length: tokens of a text, those after it are cut off; None for the models' own limit.
        prompts: by `query`, `document`, or a task's name or type; before the models' own.
        dimensions: a row for each, of the first so many dimensions.
        device: "auto" (a CUDA device when there is one), "cpu", "cuda:1".
        batch_size: texts that are embedded at once.
        progress: told of tasks as they are done.

    Raises:
        UsageError: when mteb is missing, or a name is wrong.
        MergekitEmbedError: one of its kinds, when a model or a task is wrong or cannot be had.
    """
    require()
    from .encoder import Settings, chosen_dtype
    from .models import open_models
    from .run import Evaluating
    from .tasks import open_tasks

    return Evaluating(
        open_models(models),
        open_tasks(tasks, in_domain, out_of_domain),
        results=results,
        settings=Settings(chosen_dtype(dtype, device), dict(prompts or {}), max_length),
        dimensions=dimensions,
        device=device,
        batch_size=batch_size,
        progress=progress,
    ).run()


def require() -> None:
    """Make sure that there is what evaluates models.

    Raises:
        UsageError: when there is not, with what to install.
    """
    if find_spec("mteb") is None:
        raise UsageError("evaluating needs `pip install 'mergekit_embed[eval]'`")
