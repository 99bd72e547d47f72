"""The executor that is always there: threads of this process."""

from __future__ import annotations

from collections.abc import Sequence

from ...kernels import open_kernels
from ..destination import Destination
from ..plan import Plan
from ..run import Progress, Ran, run


class Local:
    """See `Executor`."""

    def __init__(self, device: str, *, small: bool, keep: int | None):
        """Compute on a device: see `Wanted`.

        Raises:
            UsageError: when there is no such device.
        """
        self._kernels, self._keep = open_kernels(device, small=small), keep

    def run(
        self, plans: Sequence[Plan], destinations: Sequence[Destination], progress: Progress
    ) -> Ran:
        """See `Executor.run`."""
        return run(plans, self._kernels, destinations, progress, self._keep)
