"""The pieces of a page that stands alone: sections, tables, lists, the document around them. Nothing is ever fetched."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from checkpoints.escape import html as escape

STYLE = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content security policy: a browser may load nothing but what the page itself holds."""


class Section(NamedTuple):
    """A part of the page under a heading of its own; `body` is HTML."""

    name: str
    title: str
    body: str


class Row(NamedTuple):
    """Row of a table: the first cell is its head; `ours` is emphasised, in weight as well as in colour."""

    cells: Sequence[str]
    ours: bool = False


def paragraph(text: str, kind: str = "") -> str:
    """Plain text."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def table(caption: str, head: Sequence[str], rows: Iterable[Row], kind: str = "") -> str:
    """A table that scrolls by itself, also by keyboard, where the screen is too narrow."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(_row(row) for row in rows)
    inside = (
        f"<table{_class(kind)}><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )
    return scrolling(caption, inside)


def _row(row: Row) -> str:
    first, *others = row.cells
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
    return f'<tr{_class("ours" if row.ours else "")}><th scope="row">{escape(first)}</th>{cells}</tr>'


def scrolling(label: str, inside: str) -> str:
    """HTML that may be wider than the screen."""
    return f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">{inside}</div>'


def facts(caption: str, rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they are."""
    body = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(what)}</td></tr>' for name, what in rows)
    return f'<table class="facts"><caption>{escape(caption)}</caption><tbody>{body}</tbody></table>'


def cards(rows: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers: what it is, the number, a remark."""
    items = (
        f"<li><span>{escape(name)}</span><b>{escape(number)}</b><span>{escape(remark)}</span></li>"
        for name, number, remark in rows
    )
    return f'<ul class="cards">{"".join(items)}</ul>'


def details(summary: str, inside: str) -> str:
    """HTML that is shown when asked for."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def commands(lines: Iterable[str]) -> str:
    """Command lines to copy; a line that is too long breaks between words."""
    spoken = (" ".join(f"<span>{escape(word)}</span>" for word in line.split(" ")) for line in lines)
    return f"<pre>{''.join(f'<code>{line}</code>' for line in spoken)}</pre>"


def picture(image: Image.Image, alt: str) -> str:
    """A picture as a part of the page, as large as it is."""
    with io.BytesIO() as file:
        image.save(file, format="WEBP", quality=80)
        data = base64.b64encode(file.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/webp;base64,{data}" alt="{escape(alt)}" {size}>'


def document(title: str, lead: str, sections: Sequence[Section], foot: str, *, policy: str = POLICY, script: str = "") -> str:
    """The whole page: one h1, an h2 for each section, links to them, and a way past the links for keyboards."""
    links = "".join(f'<li><a href="#{section.name}">{escape(section.title)}</a></li>' for section in sections)
    body = "\n".join(
        f'<section id="{section.name}" aria-labelledby="{section.name}-title">'
        f'<h2 id="{section.name}-title">{escape(section.title)}</h2>\n{section.body}</section>'
        for section in sections
    )
    style = STYLE.read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header><h1>{escape(title)}</h1>{paragraph(lead, "soft")}</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="content" tabindex="-1">
{body}
</main>
<footer>{paragraph(foot)}</footer>
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
