"""Weighted k-nearest-neighbour classification (paper section 4.1), on features that are already there.

q queries, t bank, d width, c classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from checkpoints.command import UserError
from pretrain import augment
from pretrain.backbone import Backbone
from pretrain.decode import BadImage
from pretrain.sources import Images

TEMPERATURE = 0.07
KS = (10, 20, 100, 200)
TOP = 5
BLOCK = 1024


def features(backbone: Backbone, images: Images, *, resize: int, crop: int, batch_size: int = 256) -> Float[Tensor, "q d"]:
    """Last [CLS] token of every image, of length one, float32 on the CPU, on the probes' centre crop."""
    device, shape = next(backbone.parameters()).device, backbone.shape
    blocks = []
    for start in range(0, len(images), batch_size):
        numbers = range(start, min(start + batch_size, len(images)))
        views = [augment.evaluation_view(read(images, number), resize, crop, shape.mean, shape.std) for number in numbers]
        batch = torch.stack(views)
        with torch.inference_mode():
            blocks.append(F.normalize(backbone(batch.to(device))[:, 0].float(), dim=1).cpu())
    return torch.cat(blocks)


def read(images: Images, number: int) -> np.ndarray:
    """The pixels of an image that must be there. Raises UserError naming the one that is not."""
    try:
        return images[number]
    except BadImage as error:
        raise UserError(f"{images.where(number)} cannot be used ({error}): repair it or take it out") from error


def pixels(
    images: Images, mean: Sequence[float] = augment.MEAN, std: Sequence[float] = augment.STD, *, resize: int, crop: int
) -> Float[Tensor, "q d"]:
    """The baseline that has learnt nothing: each image's normalised pixels, of length one."""
    views = [augment.evaluation_view(read(images, n), resize, crop, mean, std).flatten() for n in range(len(images))]
    return F.normalize(torch.stack(views), dim=1)


def vote(
    queries: Float[Tensor, "q d"],
    bank: Float[Tensor, "t d"],
    labels: Int[Tensor, " t"],
    classes: int,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
) -> dict[int, Int[Tensor, "q top"]]:
    """For each k the classes of every query, best first (five, or as many as there are).

    Each of the k neighbours with the greatest dot product votes for its class with exp(similarity / temperature). Classes
    with equal votes (none, say) stand in the order of their numbers, as in the original. A k larger than the bank means
    the whole bank. Queries go in blocks: memory is BLOCK x bank.
    """
    answers: dict[int, list[Tensor]] = {k: [] for k in ks}
    for block in queries.split(BLOCK):
        similarity, neighbours = (block @ bank.T).topk(min(max(ks), len(bank)), dim=1)
        weights, voted = (similarity / temperature).exp(), labels[neighbours]
        for k in ks:
            votes = torch.zeros(len(block), classes, dtype=weights.dtype, device=weights.device)
            votes.scatter_add_(1, voted[:, :k], weights[:, :k])
            answers[k].append(votes.sort(dim=1, descending=True, stable=True).indices[:, :TOP])
    return {k: torch.cat(blocks) for k, blocks in answers.items()}


def accuracy(answers: Int[Tensor, "q top"], labels: Int[Tensor, " q"], top: int = 1) -> float:
    """Percent of queries whose class is among the first `top` answers."""
    return 100.0 * (answers[:, :top] == labels[:, None]).any(dim=1).double().mean().item()
