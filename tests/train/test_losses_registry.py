"""Losses by name: their parameters are those of the signatures, and errors help."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mergekit_embed.errors import UsageError
from mergekit_embed.train import losses
from mergekit_embed.train.losses.reference import table
from mergekit_embed.train.losses.registry import Entry

from .embeddings import Linear

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
ENTRIES: list[Entry] = [*losses.available().values(), *losses.wrappers().values()]


def test_names_and_parameters_are_known_without_torch() -> None:
    code = (
        "import sys; from mergekit_embed.train import losses; "
        "losses.named('info_nce').values({'temperature': 0.05}); "
        "sys.exit(bool({'torch', 'sentence_transformers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_page_has_every_parameter_as_the_signature_says(entry: Entry) -> None:
    assert f"\n### `{entry.name}`\n" in PAGE
    assert entry.summary in PAGE
    assert table(entry) in PAGE


def test_the_example_of_the_page_works() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)
    namespace: dict[str, Any] = {"model": Linear(dim=32)}
    exec(compile(example, "docs/losses.md", "exec"), namespace)
    assert namespace["loss"].get_config_dict()["matryoshka_dims"] == (32, 16)


def test_the_page_has_no_others() -> None:
    assert set(re.findall(r"^### `(\w+)`$", PAGE, re.M)) == {entry.name for entry in ENTRIES}


@pytest.mark.parametrize(
    ("entry", "parameters", "message"),
    [
        (
            "info_nce",
            {"temperatur": 1},
            'temperatur: unknown parameter, did you mean "temperature"?',
        ),
        ("info_nce", {"temperature": 0}, "temperature: must be above 0, not 0"),
        ("info_nce", {"temperature": "warm"}, 'temperature: must be a number, not "warm"'),
        ("info_nce", {"temperature": None}, "temperature: must be a number, not nothing"),
        ("info_nce", {"temperature": float("nan")}, "temperature: must be finite, not nan"),
        ("info_nce", {"negatives": "mine"}, "negatives: must be one of"),
        ("info_nce", {"mixed": 1.5}, "mixed: must be a whole number, not 1.5"),
        ("info_nce", {"mini_batch_size": 0}, "mini_batch_size: must be at least 1, not 0"),
        ("codiemb_sts", {"pro": -1}, "pro: must be at least 0, not -1"),
        ("codiemb_sts", {"across_devices": "yes"}, "across_devices: must be true or false"),
        ("matryoshka", {}, "dims: matryoshka needs it: lengths that embeddings are cut to"),
        ("matryoshka", {"dims": 8}, "dims: must be a list of numbers, not 8"),
        ("matryoshka", {"dims": []}, "dims: must be a list of numbers, not []"),
        ("matryoshka", {"dims": "8"}, 'dims: must be a list of numbers, not "8"'),
        ("matryoshka", {"dims": [8, 0]}, "dims: must be at least 1, not 0"),
    ],
)
def test_what_is_wrong_is_told(entry: str, parameters: dict[str, Any], message: str) -> None:
    found = {e.name: e for e in ENTRIES}[entry]
    with pytest.raises(UsageError, match=re.escape(f"{entry}: {message}")):
        found.values(parameters)
    (problem,) = found.problems(parameters)
    assert f"{problem.where}: {problem.message}".startswith(message)


def test_everything_that_is_wrong_is_told_together() -> None:
    problems = losses.named("info_nce").problems({"temperature": -1, "focal": "x", "foo": 1})
    assert [problem.where for problem in problems] == ["temperature", "focal", "foo"]


def test_unknown_names_are_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match='info_nec: unknown loss, did you mean "info_nce"'):
        losses.named("info_nec")
    with pytest.raises(UsageError, match='unknown wrapper, did you mean "matryoshka"'):
        losses.wrapper("matroska")


def test_values_come_in_the_types_that_losses_expect() -> None:
    values = losses.named("info_nce").values(
        {"temperature": 1, "mixed": 2.0, "across_devices": 0, "false_negative_margin": None}
    )
    assert values == {
        "temperature": 1.0,
        "mixed": 2,
        "across_devices": False,
        "false_negative_margin": None,
    }
    assert [type(value) for value in values.values()] == [float, int, bool, type(None)]
    assert losses.wrapper("matryoshka").values({"dims": [8.0, 4]})["dims"] == (8, 4)


PARAMETERS: dict[str, dict[str, Any]] = {
    "info_nce": {
        "temperature": 0.3,
        "negatives": "hard",
        "false_negative_margin": 0.1,
        "hardness": 4.0,
        "focal": 0.4,
        "mixed": 3,
        "across_devices": False,
        "mini_batch_size": 5,
    },
    "codiemb_sts": {
        "pearson": 1.1,
        "rank_kl": 1.2,
        "pro": 1.3,
        "temperature": 0.3,
        "middle": 0.0,
        "middle_threshold": 2.0,
        "middle_temperature": 0.4,
        "across_devices": False,
    },
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_arrives(name: str) -> None:
    built = losses.named(name).build(Linear(), **PARAMETERS[name])
    config = built.get_config_dict()
    assert {key: config[key] for key in PARAMETERS[name]} == PARAMETERS[name]
    default = losses.named(name).build(Linear()).get_config_dict()
    settings = losses.named(name).settings
    assert {key: settings[key].default for key in settings if key in default} == {
        key: default[key] for key in settings if key in default
    }


@pytest.mark.parametrize("mini_batch_size", [None, 4])
@pytest.mark.parametrize("name", ["multiple_negatives", "cosent", "angle"])
def test_the_temperature_is_one_over_their_scale(name: str, mini_batch_size: int | None) -> None:
    built = losses.named(name).build(Linear(), temperature=0.1, mini_batch_size=mini_batch_size)
    assert built.get_config_dict()["scale"] == pytest.approx(10)


@pytest.mark.parametrize("entry", losses.available().values(), ids=lambda entry: entry.name)
def test_every_loss_builds_and_tells_of_itself(entry: Any) -> None:
    built = entry.build(Linear())
    assert built.get_config_dict()
    assert "title" in built.citation


def test_several_positives_are_for_info_nce() -> None:
    assert losses.named("info_nce").build(Linear(), positives=3).positives == 3
    for name in set(losses.available()) - {"info_nce"}:
        with pytest.raises(UsageError, match="positive"):
            losses.named(name).build(Linear(), positives=2)


@pytest.mark.parametrize("wrapper", ["matryoshka", "matryoshka_2d"])
def test_lengths_that_embeddings_do_not_have_are_refused(wrapper: str) -> None:
    model = Linear(dim=6)
    inner = losses.named("info_nce").build(model)
    build = losses.wrapper(wrapper).build
    with pytest.raises(UsageError, match="embeddings of 6 numbers cannot be cut to 7"):
        build(model, inner, dims=[6, 7])
    with pytest.raises(UsageError, match="weights has 1 numbers for 2 dims"):
        build(model, inner, dims=[6, 3], weights=[1.0])
