"""The comparison: a number with its interval for every backbone, data set and probe, ranks and costs, in every form."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats

from checkpoints import escape
from probes import tables
from probes.compare.cells import Done
from probes.compare.costs import Cost
from probes.shared.headlines import digits, headlines_of, interval, names


class Entry(NamedTuple):
    """One number of the table."""

    value: float
    """Mean over the seeds."""
    low: float | None
    high: float | None
    """95 % interval over the test images, where it is known."""
    spread: float | None
    """Standard deviation over the seeds, where there are several."""
    seeds: int
    images: int | None
    rank: float = math.nan
    """1 is the best of its column; equals share a rank."""


class Column(NamedTuple):
    """A data set, a probe and what is measured."""

    data: str
    probe: str
    name: str


class Comparison(NamedTuple):
    """The finished table."""

    models: Sequence[str]
    columns: Sequence[Column]
    entries: Mapping[tuple[str, Column], Entry]
    costs: Mapping[str, Cost]
    failed: Sequence[str]
    """A sentence for each measurement that has no record."""
    unfit: Sequence[str]
    about: str
    """The protocol in words."""

    def ranks(self) -> dict[str, float]:
        """Mean rank of each model over the columns in which all have a number that have any; NaN where there is none."""
        known = [model for model in self.models if any((model, column) in self.entries for column in self.columns)]
        whole = [column for column in self.columns if all((model, column) in self.entries for model in known)]
        found = {model: [self.entries[model, column].rank for column in whole] for model in known}
        return {model: sum(ranks) / len(ranks) if (ranks := found.get(model)) else math.nan for model in self.models}

    def best(self) -> str | None:
        """The model of the best mean rank."""
        known = {model: rank for model, rank in self.ranks().items() if not math.isnan(rank)}
        return min(known, key=known.__getitem__) if known else None

    def rows(self) -> list[dict[str, Any]]:
        """A dict a number, as for `pandas.DataFrame`."""
        ranks = self.ranks()
        return [
            {"model": model, "data": column.data, "probe": column.probe, "metric": column.name}
            | self.entries[model, column]._asdict()
            | {"mean_rank": ranks[model]}
            | (self.costs[model]._asdict() if model in self.costs else {})
            for column in self.columns
            for model in self.models
            if (model, column) in self.entries
        ]

    def parts(self) -> list[tuple[str, list[list[str]]]]:
        """Title and rows, head first: one table a data set, then ranks and costs."""
        found = []
        for data in dict.fromkeys(column.data for column in self.columns):
            columns = [column for column in self.columns if column.data == data]
            body = [[model, *(self._cell(model, column) for column in columns)] for model in self.models]
            found.append((data, [["backbone", *(column.name for column in columns)], *body]))
        ranks = self.ranks()
        head = ["backbone", "mean rank", "parameters, M", "GFLOPs an image", "images/s"]
        return [
            *found,
            ("ranks and costs", [head, *([model, _number(ranks[model]), *self._cost(model)] for model in self.models)]),
        ]

    def _cell(self, model: str, column: Column) -> str:
        entry = self.entries.get((model, column))
        return "" if entry is None else shown(entry, digits(column.name))

    def _cost(self, model: str) -> list[str]:
        cost = self.costs.get(model)
        if cost is None:
            return ["", "", ""]
        return [f"{cost.parameters / 1e6:.1f}", f"{cost.gflops:.2f}", f"{cost.images_per_second:.0f}"]

    def markdown(self) -> str:
        """All parts as Markdown, with the protocol and what is missing."""
        notes = [self.about, *self.failed, *self.unfit]
        body = "\n".join(tables.as_markdown(title, rows) for title, rows in self.parts())
        return body + "\n" + "\n".join(f"* {escape.markdown(note)}" for note in notes) + "\n"

    def latex(self) -> str:
        """The same for a paper (booktabs)."""
        return "\n".join(tables.as_latex(title, rows).replace("{ll", "{lr", 1) for title, rows in self.parts())

    def csv(self) -> str:
        """A line a number."""
        rows = self.rows()
        head = list(dict.fromkeys(name for row in rows for name in row))
        lines = [["" if row.get(name) is None else row[name] for name in head] for row in rows]
        return escape.csv_text([head, *lines])


def shown(entry: Entry, digits: int = 1) -> str:
    """A number with its interval, and its spread over seeds."""
    interval = "" if entry.low is None or entry.high is None else f" [{entry.low:.{digits}f}, {entry.high:.{digits}f}]"
    return f"{entry.value:.{digits}f}{'' if entry.spread is None else f' ± {entry.spread:.{digits}f}'}{interval}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def build(models: Sequence[str], done: Sequence[Done], costs: Mapping[str, Cost], unfit: Sequence[str], about: str) -> Comparison:
    """The table of all records."""
    labels = names(models)
    records: dict[tuple[str, Column], list[Mapping[str, Any]]] = {}
    columns: dict[Column, None] = {}
    for one in done:
        if one.record is not None:
            column = Column(one.cell.data, one.cell.probe, headline(one.cell.probe, one.record["metrics"])[1])
            columns[column] = None
            records.setdefault((labels[one.cell.model], column), []).append(one.record)
    found = {place: entry(some, headline(place[1].probe, some[0]["metrics"])[0]) for place, some in records.items()}
    for column in columns:
        mine = [(model, found[model, column]) for model in labels.values() if (model, column) in found]
        order = stats.rankdata([-one.value for _, one in mine])
        found |= {(model, column): one._replace(rank=float(rank)) for (model, one), rank in zip(mine, order, strict=True)}
    failed = [f"{one.cell.probe} of {one.cell.model} on {one.cell.data}: {one.reason}" for one in done if one.record is None]
    costs = {labels[model]: cost for model, cost in costs.items()}
    return Comparison(list(labels.values()), list(columns), found, costs, failed, unfit, about)


def headline(probe: str, metrics: Mapping[str, float]) -> tuple[str, str]:
    """The metric of a probe that is compared, and its name; the first metric where none of the known is there."""
    known = headlines_of(probe, metrics)
    return known[0] if known else (next(iter(metrics)), f"{probe}, {next(iter(metrics))}")


def entry(records: Sequence[Mapping[str, Any]], metric: str) -> Entry:
    """The number of one backbone in one column, from the records of its seeds."""
    values = [record["metrics"][metric] for record in records]
    mean = sum(values) / len(values)
    spread = None if len(values) == 1 else math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    images = records[0]["data"].get("val_images")
    ends = [interval(record, metric, mean) for record in records]
    low, high = ((None if None in some else sum(some) / len(some)) for some in zip(*ends, strict=True))
    return Entry(mean, low, high, spread, len(values), images)
