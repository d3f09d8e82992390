"""The quickest way to the nearest neighbours on this machine: matrix products or an index of faiss, timed on a piece of the task.

Without faiss, products. On a GPU, faiss takes part where the package that is installed can use it (`faiss_library`).
"""

import time
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pretrain.evaluate import faiss_library, knn
from pretrain.evaluate.knn import Found, Within

TRIED_QUERIES, TRIED_BANK = 512, 16384
PURPOSE = "search by faiss"


def by_faiss(queries: Float[Tensor, "q d"], bank: Float[Tensor, "t d"], count: int) -> Found:
    """Exact search by faiss on the CPU, without an index of its own. Raises UserError where there is no faiss."""
    faiss = faiss_library.load(PURPOSE)
    similarity, row = faiss.knn(_array(queries), _array(bank), count, metric=faiss.METRIC_INNER_PRODUCT)
    return _found(similarity, row, queries.device)


def by_faiss_gpu(queries: Float[Tensor, "q d"], bank: Float[Tensor, "t d"], count: int) -> Found:
    """Exact search by an index of faiss on the queries' GPU. Raises UserError where there is no faiss."""
    faiss = faiss_library.load(PURPOSE)
    index, _resources = faiss_library.on_gpu(faiss, faiss.IndexFlatIP(bank.shape[1]), queries.device)
    index.add(_array(bank))
    similarity, row = index.search(_array(queries), count)
    return _found(similarity, row, queries.device)


WAYS: Mapping[str, Within] = {"product": knn.by_product, "faiss": by_faiss, "faiss_gpu": by_faiss_gpu}


def possible(device: torch.device, count: int) -> list[str]:
    """Names of the ways to `count` neighbours on this device. Raises UserError where two packages provide faiss."""
    if not faiss_library.is_there():
        return ["product"]
    if device.type == "cpu":
        return ["product", "faiss"]
    _, on_gpu = faiss_library.for_device(PURPOSE, device)
    return ["product", "faiss_gpu"] if on_gpu and count <= faiss_library.MOST_NEIGHBOURS else ["product"]


def quickest(queries: Float[Tensor, "q d"], bank: Float[np.ndarray, "t d"] | Float[Tensor, "t d"], count: int) -> str:
    """The name of the way that takes less time for some queries and some of the bank, on the queries' device."""
    ways = possible(queries.device, count)
    if len(ways) == 1:
        return ways[0]
    some, rows = queries[:TRIED_QUERIES], bank[:TRIED_BANK]
    piece = (rows if isinstance(rows, Tensor) else torch.tensor(rows)).to(queries.device)
    seconds = {name: _seconds(WAYS[name], some, piece, min(count, len(piece))) for name in ways}
    return min(seconds, key=seconds.__getitem__)


def _seconds(way: Within, queries: Tensor, bank: Tensor, count: int) -> float:
    """Seconds of the second of two calls; the first may include loading."""
    way(queries[:8], bank[:count], count)
    _wait(queries.device)
    began = time.perf_counter()
    way(queries, bank, count)
    _wait(queries.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _array(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.cpu().numpy())


def _found(similarity: np.ndarray, row: np.ndarray, device: torch.device) -> Found:
    return Found(torch.from_numpy(similarity).to(device), torch.from_numpy(row).to(device))
