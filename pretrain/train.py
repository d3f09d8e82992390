"""The loop: `python -m pretrain.train`, or `tools/pretrain.sh`, which also sets the environment up.

Read `train_step` first: it is the method, one act a line.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import NamedTuple

import torch
from torch import nn

from checkpoints.command import DONE, INTERRUPTED, UserError, run_command
from pretrain import config as options
from pretrain import distributed, health, ibot, optim, replay
from pretrain.config import Config
from pretrain.ibot import Answer, Logits, Losses, Targets, Teacher
from pretrain.images import open_images
from pretrain.loader import Loader
from pretrain.networks import build
from pretrain.progress import Counts, Progress, summary
from pretrain.run import Run, random_state
from pretrain.schedule import Now
from pretrain.sources import Images, spread_of
from pretrain.steps import Batch, Steps
from pretrain.vitals import vitals

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, a scheduler's end, and Slurm's word before it (tools/slurm.sbatch)."""


class Weights(NamedTuple):
    """The values of a step that never move."""

    cls: float = 1.0
    patch: float = 1.0
    clip_grad: float = 3.0


class Outcome(NamedTuple):
    """What a step leaves for the log."""

    accepted: bool
    """False where loss or gradients were not finite: then nothing was changed."""
    losses: Losses
    logits: Logits
    answer: Answer
    targets: Targets
    gradient: torch.Tensor
    """Mean length of the tensors' gradients."""


def train_step(
    student: nn.Module,
    teacher: Teacher,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    now: Now,
    weights: Weights,
    guard: health.Guard,
    autocast: AbstractContextManager,
) -> Outcome:
    """One optimisation step. `student` is a Student, or one wrapped by `distributed.parallel`."""
    masks = batch.masks if now.masking else None
    with autocast:
        answer = teacher(batch.crops, masks)
        logits = student(batch.crops, masks, batch.local_crops)
    targets = ibot.sharpen(answer, teacher.centres, now.cls_temperature, now.patch_temperature)
    losses = ibot.losses(logits, targets, masks, weights.cls, weights.patch)
    losses.total.backward()
    plain = distributed.unwrap(student)
    gradients = optim.gradients_of(plain.parameters())
    lengths = optim.lengths_of(gradients)
    accepted = guard.accepts(losses, lengths)
    if accepted:
        optim.clip_each_(gradients, lengths, weights.clip_grad)
        if now.last_layer_frozen:
            optim.drop_last_layer_gradients_(plain.head)
        optim.set_values_(optimizer, now.lr, now.weight_decay)
        optimizer.step()
        teacher.follow(plain, now.momentum)
        teacher.centres.move(targets)
    optimizer.zero_grad(set_to_none=True)
    return Outcome(accepted, losses, logits, answer, targets, lengths.mean())


def precision_for(wanted: str, device: torch.device) -> str:
    """`auto` is bf16 on a GPU that has it and on a CPU that multiplies it fast, else fp32."""
    if wanted != "auto":
        return wanted
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_is_fast_at_bf16()
    return "bf16" if fast else "fp32"


def cpu_is_fast_at_bf16() -> bool:
    """Whether the processor has instructions for it."""
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return capability != "DEFAULT" and any(check() for check in checks if check is not None)


@contextlib.contextmanager
def stop_requested() -> Iterator[list[int]]:
    """Collect the signals that mean "stop" instead of dying of them; a second SIGINT is answered at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def default_workers() -> int:
    """Worker processes that help more than they take from the training's own threads."""
    return max(1, min(10, (os.cpu_count() or 2) - 1))


def open_training_data(config: Config) -> Images:
    """The images. Raises UserError when there are fewer than one batch."""
    images = open_images(config.data, "train", config.channels)
    batch = config.batch_size_per_gpu * distributed.world_size()
    if len(images) < batch:
        raise UserError(f"{images.name} has {len(images)} images, fewer than one batch of {batch}: lower --batch-size-per-gpu")
    return images


