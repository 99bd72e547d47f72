"""What benchmarks/speed.py found, as the tables and the picture of docs/performance.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contestants import COPY, COPY_SYNCED, DIRECTLY, FLOOR, OURS, PEERS, read_floor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEGIN, END = "<!-- speed: tables -->", "<!-- speed: end of tables -->"
PAGE, PICTURE = "performance.md", "performance.svg"
TITLES = {
    "qwen3": "The shape of Qwen3-Embedding-0.6B",
    "large": "The widths of Qwen3-1.7B, 34 layers",
    "tiny": "Tiny models",
}
COLOURS = {OURS: "#2f81f7", PEERS[0]: "#d9822b", PEERS[1]: "#9a6dd7"}
INK = "#797979"
"""Stands out equally (4.3 to 1) from white and from GitHub's dark background, #0d1117."""

NONE = "–"

Medians = Mapping[tuple[str, str], Mapping[str, float]]


def write_docs(report: Mapping[str, Any], folder: Path) -> None:
    """Renew the tables between the marks of folder/performance.md, and folder/performance.svg."""
    page = folder / PAGE
    text = page.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    sections = [section(shape, report[shape]) for shape in TITLES if shape in report]
    page.write_text(f"{text[:start]}\n" + "\n\n".join(sections) + f"\n{text[end:]}")
    draw(next(report[shape] for shape in TITLES if shape in report), folder / PICTURE)


# --- tables -------------------------------------------------------------------------------


def section(shape: str, found: Mapping[str, Any]) -> str:
    """The heading, the circumstances and the tables of one shape."""
    about = found["about"]
    warm, cold = medians(found["warm"]), medians(found.get("cold", []))
    failed = [
        f"{one['tool']} failed at {one['what']}: {one['failed']}"
        for one in [*found["warm"], *found.get("cold", [])]
        if "failed" in one
    ]
    parts = [
        f"### {TITLES[shape]}: models of {about['model_bytes'] / 1e9:.2f} GB in {about['files']} "
        "files",
        circumstances(about),
        "Seconds of the whole process; in brackets, a peer's as a multiple of ours.",
        time_table(warm),
        "Peak of memory that no file backs, in MB; in brackets, of all resident memory, mapped "
        "files with it.",
        memory_table(warm),
        "Ours, in detail: seconds, and MB for `read` and `from disk`.",
        detail_table(warm, cold),
        *("\n".join(failed) for _ in failed[:1]),
    ]
    return "\n\n".join(parts)


def circumstances(about: Mapping[str, Any]) -> str:
    """What the figures were taken on, and how often."""
    machine = about["machine"]
    versions: dict[str, list[str]] = {}
    for installed in about["versions"].values():
        for name, version in installed.items():
            if version not in versions.setdefault(name, []):
                versions[name].append(version)
    named = ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['file_system']}, Linux {machine['kernel']}, Python {machine['python']}; "
        f"{named}. Load average before it began: {machine['load']}. "
        f"Medians; runs of ours and of the floors: {about['runs']}, of each peer: "
        f"{about['peer_runs']}."
    )


def medians(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, float]]:
    """{(tool, what): medians} of what did not fail."""
    return {(one["tool"], one["what"]): one["median"] for one in entries if "median" in one}


def methods(found: Medians) -> list[str]:
    """The methods that ours ran, in the order of the results."""
    return [what for tool, what in found if tool == OURS]


def tools_of(found: Medians) -> list[str]:
    """The tools that ran, ours first."""
    return [tool for tool in COLOURS if any(tool == one for one, _ in found)]


def floor(found: Medians, method: str) -> float:
    """Seconds to read what the method reads and to copy one member, one after the other."""
    return found[FLOOR, read_floor(method)]["wall_s"] + found[FLOOR, COPY]["wall_s"]


def time_table(found: Medians) -> str:
    """Wall seconds of every tool beside the floor."""
    tools = tools_of(found)
    rows = []
    for method in methods(found):
        mine = found[OURS, method]["wall_s"]
        cells = [_times(found.get((tool, method)), mine) for tool in tools[1:]]
        rows.append([f"`{method}`", f"{mine:.2f}", *cells, f"{floor(found, method):.2f}"])
    return markdown(["method", *tools, "floor: read, copy"], rows)


