"""Files that lie: each is refused by name, at once, before a byte is read through it or written."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import WEIGHTS, files, siblings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from tensor_folders import random_model, write_folder

import mergekit_embed
from mergekit_embed.checkpoint import open_checkpoint, read_header
from mergekit_embed.checkpoint.pickle_file import read_pickle
from mergekit_embed.errors import CheckpointError

NAME = "encoder.layer.0.weight"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
SHARD = "model-00001-of-00001.safetensors"

MANY = settings(  # the folder is reused, and every example writes its own file
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


# --- helpers ------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def torch_is_warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What torch imports at its first reading is not the time that a file takes."""
    path = tmp_path_factory.mktemp("warm") / PICKLE
    torch.save({NAME: torch.zeros(1)}, path)
    read_pickle(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that lacks nothing but its weights."""
    made = tmp_path / "hostile"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "bert"}')
    return made


def refusal(folder: Path) -> str:
    """What opening the folder is refused with, within a second of this process's time."""
    started = time.process_time()
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(folder)
    assert time.process_time() - started < 1.0
    return str(refused.value)


def packed(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with this header (raw, or to be spelled as JSON), whatever it says."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(**changes: Any) -> dict[str, Any]:
    """The header's entry of two float32 numbers at the start of the data, with changes."""
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def one(data: bytes = b"\0" * 8, **changes: Any) -> bytes:
    """A file of one tensor."""
    return packed({NAME: entry(**changes)}, data)


def two(first: tuple[int, int], second: tuple[int, int], size: int) -> bytes:
    """A file of two tensors of bytes, at these offsets in so much data."""
    header = {
        name: entry(dtype="U8", shape=[end - begin], data_offsets=[begin, end])
        for name, (begin, end) in (("other", first), (NAME, second))
    }
    return packed(header, b"\0" * size)


def write_good(path: Path) -> None:
    """A true safetensors file."""
    path.write_bytes(one())


# --- safetensors --------------------------------------------------------------------------

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


# --- indexes and shards -------------------------------------------------------------------

OUTSIDE = [
    "../x",
    "..",
    "a/../../x",
    "a/../x",
    "/etc/passwd",
    "C:\\x",
    "C:x",
    "\\\\server\\share\\x",
    "..\\x",
    "a\\..\\..\\x",
    "x\0y",
    "\ud800",
    "a" * 300,
    "a/" * 3000,
    5,
    1.5,
    True,
    None,
    ["x"],
    {"x": "y"},
]


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: repr(file)[:20])
@pytest.mark.parametrize("index", [INDEX, f"{PICKLE}.index.json"])
def test_a_shard_outside_the_folder_is_refused(file: Any, index: str, folder: Path) -> None:
    write_good(folder.parent / "x")
    (folder / index).write_text(json.dumps({"weight_map": {NAME: file}}))
    message = refusal(folder)
    assert str(folder / index) in message
    assert "not inside the model's folder" in message
    message.encode()


INDEXES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not valid JSON"),
    "not JSON": (b"{", "not valid JSON"),
    "invalid UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "deeply nested": (b"[" * 100_000, "not valid JSON"),
    "a list": (b"[]", "no `weight_map`"),
    "null": (b"null", "no `weight_map`"),
    "without a map": (b"{}", "no `weight_map`"),
    "a map of null": (b'{"weight_map": null}', "no `weight_map`"),
    "a map of a list": (b'{"weight_map": ["a"]}', "no `weight_map`"),
    "a map of nothing": (b'{"weight_map": {}}', "no `weight_map`"),
    "a shard that is not there": (b'{"weight_map": {"a": "gone"}}', "'gone', which is not there"),
    "a shard without a name": (b'{"weight_map": {"a": ""}}', "'', which is not there"),
    "a shard that is a folder": (b'{"weight_map": {"a": "sub"}}', "'sub', which is not there"),
    "a tensor of another shard": (
        json.dumps({"weight_map": {NAME: SHARD, "missing.weight": SHARD}}).encode(),
        f"'missing.weight' in '{SHARD}', which does not hold it",
    ),
}


@pytest.mark.parametrize("case", INDEXES)
def test_a_broken_index_is_refused_by_its_name(case: str, folder: Path) -> None:
    raw, said = INDEXES[case]
    write_good(folder / SHARD)
    (folder / "sub").mkdir()
    (folder / INDEX).write_bytes(raw)
    message = refusal(folder)
    assert str(folder / INDEX) in message
    assert said in message


def test_a_lying_shard_is_refused_by_its_own_name(folder: Path) -> None:
    (folder / SHARD).write_bytes(one(shape=[3]))
    (folder / INDEX).write_text(json.dumps({"weight_map": {NAME: SHARD}}))
    message = refusal(folder)
    assert str(folder / SHARD) in message
    assert NAME in message


@pytest.mark.parametrize("name", [INDEX, WEIGHTS, PICKLE])
def test_a_folder_in_the_place_of_the_weights_is_no_weights(name: str, folder: Path) -> None:
    (folder / name).mkdir()
    message = refusal(folder)
    assert str(folder) in message
    assert "holds no weights" in message


def test_a_link_that_leads_to_itself_is_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).symlink_to(WEIGHTS)
    assert "holds no weights" in refusal(folder)


