"""Throughput of the data pipeline: `tools/bench.sh data`.

Images/s of one core for decoding alone, for multi-crop as the original composes it from Pillow and torchvision, and for
ours; on a GPU also the time of making a batch's crops beside that of a training step.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image, ImageFilter, ImageOps
from rich.table import Table
from torchvision import transforms

from checkpoints import terminal
from checkpoints.cli import UserError, parse, run_command
from pretrain.batches import augment
from pretrain.batches.augment import BLUR_SIGMA, BRIGHTNESS, CONTRAST, FLIP, GREY, HUE, JITTER, MEAN, SATURATION, STD
from pretrain.batches.dataset import Batch, Cut, StepDataset, make_batch
from pretrain.batches.loader import color_change
from pretrain.engine import optim
from pretrain.engine.guard import Guard
from pretrain.engine.precision import Precision
from pretrain.images.open import open_images
from pretrain.images.source import Images, InMemory, usable
from pretrain.method.objective import LossWeights, Objective
from pretrain.options.command_line import read_command_line
from pretrain.setup.networks import build, compile_networks
from pretrain.setup.plan import Plan, plan_of
from pretrain.train import train_step
from probes.bench import original
from probes.bench.step import write_json


@dataclass(frozen=True)
class BenchDataOptions:
    """Speed of images: 2 x 224 + 10 x 96 crops, one core."""

    data: str = "sample"
    """Images, as for training; photographs say most."""
    images: int = 96
    """Number of images, all held in memory."""
    batch_size: int = 32
    """Images that are augmented together, as a worker does."""
    rounds: int = 5
    """Each variant runs so often, in turn; the median counts."""
    recipe: str = "ibot_vits16"
    """Whose crops, and on a GPU whose training step."""
    gpu_batch_size: int = 128
    """Images of the batch on a GPU, whose step is then as training has it there (compiled, late verdict)."""
    against: tuple[Literal["original"], Path] | None = None
    """`original PATH`: time the original's own augmentation, too; PATH is a clone of its repository, whose code is then run."""
    json: Path | None = None
    """Write the images/s there, too."""


class Timed(NamedTuple):
    """A variant and its seconds for all images, a number a round."""

    name: str
    seconds: list[float]

    def images_per_second(self, images: int) -> float:
        return images / statistics.median(self.seconds)


