"""Whole images by sliding windows, as segmenters are tested: squares two thirds of their side apart, the last at the border.

w windows, k classes, s side of a window.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


def corners(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """Upper and left corner of every window; each side of the image is `side` or more."""
    step = max(1, 2 * side // 3)
    return [(upper, left) for upper in _starts(height, side, step) for left in _starts(width, side, step)]


def _starts(length: int, side: int, step: int) -> list[int]:
    count = max(length - side + step - 1, 0) // step + 1
    return [min(number * step, length - side) for number in range(count)]


def joined(
    scores: Float[Tensor, "w k s s"], where: Sequence[tuple[int, int]], height: int, width: int
) -> Float[Tensor, "k {height} {width}"]:
    """The mean score of each pixel over the windows that have it."""
    side = scores.shape[-1]
    total, times = scores.new_zeros(scores.shape[1], height, width), scores.new_zeros(height, width)
    for (upper, left), one in zip(where, scores, strict=True):
        total[:, upper : upper + side, left : left + side] += one
        times[upper : upper + side, left : left + side] += 1
    return total / times
