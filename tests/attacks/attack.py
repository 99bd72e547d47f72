"""How the attacks are run: through the real command, with its time and memory measured.

An attack is a function with a docstring that says what it tries. It is given a sound model folder
and spoils it; then `boom-merge` is run on a recipe that names the folder. What must follow is the
same for all: exit code 1 or 2, one clear line that names the file, within a second, in little
memory, no traceback, and nothing written anywhere.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import pytest
from helpers import Ran, boom_merge, write_recipe
from safetensors.numpy import load_file, save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
SHARD = "model-00001-of-00001.safetensors"
TABLE = "embeddings.word_embeddings.weight"
NAME = "encoder.layer.0.attention.self.query.weight"
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "boom", "merge", "##s"]
WIDTH = 4

SECONDS = 1.0
"""Of this process's own time, which other processes of a busy machine do not count in."""

HANGS = 20
"""Seconds after which a command waits for something that will never come."""

MEMORY = 64 * 2**20
"""Bytes that Python may hold more at the peak than before."""

LONGEST = 2000
"""Characters of a line, with the paths in it."""

CUT = 4000
"""Characters of a line that repeats something endless, which the command cuts."""

TRANSFORMER = {
    "idx": 0,
    "name": "0",
    "path": "",
    "type": "sentence_transformers.models.Transformer",
}
POOLING = TRANSFORMER | {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
DENSE = TRANSFORMER | {"idx": 1, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
ROUTER = TRANSFORMER | {"idx": 1, "path": "r", "type": "sentence_transformers.models.Router"}
MODULES = [TRANSFORMER, POOLING, DENSE]


# --- files --------------------------------------------------------------------------------


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


def tokenizer(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json of eight words."""
    added = [{"id": i, "content": token, "special": True} for i, token in enumerate(TOKENS[:5])]
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    return {
        "added_tokens": added,
        "normalizer": {"type": "BertNormalizer"},
        "model": model | {"vocab": {token: i for i, token in enumerate(TOKENS)}},
    } | changes


def tensors(seed: int) -> dict[str, np.ndarray]:
    """Weights of a model as small as can be."""
    shapes = {TABLE: (len(TOKENS), WIDTH), NAME: (WIDTH, WIDTH), f"{NAME[:-6]}bias": (WIDTH,)}
    random = np.random.default_rng(seed)
    return {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def write_json(path: Path, content: Any) -> None:
    """A JSON file; bytes are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def write_model(path: Path, seed: int) -> Path:
    """A sound model: a transformer, its tokenizer, pooling, and a Dense with weights of its own."""
    path.mkdir(parents=True)
    save_file(tensors(seed), path / WEIGHTS, metadata={"format": "pt"})
    (path / "2_Dense").mkdir()
    linear = np.full((WIDTH, WIDTH), seed, np.float32)
    save_file({"linear.weight": linear}, path / "2_Dense" / WEIGHTS)
    write_json(path / "config.json", {"model_type": "bert", "vocab_size": len(TOKENS)})
    write_json(path / "modules.json", MODULES)
    write_json(path / "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    write_json(path / "2_Dense/config.json", {"in_features": WIDTH, "out_features": WIDTH})
    write_json(path / "tokenizer.json", tokenizer())
    return path


@contextmanager
def changed(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """The tensors of a file; what the block makes of them is stored."""
    found = load_file(path)
    yield found
    save_file(found, path)


def hole(path: Path, size: int) -> None:
    """A file of zeros that takes no disk."""
    with path.open("ab") as file:
        file.truncate(size)


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
"""What names no file inside a folder."""


# --- running ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ground:
    """Where an attack takes place: a folder with two sound models, one of them to be spoilt."""

    root: Path

    @property
    def good(self) -> Path:
        """The model that stays as it is."""
        return self.root / "good"

    @property
    def hostile(self) -> Path:
        """The model that an attack spoils."""
        return self.root / "hostile"

    @property
    def out(self) -> Path:
        """What the recipes write."""
        return self.root / "out"

    def write(self, recipe: str | Mapping[str, Any] | None = None, **more: Any) -> Path:
        """The recipe: a linear merge of the two models, unless told otherwise."""
        models = [{"model": str(self.good)}, {"model": str(self.hostile)}]
        usual = {"merge_method": "linear", "models": models} | more
        return write_recipe(self.root / "recipe.yaml", usual if recipe is None else recipe)

    def attempt(self, recipe: Path) -> Ran:
        """Run a recipe that must not take long, nor much memory, nor write anything."""
        before = shape_of(self.root)
        took = timed(lambda: boom_merge(recipe, "-o", self.out))
        ran, peak = traced(lambda: boom_merge(recipe, "-o", self.out))
        assert shape_of(self.root) == before, "something was written"
        assert took < SECONDS, f"took {took:.2f} s"
        assert peak < MEMORY, f"took {peak / 1e6:.0f} MB"
        return ran

    def refused(
        self,
        recipe: Path,
        *,
        names: str | Path,
        says: str = "",
        memory: int = MEMORY,
        lines: int = 1,
        longest: int = LONGEST,
    ) -> str:
        """Run the recipe, check what must follow, and return what was said."""
        before = shape_of(self.root)
        took = timed(lambda: boom_merge(recipe, "-o", self.out))
        ran, peak = traced(lambda: boom_merge(recipe, "-o", self.out))
        assert shape_of(self.root) == before, "something was written"
        check(ran, names=names, says=says, count=lines, longest=longest)
        assert took < SECONDS, f"took {took:.2f} s"
        assert peak < memory, f"took {peak / 1e6:.0f} MB"
        return ran.err

    def merged(self, recipe: Path) -> Path:
        """Run a recipe that is merely odd, and return the model that it makes."""
        with no_hanging():
            ran = boom_merge(recipe, "-o", self.out)
        assert ran.code == 0, ran.err
        assert [p.name for p in self.root.iterdir() if p.name.startswith(".")] == []
        return self.out

    def refused_alone(
        self, recipe: Path, *, names: str | Path, says: str = "", memory: int = 2**30
    ) -> str:
        """As `refused`, in a process of its own that cannot have more memory than this."""
        before = shape_of(self.root)
        ran, took = run_alone(recipe, self.out, memory)
        assert shape_of(self.root) == before, "something was written"
        check(ran, names=names, says=says)
        assert took < SECONDS + 3.0, f"took {took:.2f} s"  # that of starting Python, generously
        return ran.err


def refusal(folder: Path) -> str:
    """What a merge of a model alone is refused with; see `Ground.refused`."""
    ground = Ground(folder.parent)
    return ground.refused(ground.write(models=[{"model": str(folder)}]), names=folder)


def check(
    ran: Ran, *, names: str | Path, says: str, count: int = 1, longest: int = LONGEST
) -> None:
    """What every refusal is: one clear line for each thing that is wrong, and nothing else."""
    assert ran.code in {1, 2}, f"exit code {ran.code}: {ran.out}{ran.err}"
    assert "Traceback" not in ran.err
    assert ran.out == ""
    lines = [line for line in ran.err.splitlines() if not line.endswith("nothing was touched")]
    assert len(lines) == count, ran.err[:3000]
    assert str(names) in lines[0], lines[0][:3000]
    assert says in lines[0], lines[0][:3000]
    for line in lines:
        assert line.isprintable()
        assert len(line) <= longest, f"{len(line)} characters"


@contextmanager
def no_hanging() -> Iterator[None]:
    """End what waits for something that never comes."""

    def hang(number: int, frame: FrameType | None) -> NoReturn:
        raise Hang(f"nothing came back in {HANGS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def timed(run: Callable[[], Ran]) -> float:
    """The seconds of this process that a run takes."""
    with no_hanging():
        began = time.process_time()
        run()
        return time.process_time() - began


def traced(run: Callable[[], Ran]) -> tuple[Ran, int]:
    """A run, and the bytes that Python holds at its peak; tracing makes it slow."""
    tracemalloc.start(1)
    try:
        with no_hanging():
            ran = run()
        return ran, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def run_alone(recipe: Path, out: Path, memory: int) -> tuple[Ran, float]:
    """The command in a process with so much address space, and the seconds that it computes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (HANGS, HANGS))

    script = "from mergekit_embed.cli.merge import main; main()"
    one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", script, str(recipe), "-o", str(out)],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        timeout=3 * HANGS,
        env=os.environ | one_thread,
        check=False,
    )
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    return Ran(done.returncode, done.stdout, done.stderr), took


class Hang(BaseException):
    """A command waits for what never comes; no kind of error that it may catch."""


def shape_of(root: Path) -> dict[str, Any]:
    """Everything under a folder: kind, size and time of change, never opened; links not followed.

    Folders count by what is in them: a file beside that came and went is no change.
    """
    found = {}
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder, name)
            is_ = path.lstat()
            whole = not stat.S_ISDIR(is_.st_mode)
            found[str(path)] = (is_.st_mode, *((is_.st_size, is_.st_mtime_ns) if whole else ()))
    return found


# --- attacks ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """One way to spoil a model, and what the refusal must name and say."""

    spoil: Callable[[Ground], Mapping[str, Any] | None]
    names: str
    says: str
    alone: int | None
    memory: int
    lines: int

    def run(self, ground: Ground) -> None:
        """Spoil the model and merge it. What `spoil` returns goes into the recipe."""
        recipe = ground.write(**(self.spoil(ground) or {}))
        names = ground.root / self.names if self.names else ""
        if self.alone is not None:
            ground.refused_alone(recipe, names=names, says=self.says, memory=self.alone)
        else:
            ground.refused(
                recipe, names=names, says=self.says, memory=self.memory, lines=self.lines
            )


class Attacks(list[Attack]):
    """The attacks of a module, as they are defined; a decorator that takes them in."""

    def __call__(
        self,
        names: str = f"hostile/{WEIGHTS}",
        says: str = "",
        *,
        alone: int | None = None,
        memory: int = MEMORY,
        lines: int = 1,
    ) -> Callable[[Callable[[Ground], Any]], Callable[[Ground], Any]]:
        """Take in an attack.

        Args:
            names: the file that the refusal must name, from the ground's folder.
            says: a part of the refusal.
            alone: run in a process of its own with so much address space.
            memory: bytes that may be held more at the peak.
            lines: how many things are wrong at once.
        """

        def take(spoil: Callable[[Ground], Any]) -> Callable[[Ground], Any]:
            assert spoil.__doc__, f"{spoil.__name__} does not say what it tries"
            self.append(Attack(spoil, names, says, alone, memory, lines))
            return spoil

        return take

    def test(self) -> Callable[..., None]:
        """The test of all of them."""

        @pytest.mark.parametrize("attack", self, ids=[a.spoil.__name__ for a in self])
        def test_refused(attack: Attack, ground: Ground) -> None:
            attack.run(ground)

        return test_refused


def texts(values: Sequence[Any]) -> list[str]:
    """Short ids for tests."""
    return [repr(value)[:24] for value in values]
