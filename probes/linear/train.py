"""The training behind `probes.linear`: epochs over frozen features, which are computed once or anew for augmented crops.

h heads, e epochs, b images of a batch, d width of the features.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from checkpoints import checked, store, terminal
from checkpoints.cli import UserError, WorkError
from pretrain.engine import distributed
from pretrain.evaluate import finite
from pretrain.images.source import Images
from probes.features.cache import Features, extract, needed, represent, side_by_side, weights_digest
from probes.features.random_crops import random_crops
from probes.linear.sweep import LinearSweep
from probes.shared import console
from probes.shared.answers import several_of
from probes.shared.subject import Common, Viewed, labels_of

VAL_BATCH = 1024
KEPT = ("heads", "choosing", "test", "best", "weight", "bias")
"""Fields of a training's state besides its task."""
VERSION = 2
"""Version of the division of an epoch into steps; states of another are not resumed. 2: the last, smaller step is trained."""


class Division(NamedTuple):
    """Images to learn from, to choose by, to test on; the last two may be the same."""

    train: Images
    chooser: Images
    test: Images


class Settings(NamedTuple):
    """Learning rates as they are used, and how features come about."""

    lrs: tuple[float, ...]
    epochs: int
    mode: str
    kind: str
    select: str
    arrays: tuple[str, ...] = ()
    """That are computed together, where others will be wanted of the same images."""


class Trained(NamedTuple):
    """Percent after every epoch, and the best head by the choosing images, of those that are not excluded."""

    choosing: Float[np.ndarray, "e 2 h"]
    test: Float[np.ndarray, "e 2 h"]
    """Top-1 and top-5 of every head."""
    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]
    excluded: tuple[int, ...] = ()
    """Heads whose weights or logits have not been finite: no epoch of theirs is chosen."""

    def place(self, *, last: bool = False) -> tuple[int, int]:
        """Epoch and head that the choosing images like best, the first of equals; of the last epoch alone, if `last`."""
        return best_place(self.choosing, self.excluded, last=last)


def best_place(choosing: Float[np.ndarray, "e 2 h"], excluded: Sequence[int], *, last: bool = False) -> tuple[int, int]:
    """See `Trained.place`."""
    top1 = choosing[:, 0].copy()
    top1[:, list(excluded)] = -1
    top1[: len(top1) - 1 if last else 0] = -1
    return divmod(int(top1.argmax()), top1.shape[1])


