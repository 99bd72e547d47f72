"""A fuzzer of the safetensors header: what we accept, the official library reads as we do.

    python tests/attacks/fuzz_header.py --seconds 300      # with atheris, guided by coverage
    python tests/attacks/fuzz_header.py --seconds 300 --plain      # random mutations alone

`pip install atheris` gives the guided one; without it the mutations are the same, but nothing
leads them. An input that breaks the promise is written to tests/attacks/headers/, where it is a
test from then on, and ends the run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import struct
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from safetensors import SafetensorError, deserialize

from mergekit_embed.errors import CheckpointError

HEADERS = Path(__file__).parent / "headers"
LONGEST_MESSAGE = 1000

PIECES = [
    *(bytes([character]) for character in b'{}[],:"\\0'),
    *(b"-0", b"-1", b"1e0", b"1.0", b"0x1", b"00", b"1e999", b"NaN", b"null", b"true", b"false"),
    *(b'"a"', b'"b"', b'""', b'"F32"', b'"U8"', b'"F4"', b'"F6_E2M3"'),
    b"Infinity",
    b"-Infinity",
    b'"dtype":',
    b'"shape":',
    b'"data_offsets":',
    b'"__metadata__":',
    b'"__metadata__":{"format":"pt"},',
    b'"dtype":"F32",',
    b'"shape":[],',
    b'"shape":[0],',
    b'"data_offsets":[0,0]',
    b'"data_offsets":[0,4]',
    b'"data_offsets":[4,8]',
    b'"c":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},',
    b'"c":{"dtype":"U8","shape":[1],"data_offsets":[8,9]},',
    b'"strides":[1],',
    b"\\ud800",
    b"\\ud83d\\ude00",
    b"\\u0000",
    b"\\u0041",
    b"\\/",
    b"\\x",
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"\x00",
    b"\x0b",
    b"\x0c",
    b"\x1f",
    b"\x7f",
    b"\x85",
    b"\xa0",
    b"\n",
    b"\t",
    b" ",
    b"//",
    b"/**/",
    b"\xd9\xa1",  # a digit, but not one of ASCII
    b"1_0",
    b"+1",
    b"4294967296",
    b"9223372036854775807",
    b"9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"9" * 400,
    b"[" * 130,
    b'{"a":' * 130,
]


def packed(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    return struct.pack("<Q", len(header)) + header + data


def _entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SEEDS = [
    packed(json.dumps(header).encode() + padding, bytes(size))
    for header, padding, size in (
        ({}, b"", 0),
        ({"a": _entry("F32", [1], 0, 4)}, b"", 4),
        ({"a": _entry("F32", [], 0, 4), "b": _entry("U8", [2, 2], 4, 8)}, b"  ", 8),
        ({"__metadata__": {"format": "pt"}, "a": _entry("BF16", [0, 7], 0, 0)}, b"", 0),
        ({"a": _entry("F4", [2], 0, 1), "b": _entry("F6_E2M3", [4], 1, 4)}, b"\n", 4),
        ({"b": _entry("F64", [1], 1, 9), "a": _entry("BOOL", [1], 0, 1)}, b"", 9),
        ({"\u00e9": _entry("C64", [1], 0, 8), "e\u0301": _entry("I64", [1], 8, 16)}, b"", 16),
    )
]


class Broken(Exception):
    """The input breaks the promise; the message says how."""


def accepted(raw: bytes, path: Path) -> bool:
    """True when our reader takes the file; the official one must then see the same tensors.

    Raises:
        Broken: when it does not, or when a refusal is no `CheckpointError` that names the file.
    """
    from mergekit_embed.checkpoint.safetensors_file import read_header

    path.write_bytes(raw)
    try:
        tensors = read_header(path)
    except CheckpointError as refused:
        message = str(refused)
        if not message.startswith(f"{path}: ") or len(message) > LONGEST_MESSAGE + len(str(path)):
            raise Broken(f"the refusal is {message[:2000]!r}") from refused
        return False
    except Exception as error:
        raise Broken(f"the reader fails with {error!r}") from error
    mine = {
        name: (str(t.dtype), list(t.shape), raw[t.offset : t.offset + t.nbytes])
        for name, t in tensors.items()
    }
    try:
        theirs = {
            name: (found["dtype"], found["shape"], bytes(found["data"]))
            for name, found in deserialize(raw)
        }
    except SafetensorError as refused:
        raise Broken(f"the official library refuses it: {refused}") from refused
    if mine != theirs:
        raise Broken(f"we read {mine}, the official library {theirs}")
    return True


def mutated(raw: bytes, random_: random.Random) -> bytes:
    """The input with some pieces put in, taken out or exchanged; mostly with a true length."""
    start = min(8, len(raw))
    end = start + int.from_bytes(raw[:8], "little") if len(raw) >= 8 else len(raw)
    header, data = bytearray(raw[start:end]), bytearray(raw[end:])
    for _ in range(random_.choice((1, 1, 1, 2, 3, 8))):
        at = random_.randint(0, len(header))
        piece = random_.choice(PIECES)
        match random_.randrange(7):
            case 0:
                header[at:at] = piece
            case 1:
                header[at : at + len(piece)] = piece
            case 2:
                del header[at : at + random_.randint(1, 8)]
            case 3 if at < len(header):
                header[at] = random_.randrange(256)
            case 4:  # a part of it once more, somewhere else
                begin = random_.randint(0, len(header))
                to = random_.randint(0, len(header))
                header[to:to] = header[begin : begin + random_.randint(1, 64)]
            case 5:
                digits = [i for i, c in enumerate(header) if 48 <= c < 58]
                if digits:
                    place = random_.choice(digits)
                    header[place : place + 1] = random_.choice(
                        (*map(b"%d".__mod__, range(10)), piece)
                    )
            case _:
                data = data + bytes(1) if random_.random() < 0.5 else data[:-1]
    if random_.random() < 0.05:
        length = random_.choice((0, 1, len(header) + 1, 2**32, 2**63, 2**64 - 1))
        return struct.pack("<Q", length) + bytes(header + data)
    return packed(bytes(header), bytes(data))


def kept(raw: bytes) -> Path:
    """Where an input that broke the promise is a test from now on."""
    HEADERS.mkdir(exist_ok=True)
    path = HEADERS / f"{hashlib.sha256(raw).hexdigest()[:12]}.safetensors"
    path.write_bytes(raw)
    return path


class Counts:
    """How the inputs fared; says so at the end."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.runs = self.accepted = 0

    def see(self, raw: bytes, path: Path) -> None:
        """Try one input; one that breaks the promise is kept and told."""
        self.runs += 1
        try:
            self.accepted += accepted(raw, path)
        except Broken as broken:
            print(f"{kept(raw)}: {broken}", file=sys.stderr)
            self.tell()
            raise

    def tell(self) -> None:
        """Print how many inputs there were."""
        seconds = time.monotonic() - self.began
        print(f"{self.runs:,} inputs in {seconds:.0f} s, {self.accepted:,} of them accepted")


