"""Any bytes at all, and any JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from mergekit_embed.checkpoint import open_checkpoint, read_header
from mergekit_embed.checkpoint.pickle_file import read_pickle
from mergekit_embed.errors import CheckpointError

from .attack import (
    DENSE,
    INDEX,
    NAME,
    PICKLE,
    ROUTER,
    SHARD,
    TRANSFORMER,
    WEIGHTS,
    entry,
    packed,
    write_good,
)

MANY = settings(  # the folder is reused, and every example writes its own file
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def _good_pickle(path: Path) -> bytes:
    torch.save({"other": torch.zeros(100), NAME: torch.ones(6)}, path)
    return path.read_bytes()


EDITS = st.lists(
    st.tuples(
        st.integers(0, 2**16), st.one_of(st.binary(max_size=3), st.sampled_from([b"0", b"[", b'"']))
    ),
    min_size=1,
    max_size=4,
)


def _edited(raw: bytes, edits: list[tuple[int, bytes]], insert: bool) -> bytes:
    for place, piece in edits:
        at = place % (len(raw) + 1)
        raw = raw[:at] + piece + raw[at if insert else at + len(piece) :]
    return raw


@MANY
@given(edits=EDITS, insert=st.booleans(), keep=st.integers(0, 400))
def test_no_bytes_make_the_safetensors_reader_do_anything_but_refuse(
    edits: list[tuple[int, bytes]], insert: bool, keep: int, tmp_path: Path
) -> None:
    header = {"__metadata__": {"format": "pt"}, "a": entry(), "b": entry(data_offsets=[8, 16])}
    raw = _edited(packed(header, b"\0" * 16), edits, insert)[: keep or None]
    path = tmp_path / WEIGHTS
    path.write_bytes(raw)
    try:
        tensors = read_header(path)
    except CheckpointError as refused:
        assert str(path) in str(refused)
        return
    start = 8 + int.from_bytes(raw[:8], "little")
    assert sum(tensor.nbytes for tensor in tensors.values()) == len(raw) - start
    if b"-0" not in raw:  # which Python takes for a whole number, and the library does not
        theirs = {name: (e["dtype"], tuple(e["shape"])) for name, e in deserialize(raw)}
        assert {t.name: (str(t.dtype), t.shape) for t in tensors.values()} == theirs


@MANY
@given(raw=st.binary(max_size=64), length=st.integers(0, 64))
def test_no_header_makes_the_safetensors_reader_do_anything_but_refuse(
    raw: bytes, length: int, tmp_path: Path
) -> None:
    path = tmp_path / WEIGHTS
    path.write_bytes(packed(b"{" + raw, length=length))
    with pytest.raises(CheckpointError):
        read_header(path)


@MANY
@given(edits=EDITS, insert=st.booleans())
def test_no_bytes_make_the_pickle_reader_do_anything_but_refuse(
    edits: list[tuple[int, bytes]], insert: bool, tmp_path: Path
) -> None:
    path = tmp_path / PICKLE
    raw = _edited(_good_pickle(path), edits, insert)
    path.write_bytes(raw)
    try:
        tensors = read_pickle(path)
    except CheckpointError as refused:
        assert str(path) in str(refused)
    else:
        assert all(tensor.offset + tensor.nbytes <= len(raw) for tensor in tensors.values())


KEYS = """
    path type types weight_map prompts default_prompt_name pooling_mode include_prompt model_type
    activation_function model merges vocab added_tokens id content normalizer
"""
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([NAME, SHARD, "", "r", "2_Dense", "a.Transformer", "a.Dense", "a.Router"]),
)
JSON = st.recursive(
    VALUES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=4),
    ),
    max_leaves=12,
)


@MANY
@given(
    content=JSON,
    file=st.sampled_from(
        [
            "modules.json",
            "config.json",
            "config_sentence_transformers.json",
            "tokenizer.json",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "r/router_config.json",
            f"sharded/{INDEX}",
        ]
    ),
)
def test_no_json_makes_opening_a_folder_do_anything_but_refuse(
    content: Any, file: str, tmp_path: Path
) -> None:
    pooling = TRANSFORMER | {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    sharded = TRANSFORMER | {"path": "sharded"}
    modules = [TRANSFORMER, pooling, DENSE, ROUTER, sharded]
    for part in ("1_Pooling", "2_Dense", "r", "sharded"):
        (tmp_path / part).mkdir(exist_ok=True)
    for part in (WEIGHTS, f"2_Dense/{WEIGHTS}", f"sharded/{SHARD}"):
        write_good(tmp_path / part)
    good = {"modules.json": modules, f"sharded/{INDEX}": {"weight_map": {NAME: SHARD}}}
    for name, value in (good | {file: content}).items():
        (tmp_path / name).write_text(json.dumps(value))
    try:
        opened = open_checkpoint(tmp_path)
    except CheckpointError as refused:
        assert str(tmp_path) in str(refused)
    else:
        assert "Transformer" in opened.components
    finally:
        (tmp_path / file).unlink()
