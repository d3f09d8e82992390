"""Line plots as SVG inside a page: text stays text, colours are the page's own, every line has its own dashes, and every plot
says its numbers in words and in a table.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from checkpoints.escape import html as escape
from probes.report import page as report_page
from probes.report.page import Row

WIDTH, HEIGHT = 340, 210
TOP, RIGHT, BOTTOM = 14, 12, 34
LETTER = 6.8
"""Pixels of a digit."""
POINTS, TABLE_ROWS = 240, 24
"""Most points of a drawn line, and most rows of the table below."""
LOG_FROM = 15
"""Ratio of the largest to the smallest x above which they stand in a logarithmic row."""


class Line(NamedTuple):
    """One line of a plot, x rising."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


class Mark(NamedTuple):
    """Something that happened at an x."""

    x: float
    text: str


class Plot(NamedTuple):
    """Content of one picture."""

    title: str
    x_name: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    level: tuple[str, float] | None = None
    """A value to compare with."""
    dots: bool = False
    """For a few measured points."""


class Scale(NamedTuple):
    """Values -> pixels."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def thinned(line: Line, most: int = POINTS) -> Line:
    """The line with fewer points: means of neighbouring ones, and the last one unchanged."""
    if len(line.x) <= most:
        return line
    size = math.ceil(len(line.x) / most)
    groups = [slice(start, start + size) for start in range(0, len(line.x) - 1, size)]
    x, y = ([_mean(values[group]) for group in groups] for values in (line.x, line.y))
    return Line(line.name, [*x, line.x[-1]], [*y, line.y[-1]])


def figure(plot: Plot, number: str) -> str:
    """A plot with its legend and last values, its numbers as a table, and in words for those who hear it; `number` is unique."""
    drawn = plot._replace(lines=[thinned(line) for line in plot.lines])
    words = in_words(plot)
    legend = "".join(
        f"<li>{_sample(f'line s{place % 4}')}{escape(line.name)} <b>{line.y[-1]:.4g}</b></li>"
        for place, line in enumerate(plot.lines)
    )
    if plot.level:
        legend += f"<li>{_sample('level')}{escape(plot.level[0])}</li>"
    means = "" if drawn.lines == list(plot.lines) else "<figcaption>Each point is a mean of several log lines.</figcaption>"
    return (
        f'<figure class="plot" id="plot-{number}"><h3>{escape(plot.title)}</h3>{_svg(drawn, number, words)}'
        f'<ul class="legend">{legend}</ul>{means}'
        f"{report_page.details('Values', numbers(plot))}</figure>"
    )


def in_words(plot: Plot) -> str:
    """A text description: each line's first and last value, its extremes, and the marks."""
    parts = []
    for line in plot.lines:
        low, high = min(line.y), max(line.y)
        parts.append(f"{line.name}: from {line.y[0]:.4g} to {line.y[-1]:.4g} (least {low:.4g}, most {high:.4g})")
    marked = ", ".join(f"{mark.x:g}" for mark in plot.marks)
    return "; ".join(parts) + (f". Marked: {plot.x_name} {marked}." if marked else ".")


def numbers(plot: Plot) -> str:
    """Some rows of what is drawn, the first and the last among them."""
    every = sorted({x for line in plot.lines for x in line.x})
    step = max(1, math.ceil((len(every) - 1) / (TABLE_ROWS - 1)))
    chosen = sorted({*every[::step], every[-1]})
    values = [dict(zip(line.x, line.y, strict=True)) for line in plot.lines]
    rows = [
        Row([f"{x:.6g}", *(f"{value[x]:.4g}" if x in value else "" for value in values)])
        for x in chosen
        if any(x in value for value in values)
    ]
    return report_page.table(f"{plot.title}, by {plot.x_name}", [plot.x_name, *(line.name for line in plot.lines)], rows)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def label(value: float) -> str:
    """A tick's number, short."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:g}" if abs(value) >= 1e-3 or not value else f"{value:.0e}".replace("e-0", "e-")


def _sample(kind: str) -> str:
    """A piece of a line for the legend."""
    return f'<svg viewBox="0 0 30 10" aria-hidden="true"><path class="{kind}" d="M0 5H30"/></svg>'


def _svg(plot: Plot, number: str, words: str) -> str:
    across, up, left = _scales(plot)
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in ticks(up.low, up.high, 4):
        y = up(value)
        parts.append(f'<path class="grid" d="M{left:g} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{left - 5:g}" y="{y + 4:.1f}" text-anchor="end">{label(value)}</text>')
    for value in _x_ticks(plot, across):
        parts.append(f'<path class="axis" d="M{across(value):.1f} {bottom}v4"/>')
        parts.append(f'<text x="{across(value):.1f}" y="{bottom + 16}" text-anchor="middle">{label(value)}</text>')
    parts.append(f'<path class="axis" d="M{left:g} {bottom}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{(left + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(plot.x_name)}</text>')
    if plot.level:
        parts.append(f'<path class="level" d="M{left:g} {up(plot.level[1]):.1f}H{WIDTH - RIGHT}"/>')
    for place, line in enumerate(plot.lines):
        parts += _line(line, place % 4, across, up, plot.dots or len(line.x) == 1)
    parts += (_mark(mark, across, bottom) for mark in plot.marks)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title-{number} words-{number}">'
        f'<title id="title-{number}">{escape(plot.title)}</title><desc id="words-{number}">{escape(words)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _scales(plot: Plot) -> tuple[Scale, Scale, float]:
    """Scales of x and of y, and the offset of the axes."""
    xs = [x for line in plot.lines for x in line.x]
    ys = [y for line in plot.lines for y in line.y] + ([plot.level[1]] if plot.level else [])
    low, high = min(ys), max(ys)
    room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    low, high = (max(low - room, 0.0) if low >= 0 else low - room), high + room
    left = 10 + LETTER * max(len(label(value)) for value in ticks(low, high, 4))
    first, last = min(xs), max(xs)
    last = last if last > first else first + 1
    by_ratio = plot.dots and first > 0 and last / first >= LOG_FROM
    inset = 8 if plot.dots else 0
    across = Scale(first, last, left + inset, WIDTH - RIGHT - inset, by_ratio)
    return across, Scale(low, high, HEIGHT - BOTTOM, TOP), left


def _x_ticks(plot: Plot, across: Scale) -> list[float]:
    """Round numbers, or where points were measured on a logarithmic axis, those that do not touch each other."""
    if not across.logarithmic:
        return ticks(across.low, across.high, 4)
    chosen: list[float] = []
    for value in sorted({x for line in plot.lines for x in line.x}):
        apart = (len(label(value)) + 2) * LETTER
        if not chosen or across(value) - across(chosen[-1]) >= apart:
            chosen.append(value)
    return chosen


def _line(line: Line, place: int, across: Scale, up: Scale, dots: bool) -> list[str]:
    points = [(across(x), up(y)) for x, y in zip(line.x, line.y, strict=True)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    found = [f'<path class="line s{place}" data-name="{escape(line.name)}" d="{path}"/>']
    return found + ([f'<circle class="dot s{place}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points] if dots else [])


def _mark(mark: Mark, across: Scale, bottom: int) -> str:
    x = across(min(max(mark.x, across.low), across.high))
    head = f'<path class="alarm-head" d="M{x - 5:.1f} {TOP - 10}h10l-5 9z"/>'
    return f'<g><title>step {mark.x:g}: {escape(mark.text)}</title><path class="alarm" d="M{x:.1f} {TOP}V{bottom}"/>{head}</g>'


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
