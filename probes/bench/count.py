"""What a training step and its crops ask of a GPU, without one: `tools/bench.sh count`.

The code of training runs on a pretended GPU (`probes/bench/pretended_gpu.py`), which counts. Times are estimates from the counts
and the constants of a named card: a lower bound for what the step takes, not a measurement.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.table import Table

from checkpoints import terminal
from checkpoints.cli import at_least, parse, run_command
from pretrain.batches import masking
from pretrain.batches.dataset import Batch
from pretrain.batches.masking import Masks
from pretrain.engine import optim
from pretrain.engine.guard import Guard
from pretrain.engine.precision import Precision
from pretrain.method import ibot
from pretrain.method.ibot import Losses, Student, StudentOutput, Targets, Teacher, TeacherOutput
from pretrain.method.objective import LossWeights, Objective
from pretrain.models.vit import ViT
from pretrain.options.command_line import read_command_line
from pretrain.setup.networks import build
from pretrain.setup.plan import Plan, plan_of
from pretrain.train import train_step
from probes.bench.crops import crops_on, need_triton
from probes.bench.fusion import pretend_compiled
from probes.bench.host import python_milliseconds
from probes.bench.kernels import CARDS, Card, Kernel, seconds
from probes.bench.pretended_gpu import GPU, PretendedGpu, Upload, Wait, pretended
from probes.bench.roofline import roofline
from probes.bench.step import RECIPES

OPERATORS, NAME = 25, 60
"""Rows of a table by operator (as many by bytes as by launches), and letters of an operator's name there."""
PHASES = ("teacher", "student", "losses", "backward", "update")


@dataclass(frozen=True)
class BenchCountOptions:
    """One training step with its crops, 2 x 224 + 10 x 96, counted on a GPU that is not there."""

    arch: Literal["vit_small", "vit_base", "vit_large", "swin_tiny"] = "vit_small"
    """Architecture, with the recipe of that name."""
    batch_size: int = 128
    """Images."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format."""
    compile: bool = True
    """Blocks compiled, as training does it on a GPU."""
    card: Literal["H100", "H200"] = "H100"
    """GPU whose rates the estimates use."""
    largest: int = 0
    """Show so many of the places in the code that take longest, too."""
    by: Literal["act", "operator"] = "act"
    """What the table has a row for: acts of the step, or the operators of each act that move or launch most."""
    markdown: bool = False
    """Print the table as Markdown, with the command and the day, as docs/performance.md has it."""
    json: Path | None = None
    """Write the numbers there, too."""


class Counted(NamedTuple):
    """One step."""

    kernels: list[Kernel]
    waits: list[Wait]
    uploads: list[Upload]
    peak: int
    """Bytes of the device's memory, weights and moments included."""
    graphs: int


class Row(NamedTuple):
    """Sums over some kernels."""

    launches: int
    flops: int
    product_bytes: int
    """Of matrix products and attention."""
    other_bytes: int
    milliseconds: float


class Phased(Objective):
    """iBOT, which tells the pretended GPU which act of the step has come."""

    def __init__(self, gpu: PretendedGpu) -> None:
        self._gpu = gpu

    @property
    def is_plain(self) -> bool:
        return True

    def teacher_forward(self, teacher: torch.nn.Module, batch: Batch, masks: Masks | None) -> TeacherOutput:
        self._gpu.phase = "teacher"
        return super().teacher_forward(teacher, batch, masks)

    def student_forward(self, student: torch.nn.Module, batch: Batch, masks: Masks | None) -> StudentOutput:
        self._gpu.phase = "student"
        found = super().student_forward(student, batch, masks)
        self._gpu.phase = "losses"
        return found

    def losses(
        self, output: StudentOutput, targets: Targets, batch: Batch, masks: Masks | None, cls_weight: float, patch_weight: float
    ) -> Losses:
        found = super().losses(output, targets, batch, masks, cls_weight, patch_weight)
        self._gpu.phase = "backward"
        return found


