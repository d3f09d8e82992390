"""One command from a checkpoint to the paper's tables: `tools/reproduce.sh --ckpt F --imagenet DIR --coco DIR ...`.

Every probe and transfer whose data is given runs as a process of its own, the cheapest first; what is done stays done, what fails
does not stop the rest. Without any data: everything on the embedded sample.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch

from checkpoints import escape, places, start, store
from checkpoints.command import FAILED, UserError, parse, run_command
from pretrain.backbone import Backbone, Loaded, load_backbone
from pretrain.vit import ViT
from probes import paper, show
from probes.common import named_device
from probes.process import Stopped, run_once
from probes.reproduce_steps import START, Step, real, sample

CALIBRATION = 3.0
"""Seconds."""


@dataclass(frozen=True)
class Options:
    """Measure everything that the given data allow, and set it beside the paper."""

    ckpt: Path | None = None
    """A run's folder, a checkpoint file of any kind, a name of checkpoints/zoo.json (default: the newest run)."""
    imagenet: Path | None = None
    """The folder that holds train/ and val/."""
    coco: Path | None = None
    """The folder that holds annotations/, train2017/ and val2017/."""
    ade20k: Path | None = None
    """ADEChallengeData2016."""
    cifar10: str | None = None
    """torchvision:CIFAR10@DIR, or a folder or parquet files with two parts; the same for the next five."""
    cifar100: str | None = None
    flowers: str | None = None
    cars: str | None = None
    inat18: str | None = None
    inat19: str | None = None
    in9: Path | None = None
    """ImageNet-9 with its eight variants."""
    ina: Path | None = None
    """ImageNet-A."""
    inr: Path | None = None
    """ImageNet-R."""
    sketch: Path | None = None
    """ImageNet-Sketch."""
    inc: Path | None = None
    """ImageNet-C."""
    davis: Path | None = None
    """DAVIS-2017."""
    landmarks: Path | None = None
    """The folder that holds roxford5k/ and rparis6k/."""
    copydays: Path | None = None
    """Copydays."""
    table: tuple[str, ...] = ()
    """Only what fills these tables: T1 T5 F9 ..."""
    dry_run: bool = False
    """Say what would run, what it needs and how long it takes; run nothing."""
    device: str | None = None
    """For the calibration (default: a GPU where there is one)."""
    out: Path | None = None
    """The folder for records, logs and tables (default: reproduced/ beside the checkpoint); what is done there stays done."""


class Planned(NamedTuple):
    """A step with its data and an estimate."""

    step: Step
    data: str
    seconds: float


class Ended(NamedTuple):
    """What became of a step."""

    name: str
    state: str
    seconds: float


DATA = tuple(field.name for field in fields(Options) if field.name not in ("ckpt", "table", "dry_run", "device", "out"))


def calibrate(backbone: Backbone, device: torch.device) -> float:
    """Images that go forward in a second, measured for a few."""
    shape = backbone.shape
    images = torch.zeros(32, shape.channels, shape.image_size, shape.image_size, device=device)
    network = backbone.to(device)
    with torch.inference_mode():
        network(images[:2])
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < CALIBRATION:
            network(images)
            if device.type == "cuda":
                torch.cuda.synchronize()
            done += len(images)
    return done / (time.perf_counter() - began)


def plan(options: Options, loaded: Loaded, speed: float) -> tuple[list[Planned], list[Step]]:
    """What will run, the cheapest first, and what will not for want of data. Raises UserError for unknown tables."""
    shape, given = loaded.backbone.shape, {name: getattr(options, name) for name in DATA}
    rehearsal = not any(given.values())
    steps = [step for step in (sample() if rehearsal else real(shape.arch)) if _wanted(step, options.table)]
    steps = [step for step in steps if isinstance(loaded.backbone, ViT) or not step.vit_only]
    ready = [step for step in steps if rehearsal or given[step.needs]]
    planned = [
        Planned(step, "the sample" if rehearsal else str(given[step.needs]), START + step.images / speed) for step in ready
    ]
    return sorted(planned, key=lambda one: one.seconds), [step for step in steps if step not in ready]


