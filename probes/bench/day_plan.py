"""The parts of the GPU day in their order: command, time limit, what it reads."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

from checkpoints.start import ROOT

TESTS = Path(ROOT) / "tests"
TINY_RUN = (
    "--width 64 --depth 4 --out-dim 32 --patch-out-dim 32 --head-hidden-dim 32 --head-bottleneck-dim 16 "
    "--batch-size-per-gpu 8 --workers 0 --knn-every 0 --steps 2"
)


class Part(NamedTuple):
    """One process. `out` of its words is its record, if it writes one."""

    name: str
    words: tuple[str, ...]
    """A module and its arguments."""
    seconds: int
    """Its limit in a day of ten minutes."""
    lacking: str = ""
    """Why it is left out, if it is."""
    after: str = ""
    """The part that must have made its checkpoint before; measured anew when that went on."""
    takes_rest: bool = False
    """It takes the minutes that the others leave, and goes on in the next call."""
    record: str = ""
    """The JSON file, below the day's folder, in which its numbers lie."""


def parts(folder: Path, cifar10: str | None, ade20k: str | None, device: str, *, tiny: bool) -> list[Part]:
    """All of them."""
    return [*_benches(folder, device, tiny), *_cifar10(folder, cifar10, tiny), *_dense(folder, ade20k, tiny)]


def _part(name: str, seconds: int, words: str, folder: Path, *more: str, **how: object) -> Part:
    return Part(name, (*words.split(), *more), seconds, **how)  # type: ignore[arg-type]


def _benches(folder: Path, device: str, tiny: bool) -> list[Part]:
    def bench(name: str, seconds: int, words: str, small: str) -> Part:
        flags = f"{words} {small if tiny else ''}"
        return _part(name, seconds, flags, folder, "--json", str(folder / f"{name}.json"), record=f"{name}.json")

    lacking = "" if TESTS.is_dir() and importlib.util.find_spec("pytest") else "this copy has no tests, or pytest is not there"
    chosen = TESTS / "pretrain" / "test_commands.py" if tiny else TESTS
    words = ("-m", "gpu", "-p", "no:cacheprovider", "--rootdir", ROOT, str(chosen))
    step, small = "probes.bench.step --variant ours --rounds 1", "--tiny --batch-size 2"
    return [
        Part("gpu_tests", ("pytest", *words), 90, lacking),
        bench("step", 75, "probes.bench.step --rounds 5", "--tiny --batch-size 2 --rounds 1"),
        bench("data", 45, "probes.bench.data", "--images 2 --batch-size 2 --rounds 1 --recipe sample --gpu-batch-size 2"),
        bench("knn", 30, f"probes.bench.knn --device {device} --ways product plain", "--part 0.0005 --queries 10 --ways product"),
        _part(
            "profile",
            45,
            f"probes.bench.profile_step --steps {2 if tiny else 20} {small if tiny else ''}",
            folder,
            "--out",
            str(folder / "profile"),
            record="profile/profile.json",
        ),
        bench("memory", 30, f"{step} {'' if tiny else '--batch-size 256'}", small),
    ]


def _cifar10(folder: Path, data: str | None, tiny: bool) -> list[Part]:
    lacking = "" if data else "no --cifar10 was given"
    run, more = str(folder / "cifar10"), "--limit 24 --workers 0" if tiny else ""
    named = ("--ckpt", run, "--data", data or "")

    def probe(name: str, seconds: int, words: str) -> Part:
        out = f"cifar10_{name}.json"
        return _part(
            f"cifar10_{name}", seconds, f"{words} {more}", folder, *named, "--out", str(folder / out), record=out,
            lacking=lacking, after="cifar10",
        )  # fmt: skip

    words = f"pretrain.train --recipe cifar10_gpu --report false {TINY_RUN if tiny else ''}"
    return [
        _part("cifar10", 60, words, folder, "--data", data or "", "--out", run, lacking=lacking, takes_rest=True),
        probe("knn_probe", 40, "probes.knn"),
        probe("linear", 45, f"probes.linear --mode cached {'--epochs 2' if tiny else ''}"),
    ]


def _dense(folder: Path, data: str | None, tiny: bool) -> list[Part]:
    """Its backbone is trained for a moment on the embedded sample, so that it needs no images of its own."""
    run = str(folder / "backbone")
    lacking = "" if importlib.util.find_spec("mmseg") else "the extra `transfer` is not installed: tools/setup.sh transfer"
    short = TINY_RUN if tiny else "--steps 100 --knn-every 0"
    options = [f"train_cfg.max_iters={2 if tiny else 100}", *(["test_dataloader.dataset.indices=4"] if tiny else [])]
    config = Path(ROOT) / "transfer" / "configs" / "ade20k" / "sample_upernet.py"  # for the small backbone, whatever the data
    own = ("--data", data, "--config", str(config)) if data else ()
    dense = ("--ckpt", run, "--out", str(folder / "dense"), *own, "--cfg-options", *options)
    return [
        _part("backbone", 45, f"pretrain.train --recipe sample --report false {short}", folder, "--out", run, lacking=lacking),
        _part("dense", 75, "transfer.train --task ade20k", folder, *dense, lacking=lacking, after="backbone"),
    ]
