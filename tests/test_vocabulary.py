"""Members with other tokenizers are merged by token, and what is written knows every token."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Family
from helpers import (
    WEIGHTS,
    boom_merge,
    changed_json,
    changed_tensors,
    files,
    listed,
    recipe,
    write_recipe,
)
from reference import float64_from_storage
from tiny_models import (
    ARCHITECTURES,
    build_modernbert,
    build_t5_encoder,
    cast,
    embed,
    perturb,
    read_tensors,
    to_pickle,
)
from vocabularies import (
    TABLES,
    added,
    grow,
    json_of,
    permuted,
    rows_by_definition,
    rows_of,
    stored,
    vocab_of,
)

import mergekit_embed
from mergekit_embed import CheckpointError, PlanError, RecipeError
from mergekit_embed.checkpoint import (
    Fallback,
    RemappedTensor,
    StoredTensor,
    find_tables,
    open_checkpoint,
    read_header,
    read_vocabulary,
)
from mergekit_embed.dtypes import DType
from mergekit_embed.engine.reader import Reader
from mergekit_embed.methods import available
from mergekit_embed.methods.registry import REQUIRED
from mergekit_embed.recipe import load

TABLE = TABLES["minilm"]
TEXTS = ["a quick brown fox", "the zebra jumps over a lazy dog", "yak and rain; sing!"]


def merged(output: Path, *models: Path, **keys: Any) -> Path:
    """The result of a recipe, linear unless it is told otherwise."""
    mergekit_embed.merge(
        {"merge_method": "linear", "models": listed(*map(str, models)), **keys}, output
    )
    return output


def ids_of(folder: Path, text: str) -> list[int]:
    """How transformers cuts a text with the tokenizer of a folder, without special tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# --- other numbers for the same tokens ----------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"merge_method": "linear"},
        {"merge_method": "task_arithmetic", "base_model": "base"},
        {"merge_method": "ties", "base_model": "base", "parameters": {"density": 0.4}},
        {"merge_method": "multislerp", "base_model": "base", "granularity": "row"},
        {"merge_method": "dare_ties", "base_model": "base", "seed": 3},
        {"merge_method": "median"},
        {"merge_method": "linear", "out_dtype": "bfloat16"},
        {"merge_method": "linear", "max_shard_size": "20kB"},
    ],
    ids=lambda keys: "-".join(map(str, keys.values()))[:30],
)
def test_permuted_vocabularies_merge_as_if_they_were_not(
    keys: dict[str, Any], own_family: Family
) -> None:
    root, (m1, m2, m3) = own_family.root, own_family.members
    p2 = permuted(m2, root / "p2", TABLE, 2, special=True)
    p3 = permuted(m3, root / "p3", TABLE, 3, special=True)
    if "base_model" in keys:
        keys = {**keys, "base_model": str(own_family.base)}
    want = merged(root / "want", m1, m2, m3, **keys)
    got = merged(root / "got", m1, p2, p3, tokenizer_source="base", **keys)
    assert files(got) == files(want)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_is_merged_by_token(kind: str, tmp_path: Path) -> None:
    base = ARCHITECTURES[kind](tmp_path / "base", seed=0)
    other = perturb(base, tmp_path / "other", 1)
    moved = permuted(other, tmp_path / "moved", TABLES[kind], 5)
    assert ids_of(moved, TEXTS[0]) != ids_of(other, TEXTS[0])
    want = merged(tmp_path / "want", base, other)
    got = merged(tmp_path / "got", base, moved, tokenizer_source="base")
    assert files(got) == files(want)


def test_the_tables_of_a_pickle_are_moved_too(own_family: Family) -> None:
    root, (m1, m2, _) = own_family.root, own_family.members
    p2 = to_pickle(permuted(m2, root / "p2", TABLE, 2))
    want = merged(root / "want", m1, m2)
    assert files(merged(root / "got", m1, p2, tokenizer_source="base")) == files(want)


def test_the_vocabulary_of_a_model_brings_its_files_and_numbers(own_family: Family) -> None:
    root, (m1, m2, _) = own_family.root, own_family.members
    p2 = permuted(m2, root / "p2", TABLE, 2, special=True)
    want = merged(root / "want", m1, m2)
    got = merged(root / "got", m1, p2, tokenizer_source=str(p2))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (got / name).read_bytes() == (p2 / name).read_bytes()
    assert json_of(got / "config.json")["pad_token_id"] == vocab_of(p2)["[PAD]"] != 0
    mine, theirs = rows_of(got, TABLE), rows_of(want, TABLE)
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[token], theirs[token]) for token in mine)
    assert np.array_equal(embed(got, TEXTS), embed(want, TEXTS))


def test_files_that_the_chosen_model_lacks_are_left_out(own_family: Family) -> None:
    m1, m2, _ = own_family.members
    (m1 / "vocab.txt").write_text("\n".join(vocab_of(m1)) + "\n")
    (m1 / "special_tokens_map.json").write_text("{}")
    p2 = permuted(m2, own_family.root / "p2", TABLE, 2)
    got = merged(own_family.root / "got", m1, p2, tokenizer_source=str(p2))
    assert not (got / "vocab.txt").exists()
    assert not (got / "special_tokens_map.json").exists()
    assert (got / "1_Pooling").is_dir()


