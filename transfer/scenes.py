"""Images with label maps for a segmenter: looked through before training, and the config fitted to them."""

import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from checkpoints.cli import UserError
from probes.shared import label_files, label_maps, label_rule
from probes.shared.dense_layout import ADE20K
from probes.shared.label_rule import Rule

MORE_CLASSES = "name them in classes.txt beside images/, one a line, give --classes counted, or a config with as many"
ADE20K_NAME = "ADE_train_"
"""Beginning of the names of ADE20K's own training images."""
PARTS = ("train_dataloader", "val_dataloader", "test_dataloader")


class MapFlags(NamedTuple):
    """What the command line says of label maps."""

    background: str | None = None
    ignore: tuple[int, ...] = ()
    classes: Literal["listed", "counted"] = "listed"

    def typed(self) -> str | None:
        """The first flag that was given."""
        return next(
            (f"--{name}" for name, value, plain in zip(self._fields, self, MapFlags(), strict=True) if value != plain), None
        )


class Measures(NamedTuple):
    """Of a data set: images used by part, the median short side of the training images, and whether it is COCO or ADE20K."""

    images: dict[str, int]
    side: float | int
    published: bool


class Looked(NamedTuple):
    """Notes on the data, their part of a record's protocol, what it measures, and how labels are read."""

    lines: list[str]
    protocol: dict[str, Any]
    measures: Measures
    rule: Rule


def look_through(root: Path, config: Any, flags: MapFlags) -> Looked:
    """Look at every image and label map, and fit data sets and heads of the config to them.

    Raises UserError and WorkError naming the first that is missing or wrong, and how many more are.
    """
    pairs = {part: _pairs(root, folder) for part, folder in ADE20K.items()}
    listed = label_rule.class_list(root)
    reduced = bool(config.train_dataloader.dataset.get("reduce_zero_label", _kind_of(config) == "ADE20KDataset"))
    rule = label_rule.chosen(flags.background, flags.ignore, 0 if reduced else None, listed)
    if (rule.background == 0) != reduced:
        for name in PARTS:
            set_reduced(config[name].dataset, rule.background == 0)
        set_reduced(config.get("tta_pipeline"), rule.background == 0)
    names = None if listed is None else listed.of_classes(rule)
    if names is not None:
        _take_names(config, names)
    counted = flags.classes == "counted" and names is None
    classes = 256 if counted else num_classes(config)

    def check(path: Path, highest: int) -> None:
        label_maps.refuse_higher(path, highest, classes, rule, MORE_CLASSES)

    decoded = os.environ.get("RANK", "0") == "0"  # once is enough
    found = {ADE20K[part]: label_maps.survey(one.images, one.labels, rule, check, decoded=decoded) for part, one in pairs.items()}
    label_maps.require(found, rule, str(root))
    if counted:
        _take_names(config, tuple(str(number + rule.first) for number in range(label_maps.count(found, rule))))
        classes = num_classes(config)
    for part, one in pairs.items():
        empty = [one.images[number].name for number in found[ADE20K[part]].empty]
        _use(config, part, root, empty, len(one.images) - len(empty))
    lines = [f"{label_maps.line(folder, found[folder], classes, names)}{pairs[part].unused}" for part, folder in ADE20K.items()]
    occur = len({number for one in found.values() for number in label_maps.classes_of(one, rule)})
    more = f", {occur} occur (--classes counted gives the heads as many outputs as there are labels)" if occur < classes else ""
    lines.append(f"{label_maps.meaning(found, rule)}; the config has {classes} classes{more}")
    measures = _measures(config, pairs, found, listed is None and flags == MapFlags())
    return Looked(lines, {"classes": classes, "void_labels": rule.void}, measures, rule)


def _measures(
    config: Any, pairs: Mapping[str, label_files.Pairs], found: Mapping[str, label_maps.Survey], as_published: bool
) -> Measures:
    counts = {}
    for part in ADE20K:
        first = config[f"{part}_dataloader"].dataset.get("indices")
        there = len(pairs[part].images) - len(found[ADE20K[part]].empty)
        counts[part] = min(there, first) if isinstance(first, int) else there
    images = pairs["train"].images
    some = images[:: max(1, -(-len(images) // label_maps.LOOKED_THROUGH))]
    side = statistics.median(min(label_maps.side_lengths(path)) for path in some)
    return Measures(counts, side, as_published and images[0].name.startswith(ADE20K_NAME))


def _kind_of(config: Any) -> str:
    return str(config.train_dataloader.dataset.type).rpartition(".")[2]


def _pairs(root: Path, folder: str) -> label_files.Pairs:
    found = label_files.pairs(root / "images" / folder, root / "annotations" / folder)
    if found.missing:
        more = f" and {len(found.missing) - 1} more" if len(found.missing) > 1 else ""
        raise UserError(f"{root} lacks annotations/{folder}/{found.missing[0]}.png{more}")
    if not found.images:
        raise UserError(f"{root} lacks images/{folder}/*.jpg, or pictures of another format{found.unused}")
    return found


def num_classes(config: Any) -> int:
    """Number of classes of the predicting head: the last one, if there are several."""
    head = config.model.decode_head
    return int((head[-1] if isinstance(head, list | tuple) else head).num_classes)


def set_num_classes(part: Any, count: int) -> None:
    """Set the number of classes in every head of a part of the model, at any depth, in place."""
    if isinstance(part, dict):
        if "num_classes" in part:
            part["num_classes"] = count
        for value in part.values():
            set_num_classes(value, count)
    elif isinstance(part, list | tuple):
        for value in part:
            set_num_classes(value, count)


def palette(count: int) -> list[tuple[int, int, int]]:
    """A colour for each of so many classes, to draw with."""
    return [(23 * k % 255, 97 * k % 255, 191 * k % 255) for k in range(1, count + 1)]


def _take_names(config: Any, names: tuple[str, ...]) -> None:
    """Give data sets and heads classes of one's own."""
    for name in PARTS:
        config[name].dataset.update(type="BaseSegDataset", metainfo={"classes": names, "palette": palette(len(names))})
    set_num_classes(config.model, len(names))


def _use(config: Any, part: str, root: Path, left_out: list[str], count: int) -> None:
    """Let a part's data sets be read by `IBOTScenes` (transfer/labels.py)."""
    for name in PARTS:
        if (name == "train_dataloader") == (part == "train"):
            dataset = config[name].dataset
            kind = str(dataset.type).rpartition(".")[2]
            for key in ("data_prefix", "img_suffix", "seg_map_suffix"):
                dataset.pop(key, None)
            if isinstance(dataset.get("indices"), int) and dataset.indices > count:  # MMEngine would take them for there
                dataset.indices = None
            dataset.update(type="IBOTScenes", like=kind, data_root=str(root), part=ADE20K[part], left_out=left_out)


def set_reduced(part: Any, reduced: bool) -> None:
    """Set in a data set and its transforms whether 0 is void."""
    if isinstance(part, dict):
        if "pipeline" in part or "reduce_zero_label" in part:
            part["reduce_zero_label"] = reduced
        for value in part.values():
            set_reduced(value, reduced)
    elif isinstance(part, list | tuple):
        for value in part:
            set_reduced(value, reduced)
