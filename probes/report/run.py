"""Reads a run's folder: its settings, its curves, its alarms. Reads text files only, so that it is quick."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints import checked, reading
from checkpoints.cli import UserError
from checkpoints.escape import html as escape
from pretrain.curves import PANELS, series
from pretrain.engine import logs
from probes.report import page as report_page
from probes.report import plots as report_plots
from probes.report.page import Section
from probes.report.plots import Line, Mark, Plot

MORE_PANELS = (
    ("learning rate", ("lr",)),
    ("images per second", ("images_per_second",)),
)
"""Beside those of `pretrain.curves`."""
SIZES = frozenset({"batch_size_per_gpu", "batch_size", "accumulate", "out_dim"})
NUMBERS = frozenset({"patch_size", "width", "depth", "steps", "epochs", "seed"})
WORDS = frozenset({"arch", "recipe", "precision"})
"""Options of `config.json` that a page computes with, or puts into its commands."""
UNIFORM = frozenset({"target_entropy", "mean_target_entropy"})
"""Measurements whose plots have a line at the entropy of uniform targets."""


class Run(NamedTuple):
    """A run's folder as it was read."""

    folder: Path
    config: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    """Lines of its log."""
    starts: Sequence[Mapping[str, Any]]
    """When and where it was begun or taken up; empty for one from before this was written down."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def is_run(folder: Path) -> bool:
    """Whether it holds a run."""
    return (folder / "metrics.jsonl").is_file() and (folder / "config.json").is_file()


def read(folder: Path) -> Run:
    """A run's text files; a last line that is still being written is left out.

    Of a long log a sample (`pretrain.engine.logs`). Raises UserError that names file and line where something is no run's.
    """
    try:
        config = _config(reading.values(folder / "config.json"), str(folder / "config.json"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read ({error}): give a run's folder") from error
    starts = folder / "starts.jsonl"
    begun = [_start(value, where) for where, value in logs.values(starts)] if starts.is_file() else []
    return Run(folder, config, [line.value for line in logs.sampled(folder / "metrics.jsonl")], begun)


def _config(value: Any, where: str) -> dict[str, Any]:
    """Options; those that a page computes with are numbers, those that it only shows are plain."""
    found = checked.mapping(value, where)
    for name, one in found.items():
        if name in SIZES:
            checked.count(one, f"{where}: {name}", 1)
        elif name in NUMBERS and one is not None:
            checked.number(one, f"{where}: {name}", 0, checked.MOST)
        elif name in WORDS and one is not None:
            checked.text(one, f"{where}: {name}")
        elif isinstance(one, dict) and name not in ("data", "channels"):  # which say so themselves
            checked.refuse(f"{where}: {name}", "a dict", "an option's value")
    return found


def _start(value: Any, where: str) -> dict[str, Any]:
    """A line of `starts.jsonl` (`pretrain.engine.provenance`)."""
    found = checked.mapping(value, where, ("step", "time", "device", "cores", "processes", "precision", "versions"))
    checked.count(found["step"], f"{where}: step")
    for name in ("cores", "processes"):
        checked.count(found[name], f"{where}: {name}", 1, 1 << 20)
    for name in ("time", "device", "precision"):
        checked.text(found[name], f"{where}: {name}")
    for name, version in checked.mapping(found["versions"], f"{where}: versions").items():
        checked.text(version, f"{where}: versions: {name}")
    return found


def summary(run: Run) -> list[tuple[str, str]]:
    """Facts in a table's order."""
    config, last = run.config, _last(run, "epoch")
    arch = f"{config.get('arch')}, patch size {config.get('patch_size')}"
    arch += "".join(f", {name} {config[name]}" for name in ("width", "depth") if config.get(name))
    rows = [("recipe", str(config.get("recipe") or "none")), ("architecture", arch), ("data", str(config.get("data")))]
    asked = f"{config['steps']} steps" if config.get("steps") else f"{config.get('epochs')} epochs"
    rows.append(("training length", f"{last.get('epoch') or 0:.4g} epochs, {last.get('step', 0):,} steps (of {asked})"))
    rows += _work(run)
    bad, alarmed = (sum(name in line for line in run.lines) for name in ("bad_image", "alarm"))
    skipped = sum(count for _, count in refused(run))
    rows.append(("skipped steps, unreadable images, alarms", f"{skipped:.0f}, {bad}, {alarmed}"))
    if last.get("memory_mb"):
        rows.append(("peak memory", f"{last['memory_mb']:,.0f} MB"))
    return rows


