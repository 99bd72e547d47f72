"""What is known of this process."""

from __future__ import annotations

_ours = [False]


def claim() -> None:
    """Say that no code but ours and our libraries' runs in this process: it is a command's."""
    _ours[0] = True


def is_ours() -> bool:
    """Whether that has been said."""
    return _ours[0]
