"""Which label map belongs to which image: files of the same name in two folders, whatever their suffixes."""

import unicodedata
from pathlib import Path
from typing import NamedTuple

from checkpoints.cli import UserError
from pretrain.images.formats import SUFFIXES

PICTURES = SUFFIXES - {".npy"}


class Pairs(NamedTuple):
    """Images and their label maps in the order of their names, and a few words on files that are not used, or ""."""

    images: list[Path]
    labels: list[Path]
    unused: str
    missing: list[str]
    """Names of the images without a label map."""


def pairs(images: Path, labels: Path) -> Pairs:
    """Pair the pictures of two folders by their names without suffix (composed: macOS writes accents as letters of their own).

    Raises UserError for pictures in folders below, for two of one name, and for a name that is no text.
    """
    mine, others = _by_name(images)
    theirs, no_maps = _by_name(labels)
    surplus = [path for name, path in theirs.items() if name not in mine]
    words = [
        f"{len(rest)} {what}, the first is {rest[0].name}"
        for rest, what in ((others + no_maps, "files are not used, no pictures"), (surplus, "label maps have no image"))
        if rest
    ]
    names = [name for name in mine if name in theirs]
    missing = [mine[name].stem for name in mine if name not in theirs]
    return Pairs(
        [mine[name] for name in names], [theirs[name] for name in names], f" ({'; '.join(words)})" if words else "", missing
    )


def _by_name(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """The pictures of a folder by name, sorted, and its other files."""
    entries = sorted(folder.glob("*")) if folder.is_dir() else []
    found: dict[str, Path] = {}
    others: list[Path] = []
    for path in entries:
        if path.is_dir():
            below = next((one for one in path.glob("**/*") if _is_picture(one)), None)
            if below is not None:
                raise UserError(f"{below} lies in a folder of its own: put all of {folder} into it, none into folders below it")
        elif not _is_picture(path):
            others.append(path)
        else:
            try:
                path.name.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{str(path).encode(errors='backslashreplace').decode()}: its name is no UTF-8, rename it"
                ) from error
            name = composed(path.stem)
            if name in found:
                raise UserError(f"{found[name]} and {path.name} have one name, by which images and labels are paired: keep one")
            found[name] = path
    return found, others


def by_stem(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their composed names, sorted. Raises UserError for two of one name."""
    return _by_name(folder)[0]


def composed(name: str) -> str:
    """A name with composed letters: macOS writes accents as letters of their own."""
    return unicodedata.normalize("NFC", name)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and not path.name.startswith(".")