def train(
    subject: Viewed, images: Division, settings: Settings, options: Common, state_path: Path, *, keep: bool = False
) -> Trained:
    """Train all heads for all epochs. In mode `paper` the state is kept after each, and the next call goes on from it.

    `keep`: the finished one too, for callers with several trainings, which delete it when all are done. Raises WorkError where no
    head stays finite.
    """
    choosing = labelled_features(subject, images.chooser, settings, options)
    testing = choosing if images.test is images.chooser else labelled_features(subject, images.test, settings, options)
    learnt = truth_of(images.train)
    classes = learnt.shape[1] if learnt.ndim == 2 else 1 + max(int(labels_of(part).max()) for part in images)
    heads = LinearSweep(settings.lrs, classes, choosing.features.width(settings.kind), options.seed, subject.device)
    task = _task(subject, images, settings, options)
    kept = _taken_up(state_path, task, heads)
    epochs = range(len(kept["choosing"]), settings.epochs)
    source = _source(subject, images.train, settings, options, epochs)
    for epoch in console.steps("linear probe, epochs", epochs, settings.epochs, len(kept["choosing"])):
        factor = (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
        for features, labels in source(epoch):
            heads.step(features, labels, factor)
        kept["choosing"].append(percent(heads, choosing).tolist())
        kept["test"].append(kept["choosing"][-1] if testing is choosing else percent(heads, testing).tolist())
        if heads.lost.all():
            raise WorkError(f"no learning rate gave finite weights, not even {min(settings.lrs):g}: give a smaller --lr")
        _keep_best(kept, heads)
        if distributed.is_main() and settings.mode == "paper" and (keep or epoch + 1 < settings.epochs):
            store.save_file(state_path, {"task": task, "heads": heads.state(), **kept})
    if not keep:
        forget([state_path])
    excluded = tuple(heads.lost.nonzero()[:, 0].tolist())
    head = best_place(np.array(kept["choosing"]), excluded)[1]
    weight, bias = kept["weight"][head].clone(), kept["bias"][head].clone()
    return Trained(np.array(kept["choosing"]), np.array(kept["test"]), weight, bias, excluded)


def forget(states: Sequence[Path]) -> None:
    """Delete the states of finished trainings."""
    for path in states if distributed.is_main() else ():
        path.unlink(missing_ok=True)


def _keep_best(kept: dict[str, Any], heads: LinearSweep) -> None:
    """Each head as it was in its best epoch: the best of all may yet be excluded."""
    now = torch.tensor(kept["choosing"][-1][0])
    better = ((now > kept["best"]) & ~heads.lost.cpu()).nonzero()[:, 0]
    for name, value in (("best", now), ("weight", heads.weight), ("bias", heads.bias)):
        kept[name][better] = value[better.to(value.device)].cpu()


class LabelledFeatures(NamedTuple):
    """Features of images in their order, on disk, and their labels."""

    features: Features
    labels: Tensor
    kind: str
    device: torch.device

    def rows(self, numbers: np.ndarray | slice) -> tuple[Float[Tensor, "b d"], Tensor]:
        """Features and labels of some images, on the device."""
        return self.features.rows(self.kind, numbers).to(self.device), self.labels[numbers].to(self.device)


def labelled_features(subject: Viewed, images: Images, settings: Settings, options: Common) -> LabelledFeatures:
    """Centre-crop features of these images."""
    found = centre_features(subject, images, settings, options)
    return LabelledFeatures(found, truth_of(images), settings.kind, subject.device)


def centre_features(subject: Viewed, images: Images, settings: Settings, options: Common) -> Features:
    """Features alone."""
    arrays = settings.arrays or needed(settings.kind, subject.loaded.backbone)
    return extract(subject.loaded.backbone, images, subject.view, options, arrays)


def truth_of(images: Images) -> Tensor:
    """Class numbers [n], or 0 and 1 for each of several labels [n, k]."""
    return labels_of(images) if images.several is None else several_of(images)


def logits_of(trained: Trained, part: LabelledFeatures) -> Float[Tensor, "n k"]:
    """The best head's logits of all images, on the CPU."""
    weight, bias = trained.weight.to(part.device), trained.bias.to(part.device)
    starts = range(0, len(part.labels), VAL_BATCH)
    return torch.cat([(part.rows(slice(start, start + VAL_BATCH))[0] @ weight.T + bias).cpu() for start in starts])


def percent(heads: LinearSweep, part: LabelledFeatures) -> Float[np.ndarray, "2 h"]:
    """Top-1 and top-5 of every head, each process counts its share; of several labels an image mean AP, twice."""
    if part.labels.ndim == 2:
        precision = heads.mean_ap(*part.rows(slice(None)))
        return precision.expand(2, -1).double().cpu().numpy()
    right = torch.zeros(2, len(heads.lr), dtype=torch.long, device=part.device)
    starts = range(0, len(part.labels), VAL_BATCH)[distributed.rank() :: distributed.world_size()]
    for start in starts:
        right += heads.right(*part.rows(slice(start, start + VAL_BATCH)))
    counted = distributed.mean(right.double()) * distributed.world_size()
    heads.lost |= distributed.mean(heads.lost.double()) > 0  # in any process
    return (100 * counted * ~heads.lost / len(part.labels)).cpu().numpy()


Source = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""The batches of an epoch: features [b, d] and labels [b], this process's share of each step."""


def _source(subject: Viewed, images: Images, settings: Settings, options: Common, epochs: range) -> Source:
    """`epochs` are those that will be asked for, in this order."""

    def steps(epoch: int) -> list[np.ndarray]:
        return _steps(len(images), options, epoch)

    if settings.mode == "paper":
        crops = random_crops(images, epochs, steps, subject.view.crop, subject.loaded.backbone.shape, options)
        return lambda epoch: _augmented(subject, images, settings.kind, steps(epoch), crops)
    part = labelled_features(subject, images, settings, options)
    return lambda epoch: (part.rows(numbers) for numbers in steps(epoch))


def _steps(count: int, options: Common, epoch: int) -> list[np.ndarray]:
    """This process's images of every step of an epoch. The last step has the remaining images, as in the original.

    Every process has as many: where they do not divide the images, the first of the order come once more at its end, by the rule
    of torch's DistributedSampler.
    """
    order = np.random.default_rng([options.seed, 1, epoch]).permutation(count)
    processes = distributed.world_size()
    order = np.resize(order, math.ceil(count / processes) * processes)
    steps = [order[start : start + options.batch_size] for start in range(0, len(order), options.batch_size)]
    return [numbers[distributed.rank() :: processes] for numbers in steps]


def _augmented(
    subject: Viewed, images: Images, kind: str, steps: list[np.ndarray], crops_of: Iterator[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features of random resized crops, by a forward in bfloat16. Raises WorkError naming an image whose are not finite."""
    labels, backbone = truth_of(images), subject.loaded.backbone
    for numbers, crops in zip(steps, crops_of, strict=False):  # the crops of later epochs follow
        with torch.inference_mode(), torch.autocast(subject.device.type, torch.bfloat16):
            found = represent(backbone, crops.to(subject.device, non_blocking=True), needed(kind, backbone))
            features = torch.cat(side_by_side(found, kind), dim=1)
        finite.checked(features, backbone, lambda row, numbers=numbers: images.where(int(numbers[row])))  # type: ignore[misc]
        yield features.clone(), labels[numbers].to(subject.device)


def _task(subject: Viewed, images: Division, settings: Settings, options: Common) -> str:
    """Digest of everything that the training depends on: a state of another task is not taken up."""
    weights = weights_digest(subject.loaded.backbone)
    pictures = [part.fingerprint() for part in images] + [truth_of(part) for part in images]
    processes = distributed.world_size()
    about = [weights, pictures, list(settings), list(subject.view), options.batch_size, options.seed, processes, VERSION]
    return store.checksum(about)


def _taken_up(path: Path, task: str, heads: LinearSweep) -> dict[str, Any]:
    """Restore a training's state: returns lists by epoch and the best result so far; loads the heads."""
    weight, bias = torch.zeros(heads.weight.shape), torch.zeros(heads.bias.shape)
    fresh: dict[str, Any] = {
        "choosing": [],
        "test": [],
        "best": torch.full((len(heads.lr),), -1.0),
        "weight": weight,
        "bias": bias,
    }
    if not path.exists():
        return fresh
    state = store.read_torch(path)
    if state.pop("task", None) != task:
        console.say(f"{path} belongs to another task: starting from the beginning")
        return fresh
    heads.load(checked.mapping(state, str(path), KEPT).pop("heads"), path)
    state.pop("heads")
    epochs = [checked.listed(state[name], f"{path}: {name}") for name in ("choosing", "test")]
    if not all(_is_percent(one, len(heads.lr)) for part in epochs for one in part):
        raise UserError(f"{path} holds no percentages of {len(heads.lr)} heads: delete it to begin anew")
    if len(epochs[0]) != len(epochs[1]):
        raise UserError(f"{path} holds {len(epochs[0])} and {len(epochs[1])} epochs: delete it to begin anew")
    for name, shape in (("best", heads.lr.shape), ("weight", heads.weight.shape), ("bias", heads.bias.shape)):
        checked.part({name: state[name]}, name, path, *shape)
    for best in state["best"].tolist():
        checked.number(best, f"{path}: best", -1.0, 100.0)
    console.say(f"continuing after epoch {len(state['choosing'])} ({path})")
    return state


def _is_percent(value: Any, heads: int) -> bool:
    """Whether it is what `percent` gives, as lists."""
    rows = value if isinstance(value, list) and len(value) == 2 else [None]
    return all(isinstance(row, list) and len(row) == heads and checked.finite(row) for row in rows)


def keep(path: Path, trained: Trained, subject: Viewed, settings: Settings, images: Images, protocol: Mapping[str, Any]) -> None:
    """The best head as safetensors: `weight` [k, d], `bias` [k], what it wants, how it came about; for the robustness suite."""
    shape = subject.loaded.backbone.shape
    about = {
        "features": settings.kind,
        "arch": shape.arch,
        "weights": weights_digest(subject.loaded.backbone),
        "view": list(subject.view),
        "classes": list(images.classes),
        "task": "classes" if images.several is None else "multi-label",
        "protocol": dict(protocol),
    }
    store.save_backbone(path, {"weight": trained.weight, "bias": trained.bias}, about)
    terminal.say(f"best head saved to {os.fspath(path)}")
