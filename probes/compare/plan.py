"""What `probes.compare` measures: every checkpoint on every data set by every probe that fits it, under one protocol."""

import functools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from checkpoints import store, zoo
from checkpoints.cli import UserError
from checkpoints.version import __version__
from pretrain.evaluate.views import evaluation_resize
from pretrain.images import digests
from probes.compare import suite as suites
from probes.compare.suite import Suite
from probes.shared import record_name

DRAWING = ("linear", "cluster", "segment")
"""Probes that draw something, so that --seeds repeats them."""
LANDMARKS = ("roxford5k", "rparis6k")
CROP = 224
STEP = 112
"""Sides of label maps are multiples of it: patches of 7, 8, 14, 16 and 28 pixels divide it."""
Probe = Literal["knn", "linear", "logistic", "cluster", "retrieval", "segment"]
USUAL: dict[str, dict[str, Any]] = {"linear": {"mode": "cached", "select": "val-split"}, "cluster": {"method": "kmeans"}}
"""Options in place of a probe's defaults: what lets all probes share one pass of features, and leaves the test images alone."""


@dataclass(frozen=True)
class CompareOptions:
    """Compare backbones: every checkpoint on every data set by every probe, under one protocol, as one table."""

    ckpt: tuple[str, ...] = ()
    """Two checkpoints or more, each as --ckpt of any probe (default: the newest run)."""
    data: tuple[str, ...] = ()
    """Data sets, each as --data of a probe: labelled images, a folder in ADE20K's layout (segment), landmarks or Copydays
    (retrieval) (default: the suite's, or `sample`)."""
    probes: tuple[Probe, ...] = ()
    """Probes (default: the suite's, or all); one that a data set has no labels for is left out there."""
    suite: str | None = None
    """A YAML file of data sets, probes and protocol, or `sample` (docs/compare.md)."""
    seeds: int | None = None
    """Seeds of the probes that draw (linear, cluster, segment): mean and spread (default: 1)."""
    crop: int | None = None
    """Pixels of the centre crop, the same for all (default: 224)."""
    resize: int | None = None
    """Pixels of the shorter side before the crop (default: crop x 256 / 224)."""
    view: Literal["paper", "own"] = "paper"
    """`own`: each backbone's own size, crop and interpolation in the probes of labelled images, in place of one view for all."""
    limit: int | None = None
    """Use at most this many images of each part."""
    label_column: str | None = None
    """Column of the labels of every data set, as of any probe."""
    task: Literal["classes", "multi-label", "regression"] | None = None
    """What labels are for, as of any probe."""
    group: str | None = None
    """Column of groups (patients, sites), none of which may be in both parts, as of any probe."""
    key: Literal["teacher", "student"] = "teacher"
    """Network of the checkpoints."""
    device: str | None = None
    """`cpu`, `cuda`, ... (default: a GPU where there is one)."""
    workers: int | None = None
    """Processes that decode images (default: one a core, none for few images)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the backbones' forward pass."""
    cache: Path | None = None
    """Folder in which features are kept for the next probe (default: $IBOT_FEATURES, else the user's cache folder)."""
    again: bool = False
    """Measure again what was measured (the older record is kept beside where the numbers differ)."""
    out: Path = Path("compare")
    """The folder for records, logs, tables and the page; what is done there stays done."""


class Cell(NamedTuple):
    """One measurement."""

    model: str
    data: str
    probe: str
    seed: int
    words: tuple[str, ...]
    """Its command line, but for --out."""
    name: str
    """Of its record: other for each checkpoint, data set, option and seed."""


class Protocol(NamedTuple):
    """What all cells have in common."""

    crop: int
    resize: int
    limit: int | None
    seeds: int


class Plan(NamedTuple):
    """All cells, and the pairs of data set and probe that do not fit, with the reason."""

    models: tuple[str, ...]
    cells: list[Cell]
    unfit: list[str]
    protocol: Protocol


def make(options: CompareOptions) -> Plan:
    """The cells in the order in which they run. Raises UserError where nothing is to be measured."""
    suite = suites.read(options.suite) if options.suite else Suite()
    models = tuple(options.ckpt) or (str(store.newest_run(Path("runs"))),)
    if len(set(models)) < len(models):
        raise UserError("--ckpt names a checkpoint twice: give each once")
    data = tuple(dict.fromkeys(options.data or suite.data or ("sample",)))
    _refuse_mistyped(models, data)
    asked: tuple[str, ...] = options.probes or tuple(suite.probes) or tuple(suites.OPTIONS)
    probes = tuple(dict.fromkeys(asked))
    protocol = protocol_of(options, suite)
    cells, unfit = [], []
    for one in data:
        fitting = [probe for probe in probes if fits(probe, one)]
        unfit += [f"{probe} on {one}: {NEEDS.get(probe, 'it needs labelled images')}" for probe in probes if probe not in fitting]
        for model in models:
            for probe in fitting:
                for seed in range(protocol.seeds if probe in DRAWING else 1):
                    cells.append(_cell(model, one, probe, seed, protocol, suite.probes.get(probe, {}), options))
    if not cells:
        raise UserError(f"no probe fits: {'; '.join(unfit)}")
    return Plan(models, cells, unfit, protocol)


