"""Pages that need nothing but themselves: HTML with pictures inside, for any browser, offline.

This layer knows numbers and words, not models: what a page tells belongs to the package whose page
it is.
"""

from .charts import Interval, Point, Series, bars, heat_map, lines, scatter
from .drawing import require
from .page import Section, bullets, code, figure, page, paragraph, table, write

__all__ = [
    "Interval",
    "Point",
    "Section",
    "Series",
    "bars",
    "bullets",
    "code",
    "figure",
    "heat_map",
    "lines",
    "page",
    "paragraph",
    "require",
    "scatter",
    "table",
    "write",
]
