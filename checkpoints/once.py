"""A file that one process makes and all others use: under a lock, by another name until it has been checked."""

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from checkpoints import terminal
from checkpoints.command import WorkError

LOOK, LONGEST = 0.2, 12 * 3600.0
"""Seconds between two looks at a lock that another process holds, and until it is given up."""


def make_once(path: Path, fill: Callable[[Path], None], check: Callable[[Path], None]) -> bool:
    """Make the file `path` unless it is there: whether this call has made it.

    `fill` writes the part, which may hold what an earlier `fill` has left there; `check` raises if the part is not what it
    should be, and it is then removed. Other processes wait and find the result. Raises what these two raise, and OSError.
    """
    if path.exists():  # also where nothing may be written
        return False
    with alone(path):
        if path.exists():
            return False
        part = path.with_name(path.name + ".part")
        _remove_foreign(part)
        fill(part)
        try:
            check(part)
        except Exception:
            part.unlink(missing_ok=True)
            raise
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        return True


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process, of this user or another, is in here for the same path; its folder is made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    file = _locked(lock, path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would leave it with processes that were forked meanwhile
        os.close(file)


def _locked(lock: Path, path: Path) -> int:
    """The open and locked file of this name. Whoever held it before may have removed it: then it is another one, and again."""
    said = False
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not said:
                    terminal.say(f"waiting for another process that makes {path}", error=True)
                said = True
                _wait_for(file, path)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.lstat(lock)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _wait_for(file: int, path: Path) -> None:
    """Wait for the lock, LONGEST seconds at most. Raises WorkError."""
    end = time.monotonic() + LONGEST
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise WorkError(
                    f"another process has been making {path} for {LONGEST / 3600:.0f} hours: "
                    "end it if it stands still, and start again"
                ) from None
            time.sleep(LOOK)


def _remove_foreign(part: Path) -> None:
    """Remove what stands there unless it is a plain file of this user with no other name: writing to it could change another."""
    try:
        found = os.lstat(part)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != os.geteuid():
        part.unlink()
