"""Sizes of images, crops and windows in a config, all scaled by one factor: for images smaller than a recipe's, or by --size."""

from typing import Any

from checkpoints.cli import UserError
from transfer.scenes import PARTS

SIZES = {
    "Resize": ("scale",),
    "RandomResize": ("scale",),
    "RandomChoiceResize": ("scales",),
    "RandomCrop": ("crop_size",),
    "ResizeNotUnder": ("scale", "least"),
}
"""Transforms of both toolboxes and their sizes in pixels."""
STEP, LEAST = 32, 64
"""A short side that follows from the images is a multiple of one, and no less than the other."""


def short_side(config: Any) -> int | None:
    """The short side to which a config resizes test images; None where it does not."""
    for one in config.test_dataloader.dataset.get("pipeline", ()):
        if one.get("type") == "Resize" and isinstance(one.get("scale"), list | tuple):
            return int(min(one["scale"]))
    return None


def for_images(config: Any, median: float | int) -> int | None:
    """The short side for images of that median short side; None where it is not under the config's."""
    side = max(LEAST, STEP * round(median / STEP))
    usual = short_side(config)
    return side if usual is not None and side < usual else None


def set_side(config: Any, side: int) -> None:
    """Scale every size of a config, in place, so that the short side of test images is `side`; its grid of positions follows.

    Raises UserError where it resizes to no size.
    """
    usual = short_side(config)
    if usual is None:
        raise UserError("--size: the config's test pipeline resizes to no size: give sizes by --cfg-options or in the config")
    factor = side / usual
    for name in PARTS:
        if "pipeline" in config[name].dataset:
            config[name].dataset.pipeline = _scaled(config[name].dataset.pipeline, factor)
    if config.get("tta_pipeline"):
        config.tta_pipeline = _scaled(config.tta_pipeline, factor)
    model = config.model
    for part, names in (("data_preprocessor", ("size",)), ("test_cfg", ("crop_size", "stride"))):
        settings = model.get(part) or {}
        for name in names:
            if isinstance(settings.get(name), list | tuple | int):
                settings[name] = _times(settings[name], factor)
    grid = model.backbone.get("grid")
    if grid is not None:
        model.backbone.grid = tuple(max(1, round(count * factor)) for count in grid)


def _scaled(part: Any, factor: float) -> Any:
    """A copy of a part of a pipeline with other sizes; some transforms stand in a config twice."""
    if isinstance(part, dict):
        names = SIZES.get(str(part.get("type")), ())
        return type(part)(
            {name: _times(value, factor) if name in names and value else _scaled(value, factor) for name, value in part.items()}
        )
    return type(part)(_scaled(one, factor) for one in part) if isinstance(part, list | tuple) else part


def _times(size: Any, factor: float) -> Any:
    if isinstance(size, list | tuple):
        return type(size)(_times(one, factor) for one in size)
    return max(1, round(size * factor))
