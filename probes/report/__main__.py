"""A run and its measurements as one page that stands alone: `python -m probes.report runs/sample`.

Results with 95 % intervals, training curves, comparison with the paper, attention maps, nearest neighbours, confusion matrix,
commands and versions: `report.html`, one file that loads nothing from the network. What a run does not have is left out; before
any evaluation there are still its log and its images.
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
from probes.report.page import Card, Section
from probes.report.run import Run


@dataclass(frozen=True)
class ReportOptions:
    """Write an HTML report on runs and their evaluation results."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of runs, folders of results or single result files (default: the newest run)."""
    out: Path | None = None
    """The report (default: report.html in the first folder)."""
    data: str | None = None
    """Images to look at, as pretraining takes them (default: those that the run names, if these are the sample or lie in its
    folder: nothing else that a file names is opened)."""
    pictures: bool = True
    """Attention maps, nearest neighbours and the confusion matrix: they compute features of some of the run's images."""


def sections(
    runs: Sequence[Run], records: Sequence[Mapping[str, Any]], options: ReportOptions, paths: Sequence[Path]
) -> list[Section]:
    """The whole page in its order."""
    found = [results(runs, records)]
    found += [named(report_run.summary_section(run, number), run, runs) for number, run in enumerate(runs)]
    found += [named(report_run.curves(run, number), run, runs) for number, run in enumerate(runs)]
    if options.pictures:
        for number, run in enumerate(runs):
            found += [named(section, run, runs) for section in pictures(run, options.data, number, paths)]
    found += [section for section in (report_records.published(records), report_records.curves(records)) if section]
    found += [report_records.everything(records)] if records else []
    return [*found, commands.repeat(runs, records, paths, options.data), commands.provenance(runs, records)]


def named(section: Section, run: Run, runs: Sequence[Run]) -> Section:
    """The section of a run; its title says of which, where there are several."""
    return section if len(runs) == 1 else Section(section.name, f"{section.title}: {run.name}", section.body)


def results(runs: Sequence[Run], records: Sequence[Mapping[str, Any]]) -> Section:
    """The headline row: every probe's number with its interval; of runs without one, where their k-NN curve ends.

    Of several checkpoints: a table, a row each.
    """
    found = report_records.headlines(records)
    if len(report_records.checkpoints(records)) > 1:
        return Section("results", "Results", report_records.headline_table(records))
    nothing = "" if found else report_page.paragraph("Not evaluated yet. python -m probes.knn --ckpt RUN measures k-NN accuracy.")
    if not any(record["probe"] == "knn" for record in records):
        for run in runs:
            ends = report_run.knn(run)
            if ends:
                of = f" ({run.name})" if len(runs) > 1 else ""
                remarks = [f"{ends[0]:.1f} at the first measurement", "on a subset: progress, not a result"]
                found.append(Card(f"k-NN during training{of}, top-1 %", f"{ends[1]:.1f}", "", remarks))
    return Section("results", "Results", nothing + (report_page.cards(found) if found else ""))


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
        return [Section(f"pictures-{number}", "Pictures", report_page.paragraph(f"Not available: {error}."))]


def page(options: ReportOptions) -> tuple[str, Path]:
    """The page and where it goes. Raises UserError where there is nothing to show."""
    paths = list(options.paths) or [store.newest_run(Path("runs"))]
    records = sorted(tables.read_records(paths), key=lambda record: bool(record["protocol"].get("untrained")))
    runs = [report_run.read(path) for path in paths if report_run.is_run(path)]
    if not runs and not records:
        where = ", ".join(str(path) for path in paths)
        raise UserError(f"{where} holds neither a run nor results: give a run's folder, or the results that probes have written")
    title = f"iBOT report: {', '.join(run.name for run in runs) or paths[0].resolve().name}"
    lead = f"{len(runs)} run{'s' * (len(runs) != 1)}, {len(records)} evaluation{'s' * (len(records) != 1)}"
    foot = report_page.written_by("probes.report")
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
    terminal.say(f"report written to {out} ({len(text.encode()) / 1e6:.2f} MB, {time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    sys.exit(run_command(main))
