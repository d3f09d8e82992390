"""The loop: `python -m pretrain.train`, or `tools/pretrain.sh`, which also sets the environment up.

Read `train_step` first: Algorithm 1 of the paper, one act a line. Then `train`: setup, data, step, log, save.
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
from torch import Tensor, nn
from torch.amp import GradScaler

from checkpoints import store, terminal
from checkpoints.cli import DONE, INTERRUPTED, run_command
from pretrain.batches.dataset import Batch
from pretrain.batches.feeding import saved_if_starved
from pretrain.batches.loader import Loader
from pretrain.engine import bad_images, distributed, optim, provenance
from pretrain.engine.guard import Guard
from pretrain.engine.precision import Precision
from pretrain.engine.run_folder import claimed
from pretrain.engine.verdict import Verdict
from pretrain.evaluate.online_knn import OnlineKnn
from pretrain.images import values
from pretrain.method import ibot
from pretrain.method.ibot import Losses, Student, StudentOutput, Targets, Teacher, TeacherOutput
from pretrain.method.objective import IBOT, LossWeights, Objective, forward_and_losses
from pretrain.method.schedule import ScheduleValues
from pretrain.options.command_line import read_command_line
from pretrain.run import replay, report_process
from pretrain.run.checkpoint import Run
from pretrain.run.diagnostics import diagnostics_of
from pretrain.run.progress import Counts, Progress, summary
from pretrain.setup import data
from pretrain.setup.init_from import init_from, set_moments
from pretrain.setup.networks import build, compile_networks, whole_backbone
from pretrain.setup.objective import objective_of
from pretrain.setup.plan import Plan, plan_of
from pretrain.setup.validate import without_effect

Item = TypeVar("Item")
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Ctrl-C, a scheduler's end, Slurm's word before it (tools/slurm.sbatch), a connection that was closed."""


class StepOutput(NamedTuple):
    """What a step leaves for the log; of several micro-batches the losses are means, the outputs those of the last."""

    accepted: Verdict
    """False where loss or gradients were not finite: then nothing was changed."""
    losses: Losses
    student: StudentOutput
    teacher: TeacherOutput
    targets: Targets
    gradient: Tensor
    """Mean norm of the gradient tensors, before clipping."""


def train_step(
    student: nn.Module,
    teacher: Teacher,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    now: ScheduleValues,
    weights: LossWeights,
    guard: Guard,
    precision: Precision,
    objective: Objective = IBOT,
) -> StepOutput:
    """One optimisation step (paper, Algorithm 1) on all batches as one large batch.

    `student` is a Student, or one wrapped by `distributed.parallel`.
    """
    # both networks' outputs, targets and losses of every micro-batch, and the student's gradients
    parts = []
    for number, batch in enumerate(batches, start=1):
        with distributed.averaged(student, number == len(batches)):  # over processes, with the last one
            output = forward_and_losses(student, teacher, batch, now, precision, objective, weights.cls, weights.patch)
            precision.scaler.scale(output.losses.total / len(batches)).backward()
        parts.append((output.losses, output.targets))
    losses, means = ibot.merge_micro_batches(parts)

    # may the step be taken? then clip every gradient tensor on its own
    precision.scaler.unscale_(optimizer)
    plain = distributed.unwrap(student)
    gradients = optim.gradients_of(plain.parameters())
    norms = optim.norms_of(gradients)
    verdict = guard.accepts(losses, norms)
    optim.clip_each_(gradients, norms, weights.clip_grad)
    if now.last_layer_frozen:
        optim.drop_last_layer_gradients_(plain.head)

    # student: optimizer; teacher: moving average of the student; centres: moving averages of the teacher's logits
    optim.set_values_(optimizer, now.lr, now.weight_decay)
    verdict.step_(optimizer, precision.scaler)
    teacher.update_ema_(plain, now.momentum, verdict)
    teacher.centres.update_(means, verdict)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return StepOutput(verdict, losses, output.student, output.teacher, output.targets, norms.mean())


@contextlib.contextmanager
def stop_requested() -> Iterator[list[int]]:
    """Yields the list of signals received so far that mean "stop"; a second SIGINT raises KeyboardInterrupt at once."""
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


