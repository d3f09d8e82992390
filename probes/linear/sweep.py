"""Many linear classifiers trained at once on the same features, one learning rate each: the grid of the linear probe.

h heads, k classes, d width of the features, b images of a batch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from checkpoints import checked
from pretrain.engine import distributed

MOMENTUM = 0.9
INITIAL_STD = 0.01


class LinearSweep:
    """Weights [h, k, d] and biases [h, k] under SGD with momentum 0.9, without weight decay (paper, Table 1).

    Logits of all heads are one matrix product, and so are their gradients; each head moves exactly as it would alone.
    """

    def __init__(self, lrs: Sequence[float], classes: int, width: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lr = torch.tensor(lrs, device=device)
        self.weight = (torch.randn(len(lrs), classes, width, generator=generator) * INITIAL_STD).to(device)
        self.bias = torch.zeros(len(lrs), classes, device=device)
        self.speeds = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]
        self.lost = torch.zeros(len(lrs), dtype=torch.bool, device=device)
        """Heads that have had weights or logits that are not finite: their accuracy is 0 from then on."""

    def logits(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b h k"]:
        """Logits of every head."""
        return (features @ self.weight.flatten(0, 1).T).unflatten(1, self.bias.shape) + self.bias

    def step(self, features: Float[Tensor, "b d"], labels: Int[Tensor, " b"] | Float[Tensor, "b k"], factor: float) -> None:
        """One step on the mean cross-entropy of the batch (of all processes' batches), at `factor` of each learning rate.

        Labels of 0 and 1 [b, k]: on the sum of their binary cross-entropies.
        """
        logits = self.logits(features)
        slope = logits.softmax(dim=2) if labels.ndim == 1 else logits.sigmoid()
        slope -= (F.one_hot(labels, slope.shape[2]) if labels.ndim == 1 else labels)[:, None]
        slope /= len(labels)
        gradients = (slope.flatten(1).T @ features).view_as(self.weight), slope.sum(dim=0)
        for value, speed, gradient in zip((self.weight, self.bias), self.speeds, gradients, strict=True):
            speed.mul_(MOMENTUM).add_(distributed.mean(gradient))
            value.sub_(speed * (factor * self.lr).view(-1, *[1] * (value.ndim - 1)))

    def right(self, features: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Int[Tensor, "2 h"]:
        """Number of images that each head has right: row 0 top-1, row 1 top-5; 0 for a lost head."""
        logits = self.logits(features)
        self.lost |= ~(logits.isfinite().all(dim=2).all(dim=0) & self.weight.isfinite().all(dim=2).all(dim=1))
        own = logits.gather(2, labels[:, None, None].expand(-1, logits.shape[1], 1))
        ahead = (logits > own).sum(dim=2)  # how many classes stand before the right one
        return torch.stack([(ahead < top).sum(dim=0) for top in (1, 5)]) * ~self.lost

    def mean_ap(self, features: Float[Tensor, "n d"], truth: Float[Tensor, "n k"]) -> Float[Tensor, " h"]:
        """Mean average precision of every head, in percent; 0 for a lost one. To choose by: equal scores count in any order."""
        used = (truth.sum(dim=0) > 0) & (truth.sum(dim=0) < len(truth))
        truth, found = truth[:, used], torch.zeros(len(self.lr), device=features.device)
        ranks = torch.arange(1, len(truth) + 1, device=features.device)[:, None]
        for head, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            logits = (features @ weight.T + bias)[:, used]
            self.lost[head] |= ~logits.isfinite().all()
            ranked = truth.gather(0, logits.argsort(dim=0, descending=True))
            found[head] = 100 * ((ranked.cumsum(dim=0) / ranks * ranked).sum(dim=0) / ranked.sum(dim=0)).mean()
        return found.masked_fill(self.lost | (used.sum() == 0), 0)

    def state(self) -> dict[str, Any]:
        """All that moves, to go on from."""
        moving = {"weight": self.weight, "bias": self.bias, "speed": self.speeds[0], "bias_speed": self.speeds[1]}
        # zeros in place of what is lost: a file holds finite numbers
        kept = {name: value.masked_fill(self.lost.view(-1, *[1] * (value.ndim - 1)), 0).cpu() for name, value in moving.items()}
        speeds = [kept.pop("speed"), kept.pop("bias_speed")]
        return {**kept, "speeds": speeds, "lost": self.lost.cpu()}

    def load(self, state: Any, path: Path) -> None:
        """Go on from `state`. Raises UserError, which names its file, where it is not of these heads."""
        found = checked.mapping(state, f"{path}: heads", ("weight", "bias", "speeds", "lost"))
        lost = found["lost"]
        if not isinstance(lost, Tensor) or lost.dtype != torch.bool or lost.shape != self.lost.shape:
            checked.refuse(f"{path}: lost", checked.shown(lost), f"{len(self.lost)} times true or false")
        speeds = dict(zip(("speed", "bias_speed"), checked.listed(found["speeds"], f"{path}: speeds"), strict=False))
        for name, own in (("weight", self.weight), ("bias", self.bias)):
            checked.part(found, name, path, *own.shape)
        for name, own in zip(("speed", "bias_speed"), self.speeds, strict=True):
            checked.part(speeds, name, path, *own.shape)
        self.lost.copy_(lost)
        self.weight.copy_(state["weight"])
        self.bias.copy_(state["bias"])
        for own, speed in zip(self.speeds, state["speeds"], strict=True):
            own.copy_(speed)
