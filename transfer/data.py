"""The data of dense tasks: COCO's and ADE20K's layouts, looked through before anything is trained."""

from pathlib import Path
from typing import Any

from checkpoints import places, reading
from checkpoints.command import UserError

COCO = {"train": ("annotations/instances_train2017.json", "train2017"), "val": ("annotations/instances_val2017.json", "val2017")}
ADE20K = {"train": "training", "val": "validation"}
PARTS = ("train_dataloader", "val_dataloader", "test_dataloader")


def check(task: str, root: Path, config: Any) -> None:
    """Raise UserError naming the first thing that is missing of a data set, and how much more is."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give --data {'COCO' if task == 'coco' else 'ADEChallengeData2016'}")
    for part in ("train", "val"):
        missing = _missing_of_coco(root, part) if task == "coco" else _missing_of_ade20k(root, part)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(f"{root} lacks {missing[0]}{more}")


def _missing_of_coco(root: Path, part: str) -> list[str]:
    annotations, folder = COCO[part]
    if not (root / annotations).is_file():
        return [annotations]
    try:
        content = reading.values(root / annotations, reading.MOST_LISTED)
        names = [image["file_name"] for image in content["images"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root / annotations} is not an annotation file of COCO ({type(error).__name__}: {error})") from error
    if not content.get("annotations"):
        raise UserError(f"{root / annotations} has no annotations")
    remote = [str(name) for name in names if "://" in str(name)]  # MMEngine would take it for an address
    if remote:
        raise UserError(f"{root / annotations} names the address {remote[0]!r}: its images are files of {root / folder}")
    cure = "fetch the annotations from where they were published"
    paths = places.listed(root / folder, map(str, names), file=root / annotations, cure=cure)
    return [f"{folder}/{path.name} (of {annotations})" for path in paths if not path.is_file()]


def _missing_of_ade20k(root: Path, part: str) -> list[str]:
    images, labels = root / "images" / ADE20K[part], root / "annotations" / ADE20K[part]
    names = sorted(path.stem for path in images.glob("*.jpg"))
    if not names:
        return [f"images/{ADE20K[part]}/*.jpg"]
    return [f"annotations/{ADE20K[part]}/{name}.png" for name in names if not (labels / f"{name}.png").is_file()]


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
