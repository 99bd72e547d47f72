"""A merge that takes its time, so that something can happen to it; also as a program of its own.

python slow_merge.py RECIPE [options of boom-merge]
"""

from __future__ import annotations

import time

from mergekit_embed.cli.console import run
from mergekit_embed.cli.merge import merge
from mergekit_embed.methods import Gram
from mergekit_embed.methods.gram import Coefficients
from mergekit_embed.methods.registry import Weights, mixture

SECONDS = 0.15


def slow(gram: Gram, weight: Weights) -> Coefficients:
    """The weighted mean of the members, scaled to their mean length, after a nap."""
    time.sleep(SECONDS)
    mean = weight / weight.sum()
    return mean * (gram.lengths() @ mean) / gram.length_of(mean)


def register() -> None:
    """Let recipes say `merge_method: slow`."""
    mixture("slow", base="files")(slow)


if __name__ == "__main__":
    register()
    run(merge)
