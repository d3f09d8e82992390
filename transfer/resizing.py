"""The sizes of pictures where a segmenter is tested at several scales. Importing this file registers `ResizeNotUnder`."""

from collections.abc import Sequence
from typing import Any

from mmseg.datasets.transforms import Resize
from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ResizeNotUnder(Resize):
    """Resizes to the largest size within `scale` (its sides in any order) with no side under `least` pixels; keeps proportions.

    The original tests within (2048, 512) times each ratio with `least` 512: windows are never larger than the picture, and
    its ratios of at most 1 are one size.
    """

    def __init__(self, scale: Sequence[float | int], least: int) -> None:
        super().__init__(scale=(1, 1))
        self.within, self.least = (max(scale), min(scale)), least

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results["img"].shape[:2]
        long, short = max(height, width), min(height, width)
        factor = max(min(self.within[0] / long, self.within[1] / short), self.least / short)
        self.scale = (int(width * factor + 0.5), int(height * factor + 0.5))  # rounded as in mmcv
        return super().transform(results)
