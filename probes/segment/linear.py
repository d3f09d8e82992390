"""A linear layer on frozen patch tokens (`--head linear`).

w windows, n patches, d width of the features, k classes, s side of a window.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, Int
from torch import Tensor, nn

from checkpoints import terminal
from checkpoints.cli import WorkError
from pretrain.models.backbone import Backbone
from probes.segment.data import Labelled, Set, label_view
from probes.segment.features import Kept, kept, seen
from probes.segment.held_out import held_out
from probes.segment.options import SegmentOptions
from probes.segment.scores import Confusion, Measured, Scores, add_whole
from probes.shared.label_rule import NOTHING

NORMED_BY = 20
"""Batches of windows whose features give the mean and the standard deviation of each channel."""
CHANNELS = 128
"""At a time, for these: all of a ViT-S at once would be 2 GB."""
NO_RATE = "no learning rate gave finite weights: give a smaller --lr"


def by_linear(backbone: Backbone, data: Set, options: SegmentOptions, classes: int) -> Measured:
    """A linear layer on patch tokens, its learning rate chosen on held-out training images, then trained on all of them.

    Rates whose layers are not finite are left out. Raises WorkError where all are, or features are beyond float16.
    """
    images, device = range(len(data.train.pixels)), next(backbone.parameters()).device
    held = sorted(held_out(len(images), options))
    with kept(backbone, data, options.batch_size) as known:
        tried = dict[str, float]()
        if held:
            heads = fit(known, [one for one in images if one not in held], options, options.lr, classes, device)
            for scores, lr in zip(heads, options.lr, strict=True):
                confusion, sound = Confusion(classes), True
                for number in held:
                    labels = label_view(data.train.labels[number], None, data.rule)
                    one = known.of_image(number, data.size, device)
                    sound &= add_whole(confusion, one, labels, scores, data.size, "bilinear")
                if sound:
                    tried[f"lr {lr:g}"] = confusion.metrics()["miou"]
                else:
                    terminal.say(f"excluded, not finite: lr {lr:g}")
            if not tried:
                raise WorkError(NO_RATE)
        best = max(options.lr, key=lambda lr: tried.get(f"lr {lr:g}", -1.0))
        scores = fit(known, images, options, (best,), classes, device)[0]
    return Measured(f"lr {best:g}", _tested(backbone, data.val, data, options, scores, classes), tried)


def _tested(backbone: Backbone, part: Labelled, data: Set, options: SegmentOptions, scores: Scores, classes: int) -> Confusion:
    confusion = Confusion(classes)
    for number in range(len(part.pixels)):
        one = seen(part, number, backbone, data.size, options.batch_size)
        labels = label_view(part.labels[number], None, data.rule)
        if not add_whole(confusion, one, labels, scores, data.size, "bilinear"):
            raise WorkError(NO_RATE)
    return confusion


def fit(
    known: Kept, images: Sequence[int], options: SegmentOptions, rates: Sequence[float], classes: int, device: torch.device
) -> list[Scores]:
    """Train a layer for each rate on the windows of these images, a batch on the device at a time; what scores with each."""
    torch.manual_seed(options.seed)
    rows = torch.tensor([row for number in images for row in known.rows[number]])
    mean, spread = (one.to(device) for one in statistics(known.features, rows[: NORMED_BY * options.batch_size]))
    heads = [nn.Linear(len(mean), classes).to(device) for _ in rates]
    groups = [{"params": head.parameters(), "lr": lr} for head, lr in zip(heads, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    rows = rows[[bool((known.labels[row] != NOTHING).any()) for row in rows]]  # the mean over no pixel is not a number
    if not len(rows):
        raise WorkError("no pixel of the training images has a label: there is nothing to learn")
    size = known.labels.shape[1:]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * -(-len(rows) // options.batch_size))

    def scores(head: nn.Linear, features: Tensor) -> Tensor:
        side = round(features.shape[1] ** 0.5)
        return head((features.float() - mean) / spread).transpose(1, 2).unflatten(2, (side, side))

    for _ in range(options.epochs):
        for batch in torch.randperm(len(rows)).split(options.batch_size):
            features, labels = known.features[rows[batch]].to(device), known.labels[rows[batch]].to(device).long()
            optimizer.zero_grad()
            for head in heads:  # one after the other: the scores of a head are many times its features
                logits = F.interpolate(scores(head, features), size=size, mode="bilinear")
                F.cross_entropy(logits, labels, ignore_index=NOTHING).backward()
            optimizer.step()
            schedule.step()
    return [partial(scores, head) for head in heads]


def statistics(features: Float16[Tensor, "w n d"], rows: Int[Tensor, " b"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and standard deviation of each channel over all patches of these windows."""
    means, spreads = list[Tensor](), list[Tensor]()
    for start in range(0, features.shape[2], CHANNELS):
        part = features[rows, :, start : start + CHANNELS].float().flatten(0, 1)
        means.append(part.mean(dim=0))
        spreads.append(part.std(dim=0) + 1e-6)
    return torch.cat(means), torch.cat(spreads)
