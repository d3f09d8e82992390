"""The screen of a dense training: a table of what is run, then progress with the time left, the loss and the last test.

Importing this file imports MMEngine; what that says itself goes to `log.txt` in the run's folder.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner
from rich.progress import BarColumn, TaskID
from rich.progress import Progress as Bar
from rich.table import Table

from checkpoints import terminal
from pretrain.engine.console import PLAIN_LINES_EVERY, clock
from transfer.report import HEADLINES, METRICS

NAMES = {"box_ap": "box AP", "mask_ap": "mask AP", "miou": "mIoU"}
LOG = "log.txt"
"""In the run's folder: what the libraries print, log and warn of."""
LOOKS_EVERY = 0.5
"""Seconds between two looks at the loss, each of which waits for the device."""


class QuietRunner(Runner):
    """MMEngine's runner; the config is written once it is complete (`transfer/train.py`), processes on CPUs are joined."""

    def dump_config(self) -> None:
        """Write nothing: schedulers are not scaled yet."""

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """As in MMEngine, which can join processes only where there is a GPU for each."""
        if self.distributed and not torch.cuda.is_available() and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: Any, model: Any) -> Any:
        """As in MMEngine; without a GPU batch norms are each process's own, since synchronised ones need one."""
        if not torch.cuda.is_available():
            model = revert_sync_batchnorm(model)
        return super().wrap_model(model_wrapper_cfg, model)


def log_file(folder: Path, rank: int) -> Path:
    """Where a process's libraries write."""
    return folder / (LOG if rank == 0 else f"log-{rank}.txt")


def headline(task: str, numbers: Mapping[str, Any]) -> str:
    """The numbers of a test that count, as in `box AP 12.3, mask AP 10.1`."""
    found = {ours: numbers[METRICS[task][ours]] for ours in HEADLINES[task] if METRICS[task][ours] in numbers}
    factor = 100 if task == "coco" else 1
    return ", ".join(f"{NAMES[ours]} {factor * float(value):.1f}" for ours, value in found.items())


def show_table(rows: Sequence[tuple[str, str]]) -> None:
    """What is run, in two columns on stdout."""
    shown = Table(show_header=False)
    for row in rows:
        shown.add_row(*row)
    terminal.Console().print(shown)


class Screen(Hook):
    """Progress of training and test. A context manager, so that a bar ends with whatever ends the run."""

    priority = "LOWEST"

    def __init__(self, task: str, main: bool) -> None:
        self._task, self._main, self._score, self._loss = task, main, "", ""
        self._console = terminal.Console(quiet=not main, soft_wrap=True)
        self._bar: Bar | None = None
        self._id = TaskID(0)
        self._printed_at = self._looked_at = self._began = time.monotonic()
        self._first = 0

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _begin(self, total: int, done: int) -> None:
        self._end()
        self._began, self._first, self._printed_at = time.monotonic(), done, time.monotonic()
        if self._main and self._console.is_terminal:
            self._bar = terminal.bar(BarColumn(bar_width=20), terminal.Description(), console=self._console)
            self._bar.start()
            self._id = self._bar.add_task("starting", total=total, completed=done)

    def _show(self, what: str, done: int, total: int, words: Sequence[str], *, last: bool = False) -> None:
        now = time.monotonic()
        if now - self._looked_at < LOOKS_EVERY and not last:
            return
        self._looked_at = now
        left = (now - self._began) / max(done - self._first, 1) * (total - done)
        line = ", ".join(filter(None, (*words, f"{clock(left)} left" if done < total else "")))
        if self._bar is not None:
            self._bar.update(self._id, completed=done, description=f"{what} {done}/{total}  {line}")
        elif now - self._printed_at > PLAIN_LINES_EVERY or last:
            self._printed_at = now
            self._console.print(f"{what} {done}/{total}  {line}")

    def before_train(self, runner: Any) -> None:
        if runner.iter:
            self._console.print(f"goes on after step {runner.iter} of {runner.max_iters}")
        self._begin(runner.max_iters, runner.iter)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        done, total = runner.iter + 1, runner.max_iters
        if not self._main or (time.monotonic() - self._looked_at < LOOKS_EVERY and done < total):
            return
        if outputs and "loss" in outputs:
            self._loss = f"loss {float(outputs['loss']):.3f}"
        rate = max(group["lr"] for group in runner.optim_wrapper.optimizer.param_groups)  # layers below the heads may have less
        epoch = (
            f"epoch {runner.epoch + 1}/{runner.max_epochs}" if runner.train_loop.__class__.__name__.startswith("Epoch") else ""
        )
        self._show("step", done, total, (epoch, self._loss, f"lr {rate:.2g}", self._score), last=done == total)

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        self._score = headline(self._task, metrics or {})
        if self._score:
            self._console.print(f"tested after step {runner.iter}: {self._score}")

    def after_train(self, runner: Any) -> None:
        self._end()

    def before_test(self, runner: Any) -> None:
        self._begin(len(runner.test_dataloader), 0)

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        total = len(runner.test_dataloader)
        self._show("test", batch_idx + 1, total, (), last=batch_idx + 1 == total)

    def after_test(self, runner: Any) -> None:
        self._end()
