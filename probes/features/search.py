"""The quickest way to the nearest neighbours on this machine: faiss or matrix products, timed on a piece of the task."""

import time
from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pretrain.evaluate import knn
from pretrain.evaluate.knn import Found, Within

TRIED_QUERIES, TRIED_BANK = 512, 16384


def by_faiss(queries: Float[Tensor, "q d"], bank: Float[Tensor, "t d"], count: int) -> Found:
    """Exact search by faiss on the CPU, without an index of its own."""
    function: Any = faiss.knn
    similarity, row = function(
        np.ascontiguousarray(queries.numpy()), np.ascontiguousarray(bank.numpy()), count, metric=faiss.METRIC_INNER_PRODUCT
    )
    return Found(torch.from_numpy(similarity), torch.from_numpy(row))


WAYS: Mapping[str, Within] = {"product": knn.by_product, "faiss": by_faiss}


def quickest(queries: Float[Tensor, "q d"], bank: Float[np.ndarray, "t d"], count: int) -> str:
    """The name of the way that takes less time for some queries and some of the bank; on a GPU always the product."""
    if queries.is_cuda:
        return "product"
    some, piece = queries[:TRIED_QUERIES], torch.tensor(bank[:TRIED_BANK])
    seconds = {name: _seconds(way, some, piece, min(count, len(piece))) for name, way in WAYS.items()}
    return min(seconds, key=seconds.__getitem__)


def _seconds(way: Within, queries: Tensor, bank: Tensor, count: int) -> float:
    """Seconds of the second of two calls; the first may include loading."""
    way(queries[:8], bank[:count], count)
    began = time.perf_counter()
    way(queries, bank, count)
    return time.perf_counter() - began
