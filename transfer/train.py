"""Train and test a detector or a segmenter on a pretrained backbone: `python -m transfer.train --task coco --ckpt F --data DIR`.

`tools/transfer_coco.sh` and `tools/transfer_ade20k.sh` set the environment up and start one process for each GPU.
"""

import contextlib
import copy
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from checkpoints import hold, terminal
from checkpoints.cli import UserError, WorkError, parse, run_command
from transfer import networks, resume, trained
from transfer.options import TransferOptions
from transfer.prepare import is_main, prepare
from transfer.report import Tested, report

LOADERS = (("train", "train"), ("val", "test"))
"""Our names for the parts of the data, and the runner's."""


def run(options: TransferOptions) -> int:
    """Train from where the folder stands, test, write the record; an exit code."""
    began = time.perf_counter()
    loaded = networks.opened(options.ckpt, options.key)
    config = prepare(options, loaded)
    from mmengine.model import revert_sync_batchnorm  # noqa: PLC0415
    from mmengine.runner import Runner  # noqa: PLC0415

    from transfer import hooks, watching  # noqa: F401, PLC0415 (they register themselves)
    from transfer.results import evaluators  # noqa: PLC0415

    ratio, stack = state_the_rate(config), contextlib.ExitStack()
    if os.environ.get("RANK", "0") == "0":  # MMEngine has not joined the processes yet
        stack.enter_context(hold.held(Path(config.work_dir) / hold.NAME, f"--out {config.work_dir}", "give another --out"))
    try:
        model = trained.of_run(options.task, config, loaded.backbone.shape)
        if is_main():
            trained.keep(Path(config.work_dir), model)
        runner = Runner.from_cfg(config)
        if not torch.cuda.is_available():
            runner.model = revert_sync_batchnorm(runner.model)
        runner.train()
        numbers = dict(runner.test())
        if options.multi_scale:
            numbers |= {f"ms_{name}": value for name, value in at_several_scales(config).items()}
    except (UserError, WorkError) as error:  # a picture or a label map that cannot be used, found by a worker
        raise _as_raised(error) from None
    except torch.cuda.OutOfMemoryError as error:
        raise WorkError(
            "the GPU has too little memory: --cfg-options train_dataloader.batch_size=1, or a smaller config"
        ) from error
    finally:
        stack.close()
    if is_main():
        counts = {f"{name}_images": len(getattr(runner, f"{loader}_dataloader").dataset) for name, loader in LOADERS}
        drawn = next(hook.drawn for hook in runner.hooks if isinstance(hook, hooks.ShowHook))
        found = Tested(numbers, model, *evaluators.kept(runner.test_loop.evaluator.metrics), drawn)
        report(options, config, loaded, found, ratio, time.perf_counter() - began, counts)
    return 0


def _as_raised(error: UserError | WorkError) -> UserError | WorkError:
    """The error without the worker's traceback that torch puts before its message: the loader is MMEngine's here."""
    kind = type(error)
    return kind(str(error).rpartition(f"{kind.__module__}.{kind.__name__}: ")[2].strip())


def at_several_scales(config: Any) -> dict[str, Any]:
    """Test what was trained at the scales of the config's `tta_pipeline`."""
    from mmengine.runner import Runner  # noqa: PLC0415

    config = copy.deepcopy(config)
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    config.load_from, config.resume = str(resume.newest(Path(config.work_dir))), False
    config.model = {**config.tta_model, "module": config.model}
    config.custom_hooks, config.test_evaluator = [], config.val_evaluator
    runner = Runner.from_cfg(config)
    return dict(runner.test())


def state_the_rate(config: Any) -> float:
    """Say how the learning rate follows the batch; the factor."""
    base = config.auto_scale_lr.base_batch_size if config.get("auto_scale_lr", {}).get("enable") else 0
    batch = config.train_dataloader.batch_size * int(os.environ.get("WORLD_SIZE", "1"))
    ratio = batch / base if base else 1.0
    rate = config.optim_wrapper.optimizer.lr
    if is_main():
        terminal.say(
            f"{batch} images a step; the config's learning rate {rate:g} is for {base or batch}: {rate * ratio:.3g} is used"
        )
    return ratio


def main(arguments: Sequence[str]) -> int:
    return run(parse(TransferOptions, arguments, prog="python -m transfer.train"))


if __name__ == "__main__":
    sys.exit(run_command(main))
