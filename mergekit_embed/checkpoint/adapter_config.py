"""adapter_config.json: the rank and the factor of every module, and what cannot be folded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .tensor import short
from .weights import read_object

CONFIG = "adapter_config.json"

REFUSED = {
    "alora_invocation_tokens": "is active for some tokens only",
    "arrow_config": "is chosen anew for every token",
    "kasa_config": "cuts the weights that it is added to",
    "layer_replication": "repeats layers of the model",
    "lora_bias": "adds to biases too",
    "target_parameters": "adds to parameters that are no layers",
    "trainable_token_indices": "replaces single rows of the embeddings",
    "use_bdlora": "has factors in blocks",
    "use_dora": "rescales the rows of the sum",
    "use_qalora": "pools what goes into a layer",
}
"""Keys that make an adapter more than `W + s B A`, and what each does."""

MOST = {r"[*+]|,\d*\}": 3, r"(?<!\()\?": 8, r"\(": 4, r"\|": 60}
"""How many repetitions, optional parts, groups and choices a pattern may have: the ways in which it
can be tried multiply."""

PLAIN_STARTS = {"eva", "gaussian", "mica", "orthogonal"}
"""Values of `init_lora_weights` that leave the model's own weights as they are."""


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says of a LoRA. Patterns are matched as PEFT does, in order."""

    r: int
    alpha: float
    ranks: Mapping[re.Pattern[str], int]
    alphas: Mapping[re.Pattern[str], float]
    rank_stabilised: bool
    fan_in_fan_out: bool
    task: str | None

    def rank_of(self, module: str) -> int:
        """The rank of a module, by its name in the model that PEFT wrapped."""
        return next((r for pattern, r in self.ranks.items() if pattern.match(module)), self.r)

    def scale_of(self, module: str) -> float:
        """The factor on B A."""
        found = (alpha for pattern, alpha in self.alphas.items() if pattern.match(module))
        alpha, rank = next(found, self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank


def read_adapter_config(root: Path) -> AdapterConfig:
    """The configuration of the LoRA in a folder.

    Raises:
        CheckpointError: when there is none, it is broken, or it asks for what cannot be folded.
    """
    path = root / CONFIG
    if not path.is_file():
        raise CheckpointError(root, f"is not a PEFT adapter: it holds no {CONFIG}")
    content = read_object(path)
    kind = content.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            path, f"`peft_type` is {short(kind)}; only LORA can be folded into a model"
        )
    for key, does in REFUSED.items():
        if content.get(key):
            raise CheckpointError(
                path,
                f"`{key}` is set: such an adapter {does} and cannot be folded on the fly. Fold it "
                "with PEFT's `merge_and_unload`, and name the folder that this gives",
            )
    _refuse_changed_start(path, content.get("init_lora_weights"))
    task = content.get("task_type")
    return AdapterConfig(
        r=_rank(path, "r", content.get("r", 8)),
        alpha=_number(path, "lora_alpha", content.get("lora_alpha", 8)),
        ranks=_patterns(path, "rank_pattern", content, _rank),
        alphas=_patterns(path, "alpha_pattern", content, _number),
        rank_stabilised=_flag(path, "use_rslora", content),
        fan_in_fan_out=_flag(path, "fan_in_fan_out", content),
        task=task if isinstance(task, str) else None,
    )


def _refuse_changed_start(path: Path, start: Any) -> None:
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        raise CheckpointError(
            path,
            f"`init_lora_weights` is {short(start)}: such a training first changes the weights "
            "that the adapter is added to. Save it as a plain LoRA, with PEFT's "
            "`path_initial_model_for_weight_conversion`",
        )


def _rank(path: Path, key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise CheckpointError(path, f"`{key}` must be a whole number from 1, not {short(value)}")
    return value


def _number(path: Path, key: str, value: Any) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
    except OverflowError:
        pass
    raise CheckpointError(path, f"`{key}` must be a finite number, not {short(value)}")


def _flag(path: Path, key: str, content: Mapping[str, Any]) -> bool:
    value = content.get(key) or False
    if not isinstance(value, bool):
        raise CheckpointError(path, f"`{key}` must be true or false, not {short(value)}")
    return value


def _patterns(path: Path, key: str, content: Mapping[str, Any], check: Any) -> dict[Any, Any]:
    """Regular expressions for the end of a module's name, as PEFT's `get_pattern_key` has them."""
    given = content.get(key) or {}
    if not isinstance(given, dict):
        raise CheckpointError(path, f"`{key}` must map names to numbers, not {short(given)}")
    found = {}
    for pattern, value in given.items():
        if _may_be_endless(pattern):
            raise CheckpointError(
                path,
                f"`{key}` has {short(pattern)}, which may take for ever to look for; spell the "
                "names of the modules out",
            )
        try:
            compiled = re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(
                path, f"`{key}` has {short(pattern)}, which is no regular expression: {error}"
            ) from error
        found[compiled] = check(path, f"{key}.{pattern[:80]}", value)
    return found


def _may_be_endless(pattern: str) -> bool:
    """True where looking for a pattern can take longer than anybody waits.

    Python tries every way to share a text out among repetitions and choices: exponentially many
    when a group is repeated. Judged by the spelling alone, and rather too strictly.
    """
    plain = re.sub(r"\[[^]]*\]", "c", re.sub(r"\\\D", "c", pattern))
    if re.search(r"\)[*+{]|\\\d|\(\?P=", plain):  # a repeated group, or what a group has matched
        return True
    return any(len(re.findall(what, plain)) > most for what, most in MOST.items())
