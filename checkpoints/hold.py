"""Who works where: a lock that names its machine and process, and is gone with the process, however that ends."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from checkpoints import terminal
from checkpoints.cli import UserError, WorkError

NAME = ".lock"
"""Name of the lock file in a folder that one command works in."""
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})
LONGEST = 300
"""Bytes of a lock file that are read: anyone may have written it."""
LOOK, PATIENCE = 0.2, 12 * 3600.0
"""Seconds between two looks at a lock that another process holds, and until it is given up."""
_open: set[int] = set()
"""Locks of this process. A child that is forked closes them: else a loader's worker that is left over would hold a dead run's."""


def _forget() -> None:
    for file in _open:
        with contextlib.suppress(OSError):
            os.close(file)
    _open.clear()


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def held(lock: Path, what: str, cure: str) -> Iterator[None]:
    """Context that holds the lock file against other processes; its folder is created, and removed again if it stayed empty.

    Raises WorkError that names the process which has it, UserError where the folder cannot be written. What a process has left
    that was killed is no obstacle. A file system without locks is named on stderr, and the work goes on.
    """
    made = [folder for folder in (lock.parent, *lock.parent.parents) if not os.path.exists(folder)]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = taken(lock)
    except OSError as error:
        raise UserError(f"cannot write to {what} ({error.strerror}): see to the folder, or {cure}") from error
    if file is None:
        raise WorkError(f"{what} is in use by {_holder(lock)}: wait until that has ended, or {cure}")
    try:
        yield
    finally:
        release(lock, file)
        with contextlib.suppress(OSError):  # the first that is used now ends it
            for folder in made:
                folder.rmdir()


def taken(lock: Path, wait: Callable[[str], None] | None = None) -> int | None:
    """The open, locked file of this name; None where another process has it, or `wait` is told who and it is waited for.

    Whoever held it before may have removed it: then it is another one, and again. Raises OSError.
    """
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            if not _flock(file, lock, wait):
                os.close(file)
                return None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.lstat(lock)):
                    _sign(file, lock)
                    _open.add(file)
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def release(lock: Path, file: int) -> None:
    """Let others in. In a child that was forked meanwhile nothing happens."""
    if file not in _open:
        return
    _open.remove(file)
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(file), os.lstat(lock)):
            lock.unlink()
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _flock(file: int, lock: Path, wait: Callable[[str], None] | None) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if wait is None:
            return False
        wait(_holder(lock))
        _wait_for(file, lock)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        terminal.say(
            f"note: the file system of {lock.parent} has no locks ({error.strerror}): let no other command write there",
            error=True,
        )
    return True


def _wait_for(file: int, lock: Path) -> None:
    """Wait for the lock, PATIENCE seconds at most. Raises WorkError."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                hours = PATIENCE / 3600
                raise WorkError(
                    f"{_holder(lock)} has had {lock} for {hours:.0f} hours: end it if it stands still, and start again"
                ) from None
            time.sleep(LOOK)


def _sign(file: int, lock: Path) -> None:
    """Write down who has it. Where the one before was on another machine and has not ended as it should, say so."""
    before = _read(file)
    machine = before.partition(" on ")[2].partition(",")[0]
    if machine and machine != socket.gethostname():
        terminal.say(
            f"note: {lock} was left by {before}: if that still runs, stop one of the two (locks may not reach other machines)",
            error=True,
        )
    text = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}\n"
    with contextlib.suppress(OSError):  # a full disk: it is locked all the same
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)


def _holder(lock: Path) -> str:
    try:
        file = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return "another process"
    try:
        return _read(file) or "another process"
    finally:
        os.close(file)


def _read(file: int) -> str:
    with contextlib.suppress(OSError):
        return os.pread(file, LONGEST, 0).decode("utf-8", "replace").strip()
    return ""
