"""A thread that writes checkpoints while the training goes on: one at a time, and what it meets is raised in the loop."""

import threading
from collections.abc import Callable
from types import TracebackType

from checkpoints import terminal
from checkpoints.store import first_line


class Writer:
    """As a context: at its end, whatever ends it, the last work is waited for.

    The thread is no daemon: an interpreter that ends waits for it, too.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Have it done by the thread, once the work before is done. Raises what that has met."""
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), name="checkpoint")
        self._thread.start()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised in the loop
            self._error = error

    def look(self) -> None:
        """Raise what the last work has met, if it has ended."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the end of the last work. Raises what it has met."""
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.wait()
        except Exception as met:
            if error is None:
                raise
            terminal.say(f"note: {first_line(met)}", error=True)  # the other error ends the run
