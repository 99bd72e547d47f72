"""The embedding that the middle layer would give, by the model's own pooling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn

from ...errors import UsageError


def innermost(model: nn.Module) -> SentenceTransformer:
    """The model itself, without what DistributedDataParallel or torch.compile put around it.

    Raises:
        UsageError: when it does not begin with a transformer, which has layers.
    """
    while not isinstance(model, SentenceTransformer):
        around: Any = model
        model = around._orig_mod if hasattr(around, "_orig_mod") else around.module
    if not isinstance(model[0], Transformer):
        raise UsageError(
            f"middle: a {type(model[0]).__name__} has no layers that this loss could look into; "
            "set it to 0"
        )
    return model


def with_middle(model: nn.Module, features: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The embeddings of the last and of the middle layer, (B, d) each, from one forward pass.

    The middle one is hidden state n // 2 of n, the embeddings of tokens being the first, after all
    modules that follow the transformer. Source: CoDiEmb (arXiv 2508.11442), from the authors' code.
    """
    inner = innermost(model)
    transformer: Any = inner[0]
    with _hidden_states(transformer.auto_model.config):
        output = model(dict(features))
    states = output["all_layer_embeddings"]
    middle = {**output, "token_embeddings": states[len(states) // 2]}
    for module in list(inner.children())[1:]:
        middle = module(middle)
    return output["sentence_embedding"], middle["sentence_embedding"]


@contextmanager
def _hidden_states(config: Any) -> Iterator[None]:
    before = config.output_hidden_states
    config.output_hidden_states = True
    try:
        yield
    finally:
        config.output_hidden_states = before
