"""The four pictures of the reports, each as the text of one `<svg>`.

They need matplotlib, which is imported when the first is drawn (`require` asks for it before). What
is not a number is left out, as a gap. Text, axes and lines have the colour of the page around them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .drawing import GRID, INK, ROLES, drawn_alike, svg_of
from .text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 8.8
"""Inches; at 72 points, what a page has room for."""

_ROW = 0.24
_LONGEST = 44
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)))
_MARKS = "osD^vPXh"


@dataclass(frozen=True)
class Interval:
    """What a value may also be, in the units of the value."""

    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """A line: `y` over `x`, which go together; `bands` draws the room between low and high."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    bands: Sequence[Interval] | None = None


@dataclass(frozen=True)
class Point:
    """A labelled point of a scatter."""

    label: str
    x: float
    y: float


def heat_map(
    values: NDArray[np.floating[Any]] | Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    limits: tuple[float, float] | None = None,
    diverging: bool = False,
    digits: int = 2,
) -> str:
    """A cell a value; `[len(rows), len(columns)]`. Small ones say their values in the cells.

    `label` names what the colours mean; `limits` are the values of the first and the last colour
    (default: the least and the largest value; around 0, where `diverging`). Of many rows every
    second, fourth, ... is named, as there is room.
    """
    grid = np.asarray(values, dtype=np.float64)
    low, high = limits or _limits(grid, diverging)
    # Square-ish cells for few columns, a strip of fixed height for hundreds of rows.
    height = min(max(len(rows) * _ROW, 0.8), 14.0)
    with drawn_alike():
        from matplotlib.colors import LinearSegmentedColormap, Normalize

        colours = LinearSegmentedColormap.from_list("map", _DIVERGING if diverging else _RISING)
        drawing, axes = _figure(height + 1.1 + _below(columns))
        norm = Normalize(low, high)
        shown = axes.imshow(
            np.ma.masked_invalid(grid),
            cmap=colours,
            norm=norm,
            aspect="auto",
            interpolation="none",
        )
        _name(axes.xaxis, columns, most=40, along=True)
        _name(axes.yaxis, rows, most=int(height / 0.15))
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0)
        if grid.size <= 150 and len(columns) <= 12:
            _write_values(axes, grid, digits, lambda value: colours(norm(value)))
        bar = drawing.colorbar(
            shown,
            ax=axes,
            orientation="horizontal",
            location="top",
            shrink=0.4,
            aspect=30,
            pad=0.02,
        )
        bar.set_ticks(
            np.linspace(low, high, 5), labels=[f"{v:.3g}" for v in np.linspace(low, high, 5)]
        )
        bar.outline.set_visible(False)
        bar.set_label(plain(label))
        return svg_of(drawing)


def lines(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    logarithmic: bool = False,
    x_names: Sequence[str] = (),
) -> str:
    """Lines over a common axis, each with its own colour and dash; a gap where y is no number.

    `x_names` name the places 0, 1, 2, ... of the x axis, where these are things, not amounts.
    """
    columns = _legend_columns(series)
    with drawn_alike():
        drawing, axes = _figure(3.2 + 0.2 * -(-len(series) // columns) + _below(x_names))
        for index, one in enumerate(series):
            colour = ROLES[index % len(ROLES)]
            dash = _DASHES[index // len(ROLES) % len(_DASHES)]
            y = np.asarray(one.y, dtype=np.float64)
            x = np.asarray(one.x, dtype=np.float64)
            mark = "o" if len(y) <= 40 else ""
            axes.plot(
                x,
                y,
                color=colour,
                linestyle=dash,
                marker=mark,
                markersize=3,
                label=_short(plain(one.label)),
            )
            if one.bands is not None:
                low = [band.low for band in one.bands]
                high = [band.high for band in one.bands]
                axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        if logarithmic:
            axes.set_yscale("log")
        if all(float(x).is_integer() for one in series for x in one.x):
            from matplotlib.ticker import MaxNLocator

            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
        axes.set_xlabel(plain(x_label))
        axes.set_ylabel(plain(y_label))
        if x_names:
            _name(axes.xaxis, x_names, most=40, along=True)
        if len(series) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, fontsize=8.5)
        return svg_of(drawing)


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[Interval | None] | None = None,
    *,
    x_label: str,
    from_zero: bool = True,
    digits: int = 4,
) -> str:
    """Horizontal bars from zero, the first on top; or points, where differences are what counts.

    An interval is drawn as a line through the end of its bar. A value that is no number leaves its
    row empty, and says so.
    """
    height = min(max(len(labels) * (_ROW + 0.06), 0.6), 24.0)
    with drawn_alike():
        drawing, axes = _figure(height + 0.7)
        for row, value in enumerate(values):
            interval = intervals[row] if intervals else None
            if not math.isfinite(value):
                axes.annotate(
                    "no value",
                    (0, row),
                    xycoords=("axes fraction", "data"),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    color=INK,
                    alpha=0.7,
                )
                continue
            if from_zero:
                axes.barh(row, value, height=0.62, color=ROLES[0])
            else:
                axes.plot(value, row, "o", color=ROLES[0], markersize=6)
            end = value
            if interval is not None:
                axes.plot([interval.low, interval.high], [row, row], color=INK, linewidth=1.4)
                end = max(end, interval.high)
            axes.annotate(
                f"{value:.{digits}g}",
                (end, row),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                ha="left",
            )
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.margins(x=0.12)
        if from_zero:
            axes.axvline(0, color=GRID, linewidth=0.8)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(plain(x_label))
        _name(axes.yaxis, labels, most=int(height / 0.15))
        return svg_of(drawing)


def scatter(
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    *,
    front: Literal["larger", "smaller"] | None = None,
) -> str:
    """Labelled points; where many crowd, some have no label.

    `front` joins those that no other beats, where larger (or smaller) is better on both axes.
    """
    known = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    with drawn_alike():
        drawing, axes = _figure(4.4)
        leading = [] if front is None else pareto(known, front)
        axes.plot(
            [p.x for p in leading], [p.y for p in leading], color=GRID, linewidth=1.2, zorder=1
        )
        for index, point in enumerate(known):
            axes.plot(
                point.x,
                point.y,
                _MARKS[index // len(ROLES) % len(_MARKS)],
                color=ROLES[index % len(ROLES)],
                markersize=7,
            )
        axes.margins(0.12)
        axes.grid()
        axes.set_xlabel(plain(x_label))
        axes.set_ylabel(plain(y_label))
        drawing.draw_without_rendering()
        _label_points(axes, [*leading, *(point for point in known if point not in leading)])
        return svg_of(drawing)


def pareto(points: Sequence[Point], better: Literal["larger", "smaller"]) -> list[Point]:
    """The points that no other beats in one coordinate without losing in the other, by x."""
    sign = 1.0 if better == "larger" else -1.0
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (-sign * p.x, -sign * p.y)):
        if not front or sign * point.y > sign * front[-1].y:
            front.append(point)
    return sorted(front, key=lambda point: point.x)


_RISING = ("#f3e9a8", "#7fc8a4", "#3a93a6", "#2f5a8f", "#33254f")
_DIVERGING = ("#2462a8", "#8fb8dd", "#ece9e4", "#eeb08a", "#b5441a")
"""Opaque, so that a value has one colour on every page, and a gap is the page itself."""


def _figure(height: float) -> tuple[Any, Axes]:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(WIDTH, height), layout="constrained")
    return drawing, drawing.add_subplot()


