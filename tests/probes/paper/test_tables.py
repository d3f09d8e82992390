"""The paper's tables: what is set beside a published number, and what keeps a number from being compared."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from probes import tables
from probes.paper import cells, protocols, published
from probes.paper.cells import Cell
from probes.report import records as report_records

ARCHS = ("vit_small", "vit_base", "vit_large", "swin_tiny")


def every_cell() -> Iterator[Any]:
    for probe, some in cells.CELLS.items():
        for number, cell in enumerate(some):
            yield pytest.param(probe, cell, id=f"{probe}-{cell.tables[0]}-{cell.column}-{number}")


def right(probe: str, cell: Cell, arch: str, value: float = 50.0, **protocol: Any) -> dict[str, Any]:
    """An invented record that states just what the cell needs."""
    checkpoint = {"path": "runs/mine/last.pt", "arch": arch, "patch_size": 4 if arch.startswith("swin") else 16, "window": 7}
    record: dict[str, Any] = {"schema": 1, "probe": probe, "checkpoint": checkpoint, "data": {"val": "its own"}, "protocol": {}}
    for name, wanted in protocols.resolved(cell.needs, checkpoint).items():
        place = record
        *folders, last = name.split(".")
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = wanted[0] if isinstance(wanted, protocols.OneOf) else wanted
    for name, wanted in cell.where.items():
        if name not in record["protocol"]:
            record["protocol"][name] = wanted[0] if isinstance(wanted, tuple) else wanted
    record["protocol"] |= protocol
    return json.loads(json.dumps(record | {"metrics": {cell.metric: value}, "seconds": 1.0, "device": "cpu"}))


def other(value: Any) -> Any:
    """Nearly the same value."""
    if isinstance(value, bool):
        return not value
    if value is None:
        return "something"
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, (tuple, list)):
        return [*value, value[-1] if value else "train_cfg.max_iters=5"]
    return f"{value} of another kind"


def arch_of(cell: Cell) -> str | None:
    """An architecture of which the cell has a published number."""
    for arch in ARCHS:
        checkpoint = {"arch": arch, "patch_size": 4 if arch.startswith("swin") else 16, "window": 7}
        table = cell.place(checkpoint)
        row = cell.published(table, checkpoint)
        if row is not None and isinstance(row.cells.get(cell.column), (int, float)):
            return arch
    return None


def kinds(record: Mapping[str, Any], cell: Cell) -> dict[str, list[tables.Line]]:
    """The lines of the cell's column in its table, by kind."""
    lines = tables.measured([record])[cell.place(record["checkpoint"]).id]
    found: dict[str, list[tables.Line]] = {}
    for line in lines:
        if cell.column in line.cells:
            found.setdefault(line.kind, []).append(line)
    return found


@pytest.mark.parametrize("probe, cell", list(every_cell()))
def test_a_record_by_the_protocol_is_compared_and_a_nearly_right_one_is_not(probe: str, cell: Cell) -> None:
    """Once for each part of the protocol: another value, and no word on it. On 46c01a2 only the number of test images counted."""
    arch = arch_of(cell)
    assert arch is not None, "a cell that no architecture has a published number for"
    record = right(probe, cell, arch)
    assert kinds(record, cell).keys() == {"measured", "difference"}, protocols.differences(cell.needs, record)
    needs = protocols.resolved(cell.needs, record["checkpoint"])
    assert any(name.startswith("data.") for name in needs) and any(name.startswith("protocol.") for name in needs)
    for name, wanted in needs.items():
        for missing in (False, True):
            nearly = json.loads(json.dumps(record))
            place = nearly
            *folders, last = name.split(".")
            for folder in folders:
                place = place[folder]
            if missing:
                del place[last]
            else:
                place[last] = other(wanted[-1] if isinstance(wanted, protocols.OneOf) else wanted)
            if missing and (wanted is None or (wanted is False and last == "untrained")):
                continue  # nothing is what was wanted
            if not cell.meant(nearly["protocol"]):
                continue  # it belongs to another cell, or to none
            found = kinds(nearly, cell)
            assert "difference" not in found and len(found["reason"]) == 1, (name, missing)
            word = last.replace("_", " ")
            assert found["reason"][0].method.startswith("not compared: ")
            assert word in found["reason"][0].method.replace("_", " "), found["reason"][0].method


