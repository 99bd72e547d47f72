"""From a drawing of matplotlib to SVG text that belongs into a page.

The drawing is made in colours that stand for roles: ink, grid, the n-th series. In the text they
become `currentColor` and the page's variables, so the picture turns dark with the page.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ..errors import UsageError
from .text import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = (
    ("#1f6fb4", "#62aef0"),
    ("#c8541b", "#f08c55"),
    ("#2e8548", "#63c482"),
    ("#9a4da3", "#cf8fd8"),
    ("#a17a00", "#dcb43c"),
    ("#1a8a92", "#54c6ce"),
    ("#b83a5e", "#ef7f9f"),
    ("#66717c", "#a3afba"),
)
"""Colours of the series, on light and on dark; each has a contrast of 3:1 or more to its page."""

INK = "#010203"
GRID = "#010304"
ROLES = tuple(f"#0105{index:02x}" for index in range(len(SERIES)))
"""What the drawing uses instead of `SERIES`."""

SETTINGS: dict[Any, object] = {
    "svg.fonttype": "none",  # text stays text: it can be found, copied and read aloud
    "svg.hashsalt": "mergekit_embed",  # names of clips and markers do not change from run to run
    "svg.image_inline": True,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "font.family": ["DejaVu Sans"],  # what text is measured by; wider than what browsers show
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


def require() -> None:
    """Check that pictures can be drawn: for a command to ask before its long work.

    Raises:
        UsageError: when matplotlib is not there.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("pages with pictures need `pip install 'mergekit_embed[report]'`")


@contextmanager
def drawn_alike() -> Iterator[None]:
    """Draw with these settings, whatever the user's own matplotlibrc says.

    Raises:
        UsageError: when matplotlib is not there.
    """
    require()
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context():
        # The browser has the glyphs that our measuring font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def svg_of(drawing: Figure) -> str:
    """The drawing as one `<svg>` element, the same text for the same drawing."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(drawing)
    written = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawing.savefig(written, format="svg", transparent=True, metadata=nothing)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(written.getvalue())
    _clear(root)
    text = ElementTree.tostring(root, encoding="unicode")
    text = text.replace(INK, "currentColor").replace(GRID, "var(--line, #8a939c)")
    for index, role in enumerate(ROLES):
        text = text.replace(role, f"var(--series-{index}, {SERIES[index][0]})")
    return text.replace("'DejaVu Sans'", "system-ui, sans-serif")


def described(svg: str, alt: str) -> str:
    """The picture with its text for those who cannot see it."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(svg)
    root.set("role", "img")
    root.set("aria-label", plain(alt))
    title = ElementTree.Element(f"{{{_SVG}}}title")
    title.text = plain(alt)
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


def unique(body: str) -> str:
    """The body of a page with the ids inside its pictures made different from each other.

    Equal pictures have equal ids, and a browser would take every reference to mean the first.
    """
    count = 0

    def renamed(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>p{count}-", match[0])

    return re.sub(r"<svg .*?</svg>", renamed, body, flags=re.DOTALL)


def _clear(root: ElementTree.Element) -> None:
    """Without the style sheet, which would apply to the page, and without ids nobody refers to."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in {f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"}:
                parent.remove(child)
    values = [value for element in root.iter() for value in element.attrib.values()]
    wanted = {name for value in values for name in re.findall(r"#([\w-]+)", value)}
    for element in root.iter():
        if element.get("id", "") not in wanted:
            element.attrib.pop("id", None)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
