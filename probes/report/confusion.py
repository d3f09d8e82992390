"""Confusion of classes: a matrix for few classes, the most frequent mistakes for many.

q queries.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from checkpoints.escape import html as escape
from probes.report import page as report_page
from probes.report.page import Row
from probes.shared.confusion import counts_of

MATRIX = 20
"""Most classes of a matrix that can be read."""
MISTAKES = 20
"""Rows of the list."""


def confusion(truth: Int[np.ndarray, " q"], answers: Int[np.ndarray, " q"], classes: Sequence[str], title: str) -> str:
    """HTML; class numbers index `classes`."""
    return of_counts(counts_of(truth, answers, len(classes)), classes, title, "images")


def of_counts(counts: Int[np.ndarray, "k k"], classes: Sequence[str], title: str, what: str) -> str:
    """HTML of a matrix with a row for each true class; `what` was counted: images, or pixels, shown as percent of the class."""
    right = 100 * np.trace(counts) / max(counts.sum(), 1)
    few = len(classes) <= MATRIX
    how = " Rows are true classes, columns predictions; framed is correct." if few else ""
    lead = report_page.paragraph(f"{title}: {right:.1f} % correct.{how}", "soft")
    return lead + (_matrix if few else _mistakes)(counts, classes, what)


def _matrix(counts: np.ndarray, classes: Sequence[str], what: str) -> str:
    """The number in a cell says what its shade does."""
    head = "".join(f'<th scope="col" class="across">{escape(name)}</th>' for name in classes)
    rows = []
    for number, (name, row) in enumerate(zip(classes, counts, strict=True)):
        shares = row / max(row.sum(), 1)
        cells = "".join(
            f'<td{" class=right" if place == number else ""} style="--share:{share:.2f}">{_cell(count, share, what)}</td>'
            for place, (count, share) in enumerate(zip(row.tolist(), shares.tolist(), strict=True))
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    caption = "Images by class" if what == "images" else f"Percent of the {what} of each class"
    table = (
        f'<table class="matrix"><caption>{caption}</caption><thead><tr><th scope="col">true class</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return report_page.scrolling("Confusion matrix", table)


def _cell(count: int, share: float, what: str) -> str:
    """Counts of images can be read; those of pixels are too long."""
    if what == "images":
        return str(count or "")
    return f"{100 * share:.0f}" if share >= 0.005 else ""


def _mistakes(counts: np.ndarray, classes: Sequence[str], what: str) -> str:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:MISTAKES]
    rows = []
    for truth, answer in (np.unravel_index(place, wrong.shape) for place in order):
        if wrong[truth, answer]:
            share = 100 * wrong[truth, answer] / counts[truth].sum()
            rows.append(Row([classes[truth], classes[answer], f"{wrong[truth, answer]}", f"{share:.0f}"]))
    caption = f"The most frequent mistakes among {len(classes)} classes"
    return report_page.table(caption, ["true class", "prediction", what, "% of the class"], rows)