class PhasedGuard(Guard):
    """Says that gradients are there."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__(late=True)
        self._gpu = gpu

    def accepts(self, losses: Any, norms: torch.Tensor) -> Any:
        self._gpu.phase = "update"
        return super().accepts(losses, norms)


def plan_for(arch: str, batch_size: int, flags: Sequence[str] = ()) -> Plan:
    """The plan of the recipe of this architecture and further flags."""
    return plan_of(read_command_line(["--recipe", RECIPES[arch], "--batch-size-per-gpu", str(batch_size), "--data", "x", *flags]))


def step_on(
    gpu: PretendedGpu,
    *,
    arch: str = "vit_small",
    batch_size: int = 128,
    precision: str = "bf16",
    compiled: bool = True,
    kernels: bool = True,
    flags: Sequence[str] = (),
) -> Callable[[], None]:
    """The step of training with the recipe of this architecture and further flags; calling it takes one."""
    plan = plan_for(arch, batch_size, flags)
    numbers = Precision(precision, GPU)
    student, teacher = build(plan, plan.architecture, fused=numbers.fused_attention, residual=plan.residual(numbers.name, GPU))
    for network in (student.train(), teacher.train()):
        gpu.move_(network)
    if compiled:
        compile_(gpu, student.backbone, teacher.backbone, kernels=kernels and numbers.low is not None)
    optimizer, now = optim.build_optimizer("adamw", student), plan.schedule(1000, 1).at(60_000)
    batch, guard, objective = batch_on(gpu, plan, batch_size), PhasedGuard(gpu), Phased(gpu)
    if compiled:
        compile_method_(gpu, plan, student, teacher, objective)
    weights = LossWeights(clip_grad=plan.loss_weights.clip_grad)

    def step() -> None:
        guard.begin(0, [batch], now)
        train_step(student, teacher, optimizer, [batch], now, weights, guard, numbers, objective)

    return step


def compile_method_(gpu: PretendedGpu, plan: Plan, student: Student, teacher: Teacher, objective: Objective) -> None:
    """What `compile_method` does, likewise."""
    crops = plan.options.crops.global_crops_number * plan.options.optimisation.batch_size_per_gpu
    objective.padded_to = masking.bound(plan.masks, crops, plan.grid[0] * plan.grid[1])
    student.logits, teacher.logits = pretend_compiled(ibot.student_logits, gpu), pretend_compiled(ibot.teacher_logits, gpu)
    judge = pretend_compiled(ibot.targets_and_losses, gpu)

    def phased(*arguments: Any) -> tuple[Targets, Losses]:
        found: tuple[Targets, Losses] = judge(*arguments)
        gpu.phase = "backward"
        return found

    objective.judge = phased


def compile_(gpu: PretendedGpu, *backbones: Any, kernels: bool = True) -> None:
    """What `compile_blocks` does, for a GPU that is not there; both networks share their graphs."""
    run = None
    for backbone in backbones:
        if kernels and isinstance(backbone, ViT):
            from pretrain.models import fused_blocks  # noqa: PLC0415  # it needs Triton

            backbone.kernels = fused_blocks
            continue
        backbone.compile_blocks()
        run = run or pretend_compiled(backbone.compiled.plain, gpu)
        backbone.compiled = run


def batch_on(gpu: PretendedGpu, plan: Plan, batch_size: int) -> Batch:
    """Crops on the device, with real masks."""
    crops, channels = plan.options.crops, plan.architecture.channels
    views = gpu.tensor(crops.global_crops_number, batch_size, channels, *[crops.global_crops_size] * 2)
    local = gpu.tensor(crops.local_crops_number, batch_size, channels, *[crops.local_crops_size] * 2)
    masks = masking.draw(np.random.default_rng(0), plan.masks, len(views), batch_size, *plan.grid)
    return Batch(views, masks.to(GPU), local)


def counted(step: Callable[[], object], gpu: PretendedGpu) -> Counted:
    """The second step, in which the optimizer has its moments."""
    torch.manual_seed(0)
    gpu.start()
    step()
    gpu.start()
    step()
    return Counted(gpu.kernels, gpu.waits, gpu.uploads, gpu.peak, gpu.graphs)


def row_of(kernels: Sequence[Kernel], card: Card) -> Row:
    """Sums."""
    products = sum(kernel.bytes for kernel in kernels if kernel.kind != "other")
    return Row(
        sum(kernel.launches for kernel in kernels),
        sum(kernel.flops for kernel in kernels),
        products,
        sum(kernel.bytes for kernel in kernels) - products,
        1e3 * sum(seconds(kernel, card) for kernel in kernels),
    )


def rows_of(found: Counted, card: Card) -> dict[str, Row]:
    """By the act of the step, and in all."""
    acts = {phase: row_of([kernel for kernel in found.kernels if kernel.phase == phase], card) for phase in PHASES}
    return {**acts, "step": row_of(found.kernels, card)}


def longest(found: Counted, card: Card, count: int) -> list[tuple[str, Row]]:
    """The lines and operations that take longest by the estimate."""
    groups: dict[str, list[Kernel]] = {}
    for kernel in found.kernels:
        groups.setdefault(f"{kernel.name} {kernel.place} ({kernel.phase})", []).append(kernel)
    rows = [(name, row_of(kernels, card)) for name, kernels in groups.items()]
    return sorted(rows, key=lambda named: -named[1].milliseconds)[:count]


def by_operator(found: Counted, card: Card, count: int = OPERATORS) -> list[tuple[str, Row]]:
    """Operators of each act: the first by bytes outside products and attention, and the first by launches."""
    groups: dict[str, list[Kernel]] = {}
    for kernel in found.kernels:
        groups.setdefault(f"{kernel.phase}: {kernel.name[:NAME]}", []).append(kernel)
    rows = [(name, row_of(kernels, card)) for name, kernels in groups.items()]
    heavy = sorted(rows, key=lambda named: -named[1].other_bytes)[:count]
    many = sorted(rows, key=lambda named: -named[1].launches)[:count]
    return [*heavy, *(row for row in many if row not in heavy)]


HEADINGS = ("", "launches", "TFLOP", "GB, products and attention", "GB, others", "estimated ms")


def cells_of(name: str, row: Row) -> list[str]:
    """Under HEADINGS."""
    numbers = (f"{row.flops / 1e12:.2f}", f"{row.product_bytes / 1e9:.1f}", f"{row.other_bytes / 1e9:.1f}")
    return [name, f"{row.launches:,}", *numbers, f"{row.milliseconds:.1f}"]


def table_of(rows: Sequence[tuple[str, Row]], title: str) -> Table:
    """For the screen."""
    table = Table(title=title, title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in rows:
        table.add_row(*cells_of(name, row))
    return table


def markdown_of(rows: Sequence[tuple[str, Row]], title: str) -> list[str]:
    """Lines for docs/performance.md."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(cells_of(name, row) for name, row in rows)]
    return [f"{title}:", "", *(f"| {' | '.join(cells)} |" for cells in lines), ""]


