"""Which rows the kinds of data sets take, and what of a row tells it from others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xxhash

from ..rows import Plain, Ranked, Row, Scored, row_of, text_at
from .specs import OWN_NEGATIVES, Kind

TAKES: dict[Kind, str] = {
    "retrieval": "query, pos, neg or anchor, positive, negative",
    "pair": "sentence1, sentence2 or query, pos, neg or anchor, positive, negative",
    "classification": "text, label or query, pos, neg or anchor, positive, negative",
    "clustering": "text, label or query, pos, neg or anchor, positive, negative",
    "sts": "sentence1, sentence2, score",
}
"""The keys of rows of each kind."""


def row_for(kind: Kind, content: Mapping[str, Any]) -> Row:
    """The row that these keys are in a data set of this kind.

    Raises:
        ValueError: telling what is wrong with it.
    """
    if kind == "pair" and "sentence1" in content and content.get("score") is None:
        return Ranked(text_at(content, "sentence1"), (text_at(content, "sentence2"),), ())
    row = row_of(content)
    if isinstance(row, Scored) != (kind == "sts"):
        raise ValueError(f"is no row of kind {kind}, which has {TAKES[kind]}")
    if isinstance(row, Plain):
        if kind not in OWN_NEGATIVES:
            raise ValueError(f"is no row of kind {kind}, which has {TAKES[kind]}")
        if row.label is None:
            raise ValueError("`label` must be the name or the number of a class")
    return row


def identity_of(row: Row) -> int:
    """64 bits that tell a row from others: of its texts, its label, its score.

    Hard negatives have no part in it, so that mining them changes no draw.
    """
    if isinstance(row, Ranked):
        parts = ["ranked", row.query, *row.positives]
    elif isinstance(row, Scored):
        parts = ["scored", row.left, row.right, repr(row.score)]
    else:
        parts = ["labelled", row.text, str(row.label)]
    return xxhash.xxh3_64_intdigest("\0".join(parts).encode("utf-8", "surrogatepass"))
