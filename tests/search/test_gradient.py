"""The streamed gradient is the gradient; what is planted is found; what is found is merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from mergekit_embed.engine.reader import Reader
from mergekit_embed.search.elements import Cached, Streamed
from mergekit_embed.search.mapping import gradients
from mergekit_embed.search.objective import ProbeLoss
from mergekit_embed.search.position import Position
from mergekit_embed.search.prepare import Scene, open_probe
from mergekit_embed.search.specs import Point
from mergekit_embed.search.start import Merging, mapping_of, starting_point

from .scenes import DATA, Planted, opened_scene, searching_of, write_recipe

WAYS = [
    ("self_positioning", "model", {"mu": 0.05}),
    ("self_positioning", "block", {"mu": 0.05}),
    ("task_arithmetic", "model", {}),
    ("task_arithmetic", "layer", {}),
    ("task_arithmetic", "module", {}),
    ("linear", "model", {}),
    ("linear", "component", {}),
]


def vectors(scene: Scene, dtype: torch.dtype) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The origin and the task vectors of every tensor, read by safetensors and not by us."""
    from safetensors.torch import load_file

    def tensors(root: Path) -> dict[str, torch.Tensor]:
        own = load_file(root / "model.safetensors")
        return own | {
            f"2_Dense/{k}": v for k, v in load_file(root / "2_Dense/model.safetensors").items()
        }

    members = [tensors(model.root) for model in scene.plan.members]
    base = tensors(scene.plan.base.root) if scene.plan.base else None
    found = {}
    for job in scene.jobs:
        origin = (
            base[job.name].to(dtype) if base and job.origin else torch.zeros(job.shape, dtype=dtype)
        )
        own = torch.stack([member[job.name].to(dtype) - origin for member in members])
        found[job.name] = (origin, own)
    return found


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize(("method", "groups", "more"), WAYS, ids=lambda value: str(value))
def test_the_gradient_is_that_of_autograd_through_all_weights(
    kept_family: Path,
    tmp_path: Path,
    method: str,
    groups: str,
    more: dict[str, Any],
    double: bool,
) -> None:
    recipe = own_recipe(kept_family, tmp_path, method, groups=groups, **more)
    with opened_scene(recipe, double=double) as (spec, scene):
        model = scene.embedder.model
        probe = open_probe(spec)
        assert probe is not None
        objective = ProbeLoss(model, probe.datasets, probe.rows, spec.seed)
        start = starting_point(spec, scene.jobs, scene.grouping)
        mapping = mapping_of(spec, scene.cells, start)
        random = np.random.default_rng(0)
        raw = [
            one + torch.from_numpy(random.normal(0, 0.3, one.shape)) for one in mapping.start(start)
        ]
        point = mapping.point(raw)
        coefficients = Merging(spec.recipe, scene.jobs, scene.cells).coefficients(point)
        expected_c = mapping.coefficients(raw).numpy()[scene.cells.cell_of]
        np.testing.assert_allclose(coefficients, expected_c, rtol=1e-12, atol=1e-14)

        scene.position.put(coefficients)
        number = next(
            i for i in range(3) if objective._taught[order(objective, i)].name == "questions"
        )
        objective.step(number)
        found = gradients(
            mapping, raw, torch.from_numpy(scene.cells.summed(scene.position.pulls()))
        )

        dtype = torch.float64 if double else torch.float32
        origins = vectors(scene, dtype)
        names = {key: name for name, key in scene.embedder.keys.items()}
        leaves = [one.clone().requires_grad_(True) for one in raw]
        c = mapping.coefficients(leaves)[torch.from_numpy(scene.cells.cell_of)]
        weights = {}
        for index, job in enumerate(scene.jobs):
            origin, own = origins[job.name]
            weights[names[job.name]] = origin + torch.einsum("k,k...->...", c[index].to(dtype), own)
        batch = objective._taught[order(objective, number)]
        columns, labels = batch.on(torch.device("cpu"))
        loss_module = objective._losses["questions"]
        loss = functional_call(
            loss_module, {f"model.{k}": v for k, v in weights.items()}, (columns, labels)
        )
        wanted = torch.autograd.grad(loss + mapping.penalty(leaves), leaves, allow_unused=True)
        for ours, theirs in zip(found, wanted, strict=True):
            assert theirs is not None
            scale = float(theirs.abs().max())
            assert scale > 0
            assert float((ours - theirs).abs().max()) < 1e-5 * scale


def order(objective: ProbeLoss, number: int) -> int:
    """Which batch a step takes."""
    from mergekit_embed.train.draws import key_of, shuffled

    identities = np.arange(len(objective._taught), dtype=np.uint64)
    return int(shuffled(key_of("search", objective._seed, 0), identities)[number])


