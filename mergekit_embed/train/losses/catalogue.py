"""The losses that a plan may name. Each function's signature is its reference, its body builds it.

What sentence-transformers has is used as it is there: MultipleNegativesRanking with its directions,
CoSENT, AnglE, distillation. The rest is in the modules beside this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from ...errors import UsageError
from ...methods.registry import Param
from .registry import Model, Module, loss

if TYPE_CHECKING:
    from .candidates import Negatives

Temperature = Annotated[float, Param("cosines are divided by it", above=0.0)]
AcrossDevices = Annotated[bool, Param("compare with the texts of all processes")]
MiniBatchSize = Annotated[
    int | None,
    Param(
        "embed so many texts at a time (GradCache): less memory, one more forward pass", minimum=1
    ),
]
Similarity = Annotated[str, Param("how vectors are compared", choices=("cosine", "dot"))]
Distance = Literal["cosine", "l2", "mse"]
Weight = Annotated[float, Param("how much of this term", minimum=0.0)]


@loss("info_nce", rows="groups")
def info_nce(
    model: Model,
    positives: int,
    temperature: Temperature = 0.02,
    negatives: Annotated[
        str,
        Param(
            "whose texts an anchor is told apart from: all of the batch; its own negatives; "
            "all rows' hard negatives; own negatives and positives of other classes",
            choices=("batch", "own", "hard", "class"),
        ),
    ] = "batch",
    false_negative_margin: Annotated[
        float | None,
        Param(
            "drop negatives nearer to the anchor than its positive by more than this", minimum=-2
        ),
    ] = None,
    hardness: Annotated[
        float, Param("weigh a row's own negatives by exp(hardness cos)", minimum=0.0)
    ] = 0.0,
    focal: Annotated[float, Param("weigh rows by (1 - p)^focal", minimum=0.0)] = 0.0,
    mixed: Annotated[
        int, Param("add so many mixtures of a row's own negatives to them", minimum=0)
    ] = 0,
    across_devices: AcrossDevices = True,
    mini_batch_size: MiniBatchSize = None,
) -> Module:
    """Tells an anchor's positive from negatives by a softmax over cosines."""
    from .contrast import Contrast
    from .info_nce import CachedInfoNCELoss, InfoNCELoss

    whose = cast("Negatives", negatives)
    contrast = Contrast(temperature, whose, false_negative_margin, hardness, focal)
    if mini_batch_size is None:
        return InfoNCELoss(model, contrast, positives, mixed, across_devices)
    return CachedInfoNCELoss(
        model, contrast, positives, mixed, across_devices, mini_batch_size=mini_batch_size
    )


@loss("multiple_negatives", rows="groups")
def multiple_negatives(
    model: Model,
    positives: int,
    temperature: Temperature = 0.05,
    compare: Annotated[
        str,
        Param(
            "query to documents; also document to queries; also queries and documents among "
            "themselves, in one softmax",
            choices=("forward", "symmetric", "all"),
        ),
    ] = "forward",
    across_devices: AcrossDevices = True,
    mini_batch_size: MiniBatchSize = None,
) -> Module:
    """InfoNCE of one positive, also in the directions that `info_nce` has not."""
    from sentence_transformers.sentence_transformer import losses

    if positives != 1:
        raise UsageError(
            f"multiple_negatives takes one positive a row, not {positives}; info_nce takes several"
        )
    backward = ("doc_to_query",)
    directions = {
        "forward": (),
        "symmetric": backward,
        "all": ("query_to_query", *backward, "doc_to_doc"),
    }
    common: dict[str, Any] = {
        "scale": 1 / temperature,
        "gather_across_devices": across_devices,
        "directions": ("query_to_doc", *directions[compare]),
        "partition_mode": "per_direction" if compare == "symmetric" else "joint",
    }
    if mini_batch_size is None:
        return losses.MultipleNegativesRankingLoss(model, **common)
    return losses.CachedMultipleNegativesRankingLoss(
        model, mini_batch_size=mini_batch_size, **common
    )


