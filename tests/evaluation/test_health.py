"""Health of embeddings: formulas against vectors whose health is known, and warnings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Family
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mergekit_embed.errors import UsageError
from mergekit_embed.evaluate import health
from mergekit_embed.evaluate.examine import Examination, Health, sample_of, verdict
from mergekit_embed.evaluate.models import open_models, open_parents
from mergekit_embed.task_folder import read_task

SEEDS = st.integers(0, 10**6)


def gaussian(seed: int, count: int = 60, dimensions: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimensions))


def rotation(seed: int, dimensions: int = 12) -> np.ndarray:
    return np.linalg.qr(gaussian(seed, dimensions, dimensions))[0]


@given(SEEDS, st.integers(1, 6))
def test_effective_rank_of_equal_directions_is_their_number(seed: int, rank: int) -> None:
    left = np.linalg.qr(health.centred(gaussian(seed)))[0][:, :rank]  # centred and orthonormal
    vectors = left @ rotation(seed)[:rank] + 5
    assert health.effective_rank(vectors) == pytest.approx(rank)


def test_effective_rank_of_one_point_is_nothing() -> None:
    assert health.effective_rank(np.ones((10, 4))) == 0


@given(SEEDS)
def test_ranks_and_cosines_do_not_see_a_rotation(seed: int) -> None:
    vectors = gaussian(seed) + 0.5
    turned = vectors @ rotation(seed + 1)
    for measure in (health.effective_rank, health.mean_cosine, health.uniformity, health.isotropy):
        assert measure(turned) == pytest.approx(measure(vectors), rel=1e-6)
    assert health.cka(vectors, 3 * turned + 1) == pytest.approx(1)


@given(SEEDS)
def test_mean_cosine_and_uniformity_are_means_over_pairs(seed: int) -> None:
    vectors = gaussian(seed, 12)
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[:i]]
    assert health.mean_cosine(vectors) == pytest.approx(np.mean([a @ b for a, b in pairs]))
    wanted = np.log(np.mean([np.exp(-2 * ((a - b) ** 2).sum()) for a, b in pairs]))
    assert health.uniformity(vectors) == pytest.approx(wanted)
    other = rows[::-1]
    wanted = np.mean(((rows - other) ** 2).sum(axis=1))
    assert health.alignment(vectors, 7 * other) == pytest.approx(wanted)


def test_isotropy_is_high_in_all_directions_and_low_in_a_cone() -> None:
    even = np.vstack([np.eye(8), -np.eye(8)])
    assert health.isotropy(even) == pytest.approx(1)
    assert health.isotropy(even + 5 * np.eye(8)[0]) < 0.2


@given(SEEDS)
def test_cka_is_that_of_the_centred_kernels(seed: int) -> None:
    one, other = gaussian(seed, 20, 5), gaussian(seed + 1, 20, 9)
    centring = np.eye(20) - 1 / 20
    left, right = (centring @ v @ v.T @ centring for v in (one, other))
    wanted = np.sum(left * right) / np.sqrt(np.sum(left**2) * np.sum(right**2))
    assert health.cka(one, other) == pytest.approx(wanted)


def test_dimensions_that_say_nothing_are_counted() -> None:
    vectors = gaussian(0)
    vectors[:, 3] = 7
    vectors[:, 5] = -2 * vectors[:, 1] + 1
    vectors[:, 6] = vectors[:, 1]
    assert health.dead_dimensions(vectors) == 1
    assert health.duplicated_dimensions(vectors) == 2
    assert health.dead_dimensions(gaussian(0)) == health.duplicated_dimensions(gaussian(0)) == 0


def test_buckets_are_of_texts_of_like_length() -> None:
    vectors = gaussian(0, 80)
    lengths = np.random.default_rng(1).permutation(80)
    vectors[lengths >= 60] += 10 * np.ones(12)
    found = health.length_buckets(vectors, lengths.tolist())
    assert len(found) == 4
    assert max(map(abs, found[:3])) < 0.1
    assert found[3] > 0.9


def test_rank_sum_adds_up_layers() -> None:
    layers = [gaussian(0), gaussian(1)]
    assert health.rank_sum(layers) == pytest.approx(sum(map(health.effective_rank, layers)))


# --- models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examination(task_folders: Path) -> Examination:
    folders = [read_task(task_folders / name) for name in ("retrieval", "sameness", "classes")]
    return Examination(sample_of(folders), "cpu")


def test_a_merge_drifts_from_its_members(
    family: Family, examination: Examination, tmp_path: Path
) -> None:
    recipe = tmp_path / "soup.yaml"
    listed = "".join(f"  - model: {member}\n" for member in family.members[:2])
    recipe.write_text(f"merge_method: linear\nmodels:\n{listed}")
    (model,) = open_models([str(recipe)])
    found = examination.examine(model, open_parents(model, ()))
    assert [drift.parent for drift in found.drift] == ["m1", "m2"]
    for drift in found.drift:
        assert 0.8 < drift.cka < 1
        assert len(drift.layers) == 3  # the table and two layers
        assert all(0.8 < one <= 1 + 1e-9 for one in drift.layers)
    assert found.warnings == ()
    assert found.alignment is not None
    assert found.rank_sum == pytest.approx(sum(found.ranks))


def test_a_merge_that_collapsed_is_told(
    own_family: Family, examination: Examination, tmp_path: Path
) -> None:
    broken = own_family.members[2]
    tensors = load_file(broken / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("word_embeddings.weight"):
            tensors[name] = np.repeat(tensor[:1], len(tensor), axis=0)
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    model, base = open_models([str(broken), str(own_family.base)])
    found = examination.examine(model, [base])
    assert any(warning.startswith("collapsed: an effective rank") for warning in found.warnings)
    assert examination.examine(base, [base]).drift == ()


WELL = Health("m", 100, 40, 90, (), 0.5, 0.1, -3, None, (0.1, 0.1, 0.1, 0.1), 0, 0)


@pytest.mark.parametrize(
    ("change", "with_parents", "told"),
    [
        ({}, True, None),
        ({}, False, None),
        ({"effective_rank": 19.0}, True, "collapsed: an effective rank of 19.0"),
        ({"effective_rank": 19.0}, False, None),
        ({"effective_rank": 1.0}, False, "collapsed: an effective rank of 1.0 of 100"),
        ({"rank_sum": 60.0}, True, "its layers lost directions: ranks of 60"),
        ({"mean_cosine": 0.35}, True, "collapsed: texts have a mean cosine of 0.35"),
        ({"mean_cosine": 0.35}, False, None),
        ({"mean_cosine": 0.95}, False, "collapsed: texts have a mean cosine of 0.95"),
        ({"dead": 6, "duplicated": 5}, True, "6 of 100 dimensions are dead and 5 duplicated"),
        ({"dead": 6}, True, None),
        ({"length_buckets": (0.1, 0.1, 0.2, 0.4)}, True, "length collapse"),
        ({"length_buckets": (0.1, 0.1, 0.2, 0.2)}, True, None),
    ],
)
def test_what_is_wrong_is_told(change: dict, with_parents: bool, told: str | None) -> None:
    found = verdict(replace(WELL, **change), [WELL] if with_parents else [])
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def test_health_needs_texts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="health is measured on texts"):
        sample_of([])
    lines = tmp_path / "texts.txt"
    lines.write_text("\n".join(f"text {i}" for i in range(20)))
    assert len(sample_of([], lines).texts) == 20
    with pytest.raises(UsageError, match="cannot be read"):
        sample_of([], tmp_path / "none.txt")


def test_the_texts_do_not_depend_on_the_order_of_tasks(task_folders: Path) -> None:
    folders = [read_task(task_folders / name) for name in ("retrieval", "bitext")]
    assert sample_of(folders) == sample_of(folders[::-1])
