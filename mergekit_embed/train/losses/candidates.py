"""What an anchor is told apart from: masks over one matrix of cosines.

Shapes: B anchors, N rows whose texts are candidates (all rows of the batch, over all processes),
and of each row 1 + K texts: column 0 is its positive, the others its hard negatives. All masks are
bool and broadcast to (B, 1 + K, N). The positive always counts; these say which negatives do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Negatives = Literal["batch", "own", "hard", "class"]
"""batch: every text of the batch but the anchor's positive (van den Oord et al. 2018). own: the
row's hard negatives alone (BOOM for classification and clustering; our reading of Nemotron's).
hard: the hard negatives of all rows, but nobody else's positive. class: the row's hard negatives,
and the positives of rows of other classes."""

NEGATIVES: tuple[Negatives, ...] = get_args(Negatives)


@dataclass(frozen=True)
class Places:
    """Where the texts of an anchor's own row are among the candidates.

    Attributes:
        own: the candidate's row is the anchor's: (B, 1, N).
        hard: the column is one of hard negatives: (1, 1 + K, 1).
    """

    own: Tensor
    hard: Tensor

    @classmethod
    def of(cls, rows: Tensor, columns: int, total: int) -> Places:
        """Places of the anchors with these row numbers, int64 (B,), among `total` rows."""
        everyone = torch.arange(total, device=rows.device)
        own = (rows[:, None] == everyone)[:, None, :]
        hard = (torch.arange(columns, device=rows.device) > 0)[None, :, None]
        return cls(own, hard)

    @property
    def positive(self) -> Tensor:
        """The anchor's positive: (B, 1 + K, N)."""
        return self.own & ~self.hard

    @property
    def own_negative(self) -> Tensor:
        """The hard negatives of the anchor's row: (B, 1 + K, N)."""
        return self.own & self.hard


def counted(negatives: Negatives, places: Places, same_class: Tensor | None) -> Tensor:
    """The candidates that count as negatives: (B, 1 + K, N).

    Args:
        negatives: the rule.
        places: of the anchors.
        same_class: whether row n is of the anchor's class, (B, N); only "class" needs it. The
            classes of other rows' hard negatives are not known, so they do not count there.
    """
    if negatives == "batch":
        return ~places.positive
    if negatives == "own":
        return places.own_negative
    if negatives == "hard":
        return places.hard.expand_as(places.positive)
    assert same_class is not None, "negatives: class needs the rows' classes"
    return places.own_negative | (~places.hard & ~same_class[:, None, :])


def beyond(cosine: Tensor, positive: Tensor, margin: float) -> Tensor:
    """Candidates so much nearer than the positive that they are taken for unlabelled positives.

    s(q, d) > s(q, d+) + margin. Source: Qwen3-Embedding (arXiv 2506.05176), with a margin of 0.1;
    as there, the row's own hard negatives are dropped too.

    Args:
        cosine: of anchors and candidates, (B, 1 + K, N).
        positive: of anchors and their positives, (B,).
        margin: how much nearer.
    """
    return cosine > positive[:, None, None] + margin
