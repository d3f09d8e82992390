"""A folder of images: which files below it are used, what its sub-folders mean, and what else lies there.

Files and folders of the system are left out, links are followed once, and all that is not used is counted
(`pretrain/images/tally.py`).
"""

import itertools
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from checkpoints import reading
from checkpoints.cli import UserError
from checkpoints.store import first_line
from pretrain.images.source import LIST_SUFFIXES, SUFFIXES, Files
from pretrain.images.tally import MAGIC_BYTES, UNREAD, Tally, begins_a_picture, is_hidden, names_a_picture, say, suffix_of

PARTS = {"train": ("train",), "val": ("val", "test", "validation")}
PART_NAMES = frozenset(name for names in PARTS.values() for name in names)
STRAYS = 3
"""Pictures beside class folders that are no data set of their own; of many images one in STRAY_SHARE may be."""
STRAY_SHARE = 20


def folder(path: Path) -> Files:
    """Image files of a folder. Its sub-folders are the classes, unless images lie in the folder itself (no labels then).

    A few stray images beside class folders are left out, and one folder around the class folders is gone into; both are said.
    Raises UserError where there are no images.
    """
    root, tally = unwrapped(path), Tally()
    if root != path:
        tally.remarks.append(f"the classes are the folders in {root}, which is all that lies in {path}")
    found = pictures(root, tally)
    if not found:
        more = f"; {tally.ignored} are not used: {tally.why()}" if tally.ignored else ""
        raise UserError(f"there are no images in {path} (looked for {', '.join(sorted(SUFFIXES))}, sub-folders included){more}")
    start = len(os.path.join(root, ""))
    inside = Counter(_top(name, start) for name in found)
    loose = inside.pop("", 0)
    if loose and len(inside) > 1 and _few(loose, inside.total(), len(inside)):
        stray = [name for name in found if not _top(name, start)]
        tally.ignore("beside the class folders", os.path.basename(stray[0]), loose)
        found, loose = [name for name in found if _top(name, start)], 0
    elif loose and inside:
        tally.remarks.append(f"{loose} of the images lie beside the sub-folders, so that these are no classes")
    images = Files(str(path), found, None if loose else [_top(name, start) for name in found])
    images.tally = tally
    _note_archives(root, tally)
    return images


def said(path: Path) -> Files:
    """`folder`, and the line on what was found."""
    images = folder(path)
    say(images)
    return images


