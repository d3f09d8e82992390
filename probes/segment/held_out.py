"""The training images on which a setting is chosen, so that nothing is chosen on test images."""

import torch

from checkpoints.cli import UserError
from probes.segment.options import SegmentOptions


def held_out(images: int, options: SegmentOptions) -> set[int]:
    """Numbers of the training images that are held out; none where there is one setting. Raises UserError for one image."""
    flag, settings = ("--lr", options.lr) if options.head == "linear" else ("--k", options.k)
    if len(settings) == 1:
        return set()
    if images < 2:
        raise UserError(f"one training image has no part to choose {flag} on: give one {flag}, or more images")
    count = min(max(1, round(images * options.held_out / 100)), images - 1)
    return set(torch.randperm(images, generator=torch.Generator().manual_seed(options.seed))[:count].tolist())
