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

from checkpoints import hold, places, store, terminal
from checkpoints.cli import UserError, WorkError, parse, run_command
from transfer import blame, networks, resume, schedules, trained
from transfer.config import images_a_step
from transfer.options import TransferOptions
from transfer.prepare import is_main, prepare
from transfer.report import Tested, report

LOADERS = (("train", "train"), ("val", "test"))
"""Our names for the parts of the data, and the runner's."""


def run(options: TransferOptions) -> int:
    """Train from where the folder stands, test, write the record; an exit code."""
    began = time.perf_counter()
    with terminal.aside(None):  # the toolboxes remark on optional parts
        loaded = networks.opened(options.ckpt, options.key)
        config = prepare(options, loaded)
        from transfer import hooks, screen, watching  # noqa: F401, PLC0415 (they register themselves)
        from transfer.results import evaluators  # noqa: PLC0415

    ratio, stack = state_the_rate(config), contextlib.ExitStack()
    rank, out = int(os.environ.get("RANK", "0")), Path(config.work_dir)
    if is_main():  # MMEngine has not joined the processes yet
        stack.enter_context(hold.held(out / hold.NAME, f"--out {config.work_dir}", "give another --out"))
    with stack, terminal.aside(screen.log_file(out, rank)), screen.Screen(options.task, is_main()) as shown:
        try:
            model = trained.of_run(options.task, config, loaded.backbone)
            if is_main():
                trained.keep(out, model)
            runner = made(options, config)
            runner.register_hook(shown)
            if is_main():
                store.write_bytes(places.below(out, "config.py"), runner.cfg.pretty_text.encode())
                screen.show_table(table(options, config, loaded, runner, ratio))
            with blame.of_changes(options, lambda: not runner.iter):
                runner.train()
            numbers = dict(runner.test())
            if options.multi_scale:
                numbers |= {f"ms_{name}": value for name, value in at_several_scales(config).items()}
        except (UserError, WorkError) as error:  # a picture or a label map that cannot be used, found by a worker
            raise _as_raised(error) from None
        except torch.cuda.OutOfMemoryError as error:
            raise WorkError("the GPU has too little memory: --batch-size 1, or a smaller --size or config") from error
        if is_main():
            counts = {f"{name}_images": len(getattr(runner, f"{loader}_dataloader").dataset) for name, loader in LOADERS}
            drawn = next(hook.drawn for hook in runner.hooks if isinstance(hook, hooks.ShowHook))
            found = Tested(numbers, model, *evaluators.kept(runner.test_loop.evaluator.metrics), drawn)
            report(options, config, loaded, found, ratio, time.perf_counter() - began, counts)
    return 0


def made(options: TransferOptions, config: Any) -> Any:
    """The runner, its loop built and its schedule scaled. Raises UserError where changes of the config cannot be built."""
    from transfer.screen import QuietRunner  # noqa: PLC0415

    with blame.of_changes(options):
        runner = QuietRunner.from_cfg(config)
        schedules.follow(runner, config.schedule)
    return runner


def table(options: TransferOptions, config: Any, loaded: Any, runner: Any, ratio: float) -> list[tuple[str, str]]:
    """Rows for the screen: what is run."""
    its, model, loop = loaded.backbone.shape, config.model, config.train_cfg
    heads = [model[name] for name in ("neck", "roi_head", "bbox_head", "decode_head") if name in model]
    kinds = [str(one.get("type")) if isinstance(one, dict) else f"{len(one)} heads" for one in heads]
    start = "random weights" if options.from_scratch else f"{options.key} of {loaded.path}"
    frozen = ", frozen" if model.backbone.get("frozen") else ""
    length = f"{loop.max_epochs} epoch{'s' * (loop.max_epochs != 1)}, " if "max_epochs" in loop else ""
    counts = [len(runner.train_dataloader.dataset), config.test_images]
    return [
        ("task", f"{options.task}, config {Path(config.filename).stem}"),
        ("data", str(options.data or options.train_json or "the sample")),
        ("classes", str(config.of_data.get("classes"))),
        ("images", f"{counts[0]} to train, {counts[1]} to test"),
        ("backbone", f"{its.arch}/{its.patch_size}, {its.embed_dim} wide, {start}{frozen}"),
        ("neck, heads", ", ".join(kinds)),
        ("steps", f"{length}{runner.max_iters} steps of {images_a_step(config)} images"),
        ("learning rate", f"{config.optim_wrapper.optimizer.lr * ratio:.3g}"),
        ("short side", f"{config.of_data['size']} pixels"),
        ("device", "cuda" if torch.cuda.is_available() else "cpu"),
        ("folder", config.work_dir),
    ]


def _as_raised(error: UserError | WorkError) -> UserError | WorkError:
    """The error without the worker's traceback that torch puts before its message: the loader is MMEngine's here."""
    kind = type(error)
    return kind(str(error).rpartition(f"{kind.__module__}.{kind.__name__}: ")[2].strip())


def at_several_scales(config: Any) -> dict[str, Any]:
    """Test what was trained at the scales of the config's `tta_pipeline`."""
    from transfer.screen import QuietRunner  # noqa: PLC0415

    config = copy.deepcopy(config)
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    config.load_from, config.resume = str(resume.newest(Path(config.work_dir))), False
    config.model = {**config.tta_model, "module": config.model}
    config.custom_hooks, config.test_evaluator = [], config.val_evaluator
    runner = QuietRunner.from_cfg(config)
    return dict(runner.test())


def state_the_rate(config: Any) -> float:
    """Say how the learning rate follows the batch; the factor."""
    base = config.auto_scale_lr.base_batch_size if config.get("auto_scale_lr", {}).get("enable") else 0
    batch = images_a_step(config)
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