def test_members_that_agree_are_left_as_they_are(own_family: Family) -> None:
    m1, m2, m3 = map(str, own_family.members)
    keys = {"merge_method": "linear", "models": listed(m1, m2, m3)}
    plain = mergekit_embed.plan(keys, own_family.root / "out")
    for source in ("base", "union", m1):
        planned = mergekit_embed.plan({**keys, "tokenizer_source": source}, own_family.root / "out")
        assert repr(planned.jobs) == repr(plain.jobs)
        assert (planned.told, planned.written, planned.omitted) == ({}, {}, frozenset())
        assert planned.notes == plain.notes
    permuted(Path(m3), own_family.root / "p3", TABLE, 3)
    keys["models"] = listed(m1, m2, own_family.root / "p3")
    planned = mergekit_embed.plan({**keys, "tokenizer_source": "base"}, own_family.root / "out")
    (job,) = (job for job in planned.jobs if job.name == TABLE)
    assert [type(source) for source in job.sources] == [StoredTensor, StoredTensor, RemappedTensor]


def test_a_tokenizer_of_older_files_is_read(own_family: Family) -> None:
    root, (m1, m2, _) = own_family.root, own_family.members
    want = merged(root / "want", m1, m2)
    p2 = permuted(m2, root / "p2", TABLE, 2, special=True)
    numbers = vocab_of(p2)
    (p2 / "tokenizer.json").unlink()
    last = max(numbers, key=numbers.__getitem__)
    ordered = sorted(numbers.keys() - {last}, key=numbers.__getitem__)
    (p2 / "vocab.txt").write_text("\n".join(ordered) + "\n")
    (p2 / "added_tokens.json").write_text(json.dumps({last: numbers[last]}))
    assert files(merged(root / "got", m1, p2, tokenizer_source="base")) == files(want)
    (p2 / "vocab.txt").unlink()
    (p2 / "vocab.json").write_text(json.dumps({t: numbers[t] for t in ordered}))
    assert files(merged(root / "again", m1, p2, tokenizer_source="base")) == files(want)


def test_a_list_that_both_have_is_not_all_that_a_tokenizer_knows(own_family: Family) -> None:
    m1, m2, _ = own_family.members
    numbers = vocab_of(m1)
    for model in (m1, m2):
        lines = "\n".join(sorted(numbers, key=numbers.__getitem__))
        (model / "vocab.txt").write_text(lines + "\n")
    grow(m1, TABLE, 1, tokens=["<new>"])
    (m2 / "tokenizer.json").unlink()
    out = merged(own_family.root / "out", m1, m2, tokenizer_source="base")
    number = vocab_of(m1)["<new>"]
    assert np.array_equal(stored(out, TABLE)[number], stored(m1, TABLE)[number])


def test_models_of_sentencepiece_are_compared_by_their_bytes(own_family: Family) -> None:
    m1, m2, _ = own_family.members
    for model in (m1, m2):
        (model / "tokenizer.json").unlink()
        (model / "spiece.model").write_bytes(b"\n\x05")
    plain = merged(own_family.root / "plain", m1, m2)
    out = merged(own_family.root / "out", m1, m2, tokenizer_source="base")
    assert files(out) == files(plain)


def test_a_bare_base_gives_rows_and_no_files(own_family: Family) -> None:
    root, (m1, m2, _) = own_family.root, own_family.members
    base = permuted(own_family.base, root / "bare", TABLE, 4)
    (base / "modules.json").unlink()
    for model in (base, m2):
        grow(model, TABLE, len(model.name), tokens=["<both>"])
    grow(m2, TABLE, 7, tokens=["<new>"])
    keys = {"base_model": str(base), "merge_method": "task_arithmetic", "extra_tensors": "drop"}
    out = merged(root / "out", m1, m2, tokenizer_source="union", **keys)
    numbers = vocab_of(m1) | {"<both>": 305, "<new>": 306}
    assert vocab_of(out) == numbers
    have = [rows_of(model, TABLE) for model in (base, m1, m2)]
    origin, *tables = rows_by_definition(numbers, have, have[0], have[1:], 307)
    want = origin + sum(table - origin for table in tables)
    np.testing.assert_allclose(stored(out, TABLE), want, rtol=2e-7, atol=1e-9)


# --- tokens that only some have -----------------------------------------------------------


