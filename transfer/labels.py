"""Label maps of a segmenter, read as `probes.segment` reads them. Importing this file registers `IBOTLabels`.

MMSegmentation's own `LoadAnnotations` takes labels modulo 256, colours and maps of another size as they come, and labels beyond
the classes end in an error of the loss that names no file.
"""

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS

from probes.shared import label_maps
from transfer import data


@TRANSFORMS.register_module()
class IBOTLabels(LoadAnnotations):
    """`LoadAnnotations` with checks: classes from 0, 255 where there is none."""

    def __init__(self, classes: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.classes = classes

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        """Raises UserError or WorkError naming a map that cannot be used."""
        path = Path(results["seg_map_path"])
        values = label_maps.read(path)
        if "ori_shape" in results:
            height, width = results["ori_shape"][:2]
            label_maps.same_size(path, values.shape[::-1], Path(results["img_path"]), (width, height))
        if self.reduce_zero_label is None:  # type: ignore[has-type]
            self.reduce_zero_label = results["reduce_zero_label"]
        zero: label_maps.Zero = "void" if self.reduce_zero_label else "class"
        highest = int(values[values != label_maps.NOTHING].max(initial=0))
        label_maps.refuse_higher(path, highest, self.classes, zero, data.MORE_CLASSES)
        labels = label_maps.numbered(values, zero)
        before = labels.copy()
        for old, new in (results.get("label_map") or {}).items():  # classes that the config leaves out
            labels[before == old] = new
        results["gt_seg_map"] = labels
        results["seg_fields"].append("gt_seg_map")


def set_labels(config: Any, classes: int) -> None:
    """Put it in the place of every `LoadAnnotations` of a config, however deep, in place."""
    if isinstance(config, dict | Config):
        if str(config.get("type")).rpartition(".")[2] == "LoadAnnotations":
            config["type"], config["classes"] = "IBOTLabels", classes
        for value in config.values():
            set_labels(value, classes)
    elif isinstance(config, list | tuple):
        for value in config:
            set_labels(value, classes)
