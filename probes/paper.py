"""The paper's published numbers (`probes/paper.json`: every table, digitised figure, status and source), and what ours are to be
compared with.

A published row has a method, an architecture and cells by column. A record of ours has cells too: `CELLS` says which.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("paper.json")
SIZES = {"vit_tiny": "ViT-T", "vit_small": "ViT-S", "vit_base": "ViT-B", "vit_large": "ViT-L"}
SWINS = {"swin_tiny": "Swin-T", "swin_small": "Swin-S", "swin_base": "Swin-B", "swin_large": "Swin-L"}
IMAGENET, COCO, ADE20K = 50_000, 5_000, 2_000
"""Test images of the data sets that the tables are about."""
DAVIS, LANDMARKS, IN9, IN_A, IN_C = 30, 70, 8 * 4050, 7_500, 19 * 5 * 50_000
"""Clips, queries, and images of all variants or corruptions."""

SPREAD = {"knn": 1.2, "linear": 0.6, "acc": 0.2, "finetune": 0.2, "1pct": 0.5, "10pct": 0.5}
"""Percent by which the publication differs from itself: ViT-S of 300 epochs is 69.1 / 74.2 in Table 9 and 70.3 / 74.8 in
Tables 19 and 20; fine-tuned ViT-B 83.8, later 84.0 (README). For few labels, where it prints one number, half a percent."""


class Row(NamedTuple):
    """One published row."""

    method: str
    arch: str
    cells: Mapping[str, Any]
    status: str
    """`found` in a copy of the source, or `recalled`."""
    source: str


class Published(NamedTuple):
    """One table or figure."""

    id: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]


class Cell(NamedTuple):
    """Where one number of a record belongs."""

    tables: tuple[str, ...]
    """The first that has a row for the architecture is meant."""
    column: str
    metric: str
    images: int = IMAGENET
    """Test images of the published number; a record with others is shown, but not compared."""
    row: Mapping[str, Any] = {}
    """What the published row says in other columns."""
    where: Mapping[str, Any] = {}
    """What the record's protocol says: the value itself, a tuple of values to choose from, or for `config` a part of the name."""
    scale: float = 1.0
    """From our unit to the table's (percent to a share: 0.01)."""
    method: str = "iBOT"
    """How the name of the published row begins."""

    def meant(self, protocol: Mapping[str, Any]) -> bool:
        """Whether a record with this protocol belongs here."""
        return all(_says(protocol.get(name), value, part=name == "config") for name, value in self.where.items())


def _says(said: Any, wanted: Any, *, part: bool) -> bool:
    return wanted in (said or "") if part else said in wanted if isinstance(wanted, tuple) else bool(said == wanted)


T1, T4, T5, T11, T12 = (
    (name,)
    for name in ("T1_knn_linear_in1k", "T4_semi_supervised", "T5_unsupervised", "T11_finetune_recipes", "T12_semi_protocols")
)
T8, T16, F5, F9, F10 = (
    (name,) for name in ("T8_robustness", "T16_retrieval_vos", "F5_partwise_linear", "F9_random_drop", "F10_shuffle")
)
SMALL, BASE = ("T6a_dense_small",), ("T6b_dense_base",)
DENSE, FULL, FULL_BASE = SMALL + BASE, ("T13_dense_small_full", "T14_dense_base_full"), ("T14_dense_base_full",)
PROTOCOLS = {"k-NN": "frozen k-NN", "linear": "frozen linear", "logistic": "frozen logistic regression"}
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
TRANSFER = {"cifar10": 10_000, "cifar100": 10_000, "inat18": 24_426, "inat19": 3_030, "flowers": 6_149, "cars": 8_041}
"""Test images of the data sets of Table 7."""
OF_SIZE = ((200, 0.75), (100, 0.65), (300, 1.0))
"""Table 11's recipes without DeepSpeed: epochs and layer decay."""
FINETUNED = ("imagenet", "small")
"""Recipes of a fine-tuning with all labels, and the sample's in their place."""

WITH_CLS = ("cls4", "cls+mean", "cls", None)
"""Features of a linear probe as in Table 1; older records do not name them."""


def _segmenters(tables: tuple[str, ...], names: Mapping[str, str], config: str) -> list[Cell]:
    return [Cell(tables, column, metric, ADE20K, where={"config": config}) for column, metric in names.items()]


def _finetuned() -> list[Cell]:
    whole: dict[str, Any] = {"recipe": FINETUNED, "percent": None}
    few: dict[str, Any] = {"recipe": ("semi", "small")}
    cells = [Cell(("T2_finetune_in1k",), "acc", "top1", where=whole)]
    cells += [
        Cell(T11, "acc", "top1", row={"epochs": epochs, "layer_decay": decay, "deepspeed": False},
             where={"recipe": "imagenet", "epochs": epochs, "layer_decay": decay})
        for epochs, decay in OF_SIZE
    ]  # fmt: skip
    for percent in (1.0, 10.0):
        cells.append(Cell(T4, f"{percent:g}pct", "top1", where=few | {"percent": percent}))
        cells += [
            Cell(T12, f"{percent:g}pct", "top1", row={"protocol": "end-to-end fine-tuning", "keeps_proj_layer": kept},
                 where=few | {"percent": percent, "keep_head_layer": kept})
            for kept in (False, True)
        ]  # fmt: skip
    for name, images in TRANSFER.items():
        where = {"recipe": "transfer", "data_set": name}
        cells.append(Cell(("T7a_transfer_vits", "T7b_transfer_vitb"), name, "top1", images, where=where))
    return cells


