"""TensorBoard's file of a run, where TensorBoard (the extra `tensorboard`) is installed; metrics.jsonl has the same numbers."""

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from checkpoints import elsewhere, store, terminal


def installed() -> bool:
    """Whether TensorBoard is."""
    return importlib.util.find_spec("tensorboard") is not None


class Board:
    """Writes scalars until the file takes no more, which is said once: the run does not need it."""

    def __init__(self) -> None:
        """One that writes nothing until `begin`."""
        self._writer: Any = None

    def begin(self, folder: Path, step: int) -> None:
        """Open a file in `folder`, if TensorBoard is installed; what an earlier one has after `step` is hidden."""
        if installed():
            library: Any = elsewhere.imported("torch.utils.tensorboard")  # takes seconds, and nobody else needs it
            # ValueError: it takes no folder whose name is not UTF-8
            self._writer = self._tried(lambda: library.SummaryWriter(str(folder), purge_step=step + 1 if step else None))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of this step."""
        for name, value in values.items():
            if self._writer is not None:
                self._tried(partial(self._writer.add_scalar, name, value, step))

    def flush(self) -> None:
        """Write now: TensorBoard's own thread writes every two minutes, and ends with the process."""
        if self._writer is not None:
            self._tried(self._writer.flush)

    def stop(self) -> None:
        """Write no more: TensorBoard opens its file by name, in whatever lies there now."""
        self._writer = None

    def _tried(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except (OSError, ValueError) as error:
            self.stop()
            terminal.say(left_out("TensorBoard's file", error), error=True)
            return None


def left_out(what: str, error: Exception) -> str:
    """The sentence on a file or server that takes no more."""
    return f"note: {what} takes no more values ({store.first_line(error)}): the run goes on, metrics.jsonl has them"
