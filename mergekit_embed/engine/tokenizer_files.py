"""The files beside the weights that know the tokens of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, Vocabulary
from ..checkpoint.shell import TOKENIZER_FILES, Fact, same
from ..checkpoint.vocabulary import tokenizer_folder
from ..checkpoint.weights import MAX_TOKENIZER_BYTES, read_object
from .edits import POSITIONS
from .joining import TOKENIZER, CannotJoinError, Contribution, check_alike, join

FILES = (
    *TOKENIZER_FILES,
    "added_tokens.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
"""Every file of a tokenizer."""

LISTS = (*(name for name in TOKENIZER_FILES if name != TOKENIZER), "added_tokens.json")
"""Files that repeat the vocabulary of tokenizer.json, and would contradict a longer one."""

CONFIGS = ("config.json", "generation_config.json")
"""Files beside the weights that call tokens by their numbers."""


@dataclass(frozen=True)
class TokenizerFiles:
    """What becomes of files of the shell, by their paths in it.

    Attributes:
        written: files that are there in its place: other files, or their bytes.
        omitted: files that are not in the result.
        told: keys and values of JSON files that change.
    """

    written: Mapping[str, Path | bytes] = field(default_factory=dict)
    omitted: frozenset[str] = frozenset()
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def files_of(source: Checkpoint, shell: Checkpoint) -> TokenizerFiles:
    """The tokenizer of another model in the place of the shell's."""
    if source is shell:
        return TokenizerFiles()
    folder = tokenizer_folder(source)
    taken = {name: folder / name for name in FILES if (folder / name).is_file()}
    omitted = frozenset(_beside(shell, name) for name in FILES if name not in taken)
    return TokenizerFiles({_beside(shell, name): path for name, path in taken.items()}, omitted)


def _beside(shell: Checkpoint, name: str) -> str:
    """The path of a file of the shell's tokenizer."""
    return (tokenizer_folder(shell).relative_to(shell.root) / name).as_posix()


def joined_files(
    shell: Checkpoint,
    others: Sequence[tuple[Checkpoint, frozenset[str]]],
    numbers: Mapping[str, int],
) -> tuple[TokenizerFiles, list[tuple[Checkpoint, str]]]:
    """The shell's tokenizer with tokens of others, and what keeps it from being made, by model."""
    without = [m for m in (shell, *(m for m, _ in others)) if not _has_json(m)]
    if without:
        advice = f"has tokens to be joined, and no {TOKENIZER}; save it with a fast tokenizer"
        return TokenizerFiles(), [(model, f"{model.label} {advice}") for model in without]
    contributions = [Contribution(tokenizer_folder(model), tokens) for model, tokens in others]
    try:
        made = join(tokenizer_folder(shell), contributions, numbers)
    except CannotJoinError as error:
        return TokenizerFiles(), [(shell, f"the tokenizers cannot be joined: one {error}")]
    written: dict[str, Path | bytes] = {_beside(shell, n): raw for n, raw in made.items()}
    return TokenizerFiles(written, frozenset(_beside(shell, name) for name in LISTS)), []


def _has_json(model: Checkpoint) -> bool:
    return (tokenizer_folder(model) / TOKENIZER).is_file()


def unjoinable(shell: Checkpoint, others: Sequence[Checkpoint]) -> list[tuple[Checkpoint, str]]:
    """Every model whose tokenizer spells or prepares texts otherwise than the shell's, and how."""
    problems: list[tuple[Checkpoint, str]] = []
    for model in others:
        mine, theirs = shell.facts.get("tokenizer"), model.facts.get("tokenizer")
        both = _has_json(shell) and _has_json(model)
        if mine is None or theirs is None or not both or same(mine, theirs):
            continue
        try:
            files = (tokenizer_folder(m) / TOKENIZER for m in (shell, model))
            check_alike(*(read_object(file, MAX_TOKENIZER_BYTES) for file in files))
        except CannotJoinError as error:
            message = (
                f"{model.label} {error}, so that no tokenizer can cut texts as both do. Drop this "
                f"member, or set `tokenizer_source: base` to cut them as {shell.label} does"
            )
            problems.append((model, message))
    return problems


def tokens_in_config(facts: Mapping[str, Fact], vocabulary: Vocabulary) -> Mapping[str, Fact]:
    """Facts whose configuration calls tokens by name, so that they compare over numberings.

    Where positions are counted from the padding token's number, that number has a meaning of its
    own, and stays.
    """
    config = facts.get("config")
    if config is None:
        return facts
    kept = {"pad_token_id"} if POSITIONS.get(config.value.get("model_type")) else set()
    names = {number: token for token, number in vocabulary.ids.items()}
    changed = {
        key: _replaced(value, names)
        for key, value in config.value.items()
        if key.endswith("_token_id") and key not in kept
    }
    return {**facts, "config": Fact({**config.value, **changed}, config.words, config.file)}


def _replaced(value: Any, by: Mapping[int, Any]) -> Any:
    """A number, or each of a list of them, replaced where there is something to replace it by."""
    if isinstance(value, list):
        return [_replaced(item, by) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return by.get(value, value)
    return value


def config_of(
    root: Path,
    folder: str,
    rows: int | None,
    vocabulary: Vocabulary | None,
    ids: Mapping[str, int] | None,
) -> dict[str, dict[str, Any]]:
    """What the configuration says of tokens, where that is not what it says in the shell.

    Args:
        root: the shell's folder.
        folder: that of its transformer, inside.
        rows: of the tables, when they are others than the shell's.
        vocabulary: of the shell.
        ids: numbers of the result's tokens.
    """
    found: dict[str, dict[str, Any]] = {}
    numbers: dict[int, int] = {}
    if vocabulary is not None and ids is not None:
        numbers = {n: ids[token] for token, n in vocabulary.ids.items() if token in ids}
    for name in CONFIGS:
        path = Path(folder) / name
        config = read_object(root / path)
        told = _told(config, numbers)
        inner = config.get("text_config")
        if name == "config.json" and config and rows is not None:
            if isinstance(inner, dict) and "vocab_size" not in config:
                told["text_config"] = {**inner, **_told(inner, numbers), "vocab_size": rows}
            else:
                told["vocab_size"] = rows
        if told:
            found[path.as_posix()] = told
    return found


def _told(config: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """The keys that name a token by a number that is another in the result."""
    moved = {
        key: _replaced(value, numbers) for key, value in config.items() if key.endswith("_token_id")
    }
    return {key: value for key, value in moved.items() if value != config[key]}
