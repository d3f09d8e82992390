"""The data of dense tasks: COCO's and ADE20K's layouts, looked through before anything is trained."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints import places, reading, store
from checkpoints.cli import UserError
from probes.shared import label_maps
from probes.shared.dense_layout import COCO
from probes.shared.label_rule import Rule
from transfer import annotations as json_of_coco
from transfer import coco_layout, scenes
from transfer.coco_boxes import without_masks
from transfer.coco_layout import Given
from transfer.coco_used import used
from transfer.scenes import PARTS, MapFlags, Measures

UNTYPED = MapFlags()


class Found(NamedTuple):
    """Notes on a data set, its part of a record's protocol, what it measures, and how label maps are read, where it has some."""

    lines: list[str]
    protocol: dict[str, Any]
    measures: Measures
    rule: Rule = Rule()


def _refuse_missing(root: Path, missing: Sequence[str]) -> None:
    """Raise UserError naming the first thing that is missing of a data set, and how much more is."""
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{root} lacks {missing[0]}{more}")


def look_through(task: str, root: Path, config: Any, out: Path, *, maps: MapFlags = UNTYPED, given: Given | None = None) -> Found:
    """Look whether a data set is whole, then at its annotations, and fit the config to them.

    Raises UserError naming the first thing that is missing, WorkError and UserError naming the first that is wrong. `out` takes
    completed annotation files. COCO: all annotations are read, and some hundred images' sizes; ADE20K: all images
    and label maps.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give --data {'COCO' if task == 'coco' else 'ADEChallengeData2016'}")
    if task == "ade20k":
        return Found(*scenes.look_through(root, config, maps))
    return _look_through_coco(root, config, out, given or Given())


LABELS = "--background, --ignore and classes"
SCHEDULE = "--epochs or --iters, and --size"


def same_as_before(out: Path, protocol: dict[str, Any], *, write: bool, what: str = "labels", flags: str = LABELS) -> None:
    """Keep what labels mean, or a schedule, in the run's folder. Raises UserError where a run that is continued had another."""
    file = places.below(out, f"{what}.json")
    try:
        before = reading.values(file)
    except (OSError, ValueError, RecursionError):  # a new run, one from before this was kept, or half a file
        before = None
    if isinstance(before, dict) and before != protocol:
        changed = sorted(name for name in before.keys() | protocol.keys() if before.get(name) != protocol.get(name))
        meant = ", ".join(f"{name} {str(before.get(name))[:80]} then, {protocol.get(name)} now" for name in changed)
        raise UserError(
            f"{out} was trained with {'another' if what == 'schedule' else 'other'} {what} ({meant}): "
            f"give the same {flags}, or another --out"
        )
    if before is None and write:
        store.write_bytes(file, json.dumps(protocol).encode())


def _look_through_coco(root: Path, config: Any, out: Path, given: Given) -> Found:
    parts = coco_layout.find(root, given)
    masks = not given.boxes_only and all(json_of_coco.has_masks(part.content) for part in parts.values())
    found = {}
    for name, part in parts.items():
        found[name] = (part.file, json_of_coco.read(part.file, part.content, masks=masks))
        seen = json_of_coco.check_images(part.file, part.images, found[name][1].content, label_maps.LOOKED_THROUGH)
        found[name][1].notes.extend(seen)
    json_of_coco.same_classes(found["train"], found["val"])
    lines = [f"{name}: {file.name}: {'; '.join(one.notes)}" for name, (file, one) in found.items()]
    names = _take_classes(config, list(found["train"][1].classes.values()))
    if names is not None:
        lines.append(f"classes of the annotations, not the config's: {len(names)} ({', '.join(names)[:200]})")
    wanted = list(config.train_dataloader.dataset.get("metainfo", {}).get("classes", ())) or list(coco_classes())
    taken = dict[str, int]()
    for name, (_, one) in found.items():
        notes, images = used(name, config[f"{name}_dataloader"].dataset, one.content, wanted)
        lines, taken[name] = lines + notes, len(images)
        if name == "train":
            sides = [min(image["width"], image["height"]) for image in images]
        if one.changed or not parts[name].published(root, name):
            _use(config, name, _written(out, name, one.content), parts[name].images)
    protocol: dict[str, Any] = {"classes": len(config.train_dataloader.dataset.get("metainfo", {}).get("classes", ())) or 80}
    if not masks:
        without_masks(config)
        lines.append("boxes without masks: the detector learns boxes alone, without its mask head")
        protocol["heads"] = "boxes"
    if given.val_percent is not None:
        lines.append(
            f"{given.val_percent:g} % of the images are held out to test, by their names and --val-seed {given.val_seed}"
        )
        protocol |= {"val_percent": given.val_percent, "val_seed": given.val_seed}
    if both := _in_both(parts):
        lines.append(f"{both} of the test images are training images too: what is measured is no test of new images")
        protocol["val_in_train"] = both
    published = names is None and all(part.published(root, name) for name, part in parts.items())
    return Found(lines, protocol, Measures(taken, statistics.median(sides), published and len(wanted) == len(coco_classes())))


