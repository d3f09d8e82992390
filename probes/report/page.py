"""The pieces of a page that stands alone: sections, tables, lists, the document around them. Nothing is ever fetched."""

import base64
import io
import time
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


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they are, in as many columns as there is room for."""
    body = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(what)}</dd></div>" for name, what in rows)
    return f'<dl class="facts">{body}</dl>'


class Card(NamedTuple):
    """A large number: what it is, the number, its interval, remarks."""

    name: str
    number: str
    interval: str
    remarks: Sequence[str]


def cards(row: Iterable[Card]) -> str:
    """The numbers beside each other."""
    return f'<ul class="cards">{"".join(map(_card, row))}</ul>'


def _card(card: Card) -> str:
    interval = f'<span class="interval">{escape(card.interval)}</span>' if card.interval else ""
    remarks = "".join(f"<span>{escape(remark)}</span>" for remark in card.remarks)
    return f'<li><span class="name">{escape(card.name)}</span><b>{escape(card.number)}</b>{interval}{remarks}</li>'


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


def written_by(command: str) -> str:
    """The last line of a page."""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"Generated {when} by {command}. Self-contained: loads nothing from the network."


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
