"""Length of a training: a recipe's schedule scaled to other epochs or iterations, and a length for few images.

Rates are decayed at the same shares of the training, tests and checkpoints come as often in a run as in the recipe, and the
warm-up has the recipe's steps, at most a tenth of all.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from checkpoints.cli import UserError
from transfer.options import TransferOptions

UNITS = {"coco": "epochs", "ade20k": "iters"}
"""Flag of each task, and the unit of its recipes."""
LEAST_STEPS, MOST_EPOCHS = 3_000, 100
"""Few images, coco: epochs for that many steps, the recipe's at least, and no more than so many passes."""
PASSES, LEAST_ITERS = 127, 1_000
"""Few images, ade20k: passes over ADE20K in 160,000 steps of 16, and steps at least."""
WARMUP = 0.1
"""Largest share of the steps that is warm-up."""
MOVED = ("begin", "end", "T_max", "step_size")


def asked(options: TransferOptions) -> int | None:
    """Length by the command line, in the unit of the task. Raises UserError for the other task's flag."""
    unit = UNITS[options.task]
    for task, other in UNITS.items():
        if other != unit and getattr(options, other) is not None:
            raise UserError(f"--{other} is for {task}: give --{unit} for {options.task}")
    length: int | None = getattr(options, unit)
    if length is not None and any(one.startswith(f"train_cfg.max_{unit}=") for one in options.cfg_options):
        raise UserError(f"--{unit} and --cfg-options train_cfg.max_{unit} name the length twice: leave one of them out")
    return length


def length_of(config: Any) -> tuple[str, int]:
    """Unit and length of a config's training. Raises UserError where it has another loop than MMEngine's two."""
    for unit in UNITS.values():
        if isinstance(config.train_cfg.get(f"max_{unit}"), int):
            return unit, int(config.train_cfg[f"max_{unit}"])
    raise UserError("the config's train_cfg has neither max_epochs nor max_iters")


def for_images(config: Any, images: int) -> int:
    """Length for a data set of so many images, in the unit of the config; never more steps than the recipe has for its own."""
    batch = config.train_dataloader.batch_size * int(os.environ.get("WORLD_SIZE", "1"))
    unit, length = length_of(config)
    if unit == "epochs":
        return max(length, min(MOST_EPOCHS, math.ceil(LEAST_STEPS / math.ceil(images / batch))))
    return min(length, max(LEAST_ITERS, math.ceil(PASSES * images / batch)))


def set_length(config: Any, options: TransferOptions, length: int) -> None:
    """Set a training's length, and tests and checkpoints in proportion; the rates follow in `scaled`.

    Raises UserError where the config counts in the other unit.
    """
    unit, before = length_of(config)
    if unit != UNITS[options.task]:
        raise UserError(
            f"--{UNITS[options.task]}: the config counts in {unit}: --cfg-options train_cfg.max_{unit}={before} sets them"
        )
    loop, ratio = config.train_cfg, length / before
    loop[f"max_{unit}"] = length
    for name in ("val_interval", "val_begin"):
        if isinstance(loop.get(name), int):
            loop[name] = max(1, round(loop[name] * ratio))
    saving = config.get("default_hooks", {}).get("checkpoint")
    if saving is not None and isinstance(saving.get("interval"), int) and saving.interval > 0:
        saving.interval = max(1, round(saving.interval * ratio))


def scaled(schedulers: Sequence[Mapping[str, Any]], unit: str, before: int, steps: int) -> list[dict[str, Any]]:
    """A recipe's schedulers of rates for a training of so many steps, all counted in steps.

    `before` is the recipe's length in its unit. Raises UserError for one that counts in steps where the recipe counts in epochs,
    unless it is a warm-up.
    """
    warm = max((one["end"] for one in schedulers if _is_warmup(one, unit, before)), default=0)
    new_warm = min(warm, int(WARMUP * steps))
    new_warm = new_warm if new_warm > 1 else 0  # MMEngine's ramp of one step would stay at its beginning

    def place(step: float | int, by_epoch: bool) -> int:
        if by_epoch:
            return round(step * steps / before)
        if step <= warm:
            return round(step * new_warm / max(warm, 1))
        if unit == "epochs":
            raise UserError("the config's param_scheduler counts in steps, its training in epochs: --epochs cannot scale it")
        return new_warm + round((step - warm) * (steps - new_warm) / (before - warm))

    found = []
    for one in schedulers:
        by_epoch = bool(one.get("by_epoch", True))
        new = {name: value for name, value in one.items() if name != "convert_to_iter_based"} | {"by_epoch": False}
        new |= {name: place(one[name], by_epoch) for name in MOVED if isinstance(one.get(name), int)}
        if "milestones" in one:
            new["milestones"] = sorted({place(step, by_epoch) for step in one["milestones"]} - {0})
        if "end" not in new or new["end"] > new.get("begin", 0):
            found.append(new)
    return found


def _is_warmup(one: Mapping[str, Any], unit: str, before: int) -> bool:
    """Whether a scheduler counts in steps, begins with the training and ends before it."""
    first = not one.get("by_epoch", True) and not one.get("begin") and isinstance(one.get("end"), int)
    return first and (unit == "epochs" or one["end"] < before)


def follow(runner: Any, schedule: Mapping[str, Any]) -> None:
    """Build a runner's training loop, by which the number of steps is known, and scale its schedulers where it is asked."""
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    if schedule["scaled"] and runner.param_schedulers is not None:
        schedulers = runner.param_schedulers if isinstance(runner.param_schedulers, list) else [runner.param_schedulers]
        runner.param_schedulers = scaled(schedulers, schedule["unit"], schedule["before"], runner.max_iters)
        runner.cfg.param_scheduler = runner.param_schedulers