def fuzz_plainly(seconds: float, path: Path, seed: int, most: int | None = None) -> Counts:
    """Mutate seeds, and what came of them and was accepted, at random."""
    random_ = random.Random(seed)
    corpus = [*SEEDS, *(file.read_bytes() for file in sorted(HEADERS.glob("*.safetensors")))]
    counts = Counts()
    while time.monotonic() - counts.began < seconds and counts.runs != most:
        raw = mutated(random_.choice(corpus), random_)
        before = counts.accepted
        counts.see(raw, path)
        if counts.accepted > before and len(raw) < 4096:
            corpus.append(raw)
            if len(corpus) > 2000:
                del corpus[random_.randrange(len(SEEDS), len(corpus))]
    return counts


def fuzz_guided(seconds: float, path: Path, seed: int, corpus: Path) -> None:
    """Let libFuzzer lead the mutations by the code that they reach; ends the process.

    Raises:
        ModuleNotFoundError: when atheris is not installed.
    """
    import atheris

    with atheris.instrument_imports(include=["mergekit_embed.checkpoint", "json"]):
        import_module("mergekit_embed.checkpoint.safetensors_file")
    counts = Counts()

    def mutate(raw: bytes, largest: int, seed: int) -> bytes:
        random_ = random.Random(seed)
        mixed = atheris.Mutate(raw, largest) if random_.random() < 0.2 else mutated(raw, random_)
        return mixed[:largest]

    def one(raw: bytes) -> None:
        counts.see(raw, path)

    for index, raw in enumerate(SEEDS):
        (corpus / f"seed{index}").write_bytes(raw)
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed}", "-max_len=8192"]
    options += ["-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={corpus}/"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="do not use atheris")
    given = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        path, corpus = Path(folder, "model.safetensors"), Path(folder, "corpus")
        corpus.mkdir()
        if not given.plain:
            try:
                fuzz_guided(given.seconds, path, given.seed, corpus)
            except ModuleNotFoundError:
                print("atheris is not installed: random mutations alone", file=sys.stderr)
        fuzz_plainly(given.seconds, path, given.seed).tell()


if __name__ == "__main__":
    main()
