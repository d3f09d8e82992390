"""Labelled images to fine-tune on and to test on, with the parts, labels and classes that the paper's numbers mean.

What is easy to get wrong (the original's script refuses or misreads several): Flowers-102 is learnt from train and val together,
2,040 images, and tested on test; Stanford Cars has its class in column `class`, from 1; iNaturalist's parts are in json files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoints import places, reading
from checkpoints.cli import UserError
from checkpoints.store import first_line
from pretrain.images import tally
from pretrain.images.hubs import is_hub, open_hub
from pretrain.images.open import open_images
from pretrain.images.source import Content, Files, Images, aligned, subset, with_labels
from probes.finetune.options import FinetuneOptions
from probes.finetune.subsets import Share, part_of, share_of
from probes.shared.labelled import without_labels
from probes.shared.subject import of_several_classes

FLOWERS = "torchvision:Flowers102"
CARS = "cars_annos.mat"
YEARS = ("2018", "2019")
OTHERS = "fetch the list from where it was published"


class Data(NamedTuple):
    """Both parts with the same class numbers, and the classes' names."""

    train: Images
    test: Images
    classes: Sequence[str]
    share: Share
    """Subset of the training images that is used."""


class Joined(Images):
    """Several sources with the same classes as one."""

    def __init__(self, parts: Sequence[Images]) -> None:
        first = parts[0]
        self._parts, self._ends = parts, np.cumsum([len(part) for part in parts])
        self.name, self.classes, self.channels = " and ".join(part.name for part in parts), first.classes, first.channels
        self.value_range = first.value_range
        labels = [part.labels for part in parts if part.labels is not None]
        self.labels = np.concatenate(labels) if len(labels) == len(parts) else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, index: int) -> tuple[Images, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[number], index - (int(self._ends[number - 1]) if number else 0)

    def content(self, index: int) -> Content:
        part, inside = self._place(index)
        return part.content(inside)

    def where(self, index: int) -> str:
        part, inside = self._place(index)
        return part.where(inside)


def open_data(options: FinetuneOptions, channels: int) -> Data:
    """Opens the data. Raises UserError if labels are missing, classes differ, or there are not three channels."""
    if channels != 3:
        raise UserError(f"this backbone sees {channels} channels: fine-tuning augments pictures with three")
    return shared(options, *open_parts(options))


def open_parts(options: FinetuneOptions) -> tuple[Images, Images]:
    """All labelled images to learn from and to test on. Raises UserError where labels are missing, or classes differ."""
    train = _open(options.data, "train")
    test = open_images(options.val, None) if options.val else _open(options.data, "val")
    for images in (train, test):
        if images.labels is None:
            raise UserError(without_labels(images, "fine-tuning"))
    train, test = with_labels(train), with_labels(test)
    assert train.labels is not None and test.labels is not None
    of_several_classes(train)
    test, classes = aligned(test, train), train.classes
    assert test.labels is not None
    if int(test.labels.max()) >= len(classes):
        raise UserError(f"{test.name} has labels up to {int(test.labels.max())}, {train.name} only {len(classes)} classes")
    return train, test


def shared(options: FinetuneOptions, train: Images, test: Images) -> Data:
    """The part of the training images that the options keep. Raises UserError for a list that names others."""
    whole, classes = len(train), train.classes
    train = part_of(train, options.percent, options.names, options.seed)
    share = share_of(whole, len(train), options.percent, options.names)
    train = subset(train, options.limit, options.seed) if options.limit else train
    return Data(of_several_classes(train), test, classes, share)


def _open(source: str, part: str) -> Images:
    """One part of `--data`, data sets with a layout of their own included."""
    images = _published(source, part)
    if images is None:
        return open_images(source, part)
    tally.say(images)
    return images


def _published(source: str, part: str) -> Images | None:
    """One part of a data set with a layout of its own, or None for any other source."""
    if is_hub(source) and source.partition("@")[0] == FLOWERS:
        return Joined([open_hub(source, "train"), open_hub(source, "val")]) if part == "train" else open_hub(source, "test")
    if is_hub(source):
        return None
    folder = Path(source)
    if (folder / CARS).is_file():
        return cars(folder, part)
    year = next((year for year in YEARS if (folder / f"train{year}.json").is_file()), None)
    return None if year is None else inaturalist(folder, part, year)


def cars(folder: Path, part: str) -> Images:
    """Stanford Cars as one archive with `cars_annos.mat`: the class from its own column, which counts from 1.

    Raises UserError where scipy is missing or the file is another.
    """
    try:
        from scipy.io import loadmat  # noqa: PLC0415  # optional
    except ImportError as error:
        raise UserError(f"{folder / CARS} needs the package scipy: pip install scipy") from error
    try:
        found = loadmat(folder / CARS, squeeze_me=True)
        rows, names = np.atleast_1d(found["annotations"]), [str(name) for name in np.atleast_1d(found["class_names"])]
        chosen = rows[rows["test"].astype(int) == (part == "val")]
        numbers, named = chosen["class"].astype(int) - 1, [str(path) for path in chosen["relative_im_path"]]
    except (ValueError, KeyError, IndexError, OSError, NotImplementedError) as error:
        raise UserError(f"{folder / CARS} is not Stanford Cars' list ({first_line(error)})") from error
    paths = places.listed(folder, named, file=folder / CARS, cure=OTHERS)
    if not paths or numbers.min() < 0 or numbers.max() >= len(names):
        raise UserError(f"{folder / CARS} has classes outside 1..{len(names)}, or none to {part}")
    return _numbered(Files(f"{folder} ({part})", paths, None), numbers, names)


def inaturalist(folder: Path, part: str, year: str) -> Images:
    """iNaturalist 2018 or 2019: `train2018.json` and `val2018.json` beside the folder of images, as they are published.

    Raises UserError where a file is another.
    """
    path = folder / f"{part}{year}.json"
    try:
        found: dict[str, Any] = reading.values(path, reading.MOST_LISTED)
        names = {image["id"]: str(image["file_name"]) for image in found["images"]}
        known = {category["id"]: str(category.get("name", category["id"])) for category in found["categories"]}
        ids = sorted(known)
        position = {number: place for place, number in enumerate(ids)}
        rows = [(names[one["image_id"]], position[one["category_id"]]) for one in found["annotations"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not iNaturalist's list of the part {part} ({first_line(error)})") from error
    if not rows:
        raise UserError(f"{path} lists no images")
    files = Files(f"{folder} ({part}{year})", places.listed(folder, (name for name, _ in rows), file=path, cure=OTHERS), None)
    return _numbered(files, np.array([label for _, label in rows]), [known[number] for number in ids])


def _numbered(images: Images, labels: np.ndarray, classes: Sequence[str]) -> Images:
    images.labels, images.classes = labels, classes
    return images
