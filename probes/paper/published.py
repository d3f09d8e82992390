"""The paper's published numbers (`paper.json`): every table and digitised figure with its status and source.

A published row has a method, an architecture and cells by column. Which numbers of ours belong beside them: `cells.py`.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("paper.json")
SIZES = {"vit_tiny": "ViT-T", "vit_small": "ViT-S", "vit_base": "ViT-B", "vit_large": "ViT-L"}
WITH_WINDOWS = "T1_knn_linear_in1k"
"""The table that names the windows of a Swin."""
SWINS = {"swin_tiny": "Swin-T", "swin_small": "Swin-S", "swin_base": "Swin-B", "swin_large": "Swin-L"}
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
        return SWINS[arch] + (f"/{checkpoint.get('window')}" if table == WITH_WINDOWS else "")
    return f"{SIZES[arch]}/{patch}" if arch in SIZES else str(arch)


def published_row(table: Published, arch: str, row: Mapping[str, Any], method: str = "iBOT") -> Row | None:
    """iBOT's own row for this architecture, if there is one."""
    for found in table.rows:
        same_arch = found.arch.partition(" (")[0] == arch
        if found.method.startswith(method) and same_arch and all(found.cells.get(key) == value for key, value in row.items()):
            return found
    return None
