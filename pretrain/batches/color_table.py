"""The draws of crops as one table of numbers, a row a crop: what `color_kernels` reads, uploaded in one piece.

x crops.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pretrain.batches import augment, color_ops

NOTHING = -1
"""In place of a colour operation: none of them at this turn."""
NEVER = 4
"""In place of the turn of the contrast: this crop's is left alone."""
KINDS, AMOUNTS, CONTRAST_TURN, GREY, SOLARIZE, RADIUS, TAPS = 0, 4, 8, 9, 10, 11, 12
"""First column of: the operation at each of four turns (its place in `augment.JITTERS`), its amount, the turn of the
contrast, greyscale (0 or 1), solarisation (0 or 1), the blur's radius (0 for no blur), its taps from the left end."""
CONTRAST, HUE = 1, 3
CHANNELS = 3
MOST_TAPS = color_ops.blur_kernel(np.array([augment.BLUR_SIGMA[1]])).shape[1]
COLUMNS = TAPS + MOST_TAPS


def table(draws: augment.Draws) -> Float[Tensor, "x columns"]:
    """The draws [x, ...] of crops of three channels of 8 bit."""
    found = np.zeros((len(draws.flip), COLUMNS))
    amounts = draws.factors.copy()
    amounts[:, HUE] = 6 * (np.trunc(amounts[:, HUE] * 255) / 255)
    found[:, KINDS : KINDS + 4] = np.where(draws.jittered[:, None], draws.order, NOTHING)
    found[:, AMOUNTS : AMOUNTS + 4] = np.take_along_axis(amounts, draws.order, axis=1)
    found[:, CONTRAST_TURN] = np.where(draws.jittered, (draws.order == CONTRAST).argmax(axis=1), NEVER)
    found[:, GREY], found[:, SOLARIZE] = draws.grey, draws.solarize
    blurred = np.flatnonzero(draws.sigma)
    if len(blurred):
        taps = color_ops.blur_kernel(draws.sigma[blurred])
        radius = 3 * (color_ops.box_radius(draws.sigma[blurred])[0] + 1).astype(int)
        found[blurred, RADIUS] = radius
        # The middle of the taps stands at the crop's own radius.
        columns = np.arange(MOST_TAPS)
        place = taps.shape[1] // 2 - radius[:, None] + columns
        inside = columns <= 2 * radius[:, None]
        found[blurred, TAPS:] = np.where(inside, np.take_along_axis(taps, np.where(inside, place, 0), axis=1), 0.0)
    return torch.from_numpy(found.astype(np.float32))