def _wanted(step: Step, tables: Sequence[str]) -> bool:
    if not tables:
        return True
    try:
        ids = {name.partition("_")[0] for name in paper.chosen(tables)}
    except KeyError as error:
        raise UserError(f"there is no table {error.args[0]}: python -m probes.tables --every lists them") from error
    return bool(ids & set(step.tables))


def show_plan(planned: Sequence[Planned], missing: Sequence[Step], speed: float) -> None:
    """Two tables."""
    rows = [[one.step.name, " ".join(one.step.tables), one.data, duration(one.seconds)] for one in planned]
    rows.append(["all", "", "", duration(sum(one.seconds for one in planned))])
    show.table(f"plan ({speed:.0f} images/s forward here; times are estimates)", ["step", "tables", "data", "about"], rows)
    if missing:
        needs = dict.fromkeys(step.needs for step in missing)
        lines = [[f"--{need}", " ".join(step.name for step in missing if step.needs == need)] for need in needs]
        show.table("not run, for want of data", ["flag", "steps"], lines)


def duration(seconds: float) -> str:
    """In the unit that reads best."""
    for size, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"


def command(one: Planned, ckpt: Path, out: Path) -> list[str]:
    """The words of a step's command, python left out."""
    name = one.step.name
    known = {"ckpt": str(ckpt), "data": one.data, "out": str(out / f"{name}.json"), "folder": str(out / name)}
    return [word.format(**known) for word in one.step.words]


def run_step(one: Planned, ckpt: Path, out: Path, key: str) -> Ended:
    """Run it, unless the same command on the same checkpoint has ended well before. Its output goes to NAME.log."""
    try:
        ended = run_once(command(one, ckpt, out), out / one.step.name, [key])
    except Stopped:
        raise KeyboardInterrupt from None
    return Ended(one.step.name, ended.said, ended.seconds)


def finish(out: Path) -> list[str]:
    """Tables of all records and the page; the commands of what could not be written."""
    as_file = ["probes.tables", str(out), "--form", "markdown", "--out", str(out / "tables.md")]
    lost = []
    for words in (as_file, ["probes.tables", str(out)], ["probes.report", str(out)]):
        if subprocess.run(start.child(*words), check=False).returncode:
            lost.append(escape.shell(["python", "-m", *words]))
    return lost


def main(arguments: Sequence[str]) -> int:
    options = parse(Options, arguments, prog="tools/reproduce.sh")
    for name in DATA:
        value = getattr(options, name)
        if isinstance(value, Path) and not value.exists():
            raise UserError(f"--{name}: there is no folder {value}")
    loaded = load_backbone(options.ckpt, full=True)
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    speed = calibrate(loaded.backbone, named_device(options.device or usual))
    planned, missing = plan(options, loaded, speed)
    show_plan(planned, missing, speed)
    if options.dry_run or not planned:
        return 0
    out = options.out or places.below(loaded.path.parent, "reproduced")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out {out} ({error.strerror})") from error
    ckpt, key = options.ckpt or loaded.path, store.sha256(loaded.path) if loaded.path.is_file() else str(loaded.path)
    ended = []
    for number, one in enumerate(planned, 1):
        words = escape.shell(command(one, ckpt, out))
        show.say(f"[{number} of {len(planned)}] {one.step.name}, about {duration(one.seconds)}: python {words}")
        ended.append(run_step(one, ckpt, out, key))
        show.say(f"    {ended[-1].state}, {duration(ended[-1].seconds)}")
    unwritten = finish(out)
    failed = [one for one in ended if one.state.startswith("failed")]
    show.say(f"{len(ended) - len(failed)} of {len(ended)} steps are done; records, logs and tables in {os.fspath(out)}")
    for lost in failed:
        show.say(f"{lost.name} {lost.state}")
    if unwritten:
        show.say(f"not written, for the reason above: {'; '.join(unwritten)}")
    return FAILED if failed or unwritten else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
