"""The screen of any training: a progress bar in a terminal, plain lines elsewhere, notes."""

import time

from rich.progress import BarColumn, TaskID
from rich.progress import Progress as Bar

from checkpoints import terminal
from pretrain.engine import distributed
from pretrain.engine.bad_images import Bad
from pretrain.engine.run_folder import RunFolder

PLAIN_LINES_EVERY = 10.0
"""Seconds, where there is no terminal."""


class Screen:
    """Prints from the main process only. A context manager: inside, a terminal shows a progress bar."""

    def __init__(self, folder: RunFolder, total_steps: int) -> None:
        self._folder, self._total = folder, total_steps
        self._console = terminal.Console(quiet=not distributed.is_main(), soft_wrap=True)
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._printed_at = 0.0

    def __enter__(self) -> "Screen":
        if self._console.is_terminal and distributed.is_main():
            columns = (BarColumn(bar_width=20), terminal.Description())
            self._bar = terminal.bar(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("starting", total=self._total, completed=self._folder.step)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, note: str) -> None:
        """Print one line that is not a measurement."""
        self._console.print(f"note: {note}")

    def bad(self, done: int, images: list[Bad]) -> None:
        """Log and print images that could not be used."""
        for image in images:
            self._folder.note(done, {"bad_image": image.name, "reason": image.reason, "number": image.number})
            self._console.print(f"skipped {image.name}: {image.reason}")

    def show(self, done: int, line: str) -> None:
        """Show the state after `done` steps."""
        if self._bar:
            self._bar.update(self._task, completed=done, description=line)
        elif time.monotonic() - self._printed_at > PLAIN_LINES_EVERY or done == self._total:
            self._printed_at = time.monotonic()
            self._console.print(f"step {done}/{self._total}  {line}")

    def finished_before(self) -> None:
        """Say that the run was complete already."""
        self._console.print(f"this run is finished: give another {self._folder.flag} to begin a new one")

    def interrupted(self, done: int) -> None:
        """Say that the run was saved and stopped."""
        self._console.print(f"stopped after step {done}, saved in {self._folder.folder}: the same command continues from here")


def clock(seconds: float) -> str:
    """A duration as H:MM:SS, or M:SS below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