@pytest.mark.parametrize("probe, cell", list(every_cell()))
def test_every_cell_of_ours_has_its_column(probe: str, cell: Cell) -> None:
    for name in cell.tables:
        table = published.tables()[name]
        assert cell.column in table.columns and cell.row.keys() <= set(table.columns)
        if cell.row:
            assert any(all(row.cells.get(k) == v for k, v in cell.row.items()) for row in table.rows)


def cell_of(probe: str, table: str, column: str, **row: Any) -> Cell:
    return next(
        cell
        for cell in cells.CELLS[probe]
        if any(name.partition("_")[0] == table for name in cell.tables)
        and cell.column == column
        and all(cell.row.get(name) == value for name, value in row.items())
    )


@pytest.mark.parametrize(
    "probe, table, column, row, arch, value, expected",
    [
        ("knn", "T1", "knn", {}, "vit_small", 74.9, "-0.3 (within)"),
        ("linear", "T1", "linear", {}, "vit_small", 70.0, "-7.9"),
        ("linear", "T1", "linear", {}, "vit_base", 79.5, "+0.0 (within)"),
        ("linear", "T8", "IN clean", {}, "vit_small", 77.0, "-0.9"),
        ("finetune", "T2", "acc", {}, "vit_small", 90.0, "+7.7"),
        ("finetune", "T2", "acc", {}, "vit_large", 84.8, "+0.0 (within)"),
        ("finetune", "T11", "acc", {"epochs": 200, "layer_decay": 0.75}, "vit_small", 90.0, "+7.7"),
        ("finetune", "T4", "10pct", {}, "vit_small", 90.0, "+14.9"),
        ("finetune", "T12", "1pct", {"keeps_proj_layer": False}, "vit_small", 90.0, "+35.0"),
        ("finetune", "T7a", "flowers", {}, "vit_small", 90.0, "-8.6"),
        ("semi", "T12", "1pct", {"protocol": "frozen linear"}, "vit_small", 62.0, "-0.5 (within)"),
        ("transfer_coco", "T6a", "APb", {}, "vit_small", 49.0, "-0.4"),
        ("transfer_ade20k", "T6b", "mIoU_linear", {}, "vit_base", 38.0, "-0.3"),
        ("robustness", "T8", "S_.5", {}, "vit_small", 65.0, "-0.9"),
        ("robustness", "F9", "acc", {"information_loss": 0.5}, "vit_small", 66.4, "+0.010"),
        ("robustness", "F10", "acc", {"grid_cells": 16}, "vit_small", 60.0, "-0.015"),
    ],
)
def test_differences_are_to_the_published_row_of_the_architecture(
    probe: str, table: str, column: str, row: dict[str, Any], arch: str, value: float, expected: str
) -> None:
    cell = cell_of(probe, table, column, **row)
    lines = kinds(right(probe, cell, arch, value), cell)
    assert lines["difference"][0].cells[column] == expected
    assert lines["measured"][0].cells[column] == pytest.approx(value * cell.scale)


def test_tables_set_measured_beside_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for probe, column, value in (("knn", "knn", 74.9), ("linear", "linear", 70.0)):
        record = right(probe, cell_of(probe, "T1", column), "vit_small", value)
        (tmp_path / f"{probe}.json").write_text(json.dumps(record))
    assert run_command(tables.main, [str(tmp_path), "--form", "csv", "--table", "T1"]) == DONE
    title, head, *rows = csv.reader(capsys.readouterr().out.strip().splitlines())
    assert title == ["Table 1: k-NN and linear probing on ImageNet-1K (top-1 %)"]
    ours, difference = rows[-2:]
    assert ours[0] == "ours: mine, its own" and ours[1] == "ViT-S/16"
    assert dict(zip(head, ours, strict=True))["knn"] == "74.9" and dict(zip(head, ours, strict=True))["im_per_s"] == ""
    assert difference[head.index("knn")] == "-0.3 (within)" and difference[head.index("linear")] == "-7.9"