@pytest.mark.parametrize(("single", "index"), [(WEIGHTS, INDEX), (PICKLE, f"{PICKLE}.index.json")])
def test_a_file_beside_an_index_is_refused_since_one_is_stale(
    single: str, index: str, folder: Path
) -> None:
    write_good(folder / single)
    write_good(folder / SHARD)
    (folder / index).write_text(json.dumps({"weight_map": {NAME: SHARD}}))
    message = refusal(folder)
    assert str(folder) in message
    assert single in message
    assert index in message


# --- what surrounds the weights -----------------------------------------------------------

TRANSFORMER = {
    "idx": 0,
    "name": "0",
    "path": "",
    "type": "sentence_transformers.models.Transformer",
}
DENSE = TRANSFORMER | {"idx": 1, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
ROUTER = TRANSFORMER | {"idx": 1, "path": "r", "type": "sentence_transformers.models.Router"}


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: repr(path)[:20])
def test_a_module_outside_the_folder_is_refused(path: Any, folder: Path) -> None:
    write_good(folder / WEIGHTS)
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER, DENSE | {"path": path}]))
    message = refusal(folder)
    assert str(folder / "modules.json") in message
    assert "not inside the model's folder" in message


@pytest.mark.parametrize("path", ["../../x", "/etc", "C:\\x", "a/../../../x"])
def test_a_routed_module_outside_the_folder_is_refused(path: str, folder: Path) -> None:
    write_good(folder / WEIGHTS)
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER, ROUTER]))
    (folder / "r").mkdir()
    router = {"types": {path: "sentence_transformers.models.Dense"}}
    (folder / "r" / "router_config.json").write_text(json.dumps(router))
    message = refusal(folder)
    assert str(folder / "r" / "router_config.json") in message
    assert "not inside the model's folder" in message


SHELLS: dict[str, tuple[str, Any, str]] = {
    # what is wrong: (the file, its content, what the refusal says of it)
    "modules of a map": ("modules.json", {"0": TRANSFORMER}, "not a list of modules"),
    "modules of null": ("modules.json", None, "not a list of modules"),
    "modules of a string": ("modules.json", "Transformer", "not a list of modules"),
    "a module of a string": ("modules.json", [TRANSFORMER, "2_Dense"], "not a list of modules"),
    "a module of null": ("modules.json", [None], "not a list of modules"),
    "a module of a list": ("modules.json", [[TRANSFORMER]], "not a list of modules"),
    "a module without a path": ("modules.json", [{"type": "a.Transformer"}], "names None"),
    "a module without a type": ("modules.json", [{"path": "2_Dense"}], "type of the module"),
    "a module of type null": ("modules.json", [DENSE | {"type": None}], "type of the module"),
    "a module of type list": ("modules.json", [DENSE | {"type": []}], "type of the module"),
    "modules that are not JSON": ("modules.json", b"[", "not valid JSON"),
    "modules of invalid UTF-8": ("modules.json", b'["\xff"]', "not valid JSON"),
    "a router of a list": ("r/router_config.json", [], "not a JSON object"),
    "a router of types in a list": ("r/router_config.json", {"types": ["a"]}, "not a map"),
    "a router of nameless types": ("r/router_config.json", {"types": {"a": 1}}, "type of the"),
    "an old router of null": ("r/config.json", None, "not a JSON object"),
    "a configuration of a list": ("config.json", [], "not a JSON object"),
    "a configuration of null": ("config.json", None, "not a JSON object"),
    "a configuration cut off": ("config.json", b'{"hidden_size": 3', "not valid JSON"),
    "a configuration nested deeply": ("config.json", b"[" * 100_000, "not valid JSON"),
    "a pooling of a list": ("1_Pooling/config.json", [], "not a JSON object"),
    "a pooling of invalid UTF-8": ("1_Pooling/config.json", b'{"\xff": 1}', "not valid JSON"),
    "a Dense of a string": ("2_Dense/config.json", "Tanh", "not a JSON object"),
    "prompts of a list": ("config_sentence_transformers.json", [], "not a JSON object"),
    "a tokenizer that is not JSON": ("tokenizer.json", b"\0", "not valid JSON"),
}


