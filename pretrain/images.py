"""Where images come from: class folders, flat folders, parquet files, the embedded sample.

A source may have parts ("train", "val"): sub-folders, parquet files, or the sample's own.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from checkpoints.command import UserError
from checkpoints.store import first_line
from pretrain import sample

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".gif"})
PARTS = {"train": ("train",), "val": ("val", "test", "validation")}


class Images(ABC):
    """Images by number, each an RGB Pillow image; `labels` [count] where they are known."""

    name: str
    labels: np.ndarray | None
    classes: Sequence[str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Image.Image: ...


class Subset(Images):
    """Some of a source's images."""

    def __init__(self, images: Images, numbers: np.ndarray) -> None:
        self._images, self._numbers = images, numbers
        self.name, self.classes = f"{images.name}, {len(numbers)} images", images.classes
        self.labels = None if images.labels is None else images.labels[numbers]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Image.Image:
        return self._images[int(self._numbers[index])]


def subset(images: Images, count: int, seed: int = 0) -> Subset:
    """At most `count` images, drawn once from the seed."""
    return Subset(images, np.random.default_rng(seed).permutation(len(images))[:count])


class Sample(Images):
    """The embedded data set (see `pretrain.sample`)."""

    def __init__(self, part: str) -> None:
        drawn = sample.classification(part)
        self.name = f"sample ({part})"
        self.labels, self.classes = drawn.labels, drawn.classes
        self._images = drawn.images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index])


class Files(Images):
    """Image files of a folder. Its sub-folders are the classes, unless images lie in the folder itself (no labels then)."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not self._paths:
            raise UserError(f"there are no images in {folder} (looked for {', '.join(sorted(SUFFIXES))}, sub-folders included)")
        self.labels, self.classes = None, ()
        parents = [path.relative_to(folder).parts[0] for path in self._paths]
        if all(path.parent != folder for path in self._paths):
            self.classes = sorted(set(parents))
            number = {name: index for index, name in enumerate(self.classes)}
            self.labels = np.array([number[parent] for parent in parents])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Image.Image:
        path = self._paths[index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except OSError as error:
            raise UserError(f"{path} is no readable image ({first_line(error)}): remove it") from error


class Parquet(Images):
    """Rows of parquet files in the layout of Hugging Face data sets: `image` = struct of bytes and path, `label` = integer."""

    def __init__(self, paths: list[Path]) -> None:
        self.name = str(paths[0].parent) if len(paths) > 1 else str(paths[0])
        try:
            table = pa.concat_tables([pq.read_table(path, memory_map=True) for path in paths])
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{self.name} is no readable parquet ({first_line(error)})") from error
        column = next((name for name in ("image", "img") if name in table.column_names), None)
        if column is None or not pa.types.is_struct(table.schema.field(column).type):
            raise UserError(
                f"{self.name} has no column `image` with a struct of bytes and path: its columns are {table.column_names}"
            )
        self._bytes = table.column(column).combine_chunks().field("bytes")
        label = next((name for name in ("label", "labels", "fine_label") if name in table.column_names), None)
        self.labels = None if label is None else table.column(label).to_numpy()
        self.classes = [] if self.labels is None else [str(value) for value in range(int(self.labels.max()) + 1)]
        if not len(self._bytes):
            raise UserError(f"{self.name} has no rows")

    def __len__(self) -> int:
        return len(self._bytes)

    def __getitem__(self, index: int) -> Image.Image:
        content = self._bytes[index].as_py()
        try:
            return Image.open(io.BytesIO(content)).convert("RGB")
        except (OSError, TypeError) as error:
            raise UserError(f"row {index} of {self.name} is no readable image ({first_line(error)})") from error


def open_images(source: str, part: str | None = "train") -> Images:
    """The images of `--data`: `sample`, a folder, a parquet file, or a folder of parquet files.

    Where the source is divided (sub-folders or files named train, and val, test or validation), `part` says which half;
    None, or a source that is not divided, gives all of it. Raises UserError when nothing readable is there.
    """
    if source == "sample":
        return Sample(part or "train")
    path = Path(source)
    if not path.exists():
        raise UserError(f"there is no folder or file {path}: --data takes a folder of images, parquet files, or `sample`")
    if path.is_file():
        if path.suffix != ".parquet":
            raise UserError(f"{path} is not a parquet file: --data takes a folder of images, parquet files, or `sample`")
        return Parquet([path])
    found = parts_of(path)
    if part in found:
        return _open(found[part])
    if part == "val":
        raise UserError(f"{path} has no part named {', '.join(PARTS['val'])} to test on: name one with --val")
    return _open([path])


def has_part(source: str, part: str) -> bool:
    """Whether `open_images(source, part)` would give another part than the whole."""
    return source == "sample" or (Path(source).is_dir() and part in parts_of(Path(source)))


def parts_of(folder: Path) -> dict[str, list[Path]]:
    """Which parts a folder is divided into, as sub-folders or parquet files."""
    parts: dict[str, list[Path]] = {}
    for part, names in PARTS.items():
        for name in names:
            files = sorted(folder.glob(f"{name}*.parquet"))
            if (folder / name).is_dir():
                parts[part] = [folder / name]
            elif files:
                parts[part] = files
            if part in parts:
                break
    return parts if "train" in parts else {}


def _open(paths: list[Path]) -> Images:
    if len(paths) == 1 and paths[0].is_dir():
        files = sorted(paths[0].glob("*.parquet"))
        return Parquet(files) if files else Files(paths[0])
    return Parquet(paths)