@pytest.mark.parametrize(
    "probe, table, column, protocol, reason",
    [
        ("linear", "T1", "linear", {"mode": "cached"}, "mode cached, published with paper"),
        ("linear", "T1", "linear", {"epochs": 10}, "epochs 10, published with 100"),
        ("parts", "F5", "linear", {"mode": "cached"}, "mode cached"),
        ("retrieval", "T16", "ROx_M", {"scales": [1.0]}, "scales 1.0, published with 1.0 0.7071 0.5"),
        ("retrieval", "T16", "ROx_M", {"size": 224}, "size 224, published with 512"),
        ("transfer_coco", "T6a", "APb", {"config": "mask_rcnn_vits16_1x"}, "config mask_rcnn_vits16_1x"),
        ("transfer_coco", "T6a", "APb", {"config": "cascade_vits16_3x"}, "config cascade_vits16_3x"),
        ("robustness", "T8", "S_.5", {"saliency": "itself"}, "saliency itself, published with dino_vits16"),
        ("robustness", "T8", "IN-A", {"linear_head": {"mode": "trained on the spot"}}, "trained on the spot"),
        ("finetune", "T2", "acc", {"epochs": 10}, "epochs 10, published with 200"),
    ],
)
def test_a_number_by_another_protocol_stands_with_the_reason_and_no_difference(
    probe: str, table: str, column: str, protocol: dict[str, Any], reason: str
) -> None:
    """All of these were compared on 46c01a2, or could never be (COCO's records named no images)."""
    cell = cell_of(probe, table, column)
    lines = kinds(right(probe, cell, "vit_small", **protocol), cell)
    assert "difference" not in lines and reason in lines["reason"][0].method and "measured" in lines


def test_fine_tuning_with_all_labels_on_a_list_of_few_lands_in_no_table_of_whole_fine_tuning() -> None:
    record = right("finetune", cell_of("finetune", "T2", "acc"), "vit_small", share="1%")
    assert not tables.measured([record])


def test_a_number_by_the_protocol_is_not_replaced_by_a_later_one_by_another() -> None:
    cell = cell_of("linear", "T1", "linear")
    good, quick = right("linear", cell, "vit_small", 78.0), right("linear", cell, "vit_small", 70.0, mode="cached")
    for order in ([good, quick], [quick, good]):
        assert tables.measured(order)["T1_knn_linear_in1k"][1].cells == {"linear": "+0.1 (within)"}
    later = right("linear", cell, "vit_small", 77.0)
    assert tables.measured([good, later])["T1_knn_linear_in1k"][1].cells == {"linear": "-0.9"}


def test_a_record_from_before_protocols_were_stated_is_shown_and_not_compared() -> None:
    old = {
        "schema": 1,
        "probe": "knn",
        "checkpoint": {"path": "a.pth", "arch": "vit_small", "patch_size": 16},
        "data": {"val": "imagenet/val", "val_images": 50_000},
        "protocol": {},
        "metrics": {"top1": 75.0},
    }
    measured, reason = tables.measured([old])["T1_knn_linear_in1k"]
    assert measured.cells == {"knn": 75.0} and "resize is not stated" in reason.method


def test_dense_numbers_have_headlines_under_the_names_that_training_writes() -> None:
    """On 46c01a2 the page looked for bbox_mAP and upernet_mIoU, which no record has."""
    coco = right("transfer_coco", cell_of("transfer_coco", "T6a", "APb"), "vit_small", 49.0)
    ade = right("transfer_ade20k", cell_of("transfer_ade20k", "T6a", "mIoU_upernet"), "vit_small", 45.0)
    assert [card.number for card in report_records.headlines([coco, ade])] == ["49.0", "45.0"]


def test_every_published_table_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    for form in ("terminal", "markdown", "csv", "latex"):
        assert run_command(tables.main, [str(tmp_path), "--every", "--form", form]) == DONE
        assert "82.3" in capsys.readouterr().out
    assert run_command(tables.main, [str(tmp_path)]) == WRONG_COMMAND
    assert sys.modules["probes.paper.published"].tables()["T1_knn_linear_in1k"].rows[-1].cells["linear"] == 82.3
