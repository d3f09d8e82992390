"""faiss: which package, none or two, and a GPU (a pretended one) for k-NN, k-means and retrieval."""

import types
from typing import Any

import faiss
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from checkpoints import elsewhere
from checkpoints.cli import UserError
from pretrain.evaluate import faiss_library, kmeans, knn
from pretrain.tokenizers import kmeans_fit
from probes import cluster
from probes.features import search
from probes.retrieval import __main__ as retrieval
from probes.shared import record

CUDA = torch.device("cuda", 1)


class PretendedGpu(types.SimpleNamespace):
    """The module of a build for GPUs: its indices stay on the CPU, and what is asked of it is recorded."""

    def __init__(self) -> None:
        super().__init__(**{name: value for name, value in vars(faiss).items() if not name.startswith("__")})
        self.moved: list[int] = []
        self.StandardGpuResources = object
        self.get_num_gpus = lambda: 2
        self.index_cpu_to_gpu = self._index_cpu_to_gpu

    def _index_cpu_to_gpu(self, resources: object, device: int, index: Any) -> Any:
        assert resources is not None
        self.moved.append(device)
        return index


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PretendedGpu:
    """faiss is a build for GPUs."""
    module = PretendedGpu()
    monkeypatch.setattr(elsewhere, "imported", lambda name: module)
    return module


def vectors(count: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)), dim=1)


def packages(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Only these are installed."""

    def version(name: str) -> str:
        if name not in names:
            raise faiss_library.PackageNotFoundError(name)
        return "1.15.1"

    monkeypatch.setattr(faiss_library, "version", version)
    if not names:
        monkeypatch.setattr(faiss_library.importlib.util, "find_spec", lambda name: None)


def test_two_packages_that_provide_faiss_are_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """46c01a2 imported whatever of both had been written last."""
    packages(monkeypatch, "faiss-cpu", "faiss-gpu-cuvs")
    for use in (lambda: faiss_library.load("k-means"), lambda: search.quickest(vectors(4, 0), vectors(9, 1), 3)):
        with pytest.raises(UserError, match=r"are both installed.*pip uninstall faiss-cpu faiss-gpu-cuvs"):
            use()


def test_without_faiss_neighbours_are_found_and_kmeans_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """46c01a2 could not be imported without faiss."""
    packages(monkeypatch)
    queries, bank = vectors(6, 0), vectors(40, 1)
    assert search.quickest(queries, bank, 5) == "product"
    assert retrieval.search(queries, bank, torch.device("cpu")).tolist() == (queries @ bank.T).topk(20).indices.tolist()
    with pytest.raises(UserError, match=r"--method kmeans needs faiss, which is not installed: tools/setup.sh cpu"):
        cluster.check(cluster.ClusterOptions())
    cluster.check(cluster.ClusterOptions(method="head"))
    with pytest.raises(UserError, match="k-means needs faiss"):
        kmeans.fit(bank.numpy(), 3, torch.device("cpu"), niter=2)
    assert record.versions()["faiss"] == "not installed"


def test_a_faiss_that_cannot_be_loaded_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libcublas.so.13: cannot open shared object file")

    packages(monkeypatch, "faiss-gpu-cuvs")
    monkeypatch.setattr(elsewhere, "imported", broken)
    with pytest.raises(UserError, match=r"faiss-gpu-cuvs is installed but cannot be loaded \(libcublas.so.13"):
        faiss_library.load("k-means")


def test_records_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """46c01a2 asked for faiss-cpu alone."""
    packages(monkeypatch, "faiss-gpu")
    assert record.versions()["faiss-gpu"] == "1.15.1" and "faiss-cpu" not in record.versions()


def test_which_ways_a_device_has(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert search.possible(torch.device("cpu"), 20) == ["product", "faiss"]
    assert search.possible(CUDA, 20) == ["product", "faiss_gpu"]
    assert search.possible(CUDA, faiss_library.MOST_NEIGHBOURS + 1) == ["product"]
    monkeypatch.setattr(elsewhere, "imported", lambda name: faiss)  # the build for the CPU
    assert search.possible(CUDA, 20) == ["product"]


def test_neighbours_and_retrieval_by_an_index_on_a_gpu(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = vectors(6, 0), vectors(90, 1)
    wanted = (queries @ bank.T).topk(20)
    found = knn.nearest(queries, bank, 20, within=search.by_faiss_gpu)
    assert_close(found.similarity, wanted.values)
    assert found.row.tolist() == wanted.indices.tolist() and gpu.moved == [0]
    monkeypatch.setattr(search, "possible", lambda device, count: ["faiss_gpu"])
    assert retrieval.search(queries, bank, torch.device("cpu")).tolist() == wanted.indices.tolist()
    assert gpu.moved == [0, 0]


@pytest.mark.parametrize("quicker", [True, False])
def test_kmeans_takes_the_quicker_device_and_comes_to_the_same(
    quicker: bool, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = vectors(300, 2).numpy()
    ticks = iter([0.0, 1.0, 10.0, 12.0] if quicker else [0.0, 2.0, 10.0, 11.0])
    monkeypatch.setattr(kmeans.time, "perf_counter", lambda: next(ticks))
    settings = {"niter": 5, "seed": 3, "min_points_per_centroid": 1}
    found = kmeans.fit(points, 4, CUDA, **settings)
    assert found.by == ("cuda" if quicker else "cpu")
    assert gpu.moved == [1] * (3 if quicker else 2)  # on the GPU that was named: to load, to time, to fit
    plain = kmeans.fit(points, 4, torch.device("cpu"), **settings)
    assert plain.by == "cpu" and len(gpu.moved) == (3 if quicker else 2)
    assert_close(found.centroids, plain.centroids)
    assert found.nearest.tolist() == plain.nearest.tolist()
    codes = kmeans_fit.cluster(kmeans_fit.Points(points, np.zeros(300, int)), 4, 0, torch.device("cpu"))
    assert codes.centroids.shape == (4, 16)
