"""The numbers of a probe that are shown first: what they are called, and their 95 % interval."""

from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

HEADLINES: dict[str, tuple[tuple[str, str], ...]] = {
    "knn": (("top1", "k-NN, top-1 %"), ("mean_ap", "k-NN, mean AP %"), ("r2", "k-NN, R2")),
    "linear": (("top1", "linear, top-1 %"), ("mean_ap", "linear, mean AP %"), ("r2", "linear, R2")),
    "logistic": (("top1", "logistic, top-1 %"), ("mean_ap", "logistic, mean AP %"), ("r2", "ridge, R2")),
    "finetune": (("top1", "fine-tuning, top-1 %"),),
    "cluster": (("kmeans_nmi", "k-means, NMI %"),),
    "semi": (("logistic_1%", "1 % of the labels, top-1 %"), ("logistic_10%", "10 % of the labels, top-1 %")),
    "transfer_coco": (("box_ap", "detection, box AP"), ("mask_ap", "detection, mask AP")),
    "transfer_ade20k": (("miou", "segmentation, mIoU %"),),
    "segment": (("miou", "segmentation (frozen), mIoU %"),),
    "video": (("jf_m", "video segmentation, J&F"),),
    "retrieval": (
        ("roxford5k_medium_map", "ROxford medium, mAP %"),
        ("rparis6k_medium_map", "RParis medium, mAP %"),
        ("map_strong", "copies, mAP %"),
    ),
}
"""By probe: metric and its name."""
ONE_OF = frozenset({"knn", "linear", "logistic"})
"""Probes whose number is the first that a record has: which one depends on the kind of the labels."""
LEVEL = 0.95


def headlines_of(probe: str, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """The metrics of a record that are shown first, with their names."""
    found = [one for one in HEADLINES.get(probe, ()) if one[0] in metrics]
    return found[:1] if probe in ONE_OF else found


def digits(name: str) -> int:
    """Decimals to show of a number that is called so: those in percent have one."""
    return 1 if name.endswith(("%", "AP", "J&F")) else 3


def interval(record: Mapping[str, Any], metric: str, mean: float) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval over test images: the record's own, or for an accuracy that of the bootstrap; else None twice.

    Drawing the test images with replacement gives right answers by the binomial distribution, so that the quantiles of infinitely
    many bootstrap samples need no drawing.
    """
    own = record.get("intervals", {}).get(metric)
    if own is not None:
        return own[0], own[1]
    images = record["data"].get("val_images")
    if metric != "top1" or not isinstance(images, int) or images < 1:
        return None, None
    share = min(max(mean / 100, 0.0), 1.0)
    ends = (stats.binom.ppf(level, images, share) for level in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    low, high = (100 * float(end) / images for end in ends)
    return low, high


def names(models: Sequence[str]) -> dict[str, str]:
    """Short names that differ: the last part of a path, or the whole where two would be alike."""
    short = {model: model.rstrip("/").rpartition("/")[2] if "@" not in model else model.partition("@")[0] for model in models}
    return {model: name if list(short.values()).count(name) == 1 else model for model, name in short.items()}
