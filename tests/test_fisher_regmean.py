"""Whole merges by `fisher` and `regmean`, against the float64 references."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import reference_statistics
from helpers import boom_merge, changed_json, files, merged_within_limits, write_recipe
from reference import check_numerics
from safetensors.numpy import load_file, save_file
from tensor_folders import (
    SHAPES,
    Tensors,
    largest,
    norm_of,
    random_model,
    raw_bytes,
    read_folder,
    stored,
    write_folder,
    write_statistics,
)
from tiny_models import build_minilm, embed, perturb, read_tensors

import mergekit_embed
from mergekit_embed import NonFiniteError, PlanError, RecipeError
from mergekit_embed.dtypes import DType
from mergekit_embed.errors import CheckpointError
from mergekit_embed.kernels import FisherWeights, open_kernels
from mergekit_embed.statistics import Options, collect_statistics

WEIGHTS = [0.3, 1.0, 1.9]

LINEAR = {
    "encoder.layer.0.attention.self.query.weight": 96,
    "encoder.layer.1.intermediate.dense.weight": 96,
}
"""The tensors that are linear layers' weights, and the number of their inputs."""

UNMEASURED = "encoder.layer.2.scale"


def fishers_of(seed: int) -> Tensors:
    """Fishers over many magnitudes, with zeros and rounding noise among them."""
    generator = np.random.default_rng(seed)
    found = {}
    for name, shape in SHAPES.items():
        if name == UNMEASURED:
            continue
        values = np.asarray(10.0 ** generator.uniform(-9, -1, shape))
        kind = np.asarray(generator.integers(0, 6, shape))
        values = np.where(kind == 0, 0.0, np.where(kind == 1, 1e-18 * values, values))
        found[name] = values.astype(np.float32).astype(np.float64)
    # Rows of the embedding table that no text has.
    found["embeddings.word_embeddings.weight"][::7] = 0.0
    return found


def inputs_of(seed: int, size: int, tokens: int = 400) -> np.ndarray:
    """What goes into a linear layer, correlated and on different scales: (tokens, size)."""
    generator = np.random.default_rng([seed, size])
    mixing = generator.standard_normal((size, size)) * np.geomspace(0.05, 3.0, size)
    return generator.standard_normal((tokens, size)) @ mixing / np.sqrt(size)


def gram_of(inputs: np.ndarray) -> np.ndarray:
    """X^T X as float32 stores it."""
    return (inputs.T @ inputs).astype(np.float32).astype(np.float64)


def grams_of(seed: int) -> Tensors:
    return {name: gram_of(inputs_of(seed, size)) for name, size in LINEAR.items()}


def recipe_of(
    method: str,
    models: Sequence[Path],
    statistics: Sequence[Path],
    weights: Sequence[float] = WEIGHTS,
    **parameters: Any,
) -> dict[str, Any]:
    return {
        "merge_method": method,
        "models": [
            {"model": str(model), "statistics": str(folder), "parameters": {"weight": weight}}
            for model, folder, weight in zip(models, statistics, weights, strict=False)
        ],
        "parameters": parameters,
    }


class Zoo:
    """Three members stored as one type, and statistics of each."""

    def __init__(self, root: Path, dtype: str):
        self.dtype = dtype
        base = random_model(0)
        self.members = [stored(random_model(seed, around=base), dtype) for seed in (1, 2, 3)]
        self.fishers = [fishers_of(seed) for seed in (1, 2, 3)]
        self.grams = [grams_of(seed) for seed in (1, 2, 3)]
        self.paths = [
            write_folder(root / f"m{i}", member, dtype) for i, member in enumerate(self.members)
        ]
        self.statistics = {
            "fisher": [
                write_statistics(root / f"fisher{i}", "fisher", found)
                for i, found in enumerate(self.fishers)
            ],
            "regmean": [
                write_statistics(root / f"gram{i}", "gram", found)
                for i, found in enumerate(self.grams)
            ],
        }

    def recipe(self, method: str, **parameters: Any) -> dict[str, Any]:
        return recipe_of(method, self.paths, self.statistics[method], **parameters)

    def of(self, name: str) -> list[np.ndarray]:
        return [member[name] for member in self.members]


