"""Paths of COCO's and ADE20K's files, for the commands that plan with them and those that read them."""

from pathlib import Path

COCO = {"train": ("annotations/instances_train2017.json", "train2017"), "val": ("annotations/instances_val2017.json", "val2017")}
OWN = (
    "*.json", "annotations/*.json", "*/_annotations.coco.json", "Annotations/*.xml", "*/*.xml", "labels/*",
    "*/labels/*",
)  # fmt: skip
"""Annotation files of COCO, Pascal VOC and YOLO, by any name."""
ADE20K = {"train": "training", "val": "validation"}


def own_boxes(root: Path) -> bool:
    """Whether no annotation file has COCO's own name, and one has another that `transfer.train` looks for; it finds the rest."""
    published = any((root / file).exists() for file, _ in COCO.values())
    return not published and any(any(root.glob(pattern)) for pattern in OWN)


def lacking(task: str, root: Path) -> list[str]:
    """Annotation files and folders of COCO or ADE20K that are not there; what is in them is not looked at."""
    if task == "coco":
        return [name for file, folder in COCO.values() for name in (file, folder) if not (root / name).exists()]
    names = [f"{kind}/{part}" for part in ADE20K.values() for kind in ("images", "annotations")]
    return [name for name in names if not (root / name).is_dir()]
