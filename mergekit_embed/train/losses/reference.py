"""The tables of parameters in docs/losses.md, made from the signatures.

    python -m mergekit_embed.train.losses.reference

prints them all, to be copied there when a parameter changes.
"""

from __future__ import annotations

from ...methods.registry import REQUIRED, spelled
from . import available, wrappers
from .registry import Entry
from .settings import Setting


def table(entry: Entry) -> str:
    """The parameters of a loss or a wrapper in Markdown."""
    rows = [
        f"| `{name}` | {_default(setting)} | {setting.allowed()} | {setting.help} |"
        for name, setting in entry.settings.items()
    ]
    return "\n".join(["| parameter | default | values | meaning |", "|" + " --- |" * 4, *rows, ""])


def _default(setting: Setting) -> str:
    return "required" if setting.default is REQUIRED else spelled(setting.default).strip('"')


if __name__ == "__main__":
    for found in (*available().values(), *wrappers().values()):
        print(f"### `{found.name}`\n\n{found.summary}\n\n{table(found)}")
