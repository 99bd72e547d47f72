"""Model folders with other vocabularies, and what a merge by tokens is by its definition."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers import WEIGHTS, changed_json, changed_tensors
from safetensors.numpy import load_file
from tiny_models import read_tensors

TABLES = {
    "minilm": "embeddings.word_embeddings.weight",
    "modernbert": "embeddings.tok_embeddings.weight",
    "xlm_roberta": "embeddings.word_embeddings.weight",
    "qwen3": "embed_tokens.weight",
    "t5_encoder": "shared.weight",
}


def vocab_of(folder: Path) -> dict[str, int]:
    """Tokens and their numbers, as the tokenizers library reads them."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)


def rows_of(folder: Path, table: str) -> dict[str, np.ndarray]:
    """The row of every token, float64."""
    values = read_tensors(folder)[table][1]
    return {token: values[number] for token, number in vocab_of(folder).items()}


def added(content: str, number: int, *, special: bool = False) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": number, "content": content, **flags, "normalized": not special} | {
        "special": special
    }


def permuted(source: Path, target: Path, table: str, seed: int, *, special: bool = False) -> Path:
    """The same model under other numbers: of every token, or of those that are not added ones."""
    shutil.copytree(source, target)
    with changed_json(target / "tokenizer.json") as content:
        vocab = content["model"]["vocab"]
        pieces = vocab if isinstance(vocab, dict) else {p[0]: i for i, p in enumerate(vocab)}
        fixed = set() if special else {token["content"] for token in content["added_tokens"]}
        free = sorted(number for token, number in pieces.items() if token not in fixed)
        order = np.random.default_rng(seed).permutation(free)
        new = dict(zip(free, order.tolist(), strict=True))
        if isinstance(vocab, dict):
            content["model"]["vocab"] = {t: new.get(n, n) for t, n in vocab.items()}
        else:
            moved = list(vocab)
            for number, piece in enumerate(vocab):
                moved[new.get(number, number)] = piece
            content["model"]["vocab"] = moved
        for token in content["added_tokens"]:
            token["id"] = new.get(token["id"], token["id"])
        specials = content["post_processor"]["special_tokens"].values()
        for token in specials:
            token["ids"] = [new.get(number, number) for number in token["ids"]]
    with changed_json(target / "config.json") as config:
        for key in config:
            if key.endswith("_token_id") and config[key] is not None:
                config[key] = new.get(config[key], config[key])
    with changed_tensors(target) as tensors:
        values = tensors[table].copy()
        values[list(new.values())] = tensors[table][list(new)]
        tensors[table] = values
    return target


def grow(
    folder: Path,
    table: str,
    seed: int,
    *,
    pieces: Mapping[str, Any] | Sequence[str] = (),
    tokens: Sequence[str] = (),
    merges: Sequence[Sequence[str]] = (),
    padding: int = 0,
) -> Path:
    """The model with more pieces in its vocabulary, more added tokens, and rows for all.

    Pieces get the first numbers; a mapping gives a Unigram's scores. `padding` rows of ones come
    behind the rows of tokens.
    """
    with changed_json(folder / "tokenizer.json") as content:
        model = content["model"]
        following = max(vocab_of(folder).values()) + 1
        for number, piece in enumerate(pieces, start=following):
            if isinstance(model["vocab"], dict):
                model["vocab"][piece] = number
            else:
                model["vocab"].append([piece, dict(pieces)[piece]])
        model.setdefault("merges", [])
        model["merges"] += [list(merge) for merge in merges]
        if not model["merges"]:
            del model["merges"]
        content["added_tokens"] += [
            added(token, following + len(pieces) + index, special=token.startswith("<"))
            for index, token in enumerate(tokens)
        ]
        if following > len(model["vocab"]) - len(pieces) and isinstance(model["vocab"], dict):
            for token in content["added_tokens"]:  # numbered before the new pieces
                model["vocab"].setdefault(token["content"], token["id"])
    with changed_tensors(folder) as tensors:
        old = tensors[table]
        count = len(pieces) + len(tokens)
        new = np.random.default_rng(seed).normal(0, 0.1, (count, old.shape[1])).astype(old.dtype)
        behind = np.ones((padding, old.shape[1]), old.dtype)
        tensors[table] = np.concatenate([old, new, behind])
        rows = len(tensors[table])
    with changed_json(folder / "config.json") as config:
        config["vocab_size"] = rows
    return folder


def rows_by_definition(
    tokens: Mapping[str, int],
    models: Sequence[Mapping[str, np.ndarray]],
    base: Mapping[str, np.ndarray] | None,
    members: Sequence[Mapping[str, np.ndarray]],
    rows: int,
) -> list[np.ndarray]:
    """The table of each model in the result's numbering, written out token by token."""
    width = len(next(iter(members[0].values())))
    tables = []
    for model in models:
        table = np.zeros((rows, width))
        for token, number in tokens.items():
            if token in model:
                table[number] = model[token]
            elif base is not None and token in base:
                table[number] = base[token]
            else:
                have = [member[token] for member in members if token in member]
                if have:
                    table[number] = sum(have[1:], have[0]) / len(have)
        tables.append(table)
    return tables


def stored(folder: Path, name: str) -> np.ndarray:
    """A tensor as it is stored, in float32."""
    return load_file(folder / WEIGHTS)[name]


def json_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