@pytest.mark.parametrize("source", ["base", "union"])
@pytest.mark.parametrize(
    ("method", "based"), [("linear", False), ("linear", True), ("task_arithmetic", True)]
)
def test_rows_are_those_of_the_definition(
    source: str, method: str, based: bool, own_family: Family
) -> None:
    root, members = own_family.root, own_family.members
    m1, m2, m3 = members
    grow(own_family.base, TABLE, 10, tokens=["<base>"])
    grow(m1, TABLE, 11, pieces=["yak"], tokens=["<one>"])
    grow(m2, TABLE, 12, tokens=["<one>", "<two>"], padding=3)
    permuted(m3, root / "p3", TABLE, 13)
    p3 = grow(root / "p3", TABLE, 13, pieces=["zebra", "yak"])
    weights = [0.5, 1.0, 0.25]
    models = [
        {"model": str(model), "parameters": {"weight": weight}}
        for model, weight in zip((m1, m2, p3), weights, strict=True)
    ]
    keys: dict[str, Any] = {"merge_method": method, "models": models, "tokenizer_source": source}
    if based:
        keys["base_model"] = str(own_family.base)
    mergekit_embed.merge(keys, root / "out")

    shell = own_family.base if based else m1
    others = [m for m in (m1, m2, p3) if m != shell]
    numbers = vocab_of(shell)
    if source == "union":
        for other in others:
            theirs = vocab_of(other)
            for token in sorted(theirs, key=theirs.__getitem__):
                numbers.setdefault(token, len(numbers))
    assert vocab_of(root / "out") == numbers
    rows = len(numbers)
    have = [rows_of(model, TABLE) for model in (m1, m2, p3)]
    base = rows_of(own_family.base, TABLE) if based else None
    tables = rows_by_definition(numbers, have, base, have, rows)
    if method == "linear":
        want = np.tensordot(np.array(weights) / sum(weights), tables, 1)
    else:
        (origin,) = rows_by_definition(numbers, [base or {}], base, have, rows)
        want = origin + np.tensordot(weights, [table - origin for table in tables], 1)
    got = stored(root / "out", TABLE)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=2e-7, atol=1e-12)
    assert json_of(root / "out" / "config.json")["vocab_size"] == rows


UNIONS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "minilm": ({"pieces": ["zebra", "##yak"]}, {"pieces": ["gnu"], "tokens": ["<new>", "emu"]}),
    "modernbert": (
        {"pieces": ["ze", "zeb"], "merges": [("z", "e"), ("ze", "b")]},
        {"pieces": ["gnu", "gn"], "merges": [("g", "n"), ("gn", "u")], "tokens": ["<new>", "emu"]},
    ),
    "qwen3": (
        {"pieces": ["ze", "zeb"], "merges": [("z", "e"), ("ze", "b")]},
        {"pieces": ["gn", "gnu"], "merges": [("g", "n"), ("gn", "u")], "tokens": ["<new>", "emu"]},
    ),
    "xlm_roberta": (
        {"pieces": {"▁zebra": -3.0}},
        {"pieces": {"▁gnu": -3.5}, "tokens": ["<new>", "emu"]},
    ),
    "t5_encoder": (
        {"pieces": {"▁zebra": -3.0}},
        {"pieces": {"▁gnu": -3.5}, "tokens": ["<new>", "emu"]},
    ),
}

CUTS = {
    "minilm": {"zebra": ["zebra"], "ayak": ["a", "##yak"], "gnu": ["gnu"]},
    "modernbert": {"zeb": ["zeb"], "gnu": ["gnu"]},
    "qwen3": {"zeb": ["zeb"], "gnu": ["gnu"]},
    "xlm_roberta": {"zebra": ["▁zebra"], "gnu": ["▁gnu"]},
    "t5_encoder": {"zebra": ["▁zebra"], "gnu": ["▁gnu"]},
}
"""How texts with tokens of one member or the other are cut by a tokenizer that has all."""


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("kind", UNIONS)
def test_a_union_cuts_texts_with_the_tokens_of_all(
    kind: str, decoder: bool, tmp_path: Path
) -> None:
    table = TABLES[kind]
    base = ARCHITECTURES[kind](tmp_path / "base", seed=0)
    if decoder:  # as transformers 4 wrote them
        with changed_json(base / "tokenizer_config.json") as config:
            known = json_of(base / "tokenizer.json")["added_tokens"]
            config["added_tokens_decoder"] = {
                str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in known
            }
    before = vocab_of(base)
    one = grow(perturb(base, tmp_path / "one", 1), table, 1, **UNIONS[kind][0])
    two = grow(perturb(base, tmp_path / "two", 2), table, 2, **UNIONS[kind][1])
    out = merged(tmp_path / "out", base, one, two, tokenizer_source="union")

    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    numbers = dict(before)
    for model in (one, two):
        theirs = vocab_of(model)
        for token in sorted(theirs, key=theirs.__getitem__):
            numbers.setdefault(token, len(numbers))
    assert vocab_of(out) == numbers
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.get_vocab() == numbers
    assert len(tokenizer) == len(numbers) == json_of(out / "config.json")["vocab_size"]
    for text, tokens in CUTS[kind].items():
        assert tokenizer.tokenize(text) == tokens
        assert ids_of(out, text) == [numbers[token] for token in tokens]
    assert numbers["<new>"] in ids_of(out, "the <new>")
    assert numbers["emu"] in ids_of(out, "the emu")
    model = SentenceTransformer(str(out), device="cpu", local_files_only=True)
    assert model.tokenizer.get_vocab() == numbers
    for text in ("the quick brown fox", "see the cat run"):
        assert ids_of(out, text) == ids_of(base, text)
    assert not np.array_equal(*embed(out, ["the <new>", "the emu"]))

    rows = [rows_of(model, table) for model in (base, one, two)]
    want = np.mean(rows_by_definition(numbers, rows, None, rows, len(numbers)), axis=0)
    np.testing.assert_allclose(stored(out, table), want, rtol=2e-7, atol=1e-12)


