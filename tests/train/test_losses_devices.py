"""Two processes with half the batch each learn what one with the whole batch learns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Family
from torch import Tensor

from mergekit_embed.train.losses import mixing

from . import processes

TESTS = Path(__file__).parent.parent
Found = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, family: Family) -> tuple[Found, list[Found]]:
    """What one process finds, and what two do."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    model = str(family.base)
    command = [sys.executable, "-m", "train.processes"]
    running = [
        subprocess.Popen([*command, str(rank), "2", str(folder), model], env=environment)
        for rank in range(2)
    ]
    draw = mixing.draw
    try:
        alone = processes.measure_all(model)
    finally:
        mixing.draw = draw
        codes = [process.wait(timeout=120) for process in running]
    assert codes == [0, 0]
    return alone, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", [*processes.CASES, "middle"])
def test_two_processes_learn_what_one_does(found: tuple[Found, list[Found]], case: str) -> None:
    (loss, gradient), halves = found[0][case], [half[case] for half in found[1]]
    mean = (halves[0][0] + halves[1][0]) / 2
    torch.testing.assert_close(mean, loss, rtol=1e-9, atol=1e-12)
    assert gradient.abs().max() > 1e-6
    for _, half in halves:
        torch.testing.assert_close(half, gradient, rtol=1e-8, atol=1e-10)
