"""Models to train: opening the base, adapters, prompts, and writing the folder of a member."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
from tokenizers import Tokenizer
from torch import Tensor

from ..errors import CheckpointError, UsageError
from .data import Dataset
from .examples import columns_of, prompts_of
from .specs import Lora, TrainingPlan

POOLING = {"mean": "mean", "cls": "cls", "last": "lasttoken"}
"""What sentence-transformers calls the poolings of a plan."""

Weights = dict[str, Tensor]
"""Tensors by their names in the model."""


def open_base(plan: TrainingPlan, folder: Path) -> SentenceTransformer:
    """The model that all members start from, in float32 on the CPU.

    Raises:
        CheckpointError: when it cannot be loaded.
    """
    card = SentenceTransformerModelCardData(local_files_only=True)  # else the Hub is asked for it
    options: dict[str, Any] = {"device": "cpu", "model_card_data": card}
    try:
        if plan.pooling is None:
            return SentenceTransformer(str(folder), **options).float()
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        transformer = Transformer(str(folder))
        size = transformer.get_embedding_dimension()
        modules = [transformer, Pooling(size, POOLING[plan.pooling])]
        return SentenceTransformer(modules=modules, **options).float()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(folder, f"cannot be loaded to be trained: {reason}") from error


def prepare(model: SentenceTransformer, plan: TrainingPlan) -> None:
    """Make a model ready to be trained as a plan says: lengths, adapters, checkpointing.

    Raises:
        UsageError: when peft is missing, or the layers that adapters are for.
    """
    model.max_seq_length = limit(model.max_seq_length, plan)
    if plan.lora is not None:
        _add_adapter(model, plan.lora)
    if plan.training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def limit(own: int | None, plan: TrainingPlan) -> int:
    """How many tokens a text is cut to, where the model itself takes `own`."""
    return plan.training.max_length if own is None else min(own, plan.training.max_length)


def _add_adapter(model: SentenceTransformer, lora: Lora) -> None:
    try:
        from peft import LoraConfig
    except ImportError as error:
        message = "adapters are trained by peft: `pip install 'mergekit_embed[train]'`"
        raise UsageError(message) from error
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    alpha: Any = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    config = LoraConfig(
        r=lora.r,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="FEATURE_EXTRACTION",
    )
    try:
        model.add_adapter(config)
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        named = "all linear layers" if isinstance(targets, str) else ", ".join(targets)
        raise UsageError(f"`lora` cannot be put into {named}: {reason}") from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name  # other modules of the model are no adapter's


def prompts(model: SentenceTransformer, dataset: Dataset) -> dict[str, str]:
    """What is put before the texts of each column of a data set.

    Where the plan says nothing it is what the model's own `encode_query`, `encode_document` and,
    for texts that are all alike, `encode` put there.
    """
    said = prompts_of(dataset)
    own = model.prompts
    plain = own.get(model.default_prompt_name or "", "")
    query = own.get("query", plain)
    document = next((own[name] for name in ("document", "passage", "corpus") if name in own), plain)
    ranked = dataset.labels is None and dataset.spec.kind not in {"sts", "pair"}
    found = {}
    for column in columns_of(dataset):
        default = (query if column == "anchor" else document) if ranked else plain
        found[column] = said.get(column, default or "")
    return found


def weights_of(model: SentenceTransformer) -> Weights:
    """All that training changes, not copied: trained parameters, and buffers that are stored."""
    stored = model.state_dict(keep_vars=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    buffers = {name: b for name, b in model.named_buffers() if name in stored}
    return {name: tensor.detach() for name, tensor in (trained | buffers).items()}


def put_weights(model: SentenceTransformer, weights: Mapping[str, Tensor]) -> None:
    """Give a model weights that `weights_of` found.

    Raises:
        ValueError: when they are of another model.
    """
    own = weights_of(model)
    if own.keys() != weights.keys():
        raise ValueError("the weights are those of another model")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def write(
    model: SentenceTransformer,
    plan: TrainingPlan,
    base: Path,
    length: int | None,
    folder: Path,
    base_name: str,
) -> None:
    """Write a trained model as a folder: whole, or its adapter alone.

    The card is made of what the model's `model_card_data` says.

    Args:
        model: what was trained.
        plan: says whether adapters are folded in.
        base: the folder of the base.
        length: tokens that the base cuts texts to; the member does as well.
        folder: where to write.
        base_name: what an adapter calls its base; no path of this machine.
    """
    if plan.lora is not None and plan.lora.fold:
        plain = open_base(plan, base)
        _fold(model, plain)
        plain.model_card_data = model.model_card_data
        plain.model_card_data.register_model(plain)
        plain.save_pretrained(str(folder))
        return
    trained_with, model.max_seq_length = model.max_seq_length, length
    _cut_as_before(model, base)
    try:
        model.save_pretrained(str(folder))
    finally:
        model.max_seq_length = trained_with
    config = folder / "adapter_config.json"
    if config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        content |= {"base_model_name_or_path": base_name, "inference_mode": True}
        if isinstance(content["target_modules"], list):
            content["target_modules"].sort()  # else in an order of its own in every process
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _cut_as_before(model: SentenceTransformer, base: Path) -> None:
    """Undo how the last batch was cut and padded, which a tokenizer is stored with."""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    file = base / "tokenizer.json"
    if backend is None or not file.is_file():
        return
    before = Tokenizer.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    if before.truncation is not None:
        backend.enable_truncation(**before.truncation)
    if before.padding is not None:
        backend.enable_padding(**before.padding)


def _fold(model: SentenceTransformer, plain: SentenceTransformer) -> None:
    """Add to the base what the adapters of a model add to their layers: W + s B A, in float64."""
    from peft.tuners.lora import LoraLayer

    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                added: Any = layer  # each kind of layer says itself what it adds
                weight = plain.get_parameter(f"{name}.weight")
                delta = added.get_delta_weight("default").cpu()
                weight.copy_(weight.double() + delta.double())
