"""Clips with masks: DAVIS-2017's folders, or the sample's own.

Frames are the pictures of a clip's folder, of any format that is read, in the order of the numbers in their names; masks are PNGs
of the same names. What does not fit is found before anything is computed. f frames, h w pixels.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from checkpoints import places, reading, terminal
from checkpoints.cli import UserError
from checkpoints.store import first_line
from pretrain.images.decode import LazyImage, decode
from pretrain.images.formats import BadImage, load_stored, read_file
from pretrain.images.tally import Tally
from pretrain.images.walk import entries_of, is_dir, is_used
from pretrain.sample import clips
from probes.video.scores import objects

IMAGES, MASKS, LIST = Path("JPEGImages/480p"), Path("Annotations/480p"), Path("ImageSets/2017/val.txt")
LEAST = 3
"""Frames of a clip: the first is given, the last does not count."""
MASK = ".png"
NUMBERS = re.compile("([0-9]+)")


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
    names = _names(root / LIST)
    places.listed(root / IMAGES, names, file=root / LIST, cure="a clip is the name of a folder")
    tally = Tally()
    every = [_listed(root, name, tally) for name in names[:limit]]
    found = [clip for clip in every if len(objects(read_mask(clip.masks[0])))]
    if not found:
        raise UserError(f"{root}: no clip has an object in its first frame: these are no masks of DAVIS-2017")
    if len(found) < len(every):
        empty = next(clip.name for clip in every if clip not in found)
        tally.notes.append(f"{len(every) - len(found)} clips have no object in their first frame and do not count, {empty} first")
    terminal.say(_line(root, found, tally))
    return found


def _line(root: Path, found: Sequence[Clip], tally: Tally) -> str:
    """What was found, what was not used and why."""
    frames, ignored = sum(len(clip.frames) for clip in found), f" ({tally.why()})" if tally.ignored else ""
    parts = [f"{root}: {frames} frames in {len(found)} clips, {tally.ignored} ignored{ignored}, {tally.links} links"]
    others = ", ".join(f"{count} {suffix}" for suffix, count in tally.others.most_common())
    return "; ".join([*parts, *tally.notes, *([f"neither frames nor masks: {others}"] if others else [])])


def _names(path: Path) -> list[str]:
    """One a line. Raises UserError where there is none, or one stands there twice."""
    try:
        lines = reading.text(path).removeprefix("\ufeff").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no readable list of clips ({first_line(error)})") from error
    names = [line.strip() for line in lines if line.strip()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path} names {twice[0]!r} twice: one clip a line, each once")
    if not names:
        raise UserError(f"{path} names no clips")
    return names


def _listed(root: Path, name: str, tally: Tally) -> Clip:
    """A clip whose frames and masks belong together. Raises UserError that names the first that does not."""
    folder, masks_in = root / IMAGES / name, root / MASKS / name
    frames = _pictures(folder, tally)
    masks = {path.stem: path for path in _pictures(masks_in, tally, MASK)}
    if len(frames) < LEAST:
        raise UserError(f"{folder} has {len(frames)} frames: a clip has three or more (the first is given)")
    _refuse_gap(frames)
    missing = [frame for frame in frames if frame.stem not in masks]
    if missing:
        first = masks_in / f"{missing[0].stem}{MASK}"
        raise UserError(f"{len(missing)} masks of {name} are missing, the first is {first}")
    left = sorted(masks.keys() - {frame.stem for frame in frames}, key=natural)
    if left:
        raise UserError(f"{len(left)} masks of {name} have no frame in {folder}, the first is {masks[left[0]]}")
    clip = Clip(name, frames, [masks[frame.stem] for frame in frames])
    _refuse_other_sizes(clip)
    return clip


def _pictures(folder: Path, tally: Tally, suffix: str = "") -> list[Path]:
    """The pictures of a folder in natural order, all or those with a suffix; whatever else lies there is counted."""
    found, start = [], len(str(folder.parent)) + 1
    for entry in entries_of(str(folder), tally):
        if is_dir(entry):
            tally.notes.append(f"{entry.path} is a folder in a clip, and not used")
        elif is_used(entry, tally, start):
            path = Path(entry.path)
            if suffix and path.suffix.lower() != suffix:
                tally.ignore(f"no {suffix}, which masks are", entry.path[start:])
            else:
                found.append(path)
    found.sort(key=lambda path: natural(path.name))
    for one, other in itertools.pairwise(found):
        if one.stem == other.stem:
            raise UserError(f"{one} and {other.name} beside it would be one frame: leave one of them")
    return found


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key to sort by in which numbers count by their size: frame 9 before frame 10."""
    parts = NUMBERS.split(name)
    return [(0, int(part), "") if NUMBERS.fullmatch(part) else (1, 0, part) for part in parts if part]


def _refuse_gap(frames: Sequence[Path]) -> None:
    """Raise UserError where the numbers of the frames do not rise by the same step: one is missing."""
    numbers = [int(found[-1]) for frame in frames if (found := NUMBERS.findall(frame.stem))]
    if len(numbers) < len(frames):
        return  # names that are none of DAVIS', whose order is all that is known
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    usual = min((step for step in steps if step), default=0)
    for frame, step in zip(frames[1:], steps, strict=True):
        if step != usual:
            raise UserError(f"{frame} is {step} after the frame before it, others are {usual}: one is missing, or one too many")


def _refuse_other_sizes(clip: Clip) -> None:
    """Raise UserError where a mask has another size than its frame, or a frame another than the first; only headers are read."""
    first: tuple[int, int] | None = None
    for frame, mask in zip(clip.frames, clip.masks, strict=True):
        size, of_mask = _size(frame), _size(mask)
        first = first or size
        if size != first:
            raise UserError(
                f"{frame} has {_shown(size)} pixels, the first frame of its clip {_shown(first)}: a clip has one size"
            )
        if of_mask != size:
            raise UserError(
                f"{mask} has {_shown(of_mask)} pixels and its frame {frame} {_shown(size)}: a mask is of one size with it"
            )


def _size(file: Path | np.ndarray) -> tuple[int, int]:
    """Width and height, upright. Raises UserError for a file that cannot be read."""
    try:
        image = LazyImage(read_file(file) if isinstance(file, Path) else file)
    except BadImage as error:
        raise UserError(f"{file} cannot be used ({error}): fetch it again") from error
    return image.width, image.height


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


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
    if image.mode not in ("P", "L", "1"):
        raise UserError(f"{mask} has colours ({image.mode}), not numbers of objects: it is no mask of DAVIS-2017")
    return np.array(image, dtype=np.uint8)
