"""Sections on the results of measurements: headline numbers, the paper's tables, curves, and all other fields."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints import store
from probes import tables
from probes.paper import published as paper
from probes.report import page as report_page
from probes.report import plots as report_plots
from probes.report.page import Card, Row, Section
from probes.report.plots import Line, Plot
from probes.shared.headlines import digits, headlines_of, interval, names

FEWEST = 3
"""Points of a curve."""


class Headline(NamedTuple):
    """What a number is of."""

    checkpoint: str
    name: str
    where: str
    features: str


def headlines(records: Sequence[Mapping[str, Any]]) -> list[Card]:
    """The latest number of each kind, data set and checkpoint, with its interval and its baselines."""
    return list(_headlines(records).values())


def _headlines(records: Sequence[Mapping[str, Any]]) -> dict[Headline, Card]:
    found = {}
    for record in records:
        if record["protocol"].get("untrained"):
            continue
        for metric, name in headlines_of(record["probe"], record["metrics"]):
            of = str(record["protocol"].get("features", ""))
            found[Headline(record["checkpoint"]["path"], name, _where(record), of)] = _headline(record, metric, name, records)
    return found


def checkpoints(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By path of a checkpoint: what tells it from the others."""
    paths = list(dict.fromkeys(one.checkpoint for one in _headlines(records)))
    folders = {path: str(Path(path).parent) if Path(path).name == store.BACKBONE else path for path in paths}
    short = names(list(folders.values()))
    return {path: short[folder] for path, folder in folders.items()}


def headline_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The headline numbers of several checkpoints: a row each, a column a kind. Two features of one are both shown, named."""
    found, called = _headlines(records), checkpoints(records)
    columns = list(dict.fromkeys((one.name, one.where) for one in found))
    cells: dict[tuple[str, str, str], list[tuple[str, Card]]] = defaultdict(list)
    for one, card in found.items():
        cells[one.checkpoint, one.name, one.where].append((one.features, card))
    rows = [Row([called[path], *(_cell(cells.get((path, *column), [])) for column in columns)], False) for path in called]
    head = ["checkpoint", *(f"{name} on {Path(where).name}" for name, where in columns)]
    return report_page.table("Each number with its 95 % interval", head, rows)


def _cell(some: Sequence[tuple[str, Card]]) -> str:
    """Numbers of one kind; what of, where it is more than one."""
    numbers = ((of, card.number, card.interval.removeprefix("95 % interval ")) for of, card in some)
    return "; ".join(f"{number} ({ends})" + f", {of}" * (len(some) > 1) for of, number, ends in numbers)


def _headline(record: Mapping[str, Any], metric: str, name: str, records: Sequence[Mapping[str, Any]]) -> Card:
    value, show = record["metrics"][metric], f".{digits(name)}f"
    low, high = interval(record, metric, value)
    ends = "no interval" if low is None or high is None else f"95 % interval {low:{show}} to {high:{show}}"
    baselines = ", ".join(f"{who} {number:{show}}" for who, number in _baselines(record, metric, records))
    return Card(name, f"{value:{show}}", ends, [f"on {_where(record)}", *([baselines] if baselines else [])])


def _baselines(record: Mapping[str, Any], metric: str, records: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """The metric of an untrained backbone and of raw pixels, where it was measured."""
    found = {name: record["metrics"].get(f"{name}_{metric}") for name in ("untrained", "pixels")}
    for other in records:
        same = all(other[name] == record[name] for name in ("probe", "data"))
        if same and other["checkpoint"]["path"] == record["checkpoint"]["path"] and other["protocol"].get("untrained"):
            found["untrained"] = other["metrics"].get(metric)
    names = {"untrained": "untrained", "pixels": "raw pixels"}
    return [(names[name], value) for name, value in found.items() if value is not None]


def published(records: Sequence[Mapping[str, Any]]) -> Section | None:
    """The paper's tables in which something was measured, ours below."""
    ours = tables.measured(records)
    parts = []
    for name, lines in ours.items():
        table = paper.tables()[name]
        head, *body = measured_first(tables.rows_of(table, lines), lines)
        rows = [Row(cells, place >= len(body) - len(lines)) for place, cells in enumerate(body)]
        title = f"<h3>{report_page.escape(table.title)}</h3>"
        parts.append(title + report_page.table("Published results, then ours", head, rows, "published"))
    if not parts:
        return None
    lead = report_page.paragraph(
        "Bold rows (“ours”) were measured here. A number that was measured by another protocol than the table's is shown but not "
        "compared; the reasons are given below the table.",
        "soft",
    )
    return Section("tables", "Comparison with the paper", lead + "".join(parts))


