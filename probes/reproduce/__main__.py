"""One command from a checkpoint to the paper's tables: `tools/reproduce.sh --ckpt F --imagenet DIR --coco DIR ...`.

Every probe and transfer whose data is given runs as a process of its own, the cheapest first of those whose sources are there
(`probes/reproduce/plan.py`); what is done stays done, what fails stops only what reads its files. Without any data: everything on
the embedded sample.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from checkpoints import escape, places, start, store
from checkpoints.cli import DONE, FAILED, UserError, parse, run_command
from pretrain.models.backbone import Backbone, load_backbone
from probes.reproduce import plan as reproduce_plan
from probes.reproduce.look import Looker
from probes.reproduce.plan import Asked, Plan, Planned, record_name
from probes.reproduce.steps import FEW
from probes.shared import console
from probes.shared.console import duration
from probes.shared.subject import named_device
from probes.shared.subprocesses import Stopped, run_once

CALIBRATION = 3.0
"""Seconds."""


@dataclass(frozen=True)
class ReproduceOptions:
    """Measure everything that the given data allow, and set it beside the paper."""

    ckpt: Path | None = None
    """A run's folder, a checkpoint file of any kind, a name of checkpoints/zoo.json (default: the newest run)."""
    key: Literal["teacher", "student"] = "teacher"
    """Network of the checkpoint (the published IN-22K numbers are the student's); its records have names of their own."""
    imagenet: Path | None = None
    """The folder that holds train/ and val/."""
    few: tuple[Path, ...] = ()
    """SimCLRv2's lists of the labels of 1 % and 10 %, 1percent.txt and 10percent.txt (default: shares drawn from the seed, which
    are not compared with Tables 4 and 12)."""
    coco: Path | None = None
    """The folder that holds annotations/, train2017/ and val2017/, or boxes of one's own (docs/dense-transfer.md)."""
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
    """The folder for results, logs and tables (default: beside the checkpoint reproduced/, or reproduced_student/); what is done
    there stays done."""


class Ended(NamedTuple):
    """Result of a step."""

    name: str
    state: str
    seconds: float

    @property
    def well(self) -> bool:
        """Whether its record is there."""
        return not self.state.startswith(("failed", "skipped"))


HOW = ("ckpt", "key", "few", "table", "dry_run", "device", "out")
DATA = tuple(field.name for field in fields(ReproduceOptions) if field.name not in HOW)


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


def check(options: ReproduceOptions) -> None:
    """Raise UserError for data that is not there."""
    for name in DATA:
        value = getattr(options, name)
        if isinstance(value, Path) and not value.exists():
            raise UserError(f"--{name}: there is no folder {value}")
    if options.few and (len(options.few) != 2 or options.imagenet is None):
        raise UserError("--few takes two files and goes with --imagenet: --few 1percent.txt 10percent.txt")
    for path in options.few:
        if not path.is_file():
            raise UserError(f"--few: there is no file {path}")


def asked_for(options: ReproduceOptions, out: Path) -> Asked:
    """The part of the options that decides on the plan."""
    given = {name: getattr(options, name) for name in DATA}
    return Asked(given, options.table, bool(options.few), options.key, out)


def show_plan(plan: Plan, speed: float, few: bool) -> None:
    """Print the steps that run, and those that do not with their reasons."""
    rows = [[one.step.name, " ".join(one.step.tables), one.data, duration(one.seconds)] for one in plan.planned]
    rows.append(["all", "", "", duration(sum((one.seconds for one in plan.planned), 0.0))])
    console.table(f"plan ({speed:.0f} images/s forward here; times are estimates)", ["step", "tables", "data", "about"], rows)
    if plan.missing:
        needs = dict.fromkeys(step.needs for step in plan.missing)
        lines = [[f"--{need}", " ".join(step.name for step in plan.missing if step.needs == need)] for need in needs]
        console.table("not run, for want of data", ["flag", "steps"], lines)
    if plan.left:
        rows = [[one.step.name, " ".join(one.step.tables), one.reason] for one in plan.left]
        console.table("left out", ["step", "tables", "reason"], rows)
    for one in plan.planned:
        if one.look.note:
            console.say(one.look.note)
    heads = {one.head for one in plan.planned if one.head}
    for head in heads:
        console.say(f"linear head from before: {head}")
    if not few and any(one.step.name in FEW and one.step.needs == "imagenet" for one in plan.planned):
        console.say("without --few, labels are drawn from the seed: these numbers are not compared with Tables 4 and 12")


