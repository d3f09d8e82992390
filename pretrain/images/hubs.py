"""Data sets by name: `hf:NAME` through the `datasets` library, `torchvision:NAME` through torchvision."""

import contextlib
import inspect
import os
import tarfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from checkpoints import elsewhere, once
from checkpoints.cli import UserError
from checkpoints.places import cache_folder
from checkpoints.store import first_line
from pretrain.images.digests import digest
from pretrain.images.formats import BadImage, guarded, reason
from pretrain.images.labels import Columns, no_columns
from pretrain.images.source import Content, Images, Parquet

SPLITS = {"train": ("train", "training", "trainval"), "val": ("val", "test", "validation", "valid"), "test": ("test",)}


class HuggingFace(Parquet):
    """One split of a Hugging Face data set that has an image column; bytes as they are stored."""

    def __init__(self, name: str, split: Any, below: Sequence[Path], columns: Columns) -> None:
        self.name, self._below = name, below
        column = next((key for key, feature in split.features.items() if type(feature).__name__ == "Image"), None)
        if column is None:
            raise UserError(f"{name} has no column of images: its columns are {split.column_names}")
        table = split.with_format("arrow")[:] if split._indices is not None else split.data.table
        names = {key: found for key, feature in split.features.items() if (found := _class_names(feature))}
        self._read(table.rename_columns(["image" if key == column else key for key in table.column_names]), columns, names)
        self._files = [Path(file["filename"]) for file in split.cache_files]
        self._fingerprint = str(split._fingerprint)

    def files(self) -> Sequence[str] | None:
        return super().files() or None  # of what is in memory alone there are none

    def fingerprint(self) -> str:
        """Digest of the library's fingerprint, which differs between selections from one file, and of the files."""
        return digest([self._fingerprint.encode(), super().fingerprint().encode()])


def _class_names(feature: Any) -> list[str]:
    """The names of a feature's class numbers, also of lists of them."""
    inner = getattr(feature, "feature", None)
    if isinstance(feature, list) and len(feature) == 1:
        inner = feature[0]
    return list(getattr(inner if inner is not None else feature, "names", None) or [])


def open_hugging_face(name: str, part: str | None, columns: Columns) -> Images:
    """`NAME` or `NAME@CONFIGURATION` on the hub, a local folder in its layout, or one written by `save_to_disk`.

    Raises UserError where the library is missing or finds no such data set.
    """
    try:
        datasets: Any = elsewhere.imported("datasets")  # optional, and slow to import
    except ImportError as error:
        raise UserError("hf: needs the library `datasets`: pip install datasets") from error
    path, _, configuration = name.partition("@")
    datasets.disable_progress_bars()
    try:
        saved = any((Path(path) / file).exists() for file in ("dataset_dict.json", "state.json"))
        found = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, configuration or None)
    except Exception as error:  # the library and the network below it fail in many ways
        raise UserError(f"hf:{name} could not be opened ({first_line(error)})") from error
    kept = datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, datasets.config.HF_CACHE_HOME
    below = [Path(folder) for folder in (*kept, path) if os.path.isdir(folder)]
    if not isinstance(found, Mapping):
        return HuggingFace(f"hf:{name}", found, below, columns)
    split = choose_split(f"hf:{name}", list(found), part)
    return HuggingFace(f"hf:{name} ({split})", found[split], below, columns)


def choose_split(name: str, splits: list[str], part: str | None) -> str:
    """The split that is the `part` asked for. Raises UserError where there is none."""
    for split in SPLITS["train" if part is None else part]:
        if split in splits:
            return split
    if len(splits) == 1 and part != "val":
        return splits[0]
    raise UserError(f"{name} has no part for {part}: it has {', '.join(splits)}")


