"""Time and memory of a training step: `tools/bench.sh step`.

Ours, with the options that training has on this device, against the plain method (tests/support/plain.py: everything on all
tokens, as the paper's Algorithm 1 says) and, where a clone of it is named, against the original itself, in the same precision
and on the same crops. Each runs in a process of its own, so that each has a peak of memory of its own.
"""

import dataclasses
import importlib.util
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from checkpoints import store, terminal
from checkpoints.cli import UserError, WorkError, parse, run_command
from pretrain.batches import masking
from pretrain.batches.dataset import Batch
from pretrain.engine import optim
from pretrain.engine.guard import Guard
from pretrain.engine.precision import Precision
from pretrain.method import ibot
from pretrain.method.objective import LossWeights, Objective
from pretrain.method.schedule import ScheduleValues
from pretrain.options.command_line import read_command_line
from pretrain.setup.networks import build, compile_networks
from pretrain.setup.plan import Plan, plan_of
from pretrain.train import train_step
from probes.bench import alone, original

PLAIN = Path(__file__).parents[2] / "tests" / "support" / "plain.py"
RECIPES = {"vit_small": "ibot_vits16", "vit_base": "ibot_vitb16", "vit_large": "ibot_vitl16", "swin_tiny": "ibot_swint7"}
PRODUCTS = ((4096, 384, 1536), (4096, 768, 3072), (4096, 1024, 4096), (8192, 4096, 4096))
"""Matrix products of which the fastest is taken for the machine's peak."""
TINY = ("--recipe sample --depth 1 --out-dim 32 --patch-out-dim 32 --head-hidden-dim 32 --head-bottleneck-dim 16").split()
BATCH = {"cuda": 128, "cpu": 8}
"""Images of a step: on a GPU as many as training takes."""


@dataclass(frozen=True)
class BenchStepOptions:
    """One training step, 2 x 224 + 10 x 96 crops, against the plain method."""

    arch: Literal["vit_small", "vit_base", "vit_large", "swin_tiny"] = "vit_small"
    """Architecture, with the recipe of that name."""
    batch_size: int | None = None
    """Images (default: 8 on a CPU, 128 on a GPU, as training)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of all variants."""
    rounds: int = 5
    """Steps that are timed, after two that are not; the median counts."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Ours with compiled blocks; auto as training has it: on a GPU. The plain method and the original never are."""
    against: tuple[Literal["original"], Path] | None = None
    """`original PATH`: time the original's own modules, too; PATH is a clone of its repository, whose code is then run."""
    tiny: bool = False
    """A network and crops of almost no size: to try this command out; the numbers say nothing."""
    json: Path | None = None
    """Write the numbers there, too."""
    variant: Literal["all", "ours", "plain", "original"] = "all"
    """Measure one of them in this process and print its numbers as JSON."""


class Measured(NamedTuple):
    """Measurements of one variant."""

    seconds: float
    megabytes: float
    """Peak of this process, or of the GPU's memory."""
    teraflops: float
    """Floating-point operations of a step, multiplications and additions, in 1e12, as the counter of torch sees them."""
    loss: float


class Prepared(NamedTuple):
    """A step that can be taken again and again."""

    take: Callable[[], torch.Tensor]
    """Gives the loss."""
    student: Any
    notes: list[str]
    """What was compiled, or why not."""


def images_of(chosen: BenchStepOptions, device: torch.device) -> int:
    """Of a step."""
    return chosen.batch_size or BATCH.get(device.type, BATCH["cpu"])


