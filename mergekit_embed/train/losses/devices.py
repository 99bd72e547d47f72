"""The rows of all processes together.

The gradient of what is gathered is the sum of what every process sends back. So when each process
takes the mean over its own anchors, or computes the same loss of the whole batch, the parameters'
gradients, averaged by DistributedDataParallel, are those of the whole batch's loss.
Every process must have the same number of rows.
"""

from __future__ import annotations

from collections.abc import Callable

from sentence_transformers.util import all_gather_with_grad, get_rank, is_dist_initialized
from torch import Tensor


def gather(values: Tensor) -> Tensor:
    """The rows of all processes, in the processes' order: (n, ...) -> (world n, ...)."""
    if not is_dist_initialized():
        return values
    gathered = all_gather_with_grad(values.contiguous())
    if gathered.requires_grad:
        # With gloo, torch sends a strided gradient back with its numbers in the wrong places.
        hook: Callable[[Callable[[Tensor], Tensor]], object] = gathered.register_hook
        hook(Tensor.contiguous)
    return gathered


def first_row(rows: int) -> int:
    """Where this process's rows begin among those gathered; `rows` is how many each has."""
    return int(get_rank()) * rows
