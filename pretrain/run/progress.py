"""What a pretraining logs and shows: a step's values, alarms, a summary at the end. Screen: `pretrain/engine/console.py`."""

import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table

from checkpoints import escape, terminal
from pretrain.engine import distributed
from pretrain.engine.console import Screen, clock
from pretrain.images.open import has_part
from pretrain.images.source import Images
from pretrain.method.ibot import Losses
from pretrain.method.schedule import Schedule, ScheduleValues
from pretrain.run.checkpoint import Run
from pretrain.run.diagnostics import Alarms, Diagnostics

ALARMS_AFTER = 200
"""Steps."""


class Counts(NamedTuple):
    """Sums since this process started the run or resumed it."""

    skipped: int
    """Steps that were refused."""
    waited: float
    """Seconds that the loop has stood still for images."""
    bad: int
    """Images that could not be used."""


class Progress(Screen):
    """Screen and log of a pretraining; only the main process prints and writes."""

    def __init__(
        self, run: Run, images: Images, schedule: Schedule, device: torch.device, precision: str, notes: Sequence[str] = ()
    ) -> None:
        super().__init__(run, schedule.total_steps)
        self._run, self._schedule = run, schedule
        plan, options = run.plan, run.plan.options
        self._batch = plan.batch_size * distributed.world_size()
        self._since, self._since_step, self._waited = time.perf_counter(), run.step, 0.0
        self._knn = ""
        self._alarms = Alarms(options.head.out_dim, ALARMS_AFTER // options.run.log_every)
        recipe, shape = options.run.recipe or "none", plan.architecture
        self._console.print(
            f"recipe {recipe}: {shape.arch}/{shape.patch_size}, width {shape.embed_dim}, depth {shape.depth}, "
            f"on {images.name}, {len(images):,} images; {schedule.total_steps:,} steps of {self._batch} images, "
            f"{device.type} {precision}, {threads()}, in {run.folder}"
        )
        for note in notes:
            self.say(note)
        if run.step:
            self._console.print(f"continuing after step {run.step}")

    def __enter__(self) -> "Progress":
        super().__enter__()
        self._since = time.perf_counter()
        return self

    def log(
        self,
        done: int,
        now: ScheduleValues,
        losses: Losses,
        gradient_norm: torch.Tensor,
        diagnostics: Diagnostics,
        counts: Counts,
    ) -> None:
        """Write one log line and move the progress line. The one place where the loop waits for the device."""
        seconds = time.perf_counter() - self._since
        speed = (done - self._since_step) * self._batch / max(seconds, 1e-9)
        values = {
            "epoch": done / self._schedule.steps_per_epoch,
            "loss": losses.total.item(),
            "loss_cls": losses.cls.item(),
            "loss_patch": losses.patch.item(),
            **dict(zip(diagnostics._fields, torch.stack(diagnostics).tolist(), strict=True)),
            "gradient_norm": gradient_norm.item(),
            "lr": now.lr,
            "weight_decay": now.weight_decay,
            "momentum": now.momentum,
            "teacher_temperature": now.cls_temperature,
            "images_per_second": speed,
            "data_seconds": counts.waited - self._waited,
            "skipped_steps": counts.skipped,
            "bad_images": counts.bad,
            "memory_mb": memory(),
        }
        self._run.log(done, values)
        for alarm in self._alarms.check(values):
            self._run.note(done, {"alarm": alarm})
            self._console.print(f"alarm at step {done}: {alarm}")
        left = (self._schedule.total_steps - done) * self._batch / max(speed, 1e-9)
        self._since, self._since_step, self._waited = time.perf_counter(), done, counts.waited
        self.show(
            done,
            f"epoch {values['epoch']:.2f}  loss cls {values['loss_cls']:.3f} patch {values['loss_patch']:.3f}  "
            f"{self._knn}{speed:.0f} images/s  data {values['data_seconds']:.1f} s  {clock(left)} left",
        )

    def knn(self, done: int, accuracy: float) -> None:
        """Log a k-NN measurement; its time does not count as training's."""
        self._run.log(done, {"knn": accuracy})
        self._knn = f"k-NN {accuracy:.1f} %  "
        self._printed_at = 0.0
        self._since = time.perf_counter()
        self._since_step = done


def threads() -> str:
    """How many threads compute."""
    number = torch.get_num_threads()
    return f"{number} thread{'s' * (number > 1)}"


def memory() -> float:
    """Most megabytes held so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def summary(run: Run, seconds: float) -> None:
    """The run in a table, and the command to type next."""
    if not distributed.is_main():
        return
    console = terminal.Console(soft_wrap=True)
    history = run.history()
    knn = [(line["step"], _number(line, "knn")) for line in history if "knn" in line]
    last: dict[str, Any] = next((line for line in reversed(history) if "loss" in line), {})
    table = Table(title=f"iBOT pretraining: {run.folder}", show_header=False, title_justify="left")
    table.add_row("epochs, steps", f"{_number(last, 'epoch'):.1f}, {_number(last, 'step'):.0f}")
    table.add_row("losses: [CLS], patch", f"{_number(last, 'loss_cls'):.3f}, {_number(last, 'loss_patch'):.3f}")
    if knn:
        table.add_row("k-NN accuracy (k = 10, subset)", "  ".join(f"{value:.1f}" for _, value in knn) + " %")
    bad = sum("bad_image" in line for line in history)
    if bad:
        table.add_row("images that could not be used", f"{bad}, named in {run.folder / 'metrics.jsonl'}")
    table.add_row("elapsed time", clock(seconds))
    table.add_row("backbone (teacher)", str(run.folder / "backbone.safetensors"))
    console.print(table)
    source = run.plan.options.images.data
    data = [] if source == "sample" else ["--data", source if knn and has_part(source, "val") else "LABELLED_IMAGES"]
    words = [_python(), "-m", "probes.knn", "--ckpt", run.folder, *data, "--baselines"]
    console.print(f"next: {escape.shell(words)}")


def _number(line: dict[str, Any], name: str) -> float:
    """A value of a log line; NaN where it has none, or null, which stands for what was not finite."""
    value = line.get(name)
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _python() -> str:
    """How to type this interpreter from here."""
    active = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    inside = Path(sys.prefix).is_relative_to(Path.cwd())
    return "python" if active or not inside else os.path.relpath(sys.executable)
