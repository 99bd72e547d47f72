"""A merge that takes its time, so that something can happen to it; also as a program of its own.

python slow_merge.py RECIPE OUTPUT ADDRESS
"""

from __future__ import annotations

import sys
import time

import mergekit_embed
from mergekit_embed.methods import Gram
from mergekit_embed.methods.gram import Coefficients
from mergekit_embed.methods.registry import Weights, mixture

SECONDS = 0.2


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
    recipe, output, address = sys.argv[1:]
    mergekit_embed.merge(recipe, output, executor="ray", ray_address=address)
