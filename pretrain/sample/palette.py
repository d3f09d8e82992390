"""Colours that colour-blind people tell apart: Okabe and Ito's eight, for masks, lines and points.

Source: M. Okabe, K. Ito, Color Universal Design (2008).
"""

import numpy as np
from jaxtyping import UInt8

COLOURS: tuple[tuple[int, int, int], ...] = (
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Black (for nothing), orange, sky blue, bluish green, yellow, blue, vermilion, reddish purple; levels from 0 to 255."""


def colour(number: int) -> UInt8[np.ndarray, "3"]:
    """The colour of thing `number`, from 1 up; black stays nothing's. After seven they come again."""
    return np.array(COLOURS[(number - 1) % (len(COLOURS) - 1) + 1], dtype=np.uint8)


def table() -> list[int]:
    """A palette for indexed PNG files: 0 is black, 1 and up are things."""
    return [*COLOURS[0], *(int(level) for number in range(1, 256) for level in colour(number))]