def test_a_union_leaves_out_lists_that_would_contradict_it(own_family: Family) -> None:
    m1, m2, _ = own_family.members
    for model in (m1, m2):
        (model / "vocab.txt").write_text("\n".join(vocab_of(model)) + "\n")
    (m1 / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}')
    grow(m2, TABLE, 2, tokens=["<new>"])
    out = merged(own_family.root / "out", m1, m2, tokenizer_source="union")
    assert not (out / "vocab.txt").exists()
    assert (out / "special_tokens_map.json").exists()
    with changed_json(m1 / "tokenizer_config.json") as config:
        config["added_tokens_decoder"] = {"0": added("[PAD]", 0, special=True)}
    again = merged(own_family.root / "again", m1, m2, tokenizer_source="union")
    decoder = json_of(again / "tokenizer_config.json")["added_tokens_decoder"]
    number = len(vocab_of(m1))
    assert decoder.keys() == {"0", str(number)}
    assert decoder[str(number)]["content"] == "<new>"
    assert ids_of(again, "<new>") == [number]


def test_two_forms_of_merges_are_written_as_one(tmp_path: Path) -> None:
    table = TABLES["modernbert"]
    one = build_modernbert(tmp_path / "one", seed=0)
    two = perturb(one, tmp_path / "two", 1)
    grow(two, table, 2, pieces=["ze", "zeb"], merges=[("z", "e"), ("ze", "b")])
    with changed_json(one / "tokenizer.json") as content:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    out = merged(tmp_path / "out", one, two, tokenizer_source="union")
    assert ids_of(out, "zeb") == [vocab_of(two)["zeb"]]


# --- rows to which no token belongs -------------------------------------------------------


def test_padding_rows_are_zero_where_anything_is_moved(tmp_path: Path) -> None:
    table = TABLES["t5_encoder"]
    one = grow(build_t5_encoder(tmp_path / "one", seed=0), table, 1, padding=28)
    two = grow(perturb(one, tmp_path / "two", 1), table, 2)
    rows, count = len(stored(one, table)), len(vocab_of(one))
    assert rows == count + 28
    plain = merged(tmp_path / "plain", one, two, tokenizer_source="union")
    assert (stored(plain, table)[count:] > 0.9).all()  # nothing is moved: as they were
    three = permuted(two, tmp_path / "three", table, 3)
    out = stored(merged(tmp_path / "out", one, three, tokenizer_source="base"), table)
    assert out.shape == (rows, 32)
    assert (out[count:] == 0).all()
    assert np.array_equal(out[:count], stored(plain, table)[:count])


def test_new_tokens_take_the_rows_behind_the_last_token(tmp_path: Path) -> None:
    table = TABLES["t5_encoder"]
    one = grow(build_t5_encoder(tmp_path / "one", seed=0), table, 1, padding=28)
    two = build_t5_encoder(tmp_path / "two", seed=0)
    grow(two, table, 2, tokens=["<new>"])
    out = merged(tmp_path / "out", one, two, tokenizer_source="union")
    number = len(vocab_of(one))
    assert vocab_of(out)["<new>"] == number
    got = stored(out, table)
    assert got.shape == stored(one, table).shape
    assert np.array_equal(got[number], stored(two, table)[number])
    assert (got[number + 1 :] == 0).all()


@pytest.mark.parametrize(
    "form", [{"pad_to_multiple_of": 64}, {"tokenizer": {"pad_to_multiple_of": 64}}]
)
def test_rows_are_padded_to_a_multiple(form: dict[str, Any], own_family: Family) -> None:
    m1, m2, _ = own_family.members
    plain = merged(own_family.root / "plain", m1, m2)
    out = merged(own_family.root / "out", m1, m2, **form)
    want, got = stored(plain, TABLE), stored(out, TABLE)
    assert got.shape == (320, 32) != want.shape
    assert np.array_equal(got[: len(want)], want)
    assert (got[len(want) :] == 0).all()
    assert json_of(out / "config.json")["vocab_size"] == 320
    assert np.array_equal(embed(out, TEXTS), embed(plain, TEXTS))
    others = [name for name in files(out) if name not in {WEIGHTS, "config.json"}]
    assert all(files(out)[name] == files(plain)[name] for name in others)
    again = merged(own_family.root / "again", out, pad_to_multiple_of=64)
    assert files(again)[WEIGHTS] == files(out)[WEIGHTS]


def test_a_union_is_padded_too(own_family: Family) -> None:
    m1, m2, _ = own_family.members
    grow(m2, TABLE, 2, tokens=["<new>"])
    keys = {"source": "union", "pad_to_multiple_of": 128}
    out = merged(own_family.root / "out", m1, m2, tokenizer=keys)
    got = stored(out, TABLE)
    number = vocab_of(out)["<new>"]
    assert got.shape[0] == json_of(out / "config.json")["vocab_size"] == 384
    assert np.array_equal(got[number], stored(m2, TABLE)[number])
    assert (got[number + 1 :] == 0).all()


@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize(
    "name", sorted(name for name, method in available().items() if method.statistics is None)
)
def test_every_method_gives_zero_rows_where_no_token_is(
    name: str, granularity: str, own_family: Family
) -> None:
    method = available()[name]
    if granularity not in method.units:
        granularity = "tensor"
    models = listed(*own_family.members)[: method.exactly or 3]
    keys: dict[str, Any] = {"merge_method": name, "models": models, "granularity": granularity}
    if method.base == "origin":
        keys["base_model"] = str(own_family.base)
    needed = {n: 0.5 for n, p in method.parameters.items() if p.default is REQUIRED}
    keys["parameters"] = needed
    mergekit_embed.merge({**keys, "pad_to_multiple_of": 64}, own_family.root / "out")
    got = stored(own_family.root / "out", TABLE)
    assert (got[305:] == 0).all()
    assert (got[:305] != 0).any(axis=1).all()