@pytest.mark.parametrize("case", SHELLS)
def test_a_broken_file_of_the_shell_is_refused_by_its_name(case: str, folder: Path) -> None:
    name, content, said = SHELLS[case]
    write_good(folder / WEIGHTS)
    pooling = TRANSFORMER | {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    modules = [TRANSFORMER, pooling, DENSE, ROUTER]
    (folder / "modules.json").write_text(json.dumps(modules))
    for part in ("1_Pooling", "2_Dense", "r"):
        (folder / part).mkdir()
    write_good(folder / "2_Dense" / WEIGHTS)
    open_checkpoint(folder)
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / name).write_bytes(raw)
    message = refusal(folder)
    assert str(folder / name) in message
    assert said in message


def test_a_dense_without_its_weights_is_refused(folder: Path) -> None:
    write_good(folder / WEIGHTS)
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER, DENSE]))
    message = refusal(folder)
    assert str(folder / "2_Dense") in message
    assert "holds no weights" in message


def test_a_dense_in_another_format_is_refused(folder: Path) -> None:
    write_good(folder / WEIGHTS)
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER, DENSE]))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "model.onnx").write_bytes(b"")
    message = refusal(folder)
    assert str(folder / "2_Dense") in message
    assert "model.onnx, which cannot be merged" in message


def test_one_name_for_two_tensors_of_two_modules_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(packed({"2_Dense/linear.weight": entry()}, b"\0" * 8))
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER, DENSE]))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / WEIGHTS).write_bytes(packed({"linear.weight": entry()}, b"\0" * 8))
    message = refusal(folder)
    assert str(folder) in message
    assert "two tensors called '2_Dense/linear.weight'" in message


# --- pickles ------------------------------------------------------------------------------


