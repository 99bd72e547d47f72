"""One tokenizer of several: the first one's, with the tokens that only others have put behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.tensor import short
from ..checkpoint.weights import MAX_TOKENIZER_BYTES, read_object

TOKENIZER = "tokenizer.json"

STEPS = ("normalizer", "pre_tokenizer")
"""What happens to a text before the model sees it: a token means the text that comes out there."""

SPELLING = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
"""Settings of a model that decide how its tokens are spelled."""


class CannotJoinError(Exception):
    """Two tokenizers do not go together; the message says in what."""


@dataclass(frozen=True)
class Contribution:
    """The folder of a tokenizer, and the tokens that are taken from it."""

    folder: Path
    tokens: frozenset[str]


def check_alike(first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Make sure that two tokenizer.json spell their tokens in the same way.

    Raises:
        CannotJoinError: naming what differs, and the values where they are short.
    """
    mine, theirs = _model(first).get("type"), _model(other).get("type")
    if mine != theirs:
        raise CannotJoinError(f"has a {theirs} tokenizer, and not a {mine}")
    differ = [step for step in STEPS if (first.get(step) or {}) != (other.get(step) or {})]
    differ += [
        key for key in SPELLING if (_model(first).get(key) or 0) != (_model(other).get(key) or 0)
    ]
    if differ:
        raise CannotJoinError(f"has another {' and '.join(differ)} ({TOKENIZER})")


def join(
    first: Path, others: Sequence[Contribution], numbers: Mapping[str, int]
) -> dict[str, bytes]:
    """The files of a tokenizer with more tokens, by their names.

    A token comes as its own tokenizer has it: in the vocabulary, with the score of a Unigram or
    behind the merges of a BPE that make it, or among the added tokens with their flags, or both.

    Args:
        first: folder of the tokenizer that is kept as it is.
        others: what is taken from where; no token comes from two.
        numbers: of every token of the result.

    Raises:
        CannotJoinError: when the file cannot hold the tokens under these numbers.
        CheckpointError: when a file is broken.
    """
    content = read_object(first / TOKENIZER, MAX_TOKENIZER_BYTES)
    model = content["model"]
    added = list(content.get("added_tokens") or [])
    old = len(added)
    for one in others:
        theirs = read_object(one.folder / TOKENIZER, MAX_TOKENIZER_BYTES)
        _take_pieces(model, theirs["model"], one.tokens, numbers)
        added += [
            {**token, "id": numbers[token["content"]]}
            for token in theirs.get("added_tokens") or []
            if token["content"] in one.tokens
        ]
    _anchor(model, added)
    content["added_tokens"] = sorted(added, key=lambda token: int(token["id"]))
    files = {TOKENIZER: _encoded(content)}
    config = read_object(first / "tokenizer_config.json")
    if isinstance(config.get("added_tokens_decoder"), dict) and added[old:]:
        told = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added[old:]}
        config["added_tokens_decoder"] = {**config["added_tokens_decoder"], **told}
        files["tokenizer_config.json"] = _encoded(config)
    return files


def _model(content: Mapping[str, Any]) -> Mapping[str, Any]:
    model = content.get("model")
    return model if isinstance(model, dict) else {}


def _encoded(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _take_pieces(
    mine: dict[str, Any],
    theirs: Mapping[str, Any],
    tokens: frozenset[str],
    numbers: Mapping[str, int],
) -> None:
    """Put the tokens that are in the vocabulary of the other model into ours."""
    listed = theirs["vocab"]
    if isinstance(listed, list):
        pieces = [(numbers[token], token, score) for token, score in listed if token in tokens]
        mine["vocab"] = _with_pieces(mine["vocab"], pieces)
        return
    mine["vocab"] |= {token: numbers[token] for token in listed if token in tokens}
    prefix = theirs.get("continuing_subword_prefix") or ""
    pairs = [_pair(merge) for merge in theirs.get("merges") or []]
    makers = [[left, right] for left, right in pairs if left + right.removeprefix(prefix) in tokens]
    if makers:
        # The file has all its merges in one form: pairs, or texts with a space between the two.
        mine["merges"] = [*map(_pair, mine.get("merges") or []), *makers]


def _pair(merge: Any) -> list[str]:
    """The two tokens of a merge.

    Raises:
        CannotJoinError: when there are not two.
    """
    parts = merge.split(" ", 1) if isinstance(merge, str) else merge
    if isinstance(parts, list) and len(parts) == 2 and all(isinstance(p, str) for p in parts):
        return parts
    raise CannotJoinError(f"has {short(merge)} among its merges ({TOKENIZER})")


def _with_pieces(listed: list[Any], pieces: list[tuple[int, str, float]]) -> list[Any]:
    """Unigram pieces at the places that are their numbers; None where another token will be."""
    size = max((number + 1 for number, _, _ in pieces), default=0)
    listed = listed + [None] * max(0, size - len(listed))
    for number, token, score in pieces:
        listed[number] = [token, score]
    return listed


def _anchor(model: dict[str, Any], added: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that every added token gets the number that the file gives it.

    `tokenizers` takes an added token's number from the vocabulary, or else counts on from the
    vocabulary's size, whatever the file says. Where that would be another number, the token goes
    into the vocabulary too, as the special tokens of most models do.
    """
    numbers = {int(token["id"]): token["content"] for token in added}
    listed = model["vocab"]
    following = len(listed)
    known = listed if isinstance(listed, dict) else {pair[0] for pair in listed if pair}
    outside = {number: token for number, token in sorted(numbers.items()) if token not in known}
    if list(outside) == list(range(following, following + len(outside))):
        return
    if isinstance(listed, dict):
        listed |= {token: number for number, token in outside.items()}
        return
    # Not less likely than the least likely piece, which is what unknown characters count by.
    least = min((pair[1] for pair in listed if pair), default=0.0)
    listed += [None] * (max(outside) + 1 - following)
    for number, pair in enumerate(listed):
        if pair is None and number not in outside:
            raise CannotJoinError(f"has no token of number {number} ({TOKENIZER})")
        listed[number] = pair or [outside[number], least]
