"""Unsupervised classification: `python -m probes.cluster --ckpt runs/sample`.

Protocol of Table 5: each test image goes to the prototype that the teacher's [CLS] head likes best; prototypes and classes are
matched one to one so that most images agree (ACC); ARI, NMI and FMI need no matching. The paper pretrains for it with
`--out-dim 1000`. Needs a full checkpoint, as the head is in no backbone file. `--method kmeans`: k-means on the features instead.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, fowlkes_mallows_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from checkpoints.architecture import Architecture
from checkpoints.cli import UserError, parse, run_command
from pretrain.evaluate import faiss_library, finite, kmeans
from pretrain.images import values
from pretrain.images.open import part_or_all
from pretrain.images.source import Images
from pretrain.method.heads import Head, of_weights
from pretrain.models.backbone import Loaded
from probes.features.cache import extract
from probes.shared import console, record, stored
from probes.shared.metrics import Score, intervals, of_share, over_seeds
from probes.shared.subject import (
    Repeated,
    Viewed,
    about_seeds,
    about_view,
    draws_parts,
    in_words,
    labels_of,
    limited,
    of_several_classes,
    open_labelled,
    open_subject,
    record_path,
    reseeded,
    seeds_of,
)


@dataclass(frozen=True)
class ClusterOptions(Repeated):
    """Cluster images without labels and compare with the classes (paper, Table 5)."""

    method: Literal["head", "kmeans", "both"] = "both"
    """The teacher's [CLS] prototypes, or k-means on features; `both` leaves the head out where the checkpoint has none."""
    clusters: int | None = None
    """kmeans: how many (default: as many as classes)."""
    part: Literal["val", "train"] | None = None
    """Images to cluster (default: val where the data has parts, as in the paper, else all)."""


class Agreement(NamedTuple):
    """Agreement between clusters and classes, in percent, by the paper's measures."""

    acc: float
    ari: float
    nmi: float
    fmi: float
    used: int
    """Clusters that have an image."""


