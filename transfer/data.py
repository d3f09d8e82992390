"""The data of dense tasks: COCO's and ADE20K's layouts, looked through before anything is trained."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints import places, reading, store
from checkpoints.cli import UserError
from probes.shared import label_maps
from probes.shared.dense_layout import ADE20K, COCO
from probes.shared.label_maps import Zero
from transfer import annotations as json_of_coco
from transfer import coco_layout
from transfer.coco_boxes import without_masks
from transfer.coco_layout import Given

MORE_CLASSES = "name them in classes.txt beside images/, one a line, or give a config with as many"
PARTS = ("train_dataloader", "val_dataloader", "test_dataloader")


class Found(NamedTuple):
    """Notes on a data set, and its part of a record's protocol."""

    lines: list[str]
    protocol: dict[str, Any]


def _refuse_missing(root: Path, missing: Sequence[str]) -> None:
    """Raise UserError naming the first thing that is missing of a data set, and how much more is."""
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{root} lacks {missing[0]}{more}")


def _missing_of_ade20k(root: Path, part: str) -> list[str]:
    images, labels = root / "images" / ADE20K[part], root / "annotations" / ADE20K[part]
    names, unused = label_maps.images_of(images)
    if not names:
        return [f"images/{ADE20K[part]}/*.jpg{unused}"]
    return [f"annotations/{ADE20K[part]}/{path.stem}.png" for path in names if not (labels / f"{path.stem}.png").is_file()]


def look_through(task: str, root: Path, config: Any, out: Path, *, zero: Zero | None = None, given: Given | None = None) -> Found:
    """Look whether a data set is whole, then at its annotations, and fit the config to them.

    Raises UserError naming the first thing that is missing, WorkError and UserError naming the first that is wrong. `out` takes
    completed annotation files. COCO: all annotations are read, and some hundred images' sizes; ADE20K: some hundred label maps of
    each part, the others when they are trained on.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give --data {'COCO' if task == 'coco' else 'ADEChallengeData2016'}")
    if task == "ade20k":
        for part in ADE20K:
            _refuse_missing(root, _missing_of_ade20k(root, part))
        return _look_through_ade20k(root, config, zero)
    if zero is not None:
        raise UserError("--zero is for ade20k: it says what 0 means in label maps")
    return _look_through_coco(root, config, out, given or Given())


def same_as_before(out: Path, protocol: dict[str, Any], *, write: bool) -> None:
    """Keep what labels mean in the run's folder. Raises UserError where a run that is continued had another meaning."""
    file = places.below(out, "labels.json")
    try:
        before = reading.values(file)
    except (OSError, ValueError, RecursionError):  # a new run, one from before this was kept, or half a file
        before = None
    if isinstance(before, dict) and before != protocol:
        meant = ", ".join(
            f"{name} {str(before.get(name))[:80]} then, {protocol.get(name)} now" for name in before.keys() | protocol.keys()
        )
        raise UserError(f"{out} was trained with other labels ({meant}): give the same --zero and classes, or another --out")
    if before is None and write:
        store.write_bytes(file, json.dumps(protocol).encode())


def _look_through_coco(root: Path, config: Any, out: Path, given: Given) -> Found:
    parts = coco_layout.find(root, given)
    masks = not given.boxes_only and all(json_of_coco.has_masks(part.content) for part in parts.values())
    found = {}
    for name, part in parts.items():
        found[name] = (part.file, json_of_coco.read(part.file, part.content, masks=masks))
        json_of_coco.check_sizes(part.file, part.images, found[name][1].content, label_maps.LOOKED_THROUGH)
    json_of_coco.same_classes(found["train"], found["val"])
    lines = [f"{name}: {file.name}: {'; '.join(one.notes)}" for name, (file, one) in found.items()]
    names = _take_classes(config, list(found["train"][1].classes.values()))
    if names is not None:
        lines.append(f"classes of the annotations, not the config's: {len(names)} ({', '.join(names)[:200]})")
    for name, (_, one) in found.items():
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
    return Found(lines, protocol)


