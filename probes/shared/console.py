"""The screen of a probe: progress with the time left, and tables; only the main process prints."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from checkpoints import terminal
from pretrain.engine import distributed

T = TypeVar("T")
LINES_EVERY = 10.0
"""Seconds between lines where there is no terminal."""


def steps(what: str, every: Iterable[T], total: int, done: int = 0) -> Iterator[T]:
    """Yields the items, showing a progress bar in a terminal and a line now and then elsewhere, on stderr."""
    if not distributed.is_main():
        yield from every
        return
    console = terminal.Console(stderr=True, soft_wrap=True)
    if console.is_terminal:
        columns = (terminal.Description(), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
        with terminal.bar(*columns, console=console, transient=True) as bar:
            yield from bar.track(every, total=total, completed=done, description=what)
        return
    yield from _lines(what, every, total, done)


def _lines(what: str, every: Iterable[T], total: int, done: int) -> Iterator[T]:
    began = said = time.perf_counter()
    for number, one in enumerate(every, done + 1):
        yield one
        now = time.perf_counter()
        if now - said >= LINES_EVERY and number < total:
            left = (now - began) / (number - done) * (total - number)
            terminal.say(f"{what}: {number} of {total}, {left:.0f} s left", error=True)
            said = now


def say(text: str) -> None:
    """One line on stdout."""
    if distributed.is_main():
        terminal.say(text)


def table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A title and a table on stdout: the first column is text, the others numbers."""
    if not distributed.is_main():
        return
    terminal.say(title)
    shown = Table()
    for number, name in enumerate(head):
        shown.add_column(name, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*row)
    terminal.Console().print(shown)


def duration(seconds: float) -> str:
    """A duration in the unit that reads best."""
    for size, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"
