"""What the recipe's edits come to: which tensors they change, and what other files say of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, Component, bare
from ..checkpoint.names import LAYER
from ..checkpoint.weights import read_object
from ..errors import PlanError, Problem
from ..kernels import Divide
from ..recipe import Recipe
from ..recipe.model import Edit, ExtendPositions, TempScale
from ..recipe.values import Path as Place
from .matching import Match
from .models import Models
from .plan import Stretch


@dataclass(frozen=True)
class Queries:
    """Where an architecture keeps what is divided to divide the attention's logits.

    `fused`: the first third of the rows makes queries, the others keys and values.
    """

    shown: str
    pattern: str
    fused: bool = False

    def matches(self, name: str) -> bool:
        """True for a tensor of this name, which may carry the prefixes of wrappers."""
        return re.search(rf"(^|\.){self.pattern}$", bare(name)) is not None


_BERT = Queries("attention.self.query", r"attention\.self\.query\.(weight|bias)")
_LLAMA = Queries("self_attn.q_proj", r"self_attn\.q_proj\.(weight|bias)")
_T5 = Queries(
    # The logits are the products and a learned bias by distance; both are divided.
    "encoder...SelfAttention.q and relative_attention_bias",
    r"encoder\.block\.\d+\.layer\.0\.SelfAttention\.(q|relative_attention_bias)\.weight",
)
_MPNET = Queries(
    "attention.attn.q and relative_attention_bias",
    r"(attention\.attn\.q\.(weight|bias)|relative_attention_bias\.weight)",
)
_WQKV = Queries("attn.Wqkv", r"attn\.Wqkv\.(weight|bias)", fused=True)

QUERIES: Mapping[str, Queries] = {
    "bert": _BERT,
    "camembert": _BERT,
    "distilbert": Queries("attention.q_lin", r"attention\.q_lin\.(weight|bias)"),
    "electra": _BERT,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "modernbert": _WQKV,
    "mpnet": _MPNET,
    "mt5": _T5,
    "new": Queries("attention.qkv_proj", r"attention\.qkv_proj\.(weight|bias)", fused=True),
    "nomic_bert": _WQKV,
    "qwen2": _LLAMA,
    # Queries are normalised after the projection, which undoes any factor before it.
    "qwen3": Queries("self_attn.q_norm", r"self_attn\.q_norm\.weight"),
    "roberta": _BERT,
    "t5": _T5,
    "umt5": _T5,
    "xlm-roberta": _BERT,
}
"""By `model_type` in config.json. A factor means something else in any other architecture (Gemma's
norms multiply by 1 + weight, caps bend logits), so a name that looks alike is not enough."""

POSITIONS: Mapping[str, bool] = {
    "bert": False,
    "camembert": True,
    "distilbert": False,
    "electra": False,
    "mpnet": True,
    "roberta": True,
    "xlm-roberta": True,
}
"""Architectures with a table of positions, by `model_type`; True where positions begin after the
number of the padding token, so that the rows before are none."""

TABLE = re.compile(r"(^|\.)embeddings\.position_embeddings\.weight$")

POSITIONAL_BUFFER = re.compile(r"(^|\.)embeddings\.(position_ids|token_type_ids)$")
"""As long as the table that they belong to, and made anew when the model is loaded."""

RELATIVE = {"mt5", "t5", "umt5"}
ROTARY = {"gemma3_text", "llama", "mistral", "modernbert", "new", "nomic_bert", "qwen2", "qwen3"}


@dataclass(frozen=True)
class Edits:
    """What is done to merged tensors, by their names, and told in other files.

    `told` has keys and values by the file's path in the shell's folder.
    """

    divides: Mapping[str, Divide] = field(default_factory=dict)
    stretches: Mapping[str, Stretch] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Transformer:
    """A transformer of the result: its configuration and its tensors."""

    component: Component
    config: Mapping[str, Any]
    matches: tuple[Match, ...]
    label: str

    @property
    def kind(self) -> str:
        return str(self.config.get("model_type", "unknown"))


def plan_edits(recipe: Recipe, models: Models, matches: Sequence[Match]) -> Edits:
    """Find what each edit of the recipe changes.

    Raises:
        PlanError: when there is nothing in the model that it could change, or nothing known.
        CheckpointError: when config.json is broken.
    """
    found = Edits()
    problems: list[Problem] = []
    transformers = _transformers(models, matches) if recipe.edits else []
    for edit in recipe.edits:
        for transformer in transformers:
            try:
                if isinstance(edit, TempScale):
                    found = _cooled(found, edit, transformer)
                else:
                    found = _extended(found, edit, transformer, models.shell.root)
            except _Refused as refused:
                problems.append(recipe.source.problem(_place(recipe, edit), str(refused)))
    if problems:
        raise PlanError(list(dict.fromkeys(problems)))
    return found


def _place(recipe: Recipe, edit: Edit) -> Place:
    """Where the recipe asks for the edit."""
    name = "temp_scale" if isinstance(edit, TempScale) else "extend_positions"
    index = next(i for i, entry in enumerate(recipe.source.data["post"]) if name in entry)
    return ("post", index, name)


class _Refused(Exception):
    """An edit does not suit the model; the message says why and what to do."""


def _transformers(models: Models, matches: Sequence[Match]) -> list[_Transformer]:
    """Every transformer; where none is called so, whatever holds the first weights."""
    shell = models.shell
    components = [c for c in shell.components.values() if "ransformer" in c.role]
    return [
        _Transformer(
            component,
            _config(shell, component),
            tuple(match for match in matches if match.component.path == component.path),
            shell.label,
        )
        for component in components or list(shell.components.values())[:1]
    ]


def _config(shell: Checkpoint, component: Component) -> dict[str, Any]:
    path = f"{component.path}/config.json" if component.path else "config.json"
    return {**read_object(shell.root / path), **shell.told.get(path, {})}


def _cooled(edits: Edits, edit: TempScale, transformer: _Transformer) -> Edits:
    """Divide whatever makes the queries by the temperature."""
    label, kind = transformer.label, transformer.kind
    queries = QUERIES.get(kind)
    if queries is None:
        raise _Refused(
            f"does not know where a model of type {kind} ({label}) keeps its queries; "
            f"it knows {', '.join(f'{name} ({q.shown})' for name, q in QUERIES.items())}. Drop "
            "this edit"
        )
    chosen = [match for match in transformer.matches if queries.matches(match.tensor.name)]
    layers = {_layer(match) for match in chosen} - {None}
    stacks = {layer[0] for layer in layers if layer}
    every = {_layer(m) for m in transformer.matches if (_layer(m) or ("", 0))[0] in stacks} - {None}
    if not layers or layers != every:
        count = f"in {len(layers)} of {len(every)} layers of" if layers else "nowhere in"
        raise _Refused(
            f"looked for {queries.shown}, as a model of type {kind} has it, and found "
            f"it {count} {label}. Drop this edit"
        )
    if kind == "bert" and transformer.config.get("position_embedding_type") not in {
        None,
        "absolute",
    }:
        raise _Refused(
            f"{label} adds products of positions to its logits, which the queries do "
            "not scale. Drop this edit"
        )
    divides = dict(_divisions(chosen, queries, edit.temperature))
    count = f"{len(layers)} layer{'s' if len(layers) > 1 else ''}"
    words = f"queries of {count} divided by {edit.temperature:g} ({queries.shown})"
    return replace(edits, divides={**edits.divides, **divides}, words=(*edits.words, words))


def _layer(match: Match) -> tuple[str, int] | None:
    found = LAYER.match(match.tensor.name)
    return (found["stack"], int(found["index"])) if found else None


def _divisions(
    chosen: Sequence[Match], queries: Queries, temperature: float
) -> Iterator[tuple[str, Divide]]:
    for match in chosen:
        tensor = match.tensor
        if not tensor.dtype.is_float:
            raise _Refused(
                f"{match.name} is stored as {tensor.dtype}, which cannot be divided; "
                "use the unquantised model"
            )
        if queries.fused and (not tensor.shape or tensor.shape[0] % 3):
            raise _Refused(
                f"{match.name} has shape {list(tensor.shape)}, and not as many rows "
                "for queries as for keys and for values. Drop this edit"
            )
        yield match.name, Divide(temperature, tensor.count // (3 if queries.fused else 1))


def _extended(edits: Edits, edit: ExtendPositions, transformer: _Transformer, root: Path) -> Edits:
    """Stretch the table of positions, and tell the files that know how long texts may be."""
    match, kept = _table(edit, transformer)
    rows = kept + edit.positions
    have = match.tensor.shape[0] - kept
    if edit.positions <= have:
        raise _Refused(
            f"{transformer.label} has {have} positions; name a larger number "
            f"than that, not {edit.positions}"
        )
    dropped = {m.name for m in transformer.matches if POSITIONAL_BUFFER.search(m.tensor.name)}
    words = f"positions: {have} of {match.name} interpolated to {edit.positions}"
    return replace(
        edits,
        stretches={**edits.stretches, match.name: Stretch(rows, kept)},
        dropped=edits.dropped | dropped,
        told={**edits.told, **_told(root, transformer.component.path, rows, edit.positions)},
        words=(*edits.words, words),
    )


def _table(edit: ExtendPositions, transformer: _Transformer) -> tuple[Match, int]:
    """The table of positions, and how many of its rows are none."""
    label, kind = transformer.label, transformer.kind
    if kind in RELATIVE:
        raise _Refused(
            f"{label} is a {kind}, whose positions are relative and serve texts "
            f"of any length. Drop this edit, and set `model_max_length: {edit.positions}` in the "
            "tokenizer_config.json of the result"
        )
    if kind in ROTARY:
        raise _Refused(
            f"{label} is a {kind}, whose positions are rotary and not a table. "
            f"Drop this edit, and set `max_position_embeddings: {edit.positions}` and, beyond the "
            "lengths it was trained on, the scaling of its rotary embedding in the config.json of "
            "the result"
        )
    found = [m for m in transformer.matches if TABLE.search(m.tensor.name)]
    learned = transformer.config.get("position_embedding_type") in {None, "absolute"}
    if kind not in POSITIONS or len(found) != 1 or not learned:
        raise _Refused(
            f"looked for embeddings.position_embeddings.weight, the table of "
            f"absolute positions of {', '.join(POSITIONS)}, and {label}, a model of type {kind}, "
            "has none that is known. Drop this edit"
        )
    padding = transformer.config.get("pad_token_id")
    padding = padding if isinstance(padding, int) and kind != "mpnet" else 1
    kept = padding + 1 if POSITIONS[kind] else 0
    (match,) = found
    if len(match.tensor.shape) != 2 or match.tensor.shape[0] < kept + 2:
        shape = list(match.tensor.shape)
        raise _Refused(
            f"{match.name} of {label} has shape {shape}, which holds no two "
            "positions to interpolate between. Drop this edit"
        )
    if not match.tensor.dtype.is_float:
        raise _Refused(
            f"{match.name} is stored as {match.tensor.dtype}, which cannot be "
            "interpolated; use the unquantised model"
        )
    return match, kept


def _told(root: Path, folder: str, rows: int, positions: int) -> dict[str, dict[str, Any]]:
    """What the files beside the transformer say of its length, where they are there."""
    found = {"config.json": {"max_position_embeddings": rows}}
    if (root / folder / "tokenizer_config.json").is_file():
        found["tokenizer_config.json"] = {"model_max_length": positions}
    for file in sorted((root / folder).glob("sentence_*_config.json")):
        # Where it is silent, sentence-transformers asks the tokenizer.
        if read_object(file).get("max_seq_length") is not None:
            found[file.name] = {"max_seq_length": positions}
    return {(Path(folder) / name).as_posix(): content for name, content in found.items()}