# --- together with other keys -------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_means_of_stored_types_are_taken_in_float64(dtype: str, own_family: Family) -> None:
    m1, m2, m3 = own_family.members
    for model in (m2, m3):
        grow(model, TABLE, len(model.name), tokens=["<new>"])
        grow(model, TABLE, int(model.name[1]), tokens=["<more>"])
    for model in own_family.members:
        cast(model, dtype)
    out = merged(own_family.root / "out", m1, m2, m3, tokenizer_source="union", out_dtype="float64")
    rows = [rows_of(model, TABLE) for model in own_family.members]
    numbers = vocab_of(out)
    tables = rows_by_definition(numbers, rows, None, rows, len(numbers))
    got = read_tensors(out)[TABLE][1]
    np.testing.assert_allclose(got, np.mean(tables, axis=0), rtol=1e-14, atol=1e-17)


def test_adapters_on_another_vocabulary_are_folded_and_moved(own_family: Family) -> None:
    from test_adapters import write_adapter

    root, (m1, m2, _) = own_family.root, own_family.members
    p2 = permuted(m2, root / "p2", TABLE, 2)
    before, after = vocab_of(m2), vocab_of(p2)
    new = np.empty(len(before), dtype=int)
    new[[before[token] for token in before]] = [after[token] for token in before]
    random = np.random.default_rng(0)
    a = random.normal(size=(4, len(new))).astype(np.float32)
    b = random.normal(size=(32, 4)).astype(np.float32)
    whole = random.normal(size=(len(new), 32)).astype(np.float32)
    moved_a, moved = np.empty_like(a), np.empty_like(whole)
    moved_a[:, new], moved[new] = a, whole
    prefix = "base_model.model.embeddings.word_embeddings"
    for name, (mine, theirs) in {
        "lora": (
            {f"{prefix}.lora_embedding_A": a, f"{prefix}.lora_embedding_B": b},
            {f"{prefix}.lora_embedding_A": moved_a, f"{prefix}.lora_embedding_B": b},
        ),
        "saved": ({f"{prefix}.weight": whole}, {f"{prefix}.weight": moved}),
    }.items():
        first = write_adapter(root / f"{name}-a", mine, r=4)
        second = write_adapter(root / f"{name}-b", theirs, r=4)
        want = merged(root / f"{name}-want", m1, Path(f"{m2}+{first}"))
        keys = {"tokenizer_source": "base"}
        got = merged(root / f"{name}-got", m1, Path(f"{p2}+{second}"), **keys)
        assert files(got) == files(want)


def test_slices_and_longer_positions_go_with_other_vocabularies(own_family: Family) -> None:
    root, (m1, m2, _) = own_family.root, own_family.members
    p2 = permuted(m2, root / "p2", TABLE, 2)

    def run(output: Path, second: Path, **keys: Any) -> Path:
        sources = [
            {"model": str(m1), "layer_range": [0, 1]},
            {"model": str(second), "layer_range": [1, 2]},
        ]
        recipe = {"merge_method": "linear", "slices": [{"sources": sources}], **keys}
        mergekit_embed.merge({**recipe, "post": [{"extend_positions": 100}]}, output)
        return output

    want = run(root / "want", m2)
    assert files(run(root / "got", p2, tokenizer_source="base")) == files(want)
    other = run(root / "other", p2, tokenizer_source=str(p2), pad_to_multiple_of=64)
    assert json_of(other / "tokenizer_config.json")["model_max_length"] == 100
    assert json_of(other / "config.json")["max_position_embeddings"] == 100
    assert json_of(other / "config.json")["vocab_size"] == 320
    np.testing.assert_array_equal(embed(other, TEXTS), embed(want, TEXTS))


def test_output_heads_are_moved_with_their_biases(own_family: Family) -> None:
    root, (m1, m2, _) = own_family.root, own_family.members
    head, bias = "cls.predictions.decoder.weight", "cls.predictions.bias"
    for seed, model in enumerate((m1, m2)):
        with changed_tensors(model) as tensors:
            random = np.random.default_rng(seed)
            tensors[head] = random.normal(size=tensors[TABLE].shape).astype(np.float32)
            tensors[bias] = random.normal(size=len(tensors[TABLE])).astype(np.float32)
    want = merged(root / "want", m1, m2)
    p2 = permuted(m2, root / "p2", TABLE, 2)
    before, after = vocab_of(m2), vocab_of(p2)
    with changed_tensors(p2) as tensors:
        for name in (head, bias):
            values = np.empty_like(tensors[name])
            for token, number in before.items():
                values[after[token]] = tensors[name][number]
            tensors[name] = values
    assert files(merged(root / "got", m1, p2, tokenizer_source="base")) == files(want)


