"""Adapters that ask for what has no end, or are made for no model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers import listed
from lora import write_adapter

from .attack import CUT, NAME, Ground, hole, packed, write_json

MODULE = f"base_model.model.{NAME.removesuffix('.weight')}"
CONFIG = "adapter_config.json"
FILE = "adapter_model.safetensors"


def factors(rank: int = 2, module: str = MODULE) -> dict[str, np.ndarray]:
    shapes = {"A": (rank, 4), "B": (4, rank)}
    return {f"{module}.lora_{s}.weight": np.ones(shape, np.float32) for s, shape in shapes.items()}


def refused(ground: Ground, names: str, says: str = "") -> None:
    """The adapter in `adapter`, behind the hostile model, is refused."""
    reference = f"{ground.hostile}+{ground.root / 'adapter'}"
    recipe = ground.write(models=listed(ground.good, reference))
    ground.refused(recipe, names=ground.root / "adapter" / names, says=says, longest=CUT)


CONFIGS: dict[str, tuple[Any, str]] = {
    # what is wrong: (the configuration, or what is otherwise in it; what the refusal says)
    "deep": (b'{"peft_type": "LORA", "a": ' + b"[" * 500 + b"]" * 500 + b"}", "nested more than"),
    "deeper than Python goes": (b'{"a": ' + b"[" * 50_000, "is not valid JSON"),
    "a key twice": (b'{"peft_type": "LORA", "r": 2, "r": 4}', "'r' twice"),
    "a list": ([], "is not a JSON object"),
    "no kind": ({"peft_type": None}, "only LORA"),
    "a kind of a megabyte": ({"peft_type": "L" * 2**20}, "only LORA"),
    "a kind that is a list": ({"peft_type": ["LORA"] * 1000}, "only LORA"),
    "rank of 4000 digits": ({"r": 10**4000}, "`r` must be"),
    "rank of 5000 digits": (b'{"peft_type": "LORA", "r": 1%s}' % (b"0" * 5000), "not valid JSON"),
    "rank of nothing": ({"r": 0}, "`r` must be"),
    "rank below nothing": ({"r": -(10**4000)}, "`r` must be"),
    "rank of half": ({"r": 0.5}, "`r` must be"),
    "rank that is a text": ({"r": "2"}, "`r` must be"),
    "alpha of 4000 digits": ({"lora_alpha": 10**4000}, "`lora_alpha` must be"),
    "alpha that is no number": ({"lora_alpha": float("nan")}, "`lora_alpha` must be"),
    "alpha that is infinite": ({"lora_alpha": float("inf")}, "`lora_alpha` must be"),
    "alpha that is too large": (b'{"peft_type": "LORA", "lora_alpha": 1e999}', "`lora_alpha` must"),
    "ranks in a list": ({"rank_pattern": [1]}, "`rank_pattern` must map"),
    "rank of a pattern": ({"rank_pattern": {"query": -1}}, "must be"),
    "no expression": ({"rank_pattern": {"(": 1}}, "no regular expression"),
    "brackets without end": ({"rank_pattern": {"(" * 5000: 1}}, "may take for ever"),
    "repeated without end": ({"rank_pattern": {"a{99999999999}": 1}}, "no regular expression"),
    "looked for without end": ({"rank_pattern": {"(.+)+x": 1}}, "may take for ever"),
    "looked for twice without end": ({"alpha_pattern": {"(a|a)*x": 1}}, "may take for ever"),
    "many repetitions": ({"rank_pattern": {".*" * 20 + "x": 1}}, "may take for ever"),
    "many choices": ({"rank_pattern": {"(a|a)" * 40 + "x": 1}}, "may take for ever"),
    "many parts or none": ({"rank_pattern": {"a?" * 40 + "x": 1}}, "may take for ever"),
    "referring to itself": ({"rank_pattern": {r"(.*)\1\1x": 1}}, "may take for ever"),
    "a screen": ({"rank_pattern": {"\x1b[2J(": 1}}, "no regular expression"),
    "flags of text": ({"use_rslora": "yes"}, "must be true or false"),
    "another start": ({"init_lora_weights": "pissa" * 10_000}, "`init_lora_weights` is"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_hostile_configuration_is_refused(case: str, ground: Ground) -> None:
    write_adapter(ground.root / "adapter", factors(), r=2)
    content, said = CONFIGS[case]
    if isinstance(content, dict):
        content = {"peft_type": "LORA", "r": 2} | content
    write_json(ground.root / "adapter" / CONFIG, content)
    refused(ground, CONFIG, said)


def test_a_configuration_of_a_terabyte_is_refused(ground: Ground) -> None:
    write_adapter(ground.root / "adapter", factors(), r=2)
    hole(ground.root / "adapter" / CONFIG, 2**40)
    refused(ground, CONFIG, "is too large")


TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "no tensors": ({}, "holds no tensors"),
    "one factor alone": ({k: v for k, v in factors().items() if "_A" in k}, "has no lora_B"),
    "factors of another rank": (factors(3), "has shape"),
    "a module that is not there": (factors(module="base_model.model.gone"), "no tensor"),
    "a module without a name": (factors(module=""), ""),
    "a tensor that is not there": ({"base_model.model.gone": np.ones(1)}, "no tensor"),
    "whole numbers": ({k: v.astype(np.int64) for k, v in factors().items()}, "cannot be added"),
    "two spellings of one factor": (
        factors() | {f"{MODULE}.lora_A.default.weight": np.ones((2, 4), np.float32)},
        "second factor",
    ),
    "thousands of strangers": (
        {f"base_model.model.m{i}.lora_A.weight": np.ones((2, 4), np.float32) for i in range(3000)},
        "and 2950 more",
    ),
    "another kind of adapter": ({f"{MODULE}.hada_w1_a": np.ones((4, 4))}, "no part of a plain"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(case: str, ground: Ground) -> None:
    content, said = TENSORS[case]
    write_adapter(ground.root / "adapter", content, r=2)
    refused(ground, "", said)


@pytest.mark.parametrize("shape", [[2**60, 0], [0, 2**60]])
def test_factors_of_no_rank_or_no_size_are_refused(shape: list[int], ground: Ground) -> None:
    """A product of nothing has as many elements as its two outer sizes say."""
    write_adapter(ground.root / "adapter", factors(), r=2)
    nothing = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    told = {f"{MODULE}.lora_{side}.weight": nothing for side in "AB"}
    (ground.root / "adapter" / FILE).write_bytes(packed(json.dumps(told).encode()))
    refused(ground, "", "has shape")


def test_a_broken_file_of_tensors_is_refused(ground: Ground) -> None:
    write_adapter(ground.root / "adapter", factors(), r=2)
    raw = (ground.root / "adapter" / FILE).read_bytes()
    (ground.root / "adapter" / FILE).write_bytes(raw[:-1])
    refused(ground, FILE, "truncated")


def test_names_that_make_matching_slow_are_refused_at_once(ground: Ground) -> None:
    """Four thousand letters for each pattern of ours that looks into a name."""
    module = f"base_model.model.{'lora_A.' * 580}"
    write_adapter(ground.root / "adapter", factors(module=module), r=2)
    refused(ground, "", "no tensor")


def test_patterns_that_people_write_are_taken(ground: Ground) -> None:
    patterns = {
        "query": 2,
        r"^encoder\.layer\.\d+\.attention": 2,
        r".*layer\.(0|1[0-9])\..*(query|key)": 2,
        r"layer.[0-9]{1,2}.attention.self.query": 2,
        "(?:a|b)?.query": 2,
    }
    write_adapter(ground.root / "adapter", factors(), r=2, rank_pattern=patterns)
    reference = f"{ground.hostile}+{ground.root / 'adapter'}"
    ground.merged(ground.write(models=listed(ground.good, reference)))
