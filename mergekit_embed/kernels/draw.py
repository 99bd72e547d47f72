"""Random numbers that are a function of where they are used.

Element i of member k of a tensor draws from (seed, tensor, member, i) alone: the result does
not depend on chunks, threads, devices, the order of work, or what else is merged in the run.

`key` condenses seed, tensor and member to 64 bits; `uniform(key, i)` is SplitMix64 in counter mode:

    z = key + (i + 1) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    uniform = ((z ^ (z >> 31)) >> 11) / 2^53

in unsigned 64-bit arithmetic: a number in [0, 1) that every backend computes to the bit.
Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
"""

from __future__ import annotations

import hashlib

GAMMA = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31
MASK = 2**64 - 1


def draw_key(seed: int, tensor: str, member: int) -> int:
    """64 bits from what a draw may depend on besides the element."""
    text = f"{seed}\0{member}\0{tensor}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def signed(value: int) -> int:
    """The int64 with the same bits as this unsigned 64-bit number."""
    value &= MASK
    return value - 2**64 if value >= 2**63 else value