def _times(found: Mapping[str, float] | None, mine: float) -> str:
    return NONE if found is None else f"{found['wall_s']:.1f} ({found['wall_s'] / mine:.1f})"


def memory_table(found: Medians) -> str:
    """Peak memory of every tool."""
    tools = tools_of(found)
    rows = []
    for method in methods(found):
        taken = [found.get((tool, method)) for tool in tools]
        cells = [
            NONE if one is None else f"{one['peak_anonymous_mb']:.0f} ({one['peak_mb']:.0f})"
            for one in taken
        ]
        rows.append([f"`{method}`", *cells])
    return markdown(["method", *tools], rows)


def detail_table(warm: Medians, cold: Medians) -> str:
    """Where our time goes, warm and cold."""
    heads = ["method", "whole", "start, plan", "run", "processor", "read"]
    heads += ["floor: read", "floor: copy", "floor: copy, synced"]
    if cold:
        heads += ["cold: whole", "cold: from disk", "cold: `cat`", "cold: O_DIRECT"]
    rows = []
    for method in methods(warm):
        mine = warm[OURS, method]
        read = read_floor(method)
        cells = [
            f"`{method}`",
            f"{mine['wall_s']:.2f}",
            f"{mine['wall_s'] - mine['run_s']:.2f}",
            f"{mine['run_s']:.2f}",
            f"{mine['cpu_s']:.2f}",
            f"{mine['read_mb']:.0f}",
            *(_wall(warm, FLOOR, name) for name in (read, COPY, COPY_SYNCED)),
        ]
        if cold:
            taken = cold[OURS, method]
            cells += [f"{taken['wall_s']:.2f}", f"{taken['disk_read_mb']:.0f}"]
            cells += [_wall(cold, FLOOR, name) for name in (read, read + DIRECTLY)]
        rows.append(cells)
    return markdown(heads, rows)


def _wall(found: Medians, tool: str, what: str) -> str:
    return f"{found[tool, what]['wall_s']:.2f}" if (tool, what) in found else NONE


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is of words, the others of numbers."""
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- the picture --------------------------------------------------------------------------


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Seconds and memory of every method and tool, as bars on a logarithmic scale."""
    import matplotlib

    matplotlib.use("svg")
    # The same figures give the same file; letters stay letters.
    matplotlib.rcParams.update({"svg.hashsalt": "speed", "svg.fonttype": "none", "font.size": 11})
    from matplotlib import pyplot

    warm = medians(found["warm"])
    names = methods(warm)
    figure, (left, right) = pyplot.subplots(
        1, 2, sharey=True, figsize=(10, 1.5 + 0.55 * len(names))
    )
    _bars(left, warm, lambda one: one["wall_s"], "{:.1f}")
    _bars(right, warm, lambda one: one["peak_anonymous_mb"], "{:.0f}")
    for place, method in enumerate(names):
        label = "floor: read, copy" if place == 0 else None
        seconds = floor(warm, method)
        left.plot([seconds] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=2, label=label)
    for axes in (left, right):  # whole decades, so that the bars of two pictures compare
        axes.set_xlim(left=10.0 ** math.floor(math.log10(axes.dataLim.minposx)))
        axes.minorticks_off()
    left.set_title("seconds, whole process", color=INK)
    right.set_title("MB that no file backs, peak", color=INK)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", ncols=len(labels), frameon=False, labelcolor=INK
    )
    figure.tight_layout(rect=(0, 0.4 / figure.get_figheight(), 1, 1))
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def _bars(
    axes: Axes, found: Medians, value: Callable[[Mapping[str, float]], float], shown: str
) -> None:
    """One bar for each tool of a method, with its value."""
    tools = tools_of(found)
    height = 0.8 / len(tools)
    for place, method in enumerate(methods(found)):
        for number, tool in enumerate(tools):
            if (tool, method) not in found:
                continue
            width = value(found[tool, method])
            y = place + (number - (len(tools) - 1) / 2) * height
            label = tool if tool not in axes.get_legend_handles_labels()[1] else None
            axes.barh(y, width, 0.9 * height, color=COLOURS[tool], label=label)
            axes.annotate(
                shown.format(width),
                (width, y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.12)
    axes.tick_params(colors=INK, which="both")
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
