"""Memory for stored elements."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LINE = 64
"""Bytes of a line of the caches."""


def room(size: int) -> NDArray[np.uint8]:
    """So many bytes from the start of a line; what lies across two is read at half the speed."""
    whole = np.empty(size + LINE, np.uint8)
    skip = -whole.__array_interface__["data"][0] % LINE
    return whole[skip : skip + size]
