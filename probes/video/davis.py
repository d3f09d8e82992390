"""Clips with masks: DAVIS-2017's folders, or the sample's own.

f frames, h w pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from checkpoints import places, reading
from checkpoints.cli import UserError
from checkpoints.store import first_line
from pretrain.images.decode import decode
from pretrain.images.formats import BadImage, load_stored, read_file
from pretrain.sample import clips

IMAGES, MASKS, LIST = Path("JPEGImages/480p"), Path("Annotations/480p"), Path("ImageSets/2017/val.txt")


class Clip(NamedTuple):
    """Frames and masks by number, in files or as pixels."""

    name: str
    frames: Sequence[Path | np.ndarray]
    masks: Sequence[Path | np.ndarray]


def open_clips(data: str, limit: int | None) -> list[Clip]:
    """The first `limit` clips of `--data`. Raises UserError naming what is missing of a folder."""
    if data == "sample":
        drawn = [clips.draw(number) for number in range(min(clips.COUNT, limit or clips.COUNT))]
        return [Clip(clip.name, list(clip.frames), list(clip.masks)) for clip in drawn]
    root = Path(data)
    for part in (IMAGES, MASKS, LIST):
        if not (root / part).exists():
            raise UserError(f"{root} has no {part}: give --data a folder in DAVIS-2017's layout ({IMAGES}, {MASKS}, {LIST})")
    names = _names(root / LIST)[:limit]
    if not names:
        raise UserError(f"{root / LIST} names no clips")
    places.listed(root / IMAGES, names, file=root / LIST, cure="a clip is the name of a folder")
    return [_listed(root, name) for name in names]


def _names(path: Path) -> list[str]:
    try:
        return reading.text(path).split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no readable list of clips ({first_line(error)})") from error


def _listed(root: Path, name: str) -> Clip:
    frames = sorted((root / IMAGES / name).glob("*.jpg"))
    if len(frames) < 3:
        raise UserError(f"{root / IMAGES / name} has {len(frames)} frames: a clip has three or more (the first is given)")
    masks = [root / MASKS / name / f"{frame.stem}.png" for frame in frames]
    missing = [mask for mask in masks if not mask.is_file()]
    if missing:
        raise UserError(f"{len(missing)} masks of {name} are missing, the first is {missing[0]}")
    return Clip(name, frames, masks)


def read_frame(frame: Path | np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """Raises UserError for a file that cannot be read."""
    if isinstance(frame, np.ndarray):
        return frame
    try:
        return np.asarray(decode(read_file(frame)))
    except BadImage as error:
        raise UserError(f"{frame} cannot be used ({error}): fetch it again") from error


def read_mask(mask: Path | np.ndarray) -> UInt8[np.ndarray, "h w"]:
    """Numbers of objects; 0 is the background. Raises UserError for a file that is no indexed picture."""
    if isinstance(mask, np.ndarray):
        return mask
    try:
        image = load_stored(read_file(mask))
    except BadImage as error:
        raise UserError(f"{mask} cannot be used ({error}): fetch it again") from error
    if image.mode not in ("P", "L"):
        raise UserError(f"{mask} has colours ({image.mode}), not numbers of objects: it is no mask of DAVIS-2017")
    return np.array(image)
