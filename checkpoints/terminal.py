"""Printing: the only file that writes to the screen. Text is always escaped (`checkpoints/escape.py`)."""

import contextlib
import errno
import io
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from checkpoints import escape

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class OutputLost(OSError):
    """Standard output takes nothing more."""


class Output:
    """stdout or stderr, whichever object it is now. What stderr does not take is dropped.

    What stdout does not take raises BrokenPipeError where its reader has gone, else OutputLost; within `lasting` it is dropped,
    and said once on stderr.
    """

    def __init__(self, *, error: bool = False) -> None:
        self._error = error

    def _stream(self) -> Any:
        stream = _aside[-1][self._error] if _aside else sys.stderr if self._error else sys.stdout
        return getattr(stream, "rich_proxied_file", stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, act: str, *what: str) -> None:
        stream = self._stream()
        try:
            if stream is not None:  # closed before Python began
                getattr(stream, act)(*what)
        except OSError as error:
            self._discard(stream)
            if not self._error:
                _lose(error)

    def _discard(self, stream: Any) -> None:
        """Let what is still to be written, at the interpreter's end too, go nowhere."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


_aside: list[tuple[Any, Any]] = []
"""stdout and stderr, where something else stands for them (`aside`)."""
_lost: list[OSError] = []
_lasting: list[bool] = []


def _lose(error: OSError) -> None:
    if not _lasting:
        raise error if isinstance(error, BrokenPipeError) else OutputLost(error.errno, error.strerror) from error
    if not _lost:
        say(f"note: standard output takes nothing more ({error.strerror}): what is logged and saved is not touched", error=True)
    _lost.append(error)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Context in which a closed standard output ends nothing."""
    _lost.clear()
    _lasting.append(True)
    try:
        yield
    finally:
        _lasting.pop()


def gone() -> bool:
    """Within `lasting`: whether the reader of standard output has closed it, as `| head` does; a full disk does not count."""
    return any(error.errno not in FULL for error in _lost)


class _Aside(io.TextIOBase):
    """Appends to a file, or drops; each time anew, so that a library may keep it for as long as it likes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._path is not None:
            with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(escape.terminal(text, lines=True))
        return len(text)


@contextlib.contextmanager
def aside(path: Path | None) -> Iterator[None]:
    """Context in which what libraries print, log and warn of is appended to a file, or dropped without one.

    What this file prints still reaches the screen, and so do errors.
    """
    _aside.append(_aside[-1] if _aside else (sys.stdout, sys.stderr))
    before = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = _Aside(path)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        _aside.pop()


def say(text: object, *, error: bool = False) -> None:
    """One line on stdout, or on stderr."""
    _print(escape.terminal(text) + "\n", error=error)


def _print(text: str, *, error: bool = False) -> None:
    output = Output(error=error)
    if not error and not _aside and hasattr(sys.stdout, "rich_proxied_file"):  # a bar stands below
        print(text, end="", flush=True)
        return
    output.write(text)
    output.flush()


def page(text: str) -> None:
    """Several lines on stdout: for text of our own, or whose foreign parts have been escaped before."""
    _print(escape.terminal(text, lines=True) + "\n")


class Console(RichConsole):
    """rich's console for plain text: brackets and colons in cells, titles and lines are no markup, controls are visible."""

    def __init__(self, *, stderr: bool = False, **how: Any) -> None:
        where = {"file": Output(error=stderr)} | how
        super().__init__(markup=False, emoji=False, highlight=False, stderr=stderr, **where)

    def on_broken_pipe(self) -> None:
        """rich would end the process here."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def render_str(self, text: str, **how: Any) -> Text:
        """Every string passes here, those of tables too."""
        return super().render_str(escape.terminal(text), **(how | {"markup": False, "emoji": False, "highlight": False}))


class Description(ProgressColumn):
    """Description of a progress bar, as plain text."""

    def render(self, task: Task) -> Text:
        return Text(escape.terminal(task.description))


def bar(*columns: ProgressColumn, console: RichConsole, transient: bool = False) -> Progress:
    """rich's progress bar with these columns."""
    return Progress(*columns, console=console, transient=transient, redirect_stdout=not _aside, redirect_stderr=not _aside)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return escape.terminal(super().getMessage(), lines=True)


def _warning(*about: Any, **more: Any) -> str:
    return escape.terminal(_plain_warning(*about, **more), lines=True)


def _failure(*about: Any) -> None:
    page_of = "".join(traceback.format_exception(*about))
    print(escape.terminal(page_of, lines=True), end="", file=sys.stderr, flush=True)


def _failed_thread(about: threading.ExceptHookArgs) -> None:
    """A library's thread that cannot write (TensorBoard's) tells the caller too, who says it in a sentence."""
    if not isinstance(about.exc_value, OSError):
        _failure(about.exc_type, about.exc_value, about.exc_traceback)


_plain_warning = warnings.formatwarning


def guard() -> None:
    """For a command: what libraries log, warn of and die of is escaped too, and the screen's encoding refuses no letter."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(_Record)
    warnings.formatwarning = _warning
    sys.excepthook = _failure
    threading.excepthook = _failed_thread
