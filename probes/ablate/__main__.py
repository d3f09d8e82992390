"""One command for one of the paper's ablations: `tools/ablate.sh --table T9`.

Each row is trained and measured by processes of their own, one at a time; then the table stands beside the published one, with
the rank correlation of the rows. What is done stays done, what fails does not stop the rest. See docs/ablations.md.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from checkpoints import escape, places
from checkpoints.cli import FAILED, UserError, parse, run_command
from pretrain.recipes.ablation_rows import Table
from probes.ablate import table as ablate_table
from probes.ablate.plan import Job, Setting, Words, plan, rows_of, seconds, table_named
from probes.shared import console
from probes.shared.console import duration
from probes.shared.subprocesses import Stopped, run_once


@dataclass(frozen=True)
class AblateOptions:
    """Train and measure every row of one of the paper's ablations, and set them beside the published numbers."""

    table: str
    """T9, T10_without_mcrop, T10_with_mcrop, T17, T18, T20, TE_dense_selfdistill, TE_center_temp, TE_loss_ratio, TE_out_dim,
    TB_crop_scale, F8 or F11."""
    data: str | None = None
    """Images with labels, like --data of the probes: then the networks and epochs are the paper's, or --recipe's. Default: the
    embedded sample, small networks, minutes."""
    recipe: Literal["sample", "sample_dense", "cifar10", "cifar10_gpu"] | None = None
    """A recipe for small images: its network, crops and schedule with the table's changes, in place of the paper's."""
    controls: bool = False
    """Rows that the paper's tables have not: trained with labels for as many images, the same network untrained, raw pixels."""
    epochs: int | None = None
    """Epochs of every row (default: the table's own; 6 on the sample)."""
    rows: tuple[str, ...] = ()
    """Only these, and what they need: --dry-run lists them."""
    tokenizer: str | None = None
    """dalle:FILE, or dalle to have it fetched, for the rows of BEiT; without it the sample has k-means of raw patches there."""
    probe: tuple[Literal["knn", "linear", "cluster"], ...] = ()
    """Probes to run (default: those of the table's published numbers)."""
    out: Path | None = None
    """The folder for runs, records and the table (default: runs/ablations, with data, epochs and seed where they are given). Rows
    of the same name in two tables are one training."""
    seed: int = 0
    """Seed of all random draws."""
    dry_run: bool = False
    """Say what would run, and run nothing."""


def setting_of(options: AblateOptions, table: Table) -> Setting:
    """The table's setting from the options. Raises UserError for values without meaning."""
    if options.tokenizer is not None and options.tokenizer.partition(":")[0] != "dalle":
        raise UserError(f"--tokenizer {options.tokenizer}: give dalle:FILE, or dalle; every other row names its own")
    data = None if options.data == "sample" else options.data
    if options.recipe and data is None and options.recipe != "sample":
        raise UserError(f"--recipe {options.recipe} needs --data: without it the embedded sample is used")
    parts = ["ablations", *([Path(data).stem] if data else []), *([options.recipe] if options.recipe else [])]
    parts += [f"{options.epochs}epochs"] * (options.epochs is not None) + [f"seed{options.seed}"] * (options.seed != 0)
    usual = tuple(dict.fromkeys(ablate_table.PROBES[name][0] for name in ablate_table.columns(table)))
    out = options.out or Path("runs") / "_".join(parts)
    probes = options.probe or usual
    return Setting(out, data, options.epochs, options.tokenizer, probes, options.seed, options.recipe, options.controls)


def show_plan(table: Table, jobs: Sequence[Job], setting: Setting) -> None:
    """Rows, then their commands."""
    rows = [[job.row.name, job.row.method, _why(job), job.lost or job.remark] for job in jobs]
    about = f", about {duration(seconds(table, jobs, setting))} on two free cores" if setting.data is None else ""
    console.table(f"{table.name}: {table.what}{about}", ["row", "published as", "why", "remark"], rows)


def show_commands(jobs: Sequence[Job]) -> None:
    """Print the commands of all rows."""
    for words in dict.fromkeys(words for job in jobs if not job.lost for words in (job.patches, job.train, *job.probes.values())):
        if words:
            console.say(f"python {escape.shell(words)}")


def _why(job: Job) -> str:
    return "asked for" if job.asked else "another row needs its checkpoint"


def run_job(job: Job, setting: Setting, fates: dict[str, str]) -> str:
    """Do what one row needs; returns what went wrong. `fates` are those of the rows before."""
    if job.lost:
        return f"not run: {job.lost}"
    if job.needs and fates.get(job.needs):
        return f"not run: {job.needs} failed"
    folder = places.below(setting.out, job.row.name)
    places.below(setting.out, setting.patches.parent.name, setting.patches.name)
    steps: list[tuple[str, Words, Path, Words]] = []
    if job.patches:
        steps.append(("tokenizer", job.patches, setting.patches.with_suffix(""), ()))
    if job.train:
        steps.append(("training", job.train, folder / "train", job.patches))
    steps += [(f"{name} probe", words, folder / name, job.train) for name, words in job.probes.items()]
    wrong = []
    for what, words, name, key in steps:
        ended = run_once(words, name, key)
        console.say(f"    {what}: {ended.said}" + (f", {duration(ended.seconds)}" if ended.seconds else ""))
        if not ended.ok:
            wrong.append(f"{what} {ended.said.partition(' (')[0]}")
            if words in (job.patches, job.train):  # without which there is nothing to measure
                break
    return "; ".join(wrong)


def run_all(jobs: Sequence[Job], setting: Setting) -> dict[str, str]:
    """The failure of each row, by name; empty without a failure."""
    fates: dict[str, str] = {}
    for number, job in enumerate(jobs, 1):
        console.say(f"[{number} of {len(jobs)}] {job.row.name}: {job.row.method}" + ("" if job.asked else f" ({_why(job)})"))
        fates[job.row.name] = run_job(job, setting, fates)
        if fates[job.row.name].startswith("not run"):
            console.say(f"    {fates[job.row.name]}")
    return fates


def main(arguments: Sequence[str]) -> int:
    options = parse(AblateOptions, arguments, prog="python -m probes.ablate")
    began = time.perf_counter()
    table = table_named(options.table)
    setting = setting_of(options, table)
    jobs = plan(table, setting, options.rows)
    show_plan(table, jobs, setting)
    if options.dry_run:
        show_commands(jobs)
        return 0
    try:
        setting.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out {setting.out} ({error.strerror})") from error
    try:
        fates = run_all(jobs, setting)
    except Stopped as stop:
        console.say(f"stopped; the same command goes on: python -m probes.ablate {escape.shell(arguments)}")
        return stop.code
    every = {job.row.name: job for job in plan(table, setting)}
    rows = rows_of(table, setting)
    lines = [ablate_table.line(table, every[row.name], setting.out, fates.get(row.name, "")) for row in rows]
    ablate_table.finish(table, lines, setting, time.perf_counter() - began)
    return FAILED if any(fate and not job.lost for job, fate in zip(jobs, fates.values(), strict=True)) else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
