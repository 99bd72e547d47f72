"""A page with every kind of picture and hostile names, and what a browser makes of a page."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mergekit_embed import report

HOSTILE = "<script>alert(1)</script> \"quoted\" & 'x' $a$ $b$ 模型 \x1b[31m \u202e"


def pictures() -> dict[str, str]:
    """One of each, with gaps and hostile names."""
    names = [HOSTILE, "b", "c"]
    cosines = [[1, 0.2, math.nan], [0.2, 1, -0.4], [math.nan, -0.4, 1]]
    y = [1.0, math.nan, 3.0]
    bands = [report.Interval(0.5, 1.5), report.Interval(math.nan, math.nan), report.Interval(2, 4)]
    return {
        "heat_map": report.heat_map(cosines, names, names, label="cosine", diverging=True),
        "lines": report.lines(
            [report.Series(HOSTILE, range(3), y, bands), report.Series("b", range(3), [3, 2, 1])],
            "layer",
            "norm",
            x_names=names,
        ),
        "bars": report.bars(names, y, [bands[0], None, None], x_label="score"),
        "scatter": report.scatter(
            [report.Point(HOSTILE, 1, 2), report.Point("b", 2, 1), report.Point("c", math.nan, 0)],
            "in-domain",
            "out-of-domain",
            front="larger",
        ),
    }


def whole_page() -> str:
    """All of what a page can hold."""
    drawn = "".join(
        report.figure(svg, f"{kind} of {HOSTILE}", kind) for kind, svg in pictures().items()
    )
    twice = report.figure(pictures()["lines"], "the same again", HOSTILE)
    rows = [[HOSTILE, 1.25, 3], ["b", math.nan, None]]
    words = (
        report.paragraph(HOSTILE) + report.bullets([HOSTILE], warning=True) + report.code(HOSTILE)
    )
    return report.page(
        HOSTILE,
        HOSTILE,
        [
            report.Section(HOSTILE, words),
            report.Section("Pictures", drawn + twice),
            report.Section("Pictures", report.table(["name", HOSTILE, "n"], rows, best=[1])),
        ],
    )


def colourful(count: int) -> list[float]:
    """Numbers that are no pattern."""
    return list(np.random.default_rng(count).random(count))


class Parsed(HTMLParser):
    """The elements of a page; a tag that is closed and was not open is an error."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes something else"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data

    def all_of(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of this kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def browser() -> str:
    """Chromium; without it the test is skipped, or fails where CI runs it."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        assert not os.environ.get("CI"), "CI has no browser: apt-get install chromium"
        pytest.skip("needs a browser: apt-get install chromium")
    return found


def photographed(page: Path, picture: Path, *, dark: bool, width: int = 1000) -> str:
    """Make a picture of the page; what the browser complained of.

    Chromium logs messages of a page's console as lines with `CONSOLE`.
    """
    ran = subprocess.run(
        [
            browser(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            "--v=0",
            f"--user-data-dir={picture.parent / 'browser'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--window-size={width},3000",
            f"--screenshot={picture}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert picture.exists(), ran.stderr
    return "\n".join(line for line in ran.stderr.splitlines() if "CONSOLE" in line)
