"""A file that one process makes and all others use: under a lock, by another name until it has been checked."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from checkpoints import hold, terminal


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
    file = hold.taken(lock, lambda holder: terminal.say(f"waiting for {holder}, which makes {path}", error=True))
    assert file is not None  # it has been waited for
    try:
        yield
    finally:
        hold.release(lock, file)


def _remove_foreign(part: Path) -> None:
    """Remove what stands there unless it is a plain file of this user with no other name: writing to it could change another."""
    try:
        found = os.lstat(part)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != os.geteuid():
        part.unlink()
