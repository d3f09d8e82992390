"""Other work on this machine: while there is any, threads that wait for each other sleep in place of spinning.

Spinning threads take cores from other programs and are slowed by them: with one busy neighbour on two cores a step took three
times as long. libgomp reads once, when it is loaded, how long its threads spin; but they spin a hundred times only while it has
more threads than there are cores (GOMP_SPINCOUNT in its manual), whichever they are. So an idle second pool of threads is kept
while others work. Numbers do not change: the pool that computes stays as it is.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

import torch

from checkpoints.start import SHORT

INTERVAL = 1.0
"""Seconds between two looks."""
BUSY, FREE = 0.3, 0.2
"""Cores that others use, from which on threads sleep, and below which they spin again."""
STAT = Path("/proc/stat")
REGION = 1 << 20
"""Values: enough for torch to share an operation among its threads."""


class IdlePool:
    """Threads of OpenMP that wait for nothing, while it is open."""

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_open(self) -> bool:
        return self._thread is not None

    def open(self) -> None:
        if self._thread is None:
            self._closing.clear()
            self._thread = threading.Thread(target=self._hold, name="idle pool", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """The pool ends with the thread that has it."""
        if self._thread is not None:
            self._closing.set()
            self._thread.join()
            self._thread = None

    def _hold(self) -> None:
        torch.zeros(REGION).add_(1)
        self._closing.wait()


class Watch:
    """Opens the pool while others use the cores that this process may use."""

    def __init__(self) -> None:
        self.pool = IdlePool()
        self._last = self._now()

    def look(self) -> None:
        """To be called again and again; decides by what was used since the last time."""
        before, self._last = self._last, self._now()
        others = cores_of_others(before, self._last)
        if others >= BUSY:
            self.pool.open()
        elif others < FREE:
            self.pool.close()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        return time.monotonic(), busy_seconds(STAT.read_text(), os.sched_getaffinity(0)), own_seconds()

    def run(self) -> None:
        with contextlib.suppress(OSError):  # /proc may go; then all stays as it is
            while True:
                time.sleep(INTERVAL)
                self.look()


def busy_seconds(stat: str, cores: set[int]) -> float:
    """Seconds for which these cores were not idle since the machine started, by the text of /proc/stat.

    Steps of 1/100 s. What the host of a virtual machine took (steal) counts as busy.
    """
    ticks = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, *rest = map(int, fields)
            ticks += user + nice + system + sum(rest[:3])
    return ticks / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Seconds that this process and those that it has started computed so far: a loader's workers belong to it."""
    times = os.times()
    ticks = 0
    for thread in threading.enumerate():
        children = Path(f"/proc/self/task/{thread.native_id}/children")
        for child in children.read_text().split() if children.exists() else ():
            with contextlib.suppress(OSError):  # it has ended since, and is among the waited-for
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
    return sum(times[:4]) + ticks / os.sysconf("SC_CLK_TCK")


def cores_of_others(before: tuple[float, float, float], now: tuple[float, float, float]) -> float:
    """How many cores others used, from (time, busy seconds of all, seconds of this process) of two moments."""
    seconds, all_, own = (later - earlier for earlier, later in zip(before, now, strict=True))
    return (all_ - own) / seconds if seconds > 0 else 0.0


def watch() -> None:
    """Begin to watch in a thread of its own, if waiting is as we have set it and there is something to watch."""
    ours = all(os.environ.get(name) == value for name, value in SHORT.items()) and "OMP_WAIT_POLICY" not in os.environ
    crowded = 2 * torch.get_num_threads() > len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else False
    if ours and crowded and torch.get_num_threads() > 1 and STAT.exists():
        threading.Thread(target=Watch().run, name="neighbours", daemon=True).start()
