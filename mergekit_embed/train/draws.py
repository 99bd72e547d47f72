"""Random choices that depend on what is chosen, and on nothing else.

An element with the identity i (unsigned, 64 bits) draws `SplitMix64(key + (i + 1) * gamma)` under a
key, and a random order is that of the draws. The key is the 64-bit BLAKE2b digest of the JSON list
of what the choice may depend on: its purpose, the seed, a data set, a member, an epoch. All of it
is arithmetic on integers: the same on every machine and with every version of every library.

Source of the mixing function: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"; see `kernels.draw`, which elements of tensors draw from.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from ..kernels.draw import GAMMA, LAST_SHIFT, MIX

Identities = NDArray[np.uint64]


def key_of(*parts: str | int) -> int:
    """64 bits from all that a choice may depend on."""
    text = json.dumps(parts, ensure_ascii=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def draws(key: int, identities: Identities) -> NDArray[np.uint64]:
    """What each element draws: uint64, of the shape of the identities."""
    z = np.uint64(key) + (identities + np.uint64(1)) * np.uint64(GAMMA)
    for shift, factor in MIX:
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(LAST_SHIFT))


def shuffled(key: int, identities: Identities) -> NDArray[np.int64]:
    """The places of the elements (N,) in a random order; equal draws stay as they are."""
    return np.argsort(draws(key, identities), kind="stable").astype(np.int64)


def uniforms(key: int, count: int) -> list[float]:
    """Numbers in (0, 1], in steps of 2^-53."""
    drawn = draws(key, np.arange(count, dtype=np.uint64))
    return [(int(one >> np.uint64(11)) + 1) / 2**53 for one in drawn]


def distinct(identities: Identities) -> Identities:
    """The identities (N,), with another one for the second, third, ... element that has the same.

    The first of equal elements keeps its identity, so what is added after an element or taken away
    from after it does not change it.
    """
    order = np.argsort(identities, kind="stable")
    ranked = identities[order]
    first = np.ones(len(ranked), dtype=bool)
    first[1:] = ranked[1:] != ranked[:-1]
    starts = np.maximum.accumulate(np.where(first, np.arange(len(ranked)), 0))
    repeats = (np.arange(len(ranked)) - starts).astype(np.uint64)
    found = identities.copy()
    again = repeats > 0
    found[order[again]] = draws(0, ranked[again] ^ draws(1, repeats[again]))
    return found