@pytest.fixture(scope="module", params=["F32", "BF16", "F16", "F64"])
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("F32"), "F32")


def merged(recipe: Any, out: Path) -> Tensors:
    mergekit_embed.merge(recipe, out, device="cpu")
    return read_folder(out)


# --- against the references ---------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"normalize_fisher": False}, {"floor": 0.0}, {"floor": 1e-4}], ids=str
)
def test_fisher_equals_its_float64_reference(
    options: dict[str, Any], zoo: Zoo, tmp_path: Path
) -> None:
    result = merged(zoo.recipe("fisher", **options), tmp_path / "out")
    norms = [norm_of(found) for found in zoo.fishers]
    for name in SHAPES:
        if name == UNMEASURED:
            exact = reference.linear(zoo.of(name), WEIGHTS)
        else:
            exact = reference_statistics.fisher(
                zoo.of(name),
                [found[name] for found in zoo.fishers],
                WEIGHTS,
                norms,
                normalize=options.get("normalize_fisher", True),
                floor=options.get("floor", 1e-12),
            )
        check_numerics(result[name], exact, zoo.dtype, largest(zoo.members, name))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_regmean_equals_its_float64_reference(alpha: float, zoo: Zoo, tmp_path: Path) -> None:
    result = merged(zoo.recipe("regmean", alpha=alpha), tmp_path / "out")
    for name in SHAPES:
        if name not in LINEAR:
            exact = reference.linear(zoo.of(name), WEIGHTS)
        else:
            exact = reference_statistics.regmean(
                zoo.of(name), [found[name] for found in zoo.grams], WEIGHTS, alpha
            )
            assert np.abs(exact - reference.linear(zoo.of(name), WEIGHTS)).max() > 1e-4
        if zoo.dtype == "F64":
            assert np.allclose(result[name], exact, rtol=0, atol=1e-12)
        else:
            check_numerics(result[name], exact, zoo.dtype, largest(zoo.members, name))


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_merging_a_model_with_itself_gives_its_bytes(method: str, zoo: Zoo, tmp_path: Path) -> None:
    recipe = recipe_of(method, [zoo.paths[0]] * 3, zoo.statistics[method])
    mergekit_embed.merge(recipe, tmp_path / "out", device="cpu")
    assert raw_bytes(tmp_path / "out") == raw_bytes(zoo.paths[0])


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_one_member_comes_back(method: str, zoo: Zoo, tmp_path: Path) -> None:
    recipe = recipe_of(method, zoo.paths[1:2], zoo.statistics[method])
    mergekit_embed.merge(recipe, tmp_path / "out", device="cpu")
    assert raw_bytes(tmp_path / "out") == raw_bytes(zoo.paths[1])


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_a_member_without_weight_has_no_say(method: str, floats: Zoo, tmp_path: Path) -> None:
    recipe = recipe_of(method, floats.paths, floats.statistics[method], [1.0, 0.0, 2.0])
    pair = [0, 2]
    fewer = recipe_of(
        method,
        [floats.paths[i] for i in pair],
        [floats.statistics[method][i] for i in pair],
        [1.0, 2.0],
    )
    whole, part = merged(recipe, tmp_path / "whole"), merged(fewer, tmp_path / "part")
    fishers = floats.fishers
    for name in SHAPES:
        # Where only the weightless member has a Fisher, the mean of the others is taken as well.
        assert np.allclose(whole[name], part[name], rtol=1e-6, atol=1e-9), name
    assert any((fishers[1][name] > 0).any() for name in fishers[1])


# --- what each comes down to --------------------------------------------------------------


def assert_is_the_weighted_mean(result: Tensors, zoo: Zoo) -> None:
    """Within an ulp: many means by these weights lie half-way between two float32 numbers."""
    for name in SHAPES:
        exact = reference.linear(zoo.of(name), WEIGHTS)
        near = np.maximum(reference.ulp(exact, "F32"), 2.0**-21 * largest(zoo.members, name))
        assert np.all(np.abs(result[name] - exact) <= near), name


