"""Which number a tokenizer gives each token, and which tensors have a row for each number.

Read from the JSON and text files of a model folder alone, as the `tokenizers` library and
transformers read them; neither is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .folder import Checkpoint, Component
from .names import bare
from .shell import TOKENIZER_FILES, transformer_folder
from .tensor import short
from .weights import MAX_TOKENIZER_BYTES, is_file, read_bytes, read_json, read_object

MAX_NUMBER = 2**31 - 1
"""What `tokenizers` and the tables of rows here have for a token's number."""

MAX_ROWS = 2**24
"""Of a table whose rows are moved: the number of each is in memory."""

SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model")

INPUT_TABLES = (
    "embed_in",  # GPT-NeoX
    "embed_tokens",  # Qwen, Llama, Mistral, Gemma, T5's encoder and decoder
    "shared",  # T5, BART
    "tok_embeddings",  # ModernBERT
    "tokens_embed",  # GPT
    "token_embedding",  # CLIP's text model
    "word_embedding",  # XLNet
    "word_embeddings",  # BERT and its kin, XLM-RoBERTa, MPNet, DistilBERT, ...
    "wte",  # GPT-2, MPT
)
"""Modules whose weight has a row for every token of a text."""

OUTPUT_TABLES = (
    "cls.predictions",  # BERT's bias
    "cls.predictions.decoder",
    "decoder",  # ModernBERT
    "embed_out",
    "generator_lm_head",  # ELECTRA's generator
    "lm_head",
    "lm_head.decoder",  # RoBERTa
    "predictions",  # ALBERT
    "predictions.decoder",
    "vocab_projector",  # DistilBERT
)
"""Modules whose weight and bias have a row for every token that may be predicted. Some names mean
other things elsewhere, so they count only with as many rows as the input's table has."""

STATIC_TABLE = "embedding.weight"
"""The one tensor of a StaticEmbedding of sentence-transformers."""


def _pattern(modules: Iterable[str], tensors: str) -> re.Pattern[str]:
    return re.compile(rf"(^|\.)({'|'.join(map(re.escape, modules))})\.({tensors})$")


_INPUT = _pattern(INPUT_TABLES, "weight")
_OUTPUT = _pattern(OUTPUT_TABLES, "weight|bias")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
        ids: number of every token.
        added: those that are cut out of a text before anything else looks at it.
        file: where it was read from.
    """

    ids: Mapping[str, int] = field(repr=False)
    added: frozenset[str] = field(repr=False)
    file: Path

    @property
    def size(self) -> int:
        """The highest number and one more."""
        return max(self.ids.values(), default=-1) + 1


@dataclass(frozen=True)
class Tables:
    """The tensors of a component that have a row for every token, and how many rows that is."""

    role: str
    names: tuple[str, ...]
    rows: int


def find_tables(component: Component) -> Tables | None:
    """The tables of token embeddings and of output heads; None where there are none.

    The names of heads mean other things in other models, so a head is one only with as many rows
    as the input's table has. Rows may be more than tokens.
    """
    tensors = component.tensors
    inputs = [
        name
        for name, tensor in tensors.items()
        if _is_input(component, name) and tensor.shape and tensor.count
    ]
    if not inputs:
        return None
    rows = tensors[inputs[0]].shape[0]
    named = [name for name in tensors if name in inputs or _OUTPUT.search(bare(name))]
    names = tuple(name for name in named if tensors[name].shape[:1] == (rows,))
    return Tables(component.role, names, rows)


def _is_input(component: Component, name: str) -> bool:
    static = component.role.startswith("StaticEmbedding") and bare(name) == STATIC_TABLE
    return static or _INPUT.search(bare(name)) is not None


def tokenizer_folder(model: Checkpoint) -> Path:
    """The folder that the tokenizer's files are in: the transformer's, or else the model's."""
    folder = transformer_folder(model.root, model.modules)
    return folder if any((folder / name).is_file() for name in TOKENIZER_FILES) else model.root