def in_groups(batches: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The micro-batches of each step."""
    group: list[Item] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def measure_knn(knn: OnlineKnn | None, teacher: Teacher, progress: Progress, step: int) -> None:
    """Log the k-NN accuracy of the teacher's backbone after `step` steps. All processes call it together."""
    backbone = whole_backbone(teacher)  # gathered from all processes where it is sharded
    if knn:
        progress.knn(step, knn.measure(backbone))


def save(
    step: int,
    run: Run,
    guard: Guard,
    student: Student,
    teacher: Teacher,
    optimizer: torch.optim.Optimizer,
    scaler: GradScaler,
    *,
    wait: bool,
) -> None:
    """Write the checkpoint of `step` steps once the verdict on the last one is known. All processes call it together.

    `wait`: until it is written, also where a thread does that.
    """
    guard.resolve_pending()
    run.save(step, student, teacher, optimizer, scaler)
    if wait:
        run.writer.wait()


def train(plan: Plan, device: torch.device) -> int:
    """A whole run, from where it stands to its end; returns an exit code."""
    began = time.perf_counter()

    # ---- setup: images, networks, optimizer; an earlier checkpoint, if there is one --------------
    options = plan.options
    model, log_every, knn_every = options.model, options.run.log_every, options.knn.knn_every
    images, shape, steps, schedule = data.open_data(plan, device)
    precision = Precision(options.machine.precision, device)
    objective = objective_of(plan, shape, device)
    student, teacher = build(
        plan,
        shape,
        fused=precision.fused_attention,
        residual=plan.residual(precision.name, device),
        patch_prototypes=objective.patch_prototypes,
    )
    run = Run(plan, steps.steps_per_epoch, objective.digest, data.identity_of(images))
    notes = [*values.check(images, options.images.value_range, begun=run.begun())]
    start = None
    if model.init_from and not run.begun():
        start = init_from(model.init_from, student, teacher, heads=model.init_heads)
    student.to(device).train()
    teacher.to(device).train()
    if options.machine.shard and distributed.world_size() > 1:
        for network in (student, teacher):
            distributed.shard_(network, network.backbone.blocks, device)
    optimizer = optim.build_optimizer(options.optimisation.optimizer, student)
    torch.manual_seed(options.run.seed + distributed.rank())  # of stochastic depth; all else is drawn by seed and step
    if start:
        set_moments(optimizer, student, start.moments)
    notes += [*data.too_dark(images), *data.no_curve(plan, images), *without_effect(options)]
    notes += start.notes if start else []
    notes += run.resume(student, teacher, optimizer, precision.scaler)
    left = run.step < schedule.total_steps
    knn = data.online_knn(plan, images) if knn_every and left else None
    run.begin()  # only now is anything made
    progress = Progress(run, images, schedule, device, precision.name, notes)
    if not left:
        progress.finished_before()
        return DONE
    provenance.note(run.folder, run.step, device, precision.name)
    if knn_every and run.step == 0:
        measure_knn(knn, teacher, progress, 0)
    for note in compile_networks(plan, device, precision, student, teacher, objective):
        progress.say(note)
    guard = Guard(replay.Capture(run, precision.name, student, teacher), late=plan.refuses_late(device))
    parallel = distributed.parallel(student, device, some_unused=plan.some_unused)

    # ---- data: the batches of the steps that are left --------------------------------------------
    bad = bad_images.BadImages(steps.most_bad, run.bad_images())
    accumulate, weights = steps.accumulate, plan.loss_weights
    loader = Loader(steps, run.step * accumulate, schedule.total_steps * accumulate, plan.workers, device)
    done = run.step
    state = (run, guard, student, teacher, optimizer, precision.scaler)
    with (
        stop_requested() as stop,
        run.writer,
        report_process.live(run.folder, options.run.serve, progress.say),
        progress,
        contextlib.closing(loader),
        saved_if_starved(lambda: save(done, *state, wait=True), lambda: done, run.step, stop),
    ):
        loader.stop = stop
        for step, batches in enumerate(in_groups(loader, accumulate), start=run.step):
            # ---- step ----------------------------------------------------------------------------
            now = schedule.at(step)
            guard.begin(step, batches, now)
            output = train_step(parallel, teacher, optimizer, batches, now, weights, guard, precision, objective)
            bad.add(image for batch in batches for image in batch.bad)
            done = step + 1
            last, epoch_ended = done == schedule.total_steps, done % steps.steps_per_epoch == 0

            # ---- log: the one place that waits for the device ------------------------------------
            if last or done % log_every == 0:
                guard.resolve_pending()
                progress.bad(done, bad.take_new())
                diagnostics = diagnostics_of(
                    student, teacher, output.losses, output.student, output.teacher, output.targets, weights.cls
                )
                counts = Counts(guard.skipped, loader.waited, len(bad.all))
                progress.log(done, now, output.losses, output.gradient, diagnostics, counts)
                bad.check()
            if knn_every and (last or (epoch_ended and done // steps.steps_per_epoch % knn_every == 0)):
                measure_knn(knn, teacher, progress, done)

            # ---- save: when it is due, at the end, and when asked to stop ------------------------
            stopping, saving = distributed.any_true(bool(stop) or terminal.gone() or run.moved(), run.time_to_save(done))
            if stopping or saving or last:
                save(done, *state, wait=stopping or last)
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
    """Train in the run's folder, and write its page if the end was reached; returns an exit code."""
    folder, options = plan.folder, plan.options
    with distributed.processes() as device, claimed(folder, "--out", told=options.run.allow_foreign_files):
        code, writes = train(plan, device), distributed.is_main()
    if code == DONE and writes and options.run.report and report_process.missing(folder, store.LAST):
        terminal.say(report_process.write(folder, options.images.data))
    return code


if __name__ == "__main__":
    sys.exit(run_command(main))
