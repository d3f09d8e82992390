"""The training behind `probes.linear`: epochs over frozen features, which are computed once or anew for augmented crops.

h heads, e epochs, b images of a batch, d width of the features.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from checkpoints import checked, store, terminal
from checkpoints.command import UserError
from pretrain import distributed
from pretrain.sources import Images
from probes import common, show
from probes.common import Common, Subject
from probes.crops import random_crops
from probes.features import Features, extract, needed, represent, side_by_side, weights_digest
from probes.heads import Heads

VAL_BATCH = 1024
KEPT = ("heads", "choosing", "test", "best", "weight", "bias")
"""What the state of an unfinished training holds besides its task."""


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
    """Percent after every epoch, and the best head by the choosing images."""

    choosing: Float[np.ndarray, "e 2 h"]
    test: Float[np.ndarray, "e 2 h"]
    """Top-1 and top-5 of every head."""
    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]


def train(subject: Subject, images: Division, settings: Settings, options: Common, state_path: Path) -> Trained:
    """Train all heads for all epochs. After each epoch the state is kept, and the next call goes on from it."""
    choosing = held(subject, images.chooser, settings, options)
    testing = choosing if images.test is images.chooser else held(subject, images.test, settings, options)
    classes = 1 + max(int(common.labels_of(part).max()) for part in images)
    heads = Heads(settings.lrs, classes, choosing.features.width(settings.kind), options.seed, subject.device)
    task = _task(subject, images, settings, options)
    kept = _taken_up(state_path, task, heads)
    epochs = range(len(kept["choosing"]), settings.epochs)
    source = _source(subject, images.train, settings, options, epochs)
    for epoch in show.steps("linear probe, epochs", epochs, settings.epochs, len(kept["choosing"])):
        factor = (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
        for features, labels in source(epoch):
            heads.step(features, labels, factor)
        kept["choosing"].append(percent(heads, choosing).tolist())
        kept["test"].append(kept["choosing"][-1] if testing is choosing else percent(heads, testing).tolist())
        if kept["choosing"][-1] and max(kept["choosing"][-1][0]) > kept["best"]:
            head = int(np.argmax(kept["choosing"][-1][0]))
            kept |= {
                "best": kept["choosing"][-1][0][head],
                "weight": heads.weight[head].cpu().clone(),
                "bias": heads.bias[head].cpu().clone(),
            }
        if distributed.is_main() and epoch + 1 < settings.epochs and settings.mode == "paper":
            store.save_file(state_path, {"task": task, "heads": heads.state(), **kept})
    if distributed.is_main() and state_path.exists():
        state_path.unlink()
    return Trained(np.array(kept["choosing"]), np.array(kept["test"]), kept["weight"].clone(), kept["bias"].clone())


class Held(NamedTuple):
    """Features of images in their order, on disk, and their labels."""

    features: Features
    labels: Tensor
    kind: str
    device: torch.device

    def rows(self, numbers: np.ndarray | slice) -> tuple[Float[Tensor, "b d"], Tensor]:
        """Features and labels of some images, on the device."""
        return self.features.rows(self.kind, numbers).to(self.device), self.labels[numbers].to(self.device)


def held(subject: Subject, images: Images, settings: Settings, options: Common) -> Held:
    """Centre-crop features of these images."""
    found = extract(subject.loaded.backbone, images, subject.view, options, settings.arrays or needed(settings.kind))
    return Held(found, common.labels_of(images), settings.kind, subject.device)


def percent(heads: Heads, part: Held) -> Float[np.ndarray, "2 h"]:
    """Top-1 and top-5 of every head; each process counts its share."""
    right = torch.zeros(2, len(heads.lr), dtype=torch.long, device=part.device)
    starts = range(0, len(part.labels), VAL_BATCH)[distributed.rank() :: distributed.world_size()]
    for start in starts:
        right += heads.right(*part.rows(slice(start, start + VAL_BATCH)))
    counted = distributed.mean(right.double()) * distributed.world_size()
    return (100 * counted / len(part.labels)).cpu().numpy()


Source = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""The batches of an epoch: features [b, d] and labels [b], this process's share of each step."""


