"""Pickles that carry code, and archives that lie."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .attack import (
    NAME,
    PICKLE,
    WEIGHTS,
    Attacks,
    Ground,
    hole,
    refusal,
    write_good,
)


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
    vars(state)["_metadata"] = value
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


def _claim(
    shape: tuple[float, ...], strides: tuple[int, ...], offset: int = 0
) -> Callable[[], Any]:
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
    "sizes of fractions": (_claim((2.0,), (1,)), ""),
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
        b"(" * 20_000 + b"t" * 20_000 + b".",
        b"}q\x00h\x00h\x00s.",
    ],
)
def test_a_pickle_that_makes_no_sense_is_refused(opcodes: bytes, folder: Path) -> None:
    path = folder / PICKLE
    _good_pickle(path)
    _repacked(path, **{"data.pkl": opcodes})
    assert str(path) in refusal(folder)


attack = Attacks()


def spoil(ground: Ground, **contents: bytes) -> None:
    """The hostile model has a pickle, some of whose contents are otherwise."""
    (ground.hostile / WEIGHTS).unlink()
    _good_pickle(ground.hostile / PICKLE)
    _repacked(ground.hostile / PICKLE, **contents)


@attack(f"hostile/{PICKLE}", "holds compressed data")
def zip_bomb(ground: Ground) -> None:
    """Megabytes of zeros in a few bytes; a gigabyte would be no different."""
    (ground.hostile / WEIGHTS).unlink()
    with zipfile.ZipFile(ground.hostile / PICKLE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(2**25))


@attack(f"hostile/{PICKLE}")
def name_of_a_million_digits(ground: Ground) -> None:
    """A number for a name, which Python refuses to spell."""
    number = b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20
    spoil(ground, **{"data.pkl": b"\x80\x02}" + number + b"K\x01s."})


@attack(f"hostile/{PICKLE}")
def lists_that_hold_lists_twice(ground: Ground) -> None:
    """Two to the power of sixty values, in the place of a tensor: whoever spells it never ends."""
    lists = b"]q\x00"
    for i in range(60):
        lists += b"]q%c(h%ch%ce" % (i + 1, i, i)
    spoil(ground, **{"data.pkl": b"\x80\x02}X\x01\0\0\0a" + lists + b"s."})


@attack(f"hostile/{PICKLE}", "again and again")
def name_that_is_hashed_for_ever(ground: Ground) -> None:
    """The same with tuples, in the place of a tensor's name: hashing it never ends."""
    tuples = b"K\x01\x85q\x00"
    for i in range(60):
        tuples += b"h%c\x86q%c" % (i, i + 1)
    spoil(ground, **{"data.pkl": b"\x80\x02}" + tuples + b"K\x01s."})


@attack(f"hostile/{PICKLE}", "no more than")
def program_of_megabytes(ground: Ground) -> None:
    """A pickle that does nothing, for long."""
    spoil(ground, **{"data.pkl": b"\x80\x02}" + b"K\x010" * 2**21 + b"."})


@attack(f"hostile/{PICKLE}")
def memory_for_the_asking(ground: Ground) -> None:
    """A text that claims four gigabytes."""
    spoil(ground, **{"data.pkl": b"\x80\x02X\xff\xff\xff\x7f" + b"a" * 100 + b"."})


@attack(f"hostile/{PICKLE}")
def memo_without_end(ground: Ground) -> None:
    """A place in the memo of four billion."""
    spoil(ground, **{"data.pkl": b"\x80\x02}r\xff\xff\xff\xffj\xff\xff\xff\xff0."})


@attack(f"hostile/{PICKLE}")
def thousands_of_entries(ground: Ground) -> None:
    """An archive of many names and no checkpoint."""
    (ground.hostile / WEIGHTS).unlink()
    with zipfile.ZipFile(ground.hostile / PICKLE, "w") as archive:
        for i in range(3000):
            archive.writestr(f"a/{i}", b"")


@attack(f"hostile/{PICKLE}")
def hole_for_an_archive(ground: Ground) -> None:
    """A terabyte of nothing."""
    (ground.hostile / WEIGHTS).unlink()
    hole(ground.hostile / PICKLE, 2**40)


@attack(f"hostile/{PICKLE}")
def comment_that_hides_the_end(ground: Ground) -> None:
    """Bytes behind the archive, which look like another end of it."""
    spoil(ground)
    with (ground.hostile / PICKLE).open("ab") as file:
        file.write(b"PK\5\6" + b"\xff" * 18)


test_a_hostile_pickle_is_refused = attack.test()
