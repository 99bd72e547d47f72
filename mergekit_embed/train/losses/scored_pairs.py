"""Modules for rows (sentence1, sentence2) with a score: CoDiEmb's, CoSENT and AnglE.

All compare the pairs of a batch with each other, so all gather them from every process; those of
sentence-transformers do not, by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer.losses import AnglELoss, CoSENTLoss
from torch import Tensor, nn

from ...errors import UsageError
from .cached import WholeBatch
from .citations import BIBTEX
from .contrast import Batch, Contrast, row_losses
from .devices import gather
from .layers import innermost, with_middle
from .numerics import cosines, exact, unit, wide
from .similarity import pearson_loss, pro_loss, rank_kl_loss


@dataclass(frozen=True)
class Terms:
    """How much of each term; the parameters of `codiemb_sts` tell of each."""

    pearson: float = 2.0
    rank_kl: float = 5.0
    pro: float = 0.5
    temperature: float = 0.05
    middle: float = 0.0
    middle_threshold: float = 1.0
    middle_temperature: float = 0.02

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.middle_temperature > 0):
            raise UsageError("temperature and middle_temperature must be above 0")
        if min(self.pearson, self.rank_kl, self.pro, self.middle) < 0:
            raise UsageError("pearson, rank_kl, pro and middle must be 0 or more")


class CoDiEmbSTSLoss(nn.Module):
    """Pearson, RankKL and PRO on cosines of pairs, and InfoNCE on the middle layer."""

    def __init__(
        self, model: SentenceTransformer, terms: Terms | None = None, across_devices: bool = True
    ):
        """Set up the loss.

        Raises:
            UsageError: when a number is out of range, or the model has no layers to look into.
        """
        super().__init__()
        self.model = model
        self.terms = terms or Terms()
        self.across_devices = across_devices
        if self.terms.middle:
            innermost(model)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The loss of all pairs of the batch, over all processes; `labels` are their scores."""
        if not self.terms.middle:
            return self.compute_loss_from_embeddings(
                embed_columns(self.model, sentence_features), labels
            )
        columns = [with_middle(self.model, features) for features in sentence_features]
        loss = self.compute_loss_from_embeddings([last for last, _ in columns], labels)
        middle = self.middle_loss([middle for _, middle in columns], labels)
        return loss + self.terms.middle * middle

    @exact
    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None
    ) -> Tensor:
        """The loss without the middle layer, from two tensors (B, d) and scores (B,).

        Raises:
            UsageError: when there are not two columns and a score for each row.
        """
        first, second, scores = self._everywhere(embeddings, labels)
        x, terms = cosines(first, second), self.terms
        y = scores.to(x.dtype)
        return (
            terms.pearson * pearson_loss(x, y)
            + terms.rank_kl * rank_kl_loss(x, y, terms.temperature) / len(y)
            + terms.pro * pro_loss(x, y, terms.temperature)
        )

    @exact
    def middle_loss(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """InfoNCE over all second sentences, the mean over pairs from the threshold on."""
        first, second, scores = self._everywhere(embeddings, labels)
        batch = Batch(unit(wide(first)), unit(wide(second))[None], positives=1)
        losses = row_losses(batch, Contrast(self.terms.middle_temperature))
        anchors = scores >= self.terms.middle_threshold
        return (losses * anchors).sum() / anchors.sum().clamp(min=1)

    def _everywhere(self, embeddings: list[Tensor], labels: Tensor | None) -> tuple[Tensor, ...]:
        if len(embeddings) != 2 or labels is None or labels.numel() != len(embeddings[0]):
            raise UsageError("codiemb_sts takes two columns of texts, and one score a row")
        values = (*embeddings, labels.reshape(-1))
        return tuple(gather(value) for value in values) if self.across_devices else values

    def get_config_dict(self) -> dict[str, Any]:
        """The parameters, for the model card."""
        return {**asdict(self.terms), "across_devices": self.across_devices}

    @property
    def citation(self) -> str:
        """BibTeX of the paper."""
        return BIBTEX["codiemb"]


class CachedCoDiEmbSTSLoss(WholeBatch, CoDiEmbSTSLoss):
    """The same by GradCache; it sees embeddings only, and so no middle layer."""

    def __init__(self, model: SentenceTransformer, terms: Terms | None = None, **named: Any):
        """As CoDiEmbSTSLoss; `mini_batch_size` is how many texts are embedded at a time.

        Raises:
            UsageError: when a number is out of range, or the middle layer is asked for.
        """
        if terms and terms.middle:
            raise UsageError(
                "middle and mini_batch_size do not go together: with mini-batches only embeddings "
                "are kept; set middle to 0, or leave mini_batch_size out"
            )
        super().__init__(model, terms, **named)


class AcrossDevices:
    """Before a loss of sentence-transformers among the bases: it sees the rows of all processes."""

    @exact
    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None
    ) -> Tensor:
        """The loss of all rows, from one (B, d) tensor a column."""
        everywhere = [gather(wide(column)) for column in embeddings]
        scores = None if labels is None else gather(labels)
        of_one_process: Any = super()  # the next of the bases
        loss: Tensor = of_one_process.compute_loss_from_embeddings(everywhere, scores)
        return loss


class GatheredCoSENTLoss(AcrossDevices, CoSENTLoss):
    """CoSENT over all processes."""


class GatheredAnglELoss(AcrossDevices, AnglELoss):
    """AnglE over all processes."""


class CachedCoSENTLoss(WholeBatch, GatheredCoSENTLoss):
    """CoSENT by GradCache."""


class CachedAnglELoss(WholeBatch, GatheredAnglELoss):
    """AnglE by GradCache."""