class Call:
    """Whatever unpickles this makes the call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


TRAPS: dict[str, Callable[[Path], Any]] = {
    # where the code is: the state dict that runs it, which makes the given folder
    "in the place of a tensor": lambda mark: {NAME: Call(os.mkdir, str(mark))},
    "in the place of a name": lambda mark: {Call(os.mkdir, str(mark)): torch.zeros(2)},
    "in the place of the state dict": lambda mark: Call(os.mkdir, str(mark)),
    "in a nested list": lambda mark: {NAME: torch.zeros(2), "a": [[Call(os.mkdir, str(mark))]]},
    "in a shell": lambda mark: {NAME: Call(os.system, f"mkdir '{mark}'")},
    "in Python": lambda mark: {NAME: Call(exec, f"import os; os.mkdir({str(mark)!r})")},
    "in an attribute": lambda mark: _with_attribute(Call(os.mkdir, str(mark))),
}


def _with_attribute(value: Any) -> OrderedDict[str, Any]:
    state: OrderedDict[str, Any] = OrderedDict({NAME: torch.zeros(2)})
    state._metadata = value  # type: ignore[attr-defined]
    return state


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", TRAPS)
def test_code_in_a_pickle_is_refused_and_not_run(
    case: str, legacy: bool, folder: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    path = folder / PICKLE
    torch.save(TRAPS[case](mark), path, _use_new_zipfile_serialization=not legacy)
    message = refusal(folder)
    assert str(path) in message
    assert ("PyTorch before 1.6" if legacy else "could run code") in message
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the trap works


def test_a_bare_pickle_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / PICKLE).write_bytes(pickle.dumps(Call(os.mkdir, str(tmp_path / "mark"))))
    assert str(folder / PICKLE) in refusal(folder)
    assert not (tmp_path / "mark").exists()


def _claim(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Callable[[], Any]:
    """A tensor that claims this of a storage of eight float32 numbers."""
    return lambda: Call(
        torch._utils._rebuild_tensor_v2,
        torch.storage.TypedStorage(8, dtype=torch.float32, _internal=True),
        offset,
        shape,
        strides,
        False,
        OrderedDict(),
    )


TENSORS: dict[str, tuple[Callable[[], Any], str]] = {
    "more rows than data": (_claim((9,), (1,)), "reaches beyond its data"),
    "strides beyond the data": (_claim((2, 4), (5, 1)), "reaches beyond its data"),
    "an offset beyond the data": (_claim((4,), (1,), 5), "reaches beyond its data"),
    "an endless stride": (_claim((2,), (2**60,)), "reaches beyond its data"),
    "numbers repeated without end": (_claim((2**40, 2**40), (0, 0)), ""),
    "a negative stride": (_claim((8,), (-1,), 7), ""),
    "a negative offset": (_claim((2,), (1,), -2), ""),
    "a negative size": (_claim((-2,), (1,)), ""),
    "fewer strides than sizes": (_claim((2, 2), (1,)), ""),
    "sizes of fractions": (_claim((2.0,), (1,)), ""),  # type: ignore[arg-type]
    "sparse": (lambda: torch.eye(3).to_sparse(), f"'{NAME}' is not stored as plain numbers"),
    "without data": (lambda: torch.empty(3, device="meta"), "not stored as plain numbers"),
    "of numbers to be negated": (
        lambda: torch.zeros(3, dtype=torch.complex64).conj().imag,
        f"'{NAME}' is not stored as plain numbers",
    ),
    "complex": (lambda: torch.zeros(3, dtype=torch.complex64), f"'{NAME}' has the unsupported"),
    "of eight-bit floats": (
        lambda: torch.zeros(3).to(torch.float8_e4m3fn),
        f"'{NAME}' has the unsupported torch.float8_e4m3fn",
    ),
    "a number": (lambda: 1.5, f"'{NAME}' is a float, not a tensor"),
    "a string": (lambda: "weights", f"'{NAME}' is a str, not a tensor"),
    "a nested state dict": (lambda: {NAME: torch.zeros(2)}, f"'{NAME}' is a dict, not a tensor"),
    "a storage": (lambda: torch.zeros(2).untyped_storage(), "not a tensor"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_pickle_of_anything_but_plain_tensors_is_refused(case: str, folder: Path) -> None:
    make, said = TENSORS[case]
    torch.save({"other": torch.zeros(100), NAME: make()}, folder / PICKLE)
    message = refusal(folder)
    assert str(folder / PICKLE) in message
    assert said in message
    assert len(message) < 1000


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_pickle_of_quantised_numbers_is_refused(folder: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
    torch.save({NAME: quantised}, folder / PICKLE)
    assert str(folder / PICKLE) in refusal(folder)


@pytest.mark.parametrize("content", [[1], torch.zeros(2), "weights", None, 3])
def test_a_pickle_that_is_no_state_dict_is_refused(content: Any, folder: Path) -> None:
    torch.save(content, folder / PICKLE)
    message = refusal(folder)
    assert str(folder / PICKLE) in message
    assert "not a state dict" in message


@pytest.mark.parametrize("name", [1, None, ("a",), "\ud800", "__metadata__", "x" * 5000])
def test_a_tensor_without_a_usable_name_is_refused(name: Any, folder: Path) -> None:
    torch.save({name: torch.zeros(2)}, folder / PICKLE)
    message = refusal(folder)
    assert str(folder / PICKLE) in message
    assert "for the name of a tensor" in message
    message.encode()


def _good_pickle(path: Path) -> bytes:
    torch.save({"other": torch.zeros(100), NAME: torch.ones(6)}, path)
    return path.read_bytes()


def _repacked(path: Path, compression: int = zipfile.ZIP_STORED, **changes: bytes) -> None:
    """Pack the archive anew by a program that is not torch, with other contents for some."""
    with zipfile.ZipFile(path) as archive:
        contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, changes.get(name.rpartition("/")[2], content))


def _truncated(path: Path) -> None:
    path.write_bytes(_good_pickle(path)[:-100])


def _halved(path: Path) -> None:
    path.write_bytes(_good_pickle(path)[:600])


def _compressed(path: Path) -> None:
    _good_pickle(path)
    _repacked(path, zipfile.ZIP_DEFLATED)


def _big_endian(path: Path) -> None:
    _good_pickle(path)
    _repacked(path, byteorder=b"big")


def _of_no_known_endianness(path: Path) -> None:
    _good_pickle(path)
    _repacked(path, byteorder=b"middle")


def _packed_by_another_program(path: Path) -> None:
    _good_pickle(path)
    _repacked(path)


def _enlarged(path: Path) -> None:
    raw = _good_pickle(path)
    assert raw.count(b"K\6tq") == 1  # the number of elements of the second storage
    path.write_bytes(raw.replace(b"K\6tq", b"K\7tq"))


def _of_another_type(path: Path) -> None:
    raw = _good_pickle(path)
    assert raw.count(b"FloatStorage") == 1
    path.write_bytes(raw.replace(b"FloatStorage", b"ShortStorage"))


def _legacy(path: Path) -> None:
    torch.save({NAME: torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


def _empty_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w"):
        pass


def _archive_of_something_else(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")


def _script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("m/data.pkl", "m/constants.pkl", "m/version", "m/code/__torch__.py"):
            archive.writestr(name, b"\x80\x02}.")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncated, "is truncated"),
        (_halved, "is truncated"),
        (_legacy, "PyTorch before 1.6"),
        (_compressed, "holds compressed data"),
        (_big_endian, "little-endian"),
        (_of_no_known_endianness, "little-endian"),
        (_packed_by_another_program, f"'{NAME}' reaches beyond its data, or another program"),
        (_enlarged, f"'{NAME}' reaches beyond its data"),
        (_of_another_type, "'other' reaches beyond its data"),
        (_empty_archive, "not a PyTorch checkpoint"),
        (_archive_of_something_else, "not a PyTorch checkpoint"),
        (_script, "not a PyTorch checkpoint"),
        (write_good, "is truncated, or of PyTorch before 1.6"),
    ],
)
def test_a_damaged_archive_is_refused(
    damage: Callable[[Path], None], said: str, folder: Path
) -> None:
    damage(folder / PICKLE)
    message = refusal(folder)
    assert str(folder / PICKLE) in message
    assert said in message


@pytest.mark.parametrize(
    "opcodes",
    [
        b"",
        b".",
        b"\x80\x02.",
        b"0.",
        b"t.",
        b"N\x85R.",
        b"(((((",
        b"K\x01Q.",
        b"K\x01\x85Q.",
        b"h\xff.",
        b"X\xff\xff\xff\xffa.",
        b"X\x01\x00\x00\x00\xff.",
        b"\x8a\xff" + b"\xff" * 255 + b".",
        b"cbuiltins\nbytearray\n\x8a\x08\0\0\0\0\0\0\0\x10\x85R.",
        b"ctorch\nSize\n(K\x01ttR.",
        b"]\x94" * 10,
        b"(" * 100_000 + b"t" * 100_000 + b".",
        b"}q\x00h\x00h\x00s.",
    ],
)
def test_a_pickle_that_makes_no_sense_is_refused(opcodes: bytes, folder: Path) -> None:
    path = folder / PICKLE
    _good_pickle(path)
    _repacked(path, **{"data.pkl": opcodes})
    assert str(path) in refusal(folder)


# --- any bytes at all ---------------------------------------------------------------------

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


# --- merging ------------------------------------------------------------------------------


def _shard_outside(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {NAME: "../good/model.safetensors"}}))


def _code(folder: Path) -> None:
    torch.save({NAME: Call(os.mkdir, str(folder.parent / "mark"))}, folder / PICKLE)


def _lie(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(one(shape=[2**62]))


def _cut_off(folder: Path) -> None:
    whole = (folder.parent / "good" / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-1])


def _modules_outside(folder: Path) -> None:
    write_good(folder / WEIGHTS)
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER | {"path": "../good"}]))


@pytest.mark.parametrize("place", ["member", "base"])
@pytest.mark.parametrize("damage", [_lie, _cut_off, _shard_outside, _modules_outside, _code])
def test_a_merge_with_a_hostile_model_writes_nothing(
    damage: Callable[[Path], None], place: str, folder: Path, tmp_path: Path
) -> None:
    good = write_folder(tmp_path / "good", random_model(1), "F32")
    damage(folder)
    before = files(tmp_path)
    members = [good, folder] if place == "member" else [good, good]
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(folder if place == "base" else good),
        "models": [{"model": str(member)} for member in members],
    }
    with pytest.raises(CheckpointError) as refused:
        mergekit_embed.merge(recipe, tmp_path / "out", device="cpu")
    assert str(folder) in str(refused.value)
    assert not (tmp_path / "out").exists()
    assert siblings(tmp_path / "out") == []
    assert not (tmp_path / "mark").exists()
    assert files(tmp_path) == before


def test_a_merge_over_an_older_model_leaves_it_when_a_member_is_hostile(
    folder: Path, tmp_path: Path
) -> None:
    good = write_folder(tmp_path / "good", random_model(1), "F32")
    write_folder(tmp_path / "out", random_model(2), "F32")
    _lie(folder)
    before = files(tmp_path)
    recipe = {"merge_method": "linear", "models": [{"model": str(m)} for m in (good, folder)]}
    with pytest.raises(CheckpointError):
        mergekit_embed.merge(recipe, tmp_path / "out", device="cpu", overwrite=True)
    assert files(tmp_path) == before
    assert siblings(tmp_path / "out") == []
