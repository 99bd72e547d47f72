"""What tests of LoRA adapters share: adapters that PEFT makes, and what they do, in float64."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from reference import Array, float64_from_storage
from safetensors import deserialize
from safetensors.numpy import save_file
from tiny_models import build_minilm, build_qwen3
from transformers import AutoModel

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
BERT_LINEAR = ["query", "value", "intermediate.dense"]


@dataclass(frozen=True)
class Tiny:
    """A tiny real model, and how PEFT is told to adapt it."""

    build: Callable[..., Path]
    linear: list[str]
    embedding: str
    save: str
    pattern: str


MODELS = {
    "bert": Tiny(build_minilm, BERT_LINEAR, "word_embeddings", "pooler.dense", "layer.1.*query"),
    "qwen3": Tiny(
        build_qwen3, ["q_proj", "down_proj"], "embed_tokens", "input_layernorm", "layers.1.*q_proj"
    ),
}


def variants(tiny: Tiny) -> dict[str, dict[str, Any]]:
    """Options of LoraConfig, one set for everything that an adapter can ask for."""
    return {
        "plain": {},
        "rslora": {"use_rslora": True},
        "patterns": {"rank_pattern": {tiny.pattern: 2}, "alpha_pattern": {tiny.pattern: 5}},
        "whole modules": {"modules_to_save": [tiny.save]},
        "embedding": {"target_modules": [*tiny.linear, tiny.embedding]},
        "biases": {"bias": "lora_only"},
    }


def adapt(base: Path, target: Path, seed: int, **options: Any) -> torch.nn.Module:
    """Save an adapter that PEFT has made for a model; every part of it drawn from the seed."""
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": BERT_LINEAR} | options
    adapted = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 0.1 if "lora_" in name else parameter + noise * 0.1)
    adapted.save_pretrained(target)
    return adapted


def stored(file: Path) -> dict[str, tuple[str, Array]]:
    """Tensors as the official library reads them: the stored type, and the values in float64."""
    return {
        name: (e["dtype"], float64_from_storage(bytes(e["data"]), e["dtype"], e["shape"]))
        for name, e in deserialize(file.read_bytes())
    }


def values(folder: Path) -> dict[str, Array]:
    """The weights of a model's transformer in float64."""
    return {name: array for name, (_, array) in stored(folder / "model.safetensors").items()}


def reference_fold(base: Path, adapter: Path) -> dict[str, Array]:
    """`W + s B A` in float64, written down independently of the package."""
    config = json.loads((adapter / CONFIG).read_text())
    found = {n: a for n, (_, a) in stored(adapter / ADAPTER).items()}
    found = {n.removeprefix("base_model.model."): a for n, a in found.items()}
    result = values(base)
    for name, array in found.items():
        if "lora_" not in name:
            result[name.replace(".base_layer", "")] = array
    for name, a in found.items():
        if ".lora_A" in name or ".lora_embedding_A" in name:
            module = name.split(".lora_")[0]
            b = found[name.replace("_A", "_B")]
            rank, alpha = a.shape[0], config["lora_alpha"]
            for pattern, own in config["alpha_pattern"].items():
                alpha = own if re.search(pattern, module) else alpha
            scale = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
            product = b @ a
            product = product.T if "embedding" in name else product
            result[f"{module}.weight"] = result[f"{module}.weight"] + scale * product
    return result


def ulp(array: Array, dtype: str) -> Array:
    """The distance of neighbouring numbers of a stored type."""
    bits, smallest = {"F32": (23, -126), "BF16": (7, -126), "F64": (52, -1022)}[dtype]
    exponent = np.floor(np.log2(np.maximum(np.abs(array), 2.0**smallest)))
    return 2.0 ** (exponent - bits)


def plus(base: Path, adapter: Path) -> str:
    return f"{base}+{adapter}"


def write_adapter(path: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> Path:
    """A PEFT folder with these tensors and this configuration."""
    path.mkdir(parents=True)
    save_file(dict(tensors), path / ADAPTER)
    (path / CONFIG).write_text(json.dumps({"peft_type": "LORA"} | config))
    return path
