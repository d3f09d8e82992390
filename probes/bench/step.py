"""Time and memory of a training step: `tools/bench.sh step`.

Ours against the plain method (tests/support/plain.py: everything on all tokens, as the paper's Algorithm 1 says) in the same
precision and on the same crops. Each runs in a process of its own, so that each has a peak of memory of its own.
"""

import importlib.util
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from checkpoints import terminal
from checkpoints.cli import UserError, WorkError, parse, run_command
from pretrain.batches import masking
from pretrain.batches.dataset import Batch
from pretrain.engine import optim
from pretrain.engine.guard import Guard
from pretrain.engine.precision import Precision
from pretrain.method import ibot
from pretrain.method.objective import LossWeights
from pretrain.models.compiling import compile_blocks
from pretrain.options.command_line import read_command_line
from pretrain.setup.networks import build, forward_as_trained
from pretrain.setup.plan import Plan, plan_of
from pretrain.train import train_step
from probes.bench import alone

PLAIN = Path(__file__).parents[2] / "tests" / "support" / "plain.py"
RECIPES = {"vit_small": "ibot_vits16", "vit_base": "ibot_vitb16", "vit_large": "ibot_vitl16", "swin_tiny": "ibot_swint7"}
PRODUCTS = ((4096, 384, 1536), (4096, 768, 3072), (4096, 1024, 4096), (8192, 4096, 4096))
"""Matrix products of which the fastest is taken for the machine's peak."""


@dataclass(frozen=True)
class BenchStepOptions:
    """One training step, 2 x 224 + 10 x 96 crops, against the plain method."""

    arch: Literal["vit_small", "vit_base", "vit_large", "swin_tiny"] = "vit_small"
    """Architecture, with the recipe of that name."""
    batch_size: int | None = None
    """Images (default: 8 on a CPU, 64 on a GPU)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of both variants."""
    rounds: int = 5
    """Steps that are timed, after two that are not; the median counts."""
    compile: bool = False
    """Ours with compiled blocks (the plain method never is)."""
    json: Path | None = None
    """Write the numbers there, too."""
    variant: Literal["both", "ours", "plain"] = "both"
    """Measure one of them in this process and print its numbers as JSON."""


class Measured(NamedTuple):
    """Measurements of one variant."""

    seconds: float
    megabytes: float
    """Peak of this process, or of the GPU's memory."""
    teraflops: float
    """Floating-point operations of a step, multiplications and additions, in 1e12, as the counter of torch sees them."""
    loss: float


def measure(chosen: BenchStepOptions, device: torch.device) -> Measured:
    """The step of one variant, in this process."""
    batch_size = chosen.batch_size or (64 if device.type == "cuda" else 8)
    words = ["--recipe", RECIPES[chosen.arch], "--batch-size-per-gpu", str(batch_size), "--data", "x"]
    plan = plan_of(read_command_line(words))
    precision = Precision(chosen.precision, device)
    student, teacher = build(plan, plan.architecture, fused=precision.fused_attention)
    student.backbone.recompute_activations = chosen.variant == "ours"
    student.to(device).train()
    teacher.to(device).train()
    optimizer, now = optim.build_optimizer("adamw", student), plan.schedule(1000, 1).at(60_000)
    batch = random_batch(plan, batch_size, device)
    if chosen.compile and chosen.variant == "ours":
        flat = [batch.crops.flatten(0, 1), batch.local_crops.flatten(0, 1)]
        for network, seen in ((student, flat), (teacher, flat[:1])):
            note = compile_blocks(network, partial(forward_as_trained, network, seen, precision))
            if not network.backbone.compiled:
                raise WorkError(note)
    weights, guard = LossWeights(clip_grad=plan.loss_weights.clip_grad), Guard()

    def ours() -> torch.Tensor:
        return train_step(student, teacher, optimizer, [batch], now, weights, guard, precision).losses.total

    plain = read_plain()

    def plainly() -> torch.Tensor:
        with precision.autocast():
            found = plain.step(student, teacher, batch, now.cls_temperature, now.patch_temperature)
        found.total.backward()
        clip_one_by_one(student, weights.clip_grad)
        optimizer.param_groups[0].update(lr=now.lr, weight_decay=now.weight_decay)
        optimizer.step()
        optimizer.zero_grad()
        follow_one_by_one(teacher, student, now.momentum)
        return found.total

    return timed(ours if chosen.variant == "ours" else plainly, student, chosen.rounds, device)


