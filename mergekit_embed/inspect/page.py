"""The page of an inspection, and the sections that the page of a merge has in common with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..report import (
    Section,
    Series,
    bars,
    bullets,
    figure,
    heat_map,
    lines,
    page,
    paragraph,
    table,
    write,
)
from .facts import Facts, Summary
from .remarks import remarks
from .text import mean_pair, numbered

MOST_ROWS = 400
"""Tensors that a picture has a row for; of more, the table of modules tells enough."""


def write_page(path: Path, facts: Facts) -> None:
    """Write the page of an inspection.

    Raises:
        OutputError: when it cannot be written.
        UsageError: when matplotlib is not there.
    """
    named = facts.recipe[0] if facts.recipe else f"{len(facts.labels)} models"
    begin = f"task vectors from {facts.base}" if facts.base else "weights of the members"
    write(path, page(f"Inspection of {named}", begin, sections(facts)))


def sections(facts: Facts) -> list[Section]:
    """What was found, part by part."""
    several = len(facts.labels) > 1
    return [
        Section("Members", _members(facts)),
        *([Section("Angles", _angles(facts))] if several else []),
        *([Section("Conflicts", _conflicts(facts))] if several else []),
        Section("Layers", _layers(facts)),
        *([Section("Coefficients", _coefficients(facts))] if _has_coefficients(facts) else []),
        Section("Modules", _parts(facts, facts.by("module"))),
        Section("Tensors", _tensors(facts)),
    ]


def _what(facts: Facts) -> str:
    return "task vector" if facts.base else "vector of weights"


def _members(facts: Facts) -> str:
    model = facts.model
    header = ["member", "length"]
    columns: list[Sequence[str | float]] = [facts.short, model.lengths.tolist()]
    if model.relative is not None:
        header += ["length / base", "share of weights moved"]
        columns += [model.relative.tolist(), model.moved.tolist()]
    if model.rank is not None:
        header.append("effective rank / full")
        columns.append(model.rank.tolist())
    if model.coefficients is not None and model.shares is not None:
        header += ["mean coefficient", "share of the merge"]
        columns += [model.coefficients.tolist(), model.shares.tolist()]
    rows = [list(row) for row in zip(*columns, strict=True)]
    said = remarks(facts)
    alt = f"Lengths of the {_what(facts)}s of {len(facts.labels)} members"
    drawn = bars(facts.short, model.lengths.tolist(), x_label=f"length of the {_what(facts)}")
    return (
        (bullets(said, warning=True) if said else paragraph("Nothing stands out."))
        + bullets(facts.notes)
        + table(header, rows)
        + figure(drawn, alt, "Euclidean length over all merged weights.")
    )


def _angles(facts: Facts) -> str:
    model, labels = facts.model, facts.short
    limits = (-1.0, 1.0)
    drawn = heat_map(
        model.cosines, labels, labels, label="cosine", limits=limits, diverging=True, digits=3
    )
    layers = facts.by("layer")
    pairs = [(i, j) for i in range(len(labels)) for j in range(i + 1, len(labels))]
    by_layer = np.array([[layer.cosines[i, j] for i, j in pairs] for layer in layers])
    names = [f"{i + 1} and {j + 1}" for i, j in pairs]
    deep = heat_map(
        by_layer,
        [layer.name for layer in layers],
        names,
        label="cosine",
        limits=limits,
        diverging=True,
    )
    told = "; ".join(
        f"{n}: {label}" for n, label in zip(numbered(facts), facts.labels, strict=True)
    )
    return figure(
        drawn,
        f"Cosines of the {_what(facts)}s of {len(labels)} members",
        f"Cosine of each pair of {_what(facts)}s over the whole model.",
    ) + figure(deep, "Cosines of each pair, layer by layer", f"The same by layer. {told}.")


def _conflicts(facts: Facts) -> str:
    model, labels = facts.model, facts.short
    signs = heat_map(
        _apart(model.conflicts), labels, labels, label="share of opposite signs", limits=(0.0, 1.0)
    )
    common = heat_map(
        _apart(model.overlap), labels, labels, label="share in common", limits=(0.0, 1.0)
    )
    drawn = _over_layers(
        facts,
        [
            ("split signs", lambda part: part.split),
            ("mean overlap", lambda p: mean_pair(p.overlap)),
        ],
    )
    return (
        figure(
            signs,
            "Sign conflicts of each pair of members",
            "Of the weights that both members moved, the share that they moved in opposite "
            "directions. Half is what chance gives.",
        )
        + figure(
            common,
            "Overlap of the largest weights of each pair of members",
            "Of the 1 % of weights that each member moved furthest, the share that a pair has in "
            "common. A hundredth is what chance gives.",
        )
        + figure(
            drawn,
            "Split signs and overlap by layer",
            "By layer: weights moved by several members and not in one direction, and the mean "
            f"overlap. Counted on up to {facts.sample} weights of each tensor.",
        )
    )


def _over_layers(facts: Facts, values: Sequence[tuple[str, Callable[[Summary], float]]]) -> str:
    layers = facts.by("layer")
    series = [
        Series(name, range(len(layers)), [value(layer) for layer in layers])
        for name, value in values
    ]
    return lines(series, "", "share", x_names=[layer.name for layer in layers])


def _layers(facts: Facts) -> str:
    layers = facts.by("layer")
    heights = [one.lengths if one.relative is None else one.relative for one in layers]
    series = [
        Series(label, range(len(layers)), [height[number] for height in heights])
        for number, label in enumerate(facts.short)
    ]
    relative = facts.base is not None
    label = "length / length of the base" if relative else "length"
    drawn = lines(series, "", label, x_names=[layer.name for layer in layers])
    told = f"Length of each member's {_what(facts)} by layer" + (
        ", as a share of the base's." if relative else "."
    )
    return figure(drawn, told, told) + _parts(facts, layers)


def _has_coefficients(facts: Facts) -> bool:
    return facts.model.coefficients is not None


def _coefficients(facts: Facts) -> str:
    layers = [layer for layer in facts.by("layer") if layer.coefficients is not None]
    values = np.array([layer.coefficients for layer in layers])
    method = facts.recipe[1] if facts.recipe else ""
    drawn = heat_map(values, [layer.name for layer in layers], facts.short, label="coefficient")
    return figure(
        drawn,
        f"Coefficients of {method} by layer",
        f"What {method} makes of each member: the mean of the layer's tensors, weighted by their "
        "numbers of weights.",
    )


def _parts(facts: Facts, parts: list[Summary]) -> str:
    header = ["part", "weights", *(f"length {name}" for name in numbered(facts))]
    several = len(facts.labels) > 1
    header += ["mean cosine", "split signs"] if several else []
    rows = [
        [
            part.name,
            part.elements,
            *part.lengths.tolist(),
            *([mean_pair(part.cosines), part.split] if several else []),
        ]
        for part in parts
    ]
    return table(header, rows)


def _tensors(facts: Facts) -> str:
    found = facts.by("tensor")[:MOST_ROWS]
    relative = np.array([one.lengths if one.relative is None else one.relative for one in found])
    with np.errstate(divide="ignore"):
        values = np.where(relative > 0, np.log10(relative), np.nan)
    label = "log10 of length / base" if facts.base else "log10 of length"
    drawn = heat_map(values, [one.name for one in found], facts.short, label=label, digits=1)
    return figure(
        drawn,
        f"Lengths of {len(found)} tensors in each member",
        "Tensor by tensor. A gap is a tensor that the member did not move.",
    )


def _apart(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pairs without those of a member with itself."""
    found = pairs.copy()
    np.fill_diagonal(found, np.nan)
    return found