def _refuse_mistyped(models: tuple[str, ...], data: tuple[str, ...]) -> None:
    """Raise UserError for a plain path that does not exist, before anything is measured."""
    for flag, words, known in (("--ckpt", models, set(zoo.names())), ("--data", data, {"sample"})):
        for word in words:
            plain = not re.search(r"[:*?\[{]", word)  # neither a scheme nor a pattern
            if plain and word not in known and not Path(word).exists():
                raise UserError(f"{flag} {word} is not there: give a path that exists, or a name as any probe takes it")


def protocol_of(options: CompareOptions, suite: Suite) -> Protocol:
    """The command line's, else the suite's, else the paper's view."""
    if options.view == "own" and (options.crop or options.resize):
        raise UserError("--view own takes size and crop from each backbone: leave --crop and --resize out")
    crop = options.crop or suite.protocol.get("crop") or CROP
    resize = options.resize or (suite.protocol.get("resize") if options.crop is None else None) or evaluation_resize(crop)
    if resize < crop:
        raise UserError(f"--crop {crop} must be at most --resize {resize}")
    limit = options.limit or suite.protocol.get("limit")
    return Protocol(crop, resize, limit, options.seeds or suite.protocol.get("seeds") or 1)


NEEDS = {
    "segment": "it needs a folder in ADE20K's layout",
    "retrieval": "it needs a folder with roxford5k/, rparis6k/ or Copydays' original/",
}


def fits(probe: str, data: str) -> bool:
    """Whether a data set has what a probe is to find."""
    if data == "sample":
        return True
    root = Path(data)
    dense = (root / "images" / "training").is_dir()
    pairs = any((root / name).is_dir() for name in (*LANDMARKS, "original"))
    return {"segment": dense, "retrieval": pairs}.get(probe, not (dense or pairs))


def _cell(
    model: str, data: str, probe: str, seed: int, protocol: Protocol, given: Mapping[str, Any], options: CompareOptions
) -> Cell:
    chosen = USUAL.get(probe, {}) | _by_probe(probe, data, protocol) | dict(given)
    words = ["--ckpt", model, "--data", data, "--key", options.key, "--seed", str(seed), *suites.words(chosen)]
    if probe not in ("retrieval", "segment"):
        one = ["--crop", str(protocol.crop), "--resize", str(protocol.resize)]
        for name, column in (("label-column", options.label_column), ("task", options.task), ("group", options.group)):
            words += [f"--{name}", column] if column else []
        words += ["--precision", options.precision, *(["--view", "own"] if options.view == "own" else one)]
    if protocol.limit and probe != "segment":
        words += ["--limit", str(protocol.limit)]
    decides = json.dumps([probe, words, checkpoint_stamp(model), data_stamp(data), __version__])
    name = f"{probe}_{record_name.plain(data)}_{record_name.plain(model)}-{store.checksum(decides)[:10]}"
    for flag, value in (("device", options.device), ("workers", options.workers), ("cache", options.cache)):
        if value is not None and (probe not in ("retrieval", "segment") or (flag == "device" and probe == "retrieval")):
            words += [f"--{flag}", str(value)]
    return Cell(model, data, probe, seed, tuple(words), name)


def _by_probe(probe: str, data: str, protocol: Protocol) -> dict[str, Any]:
    """Options that follow from the data set and the view."""
    if probe == "segment":
        return {"size": max(protocol.crop if data == "sample" else 2 * protocol.crop, STEP) // STEP * STEP}
    if probe == "retrieval":
        landmarks = next((name for name in LANDMARKS if data != "sample" and (Path(data) / name).is_dir()), None)
        return {"suite": landmarks} if landmarks else {"suite": "copydays", "size": protocol.crop}
    return {}


@functools.cache
def checkpoint_stamp(model: str) -> str:
    """Changes when the file behind a --ckpt does; a name that means no local file stands for itself."""
    rest = model.partition(":")[2]  # hf:FOLDER, python:FILE.py:FUNCTION
    named = (model, model.partition("@")[2], rest, rest.rpartition(":")[0])
    path = next((Path(one) for one in named if one and Path(one).exists()), None)
    if path is None:
        return model
    if path.is_dir():
        usual = [path / name for name in (store.BACKBONE, store.LAST) if (path / name).is_file()]
        return digests.of_files(usual[:1] or sorted(one for one in path.iterdir() if one.is_file()))
    return digests.of_files([path])


@functools.cache
def data_stamp(data: str) -> str:
    """Changes when a local file of a data set does: of all contents, or of sizes and times of change where these are many."""
    path = next((path for path in (Path(data), Path(data.partition("@")[2] or data)) if path.exists()), None)
    if path is None:
        return data
    if path.is_file():
        return digests.of_files([path])
    return digests.of_files(sorted(os.path.join(inside, name) for inside, _, names in os.walk(path) for name in names))
