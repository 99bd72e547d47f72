"""What executors promise, without a cluster: any cut into tasks gives the bytes of one run."""

from __future__ import annotations

import importlib.util
import pickle
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import boom_merge, changed_tensors, files, listed, recipe, write_recipe

import mergekit_embed
from mergekit_embed import errors
from mergekit_embed.engine import Plan, plan_many
from mergekit_embed.engine.agenda import Agenda
from mergekit_embed.engine.destination import Destination
from mergekit_embed.engine.executors.tasks import Keys, Order, Report, Task, tasks
from mergekit_embed.engine.executors.worker import MARK, work
from mergekit_embed.engine.journal import Entry
from mergekit_embed.engine.sharing import shares
from mergekit_embed.errors import MergekitEmbedError, Problem, ProblemsError
from mergekit_embed.methods import Gram
from mergekit_embed.version import __version__

pytestmark = pytest.mark.usefixtures("among_models")

INNER: dict[str, Any] = {
    "merge_method": "multislerp",
    "granularity": "layer",
    "models": listed("m1", "m2"),
}
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": listed("m1", "m2", "m3")},
    "ties": {
        "merge_method": "ties",
        "base_model": "base",
        "models": listed("m1", "m2", "m3"),
        "parameters": {"density": 0.5},
    },
    "whole model": {
        "merge_method": "karcher",
        "granularity": "model",
        "models": listed("m1", "m2", "m3"),
    },
    "nested": {
        "merge_method": "multislerp",
        "granularity": "model",
        "models": listed("inner.yaml", "m3"),
    },
    "sweep": {
        "merge_method": "multislerp",
        "models": listed("m1", "m2", "m3"),
        "sweep": {"models[0].parameters.weight": [1.0, 2.0]},
    },
}


def planned(name: str, output: str) -> list[Plan]:
    write_recipe(Path("inner.yaml"), INNER)
    found = plan_many(RECIPES[name], output)
    return [one for one in found if isinstance(one, Plan)]


class Driven:
    """A merge whose tasks are done one by one in this process."""

    def __init__(self, plans: list[Plan], destinations: list[Destination]):
        self.plans, self.destinations = plans, destinations
        self.agenda = Agenda(plans, lambda plan, job: True)
        self.grams: dict[Any, Gram] = {}
        for destination in destinations:
            (destination.folder / MARK).write_text("token")
        folders = tuple(one.folder.absolute() for one in destinations)
        self.order = pickle.dumps(Order(tuple(plans), folders, "token", small=False, keep=None))

    def reports(self, task: Task) -> Iterator[Report]:
        for report in work(__version__, task, self.order, self.grams):
            again = pickle.loads(pickle.dumps(report))
            if again.error is not None:
                raise again.error
            yield again

    def run(self, cpus: int) -> None:
        keys, chance = Keys(self.agenda), random.Random(0)
        for level in self.agenda.measured:
            cut = tasks(self.agenda, level, cpus, measures=True)
            found = [one for task in cut for r in self.reports(task) for one in r.grams]
            chance.shuffle(found)
            named = zip(keys.jobs([key for key, _ in found]), (g for _, g in found), strict=True)
            self.grams |= self.agenda.summed(named)
        cut = tasks(self.agenda, self.agenda.wanted, cpus, measures=False)
        chance.shuffle(cut)
        for task in cut:
            for report in self.reports(task):
                for (number, _), entry in report.entries:
                    sink = self.plans.index(self.agenda.every[number])
                    self.destinations[sink].add(entry)
        for destination in self.destinations:
            (destination.folder / MARK).unlink()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("cpus", [1, 7])