def measured_first(rows: Sequence[Sequence[str]], lines: Sequence[tables.Line]) -> list[list[str]]:
    """The table with measured columns first, where a phone shows them."""
    ours = {name for line in lines for name in line.cells}
    order = [0, 1, *sorted(range(2, len(rows[0])), key=lambda place: rows[0][place] not in ours)]
    return [[row[place] for place in order] for row in rows]


def curves(records: Sequence[Mapping[str, Any]]) -> Section | None:
    """Every family of numbers in a record that differ by a number in their names: robustness, parts, k."""
    groups: dict[tuple[str, str], dict[str, Line]] = defaultdict(dict)
    for record in records:
        for x_name, lines in families(record["metrics"]).items():
            for line in lines:
                name = line.name + _fresh(record)
                groups[f"{record['probe']} on {_where(record)}", x_name][name] = line._replace(name=name)
    drawn = [
        report_plots.figure(Plot(title, x_name, list(lines.values()), dots=True), f"record-{place}")
        for place, ((title, x_name), lines) in enumerate(groups.items())
    ]
    return Section("record-curves", "Results by setting", f'<div class="plots">{"".join(drawn)}</div>') if drawn else None


def _fresh(record: Mapping[str, Any]) -> str:
    return ", untrained" if record["protocol"].get("untrained") else ""


def _where(record: Mapping[str, Any]) -> str:
    """The images that a number was measured on."""
    return str(record["data"].get("val", record["data"].get("root", "its data")))


def families(metrics: Mapping[str, float]) -> dict[str, list[Line]]:
    """Curves by what their x is. `NAME_X` with `NAME_X_loss` beside it is drawn over that loss, in place of X."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    over: dict[str, str] = {}
    for name, value in metrics.items():
        match = re.fullmatch(r"(.*?[^\d.])(\d+(?:\.\d+)?)", name)
        if match:
            stem, loss = match[1].rstrip("_"), metrics.get(f"{name}_loss")
            points[stem].append((float(match[2]) if loss is None else loss, value))
            over[stem] = "share lost" if loss is not None else stem.rpartition("_")[2]
    found: dict[str, list[Line]] = defaultdict(list)
    for stem, some in points.items():
        if len({x for x, _ in some}) >= FEWEST:
            x, y = zip(*sorted(some), strict=True)
            found[over[stem]].append(Line(stem, x, y))
    return found


def everything(records: Sequence[Mapping[str, Any]]) -> Section:
    """All numbers of all records with their protocols, shown when asked for."""
    parts = []
    for record in records:
        fresh = _fresh(record)
        ends = {name: " to ".join(f"{end:g}" for end in both) for name, both in record.get("intervals", {}).items()}
        rows = [Row([name, f"{value:g}", ends.get(name, "")]) for name, value in record["metrics"].items()]
        table = report_page.table(f"{record['probe']}{fresh}", ["metric", "value", "95 % interval"], rows)
        protocol = [(name, _short(value)) for name, value in (*record["data"].items(), *record["protocol"].items())]
        protocol.append(("time, device", f"{record['seconds']} s, {record['device']}"))
        about = report_page.facts(protocol)
        first = f"{record['probe']}{fresh} on {_where(record)}, {len(rows)} metrics"
        parts.append(report_page.details(first, table + about))
    return Section("records", "All results", "".join(parts))


def _short(value: Any) -> str:
    text = (
        ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value) if isinstance(value, list) else str(value)
    )
    return text if len(text) <= 100 else f"{text[:97]}..."
