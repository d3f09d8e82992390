"""The images of a tar shard and their classes, from its members.

WebDataset cuts a name at its first dot: `IMG.2024.05.0001.jpg` and all its neighbours would be one sample. Here every image
is used. Its class is found by its name without the last suffix, or, where there is none of that name, by the name cut at a dot
before.
"""

import os
import posixpath
from collections import Counter
from typing import NamedTuple

from pretrain.images.formats import SUFFIXES
from pretrain.images.tally import MAGIC_BYTES, UNREAD, Tally, begins_a_picture, is_hidden, names_a_picture, suffix_of
from pretrain.images.tar_headers import Member, members

CLASS_SUFFIXES = (".cls", ".cls.txt", ".label")
"""Suffixes of labels, preferred ones first. A `.txt` is a caption."""
MAPS = frozenset({".seg", ".mask", ".masks", ".segmentation", ".depth"})
"""Before the suffix of a picture that belongs to another one."""
LONGEST_LABEL = 200
LONGEST_CHAIN = 8
"""Links to links."""


class Place(NamedTuple):
    """Position of a file in its shard, in bytes."""

    offset: int
    size: int


class Picture(NamedTuple):
    """An image in a shard, and its class where it has one."""

    name: str
    place: Place
    label: str | None


def pictures(path: str, tally: Tally) -> list[Picture]:
    """The images of a shard in the order in which they lie there. Raises UserError as `tar_headers.members` does."""
    files: dict[str, Member] = {}
    shard = os.path.basename(path)
    for member in members(path):
        name = posixpath.normpath(member.name)
        if member.fault is not None:
            tally.ignore(member.fault, f"{shard}: {member.name[:100]}")
        elif name in files:
            tally.ignore("of a name that came before in the shard", f"{shard}: {name}")
        else:
            files[name] = member._replace(name=name)
    with open(path, "rb") as file:
        used = [(name, member) for name, member in files.items() if _is_used(member, files, file.fileno(), shard, tally)]
        labels = _labels(files, file.fileno(), tally)
    return [Picture(name, _place(member, files), _label(name, labels)) for name, member in used]


def _resolved(member: Member, files: dict[str, Member]) -> Member | None:
    """The file that a link means, or the file itself; None for a link to nothing in this shard."""
    found: Member | None = member
    for _ in range(LONGEST_CHAIN):
        if found is None or found.target is None:
            return found
        folder = posixpath.dirname(found.name) if found.symbolic else ""
        found = files.get(posixpath.normpath(posixpath.join(folder, found.target)))
    return None


def _place(member: Member, files: dict[str, Member]) -> Place:
    found = _resolved(member, files)
    assert found is not None
    return Place(found.offset, found.size)


def _is_used(member: Member, files: dict[str, Member], file: int, shard: str, tally: Tally) -> bool:
    """Whether a member is an image of the data set; if not, it is counted."""
    name, target = member.name, _resolved(member, files)
    stem, suffix = os.path.splitext(name)
    named = names_a_picture(name, SUFFIXES)
    pictured, example = int(bool(named) or suffix_of(name) in UNREAD), f"{shard}: {name}"
    if any(is_hidden(part) for part in name.split("/") if part != ".."):
        tally.ignore("hidden", example, pictured)
    elif target is None:
        tally.ignore("a link to nothing in its shard", example, pictured)
    elif named and suffix_of(stem) in MAPS and _other(stem, files):
        tally.ignore(f"a map of another image ({suffix_of(stem)}{suffix})", example)
    elif named or (named is None and begins_a_picture(os.pread(file, min(target.size, MAGIC_BYTES), target.offset))):
        tally.links += member.target is not None
        return True
    elif pictured:
        tally.ignore(f"in a format that is not read, {suffix_of(name)}", example)
    elif not name.lower().endswith(CLASS_SUFFIXES):
        tally.other(name)
    return False


def _other(stem: str, files: dict[str, Member]) -> bool:
    """Whether there is an image that a map may belong to."""
    return any(os.path.splitext(stem)[0] + suffix in files for suffix in SUFFIXES)


def _labels(files: dict[str, Member], file: int, tally: Tally) -> dict[str, str]:
    """The content of all files with a class, by their name without its suffix."""
    found: dict[str, str] = {}
    for suffix in reversed(CLASS_SUFFIXES):
        for name, member in files.items():
            if name.lower().endswith(suffix) and (target := _resolved(member, files)) is not None:
                text = os.pread(file, min(target.size, LONGEST_LABEL), target.offset).decode("utf-8", "replace").strip()
                if text:
                    found[name[: -len(suffix)]] = text
    if not found and any(name.lower().endswith(".txt") for name in files):
        said = "texts (.txt) are taken for captions, not for classes: those come from .cls"
        if said not in tally.notes:
            tally.notes.append(said)
    return found


def _label(name: str, labels: dict[str, str]) -> str | None:
    """The class of an image: of its name without suffix, cut at one dot more until there is one."""
    stem = os.path.splitext(name)[0]
    while (label := labels.get(stem)) is None and "." in posixpath.basename(stem):
        stem = stem.rpartition(".")[0]
    return label


def several(names: list[str]) -> int:
    """Number of samples with more than one image, whose names differ in the last suffix only."""
    return sum(count > 1 for count in Counter(os.path.splitext(name)[0] for name in names).values())
