"""Detectors that learn boxes alone: a config's mask head is taken out where the data has no masks."""

from typing import Any


def without_masks(config: Any) -> None:
    """Take the mask head, its loading and its test out of a config, in place.

    Mask R-CNN becomes Faster R-CNN, Cascade Mask R-CNN becomes Cascade R-CNN.
    """
    heads = config.model.get("roi_head", {})
    for name in ("mask_head", "mask_roi_extractor"):
        heads.pop(name, None)
    _load_none(config)
    for name in ("val_evaluator", "test_evaluator"):
        config[name].metric = "bbox"


def _load_none(part: Any) -> None:
    if hasattr(part, "items"):
        if "with_mask" in part:
            part["with_mask"] = False
        for _, value in part.items():
            _load_none(value)
    elif isinstance(part, list | tuple):
        for value in part:
            _load_none(value)