CELLS: dict[str, list[Cell]] = {
    "knn": [Cell(T1, "knn", "top1", where={"features": ("cls", None)})],
    "linear": [Cell(table, column, "top1", where={"features": WITH_CLS}) for table, column in ((T1, "linear"), (T8, "IN clean"))],
    "finetune": _finetuned(),
    "cluster": [Cell(T5, name.upper(), f"head_{name}") for name in ("acc", "ari", "nmi", "fmi")],
    "semi": [
        Cell(T12, f"{percent}pct", f"{ours}_{percent}%", row={"protocol": theirs})
        for ours, theirs in PROTOCOLS.items()
        for percent in (1, 10)
    ]
    + [
        Cell(T12, f"{percent}pct", f"{ours}_{percent}%", row={"protocol": "end-to-end fine-tuning", "keeps_proj_layer": kept})
        for ours, kept in (("fine-tuned", False), ("fine-tuned, head layer kept", True))
        for percent in (1, 10)
    ]
    + [Cell(T4, f"{percent}pct", f"fine-tuned, head layer kept_{percent}%") for percent in (1, 10)],
    "parts": [Cell(F5, "linear", f"top1_k{count}", row={"top_k": count}) for count in PART_COUNTS],
    "transfer_coco": [
        *(Cell(DENSE, f"AP{letter}", f"{kind}_ap", COCO) for letter, kind in (("b", "box"), ("m", "mask"))),
        *(
            Cell(FULL, f"AP{letter}{at}", f"{kind}_ap{at and '_' + at}", COCO)
            for letter, kind in (("b", "box"), ("m", "mask"))
            for at in ("", "50", "75")
        ),
    ],
    "transfer_ade20k": [
        *_segmenters(DENSE, {"mIoU_upernet": "miou"}, "upernet"),
        *_segmenters(FULL, {"mIoU_upernet": "miou", "mAcc_upernet": "macc"}, "upernet"),
        *_segmenters(BASE, {"mIoU_linear": "miou"}, "linear"),
        *_segmenters(FULL_BASE, {"mIoU_linear": "miou", "mAcc_linear": "macc"}, "linear"),
        Cell(("TC_seg_layernorm",), "mIoU", "miou", ADE20K, row={"with_LN": True}, where={"config": "linear"}),
    ],
    "video": [Cell(T16, f"{letters}_m", f"{letters.lower()}_m", DAVIS) for letters in ("JF", "J", "F")],
    "retrieval": [
        Cell(T16, f"{name}_{setting[0].upper()}", f"{suite}_{setting}_map", LANDMARKS)
        for name, suite in (("ROx", "roxford5k"), ("RPar", "rparis6k"))
        for setting in ("medium", "hard")
    ],
    "robustness": [
        *(Cell(T8, theirs, ours, IN9) for theirs, ours in VARIANTS.items()),
        Cell(T8, "IN-A", "ina_top1", IN_A),
        Cell(T8, "IN-C (lower better)", "mean_error", IN_C),
        Cell(T8, "S_.5", "s_0.5"),
        Cell(T8, "NS_.5", "ns_0.5"),
        *(
            Cell(F9, "acc", f"random_{share}", row={"information_loss": share}, scale=0.01, method="iBOT linear")
            for share in DROPPED
        ),
        *(
            Cell(F10, "acc", f"grid_{count}", row={"grid_cells": count}, scale=0.01, method="iBOT linear")
            for count in CELL_COUNTS
        ),
    ],
}
"""By probe."""


@lru_cache
def tables() -> dict[str, Published]:
    """All that is published, by id, in the paper's order."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return {table["id"]: _table(table) for table in content["tables"]}


def _table(content: Mapping[str, Any]) -> Published:
    rows = [
        Row(row.get("method", ""), row.get("arch", ""), row["cells"], row["status"], row["source"]) for row in content["rows"]
    ]
    notes = content.get("notes", [])
    return Published(
        content["id"], content["title"], content["columns"], rows, notes if isinstance(notes, list) else [str(notes)]
    )


def chosen(names: Sequence[str]) -> dict[str, Published]:
    """Tables by the beginnings of their ids: `T1` is Table 1 and not Table 10. Raises KeyError naming the unknown one."""
    found: dict[str, Published] = {}
    for name in names:
        some = {key: table for key, table in tables().items() if key == name or key.partition("_")[0] == name}
        if not some:
            raise KeyError(name)
        found |= some
    return found


def arch_name(checkpoint: Mapping[str, Any], table: str) -> str:
    """An architecture as the table calls it."""
    arch, patch = checkpoint["arch"], checkpoint.get("patch_size")
    if arch in SWINS:
        return SWINS[arch] + (f"/{checkpoint.get('window')}" if table in T1 else "")
    return f"{SIZES[arch]}/{patch}" if arch in SIZES else str(arch)


def published_row(table: Published, arch: str, row: Mapping[str, Any], method: str = "iBOT") -> Row | None:
    """iBOT's own row for this architecture, if there is one."""
    for found in table.rows:
        same_arch = found.arch.partition(" (")[0] == arch
        if found.method.startswith(method) and same_arch and all(found.cells.get(key) == value for key, value in row.items()):
            return found
    return None


def place(cell: Cell, checkpoint: Mapping[str, Any]) -> Published:
    """The table that a number of this checkpoint belongs to."""
    known = [tables()[name] for name in cell.tables]
    return next(
        (table for table in known if published_row(table, arch_name(checkpoint, table.id), cell.row, cell.method)), known[0]
    )
