"""The folder of any training: its options, its log, when it saves. What is in a checkpoint is not its matter."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from checkpoints import checked, places, reading, store
from checkpoints.command import UserError
from pretrain import distributed, logs
from pretrain.steps import Bad
from pretrain.track import Track, tracker

WRITTEN = ("config.json", "*.jsonl", "*.pt", "*.safetensors", "*.html", "events.out.tfevents.*")
"""What is written in a training's folder."""


class RunFolder:
    """One training in one folder. Only the main process writes. `flag` is what the command calls the folder."""

    flag = "--out"

    def __init__(
        self, folder: Path, values: Mapping[str, Any], steps_per_epoch: int, save_minutes: float, track: str = "none"
    ) -> None:
        """`values` are the training's options, as plain values."""
        self.folder, self.values, self.steps_per_epoch, self.save_minutes = folder, values, steps_per_epoch, save_minutes
        self.step = 0
        self._saved_at = time.monotonic()
        self._board: SummaryWriter | None = None
        self._track_with = track
        self._track: Track = lambda values, step: None

    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any((self.folder / name).exists() for name in (store.LAST, store.PREVIOUS))

    def begin(self) -> None:
        """Make the folder and write the options down. Raises UserError where that cannot be, or would lead out of the folder."""
        if not distributed.is_main():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.iterdir():
                if any(path.match(pattern) for pattern in WRITTEN):
                    places.refuse_link(path)
            content = json.dumps(self.values, indent=1) + "\n"
            store.write_bytes(self.folder / "config.json", content.encode())
        except OSError as error:
            raise UserError(f"cannot write to {self.flag} {self.folder} ({error.strerror})") from error
        for leftover in self.folder.glob(".*.part"):  # of a process that was killed while it wrote
            leftover.unlink()
        self._forget_later_lines()
        self._board = SummaryWriter(str(self.folder), purge_step=self.step + 1 if self.step else None)
        self._track = tracker(self._track_with, self.folder.name, self.values)

    def _forget_later_lines(self) -> None:
        """Drop the log lines of steps that will be run again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            text = reading.text(path, reading.MOST_LISTED)
            lines = [line for line in text.splitlines() if self.step and _step_of(line) <= self.step]
            store.write_bytes(path, "".join(line + "\n" for line in lines).encode())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line of `metrics.jsonl` (null for what is not finite), and the same for TensorBoard."""
        if not distributed.is_main() or self._board is None:
            return
        rounded = {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in values.items()}
        self.note(step, rounded)
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._track(values, step)

    def note(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`. Raises WorkError where it cannot be written."""
        if not distributed.is_main():
            return
        store.append(self.folder / "metrics.jsonl", json.dumps({"step": step, **values}) + "\n")

    def bad_images(self) -> list[Bad]:
        """Those that were noted before."""
        lines = (line for line in self.history() if "bad_image" in line)
        return [Bad(line["number"], line["bad_image"], line["reason"]) for line in lines]

    def history(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; of a long one a sample, with all that is rare (`pretrain.logs`)."""
        path = self.folder / "metrics.jsonl"
        return [line.value for line in logs.sampled(path)] if path.exists() else []

    def time_to_save(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps."""
        minutes = (time.monotonic() - self._saved_at) / 60
        return step % self.steps_per_epoch == 0 or minutes >= self.save_minutes


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")


def random_states() -> dict[str, Any]:
    """Torch's generators: the only ones that are not addressed by seed and step (stochastic depth draws from them)."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_states(states: Mapping[str, Any], path: Path) -> None:
    """Raises UserError where they are none; `path` is for the message."""
    try:
        torch.set_rng_state(states["cpu"])
        if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
            torch.cuda.set_rng_state_all(states["cuda"])
    except (RuntimeError, TypeError) as error:  # torch looks at every byte of them
        raise UserError(f"{path}: random is no state of a generator ({store.first_line(error)}): {checked.CURE}") from error


def set_scaler_state(scaler: torch.amp.GradScaler, state: Mapping[str, Any]) -> None:
    """What a scaler has found out; how it goes about it stays its own. Nothing where none is used, then or now."""
    if scaler.is_enabled() and state:
        found = {name: state[name] for name in ("scale", "_growth_tracker")}
        scaler.load_state_dict({**scaler.state_dict(), **found})