def _limits(grid: NDArray[np.float64], diverging: bool) -> tuple[float, float]:
    known = grid[np.isfinite(grid)]
    if not known.size:
        return 0.0, 1.0
    if diverging:
        reach = float(np.abs(known).max()) or 1.0
        return -reach, reach
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _name(axis: Any, names: Sequence[str], *, most: int, along: bool = False) -> None:
    """Name the places 0, 1, 2, ..., or every n-th of them, so that no more than `most` are.

    Names `along` an axis are turned where they would touch.
    """
    step = max(1, math.ceil(len(names) / max(most, 1)))
    places = range(0, len(names), step)
    axis.set_ticks(list(places), labels=[_short(plain(names[place])) for place in places])
    if along and _below(names):
        for label in axis.get_ticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")


def _short(name: str) -> str:
    """A long name without its middle: the ends tell models and tensors apart."""
    return (
        name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2 - 1]}…{name[-_LONGEST // 2 :]}"
    )


def _below(names: Sequence[str]) -> float:
    """Inches that names under a picture take when they are turned; 0 where they fit as they are.

    A letter is up to 5.5 points wide; names have three fifths of the width.
    """
    longest = min(max(map(len, names), default=0), _LONGEST)
    if len(names) < 2 or 5.5 * (longest + 2) <= 0.6 * WIDTH * 72 / min(len(names), 40):
        return 0.0
    return longest * 5.5 * math.sin(math.radians(35)) / 72


def _write_values(axes: Axes, grid: NDArray[np.float64], digits: int, colour: Any) -> None:
    for (row, column), value in np.ndenumerate(grid):
        if math.isfinite(value):
            red, green, blue, _ = colour(value)
            ink = "#15181b" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#f8f9fa"
            text = f"{round(value, digits) + 0.0:.{digits}f}"  # adding 0 takes -0's sign
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)


def _legend_columns(series: Sequence[Series]) -> int:
    """How many names fit side by side, 120 letters to a line with their lines' keys."""
    longest = max(len(_short(plain(one.label))) for one in series)
    return max(1, min(len(series), 120 // (longest + 8)))


def _label_points(axes: Axes, points: Sequence[Point]) -> None:
    """Label each point, in this order, where the label lies over nothing; some may have none."""
    places = ((7, 0, "left"), (-7, 0, "right"), (0, 10, "center"), (0, -10, "center"),
              (7, 10, "left"), (7, -10, "left"), (-7, 10, "right"), (-7, -10, "right"))  # fmt: skip
    centres = [axes.transData.transform((point.x, point.y)) for point in points]
    taken: list[Any] = []
    for point in points:
        for right, up, side in places:
            text = axes.annotate(
                _short(plain(point.label)),
                (point.x, point.y),
                xytext=(right, up),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=8.5,
            )
            box = text.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            hits = any(box.overlaps(other) for other in taken)
            if inside and not hits and not any(box.contains(*centre) for centre in centres):
                taken.append(box)
                break
            text.remove()
