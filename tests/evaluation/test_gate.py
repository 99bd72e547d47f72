"""Gates: what is one, what is none, and who passes."""

from __future__ import annotations

import pytest

from mergekit_embed.errors import UsageError
from mergekit_embed.evaluate.compare import Comparison, Row, TaskFacts
from mergekit_embed.evaluate.gate import check, parse, refuse_unknown

TASKS = (
    TaskFacts("sts", "STS", "x", "in-domain", "sts", "r", "dev"),
    TaskFacts("MTEB-x (eng)", "STS", "x", "out-of-domain", "y", "r", "dev"),
)


def compared(**models: tuple[float, float]) -> Comparison:
    names = [task.name for task in TASKS]
    rows = [
        Row(name.replace("_", "-"), name, None, dict(zip(names, scores, strict=True)))
        for name, scores in models.items()
    ]
    return Comparison(TASKS, tuple(rows))


FOUND = compared(start=(70.0, 50.0), boom_v2=(72.0, 47.6), other=(69.8, 50.0))


@pytest.mark.parametrize(
    ("gate", "missed"),
    [
        ("mean >= base - 0.1", ["boom-v2"]),
        ("mean >= base - 0.2", []),
        ("mean >= first - 0.3", []),
        ("mean>=first", ["boom-v2", "other"]),
        ("mean_of_types >= first", ["boom-v2", "other"]),
        ("mean < 60", ["start"]),
        ("mean <= 60", []),
        ("mean > 60", ["start", "boom-v2", "other"]),
        ("task:sts > 69.8", ["other"]),
        ("task:sts >= 69.8", []),
        ("task:MTEB-x (eng) >= first", ["boom-v2"]),
        ("task: sts >= boom-v2 - 2", ["other"]),
        ("in_domain >= boom-v2", ["start", "other"]),
        ("out_of_domain >= base - 2.4", []),
        ("out_of_domain >= base - 2.3", ["boom-v2"]),
        ("task:sts >= first - 0.2", []),
        ("mean >= other + 0.1", ["boom-v2"]),
        ("mean >= -1", []),
    ],
)
def test_who_misses_a_gate(gate: str, missed: list[str]) -> None:
    assert [miss.row.label for miss in check(parse(gate), FOUND)] == missed


def test_a_model_called_base_is_the_base() -> None:
    found = compared(start=(1.0, 1.0), base=(9.0, 9.0))
    (miss,) = check(parse("mean >= base - 0.5"), found)
    assert str(miss) == "start misses `mean >= base - 0.5`: 1.00, not >= 8.50"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mean",
        "mean >=",
        "mean == base",
        "mean >= base - ",
        "mean >= base - x",
        "mean >= base -0.2",
        "mean >= base * 2",
        "median >= base",
        "task: >= base",
        "mean >= base - 0.2; mean > 1",
        "mean >= __import__('os').system('true')",
        "1 >= mean",
        "mean >= 1e3",
        "mean >= base >= 1",
    ],
)
def test_what_is_no_gate_is_told(text: str) -> None:
    with pytest.raises(UsageError):
        check(parse(text), FOUND)


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        ("mean >= nobody", "there is no model nobody, but start, boom-v2"),
        ("task:nothing >= 1", "there is no task nothing, but sts"),
        ("in_domain >= 1", "no task is in-domain; name some with --in-domain"),
    ],
)
def test_a_gate_of_what_is_not_there_is_refused_before_anything_runs(gate: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        refuse_unknown([parse(gate)], ["start", "boom-v2"], ["sts"], {"out-of-domain"})
    refuse_unknown([parse("out_of_domain >= boom-v2")], ["boom-v2"], [], {"out-of-domain"})