def random_batch(plan: Plan, batch_size: int, device: torch.device) -> Batch:
    """Crops of noise: a step's time does not depend on what is in them."""
    generator = torch.Generator().manual_seed(0)
    sizes = plan.options.crops
    crops = torch.randn(sizes.global_crops_number, batch_size, 3, *[sizes.global_crops_size] * 2, generator=generator)
    local = torch.randn(sizes.local_crops_number, batch_size, 3, *[sizes.local_crops_size] * 2, generator=generator)
    masks = masking.draw(np.random.default_rng(0), plan.masks, sizes.global_crops_number, batch_size, *plan.grid)
    return Batch(crops.to(device), masks.to(device), local.to(device))


def clip_one_by_one(student: ibot.Student, limit: float) -> None:
    """The original's clipping, which waits for the device at every tensor."""
    for parameter in student.parameters():
        if parameter.grad is not None:
            scale = limit / (parameter.grad.norm() + 1e-6)
            if scale < 1:
                parameter.grad.mul_(scale)


@torch.no_grad()
def follow_one_by_one(teacher: ibot.Teacher, student: ibot.Student, momentum: float) -> None:
    for mine, theirs in ibot.shared_weights(teacher, student):
        mine.mul_(momentum).add_((1 - momentum) * theirs)


def read_plain() -> Any:
    """The oracle of the tests. Raises UserError where there are none, as in an installed copy."""
    if not PLAIN.exists():
        raise UserError(f"{PLAIN} is not there: run this in a clone of the repository")
    spec = importlib.util.spec_from_file_location("plain", PLAIN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(step: Callable[[], torch.Tensor], student: ibot.Student, rounds: int, device: torch.device) -> Measured:
    """Two steps to warm up, `rounds` that count, one that is counted out."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    first, seconds = step().item(), []
    step()
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0
    megabytes = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    student.backbone.recompute_activations = False  # what is computed again is no part of the method
    with FlopCounterMode(display=False) as counter:
        step()
    return Measured(statistics.median(seconds), megabytes, counter.get_total_flops() / 1e12, first)


def peak(device: torch.device, precision: Precision) -> float:
    """The machine's fastest matrix product in this precision, 1e12 operations a second."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision.name, torch.float32)
    best = 0.0
    for rows, inner, columns in PRODUCTS:
        a, b = torch.randn(rows, inner, device=device, dtype=kind), torch.randn(inner, columns, device=device, dtype=kind)
        for _ in range(6):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2e-12 * rows * inner * columns / (time.perf_counter() - start))
    return best


def main(arguments: Sequence[str]) -> None:
    chosen = parse(BenchStepOptions, arguments, prog="tools/bench.sh step")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if chosen.variant != "both":
        terminal.say(json.dumps(measure(chosen, device)._asdict()))
        return
    rows = {
        variant: Measured(**alone.numbers(f"the {variant} step", "probes.bench.step", *arguments, "--variant", variant))
        for variant in ("plain", "ours")
    }
    precision = Precision(chosen.precision, device)
    best, batch_size = peak(device, precision), chosen.batch_size or (64 if device.type == "cuda" else 8)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    title = f"{chosen.arch}, {batch_size} images, {precision.name}, {name}, peak {best:.3g} TFLOP/s"
    table = Table(title=title, title_justify="left")
    for heading in ("", "seconds", "images/s", "peak MB", "TFLOP", "of the peak", "loss of the first step"):
        table.add_column(heading, justify="right")
    for variant, row in rows.items():
        share = 100 * row.teraflops / row.seconds / best
        table.add_row(
            variant,
            f"{row.seconds:.3f}",
            f"{batch_size / row.seconds:.1f}",
            f"{row.megabytes:.0f}",
            f"{row.teraflops:.2f}",
            f"{share:.0f} %",
            f"{row.loss:.4f}",
        )
    plain, ours = rows["plain"], rows["ours"]
    ratios = {"times_as_fast": plain.seconds / ours.seconds, "share_of_memory": ours.megabytes / plain.megabytes}
    console = terminal.Console(width=110)
    console.print(table)
    console.print(f"ours: {ratios['times_as_fast']:.2f} times as fast, {ratios['share_of_memory']:.2f} of the memory")
    if chosen.json is not None:
        numbers = {variant: row._asdict() for variant, row in rows.items()}
        about = {"arch": chosen.arch, "batch_size": batch_size, "precision": precision.name, "device": name, "peak_tflops": best}
        chosen.json.write_text(json.dumps({**about, **numbers, **ratios}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
