"""Batches from worker processes to the device, from any step on, ahead of the loop.

Workers decode and cut out; colours are changed by them on a CPU, and on the device, beside the step before, on a GPU.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from checkpoints import parent, terminal
from pretrain.batches.ahead import Ahead, SideStream
from pretrain.batches.dataset import Batch, Change, Cut, StepDataset, make_batch
from pretrain.batches.feeding import fed


class NumberedLoader:
    """Batches of a data set of whole batches, from number `first` up to `last`, made by workers ahead of the loop.

    `waited` is the seconds the loop has stood still for them.
    """

    def __init__(self, batches: Dataset[Any], first: int, last: int, workers: int, device: torch.device) -> None:
        self.device, self._batches = device, batches
        self.waited = 0.0
        self.stop: Sequence[int] = ()
        """Signals that have asked the run to stop; with one, no batch is waited for long."""
        self._numbers, self._workers = range(first, last), workers

    def __iter__(self) -> Iterator[Any]:
        return self.made()

    def made(self) -> Iterator[Any]:
        """Batches as they come from the workers. Raises Starved where none comes any more."""
        return fed(
            self._batches,
            self._numbers,
            self._workers,
            pin_memory=self.device.type == "cuda",
            prepare=prepare_worker,
            generator=torch.Generator(),  # its own: the global one belongs to the networks
            asked_to_stop=self._stopping,
            on_wait=self._count,
        )

    def _stopping(self) -> bool:
        return bool(self.stop)

    def _count(self, seconds: float) -> None:
        self.waited += seconds


class Loader(NumberedLoader):
    """A pretraining's batches on their device.

    On a GPU a thread copies the next batch and makes its crops on a stream of its own while the loop works on the present one
    (`pretrain/batches/ahead.py`); `in_thread` decides otherwise. `close` when no further batch is wanted.
    """

    def __init__(
        self, steps: StepDataset, first: int, last: int, workers: int, device: torch.device, *, in_thread: bool | None = None
    ) -> None:
        super().__init__(steps, first, last, workers, device)
        self._steps = steps
        self._kernels = color_change(device)
        self._in_thread = device.type == "cuda" if in_thread is None else in_thread
        self._ahead: Ahead | None = None

    def __iter__(self) -> Iterator[Batch]:
        batches = map(self._to_device, self.made())
        return self._from_thread(batches) if self._in_thread else batches

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._ahead is not None:
            self._ahead.close()

    def _to_device(self, batch: Batch | Cut) -> Batch:
        there = batch.to(self.device)
        return make_batch(there, self._steps.mean, self._steps.std, self._kernels) if isinstance(there, Cut) else there

    def _from_thread(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """What the loop waits for is the thread, not what the thread waits for."""
        self._ahead = Ahead(batches, SideStream(self.device) if self.device.type == "cuda" else None)
        found = iter(self._ahead)
        while True:
            began = time.perf_counter()
            batch = next(found, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def _stopping(self) -> bool:
        return super()._stopping() or (self._ahead is not None and self._ahead.ended.is_set())

    def _count(self, seconds: float) -> None:
        if not self._in_thread:
            super()._count(seconds)


def color_change(device: torch.device) -> Change | None:
    """What changes colours on a GPU, after a trial there; None on a CPU, and where the trial fails, which is said."""
    if device.type != "cuda":
        return None
    try:
        from pretrain.batches import color_kernels  # noqa: PLC0415  # Triton comes with torch for GPUs only

        color_kernels.trial(device)
    except Exception as error:  # Triton, its compiler and the driver raise almost anything
        why = str(error).strip().splitlines() or [type(error).__name__]
        terminal.say(
            f"the kernels for crops' colours cannot be used here ({why[0]}): crops are made without them, slower", error=True
        )
        return None
    return color_kernels.change


def prepare_worker(_: int) -> None:
    """Worker initialisation: one thread; signals to stop are left to the main process, and a worker ends with it.

    A process group of its own keeps a worker from signals to the main process's group. SIGTERM must end it: that is how the main
    process ends workers that are left.
    """
    parent.end_with_loader()
    torch.set_num_threads(1)
    os.setpgrp()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