def agreement(clusters: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> Agreement:
    """ACC is the share of images whose cluster is matched to their class by the best one-to-one matching (Hungarian method)."""
    counts = contingency_matrix(labels, clusters)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    scores = adjusted_rand_score, normalized_mutual_info_score, fowlkes_mallows_score
    ari, nmi, fmi = (100 * float(score(labels, clusters)) for score in scores)
    return Agreement(100 * float(matched) / len(labels), ari, nmi, fmi, counts.shape[1])


def head_of(loaded: Loaded, key: str) -> Head:
    """The projection head of a checkpoint's network. Raises UserError where it has none, naming what to give instead."""
    weights = loaded.contents.network(key, loaded.path)
    head = {name.removeprefix("head."): weight for name, weight in weights.items() if name.startswith("head.")}
    if "last_layer.weight_v" not in head:
        raise UserError(
            f"{loaded.path} has no projection head: give a full checkpoint (last.pt, checkpoint.pth), or --method kmeans"
        )
    return of_weights(head, loaded.path)


def by_head(subject: Viewed, images: Images, options: ClusterOptions) -> Int[np.ndarray, " n"]:
    """The prototype of each image. Raises WorkError naming one whose logits are not finite."""
    head = head_of(subject.loaded, options.key).to(subject.device)
    cls = extract(subject.loaded.backbone, images, subject.view, options).cls
    with torch.inference_mode():
        blocks = torch.tensor(cls, device=subject.device).split(options.batch_size)
        logits = (finite.checked(head.cls(head.bottleneck(block)), head, finite.of_batch, "logits") for block in blocks)
        return torch.cat([block.argmax(dim=1) for block in logits]).cpu().numpy()


def by_kmeans(subject: Viewed, images: Images, options: ClusterOptions) -> Int[np.ndarray, " n"]:
    """The k-means cluster of each image's [CLS], of length one."""
    cls = extract(subject.loaded.backbone, images, subject.view, options).cls
    features = F.normalize(torch.tensor(cls), dim=1).numpy()
    count = options.clusters or int(np.max(images.labels)) + 1  # type: ignore[arg-type]
    if count > len(features):
        raise UserError(f"{count} clusters need at least as many images: {images.name} has {len(features)}")
    settings = {"niter": 30, "nredo": 3, "seed": options.seed, "min_points_per_centroid": 1, "spherical": True}
    return kmeans.fit(features, count, subject.device, **settings).nearest


def methods(options: ClusterOptions, loaded: Loaded) -> list[str]:
    """Names of the clusterings to compute."""
    if options.method != "both":
        return [options.method]
    has_head = any(name.startswith("head.last_layer.") for name in loaded.contents.network(options.key, loaded.path))
    if not has_head:
        console.say(f"{loaded.path} has no projection head: k-means alone")
    return ["head", "kmeans"] if has_head else ["kmeans"]


def prototypes(subject: Viewed, options: ClusterOptions) -> int | None:
    """Number of prototypes of the checkpoint's [CLS] head; None without a head."""
    weight = subject.loaded.contents.network(options.key, subject.loaded.path).get("head.last_layer.weight_v")
    return None if weight is None else len(weight)


def check(options: ClusterOptions) -> None:
    """Raise UserError for options of which one leaves another without meaning."""
    if options.group:
        raise UserError("--group divides images to learn from and to test on, and clustering learns from none: leave it out")
    if options.val and options.part:
        raise UserError("--part is of --data, and --val names other images: give one of them")
    if options.clusters and options.method == "head":
        raise UserError("--clusters is for k-means, and --method head has as many as prototypes: leave one of them out")
    if options.method != "head":
        faiss_library.load("--method kmeans")  # before the work


def _opened(options: ClusterOptions, shape: Architecture) -> Images:
    """The images to cluster."""
    if options.embeddings is not None:
        parts = stored.opened(options.embeddings).parts
        return stored.StoredImages(options.embeddings, options.part or ("val" if "val" in parts else None))
    part = None if options.val else part_or_all(options.data, options.part)
    return open_labelled(options, options.val or options.data, part, shape)


def clustered(subject: Viewed, images: Images, options: ClusterOptions, names: Sequence[str]) -> dict[str, Agreement]:
    """Agreement of each clustering with the classes."""
    ways = {"head": by_head, "kmeans": by_kmeans}
    labels = labels_of(images).numpy()
    return {name: agreement(ways[name](subject, images, options), labels) for name in names}


def scores_of(found: Mapping[str, Agreement], images: int) -> dict[str, Score]:
    """The numbers for a record. ACC has an interval, by the matching of all images; the others are not means over images."""
    numbers = {f"{name}_{key}": Score(float(value)) for name, row in found.items() for key, value in row._asdict().items()}
    return numbers | {f"{name}_acc": of_share(row.acc, images) for name, row in found.items()}


def main(arguments: Sequence[str]) -> None:
    options = parse(ClusterOptions, arguments, prog="python -m probes.cluster")
    check(options)
    began = time.perf_counter()
    with open_subject(options, full=options.method != "kmeans") as subject:
        out = record_path(options, subject, "cluster")
        shape = subject.loaded.backbone.shape
        every, names = of_several_classes(_opened(options, shape)), methods(options, subject.loaded)
        values.refuse_others(every)
        several: list[dict[str, Agreement]] = []
        for seed in seeds_of(options, drawn="kmeans" in names or draws_parts(options)):
            images = of_several_classes(limited(every, replace(options, seed=seed)))
            own = reseeded(subject, options, seed) if several else subject
            several.append(clustered(own, images, replace(options, seed=seed), names))
        found = several[0]
        title = f"clusters and classes of {images.name}, %: {subject.loaded.path}{in_words(subject.view)}"
        accuracy = {name: of_share(row.acc, len(images)) for name, row in found.items()}
        rows = [
            [name, accuracy[name].shown(), *(f"{value:.1f}" for value in row[1:4]), str(row.used)] for name, row in found.items()
        ]
        console.table(title, ["clusters by", "ACC", "ARI", "NMI", "FMI", "used"], rows)
        repeats = over_seeds([scores_of(one, len(images)) for one in several])
        if len(several) > 1:
            console.say(f"mean of {len(several)} seeds: {repeats.line()}")
        record.write(
            out,
            probe="cluster",
            table="T5_unsupervised",
            loaded=subject.loaded,
            data={"val": images.name, "val_images": len(images)},
            protocol=about_view(options, subject.view)
            | {"methods": list(found), "prototypes": prototypes(subject, options)}
            | about_seeds(several),
            metrics=repeats.record(),
            intervals=intervals(repeats.scores),
            seconds=time.perf_counter() - began,
            device=subject.device.type,
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
