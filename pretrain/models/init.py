"""Weight initialisation."""

import torch
from torch import nn

CORRELATION, CHROMA, WHITENING_FLOOR = 20.0, 0.1, 0.01


def initialise_linear_(module: nn.Module, init: str) -> None:
    """Draw the weights of every linear layer in `module` (see `Shape.init`); biases become zero.

    The original's 0.02 suits widths from 384 up; narrower networks pass almost no signal with it.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02 if init == "original" else layer.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def whiten_(convolution: nn.Conv2d) -> None:
    """Make the patches of natural images uncorrelated, in directions drawn at random.

    Stands on a model of such images rather than on data: neighbouring pixels agree by exp(-distance / CORRELATION), colours
    differ by a share CHROMA. Worth two points of k-NN in small, short trainings (docs/results.md), trained or not.
    """
    channels, side = convolution.weight.shape[1:3]
    place = torch.cartesian_prod(*[torch.arange(side, dtype=torch.float64)] * 2)
    agreement = torch.exp(-torch.cdist(place, place) / CORRELATION)
    colours = torch.full((channels, channels), 1 - CHROMA, dtype=torch.float64) + CHROMA * torch.eye(
        channels, dtype=torch.float64
    )
    values, vectors = torch.linalg.eigh(torch.kron(colours, agreement))
    whitening = (vectors * (values + WHITENING_FLOOR).rsqrt()).T
    size = max(len(convolution.weight), len(whitening))
    turn = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0][: len(convolution.weight), : len(whitening)]
    with torch.no_grad():
        convolution.weight.copy_((turn @ whitening).view_as(convolution.weight))
        if convolution.bias is not None:
            convolution.bias.zero_()
