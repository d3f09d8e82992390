"""An ablation's rows beside the published ones: a table, rank correlations, a record."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import spearmanr

from checkpoints import escape, store
from checkpoints.cli import UserError
from pretrain.recipes.ablation_rows import Row, Table
from probes import tables
from probes.ablate.plan import Job, Setting, epochs_of
from probes.paper import published as paper
from probes.shared import console
from probes.shared import record as results

PROBES = {"knn": ("knn", "top1"), "linear": ("linear", "top1"), "nmi_epoch100": ("cluster", "head_nmi")}
"""By published column: the record and its number."""
SHOWN = {"knn": "k-NN", "linear": "linear", "nmi_epoch100": "NMI"}
FEWEST = 3
"""Rows that a rank correlation is of."""


class Line(NamedTuple):
    """One row of the finished table."""

    row: Row
    here: Mapping[str, float]
    published: Mapping[str, float]
    remark: str
    intervals: Mapping[str, Sequence[float]] = {}
    """The 95 % intervals of `here`, where they are known."""


class Rank(NamedTuple):
    """Spearman's correlation; None where it is not defined."""

    value: float | None
    rows: int


def columns(table: Table) -> list[str]:
    """The published numbers that a table has, of those that are measured here."""
    return [name for name in PROBES if any(name in row.numbers for row in table.rows)]


def published_row(table: Table, row: Row) -> paper.Row:
    """The row in the paper's table. Raises KeyError where there is none, or more than one."""
    found = [
        one
        for one in paper.tables()[table.published].rows
        if one.method == row.method and one.arch == row.arch and all(one.cells.get(k) == v for k, v in row.cells.items())
    ]
    if len(found) != 1:
        raise KeyError(f"{table.published}: {len(found)} rows are {row.method}, {row.arch}, {dict(row.cells)}")
    return found[0]


def published(table: Table, row: Row) -> dict[str, float]:
    """Published numbers by column, in percent; none for a control."""
    if row.control:
        return {}
    cells = published_row(table, row).cells
    return {name: cells[name] * (100 if name.startswith("nmi") else 1) for name in columns(table) if cells.get(name) is not None}


def line(table: Table, job: Job, out: Path, fate: str) -> Line:
    """The row's results from its records; `fate` is its failure."""
    files = {name: results.read(out / job.row.name / f"{name}.json") for name in ("knn", "linear", "cluster", "knn_cls")}
    records = {name: {} if one is None else one["metrics"] for name, one in files.items()}
    here = {name: records[probe][number] for name, (probe, number) in PROBES.items() if number in records[probe]}
    remarks = [fate, job.remark]
    if "top1" in records["knn_cls"]:
        remarks.append(f"k-NN of [CLS] {records['knn_cls']['top1']:.1f}")
    wanted = {name: value for name, value in here.items() if name in columns(table)}
    ends = {name: (files[probe] or {}).get("intervals", {}).get(number) for name, (probe, number) in PROBES.items()}
    known = {name: value for name, value in ends.items() if name in wanted and value}
    return Line(job.row, wanted, published(table, job.row), "; ".join(text for text in remarks if text), known)


def rank(here: Sequence[float], there: Sequence[float]) -> Rank:
    """Rank correlation of measured with published numbers, pairwise."""
    if len(here) < FEWEST or len(set(here)) == 1 or len(set(there)) == 1:
        return Rank(None, len(here))
    return Rank(float(spearmanr(here, there).statistic), len(here))


def ranks(table: Table, lines: Sequence[Line]) -> dict[str, Rank]:
    """By column, over the rows that have both numbers."""
    found = {}
    for name in columns(table):
        both = [one for one in lines if name in one.here and name in one.published]
        found[name] = rank([one.here[name] for one in both], [one.published[name] for one in both])
    return found


def in_words(name: str, one: Rank) -> str:
    """One rank correlation, as it is printed."""
    value = "not defined" if one.value is None else f"{one.value:.2f}"
    return f"Spearman's rank correlation of {SHOWN[name]} with the published numbers: {value} ({one.rows} rows)"


def as_text(table: Table, lines: Sequence[Line], full: bool = True) -> list[list[str]]:
    """Head and body: here and published side by side; `full`: with what the publication calls a row."""
    names = columns(table)
    head = ["row", *(word for name in names for word in (f"{SHOWN[name]} here", "published")), "remark"]
    body = []
    for one in lines:
        numbers = [text for name in names for text in (_measured(one, name), _number(one.published.get(name)))]
        body.append([_title(one.row) if full else one.row.name, *numbers, one.remark])
    return [head, *body]


def _title(row: Row) -> str:
    cells = ", ".join(f"{name} {value}" for name, value in row.cells.items())
    return f"{row.name}: {row.method}" + (f" ({cells})" if cells else "")


def _measured(one: Line, name: str) -> str:
    """The number with its 95 % interval."""
    ends = one.intervals.get(name)
    return _number(one.here.get(name)) + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def finish(table: Table, lines: Sequence[Line], setting: Setting, seconds: float) -> None:
    """Print the table and write it as Markdown and as a record. Raises UserError where that cannot be."""
    where = setting.data or "the embedded sample"
    title = f"{table.name}: {table.what}; here on {where}, seed {setting.seed}"
    head, *body = as_text(table, lines, full=False)
    console.table(title, head, body)
    words = [in_words(name, one) for name, one in ranks(table, lines).items()]
    for text in words:
        console.say(text)
    page = tables.as_markdown(title, as_text(table, lines)) + "".join(f"\n{text}\n" for text in words)
    file = setting.out / f"ablation_{table.name}"
    try:
        store.write_bytes(Path(f"{file}.md"), page.encode())
        store.write_bytes(Path(f"{file}.json"), escape.json_text(record(table, lines, setting, seconds)).encode())
    except OSError as error:
        raise UserError(f"cannot write to --out {setting.out} ({error.strerror})") from error
    console.say(f"table and results: {file}.md, {file}.json")


def record(table: Table, lines: Sequence[Line], setting: Setting, seconds: float) -> dict[str, Any]:
    """A record (`probes.shared.record`) of several checkpoints."""
    return {
        "schema": results.SCHEMA,
        "probe": "ablate",
        "table": table.published,
        "data": {"train": setting.data or "sample"},
        "protocol": {
            "epochs": epochs_of(table, setting),
            "seed": setting.seed,
            "probes": list(setting.probes),
            "tokenizer": setting.tokenizer,
            "recipe": setting.small,
        },
        "rows": [
            {
                "name": one.row.name,
                "method": one.row.method,
                "arch": one.row.arch,
                "cells": dict(one.row.cells),
                "checkpoint": str(setting.out / one.row.name),
                "metrics": dict(one.here),
                "intervals": {name: list(ends) for name, ends in one.intervals.items()},
                "published": dict(one.published),
                "remark": one.remark,
            }
            for one in lines
        ],
        "spearman": {name: one._asdict() for name, one in ranks(table, lines).items()},
        "seconds": round(seconds, 1),
        "versions": results.versions(),
    }
