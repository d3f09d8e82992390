"""What an image processor of Hugging Face does to an image, by the numbers in `preprocessor_config.json`."""

from collections.abc import Mapping
from math import isclose
from pathlib import Path
from typing import Any

from checkpoints import checked, reading
from checkpoints.architecture import MEAN, STD
from checkpoints.cli import UserError
from pretrain.models.measured import Preprocessing

FILE, OTHER = "preprocessor_config.json", "processor_config.json"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers of filters."""
MOST = 2**13
_SQUARE, _SHORT = {"height": 224, "width": 224}, {"shortest_edge": 224}
USUAL: dict[str, dict[str, Any]] = {
    "ViT": {"resample": 2, "image_mean": HALF, "image_std": HALF, "size": _SQUARE},
    "Siglip": {"resample": 3, "image_mean": HALF, "image_std": HALF, "size": _SQUARE},
    "DINOv3ViT": {"resample": 2, "image_mean": MEAN, "image_std": STD, "size": _SQUARE},
    "Beit": {"resample": 3, "image_mean": HALF, "image_std": HALF, "size": _SQUARE, "crop_size": _SQUARE},
    "DeiT": {
        "resample": 3,
        "image_mean": HALF,
        "image_std": HALF,
        "size": {"height": 256, "width": 256},
        "crop_size": _SQUARE,
        "do_center_crop": True,
    },
    "CLIP": {
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "size": _SHORT,
        "crop_size": _SQUARE,
        "do_center_crop": True,
    },
    "ConvNext": {"resample": 3, "image_mean": HALF, "image_std": HALF, "size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
}
"""Numbers that a processor's class has where its file is silent, by the class's name."""
USUAL["Bit"] = USUAL["CLIP"]
SHORTEST = ("CLIP", "Bit", "ConvNext")
"""Classes for which one number is the shorter side; of the others it is both."""


def preprocessing(folder: Path) -> Preprocessing:
    """Raises UserError for a folder without a processor's file, and for one of another kind or with other numbers."""
    path = folder / FILE if (folder / FILE).is_file() else folder / OTHER
    try:
        values: Any = reading.values(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} has no readable {FILE}, which says how images are normalised: take its copy too") from error
    if isinstance(values, dict) and isinstance(values.get("image_processor"), dict):
        values = values["image_processor"]
    return of_values(checked.mapping(values, str(path)), str(path))


def of_values(values: Mapping[str, Any], where: str) -> Preprocessing:
    """See `preprocessing`. `where` is for messages."""
    said = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    kind = said.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if kind not in USUAL:
        raise UserError(f"{where}: image processors of type {said[:80] or 'none'} are not known here: {', '.join(USUAL)}")
    found = USUAL[kind] | {name: value for name, value in values.items() if value is not None}
    if found.get("do_rescale", True) is not True or not isclose(found.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-3):
        raise UserError(f"{where}: it does not scale images to 0..1, which is not known here")
    mean, std = (tuple(checked.colours(tuple(found[name]), f"{where}: {name}", 3, least)) for name, least in LEAST.items())
    if found.get("do_normalize", True) is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    filter_ = found["resample"]
    interpolation: Any = RESAMPLE.get(filter_) if isinstance(filter_, int) else str(filter_).lower()
    checked.one_of(interpolation, f"{where}: resample", tuple(RESAMPLE.values()))
    resize, squash = _size(found["size"], f"{where}: size", short=kind in SHORTEST)
    if kind == "ConvNext":
        share = checked.number(found["crop_pct"], f"{where}: crop_pct", 0.05, 1)
        small = resize < 384
        return Preprocessing(mean, std, resize, int(resize / share) if small else resize, interpolation, not small)
    crop = resize
    if found.get("do_center_crop") is True:
        crop, _ = _size(found.get("crop_size", resize), f"{where}: crop_size", short=False)
    return Preprocessing(mean, std, crop, max(resize, crop), interpolation, squash)


LEAST = {"image_mean": -1e6, "image_std": 1e-6}


def _size(value: Any, where: str, *, short: bool) -> tuple[int, bool]:
    """Pixels of a side, and whether it is that of both sides."""
    if isinstance(value, dict) and "shortest_edge" in value:
        return checked.count(value["shortest_edge"], where, 1, MOST), False
    if isinstance(value, dict) and "height" in value:
        height, width = (checked.count(value.get(name), where, 1, MOST) for name in ("height", "width"))
        if height != width:
            raise UserError(f"{where}: images of {height} x {width} are no squares, which is not known here")
        return height, True
    return checked.count(value, where, 1, MOST), not short
