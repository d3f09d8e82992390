"""Pixels as features: `--ckpt python:probes/ablate/raw_pixels.py:pixels_24`. What a network must be better than."""

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RawPixels(nn.Module):
    """The values of an image of `size` pixels, between 0 and 1 less a half, row by row."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.preprocessing = {"mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0), "size": size}

    def pooled(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return torch.flatten(images, 1)


def __getattr__(name: str) -> Any:
    """`pixels_24` makes features of 24 x 24 pixels."""
    head, _, size = name.partition("_")
    if head != "pixels" or not size.isdecimal():
        raise AttributeError(name)
    return functools.partial(RawPixels, int(size))