def test_the_command_tells_what_becomes_of_tokens(
    own_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_family.root)
    permuted(Path("m2"), Path("p2"), TABLE, 2)
    grow(Path("p2"), TABLE, 2, tokens=["<new>"])
    file = recipe("m1", "p2", tokenizer_source="union")
    ran = boom_merge(file, "--dry-run")
    assert ran.code == 0
    assert "m1 lacks 1 token, and takes the members' mean for each" in ran.out
    assert "p2 numbers its tokens otherwise, and its rows are put in order" in ran.out
    assert "the result has 306 tokens and 306 rows" in ran.out
    ran = boom_merge(recipe("m1", "p2", tokenizer_source="./m1"), "--dry-run")
    assert (
        "p2 numbers its tokens otherwise, and its rows are put in order; has 1 token that "
        in ran.out
    )


# --- refusals -----------------------------------------------------------------------------


def _other_case(folder: Path) -> None:
    with changed_json(folder / "tokenizer.json") as content:
        content["normalizer"]["lowercase"] = False


def _other_type(folder: Path) -> None:
    with changed_json(folder / "tokenizer.json") as content:
        vocab = content["model"]["vocab"]
        content["model"] = {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}


def _only_lines(folder: Path) -> None:
    numbers = vocab_of(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(numbers, key=numbers.__getitem__)) + "\n")


def _too_few_rows(folder: Path) -> None:
    with changed_tensors(folder) as tensors:
        tensors[TABLE] = tensors[TABLE][:-1]


def _no_table(folder: Path) -> None:
    with changed_tensors(folder) as tensors:
        tensors["embeddings.words.weight"] = tensors.pop(TABLE)


def _bytes(folder: Path) -> None:
    with changed_tensors(folder) as tensors:
        tensors[TABLE] = tensors[TABLE].astype(np.int8)


REFUSALS = {
    "case": (_other_case, "m2 has another normalizer (tokenizer.json), so that no tokenizer can"),
    "type": (_other_type, "m2 has a WordLevel tokenizer, and not a WordPiece, so that no"),
    "lines": (_only_lines, "m2 has tokens to be joined, and no tokenizer.json; save it with a"),
    "rows": (
        _too_few_rows,
        "m2 numbers its tokens up to 305, and embeddings.word_embeddings.weight has 305 rows.",
    ),
    "table": (_no_table, "m2 has no table that is known of token embeddings"),
    "bytes": (_bytes, "m2 stores embeddings.word_embeddings.weight as I8, whose rows cannot be"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_joined_is_refused(
    case: str, own_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_family.root)
    change, words = REFUSALS[case]
    grow(Path("m2"), TABLE, 2, tokens=["<new>"])
    change(Path("m2"))
    before = files(Path())
    recipe("m1", "m2", tokenizer_source="union")
    ran = boom_merge("recipe.yaml", "-o", "out")
    assert ran.code == 2
    line, last = ran.err.splitlines()
    assert line.startswith(f"recipe.yaml:7:5: models[1]: {words}")
    assert last == "1 problem; nothing was touched"
    after = files(Path())
    after.pop("recipe.yaml")
    assert after == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tokenizer_source: m3", "4:19: tokenizer_source: must be one of base, union, m1, m2, not"),
        ("tokenizer_source: ''", "4:19: tokenizer_source: must not be empty"),
        ("tokenizer: {source: m3}", "4:21: tokenizer.source: must be one of base, union, m1, m2"),
        ("tokenizer: union", "4:12: tokenizer: must be a mapping such as `{source: union}`, not"),
        (
            "tokenizer: {source: union, tokens: {a: {source: m1}}}",
            "4:28: tokenizer.tokens: rows are not chosen token by token here: a model that",
        ),
        ("tokenizer: {sauce: union}", "4:13: tokenizer.sauce: unknown key, did you mean"),
        (
            "tokenizer: {source: base}\ntokenizer_source: base",
            "4:13: tokenizer.source: and `tokenizer_source` say the same; keep one",
        ),
        ("pad_to_multiple_of: 0", "4:21: pad_to_multiple_of: must be at least 1, not 0"),
        ("pad_to_multiple_of: many", "4:21: pad_to_multiple_of: must be a whole number"),
    ],
)
def test_a_wrong_vocabulary_is_told_with_its_place(text: str, told: str, tmp_path: Path) -> None:
    models = "merge_method: linear\nmodels:\n  [{model: m1}, {model: m2}]\n"
    file = write_recipe(tmp_path / "recipe.yaml", f"{models}{text}\n")
    with pytest.raises(RecipeError) as raised:
        load(file)
    (problem,) = raised.value.problems
    assert str(problem).removeprefix(f"{file}:").startswith(told)


def test_a_model_may_be_named_by_another_spelling_of_its_path() -> None:
    keys = {"merge_method": "linear", "models": listed("./m1", "org/model@v1")}
    assert load({**keys, "tokenizer_source": "m1"}).tokenizer_source == "./m1"
    assert load({**keys, "tokenizer_source": "org/model@v1"}).tokenizer_source == "org/model@v1"
    assert load({**keys, "tokenizer": {"source": "union"}}).tokenizer_source == "union"
    assert load({**keys, "tokenizer": {"pad_to_multiple_of": 8}}).pad_to_multiple_of == 8


