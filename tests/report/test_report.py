"""Pages and their pictures: escaped, whole, the same each time, and readable in a browser."""

from __future__ import annotations

import importlib.util
import re
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from mergekit_embed import report
from mergekit_embed.errors import OutputError, UsageError

from .pages import HOSTILE, Parsed, colourful, photographed, pictures, whole_page

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return pictures()


@pytest.fixture(scope="module")
def written() -> str:
    return whole_page()


def test_names_from_elsewhere_stay_text(written: str) -> None:
    parsed = Parsed(written)
    assert "script" not in {tag for tag, _ in parsed.elements}
    assert "<script>" in parsed.text["h1"]
    assert "\x1b" not in written and "\u202e" not in written
    assert r"\x1b[31m" in written


def test_a_page_reaches_for_nothing(written: str) -> None:
    parsed = Parsed(written)
    for _, attributes in parsed.elements:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "@import" not in written
    assert not re.search(r"url\((?!#)", written)


def test_a_page_says_what_readers_and_phones_need(written: str) -> None:
    parsed = Parsed(written)
    assert written.startswith("<!DOCTYPE html>")
    assert parsed.all_of("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in parsed.all_of("meta")
    assert any(meta.get("name") == "viewport" for meta in parsed.all_of("meta"))
    assert all(table_head.get("scope") for table_head in parsed.all_of("th"))


def test_ids_are_unique_and_every_link_has_an_end(written: str) -> None:
    ids = re.findall(r' id="([^"]*)"', written)
    assert len(ids) == len(set(ids))
    ends = re.findall(r'(?:href="#|url\(#)([^")]*)', written)
    assert ends and set(ends) <= set(ids)


def test_pictures_have_words_for_who_cannot_see_them(written: str) -> None:
    pictures_of_page = Parsed(written).all_of("svg")
    assert len(pictures_of_page) == 5
    for attributes in pictures_of_page:
        assert attributes["role"] == "img"
        assert attributes["aria-label"]


def test_pictures_are_xml_with_text_as_text(drawn: dict[str, str]) -> None:
    shown = HOSTILE.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")
    for kind, svg in drawn.items():
        texts = [
            "".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")
        ]
        # Long names lose their middle on an axis; none is taken for a formula.
        assert any(text[:15] == shown[:15] and text[-8:] == shown[-8:] for text in texts), kind


def test_pictures_take_the_colours_of_the_page(drawn: dict[str, str]) -> None:
    for kind, svg in drawn.items():
        assert "currentColor" in svg, kind
        assert "#01" not in svg, f"{kind}: a colour that stands for a role was left"
        assert "<style" not in svg and "<metadata" not in svg


def test_the_same_numbers_give_the_same_text(written: str) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": None}):
        assert whole_page() == written


def strokes(y: list[float]) -> int:
    """How often the pen of the first series is put down."""
    svg = report.lines([report.Series("a", range(len(y)), y)], "x", "y")
    paths = [path.attrib for path in ElementTree.fromstring(svg).iter(f"{SVG}path")]
    line = max(
        path["d"] for path in paths if "fill: none; stroke: var(--series-0" in path.get("style", "")
    )
    return line.count("M")


def test_gaps_are_gaps() -> None:
    assert strokes([1.0, 2.0, 4.0, 3.0, 5.0]) == 1
    assert strokes([1.0, 2.0, float("nan"), 3.0, 5.0]) == 2
    assert "no value" in report.bars(["a", "b"], [1.0, float("nan")], x_label="score")
    assert "nan" not in report.heat_map([[float("nan")]], ["a"], ["b"], label="cosine").lower()


def test_hundreds_of_rows_stay_readable() -> None:
    rows = [f"layers.{index}.weight" for index in range(300)]
    svg = report.heat_map(np.reshape(colourful(1200), (300, 4)), rows, list("abcd"), label="norm")
    root = ElementTree.fromstring(svg)
    assert float(root.attrib["height"].removesuffix("pt")) <= 1200
    named = [text for text in root.iter(f"{SVG}text") if (text.text or "").startswith("layers.")]
    assert 50 <= len(named) <= 150
    assert len(svg) < 100_000


def test_the_front_holds_what_no_other_beats() -> None:
    from mergekit_embed.report.charts import pareto

    points = [report.Point("", x, y) for x, y in ((0, 3), (1, 2), (1, 1), (2, 2), (3, 0))]
    assert [(p.x, p.y) for p in pareto(points, "larger")] == [(0, 3), (2, 2), (3, 0)]
    assert [(p.x, p.y) for p in pareto(points, "smaller")] == [(0, 3), (1, 1), (3, 0)]


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def missing(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "matplotlib" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    with pytest.raises(UsageError, match=r"pip install 'mergekit_embed\[report\]'"):
        report.require()
    with pytest.raises(UsageError, match=r"mergekit_embed\[report\]"):
        report.bars(["a"], [1.0], x_label="score")


def test_a_page_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the page"):
        report.write(tmp_path / "file" / "page.html", "x")


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_the_page(written: str, tmp_path: Path, dark: bool) -> None:
    report.write(tmp_path / "page.html", written)
    assert photographed(tmp_path / "page.html", tmp_path / "page.png", dark=dark) == ""
    pixels: Any = imread(tmp_path / "page.png")[..., :3]
    paper = pixels[-1, 0]
    assert (paper.mean() < 0.3) == dark
    # Words and pictures: more than a few of the pixels differ much from the paper.
    assert (np.abs(pixels - paper).max(axis=-1) > 0.3).mean() > 0.02


def test_a_crowd_of_points_is_labelled_from_the_front() -> None:
    crowd = [report.Point(f"behind {i}", 1 + i / 1e4, 1 + i / 1e4) for i in range(30)]
    front = report.Point("in front", 1.5, 1.5)
    drawn = report.scatter([*crowd, front], "x", "y", front="larger")
    assert "in front" in drawn
    labelled = [point.label for point in crowd if f">{point.label}<" in drawn]
    assert len(labelled) < 8  # one for each place beside the crowd, at most
    assert labelled
