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
    config: str = ""
    """Part of the name of the config of transfer/configs that it is measured with."""


T1, T5, T12, F5 = ("T1_knn_linear_in1k",), ("T5_unsupervised",), ("T12_semi_protocols",), ("F5_partwise_linear",)
T8, T16 = ("T8_robustness",), ("T16_retrieval_vos",)
DENSE = ("T6a_dense_small", "T6b_dense_base")
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

CELLS: dict[str, list[Cell]] = {
    "knn": [Cell(T1, "knn", "top1")],
    "linear": [Cell(T1, "linear", "top1")],
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
    ],
    "parts": [Cell(F5, "linear", f"top1_k{count}", row={"top_k": count}) for count in PART_COUNTS],
    "transfer_coco": [Cell(DENSE, "APb", "box_ap", COCO), Cell(DENSE, "APm", "mask_ap", COCO)],
    "transfer_ade20k": [
        Cell(DENSE, "mIoU_upernet", "miou", ADE20K, config="upernet"),
        Cell(("T6b_dense_base",), "mIoU_linear", "miou", ADE20K, config="linear"),
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


def published_row(table: Published, arch: str, row: Mapping[str, Any]) -> Row | None:
    """iBOT's own row for this architecture, if there is one."""
    for found in table.rows:
        same_arch = found.arch.partition(" (")[0] == arch
        if found.method.startswith("iBOT") and same_arch and all(found.cells.get(key) == value for key, value in row.items()):
            return found
    return None


def place(cell: Cell, checkpoint: Mapping[str, Any]) -> Published:
    """The table that a number of this checkpoint belongs to."""
    known = [tables()[name] for name in cell.tables]
    return next((table for table in known if published_row(table, arch_name(checkpoint, table.id), cell.row)), known[0])
