"""Predictions as files: COCO's results for detectors, label maps for segmenters, pictures of both."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from checkpoints import places, store
from transfer.pictures import drawn_names
from transfer.trained import Trained

VOID = (0, 0, 0)
"""Colour of labels that are no class."""


def coco_results(sample: Any, image_id: int, ids: Sequence[int], score: float) -> list[dict[str, Any]]:
    """An image's detections as entries of COCO's results format, best first.

    `bbox` is [x, y, width, height] in pixels of the image as it is seen, to 1/1000; `segmentation` a compressed RLE.
    """
    from pycocotools import mask as rle  # noqa: PLC0415 (an optional import)

    found = sample.pred_instances
    boxes, scores, labels = found.bboxes.double().numpy(), found.scores.double().numpy(), found.labels.numpy()
    masks = found.masks.numpy() if "masks" in found else None
    entries = []
    for number in np.argsort(-scores, kind="stable"):
        if scores[number] < score:
            break
        left, top, right, bottom = boxes[number]
        entry = {
            "image_id": image_id,
            "category_id": ids[int(labels[number])],
            "bbox": [round(float(value), 3) for value in (left, top, right - left, bottom - top)],
            "score": round(float(scores[number]), 7),
        }
        if masks is not None:
            coded = rle.encode(np.asfortranarray(masks[number].astype(np.uint8)))
            entry["segmentation"] = {"size": list(coded["size"]), "counts": coded["counts"].decode()}
        entries.append(entry)
    return entries


def label_map(sample: Any, trained: Trained) -> Image.Image:
    """An image's classes as a palette picture of the data's own labels."""
    classes = sample.pred_sem_seg.data[0].numpy()
    picture = Image.fromarray(np.asarray(trained.ids, np.uint8)[classes], mode="P")
    picture.putpalette(palette_of(trained).ravel().tolist())
    return picture


def palette_of(trained: Trained) -> UInt8[np.ndarray, "256 3"]:
    """The colour of each label."""
    found = np.tile(np.asarray(VOID, np.uint8), (256, 1))
    for label, colour in zip(trained.ids, trained.palette, strict=False):
        found[label] = colour
    return found


class Drawing:
    """Draws predictions over images, by the toolbox's own visualizer."""

    def __init__(self, trained: Trained, score: float) -> None:
        palette = [tuple(colour) for colour in trained.palette] or None
        meta = {"classes": drawn_names(trained.classes, trained.task), "palette": palette}
        self.more: Mapping[str, Any] = {}
        if trained.task == "coco":
            from mmdet.visualization import DetLocalVisualizer as Visualizer  # noqa: PLC0415 (a heavy, optional import)

            self.more = {"pred_score_thr": score}
        else:
            from mmseg.visualization import SegLocalVisualizer as Visualizer  # noqa: PLC0415
        self.visualizer: Any = Visualizer(name="predict")
        self.visualizer.dataset_meta = meta

    def __call__(self, image: np.ndarray, sample: Any) -> Image.Image:
        if image.shape[:2] == (1, 1):  # MMSegmentation takes the mask of one pixel for an index
            return Image.fromarray(image)
        self.visualizer.add_datasample("", image, data_sample=sample, draw_gt=False, show=False, **self.more)
        return Image.fromarray(self.visualizer.get_image())


def write_picture(picture: Image.Image, folder: Path, *names: str) -> None:
    """Store a picture as PNG below a folder."""
    stream = io.BytesIO()
    picture.save(stream, "png")
    store.write_bytes(places.below(folder, *names), stream.getvalue())
