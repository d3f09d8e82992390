"""Counts of files found while searching for images, and the line that every command prints of them.

Every file with a picture's suffix is used, counted or named.
"""

import os
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from checkpoints import terminal
from pretrain.engine import distributed
from pretrain.images.labels import Labels

if TYPE_CHECKING:
    from pretrain.images.source import Images

UNREAD = frozenset(
    ".jp2 .j2k .jpx .jpf .jxl .avif .heic .heif .svg .psd .tga .pcx .ico .icns .eps .exr .hdr .pfm .dds .dib .sgi .xbm .xpm "
    ".fits .fit .dcm .npz .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .svs .ndpi .czi .lif".split()
)
"""Suffixes of pictures in formats that are not read (docs/security.md); they are counted by name."""
SYSTEM = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
"""Folders that systems leave in everybody's."""
SHOWN = 3
"""Kinds of other files that stand in the line."""
MOST = 6
"""Reasons and remarks that stand in it; of more the rest is counted."""


class Tally:
    """Pictures that are not used, by reason; other files, by suffix; links; and what else is to be said."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.others: Counter[str] = Counter()
        self.links = 0
        self.notes: list[str] = []

    @property
    def ignored(self) -> int:
        """Number of pictures that are not used."""
        return self.reasons.total()

    def ignore(self, why: str, example: str, count: int = 1) -> None:
        """Note pictures that are not used; the first example of a reason is named."""
        if count:
            self.reasons[why] += count
            self.examples.setdefault(why, example)

    def other(self, name: str) -> None:
        """Note a file that is no picture."""
        self.others[suffix_of(name) or "no suffix"] += 1

    def why(self) -> str:
        """The reasons, most frequent first: `3 hidden (.ipynb_checkpoints/a.jpg)`."""
        shown = self.reasons.most_common(MOST)
        parts = [f"{count} {why} ({self.examples[why]})" for why, count in shown]
        rest = self.ignored - sum(count for _, count in shown)
        return "; ".join([*parts, *([f"{rest} for {len(self.reasons) - MOST} other reasons"] if rest else [])])


def suffix_of(name: str) -> str:
    """The last suffix of a file's name, in small letters."""
    return os.path.splitext(name)[1].lower()


def is_hidden(name: str) -> bool:
    """Whether a file or folder is its system's own and no part of a data set."""
    return name.startswith(".") or name in SYSTEM


def names_a_picture(name: str, suffixes: Iterable[str]) -> bool | None:
    """Whether a file's name says that it is a picture that can be read; None where only its first bytes can say."""
    suffix = suffix_of(name)
    if suffix in suffixes:
        return True
    return False if suffix[1:].isalpha() or suffix in UNREAD else None


MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\x93NUMPY")
MAGIC_BYTES = 16


def begins_a_picture(start: bytes) -> bool:
    """Whether a file's first MAGIC_BYTES are those of a format that is read."""
    if start.startswith(MAGIC) or (start.startswith(b"RIFF") and start[8:12] == b"WEBP"):
        return True
    if start.startswith(b"BM"):
        return start[6:10] == bytes(4)
    return start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace()


def line(images: "Images") -> str:
    """`DIR: 48 images in 3 classes, 2 ignored (why), 1 link, labels yes`, and what else there is to say."""
    tally = images.tally or Tally()
    truth = images.truth()
    classes = 0 if truth is None or truth.task == "regression" else len(_classes(truth))
    why = f" ({tally.why()})" if tally.ignored else ""
    found = f"{images.name}: {_count(len(images), 'image')} in {_count(classes, 'class')}, {tally.ignored} ignored{why}"
    labels = "no" if truth is None else "yes" if truth.task == "classes" else f"yes ({truth.task})"
    without = 0 if truth is None else int((~truth.known).sum())
    labels += f", {without} without one" if without else ""
    links = f", {_count(tally.links, 'link')}" if tally.links else ""
    parts = [f"{found}{links}, labels {labels}", *tally.notes[:MOST]]
    if len(tally.notes) > MOST:
        parts.append(f"and {len(tally.notes) - MOST} more notes of this kind")
    if tally.others:
        kinds = [f"{count} {suffix}" for suffix, count in tally.others.most_common(SHOWN)]
        more = len(tally.others) - len(kinds)
        parts.append(f"no images: {', '.join(kinds)}" + (f" and {more} other kinds" if more else ""))
    return "; ".join(parts)


def _classes(truth: Labels) -> np.ndarray:
    """Numbers of the classes that an image has."""
    known = truth.values[truth.known]
    return np.flatnonzero(known.any(axis=0)) if truth.task == "multi-label" else np.unique(known)


def say(images: "Images") -> None:
    """That line, by the main process."""
    if distributed.is_main():
        terminal.say(line(images))


def _count(number: int, what: str) -> str:
    return f"{number} {what if number == 1 else what + ('es' if what.endswith('s') else 's')}"
