"""Cells of the paper's tables for the numbers of a record: `CELLS`, by probe.

The protocol that a record must have for a difference to the published number to be printed: `probes/paper/protocols.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from probes.paper import protocols
from probes.paper import published as paper
from probes.paper.protocols import Needs
from probes.paper.published import Published

T1, T4, T5, T11, T12 = (
    (name,)
    for name in ("T1_knn_linear_in1k", "T4_semi_supervised", "T5_unsupervised", "T11_finetune_recipes", "T12_semi_protocols")
)
T8, T16, F5, F9, F10 = (
    (name,) for name in ("T8_robustness", "T16_retrieval_vos", "F5_partwise_linear", "F9_random_drop", "F10_shuffle")
)
SMALL, BASE = ("T6a_dense_small",), ("T6b_dense_base",)
DENSE, FULL, FULL_BASE = SMALL + BASE, ("T13_dense_small_full", "T14_dense_base_full"), ("T14_dense_base_full",)
FROZEN_ROWS: dict[str, tuple[str, Needs]] = {
    "k-NN": ("frozen k-NN", protocols.KNN),
    "linear": ("frozen linear", protocols.linear),
    "logistic": ("frozen logistic regression", protocols.LOGISTIC),
}
VARIANTS = {
    "O.F.": "only_fg",
    "M.S.": "mixed_same",
    "M.R.": "mixed_rand",
    "M.N.": "mixed_next",
    "N.F.": "no_fg",
    "O.BB.": "only_bg_b",
    "O.BT.": "only_bg_t",
    "IN-9 clean": "original",
}
PART_COUNTS = (1, 7, 14, 56, 112, 196)
DROPPED = tuple(round(0.1 * tenth, 1) for tenth in range(10))
CELL_COUNTS = (1, 4, 8, 16, 32, 64, 196, 256)
OF_SIZE = ((200, 0.75), (100, 0.65), (300, 1.0))
"""Table 11's recipes without DeepSpeed: epochs and layer decay."""
FINETUNED = ("imagenet", "small")
"""Recipes of a fine-tuning with all labels, and the sample's in their place."""


class Cell(NamedTuple):
    """The table cell of one number of a record."""

    tables: tuple[str, ...]
    """The first that has a row for the architecture is meant."""
    column: str
    metric: str
    needs: tuple[Needs, ...]
    """The protocol of the published number: a record that differs in any part is shown, but not compared."""
    row: Mapping[str, Any] = {}
    """Values of the published row's other columns."""
    where: Mapping[str, Any] = {}
    """Required values of the record's protocol: a value, a tuple of allowed values, or for `config` a part of the name."""
    scale: float = 1.0
    """Factor from our unit to the table's (percent to a share: 0.01)."""
    method: str = "iBOT"
    """Prefix of the published row's name."""

    def meant(self, protocol: Mapping[str, Any]) -> bool:
        """Whether a record with this protocol belongs here."""
        return all(_says(protocol.get(name), value, part=name == "config") for name, value in self.where.items())

    def place(self, checkpoint: Mapping[str, Any]) -> Published:
        """The table that a number of this checkpoint belongs to."""
        known = [paper.tables()[name] for name in self.tables]
        return next((table for table in known if self.published(table, checkpoint)), known[0])

    def published(self, table: Published, checkpoint: Mapping[str, Any]) -> paper.Row | None:
        """The published row to compare with, if there is one."""
        return paper.published_row(table, paper.arch_name(checkpoint, table.id), self.row, self.method)


def _says(said: Any, wanted: Any, *, part: bool) -> bool:
    if part:
        return any(one in (said or "") for one in (wanted if isinstance(wanted, tuple) else (wanted,)))
    return said in wanted if isinstance(wanted, tuple) else bool(said == wanted)


def _frozen_few() -> Iterator[Cell]:
    """Table 12's frozen rows."""
    for ours, (theirs, needs) in FROZEN_ROWS.items():
        for percent in (1, 10):
            labels = protocols.few_labels(percent, f"labels.{percent}%")
            name = f"{ours}_{percent}%"
            yield Cell(T12, f"{percent}pct", name, (*protocols.part_of(ours, needs), labels), row={"protocol": theirs})


def _tuned_few() -> Iterator[Cell]:
    """End-to-end rows of Tables 4 and 12, from `probes.semi` and from `probes.finetune`."""
    for percent in (1, 10):
        column, share = f"{percent}pct", f"{percent}%"
        for kept in (False, True):
            row = {"protocol": "end-to-end fine-tuning", "keeps_proj_layer": kept}
            needs = (protocols.tuned("semi", keep_head_layer=kept), protocols.few_labels(percent, "labels"))
            where = {"recipe": ("semi", "small"), "share": share, "keep_head_layer": kept}
            yield Cell(T12, column, "top1", needs, row=row, where=where)
        yield Cell(T4, column, "top1", needs, where={"recipe": ("semi", "small"), "share": share, "keep_head_layer": True})


