"""Parts of a page of HTML that needs nothing beside it: no script, and nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #545d68; --paper: #fff; --panel: #f6f6f1; --line: #d0d7de }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e3; --soft: #adb5be; --paper: #16191d; --panel: #21262c; --line: #444c56 }
}
* { box-sizing: border-box }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25 }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption, figcaption { text-align: left; color: var(--soft); font-size: .9rem; padding: .25rem 0 }
td, th { padding: .3rem .6rem; min-width: 7.5rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line) }
tr > :first-child { min-width: 9rem; text-align: left }
th[scope=row] { font-weight: normal }
figure { margin: 1rem 0 }
img { display: block; max-width: 100%; height: auto; background: #fff }
pre { background: var(--panel); padding: 1rem; overflow: auto; font-size: .875rem }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); gap: 1rem; padding: 0; list-style: none }
.samples > li { background: var(--panel); padding: .75rem; min-width: 0 }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem }
.pictures img { height: 9rem; object-fit: contain }
dl { margin: .5rem 0 0 }
dt { color: var(--soft); font-size: .9rem }
dd { margin: 0 0 .4rem }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --panel: #fff; --line: #999 }
  body { max-width: none; padding: 0; font-size: 10pt }
  .wide, pre { overflow: visible }
  pre { white-space: pre-wrap; padding: 0 }
  td, th, tr > :first-child { min-width: 0; padding: .15rem .3rem }
  h2, caption { break-after: avoid }
  tr, figure, .samples > li { break-inside: avoid }
}
"""


def document(title: str, body: str) -> str:
    """A page: its title is its first heading. It is read at any width, on paper, and in the dark."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
{body}
</body></html>
"""


def section(heading: str, *parts: str) -> str:
    """Parts under a heading; nothing where all of them are empty."""
    return f"<h2>{escape(heading)}</h2>\n{''.join(parts)}\n" if any(parts) else ""


def paragraph(text: str) -> str:
    """Text, which is escaped."""
    return f"<p>{escape(text)}</p>"


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table in a box that scrolls by itself where the page is narrower. The first cell of a row names it; texts are escaped."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' if cell else "<td></td>" for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    table = f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide" role="region" aria-label="{escape(caption)}" tabindex="0">{table}</div>'


def image(alternative: str, data: str, kind: str = "png") -> str:
    """A picture that is part of the page.

    Args:
        alternative: what it shows, for those who do not see it.
        data: of the file, base64.
    """
    return f'<img alt="{escape(alternative)}" src="data:image/{kind};base64,{escape(data)}">'


def embedded(alternative: str, picture: bytes) -> str:
    """A PNG inside of HTML, and what it shows."""
    return f"<figure>{image(alternative, base64.b64encode(picture).decode())}</figure>"


def described(pairs: Mapping[str, str]) -> str:
    """Terms with what is said of each, in whichever direction its language runs."""
    each = (f'<dt>{escape(term)}</dt><dd dir="auto">{escape(text)}</dd>' for term, text in pairs.items())
    return f"<dl>{''.join(each)}</dl>"


def code(text: str, about: str) -> str:
    """Lines that scroll by themselves."""
    return f'<pre role="region" aria-label="{escape(about)}" tabindex="0">{escape(text)}</pre>'