def main(arguments: Sequence[str]) -> None:
    chosen = parse(BenchCountOptions, arguments, prog="tools/bench.sh count")
    at_least(1, chosen, "batch_size")
    need_triton()
    card = CARDS[chosen.card]
    with pretended() as gpu:
        step = step_on(gpu, arch=chosen.arch, batch_size=chosen.batch_size, precision=chosen.precision, compiled=chosen.compile)
        found = counted(step, gpu)
    with pretended() as gpu:
        crops = counted(crops_on(gpu, plan_for(chosen.arch, chosen.batch_size), chosen.batch_size), gpu)
    rows = rows_of(found, card) | {"crops": row_of(crops.kernels, card)}
    rows["step and crops"] = row_of([*found.kernels, *crops.kernels], card)
    console, both = terminal.Console(width=120), rows["step and crops"]
    how = f"{chosen.precision}, {'compiled' if chosen.compile else 'not compiled'}"
    title = f"{chosen.arch}, {chosen.batch_size} images, {how}: counted; times estimated for {card.name}"
    shown = by_operator(found, card) if chosen.by == "operator" else list(rows.items())
    if chosen.markdown:
        command = " ".join(["tools/bench.sh count", *(word for word in arguments if word != "--markdown")])
        for line in markdown_of(shown, f"`{command}`, {date.today()}: {title}"):
            terminal.say(line)
    else:
        console.print(table_of(shown, title))
    if chosen.largest:
        console.print(table_of(longest(found, card, chosen.largest), "Longest"))
    python = python_milliseconds(chosen.arch)
    bound = roofline(chosen.batch_size, both.milliseconds, both.launches, sum(python))
    waits, uploads = [*found.waits, *crops.waits], [*found.uploads, *crops.uploads]
    late = sum(upload.waits for upload in uploads)
    console.print(
        f"peak of memory {found.peak / 2**30:.1f} GiB; {len(waits)} waits; {len(uploads)} uploads, {late} that wait; "
        f"device {bound.device_ms:.1f} ms; host {bound.host_ms:.1f} ms, of which Python, measured here, "
        f"{sum(python):.1f} at most ({python[1]:.1f} for crops): at most {bound.images_per_second:.0f} images/s"
    )
    for wait in waits:
        console.print(f"wait: {wait.name} in {wait.place} ({wait.phase})")
    if chosen.json is not None:
        numbers = {name: row._asdict() for name, row in rows.items()}
        about = {
            "arch": chosen.arch,
            "batch_size": chosen.batch_size,
            "precision": chosen.precision,
            "card": card.name,
            "compile": chosen.compile,
        }
        counts = {
            "graphs": found.graphs,
            "peak_bytes": found.peak,
            "waits": len(waits),
            "uploads": len(uploads),
            "late_uploads": late,
            "python_ms": sum(python),
            **bound._asdict(),
        }
        chosen.json.write_text(json.dumps({**about, **counts, "rows": numbers}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
