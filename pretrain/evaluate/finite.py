"""What a frozen network says must be finite: comparisons, maxima and shares of NaN are numbers that look like any other.

b rows, one an image.
"""

from collections.abc import Callable

from jaxtyping import Shaped
from torch import Tensor, nn

from checkpoints.cli import WorkError


def checked(values: Shaped[Tensor, " b *_"], network: nn.Module, whose: Callable[[int], str], what: str = "features") -> Tensor:
    """The same values. Raises WorkError where a row, or its length, is not finite: it names the row's owner and a weight.

    Waits for the device: not for a step of pretraining.
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
    name = max(weights, key=lambda one: float(weights[one].max()), default="")
    return f"its largest weight, {name}, has {float(weights[name].max()):.3g}" if name else "it has no weights"


def of_batch(row: int) -> str:
    """What to call an image where its name is not known."""
    return f"image {row + 1} of a batch"