def own_recipe(family: Path, folder: Path, method: str, **search: Any) -> Path:
    """A recipe in a folder of its own, with the models of a family that is only read."""
    content = {
        "merge_method": method,
        "base_model": str(family / "base"),
        "models": [{"model": str(family / f"m{i}")} for i in (1, 2, 3)],
        "search": {
            "data": {k: {**v, "path": str(family / v["path"])} for k, v in DATA.items()},
            "batch_size": 8,
            **search,
        },
    }
    return write_recipe(folder / "recipe.yaml", content)


PLANTED = [
    ("task_arithmetic", "model", {"learning_rate": 0.3, "steps": 120}),
    ("task_arithmetic", "layer", {"learning_rate": 0.3, "steps": 120}),
    ("linear", "model", {"learning_rate": 3.0, "steps": 200}),
    ("self_positioning", "model", {"learning_rate": 1.0, "steps": 150}),
    ("self_positioning", "model", {"learning_rate": 0.05, "optimizer": "adam", "steps": 200}),
]


@pytest.mark.parametrize(("method", "groups", "more"), PLANTED, ids=lambda value: str(value))
def test_a_planted_mixture_is_found(
    kept_family: Path, tmp_path: Path, method: str, groups: str, more: dict[str, Any]
) -> None:
    more = {"evaluate_every": 10, "patience": 50, "groups": groups, **more}
    recipe = own_recipe(kept_family, tmp_path, method, **more)
    with opened_scene(recipe) as (spec, scene):
        count = scene.cells.groups
        random = np.random.default_rng(1)
        weights = random.uniform(0.2, 1.2, (count, 3))
        if method == "linear":
            weights /= weights.sum(axis=1, keepdims=True)
        planted = Point(weights, np.full(count, 1.3 if method == "self_positioning" else 1.0))
        merging = Merging(spec.recipe, scene.jobs, scene.cells)
        wanted = merging.coefficients(planted)
        objective = Planted.at(
            scene, wanted, float(scene.gram[0, 0] if method != "linear" else 1.0)
        )
        trail = searching_of(spec, scene, objective).run()
        found = merging.coefficients(trail.best_point)
        here = [job.name in objective.target for job in scene.jobs]
        assert np.abs(found - wanted)[here].max() < 1e-2


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "self_positioning"])
def test_members_that_are_kept_and_members_that_stream_give_the_same(
    kept_family: Path, tmp_path: Path, method: str
) -> None:
    recipe = own_recipe(kept_family, tmp_path, method)
    with opened_scene(recipe, "off") as (_, scene), Reader(scene.plan.inputs) as reader:
        cached = Position(
            dict(scene.embedder.parameters()),
            scene.jobs,
            Cached(reader, torch.device("cpu"), scene.jobs),
        )
        assert isinstance(scene.position._elements, Streamed)
        coefficients = np.random.default_rng(0).normal(size=(len(scene.jobs), 3))
        random = torch.Generator().manual_seed(0)
        for _, parameter in scene.embedder.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        assert np.array_equal(scene.position.pulls(), cached.pulls())
        scene.position.put(coefficients)
        first = {name: one.clone() for name, one in scene.position.flat().items()}
        cached.put(coefficients)
        assert all(torch.equal(first[name], one) for name, one in cached.flat().items())


def test_l1_leaves_out_a_member_that_does_not_help(kept_family: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 0.3, "steps": 200, "evaluate_every": 10, "patience": 50}
    recipe = own_recipe(kept_family, tmp_path, "task_arithmetic", l1=0.05, **settings)
    with opened_scene(recipe) as (spec, scene):
        merging = Merging(spec.recipe, scene.jobs, scene.cells)
        planted = Point(np.array([[0.9, 0.02, 0.7]]), np.ones(1))
        objective = Planted.at(scene, merging.coefficients(planted), float(scene.gram[0, 0]))
        searching = searching_of(spec, scene, objective)
        searching.run()
        weights = searching.strategy._mapping.point(searching.strategy._raw).weights[0]
        assert weights[1] == 0.0
        assert weights[0] > 0.5
        assert weights[2] > 0.5


def test_self_positioning_starts_at_the_papers_point(kept_family: Path, tmp_path: Path) -> None:
    recipe = own_recipe(kept_family, tmp_path, "self_positioning")
    with opened_scene(recipe) as (spec, scene):
        start = starting_point(spec, scene.jobs, scene.grouping)
        assert start.weights.tolist() == [[1.0, 1.0, 1.0]]
        assert start.factor.tolist() == [1.0]
        back = mapping_of(spec, scene.cells, start)
        np.testing.assert_allclose(back.point(back.start(start)).weights, 1.0, rtol=1e-15)
