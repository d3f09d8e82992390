"""k-means by faiss, on the CPU or on a GPU, whichever takes less time for one round.

n points, d width, k clusters.
"""

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from pretrain.evaluate import faiss_library

PURPOSE = "k-means"
TRIED = 65536
"""Points of the round that is timed."""


class Clusters(NamedTuple):
    """Centroids, and the nearest one of each point."""

    centroids: Float[np.ndarray, "k d"]
    nearest: Int[np.ndarray, " n"]
    by: str
    """The device that the search ran on: `cpu` or `cuda`."""


def fit(points: Float[np.ndarray, "n d"], count: int, device: torch.device, **settings: Any) -> Clusters:
    """Lloyd's algorithm with `settings` of faiss (`faiss.ClusteringParameters`): niter, nredo, seed, spherical and so on.

    Raises UserError where there is no faiss.
    """
    faiss, on_gpu = faiss_library.for_device(PURPOSE, device)
    chosen = device if on_gpu and _gpu_is_quicker(faiss, points, count, device, settings) else torch.device("cpu")
    kmeans = _trained(faiss, points, count, chosen, settings)
    centroids = np.asarray(kmeans.centroids).reshape(count, -1)
    return Clusters(centroids, kmeans.index.search(points, 1)[1][:, 0], chosen.type)


def _trained(faiss: Any, points: np.ndarray, count: int, device: torch.device, settings: dict[str, Any]) -> Any:
    kmeans = faiss.Kmeans(points.shape[1], count, **settings)
    if device.type == "cuda":  # on this GPU; `gpu=True` of faiss would take all, also those of other processes
        kmeans.index, kmeans.resources = faiss_library.on_gpu(faiss, kmeans.index, device)
    kmeans.train(points)
    return kmeans


def _gpu_is_quicker(faiss: Any, points: np.ndarray, count: int, device: torch.device, settings: dict[str, Any]) -> bool:
    """Whether one round over some of the points takes less time on the GPU; the first call there includes loading."""
    some = points[: max(TRIED, count)]
    one = settings | {"niter": 1, "nredo": 1}
    _trained(faiss, some[:count], count, device, one)
    seconds = {}
    for place in (device, torch.device("cpu")):
        began = time.perf_counter()
        _trained(faiss, some, count, place, one)
        seconds[place.type] = time.perf_counter() - began
    return seconds["cuda"] < seconds["cpu"]