def test_fishers_that_are_all_equal_give_the_weighted_mean(floats: Zoo, tmp_path: Path) -> None:
    ones = {name: np.full(shape, 0.25) for name, shape in SHAPES.items()}
    folder = write_statistics(tmp_path / "ones", "fisher", ones)
    result = merged(recipe_of("fisher", floats.paths, [folder] * 3), tmp_path / "out")
    assert_is_the_weighted_mean(result, floats)


def test_identity_as_gram_matrix_gives_the_weighted_mean(floats: Zoo, tmp_path: Path) -> None:
    eye = {name: 3.0 * np.eye(size) for name, size in LINEAR.items()}
    folder = write_statistics(tmp_path / "eye", "gram", eye)
    result = merged(recipe_of("regmean", floats.paths, [folder] * 3), tmp_path / "out")
    assert_is_the_weighted_mean(result, floats)


def test_the_scale_of_a_fisher_counts_only_when_asked(floats: Zoo, tmp_path: Path) -> None:
    louder = {name: 1024.0 * found for name, found in floats.fishers[0].items()}
    folders = [write_statistics(tmp_path / "loud", "fisher", louder)]
    folders += floats.statistics["fisher"][1:]
    for normalize in (True, False):
        quiet = merged(
            floats.recipe("fisher", normalize_fisher=normalize), tmp_path / f"quiet{normalize}"
        )
        loud = merged(
            recipe_of("fisher", floats.paths, folders, normalize_fisher=normalize),
            tmp_path / f"loud{normalize}",
        )
        same = all(np.allclose(quiet[name], loud[name], rtol=1e-6, atol=0) for name in SHAPES)
        assert same is normalize


def test_what_no_loss_depends_on_is_averaged(floats: Zoo, tmp_path: Path) -> None:
    result = merged(floats.recipe("fisher"), tmp_path / "out")
    name = "embeddings.word_embeddings.weight"
    plain = merged(
        {
            "merge_method": "linear",
            "models": [
                {"model": str(path), "parameters": {"weight": weight}}
                for path, weight in zip(floats.paths, WEIGHTS, strict=True)
            ],
        },
        tmp_path / "linear",
    )
    assert np.allclose(result[name][::7], plain[name][::7], rtol=1e-7, atol=0)
    assert not np.allclose(result[name][1::7], plain[name][1::7], rtol=1e-3, atol=0)


@pytest.mark.parametrize("tokens", [30, 400])
def test_regmean_solves_the_regression(tokens: int, tmp_path: Path) -> None:
    """With alpha 1 no matrix does better, even where the texts do not reach every direction."""
    name = "encoder.layer.0.attention.self.query.weight"
    generator = np.random.default_rng(5)
    members = [generator.standard_normal((24, 64)) for _ in range(3)]
    # Directions that one member reaches and others do not.
    inputs = [inputs_of(seed, 64, tokens) for seed in (1, 2, 3)]
    if tokens == 30:
        inputs = [rows[:15] for rows in inputs]
    paths = [write_folder(tmp_path / f"m{i}", {name: m}, "F64") for i, m in enumerate(members)]
    folders = [
        write_statistics(tmp_path / f"s{i}", "gram", {name: rows.T @ rows}, dtype="F64")
        for i, rows in enumerate(inputs)
    ]
    result = merged(recipe_of("regmean", paths, folders, alpha=1.0), tmp_path / "out")[name]
    best = reference_statistics.regression_loss(result, members, inputs, WEIGHTS)
    slope = sum(
        weight * (result - member) @ rows.T @ rows
        for weight, member, rows in zip(WEIGHTS, members, inputs, strict=True)
    )
    scale = sum(
        np.abs(member @ rows.T @ rows).max() for member, rows in zip(members, inputs, strict=True)
    )
    assert np.abs(slope).max() < 1e-9 * scale
    for seed in range(5):
        step = 1e-3 * np.random.default_rng(seed).standard_normal(result.shape)
        assert reference_statistics.regression_loss(result + step, members, inputs, WEIGHTS) > best
    if tokens == 30:
        free = np.linalg.svd(np.concatenate(inputs))[2][45:]  # directions of no input at all
        scales = np.sqrt(
            sum(w * (rows**2).sum(axis=0) for w, rows in zip(WEIGHTS, inputs, strict=True))
        )
        change = (result - reference.linear(members, WEIGHTS)) * scales
        assert np.abs(change @ (free * scales).T).max() < 1e-6 * np.abs(change).max()


