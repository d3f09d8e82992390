"""Scheduled values as functions of the step.

Learning rate, weight decay and teacher momentum change with the step, teacher temperatures with the epoch, as in the original.
"""

import math
from typing import NamedTuple


class ScheduleValues(NamedTuple):
    """The scheduled values of one step."""

    epoch: int
    lr: float
    weight_decay: float
    momentum: float
    cls_temperature: float
    patch_temperature: float
    last_layer_frozen: bool
    masking: bool


class Ramp(NamedTuple):
    """Teacher temperature: linear from `start` to `end` over `epochs` epochs (the last of them has `end`), then `end`."""

    start: float
    end: float
    epochs: int

    def at(self, epoch: int) -> float:
        if epoch >= self.epochs or self.epochs == 1:
            return self.end if epoch >= self.epochs else self.start
        return self.start + (self.end - self.start) * max(epoch, 0) / (self.epochs - 1)


class Schedule(NamedTuple):
    """`lr` is the peak, already scaled by batch / 256. Sizes in steps and epochs are of the whole run."""

    total_steps: int
    steps_per_epoch: int
    lr: float
    min_lr: float
    warmup_steps: int
    weight_decay: float
    weight_decay_end: float
    momentum: float
    cls_temperature: Ramp
    patch_temperature: Ramp
    freeze_last_layer: int
    """Epochs during which the prototypes are frozen."""
    masking_from: int
    """First epoch with masks."""

    def at(self, step: int) -> ScheduleValues:
        """The values of step `step`, counted from 0."""
        epoch = step // self.steps_per_epoch
        return ScheduleValues(
            epoch=epoch,
            lr=warmup_cosine(step, self.total_steps, self.lr, self.min_lr, self.warmup_steps),
            weight_decay=warmup_cosine(step, self.total_steps, self.weight_decay, self.weight_decay_end),
            momentum=warmup_cosine(step, self.total_steps, self.momentum, 1.0),
            cls_temperature=self.cls_temperature.at(epoch),
            patch_temperature=self.patch_temperature.at(epoch - self.masking_from),
            last_layer_frozen=epoch < self.freeze_last_layer,
            masking=epoch >= self.masking_from,
        )


def warmup_cosine(step: int, total: int, base: float, final: float, warmup: int = 0) -> float:
    """Linear from 0 to `base` over `warmup` steps (the last of them has `base`), then a half cosine towards `final`."""
    if step < warmup:
        return base * step / (warmup - 1) if warmup > 1 else 0.0
    share = (step - warmup) / max(total - warmup, 1)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * min(share, 1.0)))
