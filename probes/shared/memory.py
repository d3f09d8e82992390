"""Free memory, and room for large arrays: in memory, or in a temporary file where they would take too much of it."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from checkpoints.cli import WorkError
from probes.shared import console

SHARE = 0.5
"""Of the free memory, which arrays may take; what needs more lies in a file."""
MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
GROUPS = {
    Path("/sys/fs/cgroup"): ("memory.max", "memory.current"),
    Path("/sys/fs/cgroup/memory"): ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}
"""A container's limit and what it uses, in control groups of version 2 and 1."""


def available() -> int:
    """Bytes that can be taken without swapping: free, or used for cached files, within a container's limit."""
    found = [1024 * amount for name, amount in _amounts(MEMINFO) if name == "MemAvailable:"]
    for folder, (limit, used) in GROUPS.items():
        cached = [amount for name, amount in _amounts(folder / "memory.stat") if name == "inactive_file"]
        for (_, most), (_, now) in zip(_amounts(folder / limit), _amounts(folder / used), strict=False):
            found.append(max(0, most - now + sum(cached)))
    return min(found, default=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def held() -> int:
    """Bytes that this process has in memory now; 0 where the system does not say."""
    return sum(1024 * amount for name, amount in _amounts(STATUS) if name == "VmRSS:")


def _amounts(path: Path) -> list[tuple[str, int]]:
    """The whole numbers of a file of the system, one a line, with their names; empty where there is no such file, or no limit."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return []
    return [(row[0], int(number)) for row in rows for number in row[:2][-1:] if number.isdecimal()]


def in_words(amount: int) -> str:
    """Bytes in the unit that reads best."""
    for size, name in ((10**9, "GB"), (10**6, "MB")):
        if amount >= size:
            return f"{amount / size:.1f} {name}"
    return f"{amount / 1000:.0f} kB"


@contextmanager
def arrays(what: str, shapes: Sequence[tuple[Sequence[int], type]], cure: str) -> Iterator[list[np.ndarray]]:
    """Arrays of these shapes and types to be filled; `what` they are for is said with their size and place.

    A file for them has no name and goes with the process. Raises WorkError with `cure` where neither place has room.
    """
    bytes_of = [int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in shapes]
    need, free = sum(bytes_of), available()
    line = f"{what} take {in_words(need)}"
    if need <= SHARE * free:
        console.say(f"{line}, held in memory")
        yield [np.empty(shape, kind) for shape, kind in shapes]
        return
    folder, line = tempfile.gettempdir(), f"{line}, more than half of the {in_words(free)} of memory that are free"
    room = _room(folder)
    if need > room:
        raise WorkError(f"{line}, and {folder} has room for {in_words(room)}: {cure}, or set TMPDIR to a folder with more room")
    console.say(f"{line}: held in a temporary file in {folder}")
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in shapes]
        for file, size in zip(files, bytes_of, strict=True):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and not a signal on writing later
        yield [np.memmap(file, kind, "r+", shape=tuple(shape)) for file, (shape, kind) in zip(files, shapes, strict=True)]


def _room(folder: str) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