def test_regmean_is_nearer_to_the_members_than_their_mean(floats: Zoo, tmp_path: Path) -> None:
    result = merged(floats.recipe("regmean"), tmp_path / "out")
    for name, size in LINEAR.items():
        inputs = [inputs_of(seed, size) for seed in (1, 2, 3)]
        mean = reference.linear(floats.of(name), WEIGHTS)
        ours, theirs = (
            reference_statistics.regression_loss(found, floats.of(name), inputs, WEIGHTS)
            for found in (result[name], mean)
        )
        assert ours < 0.9 * theirs


@pytest.mark.parametrize("alpha", [0.9, 1.0])
def test_inputs_that_are_always_zero_keep_the_weighted_mean(
    alpha: float, floats: Zoo, tmp_path: Path
) -> None:
    dead = [3, 50]
    folders = []
    for index, grams in enumerate(floats.grams):
        cut = {name: gram.copy() for name, gram in grams.items()}
        for gram in cut.values():
            gram[dead] = gram[:, dead] = 0.0
        folders.append(write_statistics(tmp_path / f"s{index}", "gram", cut))
    result = merged(recipe_of("regmean", floats.paths, folders, alpha=alpha), tmp_path / "out")
    for name in LINEAR:
        mean = reference.linear(floats.of(name), WEIGHTS)
        near = largest(floats.members, name)[:, dead]
        check_numerics(result[name][:, dead], mean[:, dead], "F32", near)


def test_weights_that_are_stored_the_other_way_round(floats: Zoo, tmp_path: Path) -> None:
    turned = []
    for index, member in enumerate(floats.members):
        model = {name: member[name].T if name in LINEAR else member[name] for name in SHAPES}
        turned.append(write_folder(tmp_path / f"m{index}", model, "F32"))
    folders = [
        write_statistics(tmp_path / f"s{i}", "gram", grams, transposed=list(LINEAR))
        for i, grams in enumerate(floats.grams)
    ]
    result = merged(recipe_of("regmean", turned, folders), tmp_path / "out")
    plain = merged(floats.recipe("regmean"), tmp_path / "plain")
    for name in LINEAR:
        assert np.allclose(result[name].T, plain[name], rtol=0, atol=1e-8)
        exact = reference_statistics.regmean(
            floats.of(name), [found[name] for found in floats.grams], WEIGHTS
        )
        check_numerics(result[name].T, exact, "F32", largest(floats.members, name))


def test_fishers_that_weigh_nothing_leave_the_weighted_mean() -> None:
    kernels = open_kernels("cpu")
    weights = FisherWeights(np.array([0.0, 2.0]), np.ones(2), 0.0, True)

    def load(*numbers: float) -> Any:
        return kernels.load(np.array(numbers).view(np.uint8), DType.F64)

    found = kernels.fisher_mean(
        [load(1.0, 5.0, -0.0), load(3.0, 7.0, -0.0)],
        [load(1.0, 0.0, 1.0), load(0.0, 0.0, 1.0)],
        weights,
        DType.F64,
    )
    values = found.raw.view(np.float64)
    assert values.tolist() == [3.0, 7.0, 0.0]
    assert np.signbit(values[2])
    assert found.finite
    broken = kernels.fisher_mean(
        [load(1.0), load(1.0)], [load(np.nan), load(1.0)], weights, DType.F64
    )
    assert not broken.finite


