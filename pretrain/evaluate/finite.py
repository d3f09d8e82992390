"""Checks that outputs of a frozen network are finite: comparisons, maxima and shares of NaN would pass for results.

b rows, one an image.
"""

from collections.abc import Callable

from jaxtyping import Shaped
from torch import Tensor, nn

from checkpoints.cli import WorkError


def checked(values: Shaped[Tensor, " b *_"], network: nn.Module, whose: Callable[[int], str], what: str = "features") -> Tensor:
    """Returns the values unchanged. Raises WorkError, naming image and weight, if a row or its norm is not finite.

    Waits for the device, so not to be used within a step of pretraining.
    """
    sizes = values.detach().float().flatten(1).square().sum(dim=1)  # of values beyond 1e19 too: of length one they would be zeros
    bad = (~sizes.isfinite()).nonzero()
    if len(bad):
        raise WorkError(f"the {what} of {whose(int(bad[0]))} are not finite ({suspect(network)}): nothing was measured")
    return values


def suspect(network: nn.Module) -> str:
    """The first weight that is not finite; where there is none, the largest, with which the network overflows."""
    weights = {name: weight.detach().float().abs() for name, weight in network.state_dict().items() if weight.numel()}
    for name, weight in weights.items():
        if not weight.isfinite().all():
            return f"the weight {name} is not"
    name = max(weights, key=lambda name: float(weights[name].max()), default="")
    largest = float(weights[name].max()) if name else 0.0
    return f"its largest weight, {name}, has {largest:.3g}" if largest else "it has no weights but zeros"


def of_batch(row: int) -> str:
    """An image's description where its name is not known."""
    return f"image {row + 1} of a batch"
