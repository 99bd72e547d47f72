"""Runs of a part of a plan: what a sink does not want is left out, and the rest has its bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from helpers import listed, write_recipe

import mergekit_embed
from mergekit_embed.engine.plan import Job
from mergekit_embed.engine.run import Learned, run
from mergekit_embed.kernels import Raw, open_kernels

pytestmark = pytest.mark.usefixtures("among_models")


@dataclass
class Kept:
    """A sink in memory that wants every `every`-th job from `first` on."""

    first: int = 0
    every: int = 1
    bytes: dict[str, bytes] = field(default_factory=dict)
    ends: list[str] = field(default_factory=list)
    asked: int = -1
    learned: dict[str, Learned] = field(default_factory=dict)

    def wants(self, job: Job) -> bool:
        self.asked += 1
        return self.asked >= self.first and (self.asked - self.first) % self.every == 0

    def write(self, job: Job, start: int, raw: Raw) -> None:
        there = self.bytes.get(job.name, b"")
        assert len(there) == start * job.dtype.itemsize, "first to last"
        self.bytes[job.name] = there + raw.tobytes()

    def finished(self, job: Job, learned: Learned) -> None:
        assert len(self.bytes.get(job.name, b"")) == job.bytes_out
        self.ends.append(job.name)
        self.learned[job.name] = learned

    def notes(self, job: Job) -> list[str]:
        return []


@dataclass
class Counted:
    """Progress as numbers."""

    total: int = 0
    tensors: int = 0
    done: int = 0
    finished: int = 0

    def start(self, total: int, tensors: int) -> None:
        self.total, self.tensors = total, tensors

    def advance(self, size: int) -> None:
        self.done += size

    def finish_tensor(self, name: str) -> None:
        self.finished += 1


RECIPES = {
    "linear": {"merge_method": "linear"},
    "ties": {"merge_method": "ties", "base_model": "base", "parameters": {"density": 0.5}},
    "layers": {"merge_method": "model_stock", "base_model": "base", "granularity": "layer"},
    "model": {"merge_method": "karcher", "granularity": "model"},
}


def recipe_of(name: str) -> dict[str, object]:
    return {**RECIPES[name], "models": listed("m1", "m2", "m3")}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("first", "every"), [(0, 2), (1, 3), (5, 100), (1000, 1)])
def test_wanted_jobs_have_the_bytes_of_a_whole_run(name: str, first: int, every: int) -> None:
    plan = mergekit_embed.plan(recipe_of(name), "out")
    whole, part, progress = Kept(), Kept(first, every), Counted()
    run([plan], open_kernels("cpu"), [whole], Counted())
    ran = run([plan], open_kernels("cpu"), [part], progress)
    assert sorted(whole.ends) == sorted(job.name for job in plan.jobs)
    assert part.bytes == {job: whole.bytes[job] for job in part.bytes}
    wanted = [job.name for job in plan.jobs][first::every]
    assert sorted(part.ends) == sorted(wanted)
    assert (progress.tensors, progress.finished) == (len(wanted), len(wanted))
    assert progress.done == progress.total
    assert bool(ran.bytes_read) == bool(wanted)


def test_groups_that_nobody_needs_are_not_measured() -> None:
    plan = mergekit_embed.plan(recipe_of("layers"), "out")
    layer = [job for job in plan.jobs if "layer.0." in job.name]
    one = Kept(first=plan.jobs.index(layer[0]), every=1000)
    ran = run([plan], open_kernels("cpu"), [one], Counted())
    assert one.ends == [layer[0].name]
    assert ran.bytes_read == sum(job.bytes_in for job in layer) + layer[0].bytes_in


@pytest.mark.parametrize("name", ["layers", "model"])
def test_a_nested_merge_is_measured_whole_for_what_is_wanted(name: str) -> None:
    write_recipe(Path("inner.yaml"), recipe_of(name))
    outer = {"merge_method": "linear", "models": listed("inner.yaml", "m1")}
    plan = mergekit_embed.plan(outer, "out")
    whole, part = Kept(), Kept(first=3, every=7)
    for sink in (whole, part):
        run([plan], open_kernels("cpu"), [sink], Counted())
    assert part.bytes
    assert part.bytes == {job: whole.bytes[job] for job in part.bytes}
