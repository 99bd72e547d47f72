"""Ctrl-C and a polite kill, put off to the end of the step that is running."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Interrupt:
    """Whether somebody has asked for the end."""

    asked: bool = False


@contextmanager
def put_off(interrupt: Interrupt, say: Callable[[str], None]) -> Iterator[None]:
    """Within the block a first signal is remembered, and a second interrupts at once.

    Only the main thread is sent signals; in others nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def remember(number: int, frame: object) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True
        say("stopping after this step, with a checkpoint; once more to stop at once")

    before = {number: signal.signal(number, remember) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
