"""Builds the objective and the heads from the options. The one place that knows all comparisons."""

from functools import partial

import torch

from checkpoints.architecture import Architecture
from pretrain.engine import distributed
from pretrain.method import targets
from pretrain.method.dense import Dense
from pretrain.method.hard_labels import Labels
from pretrain.method.heads import Head
from pretrain.method.masked_crops import EveryCrop, OneGlobal
from pretrain.method.objective import Objective
from pretrain.method.other_heads import CodesHead, SplitHead
from pretrain.setup.plan import HeadPlan, Plan
from pretrain.tokenizers import open as tokenizer_open


def objective_of(plan: Plan, shape: Architecture, device: torch.device) -> Objective:
    """The objective that the options name. Raises UserError for a tokenizer that cannot be read or does not fit."""
    loss, masked_crops = plan.options.loss, plan.options.masks.masked_crops
    if loss.targets == "codes":
        assert loss.tokenizer is not None
        opened = partial(tokenizer_open.open_tokenizer, loss.tokenizer, shape.mean, shape.std)
        tokenizer = distributed.main_first(opened)
        size = plan.options.crops.global_crops_size
        tokenizer.check(size, size, plan.grid)
        return targets.Codes(tokenizer.to(device), tokenizer_open.digest(loss.tokenizer))
    if loss.targets == "frozen":
        assert loss.tokenizer is not None
        return distributed.main_first(partial(targets.frozen, loss.tokenizer, shape, device))
    if loss.targets.startswith("dense"):
        return Dense(loss.targets.removeprefix("dense_"))
    if masked_crops != "global":
        return OneGlobal() if masked_crops == "one" else EveryCrop()
    if loss.targets == "hard" or not loss.centre_patches:
        return Labels(hard=loss.targets == "hard", centred=loss.centre_patches)
    return Objective()


def head_of(planned: HeadPlan, in_dim: int, *, patch_prototypes: int | None = None) -> Head:
    """The student's or the teacher's head. `patch_prototypes` replaces --patch-out-dim where the targets decide it."""
    values = planned._asdict()
    separate, codes = values.pop("separate_layers"), values.pop("codes")
    values["patch_out_dim"] = patch_prototypes or planned.patch_out_dim
    if codes:
        return CodesHead(in_dim, **values)
    return SplitHead(in_dim, separate=separate, **values) if separate else Head(in_dim, **values)