def composed(view: augment.View) -> transforms.Compose:
    """One view as the original puts it together (paper App. B, as DINO)."""

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*BLUR_SIGMA)))

    jitter = transforms.ColorJitter(BRIGHTNESS, CONTRAST, SATURATION, HUE)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(view.size, view.scale, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(FLIP),
            transforms.RandomApply([jitter], JITTER),
            transforms.RandomGrayscale(GREY),
            transforms.RandomApply([blur], view.blur),
            transforms.RandomApply([ImageOps.solarize], view.solarize),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def held(images: Images, count: int) -> Images:
    """The first usable images, their files in memory."""
    contents = [images.content(number) for number in islice(usable(images), count)]
    return InMemory(images.name, contents, images.channels)


def take_turns(variants: dict[str, Callable[[], object]], rounds: int) -> list[Timed]:
    """Run every variant once to warm up, then all of them in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return [Timed(name, values) for name, values in seconds.items()]


def cpu_variants(images: Images, views: augment.MultiCrop, steps: StepDataset) -> dict[str, Callable[[], object]]:
    """The three ways on one core, each from files in memory to crops."""
    kinds = [*views.global_views, *[views.local_view] * views.locals]
    composition = [composed(view) for view in kinds]

    def with_pillow() -> None:
        for number in range(len(images)):
            picture = Image.fromarray(images[number])
            crops = [chain(picture) for chain in composition]
        torch.stack(crops[: len(views.global_views)])

    return {
        "decode alone": lambda: [images[number] for number in range(len(images))],
        "Pillow and torchvision, as the original": with_pillow,
        "ours": lambda: [steps[step] for step in range(steps.steps_per_epoch)],
    }


def main(arguments: Sequence[str]) -> None:
    chosen = parse(BenchDataOptions, arguments, prog="tools/bench.sh data")
    if chosen.against is not None:
        original.check(chosen.against[1])
    torch.set_num_threads(1)
    words = ["--recipe", chosen.recipe, "--data", chosen.data, "--batch-size-per-gpu", str(chosen.gpu_batch_size)]
    plan = plan_of(read_command_line(words))
    images = held(open_images(chosen.data), chosen.images)
    batch_size = min(chosen.batch_size, len(images))
    if not batch_size:
        raise UserError(f"{images.name} has no usable image")
    steps = StepDataset(images, plan.views, plan.masks, plan.grid, batch_size, 0)
    variants = cpu_variants(images, plan.views, steps)
    if chosen.against is not None:
        augmentation = original.augmentation(chosen.against[1], plan.options.crops)
        variants["the original's own"] = lambda: [augmentation(Image.fromarray(images[number])) for number in range(len(images))]
    timed = take_turns(variants, chosen.rounds)
    counts = {"ours": steps.steps_per_epoch * batch_size}
    speeds = {one.name: one.images_per_second(counts.get(one.name, len(images))) for one in timed}
    table = Table(title=f"{len(images)} images of {images.name}, one core, median of {chosen.rounds}", title_justify="left")
    for heading in ("from files in memory to crops", "images/s", "ms an image", "against Pillow"):
        table.add_column(heading, justify="left" if heading.startswith("from") else "right")
    for name, speed in speeds.items():
        ratio = "" if "alone" in name else f"{speed / speeds['Pillow and torchvision, as the original']:.2f} x"
        table.add_row(name, f"{speed:.0f}", f"{1000 / speed:.2f}", ratio)
    console = terminal.Console(width=110)
    console.print(table)
    write_json(chosen.json, {f"images/s: {name}": speed for name, speed in speeds.items()})
    if torch.cuda.is_available():
        console.print(gpu_line(images, plan, chosen.gpu_batch_size))
    else:
        console.print("GPU: none here, not measured")


def gpu_line(images: Images, plan: Plan, batch_size: int) -> str:
    """Milliseconds of making a batch's crops on the GPU, beside those of a training step."""
    device, views = torch.device("cuda"), plan.views
    held = InMemory(images.name, [images[number % len(images)] for number in range(batch_size)], images.channels)
    cut = StepDataset(held, views, plan.masks, plan.grid, batch_size, 0, make_crops=False)[0]
    assert isinstance(cut, Cut)
    cut = cut._replace(crops=cut.crops.pin_memory(), local_crops=cut.local_crops.pin_memory())
    kernels = color_change(device)

    def make() -> Batch:
        return make_batch(cut.to(device), MEAN, STD, kernels)

    student, teacher = build(plan, plan.architecture)
    student.to(device).train()
    teacher.to(device).train()
    optimizer, guard = optim.build_optimizer(plan.options.optimisation.optimizer, student), Guard(late=plan.refuses_late(device))
    precision, objective = Precision("auto", device), Objective()
    notes = compile_networks(plan, device, precision, student, teacher, objective)
    now, batch = plan.schedule(1000, 1).at(0), make()

    def step() -> None:
        train_step(student, teacher, optimizer, [batch], now, LossWeights(), guard, precision, objective)

    times = {}
    for name, act in (("crops", make), ("step", step)):
        for _ in range(3):
            act()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            act()
        torch.cuda.synchronize()
        times[name] = (time.perf_counter() - start) * 100
    return (
        f"{torch.cuda.get_device_name()}: crops of {batch_size} images, the copy included, {times['crops']:.1f} ms; "
        f"a training step {times['step']:.1f} ms; {100 * times['crops'] / times['step']:.0f} %"
        f"{''.join(f'; {note}' for note in notes)}"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
