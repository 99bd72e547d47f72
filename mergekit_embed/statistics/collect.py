"""The whole way: probe set, model, passes, folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.statistics import FILES
from ..errors import UsageError
from .folder import check_free, new_folder, write_summary, write_tensors
from .progress import Progress, Silent
from .rows import ProbeSet, read_rows

if TYPE_CHECKING:
    from .embedder import Embedder


@dataclass(frozen=True)
class Options:
    """What is measured, and how.

    Attributes:
        fisher: measure the diagonal Fisher; `gram`: measure the Gram matrices.
        max_examples: use so many rows, drawn with the seed; None for all.
        batch_size: texts that are run at once for the Gram matrices, where it does not show in the
            result; examples that are compared with each other for the Fisher, where it does.
        max_length: tokens of a text, at most the model's own limit; None for that.
        device: "auto" (a CUDA device when there is one), "cpu", "cuda", "cuda:1".
        seed: of the order of the rows.
        temperature: of the losses, above 0.
    """

    fisher: bool = True
    gram: bool = True
    max_examples: int | None = None
    batch_size: int = 32
    max_length: int | None = None
    device: str = "auto"
    seed: int = 0
    temperature: float = 0.02

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: naming the option.
        """
        if not (self.fisher or self.gram):
            raise UsageError("neither Fisher nor Gram matrices are wanted; leave one of them on")
        for name in ("max_examples", "batch_size", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
        if not self.temperature > 0:
            raise UsageError(f"temperature must be above 0, not {self.temperature}")


@dataclass(frozen=True)
class Collected:
    """What was measured. `summary` is the content of statistics.json."""

    path: Path
    summary: Mapping[str, Any]
    bytes_written: int
    seconds: float
    notes: tuple[str, ...]


def collect_statistics(
    model: str | Path,
    data: Sequence[str | Path],
    output: str | Path,
    options: Options | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Collected:
    """Measure a model on a probe set, and write a folder of statistics for `fisher` and `regmean`.

    Args:
        model: a folder or a Hub id.
        data: files of JSON Lines; see `rows.SHAPES`.
        output: the folder to write.
        options: what is measured, and how.
        overwrite: replace a folder of statistics, whole and only at the very end.
        progress: told of texts and examples as they are done.

    Raises:
        UsageError: when an option makes no sense, or sentence-transformers is missing.
        DataError: with every row that is wrong, or when the rows give no gradients.
        NotFoundError, CheckpointError: when the model is not there, broken, or cannot be loaded.
        NonFiniteError: when something measured is not finite.
        OutputExistsError, OutputError: when the output is taken or cannot be written.
    """
    started = time.perf_counter()
    options = options or Options()
    options.check()
    target = Path(output).expanduser()
    check_free(target, overwrite=overwrite)
    probe = read_rows([Path(file) for file in data], options.seed, options.max_examples)
    from .embedder import Embedder

    embedder = Embedder(str(model), options.device, options.max_length)
    with new_folder(target, overwrite=overwrite) as folder:
        measuring = _Measuring(embedder, probe, options, folder, progress or Silent())
        summary = measuring.run(data)
        size = measuring.bytes_written + write_summary(folder, summary)
    seconds = time.perf_counter() - started
    return Collected(target, summary, size, seconds, tuple(measuring.notes))


class _Measuring:
    """A measurement on its way into a folder."""

    def __init__(
        self,
        embedder: Embedder,
        probe: ProbeSet,
        options: Options,
        folder: Path,
        progress: Progress,
    ):
        self.embedder, self.probe, self.options = embedder, probe, options
        self.folder, self.progress = folder, progress
        self.bytes_written = 0
        self.notes: list[str] = []

    def run(self, data: Sequence[str | Path]) -> dict[str, Any]:
        """Measure and write; what statistics.json says."""
        label, options = self.embedder.checkpoint.label, self.options
        if self.embedder.unknown:
            self._note("are not in the model's files under such names", self.embedder.unknown)
        if not self.embedder.checkpoint.modules:
            self.notes.append(f"{label} has no modules.json; its texts are pooled by the mean")
        summary: dict[str, Any] = {
            "model": label,
            "data": {
                "files": [str(file) for file in data],
                "sha256": self.probe.digest,
                "rows": self.probe.found,
                "used": len(self.probe.rows),
            },
            "batch_size": options.batch_size,
            "max_length": self.embedder.model.max_seq_length,
            "seed": options.seed,
        }
        if options.gram:
            summary["gram"] = self._gram(summary)
        if options.fisher:
            summary["fisher"] = self._fisher(summary)
        return summary

    def _metadata(self, summary: Mapping[str, Any], **counts: int) -> dict[str, str]:
        """What the header of a file says."""
        told = {
            "model": summary["model"],
            "data_sha256": self.probe.digest,
            "seed": self.options.seed,
            **counts,
        }
        return {name: str(value) for name, value in told.items()}

    def _gram(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        from .gram import GramSums

        scratch = self.folder / "sums"
        scratch.mkdir()
        sums = GramSums(self.embedder, scratch)
        sums.measure(self.probe.rows, self.options.batch_size, self.progress)
        self.bytes_written += write_tensors(
            self.folder / FILES["gram"],
            sums.shapes,
            sums.taken,
            self._metadata(summary, texts=sums.texts, tokens=sums.tokens),
        )
        scratch.rmdir()
        if sums.unused:
            self._note("belong to layers that no text goes through", sums.unused)
        return {
            "texts": sums.texts,
            "tokens": sums.tokens,
            "transposed": sorted(sums.transposed & sums.shapes.keys()),
            "unused": sums.unused,
        }

    def _fisher(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        from .fisher import FisherSums

        sums = FisherSums(self.embedder, self.options.temperature, {})
        sums.measure(self.probe.rows, self.options.batch_size, self.progress)
        self.bytes_written += write_tensors(
            self.folder / FILES["fisher"],
            {name: tuple(total.shape) for name, total in sums.sums.items()},
            lambda name: sums.sums[name].cpu().numpy(),
            self._metadata(summary, examples=sums.examples, batches=sums.batches),
        )
        if sums.unused:
            self._note("have no gradient", sums.unused)
        if sums.left_out:
            self.notes.append(
                f"{sums.left_out} rows have no part in the Fisher: plain texts, or alone in a batch"
            )
        return {
            "examples": sums.examples,
            "batches": sums.batches,
            "left_out": sums.left_out,
            "temperature": self.options.temperature,
            "norm": sums.norm,
            "unused": sums.unused,
        }

    def _note(self, what: str, names: Sequence[str]) -> None:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        self.notes.append(
            f"{', '.join(names[:3])}{more} {what}; they will be merged by their weighted mean"
        )