def test_what_sentencepiece_alone_has_cannot_be_read(own_family: Family) -> None:
    m1, m2, _ = own_family.members
    (m2 / "tokenizer.json").unlink()
    (m2 / "spiece.model").write_bytes(b"\n\x05")
    keys = {"merge_method": "linear", "models": listed(m1, m2), "tokenizer_source": "union"}
    file = write_recipe(own_family.root / "recipe.yaml", keys)
    with pytest.raises(CheckpointError, match="save it with a fast tokenizer") as raised:
        mergekit_embed.plan(file, own_family.root / "out")
    assert "has spiece.model and no tokenizer.json" in str(raised.value)
    assert str(raised.value).endswith(f" ({file}:7:5)")


def test_padding_that_positions_are_counted_from_keeps_its_number(tmp_path: Path) -> None:
    table = TABLES["xlm_roberta"]
    one = ARCHITECTURES["xlm_roberta"](tmp_path / "one", seed=0)
    two = permuted(one, tmp_path / "two", table, 1, special=True)
    assert vocab_of(two)["<pad>"] != 1
    with pytest.raises(PlanError, match=r"pad_token_id=\d+, .* pad_token_id=1 "):
        merged(tmp_path / "out", one, two, tokenizer_source="base")


HOSTILE: Mapping[str, tuple[str, Any, str]] = {
    "a list": ("tokenizer.json", [], "has no map from tokens to numbers"),
    "no model": ("tokenizer.json", {"model": 3}, "has no map from tokens to numbers"),
    "text as a number": ("tokenizer.json", {"model": {"vocab": {"a": "1"}}}, "the number '1'"),
    "truth as a number": ("tokenizer.json", {"model": {"vocab": {"a": True}}}, "the number True"),
    "a negative number": ("tokenizer.json", {"model": {"vocab": {"a": -1}}}, "the number -1"),
    "a huge number": ("tokenizer.json", {"model": {"vocab": {"a": 2**63}}}, "the number 92233"),
    "one number twice": (
        "tokenizer.json",
        {"model": {"vocab": {"a": 1, "b": 1}}},
        "gives 'a' and 'b' the same number, 1",
    ),
    "two numbers": (
        "tokenizer.json",
        {"model": {"vocab": {"a": 1}}, "added_tokens": [{"content": "a", "id": 2}]},
        "gives 'a' two numbers, 1 and 2",
    ),
    "added tokens in a map": (
        "tokenizer.json",
        {"model": {"vocab": {"a": 1}}, "added_tokens": {"a": 1}},
        "`added_tokens` that are not a list of tokens",
    ),
    "an added token without a number": (
        "tokenizer.json",
        {"model": {"vocab": {}}, "added_tokens": [{"content": "a"}]},
        "gives 'a' the number None",
    ),
    "pieces without scores": ("tokenizer.json", {"model": {"vocab": ["a"]}}, "no pair of token"),
    "a score in words": ("tokenizer.json", {"model": {"vocab": [["a", "b"]]}}, "is no number"),
    "half a character": ("tokenizer.json", {"model": {"vocab": {"\ud800": 1}}}, "half a char"),
    "a list of words": ("vocab.json", ["a"], "has no map from tokens to numbers"),
    "added tokens in a list": ("added_tokens.json", [], "is not a JSON object"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tokenizer_is_refused(case: str, family: Family, tmp_path: Path) -> None:
    file, content, told = HOSTILE[case]
    folder = shutil.copytree(family.base, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")
    model = open_checkpoint(folder)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as raised:
        read_vocabulary(model)
    assert told in str(raised.value)
    assert str(folder / file) in str(raised.value)
    (folder / "vocab.json").unlink()
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.txt").write_bytes(b"\xff\n")
    with pytest.raises(CheckpointError, match="added_tokens" if "added_t" in file else "UTF-8"):
        read_vocabulary(model)


def test_hostile_merges_are_refused(tmp_path: Path) -> None:
    one = build_modernbert(tmp_path / "one", seed=0)
    two = grow(perturb(one, tmp_path / "two", 1), TABLES["modernbert"], 2, pieces=["ze"])
    with changed_json(two / "tokenizer.json") as content:
        content["model"]["merges"].append([1, 2, 3])
    with pytest.raises(PlanError, match=r"\[1, 2, 3\] among its merges"):
        merged(tmp_path / "out", one, two, tokenizer_source="union")


# --- which tensors, and how they are read -------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_tables_of_every_architecture_are_known(kind: str, tmp_path: Path) -> None:
    model = open_checkpoint(ARCHITECTURES[kind](tmp_path / "model", seed=0, dense=True))
    found = {role: find_tables(component) for role, component in model.components.items()}
    (tables,) = (table for table in found.values() if table is not None)
    assert tables.names == (TABLES[kind],)
    assert tables.rows == len(vocab_of(tmp_path / "model"))


def test_the_table_of_a_static_embedding_is_known(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    def build(folder: Path, words: list[str]) -> Path:
        numbers = {word: number for number, word in enumerate(words)}
        tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        weights = np.array([[len(word), ord(word[0])] for word in words], dtype=np.float32)
        module = StaticEmbedding(tokenizer, embedding_weights=weights)
        SentenceTransformer(modules=[module], device="cpu").save(str(folder))
        return folder

    one = build(tmp_path / "one", ["[UNK]", "cat", "dog"])
    two = build(tmp_path / "two", ["bird", "dog", "[UNK]"])
    out = merged(tmp_path / "out", one, two, tokenizer_source="union", pad_to_multiple_of=8)
    (table,) = (values for _, values in read_tensors(out).values())
    want = [[5, 91], [3, 99], [3, 100], [4, 98], *[[0, 0]] * 4]
    assert np.array_equal(table, want)
    assert np.array_equal(embed(out, ["bird dog"]), [[3.5, 99]])


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["model.embed_tokens.weight", "lm_head.weight"], 2),
        (["bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.bias"], 2),
        (["embeddings.tok_embeddings.weight", "decoder.weight", "decoder.bias"], 3),
        (["shared.weight", "encoder.embed_tokens.weight", "lm_head.weight"], 3),
        (["transformer.wte.weight", "transformer.wpe.weight"], 1),
        (["roberta.embeddings.word_embeddings.weight", "lm_head.dense.weight"], 1),
        (["embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.weight"], 1),
        (["linear.weight", "decoder.weight"], 0),
        (["embedding.weight"], 0),
    ],
)
def test_tables_are_known_by_their_names(names: list[str], found: int, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "config.json").write_text("{}")
    save_file({name: np.zeros((6, 4), np.float32) for name in names}, tmp_path / WEIGHTS)
    (component,) = open_checkpoint(tmp_path).components.values()
    tables = find_tables(component)
    assert len(tables.names if tables else ()) == found


def _stored_table(folder: Path, name: str, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    values = torch.from_numpy(np.random.default_rng(len(name)).normal(size=shape))
    save_file({name: values.to(getattr(torch, dtype))}, folder / f"{name}.safetensors")
    return read_header(folder / f"{name}.safetensors")[name]


@pytest.mark.parametrize(
    "dtypes", [("float32",) * 3, ("bfloat16",) * 3, ("float32", "bfloat16", "float16")]
)
@pytest.mark.parametrize("shape", [(50,), (50, 3), (50, 1), (50, 2, 2)])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("span", [0, 64, 2**20])
def test_any_range_of_a_remapped_tensor_is_a_range_of_the_whole(
    dtypes: tuple[str, ...],
    shape: tuple[int, ...],
    several: bool,
    span: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mergekit_embed.engine.gathering.SPAN_BYTES", span)
    own, first, second = (
        _stored_table(tmp_path, name, dtype, shape)
        for name, dtype in zip(["own", "first", "second"], dtypes, strict=True)
    )
    random = np.random.default_rng(7)
    rows = random.permutation(50)[:40].astype(np.int32)
    rows[:9] = np.arange(20, 29)
    rows[[3, 11, 12, 30, 39]] = -1
    lacking = np.array([3, 12, 39], dtype=np.int32)
    places = np.array([[4, -1, 7], [-1, 6, 9 if several else -1]], dtype=np.int32)
    tensor = RemappedTensor("own", own, rows, Fallback(lacking, (first, second), places))
    copies = not several and len(set(dtypes)) == 1
    assert tensor.read_as is (own.dtype if copies else DType.F64)

    def values(of: StoredTensor | RemappedTensor, start: int, stop: int) -> np.ndarray:
        raw = reader.read(of, start, stop).tobytes()
        return float64_from_storage(raw, str(of.read_as), (stop - start,))

    with Reader() as reader:
        tables = [values(t, 0, t.count).reshape(shape) for t in (own, first, second)]
        want = np.zeros((40, *shape[1:]))
        want[rows >= 0] = tables[0][rows[rows >= 0]]
        want[3], want[12] = tables[1][4], tables[2][6]
        want[39] = (tables[1][7] + tables[2][9]) / 2 if several else tables[1][7]
        assert tensor.shape == want.shape
        flat = want.reshape(-1)
        for start, stop in [(0, tensor.count), *random.integers(0, tensor.count, (20, 2)).tolist()]:
            start, stop = min(start, stop), max(start, stop)
            assert np.array_equal(values(tensor, start, stop), flat[start:stop])


def test_a_range_of_a_remapped_tensor_takes_the_memory_of_the_range(tmp_path: Path) -> None:
    rows, columns = 20_000, 512
    tensor = _stored_table(tmp_path, "own", "float32", (rows, columns))
    order = np.random.default_rng(0).permutation(rows).astype(np.int32)
    remapped = RemappedTensor("own", tensor, order)
    size = 2**16
    with Reader() as reader:
        tracemalloc.start()
        for start in range(0, remapped.count, 40 * size):
            reader.read(remapped, start, start + size)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 * 4 * size < tensor.nbytes / 10


def test_a_remapped_tensor_has_the_bytes_of_what_it_reads(tmp_path: Path) -> None:
    own = _stored_table(tmp_path, "own", "float32", (10, 4))
    other = _stored_table(tmp_path, "other", "float32", (10, 4))
    rows = np.array([0, 3, -1, -1, 5], dtype=np.int32)
    fallback = Fallback(np.array([2], dtype=np.int32), (other,), np.array([[8]], dtype=np.int32))
    tensor = RemappedTensor("own", own, rows, fallback)
    assert (tensor.shape, tensor.count, tensor.nbytes) == ((5, 4), 20, 4 * 16)
    assert (tensor.file, tensor.offset, tensor.dtype) == (own.file, own.offset, own.dtype)
    assert len({tensor, tensor, RemappedTensor("own", own, rows, fallback)}) == 2
