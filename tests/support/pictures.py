"""Images that tests write, in every layout that is read."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_sample_image


def noise(count: int, size: int = 20) -> list[Image.Image]:
    """Small random pictures, a little wider than high."""
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (size, size + 4, 3), dtype=np.uint8)) for _ in range(count)]


def photographs() -> list[np.ndarray]:
    """Two photographs of 427 x 640 pixels that come with scikit-learn."""
    return [np.array(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


CLASSES = ("bird", "cat")


def name_of(index: int) -> str:
    return CLASSES[index % 2]


def write_folders(root: Path, count: int = 6) -> list[Image.Image]:
    """Class folders with pictures 0, 2, 4, ... of birds and 1, 3, 5, ... of cats."""
    images = noise(count)
    for index, image in enumerate(images):
        (root / name_of(index)).mkdir(parents=True, exist_ok=True)
        image.save(root / name_of(index) / f"{index}.png")
    return images


def write_flat(root: Path, images: Sequence[Image.Image]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        image.save(root / f"{index}.png")


def write_list(path: Path, images: Sequence[Image.Image], *, labels: bool) -> None:
    write_flat(path.parent / "listed", images)
    lines = [f"listed/{index}.png" + (f"\t{name_of(index)}" if labels else "") for index in range(len(images))]
    path.write_text("# pictures\n\n" + "\n".join(lines) + "\n")


def write_parquet(path: Path, images: Sequence[Image.Image], labels: Sequence[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": encoded(image), "path": f"{index}.png"} for index, image in enumerate(images)]
    pq.write_table(pa.table({"image": rows, "label": list(labels)}), path)


def write_shard(path: Path, images: Sequence[Image.Image], first: int = 0, *, labels: bool = True) -> None:
    """A tar in WebDataset's layout: 000000.png with 000000.cls, and a file that belongs to no image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:

        def add(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

        for index, image in enumerate(images, first):
            add(f"{index:06d}.png", encoded(image))
            add(f"{index:06d}.json", b"{}")
            if labels:
                add(f"{index:06d}.cls", str(index % 2).encode())
        add("notes.json", b"{}")
