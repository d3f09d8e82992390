"""From options to what is trained: the objective and the heads. The one place that knows all comparisons."""

from functools import partial
from typing import Any

import torch

from checkpoints.architecture import Architecture
from pretrain.config import Config
from pretrain.engine import distributed
from pretrain.method import targets
from pretrain.method.dense import Dense
from pretrain.method.hard_labels import Labels
from pretrain.method.heads import Head
from pretrain.method.masked_crops import EveryCrop, OneGlobal
from pretrain.method.objective import Objective
from pretrain.method.other_heads import CodesHead, SplitHead
from pretrain.tokenizers import open as tokenizer_open


def objective_of(config: Config, shape: Architecture, device: torch.device) -> Objective:
    """What the options ask for. Raises UserError for tokenizers that cannot be read or do not fit."""
    if config.targets == "codes":
        assert config.tokenizer is not None
        opened = partial(tokenizer_open.open_tokenizer, config.tokenizer, shape.mean, shape.std)
        tokenizer = distributed.main_first(opened)
        side = config.global_crops_size // shape.stride
        tokenizer.check(config.global_crops_size, config.global_crops_size, (side, side))
        return targets.Codes(tokenizer.to(device), tokenizer_open.digest(config.tokenizer))
    if config.targets == "frozen":
        assert config.tokenizer is not None
        return distributed.main_first(partial(targets.frozen, config.tokenizer, shape, device))
    if config.targets.startswith("dense"):
        return Dense(config.targets.removeprefix("dense_"))
    if config.masked_crops != "global":
        return OneGlobal() if config.masked_crops == "one" else EveryCrop()
    if config.targets == "hard" or not config.centre_patches:
        return Labels(hard=config.targets == "hard", centred=config.centre_patches)
    return Objective()


def head_of(config: Config, in_dim: int, *, teacher: bool, patch_prototypes: int | None = None) -> Head:
    """The student's or the teacher's head. `patch_prototypes` in place of --patch-out-dim, where the targets decide."""
    values: dict[str, Any] = {
        "out_dim": config.out_dim,
        "patch_out_dim": patch_prototypes or config.patch_out_dim,
        "hidden_dim": config.head_hidden_dim,
        "bottleneck_dim": config.head_bottleneck_dim,
        "shared": config.shared_head or (teacher and config.shared_head_teacher),
        "norm_last_layer": config.norm_last_layer,
        "init": config.init,
    }
    if config.targets == "codes":
        return CodesHead(in_dim, **values)
    if config.separate_layers and not values["shared"]:
        return SplitHead(in_dim, separate=config.separate_layers, **values)
    return Head(in_dim, **values)
