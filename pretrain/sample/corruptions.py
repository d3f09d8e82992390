"""Nineteen corruptions of pictures in five strengths, by the `imagecorruptions` library, the same for the same seed.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness (arXiv 1903.12261). h w pixels.
"""

import contextlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import UInt8

from checkpoints import elsewhere
from checkpoints.cli import UserError

STANDARD = (
    "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness contrast "
    "elastic_transform pixelate jpeg_compression"
).split()
EXTRA = "speckle_noise gaussian_blur spatter saturate".split()
NAMES = (*STANDARD, *EXTRA)
SEVERITIES = (1, 2, 3, 4, 5)
LEAST = 32
"""Pixels of a side that the library needs."""


@cache
def _functions() -> dict[str, Callable[..., Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries underneath, about themselves
            library: Any = elsewhere.imported("imagecorruptions")  # an extra, and slow
            settings: Any = elsewhere.imported("numba.core.config")
    except ImportError as error:
        raise UserError(
            "corruptions need the library imagecorruptions (imagecorruptions-imaug): tools/setup.sh robustness"
        ) from error
    settings._config_fname = os.devnull  # numba would look into the current folder again whenever it compiles
    return dict(library.corruption_dict)


def corrupt(image: UInt8[np.ndarray, "h w 3"], name: str, severity: int, seed: tuple[int, ...]) -> UInt8[np.ndarray, "h w 3"]:
    """One of NAMES at a strength from 1 to 5. Raises UserError for pictures of less than 32 pixels."""
    from PIL import Image  # noqa: PLC0415

    if min(image.shape[:2]) < LEAST:
        raise UserError(f"a picture of {image.shape[1]} x {image.shape[0]} pixels is too small to corrupt: {LEAST} are needed")
    function = _functions()[name]
    own = int(np.random.SeedSequence(seed).generate_state(1)[0])
    more = {"seed": own} if "seed" in inspect.signature(function).parameters else {}
    with _seeded(own), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.uint8(function(Image.fromarray(image), severity, **more))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Context in which numpy's global generator, which the library uses, is seeded; restores its state afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
