"""Which layer of a backbone a parameter belongs to, for learning rates that decay from layer to layer."""

import re

from checkpoints.architecture import Architecture

STEM = re.compile(r"cls_token|pos_embed|reg_token|patch_embed|masked_embed|norm_pre|rope")
BLOCK = re.compile(r"blocks\.(\d+)\.")
STAGE = re.compile(r"layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.")


def layer_of(name: str, shape: Architecture) -> int:
    """Of a parameter by its name in the backbone: 0 is the embedding, i the i-th block, `depth` + 1 what stands behind them.

    The merging of patches before a stage of a Swin goes with that stage's first block.
    """
    name = name.removeprefix("model.")  # where timm's own ViT lies in ours
    if STEM.match(name):
        return 0
    if block := BLOCK.match(name):
        return int(block[1]) + 1
    if stage := STAGE.match(name):
        return sum(shape.depths[: int(stage[1])]) + int(stage[2] or 0) + 1
    return shape.depth + 1
