"""Sections on records of measurements: headline numbers, the paper's tables, curves, and all other fields."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from probes import tables
from probes.paper import published as paper
from probes.report import page as report_page
from probes.report import plots as report_plots
from probes.report.page import Row, Section
from probes.report.plots import Line, Plot

HEADLINES: dict[str, tuple[tuple[str, str], ...]] = {
    "knn": (("top1", "k-NN, top-1 %"),),
    "linear": (("top1", "linear, top-1 %"),),
    "logistic": (("top1", "logistic regression, top-1 %"),),
    "finetune": (("top1", "fine-tuned, top-1 %"),),
    "cluster": (("kmeans_nmi", "k-means, NMI %"),),
    "semi": (("logistic_1%", "1 % of the labels, top-1 %"), ("logistic_10%", "10 % of the labels, top-1 %")),
    "transfer_coco": (("box_ap", "detection, box AP"), ("mask_ap", "detection, mask AP")),
    "transfer_ade20k": (("miou", "segmentation, mIoU %"),),
    "segment": (("miou", "frozen segmentation, mIoU %"),),
    "video": (("jf_m", "video segmentation, J&F"),),
}
"""By probe: the numbers that stand first, and what they are called."""
FEWEST = 3
"""Points of a curve."""


class Headline(NamedTuple):
    """A number and what it is to be compared with."""

    name: str
    value: float
    remark: str


def headlines(records: Sequence[Mapping[str, Any]]) -> list[Headline]:
    """The latest number of each kind, data set and checkpoint, with its baselines."""
    found: dict[tuple[Any, ...], Headline] = {}
    for record in records:
        if record["protocol"].get("untrained"):
            continue
        for metric, name in HEADLINES.get(record["probe"], ()):
            if metric in record["metrics"]:
                on = _where(record)
                key = (name, on, record["checkpoint"]["path"])
                baselines = _baselines(record, metric, records)
                remark = f"on {on}" + "".join(f"; {who} {value:.1f}" for who, value in baselines)
                found[key] = Headline(name, record["metrics"][metric], remark)
    return list(found.values())


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
        parts.append(title + report_page.table("Published rows, then ours", head, rows, "published"))
    if not parts:
        return None
    lead = report_page.paragraph(
        "Rows that begin with “ours” were measured here and are bold; what was measured by another protocol than the table's is "
        "shown but not compared, and the reasons stand below it.",
        "soft",
    )
    return Section("tables", "The paper's tables", lead + "".join(parts))


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
    return Section("record-curves", "Curves of the measurements", f'<div class="plots">{"".join(drawn)}</div>') if drawn else None


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
        table = report_page.table(f"{record['probe']}{fresh}: the numbers", ["name", "value", "95 % interval"], rows)
        protocol = [(name, _short(value)) for name, value in (*record["data"].items(), *record["protocol"].items())]
        protocol.append(("seconds, device", f"{record['seconds']}, {record['device']}"))
        about = report_page.facts("data and protocol", protocol)
        first = f"{record['probe']}{fresh} on {_where(record)}, {len(rows)} numbers"
        parts.append(report_page.details(first, table + about))
    return Section("records", "Everything that was measured", "".join(parts))


def _short(value: Any) -> str:
    text = (
        ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value) if isinstance(value, list) else str(value)
    )
    return text if len(text) <= 100 else f"{text[:97]}..."
