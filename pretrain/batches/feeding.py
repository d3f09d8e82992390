"""Batches from worker processes, with a time limit: no wait is unlimited, and a worker that died is named.

torch looks after workers by a handler of SIGCHLD, which raises wherever the main process is just then, in the middle of an
optimisation step perhaps. Here it is taken away: a worker is looked after when something is asked of it, between two steps.
"""

import contextlib
import math
import multiprocessing.queues
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from checkpoints import parent, terminal
from checkpoints.cli import UserError, WorkError
from pretrain.engine import distributed

LOOK = 2
"""Seconds between two looks at workers that are waited for."""
PATIENCE = 600.0
"""Seconds that a batch may take."""
AFTER_STOP = 5.0
"""Seconds that a batch may still take once the run was asked to stop."""
AHEAD = 4
"""Batches that each worker makes ahead."""
SHARED = "/dev/shm"  # where torch puts what workers hand over
MARGIN = 1.5
"""Ratio by which later batches may be larger than the measured one."""
PLENTY = 16 << 30
"""Bytes of shared memory with which no batch is measured."""
MOST_WAITING = 8 << 30
"""Bytes of batches that wait in one process's queue, where the data set says how large its batches are (`most_bytes`)."""
NO_ROOM = 28
"""Exit code of a worker that could not hand its batch over."""


class Starved(WorkError):
    """No batch comes any more; nothing of a step has been done."""


class Refused(NamedTuple):
    """A UserError or WorkError of a worker, in place of a batch: its type and its words.

    As an exception it would arrive with torch's account of the worker's stack in place of its words.
    """

    kind: type[UserError | WorkError]
    message: str


class Batches(Dataset[Any]):
    """Whole batches of a data set: `collate` of the items whose numbers are given, or, without it, the item of one number.

    UserError and WorkError are values: `Refused`.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any] | None) -> None:
        self._dataset, self._collate = dataset, collate
        self.most_bytes = 0 if collate else int(getattr(dataset, "most_bytes", 0))

    def __getitem__(self, number: Any) -> Any:
        try:
            return self._dataset[number] if self._collate is None else self._collate([self._dataset[one] for one in number])
        except (UserError, WorkError) as error:
            return Refused(type(error), str(error))


def fed(
    dataset: Any,
    numbers: Iterable[Any],
    workers: int,
    *,
    collate: Callable[[list[Any]], Any] | None = None,
    ahead: int = AHEAD,
    pin_memory: bool = False,
    generator: torch.Generator | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
    on_wait: Callable[[float], None] = lambda seconds: None,
    prepare: Callable[[int], None] = parent.end_with_loader,
) -> Iterator[Any]:
    """Yields a batch for each of `numbers`, made ahead by so many worker processes, or here: see `Batches`.

    `ahead`, `pin_memory` and `generator` are a DataLoader's; `on_wait` is called with the seconds that each batch was waited for.
    Raises Starved when a worker has died or no batch comes for PATIENCE seconds; errors of the data set are raised unchanged.
    """
    batches = Batches(dataset, collate)
    workers, ahead = room_for(batches, numbers, workers, ahead)
    options: dict[str, Any] = {"pin_memory": pin_memory, "generator": generator}
    if workers:
        options |= {"timeout": LOOK, "prefetch_factor": ahead, "worker_init_fn": _Prepared(prepare)}
    loader: DataLoader[Any] = DataLoader(
        batches, batch_size=None, sampler=numbers, collate_fn=as_it_is, num_workers=workers, **options
    )
    found = iter(loader)
    if workers and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's: see above
    while True:
        began = time.perf_counter()
        batch = _next(found, asked_to_stop)
        on_wait(time.perf_counter() - began)
        if batch is _END:
            return
        if isinstance(batch, Refused):
            raise batch.kind(batch.message)
        yield batch


def as_it_is(batch: Any) -> Any:
    """In place of torch's own rule, which makes tensors of all arrays."""
    return batch


@contextlib.contextmanager
def saved_if_starved(save: Callable[[], None], done: Callable[[], int], first: int, stop: Sequence[int]) -> Iterator[None]:
    """Around a loop of steps: where no batch comes any more, save what is done since step `first`, then say so.

    Passes over Starved where the run was asked to stop, and so ends the loop. Several processes save together only, between two
    steps of all; there the last checkpoint stays.
    """
    try:
        yield
    except Starved as error:
        alone = distributed.world_size() == 1
        if alone and done() > first:
            save()
        if stop and alone:
            return
        what = f"saved after step {done()}" if alone and done() > first else "the last checkpoint stays"
        raise Starved(f"{error}. {what.capitalize()}: the same command goes on from there") from None


_END = object()


