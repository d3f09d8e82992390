"""The loop: `python -m pretrain.train`, or `tools/pretrain.sh`, which also sets the environment up.

Read `train_step` first: it is the method, one act a line.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from checkpoints import store, terminal
from checkpoints.cli import DONE, INTERRUPTED, run_command
from pretrain.batches.dataset import Batch
from pretrain.batches.feeding import saved_if_starved
from pretrain.batches.loader import Loader
from pretrain.engine import bad_images, distributed, optim, provenance
from pretrain.engine import guard as health
from pretrain.engine.precision import Precision
from pretrain.engine.run_folder import claimed
from pretrain.images import values
from pretrain.method import ibot
from pretrain.method.ibot import Losses, StudentOutput, Targets, Teacher, TeacherOutput
from pretrain.method.objective import IBOT, LossWeights, Objective
from pretrain.method.schedule import ScheduleValues
from pretrain.options.command_line import read_command_line
from pretrain.run import replay, report_process
from pretrain.run.checkpoint import Run
from pretrain.run.diagnostics import diagnostics_of
from pretrain.run.progress import Counts, Progress, summary
from pretrain.setup import data as prepare
from pretrain.setup.init_from import begin, set_moments
from pretrain.setup.networks import build, compile_networks, whole_backbone
from pretrain.setup.objective import objective_of
from pretrain.setup.plan import Plan, plan_of
from pretrain.setup.validate import without_effect

One = TypeVar("One")
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Ctrl-C, a scheduler's end, Slurm's word before it (tools/slurm.sbatch), a connection that was closed."""


class StepOutput(NamedTuple):
    """What a step leaves for the log; of several batches the losses are means, the tensors those of the last."""

    accepted: bool | Bool[Tensor, ""]
    """False where loss or gradients were not finite: then nothing was changed."""
    losses: Losses
    logits: StudentOutput
    answer: TeacherOutput
    targets: Targets
    gradient: Tensor
    """Mean length of the tensors' gradients."""


def train_step(
    student: nn.Module,
    teacher: Teacher,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    now: ScheduleValues,
    weights: LossWeights,
    guard: health.Guard,
    precision: Precision,
    objective: Objective = IBOT,
) -> StepOutput:
    """One optimisation step on all of the batches as one. `student` is a Student, or one wrapped by `distributed.parallel`."""
    parts = []
    for number, batch in enumerate(batches, start=1):
        masks = objective.masks(batch) if now.masking else None
        with distributed.averaged(student, number == len(batches)):
            with precision.autocast():
                answer = objective.teacher_forward(teacher, batch, masks)
                logits = objective.student_forward(student, batch, masks)
            targets = objective.targets(answer, batch, masks, teacher.centres, now)
            losses = objective.losses(logits, targets, batch, masks, weights.cls, weights.patch)
            precision.scaler.scale(losses.total / len(batches)).backward()
        parts.append((losses, targets))
    losses, means = ibot.merge_micro_batches(parts)
    precision.scaler.unscale_(optimizer)
    plain = distributed.unwrap(student)
    gradients = optim.gradients_of(plain.parameters())
    lengths = optim.norms_of(gradients)
    accepted = guard.accepts(losses, lengths)
    optim.clip_each_(gradients, lengths, weights.clip_grad)
    if now.last_layer_frozen:
        optim.drop_last_layer_gradients_(plain.head)
    optim.set_values_(optimizer, now.lr, now.weight_decay)
    optim.step_(optimizer, precision.scaler, accepted)
    teacher.update_ema_(plain, now.momentum, accepted)
    teacher.centres.update_(means, accepted)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return StepOutput(accepted, losses, logits, answer, targets, lengths.mean())


