"""Torch's kernels beside Numba's, imported when needed: softmax, matrix products, solvers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .torch_backend import TorchKernels


class Beside:
    """The torch kernels on the CPU, once somebody asks for them, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: TorchKernels | None = None
        self._session: ExitStack | None = None

    @property
    def torch(self) -> TorchKernels:
        """The kernels; within a session, the first use begins a session of theirs."""
        with self._lock:
            if self._opened is None:
                from .torch_backend import TorchKernels, choose_device

                self._opened = TorchKernels(choose_device("cpu"))
                if self._session is not None:
                    self._session.enter_context(self._opened.session())
            return self._opened

    @contextmanager
    def session(self) -> Iterator[None]:
        """See `Kernels.session`: there is nothing to set until torch is asked for."""
        with ExitStack() as session:
            self._opened, self._session = None, session
            try:
                yield
            finally:
                self._session = None