# --- the same bytes whatever happens ------------------------------------------------------


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_neither_chunks_nor_threads_nor_memory_show(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shapes = {"layers.0.up.weight": (900, 400), "layers.0.down.weight": (400, 900)}
    generator = np.random.default_rng(0)
    paths, folders = [], []
    for index in range(3):
        model = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
        paths.append(write_folder(tmp_path / f"m{index}", model, "F64"))
        if method == "fisher":
            found = {name: generator.uniform(0, 1, shape) for name, shape in shapes.items()}
        else:
            found = {name: gram_of(inputs_of(index, shape[1])) for name, shape in shapes.items()}
        kind = "fisher" if method == "fisher" else "gram"
        folders.append(write_statistics(tmp_path / f"s{index}", kind, found))
    recipe = recipe_of(method, paths, folders)
    made = merged_within_limits(monkeypatch, recipe, tmp_path)
    # Read in other chunks, as a member that is a recipe: the same numbers.
    nested = {"merge_method": "passthrough", "models": [{"model": recipe | {"dtype": "float64"}}]}
    mergekit_embed.merge(nested, tmp_path / "nested", device="cpu")
    assert raw_bytes(tmp_path / "nested") == made


# --- names, layers, types -----------------------------------------------------------------


def test_statistics_may_have_other_prefixes_than_the_model(floats: Zoo, tmp_path: Path) -> None:
    plain = merged(floats.recipe("regmean"), tmp_path / "plain")
    folders = [
        write_statistics(
            tmp_path / f"s{i}", "gram", {f"bert.{name}": gram for name, gram in grams.items()}
        )
        for i, grams in enumerate(floats.grams)
    ]
    result = merged(recipe_of("regmean", floats.paths, folders), tmp_path / "out")
    assert all(np.array_equal(plain[name], result[name]) for name in SHAPES)


def test_a_layer_is_weighed_by_the_statistics_of_the_layer_it_comes_from(tmp_path: Path) -> None:
    names = [f"layers.{i}.up.weight" for i in range(2)]
    models = [
        {
            name: np.random.default_rng([seed, i]).standard_normal((6, 8))
            for i, name in enumerate(names)
        }
        | {"embed_tokens.weight": np.ones((3, 8))}
        for seed in (1, 2)
    ]
    grams = [
        {name: gram_of(inputs_of(10 * seed + i, 8)) for i, name in enumerate(names)}
        for seed in (1, 2)
    ]
    paths = [write_folder(tmp_path / f"m{i}", model, "F64") for i, model in enumerate(models)]
    for path in paths:
        (path / "config.json").write_text('{"model_type": "qwen3", "num_hidden_layers": 2}')
    folders = [write_statistics(tmp_path / f"s{i}", "gram", one) for i, one in enumerate(grams)]
    recipe = {
        "merge_method": "regmean",
        "slices": [
            {
                "sources": [
                    {"model": str(paths[0]), "statistics": str(folders[0]), "layer_range": [1, 2]},
                    {"model": str(paths[1]), "statistics": str(folders[1]), "layer_range": [0, 1]},
                ]
            }
        ],
    }
    result = merged(recipe, tmp_path / "out")
    exact = reference_statistics.regmean(
        [models[0][names[1]], models[1][names[0]]], [grams[0][names[1]], grams[1][names[0]]], [1, 1]
    )
    assert np.allclose(result[names[0]], exact, rtol=0, atol=1e-12)


def test_tensors_without_statistics_are_named(floats: Zoo, tmp_path: Path) -> None:
    by_fisher = mergekit_embed.plan(floats.recipe("fisher"), tmp_path / "out")
    expected = f"no Fisher of 1 tensor ({UNMEASURED}): merged by the weighted mean"
    assert expected in by_fisher.notes
    by_gram = mergekit_embed.plan(floats.recipe("regmean"), tmp_path / "out")
    (told,) = [note for note in by_gram.notes if "Gram matrix" in note]
    assert told.startswith("no Gram matrix of 7 tensors (")
    assert by_gram.bytes_in == sum(
        sum(4 * array.size for array in one.values()) for one in (*floats.members, *floats.grams)
    )
    assert by_fisher.peak_memory < by_gram.peak_memory


# --- what is wrong with a recipe, and with statistics -------------------------------------


def test_a_method_that_weighs_says_how_to_measure(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path / "recipe.yaml",
        """
        merge_method: regmean
        models:
          - model: ./bert-legal
            statistics: stats/legal
          - model: ./bert-medical
        """,
    )
    ran = boom_merge(path)
    assert ran.code == 2
    assert ran.err.startswith(
        f"{path}:5:5: models[1]: regmean needs statistics of every member. Run `boom stats "
        "./bert-medical --data FILE -o stats/bert-medical`, and set `statistics: "
        "stats/bert-medical` beside the model"
    )


def test_a_method_that_does_not_weigh_wants_no_statistics(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path / "recipe.yaml",
        """
        merge_method: linear
        models:
          - model: ./bert-legal
            statistics: stats/legal
        """,
    )
    ran = boom_merge(path)
    assert ran.code == 2
    assert "models[0].statistics: linear uses no statistics; fisher and regmean do" in ran.err


def test_statistics_that_are_not_there_are_all_told(floats: Zoo, tmp_path: Path) -> None:
    recipe = recipe_of("fisher", floats.paths, ["nowhere", floats.statistics["fisher"][1], "x"])
    with pytest.raises(RecipeError) as caught:
        mergekit_embed.plan(recipe, tmp_path / "out")
    assert len(caught.value.problems) == 2
    first = str(caught.value.problems[0])
    assert "models[0].statistics: there is no folder nowhere" in first
    assert "boom stats" in first


def test_statistics_count_from_the_folder_of_the_recipe(floats: Zoo, tmp_path: Path) -> None:
    root = floats.paths[0].parent
    recipe = {
        "merge_method": "fisher",
        "models": [{"model": f"m{i}", "statistics": f"fisher{i}"} for i in range(3)],
    }
    path = write_recipe(root / "recipe.yaml", recipe)
    assert len(mergekit_embed.plan(path, tmp_path / "out").members) == 3


def test_statistics_of_the_other_kind_are_told(floats: Zoo, tmp_path: Path) -> None:
    recipe = recipe_of("fisher", floats.paths, floats.statistics["regmean"])
    with pytest.raises(CheckpointError, match=r"holds no fisher\.safetensors; it holds gram"):
        mergekit_embed.plan(recipe, tmp_path / "out")


@pytest.mark.parametrize("norm", [0, -1.0, "much", None, True])
def test_a_norm_that_cannot_be_is_refused(norm: Any, floats: Zoo, tmp_path: Path) -> None:
    folder = write_statistics(tmp_path / "s", "fisher", floats.fishers[0])
    with changed_json(folder / "statistics.json") as told:
        told["fisher"]["norm"] = norm
    recipe = recipe_of("fisher", floats.paths[:1], [folder])
    with pytest.raises(CheckpointError, match="`norm` must be above 0"):
        mergekit_embed.plan(recipe, tmp_path / "out")


def test_all_that_does_not_fit_is_told_together(floats: Zoo, tmp_path: Path) -> None:
    foreign = {**floats.grams[0], "encoder.layer.9.dense.weight": np.eye(4)}
    lacking = dict(list(floats.grams[1].items())[:1])
    wrong = {**floats.grams[2], "encoder.layer.1.intermediate.dense.weight": np.eye(7)}
    folders = [
        write_statistics(tmp_path / name, "gram", grams)
        for name, grams in (("foreign", foreign), ("lacking", lacking), ("wrong", wrong))
    ]
    with pytest.raises(PlanError) as caught:
        mergekit_embed.plan(recipe_of("regmean", floats.paths, folders), tmp_path / "out")
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == 3
    assert f"{folders[0]}, of {floats.paths[0]}, are of another model" in told[0]
    assert "encoder.layer.9.dense.weight" in told[0]
    assert "lack 1 tensor (encoder.layer.1.intermediate.dense.weight)" in told[1]
    assert "boom stats" in told[1]
    assert "has shape [7, 7], and [96, 96] would fit the model" in told[2]


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_statistics_that_are_not_finite_are_named(kind: str, floats: Zoo, tmp_path: Path) -> None:
    good = floats.fishers[0] if kind == "fisher" else floats.grams[0]
    name = "encoder.layer.1.intermediate.dense.weight"
    bad = {**good, name: good[name].copy()}
    folder = write_statistics(tmp_path / "s", kind, bad)
    tensors = load_file(folder / f"{kind}.safetensors")
    tensors[name][3, 3] = np.nan
    save_file(tensors, folder / f"{kind}.safetensors")
    method = "fisher" if kind == "fisher" else "regmean"
    folders = [folder, *floats.statistics[method][1:]]
    with pytest.raises(NonFiniteError) as caught:
        merged(recipe_of(method, floats.paths, folders), tmp_path / "out")
    assert str(folder) in str(caught.value)
    assert name in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("alpha", [0.9, 1.0])
@pytest.mark.parametrize("entry", [(3, 3), (3, 4)])
def test_matrices_of_no_inputs_are_refused(
    alpha: float, entry: tuple[int, int], floats: Zoo, tmp_path: Path
) -> None:
    name = "encoder.layer.1.intermediate.dense.weight"
    bad = floats.grams[0][name].copy()
    bad[entry] = bad[entry[::-1]] = -1e6 if entry == (3, 3) else 1e6
    folder = write_statistics(tmp_path / "s", "gram", {**floats.grams[0], name: bad})
    folders = [folder, *floats.statistics["regmean"][1:]]
    with pytest.raises(CheckpointError, match=f"the Gram matrices of {name}"):
        merged(recipe_of("regmean", floats.paths, folders, alpha=alpha), tmp_path / "out")


@pytest.mark.parametrize("method", ["fisher", "regmean"])
@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0], [1.0, -1.0, 1.0]])
def test_weights_that_make_no_mean_are_refused_before_anything_is_read(
    method: str, weights: list[float], floats: Zoo, tmp_path: Path
) -> None:
    recipe = recipe_of(method, floats.paths, floats.statistics[method], weights)
    with pytest.raises((PlanError, RecipeError), match=r"sum to zero|must be at least 0"):
        mergekit_embed.plan(recipe, tmp_path / "out")


