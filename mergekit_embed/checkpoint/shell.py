"""The shell of a model: what surrounds the weights and decides what its embeddings mean.

Pooling, normalisation, prompts, tokenizer, configuration: members that disagree on one of them
cannot be averaged into something that means anything, whatever their weights are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .tensor import short
from .weights import MAX_TOKENIZER_BYTES, inside, is_file, read_bytes, read_json, read_object

ASPECTS = {
    "pooling": "pools by",
    "normalisation": "ends with",
    "prompts": "has the prompts",
    "other_modules": "has the modules",
    "vocabulary": "numbers its tokens as",
    "tokenizer": "has the tokenizer",
    "config": "has the configuration",
}
"""What members must agree on, and the words that introduce what a member has."""

OPTIONS = {
    aspect: f"`{aspect}: base`" for aspect in ASPECTS if aspect not in {"vocabulary", "tokenizer"}
} | {"tokenizer": "`tokenizer_source: base`"}
"""What a recipe says to accept a disagreement. The vocabulary has more than one way: rows of the
embedding table are then merged by token."""

COSMETIC_CONFIG = (
    "_",
    "architectures",
    "attn_implementation",
    "auto_map",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_",
    "deterministic_flash_attn",
    "dtype",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "initializer_",
    "is_encoder_decoder",
    "label2id",
    "output_",
    "problem_type",
    "reference_compile",
    "repad_logits_with_grad",
    "return_dict",
    "sentence_transformers",
    "task_specific_params",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_cache",
    "vocab_size",  # follows from the embedding table, whose shape is checked
)
"""Beginnings of config.json keys that do not change what the model computes at inference."""

POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

DENSE_DEFAULTS = {
    "activation_function": "torch.nn.modules.activation.Tanh",
    "bias": True,
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
    "use_residual": False,
}
"""What a Dense does where its configuration is silent, as those of older releases are."""


@dataclass(frozen=True)
class Module:
    """One entry of modules.json: the class's own name, and the folder relative to the model's."""

    kind: str
    path: str


@dataclass(frozen=True)
class Fact:
    """What a model says on one aspect: a comparable value, words for people, and the file."""

    value: Any
    words: str
    file: str


def read_modules(root: Path) -> tuple[Module, ...]:
    """The modules of a sentence-transformers folder, in order; empty for a bare transformer.

    The order is that of the file, as it is for sentence-transformers, whatever `idx` says.

    Raises:
        CheckpointError: when modules.json is broken or names a folder outside the model's.
    """
    path = root / "modules.json"
    if not is_file(path):
        return ()
    entries = read_json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(path, "is not a list of modules")
    modules = []
    for entry in entries:
        module = _module(root, root, entry.get("path"), entry.get("type"), path)
        modules.append(module)
        if module.kind in {"Router", "Asym"}:
            modules.extend(_routed(root, root / module.path))
    return tuple(modules)


def _module(root: Path, folder: Path, path: Any, kind: Any, told_by: Path) -> Module:
    """The module in `path`, counted from `folder`; its path is spelled in one way only."""
    relative = inside(folder, path, told_by).relative_to(root).as_posix()
    if not isinstance(kind, str):
        raise CheckpointError(told_by, f"does not say the type of the module in {short(path)}")
    return Module(kind.rpartition(".")[2], "" if relative == "." else relative)


def _routed(root: Path, folder: Path) -> list[Module]:
    """The modules inside a Router, which lists them in a file of its own."""
    config = folder / "router_config.json"
    config = config if config.is_file() else folder / "config.json"
    types = read_object(config).get("types", {})
    if not isinstance(types, dict):
        raise CheckpointError(config, "has `types` that are not a map from modules to classes")
    return [_module(root, folder, path, kind, config) for path, kind in types.items()]


def describe(root: Path, modules: Sequence[Module]) -> Mapping[str, Fact]:
    """What a model folder says on each aspect. Aspects on which it is silent are left out."""
    facts: dict[str, Fact] = {}
    if modules:
        facts["pooling"] = _pooling(root, modules)
        normalised = any(module.kind == "Normalize" for module in modules)
        words = "a Normalize module" if normalised else "no Normalize module"
        facts["normalisation"] = Fact(normalised, words, "modules.json")
        facts["other_modules"] = _other_modules(root, modules)
        facts["prompts"] = _prompts(root)
    transformer = transformer_folder(root, modules)
    facts |= _tokenizer(root, transformer)
    config = transformer / "config.json"
    if is_file(config):
        value = read_object(config)
        model_type = value.get("model_type", "unknown")
        facts["config"] = Fact(
            {k: v for k, v in value.items() if not _is_cosmetic(k)},
            f"of a {model_type} model",
            str(config.relative_to(root)),
        )
    return facts


def transformer_folder(root: Path, modules: Sequence[Module]) -> Path:
    """The folder of the first transformer, which a Router may hold, else of the first module."""
    found = [module for module in modules if "ransformer" in module.kind] or modules[:1]
    return root / found[0].path if found else root


def _is_cosmetic(key: str) -> bool:
    return key.startswith(COSMETIC_CONFIG) or "dropout" in key


def _pooling(root: Path, modules: Sequence[Module]) -> Fact:
    found, file = [], "modules.json"
    for module in modules:
        if module.kind == "Pooling":
            config = read_object(root / module.path / "config.json")
            file = f"{module.path}/config.json"
            found.append((_pooling_modes(config), bool(config.get("include_prompt", True))))
    words = " then ".join(
        "+".join("[CLS]" if mode == "cls" else mode for mode in modes)
        + ("" if prompt else " without the prompt")
        for modes, prompt in found
    )
    return Fact(tuple(found), words or "no Pooling module", file)


def _pooling_modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modes in the order in which their vectors are joined."""
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        return (mode,)
    if isinstance(mode, list):
        return tuple(map(str, mode))
    return tuple(name for flag, name in POOLING_FLAGS.items() if config.get(flag)) or ("mean",)


