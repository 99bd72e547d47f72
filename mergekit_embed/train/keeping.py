"""What is kept of a run while it runs: weights that become members, and what goes on after a kill.

Weights lie as files in the member's working folder: after some percent of the steps, the best on a
dev task. The exponential mean lies in memory, and in checkpoints.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..engine.staging import sync, write_json
from ..errors import NonFiniteError
from .bags import part
from .checkpoints import PREFIX, prune, seal
from .interrupt import Interrupt
from .models import Weights, weights_of
from .processes import Processes
from .progress import Progress
from .specs import MemberSpec, TrainingPlan

SAVE_SECONDS = 300.0
"""Time between checkpoints where the plan does not say after how many steps one is made."""

BEAT = 8
"""Several processes agree on checkpoints and on stopping only after every so many steps."""

MEAN = "mean.safetensors"
KEPT = "kept.json"


@dataclass
class Kept:
    """What is known of a run besides its weights; continued runs have that of all their parts.

    Attributes:
        tokens: that went through the model.
        seconds: of training.
        averaged: how many steps the exponential mean is of.
        best_step: after which the dev task was best; 0 where none was evaluated.
        best_score: of the dev task then.
        stale: evaluations since then.
        evaluations: `{"step", "score"}` of each.
    """

    tokens: int = 0
    seconds: float = 0.0
    averaged: int = 0
    best_step: int = 0
    best_score: float | None = None
    stale: int = 0
    evaluations: list[dict[str, float]] = field(default_factory=list)


class Keeping(TrainerCallback):
    """Decides after every step what to keep, and whether to go on.

    Attributes:
        kept: what is known of the run so far.
        trainer: has to be set before training begins.
        evaluator: of the dev task, where there is one.
        interrupted: whether it ended because somebody asked for it.
    """

    trainer: Any
    evaluator: Any = None
    interrupted: bool = False

    def __init__(
        self,
        plan: TrainingPlan,
        spec: MemberSpec,
        work: Path,
        processes: Processes,
        progress: Progress,
        interrupt: Interrupt,
    ):
        self.kept = Kept()
        self._plan, self._spec, self._work = plan, spec, work
        self._processes, self._progress, self._interrupt = processes, progress, interrupt
        self._mean: Weights = {}
        self._began = self._saved = time.monotonic()
        self._before = 0.0

    def resume(self, checkpoint: Path) -> None:
        """Take up what was kept in a checkpoint."""
        self.kept = Kept(**json.loads((checkpoint / KEPT).read_text(encoding="utf-8")))
        self._before = self.kept.seconds
        if self._spec.ema is not None and self._processes.first:
            self._mean = load_file(checkpoint / MEAN)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Time counts from here on."""
        self._began = self._saved = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Keep weights, and ask the trainer for logs, evaluations and checkpoints."""
        step, last = state.global_step, state.global_step >= state.max_steps
        self._average()
        for name, percent in zip(self._spec.models, self._spec.checkpoints, strict=False):
            if step == point(percent, state.max_steps):
                self._write(self.file(name))
        if last:
            control.should_log = True
        stop = self._plan.early_stop
        if stop is not None and (last or step % stop.every == 0):
            control.should_evaluate = True
        save, end = self._agreed(step)
        if end and not last:
            control.should_training_stop = self.interrupted = True
        if (save or end) and not last:
            # A log too: what the loss was since the last one is not in a checkpoint.
            control.should_save = control.should_log = True
        self._progress.stepped(self._spec.name, step, None)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell of the loss.

        Raises:
            NonFiniteError: when there is none any more.
        """
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"{self._spec.name}: the loss is {loss} at step {state.global_step}; lower "
                "`learning_rate`, or try another `precision`"
            )
        self._progress.stepped(self._spec.name, state.global_step, loss)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the weights if they are the best so far, and end when none has been for long."""
        assert self._plan.early_stop is not None and metrics is not None
        score = float(metrics[f"eval_{self.evaluator.primary_metric}"])
        kept, step = self.kept, state.global_step
        kept.evaluations.append({"step": step, "score": score})
        sign = 1 if getattr(self.evaluator, "greater_is_better", True) else -1
        first = kept.best_score is None and not math.isnan(score)
        if first or (kept.best_score is not None and sign * score > sign * kept.best_score):
            kept.best_step, kept.best_score, kept.stale = step, score, 0
            self._write(self._best())
            return
        kept.stale += 1
        if kept.stale >= self._plan.early_stop.patience:
            control.should_training_stop = True

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Complete the checkpoint that the trainer has written, and remove older ones."""
        self._count()
        self._processes.wait()  # until the state of every process is there
        if self._processes.first:
            folder = self._work / f"{PREFIX}{state.global_step}"
            write_json(folder / KEPT, asdict(self.kept))
            if self._mean:
                save_file(self._mean, folder / MEAN)
            seal(folder)
            prune(self._work)
            for path in self._work.glob("best-*.safetensors"):
                if path != self._best():
                    path.unlink()
        self._saved = time.monotonic()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Add up what the run took."""
        self._count()

    def file(self, model: str) -> Path:
        """Where the weights of a model of the member lie until it is written."""
        return self._work / f"{model}.safetensors"

    def weights(self, model: str) -> Weights | None:
        """What a model of the member has as weights; None for what the trainer has at the end."""
        if self._spec.checkpoints:
            return load_file(self.file(model))
        if self._spec.ema is not None:
            return self._mean
        return load_file(self._best()) if self.kept.best_step else None

    def _best(self) -> Path:
        return self._work / f"best-{self.kept.best_step}.safetensors"

    def _model(self) -> SentenceTransformer:
        model: SentenceTransformer = self.trainer.model
        return model

    def _write(self, path: Path) -> None:
        """Write the weights as they are now."""
        if self._processes.first:
            beside = path.with_name(f".{path.name}")
            weights = weights_of(self._model())
            save_file({name: one.contiguous() for name, one in weights.items()}, beside)
            sync(beside)
            beside.rename(path)

    def _average(self) -> None:
        """The exponential mean over the steps so far: mean_t += (w_t - mean_t) (1-d) / (1-d^t).

        This is sum_i d^(t-i) w_i / sum_i d^(t-i): the weights before the first step have no part.
        """
        decay = self._spec.ema
        if decay is None or not self._processes.first:
            return
        self.kept.averaged += 1
        share = (1 - decay) / (1 - decay**self.kept.averaged)
        with torch.no_grad():
            for name, weight in weights_of(self._model()).items():
                if name not in self._mean or not weight.is_floating_point():
                    self._mean[name] = weight.clone()
                else:
                    mean = self._mean[name] = self._mean[name].to(weight.device)
                    mean += (weight - mean) * share

    def _agreed(self, step: int) -> tuple[bool, bool]:
        """Whether to make a checkpoint now, and whether to stop; the same in every process."""
        every = self._plan.training.save_every
        planned = every is not None and step % every == 0

        def now() -> tuple[bool, bool]:
            late = every is None and time.monotonic() - self._saved > SAVE_SECONDS
            return late, self._interrupt.asked

        if self._processes.count > 1 and step % BEAT:
            return planned, False
        late, end = self._processes.agree(now)
        return planned or late, end

    def _count(self) -> None:
        self.kept.seconds = self._before + time.monotonic() - self._began
        self.kept.tokens += self._processes.total(int(self.trainer.tokens))
        self.trainer.tokens = 0


def point(percent: int, steps: int) -> int:
    """After how many of the steps so many percent of them are done: at least one."""
    return max(1, part(Fraction(percent), steps))