def test_tasks_in_any_order_give_the_bytes_and_the_journal_of_one_run(
    name: str, cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    journals: list[dict[str, Entry]] = []
    commit = Destination.commit

    def committed(destination: Destination) -> None:
        journals.append(dict(sorted(destination._entries.items())))
        commit(destination)

    monkeypatch.setattr(Destination, "commit", committed)
    mergekit_embed.merge_many(RECIPES[name] if name != "nested" else _nested(), "local")
    plans = planned(name, "tasks")
    destinations = [Destination(plan) for plan in plans]
    for destination in destinations:
        destination.__enter__()
    Driven(plans, destinations).run(cpus)
    for destination in destinations:
        destination.commit()
        destination.__exit__(None, None, None)
    assert files(Path("tasks")) == files(Path("local"))
    assert journals[: len(plans)] == journals[len(plans) :]


def _nested() -> dict[str, Any]:
    write_recipe(Path("inner.yaml"), INNER)
    return RECIPES["nested"]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("cpus", [1, 3, 1000])
def test_every_job_is_in_one_task_with_those_that_it_shares_tensors_with(
    name: str, cpus: int
) -> None:
    agenda = Agenda(planned(name, "out"), lambda plan, job: True)
    keys = Keys(agenda)
    cut = tasks(agenda, agenda.wanted, cpus, measures=False)
    assert sorted(key for task in cut for key in task.jobs) == sorted(keys.of(agenda.wanted))
    place = {key: number for number, task in enumerate(cut) for key in task.jobs}
    for share in shares(agenda.wanted):
        assert len({place[key] for key in keys.of(share)}) == 1
    assert [task.size for task in cut] == sorted((task.size for task in cut), reverse=True)
    total = agenda.size - sum(j.count * j.width for level in agenda.measured for _, j in level)
    if name != "nested":  # whose inner measurements are not counted
        assert sum(task.size for task in cut) == total
    written = {(agenda.number(plan), job.file) for plan, job in agenda.wanted}
    assert len(cut) <= 2 * 4 * cpus + len(written)  # two neighbours are more than one should be
    assert len(cut) > min(4 * cpus, 30) // 2


def test_attempts_count_only_while_nothing_is_done() -> None:
    task = Task(((0, 0), (0, 1), (0, 2)), measures=False, size=3)
    lost = task.without(set(), advanced=False).without(set(), advanced=False)
    assert (lost.jobs, lost.attempts) == (task.jobs, 2)
    advanced = lost.without({(0, 1)}, advanced=True)
    assert (advanced.jobs, advanced.attempts) == (((0, 0), (0, 2)), 1)


def test_a_task_of_a_sharded_model_writes_one_file() -> None:
    write_recipe(Path("inner.yaml"), INNER)
    sharded = mergekit_embed.plan(RECIPES["linear"] | {"max_shard_size": "20kB"}, "out")
    assert len(sharded.files) > 3
    agenda = Agenda([sharded], lambda plan, job: True)
    for task in tasks(agenda, agenda.wanted, 1, measures=False):
        assert len({sharded.jobs[place].file for _, place in task.jobs}) == 1


# --- errors -------------------------------------------------------------------------------


def test_every_error_survives_the_way_to_another_process() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    made: list[MergekitEmbedError] = []
    for kind in kinds:
        if not issubclass(kind, MergekitEmbedError):
            continue
        if issubclass(kind, ProblemsError):
            made.append(kind([Problem("a.yaml:1:2", "wrong")]))
        elif issubclass(kind, errors.CheckpointError):
            made.append(kind(Path("model"), "broken"))
        else:
            made.append(kind("what is wrong"))
    assert len(made) > 10
    for error in made:
        error.recipe = "some.yaml"
        error.add_note("a note")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def one_task(name: str = "linear") -> tuple[Driven, Destination]:
    plans = planned(name, "out")
    destination = Destination(plans[0])
    destination.__enter__()
    return Driven(plans, [destination]), destination


def failure(driven: Driven) -> MergekitEmbedError:
    (task,) = tasks(driven.agenda, driven.agenda.wanted, 1, measures=False)[:1]
    with pytest.raises(MergekitEmbedError) as caught:
        list(driven.reports(task))
    return caught.value


def test_a_worker_that_sees_another_folder_of_that_name_does_not_touch_it() -> None:
    driven, destination = one_task()
    (destination.folder / MARK).write_text("that of an earlier run")
    before = files(destination.folder)
    error = failure(driven)
    assert isinstance(error, errors.OutputError)
    assert "what is written there is not seen on" in str(error)
    assert files(destination.folder) == before
    destination.__exit__(None, None, None)


def test_a_worker_names_a_member_that_it_does_not_see() -> None:
    driven, destination = one_task()
    Path("m2/model.safetensors").rename("hidden")
    error = failure(driven)
    assert type(error) is errors.CheckpointError
    assert "m2/model.safetensors: is not there on" in str(error)
    destination.__exit__(None, None, None)


def test_a_member_that_changed_is_refused_by_a_worker() -> None:
    driven, destination = one_task()
    with changed_tensors(Path("m2")) as tensors:
        for tensor in tensors.values():
            tensor += 1
    assert isinstance(failure(driven), errors.ChangedError)
    destination.__exit__(None, None, None)


def test_the_same_file_may_have_other_numbers_on_another_machine() -> None:
    expected = mergekit_embed.merge(RECIPES["linear"], "local").path
    (plan,) = planned("linear", "out")
    with Destination(plan) as destination:
        inputs = {p: s._replace(device=77, inode=88) for p, s in plan.inputs.items()}
        assert inputs
        driven = Driven([replace(plan, inputs=inputs)], [destination])
        driven.run(1)
        destination.commit()
    assert files(Path("out")) == files(expected)


def test_another_version_is_refused() -> None:
    (report,) = work("0.0.0", Task((), False, 0), b"not to be opened", {})
    assert isinstance(report.error, errors.UsageError)
    assert f"has mergekit_embed {__version__}" in str(report.error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray-address", "here:1"], "an address of a Ray cluster needs the executor `ray`"),
        (["--executor", "ray", "--device", "cuda"], "computes on CPUs"),
        (["--executor", "ray", "--ray-address", "ray://here:1"], "on a machine of the cluster"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments: list[str], message: str) -> None:
    recipe()
    ran = boom_merge("recipe.yaml", "-o", "out", *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert not Path("out").exists()


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="use local or ray"):
        mergekit_embed.merge(RECIPES["linear"], "out", executor="slurm")


def test_without_ray_the_error_tells_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name == "ray" else find(name, *more)

    monkeypatch.setattr("importlib.util.find_spec", without)
    with pytest.raises(errors.UsageError, match=r"pip install 'mergekit_embed\[ray\]'"):
        mergekit_embed.merge(RECIPES["linear"], "out", executor="ray")
    assert not Path("out").exists()
