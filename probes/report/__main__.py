"""A run and its measurements as one page that stands alone: `python -m probes.report runs/sample`.

Summary, the paper's tables beside what was measured, curves, pictures, commands, versions: `report.html`, which a browser
shows without asking the network for anything. What a run does not have is left out; without records there are still its log
and its images.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from checkpoints import places, store, terminal
from checkpoints.cli import UserError, parse, run_command
from pretrain.images.open import from_file
from probes import tables
from probes.report import commands
from probes.report import page as report_page
from probes.report import pictures as report_pictures
from probes.report import records as report_records
from probes.report import run as report_run
from probes.report.page import Section
from probes.report.run import Run


@dataclass(frozen=True)
class ReportOptions:
    """Write one HTML page about runs and their measurements."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """A run's folder, a folder of records, records; or several of these (default: the newest run)."""
    out: Path | None = None
    """The page (default: report.html in the first folder)."""
    data: str | None = None
    """Images to look at, as pretraining takes them (default: those that the run names, if these are the sample or lie in its
    folder: nothing else that a file names is opened)."""
    pictures: bool = True
    """Attention, neighbours and confusions, which need the run's images and compute features of some of them."""


def sections(
    runs: Sequence[Run], records: Sequence[Mapping[str, Any]], options: ReportOptions, paths: Sequence[Path]
) -> list[Section]:
    """The whole page in its order."""
    found = [summary(runs, records)]
    found += [report_run.course(run, number) for number, run in enumerate(runs)]
    found += [section for section in (report_records.published(records), report_records.curves(records)) if section]
    if options.pictures:
        for number, run in enumerate(runs):
            found += pictures(run, options.data, number, paths)
    found += [report_records.everything(records)] if records else []
    return [*found, commands.repeat(runs, records, paths, options.data), commands.provenance(runs, records)]


def summary(runs: Sequence[Run], records: Sequence[Mapping[str, Any]]) -> Section:
    """The numbers that matter, then what was run."""
    rows = [(line.name, f"{line.value:.1f}", line.remark) for line in report_records.headlines(records)]
    for run in runs:
        ends = report_run.knn(run)
        if ends:
            rows.append(
                (
                    f"k-NN curve of {run.name}, %",
                    f"{ends[1]:.1f}",
                    f"at its end, on a part of the data; {ends[0]:.1f} at its start",
                )
            )
    tables_of_runs = [report_page.facts(f"Run {run.name}", report_run.summary(run)) for run in runs]
    nothing = (
        "" if rows else report_page.paragraph("Nothing has been measured yet: python -m probes.knn --ckpt RUN measures k-NN.")
    )
    return Section("summary", "Summary", (report_page.cards(rows) if rows else nothing) + "".join(tables_of_runs))


def pictures(run: Run, data: str | None, number: int, named: Sequence[Path]) -> list[Section]:
    """Pictures of a run's images, or a sentence about why there are none. `data` and `named` stood on the command line."""
    try:
        source = data or from_file(run.config.get("data"), file=run.folder / "config.json", below=named)
        channels = run.config.get("channels", 3)
        if not isinstance(channels, int):
            raise UserError(f"{run.folder / 'config.json'} says nothing of channels")
        if not report_pictures.has_backbone(run.folder):
            raise UserError("the run has saved no backbone yet")
        return report_pictures.sections(run.folder, source, channels, number)
    except UserError as error:
        return [Section(f"pictures-{number}", f"Pictures of {run.name}", report_page.paragraph(f"There are none: {error}."))]


def page(options: ReportOptions) -> tuple[str, Path]:
    """The page and where it goes. Raises UserError where there is nothing to show."""
    paths = list(options.paths) or [store.newest_run(Path("runs"))]
    records = sorted(tables.read_records(paths), key=lambda record: bool(record["protocol"].get("untrained")))
    runs = [report_run.read(path) for path in paths if report_run.is_run(path)]
    if not runs and not records:
        where = ", ".join(str(path) for path in paths)
        raise UserError(f"{where} holds neither a run nor a record: give a run's folder, or what probes have written")
    title = f"iBOT: {', '.join(run.name for run in runs) or paths[0].resolve().name}"
    lead = f"{len(runs)} run{'s' * (len(runs) != 1)}, {len(records)} measurement{'s' * (len(records) != 1)}"
    foot = f"Written on {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}. This file holds everything that it shows."
    first = paths[0] if paths[0].is_dir() else paths[0].parent
    out = options.out or places.below(first, "report.html")
    return report_page.document(title, lead, sections(runs, records, options, paths), foot), out


def main(arguments: Sequence[str]) -> None:
    options = parse(ReportOptions, arguments, prog="python -m probes.report")
    began = time.perf_counter()
    text, out = page(options)
    try:
        store.write_bytes(out, text.encode())
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): give another --out") from error
    terminal.say(f"page written to {out} ({len(text.encode()) / 1e6:.2f} MB, {time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    sys.exit(run_command(main))
