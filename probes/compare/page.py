"""The comparison as one HTML page: a plot of every number with its interval, then the tables. Nothing is fetched."""

from checkpoints.escape import html as escape
from probes.compare.table import Column, Comparison, shown
from probes.report import page as report_page
from probes.report.page import Row, Section
from probes.report.plots import label, ticks

WIDTH, ROW, LEFT, RIGHT, BOTTOM = 420, 22, 150, 14, 26
LONGEST = 22
"""Characters of a name in a plot."""


def page(found: Comparison) -> str:
    """The whole page."""
    best = found.best()
    lead = f"{len(found.models)} backbones, {len(found.columns)} evaluations (data set and probe). {found.about}"
    summary = "" if best is None else report_page.paragraph(f"Best mean rank: {best}.")
    *measured, costs = found.parts()
    sections = [
        Section("summary", "Ranks and costs", summary + _table("Mean rank, size and speed", costs[1], best)),
        Section("plots", "Results with 95 % intervals", f'<div class="plots">{"".join(_plots(found))}</div>'),
        *(Section(f"data-{place}", title, _table(title, rows, best)) for place, (title, rows) in enumerate(measured)),
    ]
    missing = [*found.failed, *found.unfit]
    if missing:
        sections.append(Section("missing", "Missing results", "".join(report_page.paragraph(one) for one in missing)))
    foot = report_page.written_by("probes.compare")
    return report_page.document("iBOT backbone comparison", lead, sections, foot)


def _table(title: str, rows: list[list[str]], best: str | None) -> str:
    head, *body = rows
    return report_page.table(title, head, [Row(row, row[0] == best) for row in body])


def _plots(found: Comparison) -> list[str]:
    return [_plot(found, column, place) for place, column in enumerate(found.columns)]


def _plot(found: Comparison, column: Column, place: int) -> str:
    """A row a backbone: a dot, its interval as a line."""
    some = [(model, found.entries[model, column]) for model in found.models if (model, column) in found.entries]
    ends = [end for _, one in some for end in (one.value, one.low, one.high) if end is not None]
    low, high = min(ends), max(ends)
    room = (high - low) * 0.08 or 1.0
    low, high = low - room, high + room

    def across(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    height = ROW * len(some) + BOTTOM
    parts = []
    for value in ticks(low, high, 4):
        parts.append(f'<path class="grid" d="M{across(value):.1f} 0V{height - BOTTOM}"/>')
        parts.append(f'<text x="{across(value):.1f}" y="{height - 8}" text-anchor="middle">{label(value)}</text>')
    for row, (model, one) in enumerate(some):
        y = ROW * (row + 0.5)
        name = model if len(model) <= LONGEST else f"{model[: LONGEST - 1]}…"
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        if one.low is not None and one.high is not None:
            parts.append(f'<path class="line s0" d="M{across(one.low):.1f} {y:.1f}H{across(one.high):.1f}"/>')
        parts.append(f'<circle class="dot s0" cx="{across(one.value):.1f}" cy="{y:.1f}" r="4"/>')
    title = f"{column.name}, {column.data}"
    words = "; ".join(f"{model} {shown(one)}" for model, one in some)
    return (
        f'<figure class="plot" id="plot-{place}"><h3>{escape(title)}</h3><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="title-{place} words-{place}"><title id="title-{place}">{escape(title)}</title>'
        f'<desc id="words-{place}">{escape(words)}</desc>{"".join(parts)}</svg><figcaption>{escape(words)}</figcaption></figure>'
    )
