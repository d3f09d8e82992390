"""The embedded sample in the layouts of dense tasks: COCO (boxes and masks) and ADE20K (label maps).

Each image has one or two things, which may hide parts of each other. `python -m pretrain.sample --coco DIR` and `--ade20k DIR`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from pretrain.sample import picture_files
from pretrain.sample.scene import CATEGORIES, CLASSES, SEED, Picture, Scene, draw_scene, render

SIZE = 72
COUNTS = {"train": 800, "val": 200}
MOST_THINGS = 2
IDS = tuple(range(1, len(CLASSES) + 1))
"""Of COCO's categories."""
LEAST_VISIBLE = 0.002
"""Share of the image; what shows less of itself is not annotated."""


class Dense(NamedTuple):
    """One image and what is in it."""

    scene: Scene
    picture: Picture


def draw(part: str, number: int, size: int = SIZE, seed: int = SEED, classes: int = len(CATEGORIES)) -> Dense:
    """Image `number` of a part, with things of the first `classes` classes."""
    generator = np.random.default_rng([seed, 10 + list(COUNTS).index(part), number])
    kinds = generator.integers(classes, size=generator.integers(1, MOST_THINGS + 1))
    scene = draw_scene(generator, [int(kind) for kind in kinds])
    return Dense(scene, render(scene, size))


def write_coco(
    root: Path, counts: dict[str, int], size: int = SIZE, seed: int = SEED, ids: Sequence[int] = IDS, masks: bool = True
) -> None:
    """`annotations/instances_{train,val}2017.json` and `{train,val}2017/*.jpg`, as COCO has them.

    `ids` are those of the categories, of which there are as many; without `masks` there are boxes alone.
    """
    categories = [{"id": one, "name": name, "supercategory": "thing"} for one, name in zip(ids, CLASSES, strict=False)]
    for part, count in counts.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count):
            dense, name = draw(part, number, size, seed, len(ids)), f"{number:012d}.jpg"
            picture_files.save(dense.picture.image, root, f"{part}2017", name, quality=95)
            images.append({"id": number, "file_name": name, "height": size, "width": size})
            for thing, what in enumerate(dense.scene.things):
                mask = dense.picture.owner == thing
                if mask.mean() >= LEAST_VISIBLE:
                    numbers = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[what.kind], "iscrowd": 0}
                    annotations.append(numbers | outline(mask))
                    if not masks:
                        del annotations[-1]["segmentation"]
        content = {"images": images, "annotations": annotations, "categories": categories}
        picture_files.save_text(json.dumps(content).encode(), root, "annotations", f"instances_{part}2017.json")


def outline(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """COCO's box [x, y, width, height], area, and mask as uncompressed run lengths down the columns."""
    rows, columns = np.where(mask)
    left, top = int(columns.min()), int(rows.min())
    box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"bbox": box, "area": int(mask.sum()), "segmentation": {"size": list(mask.shape), "counts": counts}}


def write_ade20k(root: Path, counts: dict[str, int], size: int = SIZE, seed: int = SEED) -> None:
    """`images/{training,validation}/*.jpg` and `annotations/{training,validation}/*.png`, as ADE20K has them.

    0 is nothing (there is none), 1 the background, 2 to 11 the classes.
    """
    for part, count in counts.items():
        folder = {"train": "training", "val": "validation"}[part]
        for number in range(count):
            dense = draw(part, number, size, seed)
            picture_files.save(dense.picture.image, root, "images", folder, f"{number:05d}.jpg", quality=95)
            picture_files.save(label_map(dense), root, "annotations", folder, f"{number:05d}.png")


def label_map(dense: Dense) -> UInt8[np.ndarray, "h w"]:
    """1 the background, 2 to 11 the classes."""
    kinds = np.array([thing.kind + 2 for thing in dense.scene.things] + [1], dtype=np.uint8)  # -1 is the background
    return kinds[dense.picture.owner]
