"""Merges of a process of its own: without torch, without Numba, without a place for a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import listed, write_recipe
from tensor_folders import random_model, raw_bytes, stored, write_folder

import mergekit_embed

SMALL = ("encoder.layer.1.intermediate.dense.weight", "encoder.layer.2.cube")


def models(root: Path, *names: str) -> tuple[Path, list[Path]]:
    """A base and two members, of these tensors or of all."""
    chosen = random_model(0)
    chosen = {name: chosen[name] for name in names or chosen}
    base = write_folder(root / "base", stored(chosen, "BF16"), "BF16")
    members = []
    for seed in (1, 2):
        around = random_model(seed)
        member = {name: chosen[name] + 0.1 * around[name] for name in chosen}
        members.append(write_folder(root / f"m{seed}", stored(member, "BF16"), "BF16"))
    return base, members


def recipe_of(method: str, root: Path, *names: str) -> Path:
    base, members = models(root, *names)
    based = {} if method == "linear" else {"base_model": str(base)}
    recipe = {"merge_method": method, "models": listed(*members), **based}
    return write_recipe(root / "recipe.yaml", recipe)


MERGE = """
import sys
from mergekit_embed.cli.merge import merge
merge([sys.argv[1], "--device", sys.argv[2], "-o", sys.argv[3]], standalone_mode=False)
"""


def run(
    script: str, *arguments: str | Path, package: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A script in a process that takes the package from `package`, or from where it is."""
    where = package or Path(mergekit_embed.__file__).parents[1]
    begin = f"import mergekit_embed as ours; assert ours.__file__.startswith({str(where)!r})\n"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", begin + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(where), **variables},
    )
    assert ran.returncode == 0, ran.stderr
    return ran


NAMES = "\nprint('torch' in sys.modules, 'numba' in sys.modules)"


@pytest.mark.parametrize("method", ["linear", "multislerp", "ties"])
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_merge_on_the_cpu_does_not_wait_for_torch(
    method: str, device: str, tmp_path: Path
) -> None:
    if device == "auto" and Path("/dev/nvidiactl").exists():
        pytest.skip("there may be a CUDA device, which torch has to be asked for")
    ran = run(MERGE + NAMES, recipe_of(method, tmp_path), device, tmp_path / "out")
    assert ran.stdout.splitlines()[-1] == "False True"


HIDDEN = """
import sys
from importlib.machinery import PathFinder

class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        hidden = name.partition(".")[0] in {"numba", "llvmlite"}
        return None if hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


@pytest.mark.parametrize("method", ["linear", "multislerp", "ties"])
def test_without_numba_the_bytes_are_the_same(method: str, tmp_path: Path) -> None:
    recipe = recipe_of(method, tmp_path)
    run(MERGE, recipe, "cpu", tmp_path / "usual")
    ran = run(HIDDEN + MERGE + NAMES, recipe, "cpu", tmp_path / "without")
    assert ran.stdout.splitlines()[-1] == "True False"
    assert raw_bytes(tmp_path / "without") == raw_bytes(tmp_path / "usual")


NOWHERE = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache"}
"""Where nobody can make a folder, not even the superuser."""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The folder of a copy of the package."""
    root, source = tmp_path / "package", Path(mergekit_embed.__file__).parent
    shutil.copytree(source, root / "mergekit_embed", ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture
def read_only(copied: Path) -> Path:
    """A copy that takes no compiled functions: where their folder would be is a file."""
    (copied / "mergekit_embed" / "kernels" / "__pycache__").write_bytes(b"")
    return copied


@pytest.mark.parametrize("cache", ["", "/dev/null/cache"])
def test_a_merge_needs_no_place_for_compiled_functions(
    cache: str, read_only: Path, tmp_path: Path
) -> None:
    recipe = recipe_of("linear", tmp_path, *SMALL)
    run(MERGE, recipe, "cpu", tmp_path / "usual")
    more = {"NUMBA_CACHE_DIR": cache} if cache else {}
    ran = run(MERGE + NAMES, recipe, "cpu", tmp_path / "out", package=read_only, **NOWHERE, **more)
    # Torch computes: nothing is ever compiled there, and a small merge does not wait for that.
    assert ran.stdout.splitlines()[-1] == "True True"
    assert raw_bytes(tmp_path / "out") == raw_bytes(tmp_path / "usual")


WAITS = """
from importlib import import_module
import_module("mergekit_embed.engine.merge").SMALL = 0
"""
"""No merge is so small that it does not wait for Numba to compile."""


@pytest.mark.parametrize("cache", ["", "/dev/null/cache"])
def test_a_larger_merge_compiles_where_there_is_no_place_to_keep_it(
    cache: str, read_only: Path, tmp_path: Path
) -> None:
    recipe = recipe_of("linear", tmp_path, *SMALL)
    run(MERGE, recipe, "cpu", tmp_path / "usual")
    script, more = WAITS + MERGE + NAMES, {"NUMBA_CACHE_DIR": cache} if cache else {}
    ran = run(script, recipe, "cpu", tmp_path / "out", package=read_only, **NOWHERE, **more)
    assert ran.stdout.splitlines()[-1] == "False True"
    assert raw_bytes(tmp_path / "out") == raw_bytes(tmp_path / "usual")


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
"""


def test_a_merge_needs_no_room_for_compiled_functions(tmp_path: Path) -> None:
    """The disk takes the little model, and none of the functions."""
    recipe, cache = recipe_of("linear", tmp_path, *SMALL), tmp_path / "cache"
    run(MERGE, recipe, "cpu", tmp_path / "usual")
    run(LIMITED + MERGE, recipe, "cpu", tmp_path / "limited", NUMBA_CACHE_DIR=str(cache))
    assert list(cache.rglob("*.mixture-*.nbi"))
    assert not list(cache.rglob("*.mixture-*.nbc"))
    assert raw_bytes(tmp_path / "limited") == raw_bytes(tmp_path / "usual")


LOOK = """
import numpy as np
from mergekit_embed.dtypes import DType
from mergekit_embed.kernels import open_kernels
kernels = open_kernels("cpu", "numba")
print(kernels.is_finite(kernels.load(np.ones(4, np.float32).view(np.uint8), DType.F32)))
"""


def test_functions_that_were_compiled_of_other_sources_are_not_taken(copied: Path) -> None:
    """Not even where only what they call has changed, in another file."""
    assert run(LOOK, package=copied).stdout == "True\n"
    kernels = copied / "mergekit_embed" / "kernels"
    assert list((kernels / "__pycache__").glob("*is_finite*.nbc"))
    pieces = kernels / "numba_pieces.py"
    text, infinite = pieces.read_text(), "out[i] = np.inf"
    pieces.write_text(text.replace("out[i] = double(elements[i])", infinite))
    assert infinite in pieces.read_text()
    assert run(LOOK, package=copied).stdout == "False\n"
