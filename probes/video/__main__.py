"""Video object segmentation by frozen tokens, DAVIS-2017 (paper, Table 16): `python -m probes.video --ckpt runs/sample`.

The first frame's mask is carried on by the likeness of patch tokens (`probes/video/propagate.py`), scored by J, F and J&F
(`probes/video/scores.py`). Frames of 480 pixels, the first and seven earlier ones as context, 12 patches to each side, top 5.

o objects, f frames, h w pixels.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from checkpoints import flat, terminal
from checkpoints.cli import UserError, parse, run_command
from pretrain.models.backbone import Backbone
from pretrain.models.measured import require
from pretrain.sample import clips as sample_clips
from probes.shared import record
from probes.shared.console import steps, table
from probes.shared.subject import Frozen, open_frozen, untrained
from probes.video import davis, propagate
from probes.video import scores as video_scores
from probes.video.davis import Clip
from probes.video.propagate import Protocol

COLUMNS = ("jf_m", "j_m", "j_recall", "j_decay", "f_m", "f_recall", "f_decay")


@dataclass(frozen=True)
class VideoOptions(Frozen):
    """Carry the first frame's masks through clips (paper, Table 16). --data: `sample`, or DAVIS-2017's folder."""

    size: int | None = None
    """Pixels of the shorter side (default: 480; 128 for the sample)."""
    context: int = 7
    """Number of earlier frames used as context, besides the first."""
    radius: int = 12
    """Radius of the search window, in patches."""
    top_k: int = 5
    """Patches that hand on their labels."""
    baselines: bool = False
    """Also measure the same backbone untrained, and the first mask kept as it is."""
    masks: Path | None = None
    """Folder to write the masks to, as DAVIS' own evaluation reads them: CLIP/00000.png."""


def segment(backbone: Backbone, clip: Clip, protocol: Protocol) -> UInt8[np.ndarray, "f h w"]:
    """Masks of every frame; the first is the given one."""
    given = davis.read_mask(clip.masks[0])
    size = propagate.frame_size(given.shape[0], given.shape[1], protocol.size, backbone.shape.stride)
    grid = (size[0] // backbone.shape.stride, size[1] // backbone.shape.stride)
    if min(grid) < 1:
        raise UserError(f"--size {protocol.size} is too small: the longer side is a multiple of {propagate.MULTIPLE} pixels")
    seen = (propagate.see(davis.read_frame(frame), size, backbone) for frame in clip.frames)
    frames = (propagate.tokens(backbone, one, f"frame {number} of {clip.name}") for number, one in enumerate(seen))
    followed = propagate.follow(frames, given, grid, protocol)
    masks = [propagate.decide(labels, grid, backbone.shape.stride, given.shape) for labels in followed]
    return np.stack([np.where(given == video_scores.VOID, 0, given).astype(np.uint8), *masks])


def kept(clip: Clip) -> UInt8[np.ndarray, "f h w"]:
    """The baseline without a network: nothing moves."""
    return np.repeat(davis.read_mask(clip.masks[0])[None], len(clip.frames), axis=0)


def score(clips: Sequence[Clip], said: Callable[[Clip], np.ndarray], what: str, masks: Path | None = None) -> dict[str, float]:
    """Percent over all objects of all clips; writes the masks where asked."""
    scores = []
    for clip in steps(what, clips, len(clips)):
        mine = said(clip)
        scores += video_scores.score_clip(mine, np.stack([davis.read_mask(mask) for mask in clip.masks]))
        if masks is not None:
            for frame, mask in enumerate(mine):
                sample_clips.save_mask(mask, masks, clip.name, f"{frame:05d}.png")
    return video_scores.summary(scores)


def main(arguments: Sequence[str]) -> None:
    options = parse(VideoOptions, arguments, prog="python -m probes.video")
    for name in ("context", "radius", "top_k", "size"):
        value = getattr(options, name)
        if value is not None and value < (0 if name == "context" else 1):
            raise UserError(f"{flat.flag(name)} {value} is too small")
    began = time.perf_counter()
    clips = davis.open_clips(options.data, options.limit)
    subject = open_frozen(options)
    require(subject.backbone, "patches")
    loaded = subject.loaded
    out = record.place(options.out, loaded, "video", options)
    size = options.size or (sample_clips.SIZE if options.data == "sample" else 480)
    protocol = Protocol(size, options.context, options.radius, options.top_k)
    rows = {"this checkpoint": score(clips, lambda clip: segment(loaded.backbone, clip, protocol), "clips", options.masks)}
    if options.baselines:
        fresh = untrained(subject, options.seed).backbone
        rows["the same, untrained"] = score(clips, lambda clip: segment(fresh, clip, protocol), "clips, untrained")
        rows["the first mask, kept"] = score(clips, kept, "clips, kept")
    seconds = time.perf_counter() - began
    title = f"J and F, % ({len(clips)} clips of {options.data}): {loaded.path}"
    table(title, ("masks by", *COLUMNS), ([name, *(f"{row[column]:.1f}" for column in COLUMNS)] for name, row in rows.items()))
    names = {"the same, untrained": "untrained_", "the first mask, kept": "kept_"}
    record.write(
        out,
        probe="video",
        table="T16_retrieval_vos",
        loaded=loaded,
        data={"root": options.data, "val_images": len(clips), "frames": sum(len(clip.frames) for clip in clips)},
        protocol=protocol._asdict() | {"temperature": propagate.TEMPERATURE, "key": options.key},
        metrics=rows["this checkpoint"]
        | {names[kind] + name: row[name] for kind, row in rows.items() if kind in names for name in COLUMNS},
        seconds=seconds,
        device=subject.device.type,
    )
    terminal.say(f"{seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(run_command(main))
