"""A folder of images: which files below it are used, what its sub-folders mean, and what else lies there.

Which files those are: `pretrain/images/walk.py`.
"""

import itertools
import os
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from checkpoints import reading
from checkpoints.cli import UserError
from pretrain.images.formats import SUFFIXES
from pretrain.images.source import LIST_SUFFIXES, Files
from pretrain.images.tally import Tally, say
from pretrain.images.walk import (
    below,
    count_hidden,
    entries_of,
    holds_pictures,
    identity_of,
    is_dir,
    is_picture,
    is_used,
    pictures,
)

PARTS = {"train": ("train",), "val": ("val", "test", "validation", "valid")}
"""Part -> what it may be called, in capital letters too; the first that is there counts."""
PART_NAMES = frozenset(name for names in PARTS.values() for name in names)
STRAYS = 3
"""Pictures beside class folders that are no data set of their own; of many images one in STRAY_SHARE may be."""
STRAY_SHARE = 20
PART_WORDS = re.compile("train|test|val")


def folder(path: Path) -> Files:
    """Image files of a folder. Its sub-folders are the classes, unless images lie in the folder itself (no labels then).

    A few stray images beside class folders are left out, and one folder around the class folders is gone into; both are said.
    Raises UserError where there are no images.
    """
    root, tally = unwrapped(path), Tally()
    if root != path:
        tally.notes.append(f"the classes are the folders in {root}, the only folder in {path}")
        note_around(path, root, tally)
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
        tally.notes.append(f"{loose} of the images lie beside the sub-folders, so that these are no classes")
    images = Files(str(path), found, None if loose else [_top(name, start) for name in found])
    if len(images.classes) > 1 and all(PART_WORDS.search(name.lower()) for name in images.classes):
        tally.notes.append(
            f"the classes are called {' and '.join(images.classes[:4])}: if these are parts, give them with --data and --val"
        )
    images.tally = tally
    _note_archives(root, tally)
    return images


def said(path: Path, *, one_of_many: bool = False) -> Files:
    """`folder`, and the line on what was found; of `one_of_many` only where something is left out."""
    images = folder(path)
    if not one_of_many or (images.tally and (images.tally.ignored or images.tally.notes)):
        say(images)
    return images


