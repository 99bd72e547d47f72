"""Every number of an inspection is that of a plain reference, whatever measures it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import BACKENDS, LIMITS, set_backend, set_limits
from tensor_folders import read_folder, stored, write_folder

import mergekit_embed
from mergekit_embed.errors import PlanError, RecipeError, UsageError
from mergekit_embed.inspect import Facts, as_dict, inspect, models, recipe, remarks
from mergekit_embed.inspect.rank import effective_rank
from mergekit_embed.inspect.sample import WINDOW, signs_of, starts
from mergekit_embed.kernels import BLOCK

from .conftest import SHAPES, Scene

pytestmark = pytest.mark.usefixtures("cache")


def looked_at(
    scene: Scene, *, based: bool = True, sample: int = 10**6, rank: bool = False
) -> Facts:
    subject = models([str(one) for one in scene.members], str(scene.base) if based else None)
    return inspect(subject, sample=sample, rank=rank)


def flat(scene: Scene) -> np.ndarray:
    return np.stack([np.concatenate([d[n].ravel() for n in SHAPES]) for d in scene.deltas])


def test_lengths_and_cosines_are_those_of_the_whole_vectors(scene: Scene) -> None:
    model, vectors = looked_at(scene).model, flat(scene)
    lengths = np.linalg.norm(vectors, axis=1)
    whole = np.concatenate([tensor.ravel() for tensor in scene.tensors.values()])
    np.testing.assert_allclose(model.lengths, lengths, rtol=1e-12)
    np.testing.assert_allclose(model.relative, lengths / np.linalg.norm(whole), rtol=1e-12)
    expected = vectors @ vectors.T / np.outer(lengths, lengths)
    np.testing.assert_allclose(model.cosines, expected, atol=1e-12)
    assert model.elements == vectors.shape[1]


def test_without_a_base_the_members_themselves_are_the_vectors(scene: Scene) -> None:
    facts = looked_at(scene, based=False)
    first = np.concatenate([(scene.tensors[n] + scene.deltas[0][n]).ravel() for n in SHAPES])
    assert facts.model.lengths[0] == pytest.approx(np.linalg.norm(first), rel=1e-12)
    assert facts.model.relative is None and facts.base is None


def test_signs_are_counted_element_by_element(scene: Scene) -> None:
    model, signs = looked_at(scene).model, np.sign(flat(scene))
    both = (signs[0] != 0) & (signs[1] != 0)
    assert model.conflicts[0, 1] == pytest.approx((signs[0] * signs[1] < 0).sum() / both.sum())
    assert model.moved[2] == pytest.approx((signs[2] != 0).mean())
    several = (signs != 0).sum(axis=0) > 1
    split = (signs.max(axis=0) > 0) & (signs.min(axis=0) < 0)
    assert model.split == pytest.approx(split.sum() / several.sum())


def test_overlap_is_of_the_largest_hundredth_of_each_tensor(scene: Scene) -> None:
    name = "embeddings.word_embeddings.weight"
    one, other = (np.abs(delta[name].ravel()) for delta in scene.deltas[:2])
    keep = one.size // 100
    tops = [set(np.argsort(vector)[-keep:]) for vector in (one, other)]
    facts = next(part for part in looked_at(scene).by("tensor") if part.name == name)
    assert facts.overlap[0, 1] == pytest.approx(len(tops[0] & tops[1]) / keep, abs=1 / keep)
    assert facts.overlap[0, 1] > 0.06, "they share half of what they learned"
    assert facts.overlap[0, 2] < 0.03, "these share nothing"


def test_equal_magnitudes_are_all_among_the_largest_and_zeros_never() -> None:
    vectors = np.zeros((2, 1000))
    vectors[:, :20] = 1.0
    vectors[1, 10:20] = 0.0
    signs = signs_of(vectors)
    assert signs.top.tolist() == [[20, 10], [10, 10]]
    assert signs.least_top.tolist() == [[20, 10], [10, 10]]


def test_opposite_and_absent_signs() -> None:
    signs = signs_of(np.array([[1.0, -1.0, 0.0, 2.0], [1.0, 1.0, -3.0, 0.0]]))
    assert signs.both.tolist() == [[3, 2], [2, 3]]
    assert signs.opposite.tolist() == [[0, 1], [1, 0]]
    assert (signs.several, signs.split) == (2, 1)


@pytest.mark.parametrize("columns", [256, 1000, 1024, 3072])
def test_a_sample_visits_all_columns_and_crosses_no_block(columns: int) -> None:
    count, size = 1500 * columns, 32768
    windows = starts(count, size)
    elements = (windows[:, None] + np.arange(WINDOW)).ravel()
    assert 0.97 * size <= len(elements) <= size
    assert elements.max() < count and len(np.unique(elements)) == len(elements)
    assert (windows // BLOCK == (windows + WINDOW - 1) // BLOCK).all()
    share = np.bincount(elements % columns, minlength=columns) / len(elements) * columns
    assert share.min() > 0.4 and share.max() < 2.0


def test_a_sample_is_near_the_whole(scene: Scene) -> None:
    whole, part = looked_at(scene).model, looked_at(scene, sample=8192).model
    assert part.conflicts[0, 1] == pytest.approx(whole.conflicts[0, 1], abs=0.03)
    assert part.moved == pytest.approx(whole.moved, abs=0.01)
    assert part.conflicts[0, 1] != whole.conflicts[0, 1], "a sample was taken"
    np.testing.assert_array_equal(part.lengths, whole.lengths)


def test_the_numbers_do_not_depend_on_backend_threads_or_chunks(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = []
    for backend in BACKENDS:
        for workers, blocks, keep in LIMITS:
            with monkeypatch.context() as patch:
                patch.setenv("XDG_CACHE_HOME", str(tmp_path / f"{backend}{workers}{blocks}"))
                set_backend(patch, backend)
                set_limits(patch, workers=workers, blocks=blocks, keep=keep)
                found.append(as_dict(looked_at(scene, sample=4096)))
    assert all(one == found[0] for one in found)


def test_effective_rank_is_that_of_the_singular_values(scene: Scene) -> None:
    facts = looked_at(scene, rank=True)
    for tensor in facts.tensors:
        if len(tensor.shape) < 2:
            assert tensor.rank is None
            continue
        singular = np.linalg.svd(scene.deltas[0][tensor.name], compute_uv=False)
        share = singular / singular.sum()
        assert tensor.rank is not None
        assert tensor.rank[0] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 5])
def test_effective_rank_of_equal_singular_values_is_their_number(rank: int) -> None:
    matrix = np.eye(40)[:, :20] * (np.arange(20) < rank)
    assert effective_rank(matrix.T @ matrix) == pytest.approx(rank)
    assert effective_rank(np.zeros((4, 4))) == 0.0


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("task_arithmetic", {"parameters": {"lambda": 0.5}}),
        ("model_stock", {}),
        ("model_stock", {"granularity": "layer"}),
        ("delta_guided", {"granularity": "model", "parameters": {"norm": "l1", "gamma": -1}}),
        ("multislerp", {}),
    ],
)
def test_coefficients_are_those_that_the_merge_uses(
    scene: Scene, method: str, more: dict[str, object], tmp_path: Path
) -> None:
    """The merge itself, in float64, is what they make of the deltas."""
    wanted = scene.recipe(method, **more)
    facts = inspect(recipe(wanted))
    mergekit_embed.merge({**wanted, "out_dtype": "float64"}, tmp_path / "out")
    merged = read_folder(tmp_path / "out")
    for tensor in facts.tensors:
        assert tensor.coefficients is not None
        parts = zip(tensor.coefficients, scene.deltas, strict=True)
        expected = scene.tensors[tensor.name] + sum(c * delta[tensor.name] for c, delta in parts)
        np.testing.assert_allclose(merged[tensor.name], expected, rtol=1e-9, atol=1e-12)


def test_a_recipe_from_zero_is_looked_at_from_its_base(scene: Scene) -> None:
    facts = inspect(recipe(scene.recipe("linear")))
    np.testing.assert_allclose(facts.model.lengths, np.linalg.norm(flat(scene), axis=1), rtol=1e-12)
    np.testing.assert_allclose(facts.model.coefficients, [1 / 3] * 3)
    assert facts.model.shares is not None and facts.model.shares[2] > 0.8, "the loud one"


def test_slerp_is_looked_at_as_two_models(scene: Scene) -> None:
    models_of = [{"model": str(one)} for one in (scene.base, scene.members[0])]
    wanted = {"merge_method": "slerp", "base_model": str(scene.base), "models": models_of}
    facts = inspect(recipe({**wanted, "parameters": {"t": 0.25}}))
    assert len(facts.labels) == 2 and facts.base is None
    assert facts.model.coefficients == pytest.approx([0.75, 0.25], abs=1e-3)


def test_warnings_name_who_is_meant(scene: Scene, tmp_path: Path) -> None:
    said = remarks(looked_at(scene))
    assert [line for line in said if "m3" in line and "14x longer" in line], said
    copied = shutil.copytree(scene.base, tmp_path / "copied")
    twice = models([str(scene.members[0]), str(scene.members[0]), str(copied)], str(scene.base))
    told = " ".join(remarks(inspect(twice)))
    assert "m1 and" in told and "are the same" in told
    assert "copied is the base itself" in told
    other = {n: np.random.default_rng(9).standard_normal(shape) for n, shape in SHAPES.items()}
    stranger = write_folder(tmp_path / "stranger", stored(other, "F32"), "F32")
    far = remarks(inspect(models([str(stranger)], str(scene.base))))
    assert len(far) == 1 and "is no fine-tune of" in far[0]
    apart = remarks(inspect(models([str(stranger), str(scene.members[0])], None)))
    assert len(apart) == 1 and "are unrelated" in apart[0]


def test_quiet_members_get_no_warning(scene: Scene) -> None:
    assert remarks(inspect(models([str(one) for one in scene.members[:2]], str(scene.base)))) == []


def test_members_that_pull_against_each_other(scene: Scene, tmp_path: Path) -> None:
    mirrored = {n: scene.tensors[n] - scene.deltas[0][n] for n in SHAPES}
    folder = write_folder(tmp_path / "mirror", stored(mirrored, "F32"), "F32")
    facts = inspect(models([str(scene.members[0]), str(folder)], str(scene.base)))
    assert facts.model.cosines[0, 1] == pytest.approx(-1, abs=1e-4)
    assert any("pull against each other" in line for line in remarks(facts))


def test_what_is_not_finite_is_told_and_left_out(scene: Scene, tmp_path: Path) -> None:
    broken = {n: scene.tensors[n] + scene.deltas[0][n] for n in SHAPES}
    broken["encoder.layer.1.attention.query.bias"][3] = np.nan
    folder = write_folder(tmp_path / "broken", broken, "F32")
    facts = inspect(models([str(folder), str(scene.members[1])], str(scene.base)))
    assert np.isfinite(facts.model.lengths).all()
    said = remarks(facts)[0]
    assert "broken" in said and "encoder.layer.1.attention.query.bias" in said


def test_members_that_do_not_fit_are_refused_before_anything_is_read(
    scene: Scene, tmp_path: Path
) -> None:
    other = {**scene.tensors, "pooler.empty": np.zeros((2, 3))}
    misfit = write_folder(tmp_path / "misfit", stored(other, "F32"), "F32")
    with pytest.raises(PlanError, match="misfit"):
        models([str(misfit), str(scene.members[0])], str(scene.base))
    with pytest.raises(RecipeError, match="nowhere-at-all"):
        models(["nowhere-at-all"], None)
    with pytest.raises(UsageError, match="name a recipe"):
        models([], None)
    with pytest.raises(UsageError, match="sample"):
        inspect(models([str(scene.members[0])], None), sample=3)
