"""Tokenizers that lie about their tokens: vocabularies without end, numbers beyond the table."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from .attack import TABLE, TOKENS, WEIGHTS, WIDTH, Attacks, Ground, changed, packed, tokenizer
from .attack import write_json as put

attack = Attacks()
UNION = {"tokenizer_source": "union"}


def write(ground: Ground, content: Any) -> None:
    put(ground.hostile / "tokenizer.json", content)


def vocabulary(**numbers: Any) -> dict[str, Any]:
    """A tokenizer with other numbers for some tokens."""
    content = tokenizer()
    content["model"]["vocab"] |= numbers
    return content


NUMBERS = [-1, 2**31, 2**63, 10**400, 1.5, "5", None, True, [], {}, float("nan"), 3]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: repr(number)[:12])
def test_a_token_of_an_impossible_number_is_refused(number: Any, ground: Ground) -> None:
    write(ground, vocabulary(boom=number))
    file = ground.hostile / "tokenizer.json"
    ground.refused(ground.write(**UNION), names=file, says="number")


@pytest.mark.parametrize("number", [8, 10**6, 2**31 - 2])
def test_a_token_beyond_the_table_is_refused(number: int, ground: Ground) -> None:
    write(ground, vocabulary(boom=number))
    recipe = ground.write(**UNION)
    ground.refused(recipe, names=recipe, says=f"up to {number}")


@attack("hostile/tokenizer.json", "half a character")
def half_a_character(ground: Ground) -> dict[str, Any]:
    """A token that cannot be written."""
    content = tokenizer()
    content["model"]["vocab"] = {"\ud800": 0}
    content["added_tokens"] = []
    write(ground, content)
    return UNION


@attack("hostile/tokenizer.json", "twice")
def token_twice(ground: Ground) -> dict[str, Any]:
    """A token with two numbers in one object, of which readers take the one or the other."""
    raw = json.dumps(tokenizer()).replace('"boom": 5', '"boom": 5, "boom": 6')
    write(ground, raw.encode())
    return UNION


@attack("hostile/tokenizer.json", "the same number")
def number_twice(ground: Ground) -> dict[str, Any]:
    """Two tokens of one number."""
    write(ground, vocabulary(boom=6))
    return UNION


@attack("hostile/tokenizer.json", "two numbers")
def added_token_of_another_number(ground: Ground) -> dict[str, Any]:
    """A token that is in the vocabulary and among the added tokens, under two numbers."""
    content = tokenizer()
    content["added_tokens"] += [{"id": 5, "content": "merge"}]
    write(ground, content)
    return UNION


@attack("hostile/tokenizer.json", "nested more than")
def normalizer_as_deep_as_the_parser_goes(ground: Ground) -> None:
    """What can be read may still be too deep to be compared, or written."""
    deep: Any = {"type": "Sequence", "normalizers": []}
    for _ in range(400):
        deep = {"type": "Sequence", "normalizers": [deep]}
    write(ground, tokenizer(normalizer=deep))


@attack("hostile/tokenizer.json", "not valid JSON")
def normalizer_deeper_than_python_goes(ground: Ground) -> None:
    """Fifty thousand lists in each other."""
    write(ground, b'{"normalizer": ' + b"[" * 50_000)


@attack("hostile/tokenizer.json", "more lists and objects", memory=2**27)
def tokenizer_of_brackets(ground: Ground) -> None:
    """Sixty megabytes of empty lists, which would take 25 times that in memory."""
    write(ground, b'{"model": [' + b"[]," * (20 * 10**6) + b"[]]}")


@attack("hostile/tokenizer.json", "no pair of token and score")
def piece_that_is_a_list(ground: Ground) -> dict[str, Any]:
    """A Unigram's piece without a score."""
    write(ground, tokenizer(model={"type": "Unigram", "vocab": [["a", 1.0], [["b"] * 10_000]]}))
    return UNION


@attack("hostile/tokenizer.json", "whose score is no number")
def score_that_is_a_text(ground: Ground) -> dict[str, Any]:
    """A Unigram's piece with a score in words."""
    write(ground, tokenizer(model={"type": "Unigram", "vocab": [["a", "1.0"]]}))
    return UNION


@attack("hostile/tokenizer.json", "not a list of tokens")
def added_tokens_without_content(ground: Ground) -> dict[str, Any]:
    """Added tokens that say nothing."""
    write(ground, tokenizer(added_tokens=[{"id": 1}]))
    return UNION


@attack("hostile/tokenizer.json", "no map from tokens to numbers")
def no_vocabulary(ground: Ground) -> dict[str, Any]:
    """A model without a vocabulary."""
    write(ground, tokenizer(model={"type": "BPE"}))
    return UNION


@attack("recipe.yaml", "no table", lines=2)
def table_of_nothing(ground: Ground) -> dict[str, Any]:
    """A table of a trillion rows without columns: it takes no disk, its row numbers 4 TB."""
    for model in (ground.good, ground.hostile):
        nothing = {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}
        (model / WEIGHTS).write_bytes(packed({TABLE: nothing}))
    return {"pad_to_multiple_of": 64}


@attack("recipe.yaml", "rows", lines=2)
def table_of_a_billion_rows(ground: Ground) -> dict[str, Any]:
    """A hole of two gigabytes is a table of a billion rows; their numbers would take 4 GB."""
    header = {TABLE: {"dtype": "F16", "shape": [2**30, 1], "data_offsets": [0, 2**31]}}
    for model in (ground.good, ground.hostile):
        raw = packed(header)
        (model / WEIGHTS).write_bytes(raw)
        with (model / WEIGHTS).open("ab") as file:
            file.truncate(len(raw) + 2**31)
    return {"pad_to_multiple_of": 3}


@attack("recipe.yaml", "pad_to_multiple_of")
def padding_to_a_trillion(ground: Ground) -> dict[str, Any]:
    """A recipe that wants a table of a trillion rows."""
    return {"pad_to_multiple_of": 10**12}


test_a_lying_tokenizer_is_refused = attack.test()


def test_many_tokens_are_joined_in_bounded_time(ground: Ground) -> None:
    """Merely large: twenty thousand more tokens on one side."""
    content = tokenizer()
    more = {f"word{i}": len(TOKENS) + i for i in range(20_000)}
    content["model"]["vocab"] |= more
    write(ground, content)
    with changed(ground.hostile / WEIGHTS) as found:
        found[TABLE] = np.concatenate([found[TABLE], np.ones((20_000, WIDTH), np.float32)])
    made = ground.merged(ground.write(**UNION))
    told = json.loads((made / "tokenizer.json").read_bytes())
    assert len(told["model"]["vocab"]) == len(TOKENS) + 20_000