# --- from texts to a model ----------------------------------------------------------------


def test_from_models_and_texts_to_merged_models(tmp_path: Path) -> None:
    base = build_minilm(tmp_path / "base", seed=1, dense=True)
    paths = [perturb(base, tmp_path / f"m{i}", seed=i, scale=0.3) for i in (1, 2)]
    texts = [["a boat on the river", "the old dog"], ["bread and tea", "how high is the wall"]]
    folders = []
    for index, (path, own) in enumerate(zip(paths, texts, strict=True)):
        data = tmp_path / f"{index}.jsonl"
        rows = [{"query": text, "pos": [text.split()[-1]]} for text in own]
        data.write_text("\n".join(map(json.dumps, rows)))
        folders.append(tmp_path / "stats" / str(index))
        collect_statistics(path, [data], folders[-1], Options(device="cpu"))
    weights = [1.0, 0.5]
    members = [read_tensors(path) for path in paths]
    fishers = [load_file(folder / "fisher.safetensors") for folder in folders]
    grams = [load_file(folder / "gram.safetensors") for folder in folders]
    norms = [json.loads((f / "statistics.json").read_text())["fisher"]["norm"] for f in folders]
    for method in ("fisher", "regmean"):
        recipe = recipe_of(method, paths, folders, weights)
        mergekit_embed.merge(recipe, tmp_path / method, device="cpu")
        result = read_tensors(tmp_path / method)
        for name, (dtype, found) in result.items():
            values = [np.asarray(member[name][1], dtype=np.float64) for member in members]
            if method == "fisher" and name in fishers[0]:
                wide = [one[name].astype(np.float64) for one in fishers]
                exact = reference_statistics.fisher(values, wide, weights, norms)
            elif method == "regmean" and name in grams[0]:
                wide = [one[name].astype(np.float64) for one in grams]
                exact = reference_statistics.regmean(values, wide, weights)
            else:
                exact = reference.linear(values, weights)
            near = np.max(np.abs(values), axis=0)
            check_numerics(np.asarray(found), exact, dtype, near)
        assert np.isfinite(embed(tmp_path / method, ["snow", "the moon"])).all()
    assert "2_Dense/linear.weight" in grams[0]
    key = "encoder.layer.0.attention.self.key.bias"
    biases = [member[key][1] for member in members]
    mean = reference.linear(biases, weights)
    merged_bias = read_tensors(tmp_path / "fisher")[key][1]
    # Its gradient is rounding, since softmax does not see it: no reason to prefer one member's.
    assert np.allclose(merged_bias, mean, rtol=1e-6, atol=1e-9)
    assert files(tmp_path / "fisher") != files(tmp_path / "regmean")