def _next(found: Any, asked_to_stop: Callable[[], bool]) -> Any:
    """The next batch, or `_END`."""
    began, stopping = time.monotonic(), math.inf
    while True:
        try:
            return next(found, _END)
        except (RuntimeError, OSError, EOFError) as error:
            timed_out = str(error).startswith("DataLoader timed out")
            dead = _dead(found, 0.0 if timed_out else float(LOOK))  # the end of its pipe is seen before its own
            if not timed_out and not dead:
                raise
            now = time.monotonic()
            stopping = min(stopping, now) if asked_to_stop() else math.inf
            if dead or now - began > PATIENCE or now - stopping > AFTER_STOP:
                _kill(found)
                raise Starved(_why(dead)) from None


def _dead(found: Any, patience: float) -> list[Any]:
    """Workers that have died, or do so within this time."""
    end = time.monotonic() + patience
    while True:
        dead = [worker for worker in getattr(found, "_workers", []) if worker.exitcode not in (None, 0)]
        if dead or time.monotonic() >= end:
            return dead
        time.sleep(0.05)


def _kill(found: Any) -> None:
    """End all workers now: one that has died may hold what the others wait for."""
    for worker in getattr(found, "_workers", []):
        worker.kill()


def _why(dead: Sequence[Any]) -> str:
    """The error message for workers that have died, or for a timeout if there are none."""
    if not dead:
        return (
            f"no batch has come from the workers for {PATIENCE / 60:.0f} minutes: the disk or network that holds the images does "
            "not answer, perhaps; see to it and start again, or give --workers 0 to see where it stands still"
        )
    worker = dead[0]
    cause = f"exit code {worker.exitcode}"
    if worker.exitcode < 0:
        cause = signal.Signals(-worker.exitcode).name
    number = worker.name.rpartition("-")[2]
    cure = "give fewer --workers (--workers 0 makes batches in the main process)"
    if worker.exitcode in (-signal.SIGBUS, NO_ROOM):
        cure = f"{SHARED} is full; make it larger (docker run --shm-size 8g) or {cure}"
    elif worker.exitcode == -signal.SIGKILL:
        cure = f"the machine or the container ran out of memory, perhaps; {cure}, or a smaller batch"
    elif worker.exitcode < 0:
        cure = f"a library that reads images has crashed, perhaps; {cure} to see which image it is"
    return f"worker process {number} (pid {worker.pid}), which prepares batches, has died of {cause}: {cure}"


class _Prepared:
    """`worker_init_fn`: the caller's, and an exit if a batch cannot be handed over, of which torch would only print a note."""

    def __init__(self, prepare: Callable[[int], None]) -> None:
        self._prepare = prepare

    def __call__(self, worker: int) -> None:
        self._prepare(worker)
        multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_cannot_hand_over)  # type: ignore[attr-defined]


def _cannot_hand_over(error: BaseException, _: Any) -> None:
    os._exit(NO_ROOM if isinstance(error, RuntimeError | OSError) else 1)


def default_workers() -> int:
    """As many as help more than they take from the training's own threads: this process's share of the cores, but for one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(1, cores // processes_here() - 1)


def processes_here() -> int:
    """Processes of this run on this machine, as torchrun counts them."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(count)) if count.isdecimal() else 1


def free() -> int:
    """Bytes of shared memory that this process may fill; processes of one run on this machine share them."""
    try:
        return shutil.disk_usage(SHARED).free // processes_here()
    except OSError:  # no such place here: shared memory is kept elsewhere
        return PLENTY


def room_for(batches: Any, numbers: Iterable[Any], workers: int, ahead: int) -> tuple[int, int]:
    """Numbers of workers and of batches ahead of each that fit into shared memory; prints a note if these are reduced.

    Where there is little shared memory, the first batch is made here and measured. Where the data set says how large a batch may
    be, no more are made ahead than MOST_WAITING holds, but one for each worker.
    """
    one = batches.most_bytes if isinstance(batches, Batches) else 0
    if workers and one:
        ahead = min(ahead, max(1, MOST_WAITING // (one * workers)))
    there = free()
    if not workers or there >= PLENTY:
        return workers, ahead
    first = next(iter(numbers), None)
    one = one or (0 if first is None else math.ceil(bytes_of(batches[first]) * MARGIN))
    fit = there // max(one, 1) - 1  # the one that the main process has in hand
    now = (workers, min(ahead, fit // workers)) if fit >= workers else (max(fit, 0), 1)
    if now != (workers, ahead):
        terminal.say(
            f"{SHARED} has {there / 2**20:.1f} MB free, a batch needs up to {one / 2**20:.1f} MB: "
            f"{now[0] or 'no'} workers, {now[1] if now[0] else 0} batches ahead of each in place of {workers} and {ahead}; "
            "a larger one (docker run --shm-size 8g) makes training faster",
            error=True,
        )
    return now


def bytes_of(value: Any) -> int:
    """Bytes of all tensors in nested tuples, lists and dicts, each rounded up to whole pages."""
    if isinstance(value, Tensor):
        return -(-value.numel() * value.element_size() // 4096) * 4096
    if isinstance(value, Mapping):
        return sum(map(bytes_of, value.values()))
    return sum(map(bytes_of, value)) if isinstance(value, tuple | list) else 0