def _take_classes(config: Any, names: list[str]) -> list[str] | None:
    """Put the data's classes into config and heads where it lacks some of the config's. None where nothing changes."""
    dataset = config.train_dataloader.dataset
    wanted = list(dataset.get("metainfo", {}).get("classes", ())) or list(coco_classes())
    if set(wanted) <= set(names):
        return None
    for part in PARTS:
        config[part].dataset.metainfo = {"classes": tuple(names)}
    _set_num_classes({name: part for name, part in config.model.items() if name != "rpn_head"}, len(names))
    return names


def coco_classes() -> tuple[str, ...]:
    """The 80 names that MMDetection takes where a config has none."""
    from mmdet.datasets import CocoDataset  # noqa: PLC0415 (a heavy import, and an optional one)

    return tuple(CocoDataset.METAINFO["classes"])


def _set_num_classes(part: Any, count: int) -> None:
    """Set the number of classes in every head of a part of the model, at any depth, in place."""
    if isinstance(part, dict):
        if "num_classes" in part:
            part["num_classes"] = count
        for value in part.values():
            _set_num_classes(value, count)
    elif isinstance(part, list | tuple):
        for value in part:
            _set_num_classes(value, count)


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


def _look_through_ade20k(root: Path, config: Any, zero: Zero | None) -> Found:
    dataset = config.train_dataloader.dataset
    reduced = dataset.get("reduce_zero_label", str(dataset.type).rpartition(".")[2] == "ADE20KDataset")
    if zero is not None and (zero == "void") != reduced:
        reduced = zero == "void"
        for name in PARTS:
            set_reduced(config[name].dataset, reduced)
        set_reduced(config.get("tta_pipeline"), reduced)
    zero = "void" if reduced else "class"
    names = label_maps.class_names(root)
    if names is not None:
        _take_names(config, names, reduced)
    classes = num_classes(config)
    found, lines = {}, [] if names is None else [f"classes of the data, not the config's: {classes} ({', '.join(names)[:200]})"]
    for folder in ADE20K.values():
        images, unused = label_maps.images_of(root / "images" / folder)
        labels = [root / "annotations" / folder / f"{path.stem}.png" for path in images]
        found[folder] = label_maps.survey(images, labels, label_maps.LOOKED_THROUGH, _refuse_higher_of(classes, zero))
        lines += [f"images/{folder}: {len(images)} images{unused}"] if unused else []
    if all(one.maps == one.of for one in found.values()):
        label_maps.require(found, zero, str(root))
    lines.append(f"{label_maps.meaning(found, zero)}; the config has {classes} classes")
    return Found(lines, {"classes": classes, "void_labels": label_maps.void(zero)})


def num_classes(config: Any) -> int:
    """Number of classes of the predicting head: the last one, if there are several."""
    head = config.model.decode_head
    return int((head[-1] if isinstance(head, list | tuple) else head).num_classes)


def _take_names(config: Any, names: tuple[str, ...], reduced: bool) -> None:
    """Give data sets and heads classes of one's own; MMSegmentation's ADE20KDataset takes none but its own."""
    for name in PARTS:
        dataset = config[name].dataset
        palette = [[23 * k % 255, 97 * k % 255, 191 * k % 255] for k in range(len(names))]
        dataset.update(type="BaseSegDataset", metainfo={"classes": names, "palette": palette})
        dataset.update(img_suffix=".jpg", seg_map_suffix=".png", reduce_zero_label=reduced)
    _set_num_classes(config.model, len(names))


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


def _refuse_higher_of(classes: int, zero: Zero) -> Callable[[Path, int], None]:
    return lambda path, highest: label_maps.refuse_higher(path, highest, classes, zero, MORE_CLASSES)


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
