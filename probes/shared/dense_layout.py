"""Paths of COCO's and ADE20K's files, for the commands that plan with them and those that read them."""

from pathlib import Path

COCO = {"train": ("annotations/instances_train2017.json", "train2017"), "val": ("annotations/instances_val2017.json", "val2017")}
OWN = (
    "*.json", "annotations/*.json", "*/_annotations.coco.json", "Annotations/*.xml", "*/*.xml", "labels/*",
    "*/labels/*",
)  # fmt: skip
"""Annotation files of COCO, Pascal VOC and YOLO, by any name."""
ADE20K = {"train": "training", "val": "validation"}


def lacking(task: str, root: Path) -> list[str]:
    """Annotation files and folders that are not there; what is in them is not looked at.

    Of detectors' data with other names one annotation file of a kind that `transfer.train` reads is enough: it finds the rest.
    """
    published = any((root / file).exists() for file, _ in COCO.values())
    if task == "coco" and not published and any(any(root.glob(pattern)) for pattern in OWN):
        return []
    if task == "coco":
        return [name for file, folder in COCO.values() for name in (file, folder) if not (root / name).exists()]
    names = [f"{kind}/{part}" for part in ADE20K.values() for kind in ("images", "annotations")]
    return [name for name in names if not (root / name).is_dir()]