@loss("codiemb_sts", rows="scored pairs")
def codiemb_sts(
    model: Model,
    pearson: Weight = 2.0,
    rank_kl: Weight = 5.0,
    pro: Weight = 0.5,
    temperature: Annotated[float, Param("of RankKL and PRO", above=0.0)] = 0.05,
    middle: Annotated[
        float, Param("how much of InfoNCE on the middle layer; the paper's code has 1", minimum=0.0)
    ] = 0.0,
    middle_threshold: Annotated[
        float, Param("the score from which a pair is one for the middle layer")
    ] = 1.0,
    middle_temperature: Annotated[float, Param("of the middle layer's InfoNCE", above=0.0)] = 0.02,
    across_devices: AcrossDevices = True,
    mini_batch_size: MiniBatchSize = None,
) -> Module:
    """Brings the cosines of pairs into the order of their scores: Pearson, RankKL and PRO."""
    from .scored_pairs import CachedCoDiEmbSTSLoss, CoDiEmbSTSLoss, Terms

    terms = Terms(pearson, rank_kl, pro, temperature, middle, middle_threshold, middle_temperature)
    if mini_batch_size is None:
        return CoDiEmbSTSLoss(model, terms, across_devices)
    return CachedCoDiEmbSTSLoss(
        model, terms, across_devices=across_devices, mini_batch_size=mini_batch_size
    )


@loss("cosent", rows="scored pairs")
def cosent(
    model: Model, temperature: Temperature = 0.05, mini_batch_size: MiniBatchSize = None
) -> Module:
    """Puts every pair's cosine above that of each pair with a lower score."""
    from .scored_pairs import CachedCoSENTLoss, GatheredCoSENTLoss

    if mini_batch_size is None:
        return GatheredCoSENTLoss(model, 1 / temperature)
    return CachedCoSENTLoss(model, 1 / temperature, mini_batch_size=mini_batch_size)


@loss("angle", rows="scored pairs")
def angle(
    model: Model, temperature: Temperature = 0.05, mini_batch_size: MiniBatchSize = None
) -> Module:
    """As `cosent`, with differences of angles in the complex plane in place of cosines."""
    from .scored_pairs import CachedAnglELoss, GatheredAnglELoss

    if mini_batch_size is None:
        return GatheredAnglELoss(model, 1 / temperature)
    return CachedAnglELoss(model, 1 / temperature, mini_batch_size=mini_batch_size)


@loss("distillation", rows="teacher scores")
def distillation(
    model: Model,
    temperature: Annotated[float, Param("of both softmaxes", above=0.0)] = 1.0,
    similarity: Similarity = "cosine",
) -> Module:
    """Brings the softmax over a query's documents to a teacher's (KL divergence)."""
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss

    return DistillKLDivLoss(model, _pairwise(similarity), temperature)


@loss("margin_mse", rows="teacher scores")
def margin_mse(model: Model, similarity: Similarity = "dot") -> Module:
    """Brings the lead of the positive over each negative to a teacher's (squared error)."""
    from sentence_transformers.sentence_transformer.losses import MarginMSELoss

    return MarginMSELoss(model, _pairwise(similarity))


@loss("embedding_distillation", rows="teacher vectors")
def embedding_distillation(
    model: Model,
    distance: Annotated[
        str, Param("how far apart two embeddings are", choices=("cosine", "l2", "mse"))
    ] = "cosine",
    teacher_dim: Annotated[
        int | None, Param("learn a projection to vectors of this length", minimum=1)
    ] = None,
) -> Module:
    """Brings embeddings to a teacher's."""
    from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss

    kind = cast("Distance", distance)
    return EmbedDistillLoss(model, kind, teacher_dim)


def _pairwise(similarity: str) -> Any:
    from sentence_transformers.util import pairwise_cos_sim, pairwise_dot_score

    return pairwise_cos_sim if similarity == "cosine" else pairwise_dot_score
