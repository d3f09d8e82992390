"""Fine-tuning: a step, its schedule, the loop over epochs and what is measured."""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from checkpoints import places, store, terminal
from pretrain.batches.feeding import saved_if_starved
from pretrain.batches.loader import NumberedLoader
from pretrain.engine import bad_images, distributed, optim
from pretrain.engine.guard import Guard
from pretrain.engine.precision import Precision
from pretrain.engine.run_folder import claimed
from pretrain.engine.verdict import Verdict
from pretrain.images import values
from pretrain.models.backbone import Loaded, load_backbone
from pretrain.models.compiling import compile_blocks
from pretrain.setup.data import identity_of
from pretrain.train import in_groups, stop_requested
from probes.finetune import report
from probes.finetune.checkpoint import Lines, Network, Run
from probes.finetune.data import Data, open_data
from probes.finetune.dataset import Batch, StepDataset, workers
from probes.finetune.evaluate import Evaluator
from probes.finetune.model import Classifier, classifier, optimizer_of
from probes.finetune.options import FinetuneOptions, settled
from probes.finetune.report import Measured, Summary
from probes.finetune.watch import Diverged, Watch


class Loss(NamedTuple):
    """Loss of one step, the mean over its micro-batches."""

    total: Tensor


class StepOutput(NamedTuple):
    """Results of a step for the log."""

    accepted: Verdict
    loss: Tensor
    gradient: Tensor
    """Mean length of the tensors' gradients."""


def train_step(model: nn.Module, network: Network, batches: Sequence[Batch], guard: Guard, precision: Precision) -> StepOutput:
    """One optimisation step on all of the batches as one. `model` is the network's, or one wrapped by `distributed.parallel`."""
    device = network.model.head.weight.device
    losses = []
    for number, batch in enumerate(batches, start=1):
        images, targets = (tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.targets))
        with distributed.averaged(model, number == len(batches)):
            with precision.autocast():
                scores = model(images)
            loss = F.cross_entropy(scores.float(), targets)
            precision.scaler.scale(loss / len(batches)).backward()
        losses.append(loss.detach())
    total = torch.stack(losses).mean()
    precision.scaler.unscale_(network.optimizer)
    norms = optim.norms_of(optim.gradients_of(network.model.parameters()))
    verdict = guard.accepts(Loss(total), norms)
    verdict.step_(network.optimizer, precision.scaler)
    if network.ema:  # after a refused step towards weights that have not moved
        network.ema.update(network.model)
    precision.scaler.update()
    network.optimizer.zero_grad(set_to_none=True)
    return StepOutput(verdict, total, norms.mean())


def schedule_of(optimizer: torch.optim.Optimizer, options: FinetuneOptions, steps_per_epoch: int) -> CosineLRScheduler:
    """timm's cosine. `--lr-moves step`: over what follows the warm-up (as BEiT); else by epoch, warm-up counted in (as DeiT)."""
    by_step = options.lr_moves == "step"
    unit, epochs, warm = (steps_per_epoch if by_step else 1), options.epochs or 1, options.warmup_epochs or 0
    return CosineLRScheduler(
        optimizer,
        t_initial=(epochs - warm if by_step else epochs) * unit,
        lr_min=options.min_lr,
        warmup_t=warm * unit,
        warmup_lr_init=options.warmup_lr,
        warmup_prefix=by_step,
        t_in_epochs=not by_step,
    )


def set_rate(schedule: CosineLRScheduler, step: int, steps_per_epoch: int, options: FinetuneOptions) -> None:
    """Give the optimizer the learning rate of a step, counted from 0.

    `--lr-moves deit`: DeiT's loop asks the schedule for epoch e when that is over; the first epoch has the warm-up's first rate.
    """
    epoch = step // steps_per_epoch
    schedule.step_update(step)
    schedule.step(max(epoch - 1, 0) if options.lr_moves == "deit" else epoch)


def save(step: int, run: Run, watch: Watch, network: Network, classes: Sequence[str], *, best: bool = False) -> None:
    """Write the checkpoint of `step` steps, and the best weights if `best`, once the losses up to it are known to be finite."""
    watch.check()
    run.skipped = watch.skipped
    run.save(step, network, list(classes), best=best)


