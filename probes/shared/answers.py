"""A linear classifier's numbers from its logits, for one class or several labels an image.

n images, k classes.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pretrain.evaluate import knn
from pretrain.images.source import Images
from probes.shared import metrics
from probes.shared.metrics import Score, Scores
from probes.shared.subject import Parts, labels_of


def several_of(images: Images) -> Float[Tensor, "n k"]:
    """0 and 1 for each label."""
    assert images.several is not None
    return torch.from_numpy(images.several.astype(np.float32))


def quick(logits: Float[Tensor, "n k"], parts: Parts) -> Scores:
    """What settings are chosen by, without intervals: top-1 and top-5, or mean AP."""
    if parts.val.several is not None:
        return {"mean_ap": Score(metrics.mean_ap(logits.numpy(), parts.val.several))}
    answers, labels = logits.topk(min(knn.TOP, logits.shape[1]), dim=1).indices, labels_of(parts.val)
    return {name: Score(knn.accuracy(answers, labels, top)) for name, top in (("top1", 1), ("top5", knn.TOP))}


def from_logits(logits: Float[Tensor, "n k"], parts: Parts) -> Scores:
    """All numbers, with intervals."""
    if parts.val.several is not None:
        return metrics.of_several(logits.double().numpy(), parts.val.several, 0.0)
    answers = logits.topk(min(knn.TOP, logits.shape[1]), dim=1).indices.numpy()
    few = logits.numel() <= metrics.MOST_SCORES
    return metrics.of_classes(answers, labels_of(parts.val).numpy(), logits.double().softmax(dim=1).numpy() if few else None)
