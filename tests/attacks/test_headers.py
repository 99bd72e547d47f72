"""Safetensors files that lie: fuzzed headers, impossible sizes, overlaps, holes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergekit_embed.checkpoint import open_checkpoint

from .attack import (
    NAME,
    WEIGHTS,
    entry,
    one,
    packed,
    refusal,
    two,
)

BROKEN: dict[str, tuple[bytes, str]] = {
    # what is wrong: (the file, what the refusal says of it)
    "empty": (b"", "only 0 bytes"),
    "seven bytes": (b"\2\0\0\0\0\0\0", "only 7 bytes"),
    "nothing but a length": (packed(b""), "not JSON"),
    "header beyond the file": (packed({}, length=3), "should take 3 bytes"),
    "header of 2^64 - 1 bytes": (packed({}, length=2**64 - 1), "should take"),
    "header of 100 MB and one": (packed({}, length=100_000_001), "should take"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "not safetensors"),
    "a page of HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "not safetensors"),
    "header cut off": (packed(b'{"a": {"dtype": "F3'), "not JSON"),
    "header of a list": (packed([]), "not a JSON object"),
    "header of a string": (packed("a"), "not a JSON object"),
    "header of null": (packed(None), "not a JSON object"),
    "header behind a byte order mark": (packed(b"\xef\xbb\xbf{}"), "not JSON"),
    "header with a second value": (packed(b"{}{}"), "not JSON"),
    "header in UTF-16": (packed(json.dumps({}).encode("utf-16-le")), "not JSON"),
    "header of invalid UTF-8": (packed(b'{"\xff\xfe": 1}'), "not JSON"),
    "header nested 100,000 deep": (packed(b'{"a":' + b"[" * 100_000), "not JSON"),
    "header nested in objects": (packed(b'{"a":' * 100_000), "not JSON"),
    "a number of 5,000 digits": (packed(b'{"a": ' + b"9" * 5000 + b"}"), "not JSON"),
    "metadata of a list": (packed({"__metadata__": []}), "not a map of strings"),
    "metadata of numbers": (packed({"__metadata__": {"format": 1}}), "not a map of strings"),
    "metadata of maps": (packed({"__metadata__": {"format": {}}}), "not a map of strings"),
    "bytes of no tensor": (packed({}, b"\0"), "1 bytes that belong to no tensor"),
}

LIES: dict[str, tuple[bytes, str]] = {
    "named twice": (
        packed(f'{{"{NAME}": {json.dumps(entry())}, "{NAME}": {json.dumps(entry())}}}'.encode()),
        "twice",
    ),
    "an entry of null": (packed({NAME: None}), "must have a dtype"),
    "an entry of a list": (packed({NAME: [1]}), "must have a dtype"),
    "an entry of nothing": (packed({NAME: {}}), "must have a dtype"),
    "an entry with more": (one(strides=[1]), "and nothing else"),
    "an entry without offsets": (packed({NAME: {"dtype": "F32", "shape": [2]}}), "data_offsets"),
    "a dtype that is not one": (one(dtype="F33"), "unknown dtype 'F33'"),
    "a dtype in lower case": (one(dtype="f32"), "unknown dtype"),
    "a dtype that is a Python attribute": (one(dtype="itemsize"), "unknown dtype"),
    "a dtype of a list": (one(dtype=["F32"]), "unknown dtype"),
    "a dtype of a map": (one(dtype={"F32": 1}), "unknown dtype"),
    "a dtype of null": (one(dtype=None), "unknown dtype"),
    "a dtype of a number": (one(dtype=32), "unknown dtype"),
    "a dtype of a megabyte": (one(dtype="F" * 2**20), "unknown dtype"),
    "a negative size": (one(shape=[-2]), "impossible shape"),
    "two negative sizes": (one(shape=[-1, -2]), "impossible shape"),
    "a size with a fraction": (one(shape=[2.0]), "impossible shape"),
    "a size that is not a number": (one(shape=[float("nan")]), "impossible shape"),
    "a size of true": (one(shape=[2, True]), "impossible shape"),
    "a size of null": (one(shape=[None]), "impossible shape"),
    "a size of a string": (one(shape=["2"]), "impossible shape"),
    "a shape of a number": (one(shape=2), "impossible shape"),
    "a shape of a string": (one(shape="2"), "impossible shape"),
    "a shape of null": (one(shape=None), "impossible shape"),
    "a size beyond 64 bits": (one(shape=[2**64]), "impossible shape"),
    "a size beyond memory": (one(shape=[2**62]), "impossible shape"),
    "a product beyond 64 bits": (one(shape=[2**32, 2**32]), "impossible shape"),
    "a product that wraps to the truth": (one(shape=[2**63 - 1, 2, 3, 2]), "impossible shape"),
    "a product hidden by a zero": (
        one(b"", shape=[2**62, 2**62, 0], data_offsets=[0, 0]),
        "impossible shape",
    ),
    "a million dimensions": (one(shape=[2**62] * 10**6), "impossible shape"),
    "a hundred dimensions": (one(shape=[1] * 99 + [2]), "impossible shape"),
    "a shape too large for its bytes": (one(shape=[3]), "does not take 8 bytes"),
    "a shape too small for its bytes": (one(shape=[1]), "does not take 8 bytes"),
    "a dtype too small for its bytes": (one(dtype="F16"), "does not take 8 bytes"),
    "an empty shape with bytes": (one(shape=[0]), "does not take 8 bytes"),
    "half bytes": (one(b"\0", dtype="F4", shape=[3], data_offsets=[0, 1]), "does not take"),
    "offsets that go back": (one(data_offsets=[8, 0]), "impossible data_offsets"),
    "offsets below zero": (one(data_offsets=[-8, 0]), "impossible data_offsets"),
    "offsets with fractions": (one(data_offsets=[0.0, 8.0]), "impossible data_offsets"),
    "offsets of booleans": (one(data_offsets=[False, True]), "impossible data_offsets"),
    "offsets of strings": (one(data_offsets=["0", "8"]), "impossible data_offsets"),
    "three offsets": (one(data_offsets=[0, 4, 8]), "impossible data_offsets"),
    "one offset": (one(data_offsets=[8]), "impossible data_offsets"),
    "offsets of null": (one(data_offsets=None), "impossible data_offsets"),
    "offsets of a map": (one(data_offsets={"0": 8}), "impossible data_offsets"),
    "an end beyond 64 bits": (one(data_offsets=[0, 2**64 + 8]), "impossible data_offsets"),
    "an end beyond the file": (one(data_offsets=[8, 16]), "truncated, or lies"),
    "data cut off": (one(b"\0" * 7), "truncated, or lies"),
    "no data at all": (one(b""), "truncated, or lies"),
    "two in one place": (two((0, 4), (0, 4), 4), "overlaps"),
    "two that overlap": (two((0, 4), (3, 7), 7), "overlaps"),
    "one inside another": (two((0, 8), (2, 4), 8), "overlaps"),
    "a hole between two": (two((0, 4), (5, 8), 8), "leaves a hole"),
    "a hole before the first": (one(b"\0" * 9, data_offsets=[1, 9]), "leaves a hole"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_safetensors_file_is_refused_by_its_name(case: str, folder: Path) -> None:
    raw, said = BROKEN[case]
    (folder / WEIGHTS).write_bytes(raw)
    message = refusal(folder)
    assert str(folder / WEIGHTS) in message
    assert said in message
    assert len(message) < 1000


@pytest.mark.parametrize("case", LIES)
def test_a_lie_about_a_tensor_is_refused_by_its_name(case: str, folder: Path) -> None:
    raw, said = LIES[case]
    (folder / WEIGHTS).write_bytes(raw)
    message = refusal(folder)
    assert str(folder / WEIGHTS) in message
    assert NAME in message
    assert said in message
    assert len(message) < 1000


def test_the_file_of_which_the_lies_are_changes_is_read(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(two((0, 4), (4, 7), 7))
    tensors = open_checkpoint(folder).components["Transformer"].tensors
    assert [(t.name, t.shape) for t in tensors.values()] == [("other", (4,)), (NAME, (3,))]
    assert [t.offset for t in tensors.values()] == [
        (folder / WEIGHTS).stat().st_size - 7 + i for i in (0, 4)
    ]


def test_a_key_twice_in_an_entry_is_refused(folder: Path) -> None:
    twice = json.dumps({NAME: entry()}).replace('"shape"', '"shape": [1], "shape"')
    (folder / WEIGHTS).write_bytes(packed(twice.encode(), b"\0" * 8))
    message = refusal(folder)
    assert str(folder / WEIGHTS) in message
    assert "'shape' twice" in message


@pytest.mark.parametrize("name", ["\ud800", "x" * 5000], ids=["surrogate", "endless"])
def test_a_name_that_could_not_be_written_again_is_refused(name: str, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(packed({name: entry()}, b"\0" * 8))
    message = refusal(folder)
    assert str(folder / WEIGHTS) in message
    assert "impossible name" in message
    message.encode()


def test_many_names_and_one_of_them_twice_are_refused_at_once(folder: Path) -> None:
    names = [f'"{i}": 0' for i in range(100_000)]
    (folder / WEIGHTS).write_bytes(packed(f"{{{', '.join(names)}, {names[-1]}}}".encode()))
    assert "'99999' twice" in refusal(folder)
