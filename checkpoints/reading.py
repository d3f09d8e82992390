"""Reads files that others may have put there: only plain files are opened, of limited size.

A pipe in a folder of records would be waited for without end, a device or a file with holes has no end that fits a memory.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MOST = 1 << 26
"""Bytes of a text or of JSON, unless another limit is given: options, records, lists of classes are far smaller."""
MOST_LISTED = 1 << 32
"""Bytes of what lists a data set's pictures or annotates them."""


def opened(path: str | Path) -> BinaryIO:
    """The file, open for reading. Raises OSError for whatever is no plain file, at once."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a null byte in the name, letters that no name can have
        raise OSError(errno.EINVAL, "no file can have this name", repr(path)) from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


def content(path: str | Path, most: int = MOST) -> bytes:
    """All of a file. Raises OSError, for one of more than `most` bytes too."""
    with opened(path) as file:
        too_large = os.fstat(file.fileno()).st_size > most
        found = b"" if too_large else file.read(most + 1)
    if too_large or len(found) > most:
        raise OSError(errno.EFBIG, f"it has more than {most >> 20} MB", str(path))
    return found


def text(path: str | Path, most: int = MOST, errors: str = "strict") -> str:
    """All of a text in UTF-8, its lines ended by line feeds. Raises OSError, and UnicodeDecodeError for another encoding."""
    return content(path, most).decode("utf-8", errors).replace("\r\n", "\n").replace("\r", "\n")


def values(path: str | Path, most: int = MOST) -> Any:
    """The values of a JSON file. Raises OSError, and ValueError for invalid or too deeply nested JSON."""
    try:
        return json.loads(content(path, most))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