def _prompts(root: Path) -> Fact:
    file = "config_sentence_transformers.json"
    config = read_object(root / file)
    prompts = config.get("prompts")
    prompts = prompts if isinstance(prompts, dict) else {}
    spoken = {name: text for name, text in sorted(prompts.items()) if text}
    default = config.get("default_prompt_name")
    default = default if isinstance(default, str) and default in spoken else None
    words = json.dumps(spoken, ensure_ascii=False) + (f", {default} by default" if default else "")
    return Fact((spoken, default), words, file)


def _other_modules(root: Path, modules: Sequence[Module]) -> Fact:
    """Every module between the transformer and the end that is not told of elsewhere."""
    found = []
    for module in modules[1:]:
        if module.kind in {"Pooling", "Normalize"}:
            continue
        config = read_object(root / module.path / "config.json")
        if module.kind == "Dense":
            config = DENSE_DEFAULTS | config
        activation = str(config.pop("activation_function", "")).rpartition(".")[2]
        found.append((module.kind, activation, config))
    words = ", ".join(f"{kind}({activation})" for kind, activation, _ in found) or "none besides"
    return Fact([(k, a, c) for k, a, c in found], words, "modules.json")


TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)


def _tokenizer(root: Path, transformer: Path) -> dict[str, Fact]:
    """What turns text into token ids: which number a token has, and how text is cut into tokens.

    Digests by file, since members need not have the same files.
    """
    digests: dict[str, dict[str, str]] = {"vocabulary": {}, "tokenizer": {}}
    for name in TOKENIZER_FILES:
        path = transformer / name if is_file(transformer / name) else root / name
        if is_file(path):
            for aspect, content in _tokenizer_parts(path).items():
                digests[aspect][name] = hashlib.sha256(content).hexdigest()
    return {
        aspect: Fact(found, f"{min(found)} {found[min(found)][:12]} (digest)", min(found))
        for aspect, found in digests.items()
        if found
    }


def _tokenizer_parts(path: Path) -> dict[str, bytes]:
    """The numbering and the rest of a file; truncation and padding are settings, not part of it."""
    if path.name == "merges.txt":
        return {"tokenizer": read_bytes(path, MAX_TOKENIZER_BYTES)}
    content = read_json(path, MAX_TOKENIZER_BYTES) if path.name == "tokenizer.json" else None
    if not isinstance(content, dict):
        return {"vocabulary": read_bytes(path, MAX_TOKENIZER_BYTES)}
    model = content.get("model")
    model = model if isinstance(model, dict) else {}
    vocabulary = model.get("vocab")
    scores = None
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score, numbered by their place
        scores = [pair[1:] for pair in vocabulary if isinstance(pair, list)]
        vocabulary = [pair[0] for pair in vocabulary if isinstance(pair, list) and pair]
    pairs = [" ".join(map(str, m)) if isinstance(m, list) else m for m in _list(model, "merges")]
    added = [
        [token.get("id"), token.get("content")]
        for token in _list(content, "added_tokens")
        if isinstance(token, dict)
    ]
    steps = [content.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor")]
    return {
        "vocabulary": _canonical([vocabulary, sorted(added, key=str)]),
        "tokenizer": _canonical([model.get("type"), scores, pairs, steps]),
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    value = content.get(key)
    return value if isinstance(value, list) else []


def retold(facts: Mapping[str, Fact], told: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Fact]:
    """The facts of a model whose config.json says some things otherwise."""
    fact = facts.get("config")
    if fact is None or fact.file not in told:
        return facts
    said = {key: value for key, value in told[fact.file].items() if not _is_cosmetic(key)}
    return {**facts, "config": replace(fact, value={**fact.value, **said})}


def same(left: Fact, right: Fact) -> bool:
    """True when two models agree. Files or keys that only one of them has do not count.

    Newer libraries write keys and files that older ones leave at their defaults.
    """
    if isinstance(left.value, dict) and isinstance(right.value, dict):
        common = left.value.keys() & right.value.keys()
        return all(left.value[key] == right.value[key] for key in common)
    return bool(left.value == right.value)


def difference(mine: Fact, theirs: Fact) -> tuple[str, str]:
    """Words for what the two have, as specific as can be."""
    if isinstance(mine.value, dict) and isinstance(theirs.value, dict):
        common = sorted(mine.value.keys() & theirs.value.keys())
        keys = [key for key in common if mine.value[key] != theirs.value[key]][:3]
        if keys and "(digest)" not in mine.words:
            left = ", ".join(f"{key}={short(mine.value[key])}" for key in keys)
            right = ", ".join(f"{key}={short(theirs.value[key])}" for key in keys)
            return left, right
        if keys:
            key = keys[0]
            left, right = (f"{key} {fact.value[key][:12]} (digest)" for fact in (mine, theirs))
            return left, right
    return _cut(mine.words), _cut(theirs.words)


def _cut(words: str) -> str:
    return words if len(words) <= 400 else words[:397] + "..."
