"""One HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..disk import write_whole
from ..errors import OutputError
from .drawing import described, unique
from .style import STYLE
from .text import escaped

Cell = str | float | int | None


@dataclass(frozen=True)
class Section:
    """A part of a page: a title, which is plain text, and a body of HTML made by this module."""

    title: str
    body: str


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole page. Titles are plain text; bodies are what the functions below return.

    Deterministic: the same arguments give the same text, so it names no date and no machine.
    """
    anchors = _anchors(sections)
    contents = "".join(
        f'<li><a href="#{anchor}">{escaped(section.title)}</a></li>\n'
        for section, anchor in zip(sections, anchors, strict=True)
    )
    body = "".join(
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escaped(section.title)}</h2>\n'
        f"{section.body}</section>\n"
        for section, anchor in zip(sections, anchors, strict=True)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{escaped(title)}</h1>\n<p class="subtitle">{escaped(subtitle)}</p>\n'
        f'</header>\n<nav aria-label="Contents">\n<ol>\n{contents}</ol>\n</nav>\n'
        f"<main>\n{unique(body)}</main>\n</body>\n</html>\n"
    )


def paragraph(text: str, *, warning: bool = False) -> str:
    """Plain text as a paragraph; as one that stands out, where it is a warning."""
    kind = ' class="warning" role="note"' if warning else ""
    return f"<p{kind}>{escaped(text)}</p>\n"


def bullets(texts: Sequence[str], *, warning: bool = False) -> str:
    """Plain texts as a list; nothing of none."""
    items = "".join(f"<li>{escaped(text)}</li>\n" for text in texts)
    kind = ' class="warning" role="note"' if warning else ""
    return f"<ul{kind}>\n{items}</ul>\n" if items else ""


def code(text: str) -> str:
    """Text as it is, its lines kept: a recipe, a command."""
    lines = "\n".join(escaped(line) for line in text.rstrip("\n").split("\n"))
    return f'<pre tabindex="0"><code>{lines}</code></pre>\n'


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    caption: str = "",
    digits: int = 4,
    best: Sequence[int] = (),
) -> str:
    """A table that scrolls sideways where the screen is narrow; its first column names the rows.

    A float is shown with `digits` significant digits; None and what is no number as a dash. In the
    columns `best` (their numbers, the first is 0) the largest number is emphasised.
    """
    tops = {
        column: max(
            (float(row[column] or 0) for row in rows if _is_number(row[column])), default=math.nan
        )
        for column in best
    }
    numeric = [
        any(_is_number(row[column]) for row in rows)
        and not any(isinstance(row[column], str) for row in rows)
        for column in range(len(header))
    ]
    head = "".join(
        f'<th scope="col"{_side(right)}>{escaped(name)}</th>'
        for name, right in zip(header, numeric, strict=True)
    )
    lines = []
    for row in rows:
        cells = []
        for column, (cell, right) in enumerate(zip(row, numeric, strict=True)):
            text = escaped(_shown(cell, digits))
            if column in tops and _is_number(cell) and cell == tops[column]:
                text = f"<strong>{text}</strong>"
            tag, scope = ("th", ' scope="row"') if column == 0 else ("td", "")
            cells.append(f"<{tag}{scope}{_side(right)}>{text}</{tag}>")
        lines.append(f"<tr>{''.join(cells)}</tr>\n")
    told = f"<caption>{escaped(caption)}</caption>\n" if caption else ""
    return (
        f'<div class="scroll" tabindex="0">\n<table>\n{told}<thead>\n<tr>{head}</tr>\n</thead>\n'
        f"<tbody>\n{''.join(lines)}</tbody>\n</table>\n</div>\n"
    )


def figure(svg: str, alt: str, caption: str) -> str:
    """A picture from `charts`; `alt` tells who cannot see it what it shows."""
    return (
        f'<figure>\n<div class="scroll" tabindex="0">\n{described(svg, alt)}\n</div>\n'
        f"<figcaption>{escaped(caption)}</figcaption>\n</figure>\n"
    )


def write(path: Path, text: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        OutputError: when it cannot be written.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        raise OutputError(f"{path}: cannot write the page ({error.strerror})") from error


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float) and math.isfinite(cell)


def _shown(cell: Cell, digits: int) -> str:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "–"
    return f"{cell:.{digits}g}" if isinstance(cell, float) else str(cell)


def _side(right: bool) -> str:
    return ' class="number"' if right else ""


def _anchors(sections: Sequence[Section]) -> list[str]:
    """Names for links, of the titles' letters, each once."""
    names: list[str] = []
    for section in sections:
        stem = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "part"
        name, count = stem, 1
        while name in names:
            count += 1
            name = f"{stem}-{count}"
        names.append(name)
    return names
