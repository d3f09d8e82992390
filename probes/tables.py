"""The records as the paper's tables, measured beside published: `python -m probes.tables runs/sample`.

A measured row carries the name of its checkpoint and data. Where every part of its protocol is the published number's
(`probes/paper/protocols.py`), the difference to the published row of the same architecture stands below it, otherwise the reasons
why there is none. What was never measured stays empty.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from checkpoints import escape, store, terminal
from checkpoints.cli import UserError, parse, run_command
from probes.paper import cells, protocols
from probes.paper import published as paper
from probes.paper.published import Published
from probes.shared import console
from probes.shared import record as results


@dataclass(frozen=True)
class TablesOptions:
    """Print the paper's tables with what was measured beside what was published."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)
    """Records, or folders that are searched for them."""
    table: tuple[str, ...] = ()
    """Only these: T1 T12 F5 ... (default: those in which something was measured)."""
    every: bool = False
    """All tables, measured or not."""
    form: Literal["terminal", "markdown", "csv", "latex"] = "terminal"
    """Output format."""
    out: Path | None = None
    """File to write to instead of the terminal."""


class Line(NamedTuple):
    """One row of a finished table."""

    kind: Literal["published", "measured", "difference", "reason"]
    method: str
    arch: str
    cells: Mapping[str, Any]


def read_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Every record among the files and below the folders, oldest first. Raises UserError for a path that is not there."""
    found: list[tuple[float, dict[str, Any]]] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no file or folder {path}")
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            record = results.read(file)
            if record is not None:
                found.append((file.stat().st_mtime, record))
            elif not path.is_dir():
                raise UserError(f"{file} is not a record of a probe")
    return [record for _, record in sorted(found, key=lambda pair: pair[0])]


class Number(NamedTuple):
    """One measured number and what it is to be compared with."""

    value: float
    published: float | None
    differs: Sequence[str]
    """Parts of its protocol that differ from the published one."""


Key = tuple[str, str, tuple[tuple[str, Any], ...]]
"""A measured row: who, architecture, and what the row says in other columns."""


def measured(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Line]]:
    """Measured lines by table, each followed by its differences, or by the reasons why a number has none.

    A later record replaces an earlier one's number, unless only the earlier one is by the table's protocol.
    """
    rows: dict[str, dict[Key, dict[str, Number]]] = {}
    for record in records:
        for cell in cells.CELLS.get(record["probe"], []):
            if cell.metric not in record["metrics"] or not cell.meant(record["protocol"]):
                continue
            checkpoint = record["checkpoint"]
            table = cell.place(checkpoint)
            row = cell.published(table, checkpoint)
            key = (_who(record), paper.arch_name(checkpoint, table.id), tuple(cell.row.items()))
            published = _number(row.cells.get(cell.column) if row else None)
            differs = protocols.differences(cell.needs, record)
            line = rows.setdefault(table.id, {}).setdefault(key, {})
            if cell.column not in line or line[cell.column].differs or not differs:
                line[cell.column] = Number(record["metrics"][cell.metric] * cell.scale, published, differs)
    return {table: [line for key, numbers in some.items() for line in _lines(key, numbers)] for table, some in rows.items()}


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _who(record: Mapping[str, Any]) -> str:
    """Description of the measured backbone and data."""
    checkpoint, data = record["checkpoint"], record["data"]
    path = Path(checkpoint["path"])
    name = path.parent.name if path.name in (store.LAST, store.PREVIOUS, store.BACKBONE) else path.name
    fresh = ", untrained" if record["protocol"].get("untrained") else ""
    return f"ours: {name}{fresh}, {data.get('val', data.get('root', 'unknown data'))}"


def _lines(key: Key, numbers: Mapping[str, Number]) -> list[Line]:
    """The measured row; below it the differences, and what keeps other numbers from being compared."""
    who, arch, same = key
    lines = [Line("measured", who, arch, dict(same) | {column: number.value for column, number in numbers.items()})]
    known = {column: number for column, number in numbers.items() if number.published is not None}
    differences = {
        column: _difference(number.value, number.published, column)
        for column, number in known.items()
        if not number.differs and number.published is not None
    }
    if differences:
        lines.append(Line("difference", "difference to published", arch, differences))
    columns: dict[str, list[str]] = {}
    for column, number in known.items():
        if number.differs:
            columns.setdefault("; ".join(number.differs), []).append(column)
    lines += [Line("reason", f"not compared: {why}", arch, dict.fromkeys(some, "no")) for why, some in columns.items()]
    return lines


def _difference(value: float, published: float, column: str) -> str:
    """The difference, marked where it is within the contradictions in the publication itself."""
    if abs(published) < 1:  # a share, read off a figure
        return f"{value - published:+.3f}"
    within = abs(value - published) <= paper.SPREAD.get(column, 0.0)
    return f"{value - published:+.1f}" + (" (within)" if within else "")


def rows_of(table: Published, lines: Sequence[Line]) -> list[list[str]]:
    """Head, then published rows, then ours, as text."""
    published = [Line("published", row.method + _status(row.status), row.arch, row.cells) for row in table.rows]
    body = [[line.method, line.arch, *(text(line.cells.get(name)) for name in table.columns)] for line in [*published, *lines]]
    return [["method", "arch", *table.columns], *body]


def _status(status: str) -> str:
    return "" if status == "found" else f" [{status}]"


def text(value: Any) -> str:
    """A cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (f"{value:.1f}" if abs(value) >= 1 else f"{value:.3g}") if isinstance(value, float) else str(value)


