"""What is printed: the only file that writes to the screen. Whatever a text holds, it stays text (`checkpoints/escape.py`)."""

import logging
import sys
import traceback
import warnings
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from checkpoints import escape


def say(text: object, *, error: bool = False) -> None:
    """One line on stdout, or on stderr."""
    print(escape.terminal(text), file=sys.stderr if error else sys.stdout, flush=True)


def page(text: str) -> None:
    """Several lines on stdout: for text of our own, or whose foreign parts have been escaped before."""
    print(escape.terminal(text, lines=True), flush=True)


class Console(RichConsole):
    """rich's console for plain text: brackets and colons in cells, titles and lines are no markup, controls are visible."""

    def __init__(self, **how: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        """Every string passes here, those of tables too."""
        return super().render_str(escape.terminal(text), **(how | {"markup": False, "emoji": False, "highlight": False}))


class Description(ProgressColumn):
    """What a bar is of, as plain text."""

    def render(self, task: Task) -> Text:
        return Text(escape.terminal(task.description))


def bar(*columns: ProgressColumn, console: RichConsole, transient: bool = False) -> Progress:
    """rich's progress bar with these columns."""
    return Progress(*columns, console=console, transient=transient)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return escape.terminal(super().getMessage(), lines=True)


def _warning(*about: Any, **more: Any) -> str:
    return escape.terminal(_plain_warning(*about, **more), lines=True)


def _failure(*about: Any) -> None:
    page_of = "".join(traceback.format_exception(*about))
    print(escape.terminal(page_of, lines=True), end="", file=sys.stderr, flush=True)


_plain_warning = warnings.formatwarning


def guard() -> None:
    """For a command: what libraries log, warn of and die of is escaped too, and the screen's encoding refuses no letter."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(_Record)
    warnings.formatwarning = _warning
    sys.excepthook = _failure
