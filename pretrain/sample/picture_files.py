"""Files of a data set that is drawn: written below the folder that was named, and nowhere else."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from checkpoints import places, store
from checkpoints.cli import UserError, WorkError

KINDS = {".png": "PNG", ".jpg": "JPEG"}


def save(picture: np.ndarray | Image.Image, folder: Path, *names: str, **how: Any) -> None:
    """Write a picture to `folder / names`; `how` is Pillow's. A file in its place is replaced, whatever other names it has.

    Raises UserError where a link leads out of the folder or nothing can be written there, WorkError where the disk is full.
    """
    path = places.below(folder, *names)
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with store.new_file(path) as file:
            image.save(file, KINDS[path.suffix], **how)
    except OSError as error:
        raise _refused(path, error) from error


def save_text(content: bytes, folder: Path, *names: str) -> None:
    """Write a file of another type into a sub-folder."""
    path = places.below(folder, *names)
    try:
        store.write_bytes(path, content)
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> UserError | WorkError:
    what = f"cannot write {path} ({error.strerror or store.first_line(error)})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return WorkError(f"{what}: make room, or see to the disk, and start again")
    return UserError(f"{what}: give another folder")
