"""Types of rows and tables of the paper's ablations, and settings that many rows share."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pretrain.recipes.presets import TWO_CROPS, VITB, VITS

Values = dict[str, Any]
Tokenizer = Literal["dalle", "colour", "patches"]
Control = Literal["untrained", "pixels", "supervised"]


class Row(NamedTuple):
    """One row: how the publication calls it, what it reached there, what it changes."""

    name: str
    method: str
    """The published row's name of the method."""
    numbers: Mapping[str, float]
    """Published, in percent, by column."""
    changes: Mapping[str, Any] = {}
    cells: Mapping[str, Any] = {}
    """Values of the published row's other columns."""
    small: Mapping[str, Any] = {}
    """Changes of the embedded sample that replace the paper's."""
    arch: str = "ViT-S/16"
    epochs: int | None = None
    """Epochs, if they differ from the table's."""
    needs: str | None = None
    """The row whose checkpoint is the tokenizer."""
    tokenizer: Tokenizer | None = None
    pooled: bool = False
    """Measured on the mean of the patch tokens."""
    cost: str = "not published"
    note: str = ""
    control: Control | None = None
    """A row of ours, beside the published ones, that is no pretraining."""


class Table(NamedTuple):
    """Rows in the paper's order, and what they have in common."""

    name: str
    published: str
    """The table's id in `probes/paper/paper.json`."""
    what: str
    rows: tuple[Row, ...]
    base: Values
    """Settings of ViT-S/16; a row of ViT-B/16 adds VITB's."""
    small: Values
    """On the embedded sample, over its recipe."""
    epochs: int = 300
    helpers: tuple[Row, ...] = ()
    """Rows that the paper's table has not, for those that need them."""

    def row(self, name: str) -> Row:
        """Raises KeyError."""
        return {row.name: row for row in (*self.rows, *self.helpers, *CONTROLS)}[name]

    def settings(self, row: Row) -> Values:
        """At the paper's scale."""
        network = VITB if row.arch == "ViT-B/16" else VITS
        return {**network, **self.base, "epochs": row.epochs or self.epochs, **row.changes}

    def on_sample(self, row: Row) -> Values:
        """Over a recipe for small images."""
        return {**self.small, **row.changes, **row.small}


FIXED: Values = {"pred_ratio": (0.3,), "pred_ratio_var": (0.0,)}
RANDOM: Values = {"pred_ratio": (0.0, 0.3), "pred_ratio_var": (0.0, 0.2)}
TWO = TWO_CROPS | FIXED
"""Settings of Section 4.4 and appendix E unless a table says otherwise."""
SMALL_TWO: Values = {"local_crops_number": 0} | FIXED
APART: Values = {"shared_head": False, "shared_head_teacher": False}
NO_MIM: Values = {"use_masked_im_modeling": False}
MIM_ALONE: Values = {"lambda_cls": 0.0}
CODES: Values = {"targets": "codes"} | APART
CODES_ALONE = CODES | MIM_ALONE

CONTROLS = (
    Row("supervised", "trained with labels for as many images", {}, control="supervised"),
    Row("untrained", "the same network untrained", {}, control="untrained"),
    Row("pixels", "raw pixels", {}, control="pixels"),
)
"""What any row must be compared with; not in the paper's tables."""
