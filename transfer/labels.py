"""Images and label maps of a segmenter, paired and read as `probes.segment` does. Importing this file registers both classes.

MMSegmentation's own `LoadAnnotations` takes labels modulo 256, colours and maps of another size as they come, and labels beyond
the classes end in an error of the loss that names no file; its data sets know one suffix of images and one of maps.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS, TRANSFORMS

from probes.shared import label_files, label_maps
from probes.shared.label_rule import Rule
from transfer.scenes import MORE_CLASSES


@DATASETS.register_module()
class IBOTScenes(BaseSegDataset):
    """A part of ADE20K's layout, pictures of any format, with the classes of the data set `like`."""

    def __init__(self, part: str, left_out: Sequence[str] = (), like: str = "BaseSegDataset", **settings: Any) -> None:
        self.part, self.left_out, self.like = part, frozenset(left_out), DATASETS.get(like)
        super().__init__(**settings)

    def _load_metainfo(self, metainfo: Any = None) -> Any:  # type: ignore[override, unused-ignore]
        return self.like._load_metainfo(metainfo)

    def get_label_map(self, new_classes: Any = None) -> Any:  # type: ignore[override, unused-ignore]
        return self.like.get_label_map(new_classes)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry for each image that has a label."""
        root = Path(self.data_root)
        found = label_files.pairs(root / "images" / self.part, root / "annotations" / self.part)
        about = {"label_map": self.label_map, "reduce_zero_label": self.reduce_zero_label}
        return [
            {"img_path": str(image), "seg_map_path": str(labels), "seg_fields": [], **about}
            for image, labels in zip(found.images, found.labels, strict=True)
            if image.name not in self.left_out
        ]


@TRANSFORMS.register_module()
class IBOTLabels(LoadAnnotations):
    """`LoadAnnotations` with checks: classes from 0, 255 where there is none."""

    def __init__(
        self, classes: int, background: int | None, ignore: Sequence[int], colours: Sequence[Sequence[int]] = (), **settings: Any
    ) -> None:
        settings.pop("reduce_zero_label", None)  # the rule says it
        super().__init__(**settings)
        self.classes = classes
        self.rule = Rule(background, tuple(ignore), tuple((red, green, blue) for red, green, blue in colours))

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        """Raises UserError or WorkError naming a map that cannot be used."""
        path = Path(results["seg_map_path"])
        values = label_maps.read(path, self.rule.colours)
        if "ori_shape" in results:
            height, width = results["ori_shape"][:2]
            label_maps.same_size(path, values.shape[::-1], Path(results["img_path"]), (width, height))
        labels = label_maps.numbered(values, self.rule)
        highest = int(labels[labels != label_maps.NOTHING].max(initial=0)) + self.rule.first
        label_maps.refuse_higher(path, highest, self.classes, self.rule, MORE_CLASSES)
        before = labels.copy()
        for old, new in (results.get("label_map") or {}).items():  # classes that the config leaves out
            labels[before == old] = new
        results["gt_seg_map"] = labels
        results["seg_fields"].append("gt_seg_map")


def set_labels(config: Any, classes: int, rule: Rule) -> None:
    """Put it in the place of every `LoadAnnotations` of a config, however deep, in place."""
    if isinstance(config, dict | Config):
        if str(config.get("type")).rpartition(".")[2] == "LoadAnnotations":
            config["type"], config["classes"] = "IBOTLabels", classes
            config["background"], config["ignore"] = rule.background, list(rule.ignore)
            config["colours"] = [list(colour) for colour in rule.colours]
        for value in config.values():
            set_labels(value, classes, rule)
    elif isinstance(config, list | tuple):
        for value in config:
            set_labels(value, classes, rule)
