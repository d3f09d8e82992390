"""Checks whether a step's data can serve it, while planning: each data set is opened as the step's command opens it.

A step whose data cannot serve is left out. Where there are fewer training images than a step of the recipe takes,
the plan gives the command a smaller one, in words that stand on its command line and in its record.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from checkpoints import flat, zoo
from checkpoints.cli import UserError, WorkError, parse
from pretrain.images.hubs import is_hub
from pretrain.images.open import has_part, open_images
from pretrain.images.tar_shards import is_shards
from pretrain.models.backbone import Loaded
from probes.finetune import data as finetune_data
from probes.finetune import subsets
from probes.finetune.dataset import epoch_of, steps_in
from probes.finetune.options import FinetuneOptions, read_command_line, settled
from probes.reproduce.steps import FEW, Step
from probes.retrieval import tasks
from probes.robustness import suites
from probes.shared import dense_layout
from probes.shared.subject import Common, Subject, labelled, labelled_parts
from probes.video import davis

PLACE = "x"
"""Stands for paths of a command line that say nothing of the data."""
DENSE = ("coco", "ade20k")
RATES = ("lr", "min_lr", "warmup_lr")
UNUSABLE = (UserError, WorkError, OSError)
Opened = TypeVar("Opened")
PAIR = 2
"""Images that mixup takes at least."""


class Look(NamedTuple):
    """Result of the check."""

    reason: str = ""
    """Why the data cannot serve, or nothing."""
    words: tuple[str, ...] = ()
    """Flags that fit the step to its data."""
    note: str = ""
    """One line on what these change."""
    classes: tuple[str, ...] | None = None
    """Classes of a head that is trained on the data."""
    asks: Mapping[str, Sequence[str]] = {}
    """Classes that the linear head must know, by what they are for."""


def remembered(opener: Callable[[str], Opened]) -> Callable[[str], Opened]:
    """The opener with a cache, for failures too: a million names take a while to read."""
    known: dict[str, Opened | Exception] = {}

    def opened(data: str) -> Opened:
        if data not in known:
            try:
                known[data] = opener(data)
            except UNUSABLE as error:
                known[data] = error
        found = known[data]
        if isinstance(found, Exception):
            raise found
        return found

    return opened


class Looker:
    """Looks at the data of steps. Sources that are fetched (`hf:`, `torchvision:`, shards elsewhere) are left to the step itself.

    `fetch`: DINO's ViT-S/16 may be fetched, to know whether it is to be had.
    """

    def __init__(self, loaded: Loaded, few: Sequence[Path], fetch: bool) -> None:
        self._loaded, self._few, self._fetch = loaded, few, fetch
        self._open_parts = remembered(lambda data: labelled_parts(Common(data=data), loaded.backbone.shape))
        self._open_tuned = remembered(lambda data: finetune_data.open_parts(FinetuneOptions(data=data)))

    def __call__(self, step: Step, data: str) -> Look:
        """Never raises: what an opener raises is the reason."""
        module = step.words[1] if step.words[0] == "-m" else ""
        looks: dict[str, Callable[[Step, str, list[str]], Look]] = {
            "probes.finetune": self._tuned,
            "probes.robustness": self._suite,
            "probes.retrieval": self._retrieved,
            "probes.video": self._clips,
            "probes.cluster": self._tested,
        }
        elsewhere = is_hub(data) or (is_shards(data) and not Path(data).exists())
        if elsewhere or (step.needs == "sample" and step.name != "occlusion"):  # the sample is always there
            return Look()
        look = self._dense if step.needs in DENSE else looks.get(module, self._labelled)
        try:
            return look(step, data, self._line(step, data))
        except UNUSABLE as error:
            return Look(reason=str(error))

    def _line(self, step: Step, data: str) -> list[str]:
        """The step's command line, but for the paths that say nothing of its data."""
        known = dict.fromkeys(("ckpt", "out", "folder", "head"), PLACE) | {"data": data}
        known |= {name: str(path) for name, path in zip(("few_1", "few_10"), self._few, strict=False)}
        return [word.format(**known) for word in step.words[2:]]

    def _labelled(self, step: Step, data: str, line: list[str]) -> Look:
        """Probes that learn from one part and test on the other."""
        parts = self._open_parts(data)
        for names in self._few if step.name in FEW else ():
            subsets.named(parts.train, names)
        return Look(classes=tuple(parts.train.classes))

    def _tested(self, step: Step, data: str, line: list[str]) -> Look:
        """Test images alone."""
        labelled(open_images(data, "val" if has_part(data, "val") else None))
        return Look()

    def _tuned(self, step: Step, data: str, line: list[str]) -> Look:
        shape = self._loaded.backbone.shape
        options = settled(read_command_line(line), shape.embed_dim, shape.image_size, shape.kind)
        train, test = self._open_tuned(data)
        return fitted(step.name, len(finetune_data.shared(options, train, test).train), options)

    def _suite(self, step: Step, data: str, line: list[str]) -> Look:
        options = parse(suites.RobustnessOptions, line)
        subject, note = Subject(self._loaded, next(self._loaded.backbone.parameters()).device), ""
        if step.needs == "sample":
            suites.open_saliency(options, subject)
            return Look()
        if step.name == "occlusion" and not self._fetch and not zoo.kept(suites.DINO).is_file():
            options = dataclasses.replace(options, suite="shuffle")  # the same images, without asking for DINO
            note = f"{step.name}: {suites.DINO} says what is salient and is fetched first"
        task = suites.prepare(options, subject)
        return Look(note=note, asks=task.asks)

    def _retrieved(self, step: Step, data: str, line: list[str]) -> Look:
        tasks.open_task(parse(tasks.RetrievalOptions, line), self._loaded.backbone)
        return Look()

    def _clips(self, step: Step, data: str, line: list[str]) -> Look:
        davis.open_clips(data, None)
        return Look()

    def _dense(self, step: Step, data: str, line: list[str]) -> Look:
        root = Path(data)
        if step.needs == "coco" and dense_layout.own_boxes(root):
            return Look(note=f"{step.name}: {data} has not COCO's names, so its own classes count; not compared with the paper")
        lacking = dense_layout.lacking(step.needs, root)
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        return Look(reason=f"{data} lacks {lacking[0]}{more}" if lacking else "")


def fitted(name: str, images: int, options: FinetuneOptions) -> Look:
    """An empty Look if an epoch of so many images has a step of the recipe's; else a smaller step, all rates in proportion.

    The original also scales its rates with the images of a step.
    """
    if steps_in(images, options):
        return Look()
    size = epoch_of(images, options.repeats) // PAIR * PAIR
    if not size:
        return Look(reason=f"there is {images} image to learn from, and mixup takes {PAIR}")
    words = ["--batch-size", str(size)]
    for rate in RATES:
        values = getattr(options, rate)
        values = values if isinstance(values, tuple) else (values,)
        words += [flat.flag(rate), *(f"{value * size / options.batch_size:.6g}" for value in values)]
    said = f"{name}: {images} images, fewer than a step of {options.batch_size}: --batch-size {size}"
    return Look(words=tuple(words), note=f"{said}, learning rates times {size}/{options.batch_size}; not compared with the paper")
