"""What a plan may put around a loss: sentence-transformers' Matryoshka in both dimensions."""

from __future__ import annotations

from typing import Annotated

from ...errors import UsageError
from ...methods.registry import Param
from .registry import Model, Module, wrapping

Dims = Annotated[tuple[int, ...], Param("lengths that embeddings are cut to", minimum=1)]
DimWeights = Annotated[
    tuple[float, ...] | None, Param("how much of each length; 1 for all", minimum=0.0)
]
DimsPerStep = Annotated[
    int, Param("draw so many of the lengths at every step; -1 takes all", minimum=-1)
]
LayersPerStep = Annotated[
    int, Param("draw so many of the lower layers at every step; -1 takes all", minimum=-1)
]
LayerWeight = Annotated[float, Param("how much of the lower layers' losses", minimum=0.0)]
Likeness = Annotated[
    float, Param("how much to pull the lower layers to the last (KL divergence)", minimum=0.0)
]


@wrapping("matryoshka")
def matryoshka(
    model: Model,
    inner: Module,
    dims: Dims,
    weights: DimWeights = None,
    dims_per_step: DimsPerStep = -1,
) -> Module:
    """The sum of the loss over embeddings cut to several lengths."""
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    _check_lengths(model, dims, weights)
    return MatryoshkaLoss(model, inner, dims, weights, dims_per_step)


@wrapping("matryoshka_2d")
def matryoshka_2d(
    model: Model,
    inner: Module,
    dims: Dims,
    weights: DimWeights = None,
    dims_per_step: DimsPerStep = 1,
    layers_per_step: LayersPerStep = 1,
    layers_weight: LayerWeight = 1.0,
    kl_weight: Likeness = 1.0,
) -> Module:
    """As `matryoshka`, also after fewer layers."""
    from sentence_transformers.sentence_transformer.losses import Matryoshka2dLoss

    _check_lengths(model, dims, weights)
    _cut_short(inner)
    return Matryoshka2dLoss(
        model,
        inner,
        list(dims),
        None if weights is None else list(weights),
        n_layers_per_step=layers_per_step,
        n_dims_per_step=dims_per_step,
        prior_layers_weight=layers_weight,
        kl_div_weight=kl_weight,
    )


@wrapping("adaptive_layer")
def adaptive_layer(
    model: Model,
    inner: Module,
    layers_per_step: LayersPerStep = 1,
    layers_weight: LayerWeight = 1.0,
    kl_weight: Likeness = 1.0,
) -> Module:
    """The loss also after fewer layers, so that a model cut short works."""
    from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss

    _cut_short(inner)
    return AdaptiveLayerLoss(
        model,
        inner,
        n_layers_per_step=layers_per_step,
        prior_layers_weight=layers_weight,
        kl_div_weight=kl_weight,
    )


def _check_lengths(model: Model, dims: tuple[int, ...], weights: tuple[float, ...] | None) -> None:
    whole = model.get_embedding_dimension()
    if whole is not None and max(dims) > whole:
        raise UsageError(f"dims: embeddings of {whole} numbers cannot be cut to {max(dims)}")
    if weights is not None and len(weights) != len(dims):
        raise UsageError(f"weights has {len(weights)} numbers for {len(dims)} dims")


def _cut_short(inner: Module) -> None:
    from sentence_transformers.base.losses import uses_gradient_cache

    from .scored_pairs import CoDiEmbSTSLoss

    if uses_gradient_cache(inner):
        raise UsageError(
            "mini_batch_size does not go with losses after fewer layers: only the last embeddings "
            "are kept; leave it out, or use `matryoshka`"
        )
    if isinstance(inner, CoDiEmbSTSLoss) and inner.terms.middle:
        raise UsageError(
            "middle does not go with losses after fewer layers, which look into all layers "
            "themselves; set it to 0, or use `matryoshka`"
        )
