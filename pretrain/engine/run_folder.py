"""The folder of any training: its options, its log, when it saves. Does not know the checkpoint format."""

import contextlib
import json
import math
import os
import re
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from checkpoints import checked, hold, places, reading, store, terminal
from checkpoints.cli import UserError, WorkError
from pretrain.engine import distributed, logs
from pretrain.engine.bad_images import Bad
from pretrain.engine.board import Board, left_out
from pretrain.engine.trackers import Track, package_of, tracker

WRITTEN = ("config.json", "*.jsonl", "*.pt", "*.safetensors", "*.html", "events.out.tfevents.*")
"""Patterns of the files that a training writes in its folder."""
LOGS = ("metrics.jsonl", "starts.jsonl")
OWN_PART = re.compile(
    r"\.(last|previous|refused-\d+-\d+|epoch-\d+(-\d+)?)\.pt\.\d+\.part|\.(backbone|best)\.safetensors\.\d+\.part|"
    r"\.(config\.json|metrics\.jsonl|report\.html)\.\d+\.part"
)
"""Temporary files of ours (`store.write_bytes`): the name of a file that a run writes, and the process that was writing it."""
BESIDE: tuple[str, ...] = (
    "results",
    "finetune",
    "lr-*",
    "wandb",
    "mlruns",
    "events.out.tfevents.*",
    "*.log",
    "nohup.out",
    "slurm-*.out",
)
BESIDE += (hold.NAME, ".git*", ".DS_Store", ".nfs*")
"""What may lie in a folder before a run starts there: results made beside a run, redirected output."""


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
        self._board = Board()
        self._track_with = track
        self._track: Track | None = None
        self._place: int | None = None
        self._anew = False

    def begun(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return any((self.folder / name).exists() for name in (store.LAST, store.PREVIOUS))

    def begin(self) -> None:
        """Create the folder and write the options. Raises UserError if that fails, or where a link leads out of it."""
        if not distributed.is_main():
            return
        package_of(self._track_with)  # a missing one is an error that leaves nothing behind
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.iterdir():
                if any(path.match(pattern) for pattern in WRITTEN):
                    places.refuse_link(path)
            content = json.dumps(self.values, indent=1) + "\n"
            store.write_bytes(self.folder / "config.json", content.encode())
            self._remove_leftovers()
            self._forget_later_lines()
            self._place = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise UserError(f"cannot write to {self.flag} {self.folder} ({error.strerror})") from error
        weakref.finalize(self, os.close, self._place)
        self._board.begin(self.folder, self.step)
        self._track = tracker(self._track_with, self.folder.name, self.values)

    def _remove_leftovers(self) -> None:
        """Delete own temporary files of a process that was killed while it wrote; no other process writes here now."""
        for path in self.folder.iterdir():
            if OWN_PART.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink()

    def _forget_later_lines(self) -> None:
        """Drop the log lines of steps that will be repeated, and lines that cannot be read."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with store.new_file(part) as file:
            strange = logs.keep_up_to(path, self.step, file)
        os.replace(part, path)
        if strange and self.step:
            lines = f"{strange} line{'s' * (strange > 1)}"
            terminal.say(f"note: {lines} of {path} could not be read, and left out: the training does not need them", error=True)

    def moved(self) -> bool:
        """Whether the folder has been moved or removed since `begin`."""
        if self._place is None:
            return False
        try:
            return not os.path.samestat(os.fstat(self._place), os.stat(self.folder))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # of a network file system: the next write will raise it
            return False

    def here(self) -> Path:
        """The folder's present path; if it was removed, its old one. Raises WorkError if something else lies there by then."""
        if not self.moved():
            return self.folder
        present = self._where()
        if present is None and not self._anew:
            if os.path.lexists(self.folder):
                raise WorkError(f"{self.folder} was removed during the run, another lies there: what is not saved is lost")
            self._anew = True
        return present or self.folder

    def _where(self) -> Path | None:
        """The folder's present path by its file descriptor; None if it was removed."""
        assert self._place is not None
        with contextlib.suppress(OSError):
            path = Path(os.readlink(f"/proc/self/fd/{self._place}"))
            if os.path.samestat(os.fstat(self._place), os.stat(path)):
                return path
        return None

    def stay(self, step: int) -> None:
        """Raise WorkError, in all processes, if the folder was moved or removed; what was done up to `step` has been saved."""
        sentence = ""
        if self.moved():
            now = self._where()
            sentence = (
                f"{self.folder} was removed during the run: saved in a new one after step {step}, without its earlier log"
                if now is None
                else f"{self.folder} was moved to {now} during the run: saved there after step {step}, {self.flag} {now} goes on"
            )
        else:
            self._board.flush()
        for message in filter(None, distributed.gathered([sentence])):
            raise WorkError(message)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write measurements to `metrics.jsonl` (null for what is not finite), TensorBoard and the tracker."""
        if not distributed.is_main():
            return
        rounded = {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in values.items()}
        self.note(step, rounded)
        self._send(step, values)

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        """Write measurements to TensorBoard and the tracker; one that fails gets no more, as the run does not need it."""
        if self.moved():
            self._board.stop()
        self._board.write(step, values)
        try:
            if self._track:
                self._track(values, step)
        except Exception as error:  # of other people's packages and servers
            self._track = None
            terminal.say(left_out(f"--track {self._track_with}", error), error=True)

    def note(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`. Raises WorkError if it cannot be written."""
        if not distributed.is_main():
            return
        folder = self.here()
        if folder.is_dir():  # else it was removed, which `stay` will say
            store.append(folder / "metrics.jsonl", json.dumps({"step": step, **values}) + "\n")

    def bad_images(self) -> list[Bad]:
        """Unusable images that the log names."""
        lines = (line for line in self.history() if line.keys() >= {"bad_image", "reason", "number"})
        return [Bad(int(line["number"] or 0), line["bad_image"], line["reason"]) for line in lines]

    def history(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; of a long log a sample (`pretrain.engine.logs.sampled`)."""
        path = self.folder / "metrics.jsonl"
        return [line.value for line in logs.sampled(path, lenient=True)] if path.exists() else []

    def time_to_save(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps."""
        minutes = (time.monotonic() - self._saved_at) / 60
        return step % self.steps_per_epoch == 0 or minutes >= self.save_minutes


@contextlib.contextmanager
def claimed(folder: Path, flag: str, *, told: bool) -> Iterator[None]:
    """Holds the folder for this training alone; all processes call it together.

    Raises WorkError where another training uses it, UserError where it holds what is none of a training's, unless `told`.
    """
    with contextlib.ExitStack() as stack:
        error: UserError | WorkError | None = None
        try:
            if distributed.is_main():
                if not told:
                    refuse_foreign(folder, flag)
                stack.enter_context(hold.held(folder / hold.NAME, f"{flag} {folder}", f"give another {flag}"))
        except (UserError, WorkError) as raised:
            error = raised
        for of_process in distributed.gathered([error]):
            if of_process is not None:
                raise of_process
        yield


def refuse_foreign(folder: Path, flag: str) -> None:
    """Raise UserError for a folder that is neither a training's nor empty."""
    try:
        inside = sorted(path.name for path in folder.iterdir())
    except OSError:  # nothing there; what else is wrong, the writer will meet
        return
    if any(name in inside for name in (store.LAST, store.PREVIOUS, *LOGS)) or _is_config(folder / "config.json"):
        return
    foreign = [name for name in inside if not (OWN_PART.fullmatch(name) or any(Path(name).match(pattern) for pattern in BESIDE))]
    if foreign:
        raise UserError(
            f"{flag} {folder} holds no run but other files ({foreign[0]!r}{', ...' if len(foreign) > 1 else ''}): give another "
            f"{flag}, or --allow-foreign-files true to put a run beside them"
        )


def _is_config(path: Path) -> bool:
    """Whether it holds the options of a training, which may have been killed before it saved."""
    try:
        values = reading.values(path, 1 << 20)
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and {"save_minutes", "log_every", "recipe"} <= values.keys()


def random_states() -> dict[str, Any]:
    """States of torch's generators, the only ones not addressed by seed and step (stochastic depth draws from them)."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_states(states: Mapping[str, Any], path: Path) -> None:
    """Restore `random_states`. Raises UserError, naming `path`, for anything else."""
    try:
        torch.set_rng_state(states["cpu"])
        if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
            torch.cuda.set_rng_state_all(states["cuda"])
    except (RuntimeError, TypeError) as error:  # torch looks at every byte of them
        raise UserError(f"{path}: random is no state of a generator ({store.first_line(error)}): {checked.CURE}") from error


def set_scaler_state(scaler: torch.amp.GradScaler, state: Mapping[str, Any]) -> None:
    """Restore a scaler's scale, not its settings. Does nothing if there is no scaler now, or was none then."""
    if scaler.is_enabled() and state:
        scale = {name: state[name] for name in ("scale", "_growth_tracker")}
        scaler.load_state_dict({**scaler.state_dict(), **scale})