@contextlib.contextmanager
def stop_requested() -> Iterator[list[int]]:
    """Collect the signals that mean "stop" instead of dying of them; a second SIGINT is answered at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun passes on the Ctrl-C that came to all: it would be the second
            signal.signal(signal.SIGINT, signal.default_int_handler)

    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    previous = {number: signal.signal(number, note) for number in STOPPING if not (nohup and number == signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def in_groups(batches: Iterable[One], size: int) -> Iterator[list[One]]:
    """The batches of each step."""
    group: list[One] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def train(plan: Plan, device: torch.device) -> int:
    """A whole run, from where it stands to its end; an exit code."""
    began = time.perf_counter()
    options = plan.options
    model, log_every, knn_every = options.model, options.run.log_every, options.knn.knn_every
    images, shape, steps, schedule = prepare.data(plan, device)
    precision = Precision(options.machine.precision, device)
    objective = objective_of(plan, shape, device)
    student, teacher = build(plan, shape, fused=precision.fused_attention, patch_prototypes=objective.patch_prototypes)
    run = Run(plan, steps.steps_per_epoch, objective.digest, prepare.identity_of(images))
    ranges = values.check(images, options.images.value_range, begun=run.begun())
    start = begin(model.init_from, student, teacher, heads=model.init_heads) if model.init_from and not run.begun() else None
    student.to(device).train()
    teacher.to(device).train()
    if options.machine.shard and distributed.world_size() > 1:
        for network in (student, teacher):
            distributed.shard_(network, network.backbone.blocks, device)
    optimizer = optim.build_optimizer(options.optimisation.optimizer, student)
    torch.manual_seed(options.run.seed + distributed.rank())

    if start:
        set_moments(optimizer, student, start.moments)
    remarks = [*ranges, *prepare.too_dark(images), *prepare.no_curve(options.knn, images), *without_effect(options)]
    remarks += start.remarks if start else []
    remarks += run.resume(student, teacher, optimizer, precision.scaler)
    left = run.step < schedule.total_steps
    crop = options.crops.global_crops_size
    knn = prepare.online_knn(options.knn, options.images, images, crop) if knn_every and left else None
    run.begin()  # only now is anything made
    progress = Progress(run, images, schedule, device, precision.name, remarks)
    if not left:
        progress.finished_before()
        return DONE
    provenance.note(run.folder, run.step, device, precision.name)

    def measure_knn(done: int) -> None:
        backbone = whole_backbone(teacher)  # all processes together
        if knn:
            progress.knn(done, knn.measure(backbone))

    if knn_every and run.step == 0:
        measure_knn(0)

    for remark in compile_networks(plan, device, student, teacher):
        progress.say(remark)

    def capture_refused(attempt: health.Attempt) -> None:
        if precision.name != "fp16":  # there it is how the scale of the loss is found
            replay.capture(run, attempt, precision.name, student, teacher)

    guard = health.Guard(capture_refused, late=plan.refuses_late(device))
    parallel = distributed.parallel(student, device, some_unused=plan.some_unused)
    bad = bad_images.BadImages(steps.most_bad, run.bad_images())
    accumulate, weights = steps.accumulate, plan.loss_weights
    first, last_batch = run.step * accumulate, schedule.total_steps * accumulate
    loader = Loader(steps, first, last_batch, plan.workers, device)
    done = run.step

    def save() -> None:
        guard.resolve_pending()
        run.save(done, student, teacher, optimizer, precision.scaler)

    with (
        stop_requested() as stop,
        report_process.live(run.folder, options.run.serve, progress.say),
        progress,
        saved_if_starved(save, lambda: done, run.step, stop),
    ):
        loader.stop = stop
        for step, batches in enumerate(in_groups(loader, accumulate), start=run.step):
            now = schedule.at(step)
            guard.begin(step, batches, now)
            outcome = train_step(parallel, teacher, optimizer, batches, now, weights, guard, precision, objective)
            bad.add(one for batch in batches for one in batch.bad)
            done = step + 1
            last, epoch = done == schedule.total_steps, done // steps.steps_per_epoch
            if last or done % log_every == 0:
                guard.resolve_pending()
                progress.bad(done, bad.take_new())
                _, losses, logits, answer, targets, gradient = outcome
                signs = diagnostics_of(student, teacher, losses, logits, answer, targets, weights.cls)
                counts = Counts(guard.skipped, loader.waited, len(bad.all))
                progress.log(done, now, losses, gradient, signs, counts)
                bad.check()
            if knn_every and (last or (done % steps.steps_per_epoch == 0 and epoch % knn_every == 0)):
                measure_knn(done)
            stopping, saving = distributed.any_true(bool(stop) or terminal.gone() or run.moved(), run.time_to_save(done))
            if stopping or saving or last:
                save()
            if stopping or last:
                run.stay(done)
            if stopping and not last:
                progress.interrupted(done)
                return INTERRUPTED
    if done < schedule.total_steps:  # asked to stop while no batch came
        progress.interrupted(done)
        return INTERRUPTED
    summary(run, time.perf_counter() - began)
    return DONE


def main(arguments: Sequence[str]) -> int:
    options = read_command_line(arguments)
    if options.run.replay is not None:
        return replay.show(options.run.replay, options.loss.tokenizer)
    plan = plan_of(options)
    with terminal.lasting():
        return _whole_run(plan)


def _whole_run(plan: Plan) -> int:
    """Train in a folder of its own, and write the page if the end was reached; an exit code."""
    folder, options = plan.folder, plan.options
    with distributed.processes() as device, claimed(folder, "--out", told=options.run.allow_foreign_files):
        code, writes = train(plan, device), distributed.is_main()
    if code == DONE and writes and options.run.report and report_process.missing(folder, store.LAST):
        terminal.say(report_process.write(folder, options.images.data))
    return code


if __name__ == "__main__":
    sys.exit(run_command(main))
