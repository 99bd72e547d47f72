"""Words from elsewhere (names of tensors, models, tasks) as text that cannot be more than text."""

from __future__ import annotations

import html


def plain(text: object) -> str:
    r"""The text in one line: what cannot be shown, such as a control character, spelled `\x1b`.

    XML has no way to write most control characters at all, and a mark that turns the direction of
    text could make one name look like another.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def escaped(text: object) -> str:
    """The text for HTML and XML, between tags or in a quoted attribute."""
    return html.escape(plain(text), quote=True)
