"""Python's own time for a training step and its crops, measured on this machine: what a GPU's host needs besides its launches.

The step is the real one with its real number of layers, on a CPU and so small that computing takes almost nothing. What it takes
is an upper bound: the small products are in it.
"""

import statistics
import time
from collections.abc import Callable

import torch

from pretrain.engine import optim
from pretrain.engine.guard import Guard
from pretrain.engine.precision import Precision
from pretrain.method.objective import LossWeights
from pretrain.options.command_line import read_command_line
from pretrain.setup.networks import build
from pretrain.setup.plan import plan_of
from pretrain.train import train_step
from probes.bench.crops import crops_without_device
from probes.bench.step import RECIPES, random_batch

SMALL = (
    "--batch-size-per-gpu 2 --data x --global-crops-size 64 --local-crops-size 32 --out-dim 16 --patch-out-dim 16 "
    "--head-hidden-dim 16 --head-bottleneck-dim 16"
)
WIDTH = "--width 64"
"""For ViTs, whose depth stays."""
ROUNDS = 7


def python_milliseconds(arch: str, rounds: int = ROUNDS) -> tuple[float, float]:
    """Of one step, and of making a batch's crops: the median of this thread's own time."""
    flags = f"{SMALL} {WIDTH}" if arch.startswith("vit") else SMALL
    words = ["--recipe", RECIPES[arch], *flags.split()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _milliseconds(_step(words), rounds), _milliseconds(
            crops_without_device(plan_of(read_command_line(words)), 2), rounds
        )
    finally:
        torch.set_num_threads(threads)


def _step(words: list[str]) -> Callable[[], object]:
    plan, device = plan_of(read_command_line(words)), torch.device("cpu")
    student, teacher = build(plan, plan.architecture)
    student.backbone.recompute_activations = False
    optimizer, now = optim.build_optimizer("adamw", student.train()), plan.schedule(1000, 1).at(60_000)
    teacher.train()
    batch, guard, weights = random_batch(plan, 2, device), Guard(late=False), LossWeights(clip_grad=plan.loss_weights.clip_grad)
    precision = Precision("fp32", device)

    def step() -> None:
        guard.begin(0, [batch], now)
        train_step(student, teacher, optimizer, [batch], now, weights, guard, precision)

    return step


def _milliseconds(work: Callable[[], object], rounds: int) -> float:
    """Seconds of this thread alone: other programs on the machine are not in it."""
    taken = []
    for _ in range(rounds + 2):
        began = time.thread_time()
        work()
        taken.append(time.thread_time() - began)
    return 1e3 * statistics.median(taken[2:])
