"""What a config leaves out of the images and objects that the annotations have; MMDetection leaves it out in silence."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from checkpoints.cli import WorkError


class Used(NamedTuple):
    """Notes on what a config leaves out of a part, and the images that it takes."""

    notes: list[str]
    images: list[Mapping[str, Any]]


def used(name: str, dataset: Any, content: Mapping[str, Any], classes: Sequence[str]) -> Used:
    """Look at one part. Raises WorkError where nothing is left."""
    ids = {category["id"] for category in content["categories"] if category["name"] in set(classes)}
    usable = [one for one in content["annotations"] if not one["iscrowd"]]
    listed = [one for one in usable if one["category_id"] in ids]
    notes = []
    if len(listed) < len(usable):
        notes.append(f"{len(usable) - len(listed)} objects of categories that the config does not name are left out")
    images, rules = content["images"], {} if name == "val" else dict(dataset.get("filter_cfg") or {})
    least = rules.get("min_size", 0)
    kept = [image for image in images if min(image["width"], image["height"]) >= least]
    if len(kept) < len(images):
        flag = "--cfg-options train_dataloader.dataset.filter_cfg.min_size=1 takes them"
        notes.append(f"{len(images) - len(kept)} images with a side under {least} pixels are left out ({flag})")
    with_any = {one["image_id"] for one in listed}
    empty = sum(image["id"] not in with_any for image in kept)
    if empty == len(kept):
        raise WorkError(f"nothing is left for {name}: {'; '.join(notes) or 'no image has an object'}")
    if empty and rules.get("filter_empty_gt"):
        flag = "--cfg-options train_dataloader.dataset.filter_cfg.filter_empty_gt=False takes them"
        notes.append(f"{empty} images without objects are left out ({flag})")
        kept = [image for image in kept if image["id"] in with_any]
    first = dataset.get("indices")
    if isinstance(first, int) and first < len(kept):
        flag = f"{name}_dataloader.dataset.indices=None takes all"
        notes.append(f"the config takes the first {first} images (--cfg-options {flag})")
        kept = kept[:first]
    return Used([f"{name}: {'; '.join(notes)}"] if notes else [], kept)
