"""Checkpoints that a dense run goes on from, read as data.

MMEngine reads what it cannot read safely in the unsafe way, lets files call `getattr`, runs a config that stands in a file, and
follows `last_checkpoint` to any place or address. Here a run is continued from its own folder, and all of MMEngine's reading goes
through `checkpoints.store`.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints import plain_numpy, published, reading, store, torch_pickle
from checkpoints.cli import UserError
from checkpoints.plain_pickle import Named, NotPlain

HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
STATISTICS = ("min", "max", "current", "mean")
LAST = "last_checkpoint"


class History(torch_pickle.Attributes):
    """Stand-in for MMEngine's list of past losses."""

    def restore(self, state: Any) -> None:
        """Checks its numbers and its four statistics."""
        super().restore(state)
        known = {"_log_history", "_count_history", "max_length", "statistics_methods"}
        if not self.held.keys() <= known or not self._own(self.held.get("statistics_methods", {})):
            raise NotPlain("it has a history of something else than losses")

    @staticmethod
    def _own(methods: Any) -> bool:
        return isinstance(methods, dict) and all(
            isinstance(method, Statistic) and method.name == name for name, method in methods.items()
        )


class Statistic(torch_pickle.Constant):
    """One of them; older MMEngines look them up by `getattr`."""

    def __init__(self, owner: Any, name: Any) -> None:
        if not isinstance(owner, Named) or owner.name != HISTORY or name not in STATISTICS:
            raise NotPlain("it holds code (builtins.getattr), which is never run")
        self.name = name


CLASSES: dict[str, Callable[..., Any]] = {HISTORY: History, "builtins.getattr": Statistic, "__builtin__.getattr": Statistic}
"""Names in MMEngine's files besides tensors and plain values."""


class Array(np.ndarray):
    """An array for torch's safe reader: filled once, by numbers that were checked."""

    def __new__(cls, *_: Any) -> "Array":
        return super().__new__(cls, 0, dtype=np.uint8)

    def __setstate__(self, state: Any) -> None:
        if "full" in self.__dict__:
            raise NotPlain("it fills an array twice")
        made = np.asfortranarray(filled) if (filled := plain_numpy.filled(state)).flags.fnc else filled
        plain: Any = (1, made.shape, made.dtype, made.flags.fnc, made.tobytes("A"))
        super().__setstate__(plain)
        self.full = True


def _array(*_: Any) -> Array:
    return Array()


def allowed() -> list[Any]:
    """For torch's safe reader: as CLASSES, real where it must be."""
    history: Any = importlib.import_module("mmengine.logging.history_buffer").HistoryBuffer

    def statistic(owner: Any, name: Any) -> Any:
        if owner is not history or name not in STATISTICS:
            raise NotPlain("it holds code (builtins.getattr), which is never run")
        return getattr(history, name)

    arrays = [(_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    return [*published.ALLOWED, history, (statistic, "builtins.getattr"), *arrays, (Array, "numpy.ndarray")]


def load(filename: str, map_location: Any = None) -> dict[str, Any]:
    """A checkpoint for MMEngine, on the CPU. Raises UserError for code, damage and addresses."""
    if "://" in str(filename):
        raise UserError(f"{filename} is not fetched: fetch it yourself, and give the file")
    content = store.read_torch(Path(filename), allowed(), CLASSES)
    meta = content.get("meta")
    if isinstance(meta, dict):
        meta.pop("config", None)  # MMEngine would run it as Python
    return content


def register() -> None:
    """Make `load` the only way by which MMEngine reads checkpoints: its others run what they cannot read, or fetch."""
    loader: Any = importlib.import_module("mmengine.runner.checkpoint").CheckpointLoader
    loader._schemes = {"": load}


def newest(work_dir: Path) -> Path | None:
    """The checkpoint to go on from, in the run's own folder whatever is written there, or None."""
    note = work_dir / LAST
    if not note.is_file():
        return None
    try:
        name = Path(reading.text(note, 4096, "replace").strip()).name
    except OSError as error:
        raise UserError(f"{note} cannot be read ({error.strerror}): delete it to begin again") from error
    path = work_dir / name
    if not name or not path.is_file():
        raise UserError(f"{note} names a checkpoint {name!r} that is not in that folder: delete {note} to begin again")
    return path
