"""Tensor names: the prefixes that wrappers add, tied weights, buffers, layers and depth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PREFIXES = (
    "0.auto_model.",
    "0.model.",
    "auto_model.",
    "base_model.",
    "model.",
    "transformer.",
    "bert.",
    "distilbert.",
    "roberta.",
    "deberta.",
    "electra.",
    "mpnet.",
    "new.",
)
"""What sentence-transformers, task heads and wrappers put before the names of the bare model."""

TIED = (
    ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    ("embed_tokens.weight", "lm_head.weight"),
    ("embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ("embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ("embeddings.tok_embeddings.weight", "decoder.weight"),
)
"""Names that usually mean the same tensor; only one of them is stored when they are tied."""

DERIVED_BUFFER = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|relative_position_bucket|"
    r"relative_position_index|num_batches_tracked)$"
)
"""Buffers that a model makes anew when it is loaded; some versions store them, others do not."""

LAYER = re.compile(r"^(?P<stack>.*?(?:^|\.)(?:layers?|blocks?|h))\.(?P<index>\d{1,6})\.")


def bare(name: str) -> str:
    """The name without the prefixes of wrappers: `bert.encoder.x` and `encoder.x` are the same."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if name.startswith(prefix) and len(name) > len(prefix):
                name, stripped = name[len(prefix) :], True
    return name


def is_derived_buffer(name: str) -> bool:
    """True for buffers that carry nothing learned."""
    return DERIVED_BUFFER.search(name) is not None


class Matcher:
    """Finds tensors of one model by the names that another model gives them."""

    def __init__(self, names: Iterable[str]):
        self._names = frozenset(names)
        self._bare: dict[str, str | None] = {}
        for name in self._names:
            key = bare(name)
            self._bare[key] = None if key in self._bare else name  # None: ambiguous

    def find(self, name: str) -> str | None:
        """Our name for `name`: the same, the same but for prefixes, or one tied to it."""
        if name in self._names:
            return name
        found = self._bare.get(bare(name))
        return found if found is not None else self._tied(bare(name))

    def _tied(self, name: str) -> str | None:
        for group in TIED:
            if name in group:
                for other in group:
                    found = self._bare.get(other)
                    if found is not None:
                        return found
        return None


@dataclass(frozen=True)
class Place:
    """Where a tensor sits: its layer, and its depth from 0 (the first layer) to 1 (the last)."""

    group: str
    depth: float


def places(names: Iterable[str]) -> Mapping[str, Place]:
    """The place of every tensor of a model.

    Layers are numbered within their stack (encoder and decoder count apart) and spread from 0 to
    1. A tensor outside the layers is at 0, on either side of them, as in mergekit; those that
    embed the input form the group `embeddings`, the others `head`.
    """
    names = list(names)
    last: dict[str, int] = {}
    for name in names:
        found = LAYER.match(name)
        if found:
            last[found["stack"]] = max(last.get(found["stack"], 0), int(found["index"]))
    return {name: _place(name, last) for name in names}


def _place(name: str, last: Mapping[str, int]) -> Place:
    found = LAYER.match(name)
    if found:
        index = int(found["index"])
        return Place(f"{found['stack']}.{index}", index / max(last.get(found["stack"], 0), 1))
    embeds = "embed" in name or name.endswith("shared.weight")
    return Place("embeddings" if embeds else "head", 0.0)


def component_of(name: str) -> str:
    """The folder that a tensor lies in, as `2_Dense`; `transformer` for the model's own."""
    return name.rpartition("/")[0] or "transformer"


def layer_of(name: str) -> str:
    """The layer of a tensor, `embeddings` or `head`; with its folder in front where it has one."""
    group, folder = _place(name, {}).group, name.rpartition("/")[0]
    return f"{folder}: {group}" if folder and not group.startswith(folder) else group


def module_of(name: str) -> str:
    """The module of a tensor, the same in all layers: `encoder.layer.*.attention.self.query`."""
    return LAYER.sub(r"\g<stack>.*.", name).rpartition(".")[0] or name
