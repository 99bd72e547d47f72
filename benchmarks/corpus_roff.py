"""The words of a manual page: enough of roff to read what man(7) and its makers write.

Rendering by groff would hyphenate, justify and underline, and is not installed everywhere. Pages
in mdoc(7), the macros of BSD, have no section that is found here; so they are left out.
"""

from __future__ import annotations

import re

NO_TEXT = {"nf": "fi", "EX": "EE", "TS": "TE", "Vb": "Ve", "de": ".", "ig": "."}
"""Macros that begin what is no prose (code, tables, definitions), and those that end it."""

FONTS = {"B", "I", "R", "SM", "SB"}
ALTERNATING = {"BI", "BR", "IB", "IR", "RB", "RI"}
GLYPHS = {
    **dict.fromkeys(("aq", "oq", "cq", "Aq"), "'"),
    **dict.fromkeys(("dq", "lq", "rq"), '"'),
    **dict.fromkeys(("em", "en", "hy", "mi"), "-"),
    "rs": "\\",
    "ti": "~",
    "ha": "^",
    "co": "(c)",
    "C+": "C++",
    "R": "(R)",
    "Tm": "(TM)",
}
"""What escapes such as `\\(aq` and `\\*(Aq` stand for; others, such as bullets, for nothing."""

CHARACTERS = {c: c for c in "-. '`\\"} | {"~": " ", "0": " ", "e": "\\"}
"""What a backslash before one character stands for; before others, for nothing."""

_ESCAPE = re.compile(
    r"""\\(?:
        "(?P<comment>.*)
      | [*]?(?:\((?P<two>..)|\[(?P<name>[^\]]*)\]) | [*](?P<one>.)
      | [fFmMn](?:\(..|\[[^\]]*\]|.)
      | s(?:\[[^\]]*\]|'[^']*'|[-+]?\d)
      | [hvwlLDbox]'[^']*'
      | (?P<character>.)
      | $
    )""",
    re.VERBOSE,
)
_MACRO = re.compile(r"[.']\s*(?P<name>[A-Za-z]+|\.)?(?P<rest>.*)")
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|((?:\\ |\S)+)')


def sections(page: str) -> dict[str, str]:
    """The prose under each `.SH` heading (in capitals), in one line without formatting.

    Headings of subsections, code and tables are left out.
    """
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    until, depth = "", 0
    for line in page.splitlines():
        macro = _MACRO.fullmatch(line)
        name, rest = (macro["name"] or "", macro["rest"]) if macro else ("", line)
        if until:
            until = "" if name == until else until
            continue
        inside = depth or name in ("if", "ie", "el")
        # A conditional is for one kind of terminal or printer, and seldom holds words.
        depth = max(depth + line.count(r"\{") - line.count(r"\}"), 0) if inside else 0
        if inside:
            continue
        if name in NO_TEXT:
            until = NO_TEXT[name]
        elif name == "SH":
            lines = found.setdefault(_words(" ", rest).upper(), [])
        elif not macro:
            lines.append(plain(line))
        elif name in FONTS or name in ALTERNATING:
            lines.append(_words("" if name in ALTERNATING else " ", rest))
    whole = ((heading, " ".join(" ".join(one).split())) for heading, one in found.items())
    return {heading: re.sub(r" (?=[.,;:](?: |$))", "", text) for heading, text in whole}


def plain(text: str) -> str:
    """A line of text without its escapes."""
    return _ESCAPE.sub(_meaning, text)


def _meaning(found: re.Match[str]) -> str:
    if found["character"] is not None:
        return CHARACTERS.get(found["character"], "")
    name = found["two"] or found["name"] or found["one"] or ""
    if re.fullmatch(r"u[0-9A-F]{4,5}", name):
        return chr(int(name[1:], 16))
    return GLYPHS.get(name, '"' if name in ('L"', 'R"') else "")


def _words(between: str, rest: str) -> str:
    """The arguments of a macro: words, or texts in quotes."""
    found = (quoted.replace('""', '"') or word for quoted, word in _ARGUMENT.findall(rest))
    return plain(between.join(found))
