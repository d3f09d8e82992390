"""Searches a folder recursively for images; counts other files and images that are not used.

Files and folders of the system are left out, links are followed once and never upwards.
"""

import os
from pathlib import Path

from checkpoints import reading
from checkpoints.store import first_line
from pretrain.images.formats import SUFFIXES
from pretrain.images.tally import MAGIC_BYTES, UNREAD, Tally, begins_a_picture, is_hidden, names_a_picture, suffix_of

FEW = 10
"""Pictures of a folder that are enough to know what it is."""


def pictures(root: str | Path, tally: Tally) -> list[str]:
    """Paths of all images below a folder, in the order of their parts; everything else goes into the tally."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    above = os.path.realpath(root)
    links: list[str] = []
    _walk(str(root), seen, links, found, tally, len(os.path.join(root, "")))
    for link in links:  # grows while links in linked folders are met
        target = os.path.realpath(link)
        if (above + os.sep).startswith(target.rstrip(os.sep) + os.sep) or identity_of(link) in seen:
            tally.notes.append(f"{link} is a link to a folder that is read already, or lies above")
            continue
        tally.links += 1
        _walk(link, seen, links, found, tally, len(os.path.join(root, "")))
    found.sort(key=lambda name: name.replace(os.sep, "\0"))
    return found


def identity_of(path: str) -> tuple[int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _walk(root: str, seen: set[tuple[int, int]], links: list[str], found: list[str], tally: Tally, start: int) -> None:
    """Add the files below `root` to `found`, and links to folders to `links`."""
    todo = [root]
    while todo:
        here = todo.pop()
        identity = identity_of(here)
        if identity is None or identity in seen:
            continue
        seen.add(identity)
        inside = []
        for entry in entries_of(here, tally):
            if entry.is_dir(follow_symlinks=False):
                if is_hidden(entry.name):
                    count_hidden(entry.path, tally, start)
                else:
                    inside.append(entry.path)
            elif is_dir(entry):
                if not is_hidden(entry.name):
                    links.append(entry.path)
            elif is_used(entry, tally, start):
                found.append(entry.path)
        todo += reversed(inside)


def entries_of(path: str, tally: Tally | None = None) -> list["os.DirEntry[str]"]:
    """Entries of a folder, sorted by name; reports a folder that cannot be read."""
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if tally is not None:
            tally.notes.append(f"{path} cannot be read ({first_line(error)})")
        return []


def is_used(entry: "os.DirEntry[str]", tally: Tally, start: int) -> bool:
    """Whether a file is an image of the data set; if not, it is counted."""
    named, short = names_a_picture(entry.name, SUFFIXES), entry.path[start:]
    pictured = named or suffix_of(entry.name) in UNREAD
    if is_hidden(entry.name):
        tally.ignore("hidden", short, int(pictured))
    elif not (entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)):
        why = "no plain file, but a pipe, socket or device" if os.path.exists(entry.path) else "a link to nothing"
        tally.ignore(why, short, int(pictured))
    elif named or (named is None and _begins_a_picture(entry.path)):
        tally.links += entry.is_symlink()
        return True
    elif pictured:
        tally.ignore(f"in a format that is not read, {suffix_of(entry.name)}", short)
    else:
        tally.other(entry.name)
    return False


def is_dir(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder, links followed; a circular link is not."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _begins_a_picture(path: str) -> bool:
    try:
        with reading.opened(path) as file:
            return begins_a_picture(file.read(MAGIC_BYTES))
    except OSError:
        return False


def count_hidden(path: str, tally: Tally, start: int) -> None:
    for here, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            if suffix_of(name) in SUFFIXES or suffix_of(name) in UNREAD:
                tally.ignore("hidden", os.path.join(here, name)[start:])


def below(path: Path, *, pictures: int | None = FEW) -> tuple[list[Path], list[Path]]:
    """Folders and files in a folder that belong to a data set, by name, links followed; at most so many `pictures` among them."""
    folders, files = [], []
    for entry in (entry for entry in entries_of(str(path)) if not is_hidden(entry.name)):
        if is_dir(entry):
            folders.append(Path(entry.path))
        elif pictures is None or not names_a_picture(entry.name, SUFFIXES):
            files.append(Path(entry.path))
        elif pictures:
            files.append(Path(entry.path))
            pictures -= 1
    return folders, files


def holds_pictures(path: Path, deep: bool = True) -> bool:
    """Whether an image lies in a folder, or `deep` somewhere below it; looks no further than the first."""
    seen: set[tuple[int, int]] = set()
    todo = [path]
    while todo:
        here = todo.pop()
        identity = identity_of(str(here))
        if identity is None or identity in seen:
            continue
        seen.add(identity)
        folders, files = below(here)
        if any(is_picture(file) for file in files):
            return True
        todo += folders if deep else []
    return False


def is_picture(file: Path) -> bool:
    named = names_a_picture(file.name, SUFFIXES)
    return bool(named or (named is None and file.is_file() and _begins_a_picture(str(file))))
