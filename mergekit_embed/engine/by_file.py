"""Running a plan one output file after the other, for who wants each as soon as it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..kernels import Kernels
from .plan import Plan
from .reader import Reader
from .run import Progress, Ran, Running, Sink, agenda_of, keep_notes


class FileSink(Sink, Protocol):
    """A sink that is told where files begin and end."""

    def order(self) -> Sequence[int]:
        """The files of the plan, in the order in which they are wanted."""

    def begin(self, file: int) -> None:
        """The jobs of this file come next."""

    def end(self, file: int) -> None:
        """Every wanted job of this file was handed over."""


def run_by_file(
    plan: Plan, kernels: Kernels, sink: FileSink, progress: Progress, keep: int | None = None
) -> Ran:
    """Combine what the sink wants, one file after the other; the bytes are those of `run`.

    Layers and models that have to be measured whole are measured once, before the first file. What
    several files have in common is read for each.

    Raises:
        MergekitEmbedError: what `run` raises, and what the sink does.
    """
    agenda = agenda_of([plan], [sink])
    with Reader(plan.inputs) as reader, kernels.session():
        running = Running(agenda, kernels, reader, progress, keep)
        keep_notes(agenda, [sink], running.said)
        progress.start(agenda.size, len(agenda.wanted))
        running.measure_groups()
        for file in sink.order():
            sink.begin(file)
            jobs = [(owner, job) for owner, job in agenda.wanted if job.file == file]
            for _ in running.merge([sink], jobs):
                pass
            sink.end(file)
        return Ran(reader.bytes_read, (running.said.summary(plan),))
