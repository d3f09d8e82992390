"""The page of a dense transfer: its numbers, predictions beside the truth, classes, confusion."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from checkpoints.escape import html as escape
from pretrain.images.formats import open_picture, read_file
from probes.report import confusion, page
from probes.report.page import Card, Row, Section
from transfer.results.by_class import Table

WIDEST = 900
"""Pixels of an embedded picture."""
NAMES = {
    "box_ap": "detection, box AP",
    "mask_ap": "detection, mask AP",
    "miou": "segmentation, mIoU %",
    "macc": "mean accuracy of classes, %",
    "aacc": "accuracy of pixels, %",
    "miou_ms": "mIoU % at several scales",
}


class Results(NamedTuple):
    """What a test has left."""

    task: str
    name: str
    """Of the run."""
    numbers: Mapping[str, float]
    about: Mapping[str, Any]
    """Data and protocol, as in the record."""
    pictures: Sequence[tuple[str, Path]]
    """Test images by name, and files of the truth beside the predictions."""
    classes: Table
    counts: np.ndarray | None
    """Confusion of pixels."""


def written(results: Results) -> str:
    """The page, which asks no network for anything."""
    cards = [
        Card(NAMES[name], f"{value:.1f}", "", ["on the test images"]) for name, value in results.numbers.items() if name in NAMES
    ]
    facts = page.facts((name, _short(value)) for name, value in results.about.items())
    sections = [Section("results", "Results", page.cards(cards)), Section("protocol", "Data and protocol", facts)]
    if results.pictures:
        lead = page.paragraph("Ground truth on the left, predictions on the right.", "soft")
        body = "".join(_figure(name, path) for name, path in results.pictures)
        sections.append(Section("pictures", "Predictions", f'{lead}<div class="pairs">{body}</div>'))
    if len(results.classes) > 1:
        head, *rows = results.classes
        sections.append(
            Section("classes", "Results by class", page.table("Test images by class", head, [Row(row) for row in rows]))
        )
    if results.counts is not None:
        names = [row[0] for row in results.classes[1:]]
        title = f"{results.counts.sum():,} pixels with a class"
        sections.append(Section("confusion", "Confusion matrix", confusion.of_counts(results.counts, names, title, "pixels")))
    kind = {"coco": "Detection", "ade20k": "Segmentation"}[results.task]
    foot = page.written_by("transfer.train")
    return page.document(f"{kind}: {results.name}", f"{len(results.classes) - 1} classes", sections, foot)


def _figure(name: str, path: Path) -> str:
    image = open_picture(read_file(path)).convert("RGB")
    image.thumbnail((WIDEST, WIDEST), Image.Resampling.BICUBIC)
    picture = page.picture(image, f"{name}: the truth and the predictions")
    return f"<figure>{picture}<figcaption>{escape(name)}</figcaption></figure>"


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
