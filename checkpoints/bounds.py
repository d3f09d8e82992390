"""Bounds of the numbers of a command line: one table by flag, checked by every command before anything else.

A flag that is not in the table must be finite and 0 or more. A flag of the same name means the same in all commands, unless the
table names the command too.
"""

import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from checkpoints import flat

MOST = 2**31 - 1
"""Largest count and largest seed: k-means and t-SNE take no larger one."""


class Bounds(NamedTuple):
    """An interval from `least` to `most`; `above`, `below`: without that end."""

    least: float = 0
    most: float = MOST
    above: bool = False
    below: bool = False

    def __contains__(self, value: object) -> bool:
        """False for what is not finite."""
        if not isinstance(value, (int, float)) or (isinstance(value, float) and not math.isfinite(value)):
            return False
        low = value > self.least if self.above else value >= self.least
        return low and (value < self.most if self.below else value <= self.most)

    def refused(self, flag: str, value: float | int) -> str:
        """The error message for a value outside."""
        low = f"greater than {self.least:g}" if self.above else f"{self.least:g} or more"
        if self.above and self.below:
            return f"{flag} must lie between {self.least:g} and {self.most:g}, not at {shown(value)}"
        if math.isinf(self.most) or (self.most == MOST and not value > MOST):
            return f"{flag} must be {low}, not {shown(value)}"
        high = f"{'less than' if self.below else 'at most'} {self.most:.10g}"
        if self.above and self.most <= 100:  # shares and percents: the value first, to be seen beside its range
            return f"{flag} {shown(value)} must be {low} and {high}"
        return f"{flag} must be {low} and {high}, not {shown(value)}"


COUNT, NUMBER = Bounds(1), Bounds(0)
"""At least one; any whole number."""
PIXELS = Bounds(1, 2**16)
SHARE = Bounds(0, 1)
SOME = Bounds(0, 1, above=True)
"""A share that is more than nothing."""
NOT_ALL = Bounds(0, 1, below=True)
"""A share, or a probability, that leaves something."""
RATE = Bounds(0, 1e4)
"""Learning rates that are scaled by the batch; 0 leaves the weights as they are."""
ANY_RATE = Bounds(0, math.inf, above=True)
"""Rates of which several are tried: one with which the training diverges is left out by name."""
WEIGHT = Bounds(0, 1e4)
"""Weight of a loss, or of a penalty on weights."""
TEMPERATURE = Bounds(0, 1e3, above=True)

