"""A run's log as one picture: `python -m pretrain.curves --runs runs/NAME --out curves.png`."""

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints import fonts, store, terminal
from checkpoints.cli import UserError, WorkError, parse, run_command
from checkpoints.figures import Figure, mpl
from pretrain.engine import logs

PANELS = (
    ("losses", ("loss_cls", "loss_patch")),
    ("entropy of targets, nats", ("target_entropy", "mean_target_entropy", "student_entropy")),
    ("KL divergence from the teacher, nats", ("kl_divergence",)),
    ("k-NN, %", ("knn",)),
    ("effective rank", ("effective_rank",)),
    ("gradient norm, distance to the teacher", ("gradient_norm", "teacher_distance")),
)
"""What each panel shows of the log; what a run does not have is left out."""


@dataclass(frozen=True)
class CurvesOptions:
    """Draw the curves of a run, or of several beside each other."""

    runs: tuple[Path, ...] = ()
    """Folders of runs."""
    out: Path = Path("curves.png")
    """The picture: .png, .svg or .pdf."""


def read(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log. Raises UserError where there is none, and for one that is no log's."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run} holds no readable metrics.jsonl: give a run's folder")
    return [line.value for line in logs.sampled(path)]


def series(lines: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one measurement, where it was finite."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [float(step) for step, _ in points], [float(value) for _, value in points]


def draw(logs: dict[str, list[dict[str, Any]]]) -> Figure:
    """One row of panels for each run, all rows on the same axes; what no run has measured has no panel."""
    panels = [panel for panel in PANELS if any(series(lines, name)[0] for lines in logs.values() for name in panel[1])] or PANELS
    figure = Figure(figsize=(3.2 * len(panels), 2.6 * len(logs)), layout="constrained")
    axes = figure.subplots(len(logs), len(panels), squeeze=False, sharey="col")
    for row, (run, lines) in zip(axes, logs.items(), strict=True):
        row[0].set_ylabel(fonts.label(run))
        for panel, (title, names) in zip(row, panels, strict=True):
            panel.set_title(title, fontsize=9)
            for name in names:
                steps, values = series(lines, name)
                if steps:
                    panel.plot(steps, values, label=name, linewidth=1)
            if panel.lines and len(names) > 1:
                panel.legend(fontsize=7)
            panel.tick_params(labelsize=7)
    for panel in axes[-1]:
        panel.set_xlabel("step", fontsize=8)
    return figure


def main(arguments: Sequence[str]) -> None:
    options = parse(CurvesOptions, arguments, prog="python -m pretrain.curves")
    if not options.runs:
        raise UserError("name one or more runs: --runs runs/sample")
    mpl.use("agg")
    figure = draw({run.name: read(run) for run in options.runs})
    try:  # through memory, so that a link in the picture's place is not written through
        out, stream = options.out if options.out.suffix else options.out.with_suffix(".png"), io.BytesIO()
        figure.savefig(stream, format=out.suffix[1:], dpi=110)
        if not out.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {out.parent}")
        store.write_bytes(out, stream.getvalue())
    except (OSError, ValueError) as error:
        raise WorkError(f"{options.out} could not be written ({error}): give another --out") from error
    terminal.say(f"drawn to {options.out}")


if __name__ == "__main__":
    sys.exit(run_command(main))
