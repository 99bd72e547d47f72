"""What a page looks like, in light and in dark; the series' colours are those of the charts."""

from __future__ import annotations

from .drawing import SERIES

_LIGHT = "".join(f"  --series-{i}: {light};\n" for i, (light, _) in enumerate(SERIES))
_DARK = "".join(f"    --series-{i}: {dark};\n" for i, (_, dark) in enumerate(SERIES))

STYLE = f"""\
:root {{
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1c2024; --soft: #5b6570; --line: #d8dde2; --band: #f4f6f8;
  --link: #0b62b0; --warn-line: #b7791f; --warn-band: #fdf6e7;
{_LIGHT}}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --paper: #14171a; --ink: #e4e8eb; --soft: #9aa5af; --line: #353c43; --band: #1d2226;
    --link: #79b8ff; --warn-line: #d9a441; --warn-band: #2b2414;
{_DARK}  }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
}}
h1 {{ font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2rem; margin: 2.6rem 0 0.6rem; padding-top: 0.6rem;
  border-top: 1px solid var(--line); }}
p, ul {{ max-width: 48rem; overflow-wrap: anywhere; }}
a {{ color: var(--link); }}
.subtitle {{ color: var(--soft); margin: 0.3rem 0 0; }}
nav ol {{ list-style: none; margin: 1.2rem 0 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: 0.2rem 1.2rem; }}
.warning {{ border-left: 3px solid var(--warn-line); background: var(--warn-band);
  padding: 0.5rem 0.9rem; margin: 0.8rem 0; list-style-position: inside; }}
.scroll {{ overflow-x: auto; }}
.scroll + .scroll {{ margin-top: 1.4rem; }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; color: var(--soft); padding: 0.4rem 0; }}
th, td {{ padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; white-space: nowrap; }}
thead th {{ border-bottom: 1px solid var(--soft); font-weight: 600; vertical-align: bottom; }}
tbody th {{ font-weight: 400; }}
tbody tr {{ border-bottom: 1px solid var(--line); }}
th.number, td.number {{ text-align: right; }}
pre {{ background: var(--band); padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.85rem;
  border-radius: 4px; }}
figure {{ margin: 1.2rem 0; }}
figure svg {{ display: block; max-width: 100%; height: auto; }}
figcaption {{ color: var(--soft); font-size: 0.9rem; max-width: 48rem; margin-top: 0.4rem; }}
@media (max-width: 40rem) {{ figure svg {{ min-width: 32rem; }} }}
@media print {{ body {{ max-width: none; }} nav {{ display: none; }} }}
"""