def _few(loose: int, inside: int, folders: int) -> bool:
    return loose <= max(STRAYS, inside // STRAY_SHARE) and loose * folders <= inside


def _top(name: str, start: int) -> str:
    """The first folder of a path below the root, whose own path is `start` long; "" for a file in the root itself."""
    return name[start:].partition(os.sep)[0] if os.sep in name[start:] else ""


def archives(path: Path) -> list[Path]:
    """Parquet files, or else tar shards, that lie in a folder. Raises UserError where there are both."""
    kinds = {suffix: [file for file in below(path)[1] if file.suffix == suffix] for suffix in (".parquet", ".tar")}
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
    """The folder that holds class folders, parts or archives: `path`, or the only folder in it, beside a few pictures at most."""
    here, seen, strays = path, set(), 0
    while (identity := identity_of(str(here))) is not None and identity not in seen:
        seen.add(identity)
        folders, files = below(here)
        beside = _few_pictures(files)
        if len(folders) != 1 or strays + beside > STRAYS or any(_names_a_source(file) for file in files):
            break
        here, strays = folders[0], strays + beside
    if here == path or identity_of(str(here)) is None:
        return path
    folders, files = below(here)
    if any(file.suffix in (".parquet", ".tar") for file in files):
        return path if strays else here
    if _few_pictures(files) > STRAYS:
        return path
    several = [one for one in folders if holds_pictures(one)]
    few = not strays or _few(strays, len(pictures(here, Tally())), len(several))
    return here if len(several) > 1 and few else path


def _few_pictures(files: list[Path]) -> int:
    """Number of files that are pictures, counted up to one more than STRAYS."""
    return len(list(itertools.islice(filter(is_picture, files), STRAYS + 1)))


def note_around(path: Path, root: Path, tally: Tally) -> None:
    """Count what lies in the folders around `root`, from `path` down."""
    here, start = path, len(os.path.join(path, ""))
    for name in root.relative_to(path).parts:
        for entry in (entry for entry in entries_of(str(here), tally) if entry.name != name):
            if entry.is_dir(follow_symlinks=False):
                count_hidden(entry.path, tally, start)
            elif not is_dir(entry) and is_used(entry, tally, start):
                tally.ignore("beside the class folders", entry.path[start:])
        here = here / name


def _names_a_source(file: Path) -> bool:
    """Whether a file is an archive, or the list of a part."""
    return file.suffix in (".parquet", ".tar") or (file.suffix in LIST_SUFFIXES and file.stem.lower() in PART_NAMES)


def parts_of(path: Path) -> dict[str, list[Path]]:
    """Parts of a folder (sub-folders, parquet files, shards or lists) by name; empty where `train` is a class.

    Raises UserError where `train` may be a part or a class.
    """
    path = unwrapped(path)
    folders, files = below(path)
    if _is_class(folders):
        return {}
    parts = {}
    for part, names in PARTS.items():
        found = next(filter(None, (_files_of(folders, files, name) for name in names)), [])
        if found:
            parts[part] = found
    train = parts.get("train", [])
    in_archives = bool(train) and train[0].suffix in (".parquet", ".tar") and train[0] in files
    return parts if train and (not in_archives or in_place_of(path, archives(path))) else {}


def _files_of(folders: list[Path], files: list[Path], name: str) -> list[Path]:
    """A part's sub-folder, or its files of the first kind that is there."""
    own = [one for one in folders if one.name.lower() == name]
    if own:
        return own[-1:]  # `train` before `Train`
    known = [file for file in files if file.name.lower().startswith(name)]
    kinds = [[file for file in known if file.suffix == suffix] for suffix in (".parquet", ".tar")]
    lists = ([file for file in known if file.name.lower() == f"{name}{suffix}"] for suffix in sorted(LIST_SUFFIXES))
    return next((kind for kind in (*kinds, *lists) if kind), [])


def _is_class(folders: list[Path]) -> bool:
    """Whether the folder `train` is one class among others, and no part of the data. Raises UserError where it may be both."""
    train = next((one for one in reversed(folders) if one.name.lower() == "train"), None)
    others = [one for one in folders if one.name.lower() not in PART_NAMES]
    if train is None or not (others := [one for one in others if holds_pictures(one)]):
        return False
    tests = [one for one in folders if one.name.lower() in PARTS["val"]]
    flat, others_flat = holds_pictures(train, deep=False), any(holds_pictures(one, deep=False) for one in others)
    if tests and not (flat and others_flat and all(holds_pictures(one, deep=False) for one in tests)):
        return False
    if others_flat and not tests:
        return flat
    either = f"{train} may be the part to train on, or one of the classes beside {others[0]}"
    raise UserError(f"{either}: give --data {train}, or call it otherwise")


def note_beside(path: Path, used: dict[str, list[Path]], tally: Tally) -> None:
    """Count what lies in a divided folder and belongs to none of its parts."""
    root = unwrapped(path)
    if root != path:
        tally.notes.append(f"the parts are those in {root}, the only folder in {path}")
        note_around(path, root, tally)
    known = {file for files in used.values() for file in files}
    folders, files = below(root, pictures=None)
    parts = [file for file in (*folders, *files) if file not in known and _names_a_part(file)]
    if parts:
        more = f" and {len(parts) - 1} more beside it are" if len(parts) > 1 else " is"
        tally.notes.append(f"{parts[0].name}{more} not used: give --val {parts[0]} to test on it")
    if any(file.suffix in LIST_SUFFIXES or _names_files(file) for file in known if not file.is_dir()):
        return  # what lies there are the files that these name
    for one in (one for one in folders if one not in known and one not in parts):
        beside = Tally()
        found = pictures(one, beside)
        tally.ignore("beside the parts", os.path.relpath(found[0], root) if found else "", len(found))
    for file in (file for file in files if file not in known and file not in parts):
        if is_picture(file):
            tally.ignore("beside the parts", file.name)
        elif file.suffix in (".parquet", ".tar"):
            tally.notes.append(f"{file.name} belongs to no part and is not used")


def _names_a_part(file: Path) -> bool:
    """Whether a folder, an archive or a list is called like a part."""
    name = file.name.lower()
    archive = file.suffix in (".parquet", ".tar") and name.startswith(tuple(PART_NAMES))
    return archive or (file.suffix in ("", *LIST_SUFFIXES) and file.stem.lower() in PART_NAMES)


def _note_archives(path: Path, tally: Tally) -> None:
    """Say that archives beside the images of a folder are not used."""
    for file in (file for file in below(path)[1] if file.suffix in (".parquet", ".tar")):
        tally.notes.append(f"{file.name} beside the images is not used: name it with --data to use it")


def note_pictures(path: Path, used: list[Path], tally: Tally) -> None:
    """Count images in a folder whose archives are used."""
    found = [] if _names_files(used[0]) else pictures(path, Tally())
    tally.ignore("beside the archives", os.path.relpath(found[0], path) if found else "", len(found))