def _in_both(parts: Mapping[str, coco_layout.Part]) -> int:
    """How many files both parts list, links resolved."""
    files = {
        name: {(one.images / image["file_name"]).resolve() for image in one.content["images"]} for name, one in parts.items()
    }
    return len(files["train"] & files["val"])


def _take_classes(config: Any, names: list[str]) -> list[str] | None:
    """Put the data's classes into config and heads where it lacks some of the config's. None where nothing changes."""
    dataset = config.train_dataloader.dataset
    wanted = list(dataset.get("metainfo", {}).get("classes", ())) or list(coco_classes())
    if set(wanted) <= set(names):
        ordered = [name for name in names if name in set(wanted)]
        if ordered != wanted:  # the toolbox numbers classes in the order of the file
            _name_classes(config, ordered)
        return None
    _name_classes(config, names)
    scenes.set_num_classes({name: part for name, part in config.model.items() if name != "rpn_head"}, len(names))
    return names


def _name_classes(config: Any, names: list[str]) -> None:
    for part in PARTS:
        config[part].dataset.metainfo = {"classes": tuple(names), "palette": scenes.palette(len(names))}


def coco_classes() -> tuple[str, ...]:
    """The 80 names that MMDetection takes where a config has none."""
    from mmdet.datasets import CocoDataset  # noqa: PLC0415 (a heavy import, and an optional one)

    return tuple(CocoDataset.METAINFO["classes"])


def _written(out: Path, part: str, content: dict[str, Any]) -> Path:
    """A completed annotation file in the run's folder, one for each process: none waits for another."""
    path = places.below(out, "annotations", f"instances_{part}2017-{os.environ.get('RANK', '0')}.json")
    store.write_bytes(path, json.dumps(content).encode())
    return path.absolute()


def _use(config: Any, part: str, file: Path, images: Path) -> None:
    for name in PARTS:
        if (name == "train_dataloader") == (part == "train"):
            config[name].dataset.ann_file = str(file)
            config[name].dataset.data_prefix = {"img": f"{images.absolute()}/"}
    if part == "val":
        for name in ("val_evaluator", "test_evaluator"):
            config[name].ann_file = str(file)


def set_root(config: Any, root: Path) -> None:
    """Point the config's three parts and its evaluators to a data set."""
    for name in PARTS:
        dataset = config[name].dataset
        dataset.data_root = str(root)
        if "ann_file" in dataset and dataset.ann_file:
            dataset.ann_file = COCO["train" if name == "train_dataloader" else "val"][0]
            dataset.data_prefix = {"img": COCO["train" if name == "train_dataloader" else "val"][1] + "/"}
    for name in ("val_evaluator", "test_evaluator"):
        if "ann_file" in config[name]:
            config[name].ann_file = str(root / COCO["val"][0])
