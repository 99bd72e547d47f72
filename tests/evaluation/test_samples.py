"""Intervals: draws of texts against the same metrics of texts that are written out again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from mergekit_embed import samples
from mergekit_embed.evaluate.compare import Comparison, Group, Lead, Row, TaskFacts
from mergekit_embed.samples import Samples

SEEDS = st.integers(0, 10**6)


def some(seed: int, metric: samples.Metric, size: int = 30) -> Samples:
    """Few different values, so that many are equal."""
    random = np.random.default_rng(seed)
    found = random.integers(0, 8, (3, size)).astype(float)
    if metric == "precision":
        found[0] = random.integers(0, 2, size)
    return Samples(metric, found)


@pytest.mark.parametrize("metric", ["mean", "spearman", "precision"])
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_a_draw_has_the_score_of_its_texts_written_out(metric: samples.Metric, seed: int) -> None:
    made = some(seed, metric)
    counts = np.random.default_rng(seed).multinomial(30, np.full(30, 1 / 30), size=4)
    for count, found in zip(counts, made.scores(counts), strict=True):
        texts = np.repeat(np.arange(30), count)
        columns = made.columns[:, texts]
        if metric == "mean":
            wanted = columns[0].mean()
        elif metric == "spearman":
            wanted = spearmanr(columns[0], columns[1]).statistic
        elif not columns[0].any():
            continue
        else:
            wanted = max(average_precision_score(columns[0], row) for row in columns[1:])
        assert found == pytest.approx(wanted, abs=1e-12)


def test_the_same_seed_draws_the_same_texts_for_all_models() -> None:
    values = np.random.default_rng(0).random((1, 50))
    one = {"dev/default": Samples("mean", values)}
    other = {"dev/default": Samples("mean", values + 0.25)}
    assert np.allclose(samples.drawn(other, 1) - samples.drawn(one, 1), 0.25, atol=1e-12)


def test_draws_are_those_of_the_bootstrap() -> None:
    values = np.random.default_rng(0).random(200)
    found = samples.drawn({"a/b": Samples("mean", values[None])}, 0, draws=20_000)
    assert found.mean() == pytest.approx(values.mean(), abs=1e-3)
    assert found.std() == pytest.approx(values.std() / np.sqrt(200), rel=0.02)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"a/b": some(0, "mean"), "c/d": some(1, "spearman")}
    whole = samples.drawn(made, 3, draws=50)
    assert whole.std() > 0
    monkeypatch.setattr(samples, "BLOCK", 30 * 7)
    assert np.allclose(samples.drawn(made, 3, draws=50), whole)


def test_files_hold_what_was_written(tmp_path: Path) -> None:
    made = {"test/eng-deu": some(0, "precision"), "test/a:b": some(1, "mean")}
    samples.save(tmp_path / "a.npz", made)
    found = samples.read(tmp_path / "a.npz")
    assert found.keys() == made.keys()
    for part, one in made.items():
        assert found[part].metric == one.metric
        assert np.array_equal(found[part].columns, one.columns)
    torn = (tmp_path / "a.npz").read_bytes()[:100]
    (tmp_path / "torn.npz").write_bytes(torn)
    assert samples.read(tmp_path / "torn.npz") == {}
    assert samples.read(tmp_path / "none.npz") == {}


def test_samples_that_do_not_give_the_score_are_told() -> None:
    made = {"a/b": some(0, "mean"), "a/c": some(1, "mean")}
    score = np.mean([one.columns[0].mean() for one in made.values()])
    assert samples.agree(made, float(score))
    assert not samples.agree(made, float(score) + 0.001)
    assert not samples.agree({}, 0.0)


# --- models side by side --------------------------------------------------------------------------


def facts(name: str, kind: str = "STS", group: Group | None = None) -> TaskFacts:
    return TaskFacts(name, kind, "x", group, name, "r", "dev")


TASKS = (facts("a", group="in-domain"), facts("b", group="out-of-domain"), facts("c", "Retrieval"))


def compared(*scores: tuple[float, float, float]) -> Comparison:
    rows = [
        Row(f"m{i}", str(i), None, dict(zip("abc", row, strict=True)))
        for i, row in enumerate(scores)
    ]
    return Comparison(TASKS, tuple(rows))


def test_means_are_over_tasks_types_and_groups() -> None:
    found = compared((10, 20, 60))
    (row,) = found.rows
    assert found.mean(row) == pytest.approx(30)
    assert found.types(row) == {"STS": 15, "Retrieval": 60}
    assert found.mean_of_types(row) == pytest.approx(37.5)
    assert found.mean(row, found.members_of("out-of-domain")) == 20


def test_borda_counts_who_is_beaten() -> None:
    found = compared((1, 5, 5), (2, 5, 1), (3, 0, 0))
    assert found.borda() == (0 + 1.5 + 2, 1 + 1.5 + 1, 2 + 0 + 0)


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=6))
def test_all_bordas_together_are_as_many_as_there_are_pairs(rows: list[tuple[int, ...]]) -> None:
    found = compared(*((float(a), float(b), float(c)) for a, b, c in rows)).borda()
    assert sum(found) == 3 * len(rows) * (len(rows) - 1) / 2


def test_a_lead_draws_texts_where_all_tasks_have_some_else_tasks() -> None:
    values = np.random.default_rng(0).random((2, 1, 100))
    rows = []
    for name, known in zip(("first", "second"), values, strict=True):
        scores = {task: 100 * known.mean() for task in "abc"}
        parts = {task: {"dev/default": Samples("mean", known)} for task in "ab"}
        rows.append(Row(name, name, None, scores, parts))
    found = Comparison(TASKS, tuple(rows))
    of_texts = found.lead(rows[1], ["a", "b"])
    assert of_texts.over == "texts"
    assert of_texts.low is not None
    assert of_texts.high is not None
    assert of_texts.low < of_texts.value < of_texts.high
    spread = 100 * (values[1] - values[0]).std() / np.sqrt(100)
    one = found.lead(rows[1], ["a"])
    assert one.low is not None
    assert one.value - one.low == pytest.approx(1.96 * spread, rel=0.1)
    assert of_texts.high - of_texts.low < 0.8 * 2 * 1.96 * spread  # two tasks are surer than one
    assert found.lead(rows[1]).over == "tasks"
    assert found.lead(rows[1], ["c"]) == Lead(rows[1].scores["c"] - rows[0].scores["c"])
    assert found.lead(rows[0]) == Lead(0.0)


def test_an_interval_of_tasks_holds_what_means_of_tasks_can_be() -> None:
    found = compared((0, 0, 0), (1, 2, 6))
    lead = found.lead(found.rows[1])
    assert lead.value == pytest.approx(3)
    assert lead.low == pytest.approx(1)
    assert lead.high == pytest.approx(6)
