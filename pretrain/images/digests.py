"""Digests of images, so that a change is noticed: of all bytes where these are few, else of each file's size and times."""

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from checkpoints import reading

AFFORDED = 256 << 20
"""Bytes of files that are read for it: a second."""
CHUNK = 1 << 20


def digest(parts: Iterable[bytes]) -> str:
    """Hex digest of the parts one after the other, each with its length."""
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{len(part)} ".encode())
        found.update(part)
    return found.hexdigest()


def of_files(paths: Iterable[str | Path]) -> str:
    """Hex digest of all that the files hold, or, beyond AFFORDED bytes, of their names, sizes, numbers and times of change.

    A file that is missing, or is none, counts as such. A time of change (`ctime`) cannot be set: a file that was replaced under
    the same name, size and date differs in it.
    """
    kept = [(path, state(path)) for path in paths]
    if sum(found.st_size for _, found in kept if found) <= AFFORDED:
        return digest(_of_content(path) if found else b"missing" for path, found in kept)
    return digest(_named(path, found) for path, found in kept)


def state(path: str | Path) -> os.stat_result | None:
    """File status of a plain file; None for anything else, or if it does not exist."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _named(path: str | Path, found: os.stat_result | None) -> bytes:
    known = f" {found.st_size} {found.st_ino} {found.st_mtime_ns} {found.st_ctime_ns}" if found else " missing"
    return os.fsencode(path) + known.encode()


def _of_content(path: str | Path) -> bytes:
    found = hashlib.sha256()
    try:
        with reading.opened(path) as file:
            while part := file.read(CHUNK):
                found.update(part)
    except OSError as error:  # it will be named when its turn comes
        return str(error.strerror).encode()
    return found.digest()
