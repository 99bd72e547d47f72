"""What the trainer of sentence-transformers is told, from what a plan says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformerTrainingArguments

from .bags import Member
from .draws import key_of
from .processes import Processes, has_accelerator
from .specs import TrainingPlan

POINTS = 100
"""About so many points has the curve of a member's loss."""

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
"""What transformers calls the schedules of the learning rate."""


def arguments(
    plan: TrainingPlan, member: Member, work: Path, steps: int, processes: Processes
) -> SentenceTransformerTrainingArguments:
    """The arguments of one member's training.

    Args:
        plan: how it is trained.
        member: which.
        work: the folder of its checkpoints.
        steps: how many batches there are.
        processes: that train it together.
    """
    training, on_cpu = plan.training, not has_accelerator()
    rows = max(plan.datasets[name].batch_size for name in member.rows)
    options: dict[str, Any] = {
        "output_dir": str(work),
        "num_train_epochs": 1,  # of ours there may be more: see `batches.Order`
        "per_device_train_batch_size": max(1, rows // processes.count),
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": SCHEDULES[training.learning_rate_schedule],
        "warmup_steps": math.ceil(training.warmup * steps),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_gradient_norm,
        "bf16": training.precision == "bf16",
        "fp16": training.precision == "fp16",
        "seed": seed_of(member),
        "save_strategy": "no",  # `Keeping` asks for checkpoints
        "logging_strategy": "steps",
        "logging_steps": max(1, steps // POINTS),
        "logging_nan_inf_filter": False,  # `Keeping` tells of them
        "dataloader_drop_last": True,
        "dataloader_pin_memory": not on_cpu,
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": on_cpu,
    }
    if on_cpu and processes.count > 1:
        options["ddp_backend"] = "gloo"
    made = SentenceTransformerTrainingArguments(**options)
    if processes.count == 1 and made.n_gpu > 1:
        made._n_gpu = 1  # else the trainer would put a copy of the model on each in this process
    return made


def seed_of(member: Member) -> int:
    """What dropout and new adapters are drawn from: 31 bits of the seed and the member's name."""
    return key_of("training", member.spec.seed, member.name) >> 33