def _work(run: Run) -> list[tuple[str, str]]:
    """Images, time and machine, of which only `starts.jsonl` knows."""
    if not run.starts:
        return [("images seen, training time, hardware", "not logged by this run")]
    seen, seconds = work(run)
    latest = run.starts[-1]
    machine = f"{latest['device']}, {latest['cores']} cores, {latest['processes']} process{'es' * (latest['processes'] > 1)}"
    began = f"{run.starts[0]['time']}" + (f", resumed {len(run.starts) - 1} times" if len(run.starts) > 1 else "")
    return [
        ("images seen", f"{seen:,}"),
        ("training time", _clock(seconds)),
        ("started", began),
        ("hardware", machine),
        ("precision", str(latest["precision"])),
    ]


def work(run: Run) -> tuple[int, float]:
    """Images seen and seconds in training steps, by the log: k-NN, checkpoints and pauses do not count."""
    seen, seconds, before = 0, 0.0, 0
    each = int(run.config.get("batch_size_per_gpu") or 0) * int(run.config.get("accumulate") or 1)
    for line in run.lines:
        if not line.get("images_per_second"):
            continue
        begun = [start for start in run.starts if start["step"] < line["step"]]
        images = (line["step"] - before) * each * (begun or run.starts)[-1]["processes"]
        seen, seconds, before = seen + images, seconds + images / line["images_per_second"], line["step"]
    return seen, seconds


def alarms(run: Run) -> list[Mark]:
    """Alarms of the run, and the steps that it refused."""
    found = [Mark(float(line["step"]), str(line["alarm"])) for line in run.lines if "alarm" in line]
    reason = "skipped (loss or gradients were not finite)"
    found += [Mark(step, f"{count:.0f} {reason}") for step, count in refused(run)]
    return sorted(found, key=lambda mark: mark.x)


def refused(run: Run) -> list[tuple[float, float]]:
    """Steps of the log and how many were refused since the line before; the log counts anew when a run is taken up."""
    counted = [(float(line["step"]), float(line["skipped_steps"] or 0)) for line in run.lines if "skipped_steps" in line]
    before = [0.0, *(count for _, count in counted)]
    new = [(step, count - last if count >= last else count) for (step, count), last in zip(counted, before[:-1], strict=True)]
    return [(step, count) for step, count in new if count]


def plots(run: Run) -> list[Plot]:
    """The run's curves; what it has not measured is left out."""
    lines, marks = [dict(line) for line in run.lines], alarms(run)
    heads = run.config.get("out_dim") or 0
    uniform = math.log(heads) if heads > 1 else None
    found = []
    for title, names in (*PANELS, *MORE_PANELS):
        drawn = [Line(name, *series(lines, name)) for name in names]
        drawn = [line for line in drawn if line.x]
        level = ("uniform", uniform) if uniform and UNIFORM & {line.name for line in drawn} else None
        if drawn:
            found.append(Plot(title, "step", drawn, marks, level))
    return found


def knn(run: Run) -> tuple[float, float] | None:
    """The k-NN curve's first and last value."""
    _, values = series([dict(line) for line in run.lines], "knn")
    return (values[0], values[-1]) if values else None


def summary_section(run: Run, number: int = 0) -> Section:
    """The facts; `number` tells several runs of a page apart."""
    return Section(f"run-{number}", "Pretraining run", report_page.facts(summary(run)))


def curves(run: Run, number: int = 0) -> Section:
    """The curves, with what went wrong before them; `number` tells several runs of a page apart."""
    marks = alarms(run)
    told = "".join(f"<li>\N{BLACK DOWN-POINTING TRIANGLE} step {mark.x:g}: {escape(mark.text)}</li>" for mark in marks)
    warning = f'<ul class="alarms">{told}</ul>' if told else ""
    lead = report_page.paragraph(
        "docs/reading-the-curves.md explains each curve and what a healthy one looks like. k-NN is measured on a subset "
        "of the data while training: it shows progress and is not a result.",
        "soft",
    )
    drawn = "".join(report_plots.figure(plot, f"{number}-{place}") for place, plot in enumerate(plots(run)))
    nothing = report_page.paragraph("Nothing has been logged yet.")
    body = f'{warning}{lead}<div class="plots">{drawn}</div>' if drawn else warning + nothing
    return Section(f"curves-{number}", "Training curves", body)


def _last(run: Run, name: str) -> Mapping[str, Any]:
    return next((line for line in reversed(run.lines) if line.get(name) is not None), {})


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