def _few(loose: int, inside: int, folders: int) -> bool:
    return loose <= max(STRAYS, inside // STRAY_SHARE) and loose * folders <= inside


def _top(name: str, start: int) -> str:
    """The first folder of a path below the root, whose own path is `start` long; "" for a file in the root itself."""
    return name[start:].partition(os.sep)[0] if os.sep in name[start:] else ""


def pictures(root: str | Path, tally: Tally) -> list[str]:
    """Paths of all images below a folder, in the order of their parts; everything else goes into the tally."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    above = os.path.realpath(root)
    links: list[str] = []
    _walk(str(root), seen, links, found, tally, len(os.path.join(root, "")))
    for link in links:  # grows while links in linked folders are met
        target = os.path.realpath(link)
        if (above + os.sep).startswith(target.rstrip(os.sep) + os.sep) or _identity(link) in seen:
            tally.remarks.append(f"{link} is a link to a folder that is read already, or lies above")
            continue
        tally.links += 1
        _walk(link, seen, links, found, tally, len(os.path.join(root, "")))
    found.sort(key=lambda name: name.replace(os.sep, "\0"))
    return found


def _identity(path: str) -> tuple[int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _walk(root: str, seen: set[tuple[int, int]], links: list[str], found: list[str], tally: Tally, start: int) -> None:
    """Add what lies below `root`, links to folders apart."""
    todo = [root]
    while todo:
        here = todo.pop()
        identity = _identity(here)
        if identity is None or identity in seen:
            continue
        seen.add(identity)
        inside = []
        for entry in _entries(here, tally):
            if entry.is_dir(follow_symlinks=False):
                if is_hidden(entry.name):
                    _count_hidden(entry.path, tally, start)
                else:
                    inside.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                if not is_hidden(entry.name):
                    links.append(entry.path)
            elif _is_used(entry, tally, start):
                found.append(entry.path)
        todo += reversed(inside)


def _entries(path: str, tally: Tally | None = None) -> list["os.DirEntry[str]"]:
    """What lies in a folder, by name; a folder that cannot be read is said."""
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if tally is not None:
            tally.remarks.append(f"{path} cannot be read ({first_line(error)})")
        return []


def _is_used(entry: "os.DirEntry[str]", tally: Tally, start: int) -> bool:
    """Whether a file is an image of the data set; if not, it is counted."""
    named, short = names_a_picture(entry.name, SUFFIXES), entry.path[start:]
    pictured = named or suffix_of(entry.name) in UNREAD
    if is_hidden(entry.name):
        tally.ignore("hidden", short, int(pictured))
    elif not os.path.isfile(entry.path):
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


def _begins_a_picture(path: str) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return begins_a_picture(os.read(file, MAGIC_BYTES))
    except OSError:
        return False
    finally:
        os.close(file)


def _count_hidden(path: str, tally: Tally, start: int) -> None:
    for here, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            if suffix_of(name) in SUFFIXES or suffix_of(name) in UNREAD:
                tally.ignore("hidden", os.path.join(here, name)[start:])


def _below(path: Path) -> tuple[list[Path], list[Path]]:
    """Folders and files in a folder that belong to a data set, by name, links followed."""
    visible = [entry for entry in _entries(str(path)) if not is_hidden(entry.name)]
    folders = [Path(entry.path) for entry in visible if os.path.isdir(entry.path)]
    return folders, [Path(entry.path) for entry in visible if not os.path.isdir(entry.path)]


def _holds_pictures(path: Path, deep: bool = True) -> bool:
    """Whether an image lies in a folder, or `deep` somewhere below it; looks no further than the first."""
    seen: set[tuple[int, int]] = set()
    todo = [path]
    while todo:
        here = todo.pop()
        identity = _identity(str(here))
        if identity is None or identity in seen:
            continue
        seen.add(identity)
        folders, files = _below(here)
        if any(_is_picture(file) for file in files):
            return True
        todo += folders if deep else []
    return False


def _is_picture(file: Path) -> bool:
    named = names_a_picture(file.name, SUFFIXES)
    return bool(named or (named is None and file.is_file() and _begins_a_picture(str(file))))


def archives(path: Path) -> list[Path]:
    """Parquet files, or else tar shards, that lie in a folder. Raises UserError where there are both."""
    kinds = {suffix: [file for file in _below(path)[1] if file.suffix == suffix] for suffix in (".parquet", ".tar")}
    if all(kinds.values()):
        first, second = (files[0].name for files in kinds.values())
        raise UserError(f"{path} holds both parquet files and shards ({first}, {second}): name those that are meant with --data")
    return kinds[".parquet"] or kinds[".tar"]


def in_place_of(path: Path, files: list[Path]) -> bool:
    """Whether archives are what a folder holds, and not its images in folders beside one archive that was left over.

    Raises UserError where both could be meant.
    """
    found = pictures(path, Tally())
    folders = {_top(name, len(os.path.join(path, ""))) for name in found} - {""}
    if not found or (not folders and len(found) <= STRAYS) or _names_files(files[0]):
        return True
    if len(folders) > 1 and len(files) == 1 and files[0].suffix == ".tar":
        return False
    raise UserError(
        f"{path} holds {len(found)} image files and {len(files)} of {files[0].suffix} ({files[0].name}): which are meant? "
        f"Name the files with --data, as in --data {files[0]}, or move what is not meant elsewhere"
    )


def _names_files(file: Path) -> bool:
    """Whether the rows of a parquet file hold no bytes of images, but names of files, which then are those beside it."""
    if file.suffix != ".parquet":
        return False
    try:
        with reading.opened(file) as opened:
            metadata = pq.read_metadata(opened)
    except (pa.ArrowException, OSError):
        return False
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    known = [one.statistics for one in columns if one.path_in_schema.endswith(".bytes")]
    return bool(columns) and all(one is not None and not one.num_values for one in known)


def unwrapped(path: Path) -> Path:
    """The folder that holds class folders, parts or archives, where `path` has nothing else in it than that one folder."""
    here, seen = path, set()
    while (identity := _identity(str(here))) is not None and identity not in seen:
        seen.add(identity)
        folders, files = _below(here)
        if len(folders) != 1 or any(_matters(file) for file in files):
            break
        here = folders[0]
    if here == path or _identity(str(here)) is None:
        return path
    folders, files = _below(here)
    if any(file.suffix in (".parquet", ".tar") for file in files):
        return here
    if sum(_is_picture(file) for file in files) > STRAYS:
        return path
    several = itertools.islice((one for one in folders if _holds_pictures(one)), 2)
    return here if len(list(several)) == 2 else path


def _matters(file: Path) -> bool:
    lists = file.suffix in LIST_SUFFIXES and file.stem in PART_NAMES
    return lists or file.suffix in (".parquet", ".tar") or _is_picture(file)


def parts_of(path: Path) -> dict[str, list[Path]]:
    """Which parts a folder is divided into, as sub-folders, parquet files, shards or lists; none where `train` is a class.

    Raises UserError where `train` may be a part or a class.
    """
    path = unwrapped(path)
    train = path / "train"
    if train.is_dir() and _is_class(path, train):
        return {}
    parts = {}
    for part, names in PARTS.items():
        files = next(filter(None, (_files_of(path, name) for name in names)), [])
        if files:
            parts[part] = files
    files = parts.get("train", [])
    in_archives = bool(files) and files[0].suffix in (".parquet", ".tar") and not files[0].is_dir()
    return parts if files and (not in_archives or in_place_of(path, archives(path))) else {}


def _files_of(path: Path, name: str) -> list[Path]:
    """A part's sub-folder, or its files of the first kind that is there."""
    if (path / name).is_dir():
        return [path / name]
    files = _below(path)[1]
    kinds = [[file for file in files if file.name.startswith(name) and file.suffix == suffix] for suffix in (".parquet", ".tar")]
    lists = ([file for file in files if file.name == f"{name}{suffix}"] for suffix in sorted(LIST_SUFFIXES))
    return next((kind for kind in (*kinds, *lists) if kind), [])


def _is_class(path: Path, train: Path) -> bool:
    """Whether the folder `train` is one class among others, and no part of the data."""
    if any((path / name).is_dir() for name in PARTS["val"]):
        return False
    others = [one for one in _below(path)[0] if one.name not in PART_NAMES and _holds_pictures(one)]
    if not others:
        return False
    flat, others_flat = _holds_pictures(train, deep=False), any(_holds_pictures(one, deep=False) for one in others)
    if others_flat:
        return flat
    either = f"{train} may be the part to train on, or one of the classes beside {others[0]}"
    raise UserError(f"{either}: give --data {train}, or call it otherwise")


def note_beside(path: Path, used: dict[str, list[Path]], tally: Tally) -> None:
    """Count what lies in a divided folder and belongs to none of its parts."""
    root = unwrapped(path)
    if root != path:
        tally.remarks.append(f"the parts are those in {root}, which is all that lies in {path}")
    known = {file for files in used.values() for file in files}
    if any(file.suffix in LIST_SUFFIXES or _names_files(file) for file in known if not file.is_dir()):
        return  # what lies there are the files that these name
    folders, files = _below(root)
    for one in (one for one in folders if one not in known and one.name not in PART_NAMES):
        beside = Tally()
        found = pictures(one, beside)
        tally.ignore("beside the parts", os.path.relpath(found[0], root) if found else "", len(found))
    for file in (file for file in files if file not in known):
        if _is_picture(file):
            tally.ignore("beside the parts", file.name)
        elif file.suffix in (".parquet", ".tar") and not file.name.startswith(tuple(PART_NAMES)):
            tally.remarks.append(f"{file.name} belongs to no part and is not used")


def _note_archives(path: Path, tally: Tally) -> None:
    """Say that archives beside the images of a folder are not used."""
    for file in (file for file in _below(path)[1] if file.suffix in (".parquet", ".tar")):
        tally.remarks.append(f"{file.name} beside the images is not used: name it with --data to use it")


def note_pictures(path: Path, used: list[Path], tally: Tally) -> None:
    """Count images in a folder whose archives are used."""
    found = [] if _names_files(used[0]) else pictures(path, Tally())
    tally.ignore("beside the archives", os.path.relpath(found[0], path) if found else "", len(found))