class Torchvision(Images):
    """A torchvision data set; its images come decoded."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name, self._dataset = name, dataset
        labels = next((getattr(dataset, key) for key in ("targets", "_labels", "labels") if hasattr(dataset, key)), None)
        if labels is None and len(dataset) and isinstance(self._row(0)[1], int):
            labels = [self._row(index)[1] for index in range(len(dataset))]
        array = None if labels is None else np.asarray(labels)
        if array is not None and array.ndim == 1 and array.dtype.kind in "iu":
            self.labels = array
            names = getattr(dataset, "classes", None) or [str(number) for number in range(int(array.max()) + 1)]
            self.classes = [str(name) for name in names]

    def __len__(self) -> int:
        return len(self._dataset)

    def _row(self, index: int) -> Any:
        """Image and label. torchvision opens and decodes the picture itself, here through our door. May raise BadImage."""
        try:
            with guarded():
                return self._dataset[index]
        except (OSError, BadImage):
            raise
        except Exception as error:  # broken bytes make Pillow raise almost anything
            raise BadImage(reason(error)) from error

    def content(self, index: int) -> Content:
        image = self._row(index)[0]
        return image if isinstance(image, Image.Image) else np.asarray(image)

    def where(self, index: int) -> str:
        return f"{self.name} {index}"


def open_torchvision(name: str, part: str | None) -> Images:
    """`NAME` or `NAME@FOLDER`, as `torchvision.datasets` spells it; downloaded where it is not there yet ($IBOT_DATA).

    Raises UserError for an unknown name and for what can neither be found nor downloaded.
    """
    from torchvision import datasets  # noqa: PLC0415  # slow to import

    name, _, root = name.partition("@")
    kind = getattr(datasets, name, None)
    if not inspect.isclass(kind) or not issubclass(kind, datasets.VisionDataset):
        raise UserError(f"torchvision has no data set {name}: names are as in torchvision.datasets, CIFAR10 for example")
    if not hasattr(tarfile, "data_filter"):
        raise UserError("torchvision: needs Python 3.10.12, 3.11.4 or later, whose archives cannot write outside their folder")
    # Archives must not write outside their folder (the default of Python 3.14, set here for those before it).
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    known = inspect.signature(kind.__init__).parameters
    options: dict[str, Any] = {}
    if "root" in known:
        options["root"] = root or str(cache_folder("IBOT_DATA", "torchvision") / name)
    if "download" in known:
        options["download"] = True
    try:
        with _alone(options), guarded():
            dataset = _open_part(kind, known, options, part)
    except UserError:
        raise
    except Exception as error:  # downloads, checksums and missing files fail in many ways
        where = f" in {options['root']}" if "root" in options else ""
        raise UserError(f"torchvision:{name} could not be opened{where} ({first_line(error)})") from error
    if not len(dataset):
        raise UserError(f"torchvision:{name} has no images")
    try:
        return Torchvision(f"torchvision:{name} ({part or 'train'})", dataset)
    except (BadImage, OSError) as error:
        raise UserError(f"torchvision:{name} has a picture that cannot be used ({error}): fetch it again") from error


def _alone(options: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
    """torchvision writes downloads in their place: one process after the other, where there is one to be made at all."""
    if "download" not in options or "root" not in options:
        return contextlib.nullcontext()
    folder = Path(options["root"])
    folder.mkdir(parents=True, exist_ok=True)
    return once.alone(folder / "download") if os.access(folder, os.W_OK) else contextlib.nullcontext()


def _open_part(kind: Any, known: Mapping[str, Any], options: dict[str, Any], part: str | None) -> Any:
    """The part of a data set, however this one names its parts."""
    if "train" in known:
        return kind(**options, train=part in (None, "train"))
    if "split" not in known:
        if part == "val":
            raise UserError(f"torchvision's {kind.__name__} has no part to test on: name one with --val")
        return kind(**options)
    for split in SPLITS[part or "train"]:
        try:
            return kind(**options, split=split)
        except ValueError as error:  # torchvision's way to say that there is no such split
            refused = error
    raise refused


@lru_cache  # opening is the only way to know
def has_hub_part(source: str, part: str) -> bool:
    """Whether the data set has a part of its own for `part`."""
    try:
        return open_hub(source, part) is not None
    except UserError:
        return False


def open_hub(source: str, part: str | None, columns: Columns = Columns()) -> Images:  # noqa: B008  # it cannot change
    """`hf:...` or `torchvision:...`. Raises UserError for columns of the latter, which have none."""
    kind, _, name = source.partition(":")
    if kind == "hf":
        return open_hugging_face(name, part, columns)
    no_columns(source, columns)
    return open_torchvision(name, part)


def is_hub(source: str) -> bool:
    """Whether a name that was typed is one of a data set; what is there by that name is a path."""
    return source.startswith(("hf:", "torchvision:")) and not os.path.exists(source)