def has_tokenizer(model: Checkpoint) -> bool:
    """True for a model with any file that a vocabulary is kept in."""
    return any((tokenizer_folder(model) / name).is_file() for name in TOKENIZER_FILES)


def read_vocabulary(model: Checkpoint) -> Vocabulary:
    """The tokens of a model's tokenizer and their numbers.

    Raises:
        CheckpointError: when the files are broken, or are SentencePiece's alone.
    """
    folder = tokenizer_folder(model)
    if is_file(folder / "tokenizer.json"):
        return _from_tokenizer_json(folder / "tokenizer.json")
    beside = read_object(folder / "added_tokens.json")
    for name in ("vocab.txt", "vocab.json"):
        file = folder / name
        if file.is_file():
            listed = (
                _lines(file)
                if name == "vocab.txt"
                else _mapping(read_json(file, MAX_TOKENIZER_BYTES), file)
            )
            return _checked(listed, beside, file)
    found = [name for name in SENTENCEPIECE if (folder / name).is_file()]
    has = f"has {found[0]} and no tokenizer.json" if found else "has no tokenizer"
    raise CheckpointError(
        folder,
        f"{has}, so that its tokens cannot be told; save it with a fast tokenizer: "
        f'AutoTokenizer.from_pretrained("{folder.name}").save_pretrained("{folder.name}")',
    )


def _lines(file: Path) -> dict[str, Any]:
    """A token a line, numbered by its line; of equal lines the last counts, as in transformers."""
    try:
        lines = read_bytes(file, MAX_TOKENIZER_BYTES).decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(file, "is not a text file in UTF-8") from error
    if not lines[-1]:
        lines.pop()
    return {token: number for number, token in enumerate(lines)}


def _mapping(content: Any, file: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise CheckpointError(file, "has no map from tokens to numbers")
    return content


def _from_tokenizer_json(file: Path) -> Vocabulary:
    content = _mapping(read_json(file, MAX_TOKENIZER_BYTES), file)
    model = content.get("model")
    listed = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(listed, list):
        listed = {_piece(pair, file): number for number, pair in enumerate(listed)}
    added: dict[str, Any] = {}
    for token in _tokens(content.get("added_tokens"), file):
        added[token["content"]] = token.get("id")
    return _checked(_mapping(listed, file), added, file)


def _piece(pair: Any, file: Path) -> str:
    """The token of a pair of token and score."""
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
        raise CheckpointError(file, f"lists {short(pair)}, which is no pair of token and score")
    if isinstance(pair[1], bool) or not isinstance(pair[1], int | float):
        raise CheckpointError(file, f"lists {short(pair)}, whose score is no number")
    return pair[0]


def _tokens(added: Any, file: Path) -> Sequence[dict[str, Any]]:
    if added is None:
        return ()
    if not isinstance(added, list) or not all(
        isinstance(token, dict) and isinstance(token.get("content"), str) for token in added
    ):
        raise CheckpointError(file, "has `added_tokens` that are not a list of tokens")
    return added


def _checked(listed: Mapping[str, Any], added: Mapping[str, Any], file: Path) -> Vocabulary:
    """A vocabulary whose every token has one number, and every number one token.

    Raises:
        CheckpointError: for anything else.
    """
    ids: dict[str, int] = {}
    owners: dict[int, str] = {}
    for token, number in (*listed.items(), *added.items()):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < MAX_NUMBER:
            raise CheckpointError(file, f"gives {short(token)} the number {short(number)}")
        if ids.setdefault(token, number) != number:
            told = f"gives {short(token)} two numbers, {ids[token]} and {number}"
            raise CheckpointError(file, told)
        if owners.setdefault(number, token) != token:
            told = f"gives {short(owners[number])} and {short(token)} the same number, {number}"
            raise CheckpointError(file, told)
    try:
        "".join(ids).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(file, "has a token with half a character in it") from error
    return Vocabulary(ids, frozenset(added), file)