def as_markdown(title: str, rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["| " + " | ".join(escape.markdown(cell) for cell in row) + " |" for row in (head, ["---"] * len(head), *body)]
    return f"### {escape.markdown(title)}\n\n" + "\n".join(lines) + "\n"


def as_csv(title: str, rows: Sequence[Sequence[str]]) -> str:
    return escape.csv_text([[title], *rows])


def as_latex(title: str, rows: Sequence[Sequence[str]]) -> str:
    head, *body = ([escape.latex(cell) for cell in row] for row in rows)
    lines = [" & ".join(row) + r" \\" for row in body]
    columns = "ll" + "r" * (len(head) - 2)
    before = [
        rf"% {escape.terminal(title)}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(head) + r" \\",
        r"\midrule",
    ]
    return "\n".join([*before, *lines, r"\bottomrule", r"\end{tabular}", ""])


FORMS = {"markdown": as_markdown, "csv": as_csv, "latex": as_latex}


def wanted(options: TablesOptions, lines: Mapping[str, list[Line]]) -> dict[str, Published]:
    """The tables to show. Raises UserError for one that the paper has not."""
    if options.table:
        try:
            return paper.chosen(options.table)
        except KeyError as error:
            names = " ".join(dict.fromkeys(name.partition("_")[0] for name in paper.tables()))
            raise UserError(f"there is no table {error.args[0]}: choose from {names}") from error
    return {name: table for name, table in paper.tables().items() if options.every or name in lines}


def main(arguments: Sequence[str]) -> None:
    options = parse(TablesOptions, arguments, prog="python -m probes.tables")
    records = read_records(options.paths)
    lines = measured(records)
    shown = wanted(options, lines)
    if not shown:
        where = ", ".join(str(path) for path in options.paths)
        raise UserError(f"no results in {where} belong to a table of the paper: run an evaluation, or give --every")
    finished = [(table.title, rows_of(table, lines.get(name, []))) for name, table in shown.items()]
    if options.form == "terminal" and options.out is None:
        for title, (head, *body) in finished:
            console.table(title, head, body)
        return
    form = FORMS["markdown" if options.form == "terminal" else options.form]
    whole = "\n".join(form(title, rows) for title, rows in finished)
    if options.out is None:
        terminal.page(whole)
        return
    try:
        store.write_bytes(options.out, whole.encode())
    except OSError as error:
        raise UserError(f"cannot write to {options.out} ({error.strerror}): give another --out") from error
    terminal.say(f"{len(finished)} tables written to {options.out}")


if __name__ == "__main__":
    sys.exit(run_command(main))