def online_knn(config: Config, images: Images) -> health.OnlineKnn | None:
    """The k-NN curve's data. Raises UserError for --knn-data without labels."""
    if config.knn_data is None:
        return health.online_knn(config.data, images, config.global_crops_size)
    known = open_images(config.knn_data, "train", config.channels)
    if known.labels is None:
        raise UserError(f"--knn-data {config.knn_data} has no labels")
    return health.online_knn(config.knn_data, known, config.global_crops_size)


def train(config: Config, device: torch.device) -> int:
    """A whole run, from where it stands to its end; an exit code."""
    began = time.perf_counter()
    options.check(config)
    if config.decode == "gpu" and device.type == "cpu":
        raise UserError("--decode gpu needs a GPU: leave it out")
    images = open_training_data(config)
    side = config.global_crops_size // config.patch_size
    shape = options.shape(config)
    if config.channels != len(shape.mean):
        shape = shape._replace(**spread_of(images)._asdict())
    steps = Steps(
        images,
        options.views(config),
        options.masks(config),
        (side, side),
        config.batch_size_per_gpu,
        config.seed,
        mean=shape.mean,
        std=shape.std,
        most_bad=health.most_bad(config.max_bad, len(images)),
        make_crops=device.type == "cpu",
        device_decodes=config.decode == "gpu",
    )
    schedule = options.schedule(config, steps.steps_per_epoch, distributed.world_size())
    precision = precision_for(config.precision, device)
    slow_attention = device.type == "cpu" and precision == "bf16"
    student, teacher = build(config, shape, fused=not slow_attention)
    student.to(device).train()
    teacher.to(device).train()
    optimizer = optim.build_optimizer(config.optimizer, student)
    torch.manual_seed(config.seed + distributed.rank())

    run = Run(config, steps.steps_per_epoch)
    remarks = run.resume(student, teacher, optimizer)
    run.begin()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
    progress = Progress(run, images, schedule, device, precision, remarks)
    if run.step >= schedule.total_steps:
        progress.finished_before()
        return DONE
    knn = online_knn(config, images) if config.knn_every else None
    if knn and run.step == 0:
        progress.knn(0, knn.measure(teacher.backbone))

    weights = Weights(config.lambda_cls, config.lambda_patch, config.clip_grad)
    guard, parallel = health.Guard(), distributed.parallel(student, device)
    bad = health.BadImages(steps.most_bad, run.bad_images())
    workers = default_workers() if config.workers is None else config.workers
    loader = Loader(steps, run.step, schedule.total_steps, workers, device)
    with stop_requested() as stop, progress:
        for step, batch in enumerate(loader, start=run.step):
            now, random = schedule.at(step), random_state(device)
            outcome = train_step(parallel, teacher, optimizer, batch, now, weights, guard, autocast)
            if not outcome.accepted:
                replay.capture(run, step, batch, now, random, precision, student, teacher)
                guard.check()
            bad.add(batch.bad)
            done = step + 1
            last, epoch = done == schedule.total_steps, done // steps.steps_per_epoch
            if last or done % config.log_every == 0:
                progress.bad(done, bad.news())
                _, losses, logits, answer, targets, gradient = outcome
                signs = vitals(student, teacher, losses, logits, answer, targets, weights.cls)
                counts = Counts(guard.skipped, loader.waited, len(bad.all))
                progress.log(done, now, losses, gradient, signs, counts)
                bad.check()
            if knn and (last or (done % steps.steps_per_epoch == 0 and epoch % config.knn_every == 0)):
                progress.knn(done, knn.measure(teacher.backbone))
            stopping, saving = distributed.any_true(bool(stop), run.time_to_save(done))
            if stopping or saving or last:
                run.save(done, student, teacher, optimizer)
            if stopping and not last:
                progress.interrupted(done)
                return INTERRUPTED
    summary(run, time.perf_counter() - began)
    return DONE


def main(arguments: Sequence[str]) -> int:
    config = options.read_command_line(arguments)
    if config.replay is not None:
        return replay.show(config.replay)
    options.check(config)
    with distributed.processes() as device:
        return train(config, device)


if __name__ == "__main__":
    sys.exit(run_command(main))
