"""Accuracy when patches are dropped (by chance, salient ones, the others) or shuffled (paper, Fig. 9 and 10, Table 8).

b images, gh gw patches, s side of an image.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pretrain.images.source import Images
from pretrain.models.measured import Measured
from pretrain.models.vit import ViT
from probes.features.attention import cls_attention, most_of_the_mass
from probes.linear.head import Classifier, View, batches, columns
from probes.robustness import drops

AT_ONCE = 256
"""Images of a forward: one draw may be for a larger batch."""
HEAD = 1
"""Attention head of the saliency network, the original's choice."""
CATEGORIES = ("random", "salient", "non_salient")
AT = 0.5
"""The share of a picture that Table 8 is about."""

Curve = list[tuple[float, float]]
"""Share of a picture that is lost (0 to 1), percent right."""


class Saliency(NamedTuple):
    """Saliency by the attention of a network."""

    network: ViT | Measured
    head: int
    name: str
    """A name of the zoo, a file, or `itself` for the network that is measured."""

    def maps(self, crops: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b gh gw"]:
        """The head's attention maps, on the CPU."""
        device = next(self.network.parameters()).device
        attention = in_parts(lambda part: cls_attention(self.network, part.to(device))[:, self.head].cpu(), crops)
        side = round(attention.shape[1] ** 0.5)
        return attention.unflatten(1, (side, side))


def in_parts(compute: Callable[[Tensor], Tensor], crops: Tensor) -> Tensor:
    """`compute(crops)`, in the memory of few images."""
    return torch.cat([compute(part) for part in crops.split(AT_ONCE)])


def dropped(
    kind: str, share: float, maps: Float[Tensor, "b gh gw"], numbers: Sequence[int], seed: int, *, same: bool, side: int
) -> Bool[Tensor, "b _ _"]:
    """Mask of the patches to drop: a share of all, the most salient ones that hold a share of the attention, or all but those."""
    if kind == "random":
        return drops.by_chance(drops.orders(numbers, side * side, seed, same=same), share).unflatten(1, (side, side))
    salient = most_of_the_mass(maps.flatten(1), share).view_as(maps) if share > 0 else torch.zeros_like(maps, dtype=torch.bool)
    return salient if kind == "salient" else ~salient


def occlude(
    classifier: Classifier, images: Images, view: View, batch_size: int, saliency: Saliency, *, seed: int, same: bool
) -> dict[str, Curve]:
    """A curve for each of CATEGORIES."""
    column = torch.tensor(columns(classifier.head, images.classes, images.name))[torch.as_tensor(images.labels)]
    hits: dict[tuple[str, float], float] = defaultdict(float)
    losses: dict[tuple[str, float], float] = defaultdict(float)
    side = view.crop // classifier.backbone.shape.stride
    for numbers, crops in batches(images, view, classifier.backbone.shape, batch_size, "occlusion"):
        maps = saliency.maps(crops)
        for kind in CATEGORIES:
            for share in drops.RATIOS if kind == "random" else drops.MASSES:
                gone = dropped(kind, share, maps, numbers, seed, same=same, side=side)
                answers = in_parts(classifier.logits, drops.without(crops, gone)).argmax(dim=1)
                hits[kind, share] += int((answers == column[list(numbers)]).sum())
                losses[kind, share] += gone.float().mean(dim=(1, 2)).sum().item()
    curves: dict[str, Curve] = {kind: [] for kind in CATEGORIES}
    for (kind, share), count in hits.items():
        curves[kind].append((losses[kind, share] / len(images), 100 * count / len(images)))
    return curves


def shuffle(classifier: Classifier, images: Images, view: View, batch_size: int, *, seed: int, same: bool) -> dict[str, float]:
    """Percent right by the number of cells, `grid_1` for untouched images."""
    column = torch.tensor(columns(classifier.head, images.classes, images.name))[torch.as_tensor(images.labels)]
    hits: dict[str, int] = defaultdict(int)
    for numbers, crops in batches(images, view, classifier.backbone.shape, batch_size, "shuffle"):
        for grid in ((1, 1), *drops.GRIDS):
            cells = grid[0] * grid[1]
            moved = drops.shuffled(crops, grid, drops.orders(numbers, cells, seed, same=same))
            hits[f"grid_{cells}"] += int((in_parts(classifier.logits, moved).argmax(dim=1) == column[list(numbers)]).sum())
    return {name: 100 * count / len(images) for name, count in hits.items()}


def salient_numbers(curves: Mapping[str, Curve]) -> dict[str, float]:
    """Table 8's two: percent right where half of a picture is lost; then all that was measured."""
    found = {"s_0.5": drops.accuracy_at(AT, curves["salient"]), "ns_0.5": drops.accuracy_at(AT, curves["non_salient"])}
    for kind in CATEGORIES[1:]:
        for mass, (loss, accuracy) in zip(drops.MASSES, curves[kind], strict=True):
            found |= {f"{kind}_{mass}": accuracy, f"{kind}_{mass}_loss": loss}
    return found


def random_numbers(curves: Mapping[str, Curve]) -> dict[str, float]:
    """Percent right, and the share that is lost, by the share that was asked for."""
    found: dict[str, float] = {}
    for ratio, (loss, accuracy) in zip(drops.RATIOS, curves["random"], strict=True):
        found |= {f"random_{ratio}": accuracy, f"random_{ratio}_loss": loss}
    return found