def command(one: Planned, options: ReproduceOptions, ckpt: Path, out: Path) -> list[str]:
    """The words of a step's command, python left out."""
    name = record_name(one.step.name, options.key)
    known: dict[str, Any] = {"ckpt": ckpt, "data": one.data, "out": out / f"{name}.json", "folder": out / name}
    known |= {"head": head_of(one, options, out)}
    known |= dict(zip(("few_1", "few_10"), options.few, strict=False))
    words = [*(word.format(**known) for word in one.step.words), *one.look.words]
    return words if options.key == "teacher" else [*words, "--key", options.key]


def head_of(one: Planned, options: ReproduceOptions, out: Path) -> Path:
    """The linear head that a step reads."""
    return one.head or out / f"{record_name('linear', options.key)}_head.safetensors"


def run_step(one: Planned, options: ReproduceOptions, ckpt: Path, out: Path, key: str) -> Ended:
    """Run it, unless the same command on the same checkpoint and head has ended well before. Its output goes to NAME.log."""
    place, head = out / record_name(one.step.name, options.key), head_of(one, options, out)
    if not all(Path(f"{place}{ending}").is_file() for ending in one.step.leaves):
        Path(f"{place}.done").unlink(missing_ok=True)
    sources = [store.sha256(head)] if one.step.after and head.is_file() else []
    try:
        ended = run_once(command(one, options, ckpt, out), place, [key, *sources])
    except Stopped:
        raise KeyboardInterrupt from None
    return Ended(one.step.name, ended.said, ended.seconds)


def run_all(planned: Sequence[Planned], options: ReproduceOptions, ckpt: Path, out: Path, key: str) -> list[Ended]:
    """One after the other; what reads the files of a step that has failed is skipped."""
    ended: dict[str, Ended] = {}
    for number, one in enumerate(planned, 1):
        lost = [name for name in one.step.after if name in ended and not ended[name].well]
        words = escape.shell(command(one, options, ckpt, out))
        console.say(f"[{number} of {len(planned)}] {one.step.name}, about {duration(one.seconds)}: python {words}")
        now = Ended(one.step.name, f"skipped: it needs {lost[0]}", 0.0) if lost else run_step(one, options, ckpt, out, key)
        ended[one.step.name] = now
        console.say(f"    {now.state}, {duration(now.seconds)}")
    return list(ended.values())


def finish(out: Path) -> list[str]:
    """Tables of all records and the page; the commands of what could not be written."""
    as_file = ["probes.tables", str(out), "--form", "markdown", "--out", str(out / "tables.md")]
    lost = []
    for words in (as_file, ["probes.tables", str(out)], ["probes.report", str(out)]):
        if subprocess.run(start.child(*words), check=False).returncode:
            lost.append(escape.shell(["python", "-m", *words]))
    return lost


def main(arguments: Sequence[str]) -> int:
    options = parse(ReproduceOptions, arguments, prog="tools/reproduce.sh")
    check(options)
    loaded = load_backbone(options.ckpt, key=options.key, full=True)
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    speed = calibrate(loaded.backbone, named_device(options.device or usual))
    out = options.out or places.below(loaded.path.parent, record_name("reproduced", options.key))
    look = Looker(loaded, options.few, fetch=not options.dry_run)
    plan = reproduce_plan.make(asked_for(options, out), loaded, speed, look)
    show_plan(plan, speed, bool(options.few))
    if plan.unanswered:
        console.say(f"asked for, but nothing runs for it: {', '.join(plan.unanswered)}")
    undone = bool(plan.unanswered or plan.left)
    if options.dry_run or not plan.planned:
        return FAILED if undone and not options.dry_run else DONE
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out {out} ({error.strerror})") from error
    ckpt, key = options.ckpt or loaded.path, store.sha256(loaded.path) if loaded.path.is_file() else str(loaded.path)
    ended = run_all(plan.planned, options, ckpt, out, key)
    unwritten = finish(out)
    lost = [one for one in ended if not one.well]
    console.say(f"{len(ended) - len(lost)} of {len(ended)} steps are done; results, logs and tables in {os.fspath(out)}")
    for one in lost:
        console.say(f"{one.name} {one.state}")
    if plan.left:
        console.say(f"left out, for the reasons above: {' '.join(one.step.name for one in plan.left)}")
    if unwritten:
        console.say(f"not written, for the reason above: {'; '.join(unwritten)}")
    return FAILED if lost or unwritten or undone else DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