def _source(subject: Subject, images: Images, settings: Settings, options: Common, epochs: range) -> Source:
    """`epochs` are those that will be asked for, in this order."""

    def steps(epoch: int) -> list[np.ndarray]:
        return _steps(len(images), options, epoch)

    if settings.mode == "paper":
        crops = random_crops(images, epochs, steps, subject.view.crop, subject.loaded.backbone.shape, options)
        return lambda epoch: _augmented(subject, common.labels_of(images), settings.kind, steps(epoch), crops)
    part = held(subject, images, settings, options)
    return lambda epoch: (part.rows(numbers) for numbers in steps(epoch))


def _steps(count: int, options: Common, epoch: int) -> list[np.ndarray]:
    """This process's images of every step of an epoch; what does not fill a step is left out, unless there is but one."""
    order = np.random.default_rng([options.seed, 1, epoch]).permutation(count)
    size = min(options.batch_size, count - count % distributed.world_size())
    whole = [order[start : start + size] for start in range(0, count - size + 1, size)]
    return [numbers[distributed.rank() :: distributed.world_size()] for numbers in whole]


def _augmented(
    subject: Subject, labels: Tensor, kind: str, steps: list[np.ndarray], crops_of: Iterator[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features of random resized crops, by a forward in bfloat16."""
    for numbers, crops in zip(steps, crops_of, strict=False):  # the crops of later epochs follow
        with torch.inference_mode(), torch.autocast(subject.device.type, torch.bfloat16):
            found = represent(subject.loaded.backbone, crops.to(subject.device, non_blocking=True), needed(kind))
            features = torch.cat(side_by_side(found, kind), dim=1)
        yield features.clone(), labels[numbers].to(subject.device)


def _task(subject: Subject, images: Division, settings: Settings, options: Common) -> str:
    """Digest of everything that the training depends on: a state of another task is not taken up."""
    weights = weights_digest(subject.loaded.backbone)
    pictures = [part.fingerprint() for part in images] + [common.labels_of(part) for part in images]
    processes = distributed.world_size()
    return store.checksum([weights, pictures, list(settings), list(subject.view), options.batch_size, options.seed, processes])


def _taken_up(path: Path, task: str, heads: Heads) -> dict[str, Any]:
    """What was reached before: lists by epoch, the best so far; the heads are moved to where they were."""
    fresh: dict[str, Any] = {"choosing": [], "test": [], "best": -1.0}
    if not path.exists():
        return fresh
    state = store.read_torch(path)
    if state.pop("task", None) != task:
        show.say(f"{path} belongs to another task: beginning anew")
        return fresh
    heads.load(checked.mapping(state, str(path), KEPT).pop("heads"), path)
    state.pop("heads")
    epochs = [checked.listed(state[name], f"{path}: {name}") for name in ("choosing", "test")]
    if not all(_is_percent(one, len(heads.lr)) for part in epochs for one in part):
        raise UserError(f"{path} holds no percentages of {len(heads.lr)} heads: delete it to begin anew")
    if len(epochs[0]) != len(epochs[1]):
        raise UserError(f"{path} holds {len(epochs[0])} and {len(epochs[1])} epochs: delete it to begin anew")
    checked.number(state["best"], f"{path}: best", -1.0, 100.0)
    checked.part(state, "weight", path, *heads.weight.shape[1:])
    checked.part(state, "bias", path, *heads.bias.shape[1:])
    show.say(f"going on after epoch {len(state['choosing'])} ({path})")
    return state


def _is_percent(value: Any, heads: int) -> bool:
    """Whether it is what `percent` gives, as lists."""
    rows = value if isinstance(value, list) and len(value) == 2 else [None]
    return all(isinstance(row, list) and len(row) == heads and checked.finite(row) for row in rows)


def keep(path: Path, trained: Trained, subject: Subject, settings: Settings, images: Images) -> None:
    """The best head as safetensors: `weight` [k, d], `bias` [k], and what it wants, for the robustness suite."""
    shape = subject.loaded.backbone.shape
    about = {
        "features": settings.kind,
        "arch": shape.arch,
        "weights": weights_digest(subject.loaded.backbone),
        "view": list(subject.view),
        "classes": list(images.classes),
    }
    store.save_backbone(path, {"weight": trained.weight, "bias": trained.bias}, about)
    terminal.say(f"best head kept in {os.fspath(path)}")