def train(  # noqa: PLR0915  # the loop is read from top to bottom
    options: FinetuneOptions, loaded: Loaded, data: Data, folder: Path, device: torch.device
) -> Measured | None:
    """A whole run with one learning rate, from where it stands to its end; None if it was asked to stop before."""
    # ---- setup -----------------------------------------------------------------------------------
    (lr,) = options.lr
    precision = Precision(options.precision, device)
    model = classifier(loaded, len(data.classes), options, fused=precision.fused_attention).to(device).train()
    bad_allowed = bad_images.most_bad(options.max_bad, len(data.train))
    steps = StepDataset(data.train, len(data.classes), model.backbone.shape, options, bad_allowed)
    total = steps.steps_per_epoch * (options.epochs or 1)
    optimizer = optimizer_of(model, options, lr)
    schedule = schedule_of(optimizer, options, steps.steps_per_epoch)
    network = Network(model, optimizer, precision.scaler, ModelEmaV3(model, decay=options.ema) if options.ema else None)
    torch.manual_seed(options.seed + distributed.rank())

    begins_with = store.sha256(loaded.path) if loaded.path.is_file() else str(loaded.path)
    run = Run(folder, options, begins_with, steps.steps_per_epoch, identity_of(data.train))
    notes = run.resume(network)
    run.begin()
    lines = Lines(run, total, heading(options, loaded, data, f"{device.type} {precision.name}"), notes)
    if run.step >= total:
        lines.finished_before()
        return Measured(lr, run.tests, run.answers, run.skipped)
    compile_(model, options, steps.batch_size, device, precision, lines)
    watch = Watch(run.step, steps.steps_per_epoch, skipped=run.skipped, late=device.type == "cuda")
    parallel = distributed.parallel(model, device)
    bad = bad_images.BadImages(bad_allowed, run.bad_images())
    evaluator = Evaluator(data, options, model.backbone.shape, precision, bad)

    # ---- data ------------------------------------------------------------------------------------
    loader = NumberedLoader(steps, run.step * options.accumulate, total * options.accumulate, workers(options), device)
    done = run.step

    state = (run, watch, network, data.classes)
    with stop_requested() as stop, lines, saved_if_starved(lambda: save(done, *state), lambda: done, run.step, stop):
        loader.stop = stop
        for done, batches in enumerate(in_groups(loader, options.accumulate), start=run.step + 1):
            # ---- step ----------------------------------------------------------------------------
            step, epoch, ended = done - 1, done // steps.steps_per_epoch, done % steps.steps_per_epoch == 0
            set_rate(schedule, step, steps.steps_per_epoch, options)
            outcome = train_step(parallel, network, batches, watch, precision)
            bad.add(image for batch in batches for image in batch.bad)

            # ---- log -----------------------------------------------------------------------------
            if ended or done % options.log_every == 0:
                watch.check()
                lines.bad(done, bad.take_new())
                values = {"loss": distributed.mean(outcome.loss).item(), "gradient_norm": outcome.gradient.item()}
                counts = {"lr": optimizer.param_groups[-1]["lr"], "skipped_steps": watch.skipped, "bad_images": len(bad.all)}
                lines.log(done, values | counts, loader.waited)
                bad.check()

            # ---- test ----------------------------------------------------------------------------
            best = False
            if done == total or (ended and epoch % options.test_every == 0):
                began = time.perf_counter()
                tested, predictions = evaluator.of(network, epoch)
                best = run.tested(tested, predictions) or not run.has_best()
                lines.bad(done, bad.take_new())
                lines.tested(done, tested, time.perf_counter() - began)

            # ---- save ----------------------------------------------------------------------------
            stopping, saving = distributed.any_true(bool(stop) or terminal.gone() or run.moved(), run.time_to_save(done))
            if stopping or saving or best or done == total:
                save(done, *state, best=best)
            if stopping or done == total:
                run.stay(done)
            if stopping and done < total:
                lines.interrupted(done)
                return None
    if done < total:  # asked to stop while no batch came
        lines.interrupted(done)
        return None
    return Measured(lr, run.tests, run.answers, run.skipped)


def heading(options: FinetuneOptions, loaded: Loaded, data: Data, machine: str) -> str:
    """The first line that a run prints."""
    start = "random weights of the shape of" if options.from_scratch else "from"
    return (
        f"fine-tuning {start} {loaded.path}, recipe {options.recipe}, learning rate {options.lr[0]:g}, on {data.train.name}: "
        f"{len(data.train)} images in {len(data.classes)} classes, {options.epochs} epochs in steps of {options.batch_size}; "
        f"{machine}"
    )


def compile_(
    model: Classifier, options: FinetuneOptions, images: int, device: torch.device, precision: Precision, lines: Lines
) -> None:
    """Compile the blocks if asked for, or on a GPU, and say what became of it."""
    if options.compile == "off" or (options.compile == "auto" and device.type == "cpu"):
        return
    size = options.input_size or model.backbone.shape.image_size
    zeros = torch.zeros(images, 3, size, size, device=device)

    def trial() -> torch.Tensor:
        with precision.autocast():
            return model.backbone(zeros)

    lines.say(compile_blocks(model, trial))


def measure(options: FinetuneOptions, device: torch.device) -> Summary | None:
    """Fine-tune with every learning rate of the options, test, write the record; None if it was asked to stop before the end.

    Of several rates those that diverge are left out and named in the record; Diverged is raised where none is left. Raises
    UserError for options that do not fit the checkpoint or the data, before anything is trained.
    """
    began = time.perf_counter()
    opened = partial(load_backbone, options.ckpt, key=options.key, full=options.keep_head_layer)
    loaded = distributed.main_first(opened)
    shape = loaded.backbone.shape
    options = settled(options, shape.embed_dim, shape.image_size, shape.kind)
    values.refuse_range(shape, loaded.path)
    report.place(options, loaded)
    data = open_data(options, shape.channels)
    folder = options.folder or places.below(loaded.path.parent, "finetune", report.name_of(options))
    if len(options.lr) == 1:
        return _of_rates(options, loaded, data, folder, device, began)
    with claimed(folder, "--folder", told=options.allow_foreign_files):  # as a whole: another command has other rates
        return _of_rates(options, loaded, data, folder, device, began)


def _of_rates(
    options: FinetuneOptions, loaded: Loaded, data: Data, folder: Path, device: torch.device, began: float
) -> Summary | None:
    """One training after the other, then the record."""
    runs, diverged = [], []
    for lr in options.lr:
        inside = places.below(folder, f"lr-{lr:g}") if len(options.lr) > 1 else folder
        try:
            with claimed(inside, "--folder", told=options.allow_foreign_files):
                measured = train(dataclasses.replace(options, lr=(lr,)), loaded, data, inside, device)
        except Diverged as error:
            diverged.append(lr)
            if len(diverged) == len(options.lr):
                raise
            if distributed.is_main():
                terminal.say(f"learning rate {lr:g} is left out: {error}")
            continue
        if measured is None:
            return None
        runs.append(measured)
    return report.write(options, loaded, data, runs, diverged, time.perf_counter() - began, device.type)
