"""Paths that a file may name, and paths that may be written: the command line is trusted, what lies in folders is not.

A name that was typed on this command line means whatever it says. A name that was read from a file is a local path below a folder
that was typed, never an address or a command, or it is not opened. A link that lies below the folder to write to is not written
through; the folder itself may be reached by links, they are its owner's.
"""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from checkpoints.cli import UserError

SHOWN = 120
"""Characters of a foreign name in an error."""
LONGEST = 255
"""Bytes of a file's name, on any of the usual file systems."""


def recorded(name: object, *, file: Path, below: Sequence[Path], cure: str) -> Path:
    """The local path that a name written in `file` means, absolute, links followed, so that it can be taken for nothing else.

    Raises UserError unless it exists below one of the folders `below`, which the user has named on this command line.
    """
    if isinstance(name, str) and name and "\0" not in name:
        path = Path(os.path.realpath(name))
        if os.path.exists(path) and any(path.is_relative_to(os.path.realpath(folder)) for folder in below):
            return path
    where = " or ".join(str(folder) for folder in below)
    raise UserError(f"{file} names {_shown(name)}, which is nothing below {where}, and so it is not opened: {cure}")


def listed(folder: Path, names: Iterable[str], *, file: Path, cure: str) -> list[Path]:
    """The paths that names in a list mean: `folder / name` each. Links are followed as anywhere in a data set.

    Raises UserError for the first that leads out of `folder` by its name, absolute or by `..`.
    """
    found = []
    for name in names:
        path = folder / name
        if any(len(os.fsencode(part)) > LONGEST for part in path.parts):
            raise UserError(f"{file} names {_shown(name)}, which no file can be called: {cure}")
        found.append(inside_of(folder, name, file=file, cure=cure))
    return found


def inside_of(folder: Path, name: str, *, file: Path, cure: str) -> Path:
    """`folder / name`, which may be nothing. Raises UserError where it leads out of the folder, absolute or by `..`."""
    path = folder / name
    if not leads_inside(folder, path):
        raise UserError(f"{file} names {_shown(name)}, which does not lie in {folder}, and so it is not opened: {cure}")
    return path


def leads_inside(folder: Path, path: str | Path) -> bool:
    """Whether a path lies below a folder by its name; links are not looked at."""
    root = os.path.abspath(folder).rstrip(os.sep) + os.sep
    return os.path.abspath(path).startswith(root)


def below(folder: Path, *names: str) -> Path:
    """`folder / names`, to be written to.

    Raises UserError where a name leads out of the folder, and where it or a folder on the way to it is a link or no plain file.
    """
    path = folder
    for part in (part for name in names for part in Path(name).parts):
        if part == ".." or os.path.isabs(part):
            raise UserError(f"{_shown(os.path.join(*names))} would be written outside {folder}: give other names")
        path = path / part
        refuse_link(path)
    return path


def tried(path: Path, flag: str = "--out") -> Path:
    """Returns the path after creating and removing a file beside it, so that failures come before the work.

    Raises UserError where that fails, or a folder lies in its place; what was made for it is removed again.
    """
    refuse_special(path)
    made = [folder for folder in (path.parent, *path.parent.parents) if not os.path.exists(folder)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        os.close(handle)
        os.unlink(name)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"nothing can be written to {path} ({why}): give another {flag}") from error
    finally:
        with contextlib.suppress(OSError):  # the first that is used now ends it
            for folder in made:
                folder.rmdir()
    return path


def refuse_link(path: Path) -> None:
    """Raise UserError where a link, or a device or a pipe, lies in the place of a file or a folder to be written."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # nothing there; what else is wrong, the writer will meet
        return
    if stat.S_ISLNK(mode):
        where = f"{path} is a link to {_shown(os.readlink(path))}"
        raise UserError(f"{where}, and nothing is written through links that lie in a folder: remove it, or write elsewhere")
    refuse_special(path)


def refuse_special(path: Path) -> None:
    """Raise UserError where a device, a pipe or a socket, or a link to one, lies in the place of a file: it would be gone."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # nothing there; what else is wrong, the writer will meet
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is no plain file, and so it is not written to: remove it, or write elsewhere")


def refuse_other_names(path: Path) -> None:
    """Raise UserError where a file is known by other names too (hard links): to write into it would change them."""
    if os.path.lexists(path) and os.lstat(path).st_nlink > 1 and not path.is_dir():
        raise UserError(f"{path} has another name elsewhere, whose content would be changed: remove it, or write elsewhere")


def refuse_links(folder: Path) -> None:
    """`refuse_link` for everything below a folder in which a library writes under names of its own."""
    for inside, folders, files in os.walk(folder):
        for name in (*folders, *files):
            refuse_link(Path(inside, name))


def cache_folder(variable: str, name: str = "") -> Path:
    """The folder of the environment variable, or `ibot/NAME` in the user's cache folder.

    An empty variable is none. An empty or relative $XDG_CACHE_HOME is ignored, as the XDG specification asks.
    """
    given = os.environ.get(variable)
    if given:
        return Path(given)
    usual = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(usual) if os.path.isabs(usual) else Path.home() / ".cache") / "ibot" / name


def _shown(name: object) -> str:
    """A foreign name on one line."""
    text = repr(name)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
