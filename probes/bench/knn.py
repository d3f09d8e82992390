"""Time and memory of k-NN classification of ImageNet's size: `tools/bench.sh knn`.

Features are drawn, with classes that can be told apart; the bank lies on disk, as the probe's does. Each way runs in a process
of its own. The plain way is what is commonly done: for each k anew, blocks of queries against the whole bank, votes through a
table of queries x k x classes.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.lib.format import open_memmap
from torch import Tensor

from checkpoints import terminal
from checkpoints.cli import UserError, parse, run_command
from pretrain.evaluate import knn
from probes.bench import alone
from probes.bench.step import write_json
from probes.features import search
from probes.shared import console

BANK, QUERIES, WIDTH, CLASSES = 1_281_167, 50_000, 384, 1000
"""ImageNet-1K, ViT-S."""
PLAIN_BLOCKS = 100
"""Into which the plain way divides the queries."""
SPREAD = 3.5
"""Standard deviation of a class's features around its mean, in units of the means' own."""


@dataclass(frozen=True)
class BenchKnnOptions:
    """k-NN classification on drawn features: ours, faiss and the plain way."""

    part: float = 0.05
    """Share of ImageNet's bank and queries each: 1 is the whole."""
    queries: int | None = None
    """So many queries instead."""
    ways: tuple[Literal["product", "faiss", "faiss_gpu", "plain"], ...] = ("product", "faiss", "plain")
    """Implementations to measure (faiss_gpu: an index on --device cuda, with tools/setup.sh gpu)."""
    device: str = "cpu"
    """Or cuda."""
    json: Path | None = None
    """Write the numbers there, too."""
    alone: Path | None = None
    """Measure the first way here, with the bank in this folder, and print its numbers as JSON."""


class Measured(NamedTuple):
    """Measurements of one implementation."""

    seconds: float
    megabytes: float
    """Peak of the process, or of the GPU."""
    top1: float


def sizes(options: BenchKnnOptions) -> dict[str, int]:
    """Numbers of rows of bank and queries."""
    bank, queries = (max(1000, int(count * options.part)) for count in (BANK, QUERIES))
    return {"bank": bank, "queries": options.queries or queries}


def draw(folder: Path, counts: Mapping[str, int]) -> None:
    """Write bank, queries and their labels to a folder, block by block."""
    generator = np.random.default_rng(0)
    middles = generator.standard_normal((CLASSES, WIDTH), dtype=np.float32)
    for name, size in counts.items():
        labels = generator.integers(CLASSES, size=size)
        np.save(folder / f"{name}_labels.npy", labels)
        features = open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=(size, WIDTH))
        for start in range(0, size, knn.PIECE):
            some = labels[start : start + knn.PIECE]
            noise = generator.standard_normal((len(some), WIDTH), dtype=np.float32)
            features[start : start + knn.PIECE] = middles[some] + SPREAD * noise
        features.flush()


def plainly(bank: Float[Tensor, "t d"], queries: Float[Tensor, "q d"], labels: Int[Tensor, " t"], k: int) -> Int[Tensor, " q"]:
    """The class of each query by one k."""
    answers = []
    for block in queries.chunk(PLAIN_BLOCKS):
        similarity, rows = (block @ bank.T).topk(k, dim=1)
        votes = F.one_hot(labels[rows], CLASSES) * (similarity / knn.TEMPERATURE).exp()[..., None]
        answers.append(votes.sum(dim=1).argmax(dim=1))
    return torch.cat(answers)


def measure(folder: Path, way: str, device: torch.device) -> Measured:
    """All of Table 1's k, from features on disk to the accuracy of k = 20."""
    bank = np.load(folder / "bank.npy", mmap_mode="r")
    labels, asked_labels = (torch.tensor(np.load(folder / f"{name}_labels.npy"), device=device) for name in ("bank", "queries"))
    queries = F.normalize(torch.tensor(np.load(folder / "queries.npy"), device=device), dim=1)
    began = time.perf_counter()
    if way == "plain":
        whole = F.normalize(torch.tensor(bank, device=device), dim=1)
        by_k = {k: plainly(whole, queries, labels, k)[:, None] for k in knn.KS}
    else:
        found = knn.nearest(queries, bank, max(knn.KS), within=search.WAYS[way], unit=True)
        by_k = knn.votes(found, labels, CLASSES)
    top1 = knn.accuracy(by_k[20].cpu(), asked_labels.cpu())
    seconds = time.perf_counter() - began
    peak = (
        torch.cuda.max_memory_allocated() if device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return Measured(seconds, peak / 2**20, top1)


def main(arguments: Sequence[str]) -> None:
    options = parse(BenchKnnOptions, arguments, prog="tools/bench.sh knn")
    if not 0 < options.part <= 1:
        raise UserError("--part must be greater than 0 and at most 1")
    if options.alone is not None:
        terminal.say(json.dumps(measure(options.alone, options.ways[0], torch.device(options.device))._asdict()))
        return
    counts = sizes(options)
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), counts)
        rows: list[list[str]] = []
        numbers: dict[str, object] = {}
        for way in options.ways:
            words = ("--alone", folder, "--ways", way, "--device", options.device)
            found = Measured(**alone.numbers(way, "probes.bench.knn", *words))
            numbers[way] = found._asdict()
            rows.append([way, f"{found.seconds:.1f}", f"{found.megabytes:,.0f}", f"{found.top1:.2f}"])
    title = f"{counts['queries']:,} queries against {counts['bank']:,} x {WIDTH}, k {knn.KS}, on {options.device}"
    write_json(options.json, {**counts, **numbers})
    console.table(f"k-NN, {title}", ["way", "seconds", "peak MB", "top-1 (k=20)"], rows)


if __name__ == "__main__":
    sys.exit(run_command(main))
