"""Compiling the kernels, and what is done while they are not compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mergekit_embed.cli.boom import boom
from mergekit_embed.errors import UsageError
from mergekit_embed.kernels import compilation, open_kernels
from mergekit_embed.kernels.numba_backend import NumbaKernels
from mergekit_embed.kernels.torch_backend import TorchKernels


def test_the_command_compiles_and_says_where() -> None:
    ran = CliRunner().invoke(boom, ["compile"])
    assert ran.exit_code == 0
    assert ran.stdout.startswith("compiled into ")
    assert compilation.is_compiled()
    folder = Path(ran.stdout.split("compiled into ")[1].rsplit("   ", 1)[0])
    assert all(any(folder.glob(f"*.{name}-*.nbi")) for name in compilation.MAIN)


def test_small_merges_do_not_wait_for_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_kernels("cpu", small=True), NumbaKernels)
    monkeypatch.setattr(compilation, "is_compiled", lambda: False)
    assert isinstance(open_kernels("cpu", small=True), TorchKernels)
    assert isinstance(open_kernels("cpu", small=False), NumbaKernels)
    assert isinstance(open_kernels("cpu", "numba", small=True), NumbaKernels)


def test_without_numba_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergekit_embed.kernels.has_numba", lambda: False)
    assert isinstance(open_kernels("cpu"), TorchKernels)
    with pytest.raises(UsageError, match=r"pip install 'mergekit_embed\[fast\]'"):
        open_kernels("cpu", "numba")
    monkeypatch.setattr("mergekit_embed.cli.compile.has_numba", lambda: False)
    assert CliRunner().invoke(boom, ["compile"]).exit_code == 2


def test_a_backend_is_asked_for_by_name() -> None:
    assert isinstance(open_kernels("auto", "torch"), TorchKernels)
    with pytest.raises(UsageError, match="is no backend; use auto, numba, torch"):
        open_kernels("cpu", "jax")
    with pytest.raises(UsageError, match="'cuda' needs the torch backend"):
        open_kernels("cuda", "numba")
