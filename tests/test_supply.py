"""What jobs that share tensors are handed: read once, copied to a device once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensor_folders import raw_bytes, write_folder

from mergekit_embed import open_checkpoint
from mergekit_embed.checkpoint import Tensor
from mergekit_embed.engine.reader import Reader
from mergekit_embed.engine.supply import Supply
from mergekit_embed.kernels import Kernels, open_kernels

COUNT = 10_000
VALUES = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)


@pytest.fixture
def tensor(tmp_path: Path) -> Tensor:
    folder = write_folder(tmp_path / "m", {"weight": VALUES.reshape(100, 100)}, "F32")
    (component,) = open_checkpoint(folder).components.values()
    return component.tensors["weight"]


class Device:
    """Kernels of a device: `load` copies, and counts how often."""

    copies = True

    def __init__(self) -> None:
        self.loaded = 0

    def load(self, raw: Any, dtype: Any) -> Any:
        self.loaded += 1
        return raw.copy().view(np.float32)

    def part(self, vector: Any, start: int, stop: int) -> Any:
        return vector[start:stop]


def device() -> tuple[Device, Kernels]:
    made: Any = Device()
    return made, made


@pytest.mark.parametrize("keep", [True, False])
def test_ranges_are_those_of_the_file(tensor: Tensor, keep: bool) -> None:
    _, kernels = device()
    with Reader() as reader:
        supply = Supply([tensor], reader, kernels)
        supply.keep = keep
        for start, stop in [(0, 7), (3, 5), (7, 100), (50, 9000), (0, COUNT), (9999, COUNT)]:
            assert np.array_equal(supply.vector(tensor, start, stop), VALUES[start:stop])
            assert supply.raw(tensor, start, stop).tobytes() == VALUES[start:stop].tobytes()


def test_what_is_kept_is_read_once_and_copied_to_a_device_once(tensor: Tensor) -> None:
    counted, kernels = device()
    with Reader() as reader:
        supply = Supply([tensor], reader, kernels)
        supply.keep = True
        for _ in range(3):
            for start in range(0, COUNT, 2500):
                supply.vector(tensor, start, start + 2500)
        assert counted.loaded == 4
        assert reader.bytes_read == VALUES.nbytes
        supply.clear()
        supply.vector(tensor, 0, 2500)
        assert counted.loaded == 5


def test_what_is_not_kept_is_read_for_every_pass_and_once_for_all_of_a_chunk(
    tensor: Tensor,
) -> None:
    counted, kernels = device()
    with Reader() as reader:
        supply = Supply([tensor], reader, kernels)
        for _ in range(2):
            for start in range(0, COUNT, 2500):
                for _ in range(3):
                    supply.vector(tensor, start, start + 2500)
        assert counted.loaded == 8
        assert reader.bytes_read == 2 * VALUES.nbytes


@pytest.mark.parametrize("keep", [True, False])
def test_windows_are_from_all_over_the_tensor(tensor: Tensor, keep: bool) -> None:
    _, kernels = device()
    with Reader() as reader:
        supply = Supply([tensor], reader, kernels)
        supply.keep = keep
        found = supply.windows(tensor, 9, 1111, 64)
        wanted = [VALUES[1111 * i : 1111 * i + 64] for i in range(9)]
        assert np.array_equal(found, np.concatenate(wanted))
        assert reader.bytes_read == (VALUES.nbytes if keep else 9 * 64 * 4)


def test_the_backend_of_the_cpu_does_not_copy() -> None:
    assert not open_kernels("cpu").copies
    assert not open_kernels("cpu", "torch").copies


def test_members_may_have_more_files_than_a_process_usually_opens(tmp_path: Path) -> None:
    model = {f"layers.{i}.weight": np.full((2, 2), float(i)) for i in range(60)}
    members = [write_folder(tmp_path / name, model, "F32", shards=60) for name in "ab"]
    recipe = {"merge_method": "linear", "models": [{"model": str(path)} for path in members]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    script = """
import resource, sys
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
from mergekit_embed.cli.merge import main
main()
"""
    arguments = [str(tmp_path / "recipe.json"), "-o", str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    assert raw_bytes(tmp_path / "out") == raw_bytes(tmp_path / "a")