BOUNDS: dict[str, Bounds] = {
    "accumulate": COUNT,
    "batch_size": COUNT,
    "batch_size_per_gpu": COUNT,
    "blur": SHARE,
    "channels": Bounds(1, 2**12),
    "clip_grad": NUMBER,
    "clusters": COUNT,
    "codes": Bounds(2),
    "context": NUMBER,
    "count": COUNT,
    "crop": PIXELS,
    "crop_scale": SOME,
    "cutmix": Bounds(0, 1e3),
    "depth": Bounds(1, 2**10),
    "drop_path": NOT_ALL,
    "ema": NOT_ALL,
    "draw": NUMBER,
    "epochs": COUNT,
    "erasing": NOT_ALL,
    "ignore": Bounds(0, 65535),
    "freeze_last_layer": NUMBER,
    "global_crops_number": Bounds(1, 2**10),
    "global_crops_scale": SOME,
    "global_crops_size": PIXELS,
    "gpu_batch_size": COUNT,
    "head_bottleneck_dim": Bounds(1, 2**20),
    "head_hidden_dim": Bounds(1, 2**20),
    "head_scale": Bounds(0, 1e6),
    "held_out": Bounds(0, 100, above=True, below=True),
    "images": COUNT,
    "input_size": PIXELS,
    "ids": NUMBER,
    "iters": COUNT,
    "k": COUNT,
    "knn_every": NUMBER,
    "lambda_cls": WEIGHT,
    "lambda_patch": WEIGHT,
    "largest": NUMBER,
    "layer_decay": SOME,
    "limit": COUNT,
    "lines": COUNT,
    "local_crops_number": Bounds(0, 2**10),
    "local_crops_scale": SOME,
    "local_crops_size": PIXELS,
    "log_every": COUNT,
    "lr": ANY_RATE,
    "mass": Bounds(0, 1, above=True, below=True),
    "max_bad": NUMBER,
    "members": COUNT,
    "min_lr": RATE,
    "minutes": Bounds(0, 1e5, above=True),
    "mixup": Bounds(0, 1e3),
    "momentum_teacher": SHARE,
    "out_dim": Bounds(2, 2**24),
    "part": SOME,
    "patch_centre_momentum": NOT_ALL,
    "patch_out_dim": Bounds(2, 2**24),
    "patch_size": PIXELS,
    "percent": Bounds(0, 100, above=True),
    "perplexity": Bounds(1, 2**20),
    "port": Bounds(0, 65535),
    "pred_ratio": SHARE,
    "pred_ratio_var": SHARE,
    "pred_start_epoch": NUMBER,
    "prototypes": COUNT,
    "queries": COUNT,
    "radius": NUMBER,
    "read": COUNT,
    "repeats": COUNT,
    "resize": PIXELS,
    "rounds": COUNT,
    "saliency_head": NUMBER,
    "save_minutes": Bounds(0, 1e6),
    "keep_every": COUNT,
    "score": SHARE,
    "seed": NUMBER,
    "seeds": Bounds(1, 1000),
    "separate_layers": Bounds(0, 3),
    "serve": Bounds(0, 65535),
    "share": NUMBER,  # the command that has it says the rest in its first lines
    "size": PIXELS,
    "smoothing": NOT_ALL,
    "solarize": SHARE,
    "steps": COUNT,
    "strength": Bounds(0, 1e9, above=True),
    "teacher_patch_temp": TEMPERATURE,
    "teacher_temp": TEMPERATURE,
    "temperature": TEMPERATURE,
    "test_every": COUNT,
    "top_k": COUNT,
    "train_images": COUNT,
    "tuned_epochs": COUNT,
    "warmup_epochs": NUMBER,
    "warmup_lr": RATE,
    "warmup_teacher_patch_temp": TEMPERATURE,
    "warmup_teacher_temp": TEMPERATURE,
    "warmup_teacher_temp_epochs": NUMBER,
    "weight_decay": WEIGHT,
    "weight_decay_end": WEIGHT,
    "whole_from": PIXELS,
    "width": Bounds(1, 2**16),
    "window": Bounds(1, 2**10),
    "workers": Bounds(0, 2**10),
    "pretrain.options.groups seed": Bounds(0, 2**63 - 1),
    "pretrain.options.groups lr": RATE,
    "pretrain.sample size": Bounds(8, 2**14),
    "transfer.options lr": RATE,
    "transfer.options size": Bounds(32, 2**13),
    "val_percent": Bounds(0, 100, above=True, below=True),
    "val_seed": NUMBER,
    "value_range": Bounds(-1e30, 1e30),
}
ONE_DRAWN = ("images",)
"""Flags whose several numbers are indices of images, from 0."""


def command_of(options: type) -> str:
    """The command whose options these are, as it is typed; another module's name where they stand apart from it."""
    module = options.__module__
    if module == "__main__":
        spec = sys.modules[module].__spec__
        module = spec.name if spec is not None else ""
    return module.removesuffix(".__main__")


def of(command: str, name: str, value: Any) -> Bounds:
    """The bounds of a flag of a command (`command_of`)."""
    if name in ONE_DRAWN and isinstance(value, tuple):
        return NUMBER
    return BOUNDS.get(f"{command} {name}", BOUNDS.get(name, NUMBER))


def wrong(options: Any) -> Iterator[str]:
    """Yields an error message for every number of these options that is not finite or out of bounds."""
    for name, value in flat.values(options).items():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, bool) or not isinstance(one, (int, float)):
                continue
            bounds = of(command_of(type(options)), name, value)
            if one not in bounds:
                yield bounds.refused(flat.flag(name), one)


def shown(value: float | int) -> str:
    """A number for a message; the digits of a huge integer are left out."""
    return f"{value:g}" if isinstance(value, float) else str(value) if abs(value) < 10**15 else "a number of more than 15 digits"