def prepare(chosen: BenchStepOptions, device: torch.device) -> Prepared:
    """The step of one variant. Raises WorkError where `--compile on` compiles nothing."""
    batch_size = images_of(chosen, device)
    recipe = TINY if chosen.tiny else ["--recipe", RECIPES[chosen.arch]]
    more = ["--batch-size-per-gpu", str(batch_size), "--data", "x", "--compile", chosen.compile]
    plan = plan_of(read_command_line([*recipe, *more]))
    precision, now = Precision(chosen.precision, device), plan.schedule(1000, 1).at(0 if chosen.tiny else 60_000)
    batch = random_batch(plan, batch_size, device)
    if chosen.variant == "original":
        assert chosen.against is not None
        return Prepared(*original.step(chosen.against[1], plan, batch, now, precision, device), [])
    student, teacher = build(
        plan, plan.architecture, fused=precision.fused_attention, residual=plan.residual(precision.name, device)
    )
    student.backbone.recompute_activations = chosen.variant == "ours"
    student.to(device).train()
    teacher.to(device).train()
    optimizer = optim.build_optimizer("adamw", student)
    weights = LossWeights(clip_grad=plan.loss_weights.clip_grad)
    if chosen.variant == "plain":
        return Prepared(_plainly(student, teacher, optimizer, batch, now, weights, precision), student, [])
    guard, objective = Guard(late=plan.refuses_late(device)), Objective()
    notes = compile_networks(plan, device, precision, student, teacher, objective)
    if chosen.compile == "on" and not (student.backbone.compiled and teacher.backbone.compiled):
        raise WorkError("; ".join(notes))

    def ours() -> torch.Tensor:
        return train_step(student, teacher, optimizer, [batch], now, weights, guard, precision, objective).losses.total

    return Prepared(ours, student, notes)


def _plainly(
    student: ibot.Student,
    teacher: ibot.Teacher,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    now: ScheduleValues,
    weights: LossWeights,
    precision: Precision,
) -> Callable[[], torch.Tensor]:
    """The plain method's step."""
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

    return plainly


def measure(chosen: BenchStepOptions, device: torch.device) -> Measured:
    """The step of one variant, in this process."""
    prepared = prepare(chosen, device)
    for note in prepared.notes:
        terminal.say(note)
    return timed(prepared.take, prepared.student, chosen.rounds, device)


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


def timed(step: Callable[[], torch.Tensor], student: Any, rounds: int, device: torch.device) -> Measured:
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


def peak(device: torch.device, precision: Precision, products: Sequence[tuple[int, int, int]] = PRODUCTS) -> float:
    """The machine's fastest matrix product in this precision, 1e12 operations a second."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision.name, torch.float32)
    best = 0.0
    for rows, inner, columns in products:
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
    if chosen.against is not None or chosen.variant == "original":
        required_clone(chosen)
    if chosen.variant != "all":
        found = measure(chosen, device)._asdict()
        write_json(chosen.json, found)
        terminal.say(json.dumps(found))
        return
    rows = {
        variant: Measured(**alone.numbers(f"the {variant} step", "probes.bench.step", *arguments, "--variant", variant))
        for variant in ("plain", *(["original"] if chosen.against else []), "ours")
    }
    precision = Precision(chosen.precision, device)
    best, batch_size = peak(device, precision, ((64, 64, 64),) if chosen.tiny else PRODUCTS), images_of(chosen, device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    title = f"{chosen.arch}, {batch_size} images, {precision.name}, {name}, peak {best:.3g} TFLOP/s"
    console = terminal.Console(width=110)
    console.print(table_of(title, rows, batch_size, best))
    ratios: dict[str, float] = {}
    ours = rows["ours"]
    for other in (name for name in rows if name != "ours"):
        fast, memory = rows[other].seconds / ours.seconds, ours.megabytes / rows[other].megabytes
        ending = "" if other == "plain" else f"_of_{other}"
        ratios |= {f"times_as_fast{ending}": fast, f"share_of_memory{ending}": memory}
        console.print(f"ours against the {other}: {fast:.2f} times as fast, {memory:.2f} of the memory")
    numbers = {variant: row._asdict() for variant, row in rows.items()}
    about = {"arch": chosen.arch, "batch_size": batch_size, "precision": precision.name, "compile": chosen.compile}
    write_json(chosen.json, {**about, "device": name, "peak_tflops": best, **numbers, **ratios})


def required_clone(chosen: BenchStepOptions) -> None:
    """Raise UserError where no clone of the original was named, or none lies there."""
    if chosen.against is None:
        raise UserError("--variant original needs --against original PATH, a clone of the original's repository")
    original.check(chosen.against[1])


def of_variant(chosen: BenchStepOptions, variant: Literal["ours", "plain", "original"]) -> BenchStepOptions:
    """The same options for one variant."""
    return dataclasses.replace(chosen, variant=variant)


def table_of(title: str, rows: Mapping[str, Measured], batch_size: int, best: float) -> Table:
    """A row a variant; `best` is the machine's peak."""
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
    return table


def write_json(path: Path | None, numbers: Mapping[str, Any]) -> None:
    """Where a path was given."""
    if path is not None:
        store.write_bytes(path, (json.dumps(numbers, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(run_command(main))
