"""Limits of what a run's `model.json` may ask for: it may be anyone's file, and a layer of 10^9 is refused before it is made.

Numbers first, then memory: while the model is built, no more of it may be asked for than the run's own weights need.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoints import checked
from checkpoints.cli import UserError
from transfer import trained

MOST = 2**16
"""Largest whole number in a model: layers, channels, boxes."""
MOST_PIXELS = 2**13
"""Largest whole number where images are resized and padded."""
MOST_CELLS = 2**8
"""Side of what is cut out for a box."""
READERS = ("LoadImageFromFile", "IBOTImage")
"""Steps that read an image."""
MOST_TOKENS = 2**17
"""Positions of a grid."""
LARGEST = 1e10
"""Largest other number: some parts write "without a limit" so."""
MOST_LABEL = 254
"""Of label maps: a byte holds it, and 255 is void."""
SPARE, TIMES, LEAST = 2**28, 16, 2**12
"""Bytes that building may ask for: SPARE and TIMES those of the weights, each tensor counted as LEAST at least."""


def check(about: trained.Trained, file: Any) -> None:
    """Raise UserError for a number beyond the limits, an entry of another kind, or classes that are not the heads'."""
    parts = {name: part for name, part in about.model.items() if name != "data_preprocessor"}
    pixels = {"data_preprocessor": about.model.get("data_preprocessor"), "pipeline": about.pipeline}
    for part, most in ((parts, MOST), (pixels, MOST_PIXELS)):
        for name, value in numbers(part):
            if isinstance(value, int):
                checked.count(value, f"{file}: {name}", -most, most)
            checked.number(value, f"{file}: {name}", -LARGEST, LARGEST)
    backbone = checked.mapping(about.model["backbone"], f"{file}: backbone", ("type",))
    grid = backbone.get("grid")
    if grid is not None:
        sides = [checked.count(side, f"{file}: grid", 1, MOST_TOKENS) for side in checked.listed(grid, f"{file}: grid")]
        if len(sides) != 2 or math.prod(sides) > MOST_TOKENS:
            checked.refuse(f"{file}: grid", " x ".join(map(str, sides)), f"two numbers with a product to {MOST_TOKENS}")
    check_steps(about.pipeline, f"{file}: pipeline")
    check_colours(about, f"{file}: data_preprocessor")
    for name, value in numbers(parts):
        if name == "output_size":
            checked.count(value, f"{file}: {name}", 1, MOST_CELLS)
    for head in (part for name, part in about.model.items() if name != "rpn_head"):
        for name, value in numbers(head):
            if name == "num_classes" and value != len(about.classes):
                checked.refuse(f"{file}: classes", f"a list of {len(about.classes)}", f"one of {value}, as the heads have them")
    if about.task == "ade20k":
        for one in about.ids:
            checked.count(one, f"{file}: ids", 0, MOST_LABEL)


def check_steps(steps: list[Any], where: str) -> None:
    """Raise UserError where the steps do not begin with an image's bytes and end with a packed sample."""
    found = [checked.mapping(step, where, ("type",)) for step in steps]
    kinds = [str(step["type"]) for step in found]
    if not found or kinds[0] not in READERS or not kinds[-1].startswith("Pack"):
        checked.refuse(where, ", ".join(kinds)[:200] or "empty", "steps from reading an image to packing it")
    if (decoder := found[0].get("imdecode_backend")) is not None:
        checked.one_of(decoder, f"{where}: imdecode_backend", ("cv2", "pillow"))


def check_colours(about: trained.Trained, where: str) -> None:
    """Raise UserError for means and deviations with which no image could be normalised."""
    settings = checked.mapping(about.model.get("data_preprocessor") or {}, where)
    if settings.get("mean") is not None or settings.get("std") is not None:
        checked.colours(settings.get("mean"), f"{where}: mean", 3, -1e6)
        checked.colours(settings.get("std"), f"{where}: std", 3, 1e-6)


def numbers(part: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers in a part of a config, each with the name that it stands under."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            yield from numbers(value, key)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from numbers(value, name)
    elif isinstance(part, (int, float)) and not isinstance(part, bool):
        yield name, part


class Frugal(TorchDispatchMode):
    """While it is entered, tensors of so many bytes in all may be made. Raises UserError before the first that is beyond."""

    MAKERS = ("empty", "zeros", "ones", "full", "arange", "randn", "rand", "linspace", "eye")

    def __init__(self, weights: Mapping[str, Any], file: Any) -> None:
        super().__init__()
        self.file = file
        self.left = SPARE + TIMES * sum(one.numel() * one.element_size() for one in weights.values() if isinstance(one, Tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name.partition("_")[0] in self.MAKERS or name in ("new_empty", "new_zeros", "repeat", "eye"):
            self.left -= max(LEAST, 4 * _count(args))
            if self.left < 0:
                raise UserError(f"{self.file} asks for a model far larger than the run's weights: {checked.CURE}")
        return func(*args, **(kwargs or {}))


def _count(args: Any) -> int:
    """Numbers that a call with these arguments makes, at most."""
    sizes = [one for one in args if isinstance(one, (list, tuple, torch.Size)) and all(isinstance(n, int) for n in one)]
    whole = [abs(int(one)) for one in args if isinstance(one, (int, float)) and math.isfinite(one)]
    return max([math.prod(one) for one in sizes] + whole + [0])
