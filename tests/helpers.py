"""What tests of the whole command share: recipes, the command itself, and changes to folders."""

from __future__ import annotations

import json
import struct
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from tensor_folders import raw_bytes

import mergekit_embed
from mergekit_embed import kernels

WEIGHTS = "model.safetensors"

BACKENDS = ("numba", "torch")
"""What merges on a CPU may compute with."""


def set_backend(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Merges compute with this backend on the CPU, whatever device they ask for."""
    opened = kernels.open_kernels

    def open_one(device: str = "cpu", *, small: bool = False) -> kernels.Kernels:
        return opened("cpu", backend)

    monkeypatch.setattr(kernels, "open_kernels", open_one)


def set_limits(
    monkeypatch: pytest.MonkeyPatch,
    *,
    workers: int | None = None,
    blocks: int | None = None,
    keep: int | None = None,
) -> None:
    """So many threads, so many blocks in a chunk, so many bytes to keep, in both backends."""
    for backend in BACKENDS:
        module = f"mergekit_embed.kernels.{backend}_backend"
        if workers is not None:
            monkeypatch.setattr(f"{module}.cpu_workers", lambda: workers)
        if blocks is not None:
            name = f"{module}.{backend.title()}Kernels.chunk_blocks"
            monkeypatch.setattr(name, lambda kernels, vectors: blocks)
    if keep is not None:
        monkeypatch.setattr("mergekit_embed.engine.run.KEEP_BYTES", keep)


LIMITS = ((1, 1, 0), (4, 1, 10**9), (2, 64, 0))
"""Workers, blocks of a chunk and bytes to keep, as different as machines are."""


def merged_within_limits(
    monkeypatch: pytest.MonkeyPatch, recipe: Mapping[str, Any], root: Path
) -> dict[str, bytes]:
    """The tensors that a recipe makes, the same with all of `LIMITS` and with both backends."""
    results = []
    for backend in BACKENDS:
        for workers, blocks, keep in LIMITS:
            output = root / f"{backend}-{workers}-{blocks}-{keep}"
            with monkeypatch.context() as patch:
                set_backend(patch, backend)
                set_limits(patch, workers=workers, blocks=blocks, keep=keep)
                opened = kernels.open_kernels()
                assert (opened.workers, opened.chunk_blocks(3)) == (workers, blocks)
                mergekit_embed.merge(recipe, output)
            results.append(raw_bytes(output))
            assert results[-1] == results[0], output.name
    return results[0]


def write_recipe(path: Path, recipe: str | Mapping[str, Any]) -> Path:
    """A recipe file: a text as it stands (dedented), or a mapping, one key to a line."""
    if isinstance(recipe, str):
        path.write_text(textwrap.dedent(recipe).lstrip("\n"), encoding="utf-8")
    else:
        path.write_text(json.dumps(recipe, indent=2), encoding="utf-8")
    return path


def listed(*models: str | Path, weight: float | None = None) -> list[dict[str, Any]]:
    """The `models` of a recipe."""
    own = {} if weight is None else {"parameters": {"weight": weight}}
    return [{"model": str(model), **own} for model in models]


def recipe(*members: str, **more: Any) -> Path:
    """recipe.yaml here: a linear merge of m1, m2 and m3, unless told otherwise."""
    models = listed(*(members or ("m1", "m2", "m3")))
    return write_recipe(Path("recipe.yaml"), {"merge_method": "linear", "models": models} | more)


@dataclass(frozen=True)
class Ran:
    """A run of the command: its exit code, and what it said on standard output and error."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line of standard output."""
        return self.out.splitlines()[-1]


def ran(command: click.Command, *arguments: str | Path) -> Ran:
    """Run a command in this process; an exception that it should have reported is raised."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def boom_merge(*arguments: str | Path) -> Ran:
    """Run `boom-merge`, as `ran` does."""
    from mergekit_embed.cli.merge import merge

    return ran(merge, *arguments)


MANIFEST = "merge_manifest.json"
LINEAGE = "merge_lineage.json"


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a folder, by its path in it; empty when there is no folder.

    But for what tells how they were made: models of the same bytes may differ in that.
    """
    left_out = {MANIFEST, LINEAGE, "README.md"}
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in left_out)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def siblings(path: Path) -> list[str]:
    """The hidden names beside a path that begin as its own: what a merge may leave."""
    return sorted(p.name for p in path.parent.iterdir() if p.name.startswith(f".{path.name}."))


@contextmanager
def changed_tensors(folder: Path, file: str = WEIGHTS) -> Iterator[dict[str, np.ndarray]]:
    """The tensors of a safetensors file as NumPy arrays; what the block makes of them is stored."""
    tensors = load_file(folder / file)
    yield tensors
    save_file(tensors, folder / file, metadata={"format": "pt"})


@contextmanager
def changed_json(path: Path) -> Iterator[Any]:
    """The content of a JSON file; what the block makes of it is stored."""
    content = json.loads(path.read_text(encoding="utf-8"))
    yield content
    path.write_text(json.dumps(content), encoding="utf-8")


def hollow_model(folder: Path, tensors: int, elements: int) -> Path:
    """A model of float32 zeros that takes hardly any disk: its data is a hole in the file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    size = 4 * elements
    header = json.dumps(
        {
            f"encoder.layer.{i}.weight": {
                "dtype": "F32",
                "shape": [elements],
                "data_offsets": [i * size, (i + 1) * size],
            }
            for i in range(tensors)
        }
    ).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + tensors * size)
    return folder
