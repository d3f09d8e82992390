"""A confusion matrix as a picture.

k classes.
"""

import io
from typing import Any

import numpy as np
from jaxtyping import Float

from checkpoints import escape, fonts
from checkpoints.figures import Figure, FigureCanvasAgg, PowerNorm

NAMED_UP_TO = 25
"""Classes: more have no room for their names and numbers in the picture."""
PAIRS, LONGEST_NAME = 40, 18


def picture(shares: Float[np.ndarray, "k k"], classes: list[str], what: str) -> bytes:
    """The confusion of classes as PNG, where `what` was counted (images, pixels).

    With names and numbers where there is room, and the pairs most often confused beside it.

    Blue to yellow (cividis) keeps its order for every kind of colour vision; the scale shows small shares too.
    """
    few = len(classes) <= NAMED_UP_TO
    figure = Figure(figsize=(13, 8) if few else (19.5, 13), layout="constrained")
    FigureCanvasAgg(figure)
    axes, beside = figure.subplots(1, 2, width_ratios=(3, 1) if few else (5, 1))
    drawn = axes.imshow(shares, cmap="cividis", norm=PowerNorm(0.4, 0, 100), interpolation="none" if few else "antialiased")
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title(fonts.label(f"test {what} of a class (row) taken for a class (column), %"))
    if few:
        _write_in(axes, shares, classes)
    figure.colorbar(drawn, ax=axes, shrink=0.8, ticks=[0, 1, 5, 20, 50, 100])
    beside.axis("off")
    beside.text(0, 1, fonts.label("\n".join(["most often taken for another:", *_pairs(shares, classes)])), va="top", fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def _write_in(axes: Any, shares: np.ndarray, classes: list[str]) -> None:
    names = [fonts.label(name, LONGEST_NAME) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    for row, column in zip(*np.nonzero(np.nan_to_num(shares) >= 0.5), strict=True):
        colour = "black" if shares[row, column] > 20 else "white"
        axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)


def _pairs(shares: np.ndarray, classes: list[str]) -> list[str]:
    others = np.nan_to_num(shares.copy())
    np.fill_diagonal(others, 0)
    order = np.argsort(-others, axis=None, kind="stable")[:PAIRS]
    rows, columns = np.unravel_index(order, others.shape)
    found, short = zip(rows, columns, strict=True), [escape.terminal(fonts.legible(name)[:LONGEST_NAME]) for name in classes]
    return [f"{others[row, column]:3.0f} %  {short[row]} > {short[column]}" for row, column in found if others[row, column] > 0]