def _tuned_whole() -> Iterator[Cell]:
    """Tables 2, 7 and 11."""
    where: dict[str, Any] = {"recipe": FINETUNED, "share": None}
    yield Cell(("T2_finetune_in1k",), "acc", "top1", (protocols.tuned("imagenet"), protocols.IMAGENET), where=where)
    for epochs, decay in OF_SIZE:
        needs = (protocols.tuned("imagenet", epochs=epochs, layer_decay=decay), protocols.IMAGENET)
        row = {"epochs": epochs, "layer_decay": decay, "deepspeed": False}
        where = {"recipe": "imagenet", "share": None, "epochs": epochs, "layer_decay": decay}
        yield Cell(T11, "acc", "top1", needs, row=row, where=where)
    for name, data in protocols.TRANSFER.items():
        where = {"recipe": "transfer", "data_set": name}
        yield Cell(
            ("T7a_transfer_vits", "T7b_transfer_vitb"), name, "top1", (protocols.tuned("transfer", name), data), where=where
        )


def _detectors() -> Iterator[Cell]:
    where = {"config": ("cascade", "mask_rcnn")}
    for kind, letter in (("box", "b"), ("mask", "m")):
        yield Cell(DENSE, f"AP{letter}", f"{kind}_ap", (protocols.detector,), where=where)
        for at in ("", "50", "75"):
            yield Cell(FULL, f"AP{letter}{at}", f"{kind}_ap{at and '_' + at}", (protocols.detector,), where=where)


def _segmenters() -> Iterator[Cell]:
    def cells(tables: tuple[str, ...], names: Mapping[str, str], head: str, row: Mapping[str, Any] = {}) -> Iterator[Cell]:
        for column, metric in names.items():
            yield Cell(tables, column, metric, (protocols.segmenter(head),), row=row, where={"config": head})

    yield from cells(DENSE, {"mIoU_upernet": "miou"}, "upernet")
    yield from cells(FULL, {"mIoU_upernet": "miou", "mAcc_upernet": "macc"}, "upernet")
    yield from cells(BASE, {"mIoU_linear": "miou"}, "linear")
    yield from cells(FULL_BASE, {"mIoU_linear": "miou", "mAcc_linear": "macc"}, "linear")
    yield from cells(("TC_seg_layernorm",), {"mIoU": "miou"}, "linear", {"with_LN": True})


def _robust() -> Iterator[Cell]:
    for theirs, ours in VARIANTS.items():
        yield Cell(T8, theirs, ours, (protocols.headed("in9"),))
    yield Cell(T8, "IN-A", "ina_top1", (protocols.headed("ina"),))
    yield Cell(T8, "IN-C (lower better)", "mean_error", (protocols.headed("inc"),))
    for theirs, ours in (("S_.5", "s_0.5"), ("NS_.5", "ns_0.5")):
        yield Cell(T8, theirs, ours, (protocols.headed("occlusion"),))
    for share in DROPPED:
        row = {"information_loss": share}
        yield Cell(F9, "acc", f"random_{share}", (protocols.headed("random"),), row, {}, scale=0.01, method="iBOT linear")
    for count in CELL_COUNTS:
        row = {"grid_cells": count}
        yield Cell(F10, "acc", f"grid_{count}", (protocols.headed("shuffle"),), row, {}, scale=0.01, method="iBOT linear")


def _retrieved() -> Iterator[Cell]:
    for name, suite in (("ROx", "roxford5k"), ("RPar", "rparis6k")):
        for setting in ("medium", "hard"):
            yield Cell(T16, f"{name}_{setting[0].upper()}", f"{suite}_{setting}_map", (protocols.landmarks(suite),))


LINEAR: tuple[Needs, ...] = (protocols.linear, protocols.IMAGENET)
PARTS: tuple[Needs, ...] = (protocols.PARTS, protocols.IMAGENET)

CELLS: dict[str, list[Cell]] = {
    "knn": [Cell(T1, "knn", "top1", (protocols.KNN, protocols.IMAGENET), where={"features": ("cls", None)})],
    "linear": [
        Cell(table, column, "top1", LINEAR, where={"features": protocols.WITH_CLS})
        for table, column in ((T1, "linear"), (T8, "IN clean"))
    ],
    "finetune": [*_tuned_whole(), *_tuned_few()],
    "cluster": [Cell(T5, name.upper(), f"head_{name}", (protocols.CLUSTER,)) for name in ("acc", "ari", "nmi", "fmi")],
    "semi": list(_frozen_few()),
    "parts": [Cell(F5, "linear", f"top1_k{count}", PARTS, row={"top_k": count}) for count in PART_COUNTS],
    "transfer_coco": list(_detectors()),
    "transfer_ade20k": list(_segmenters()),
    "video": [Cell(T16, f"{letters}_m", f"{letters.lower()}_m", (protocols.DAVIS,)) for letters in ("JF", "J", "F")],
    "retrieval": list(_retrieved()),
    "robustness": list(_robust()),
}
"""By probe."""
