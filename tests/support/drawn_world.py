"""Every data set that `probes.reproduce` knows, drawn: the real layouts with the real class names, a handful of tiny images."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from checkpoints.cli import run_command
from pretrain.sample import __main__ as sample
from pretrain.sample.corruptions import NAMES, SEVERITIES
from pretrain.sample.shifts import IN9
from probes.retrieval import revisited
from probes.robustness import class_maps

SIDE = 16
PICTURES = 40
"""Different ones; what more is needed are links to them."""
TRAINING = 1040
"""Of ImageNet: every class once, some twice; more than a batch of 1024."""
FEW = {"1percent.txt": 40, "10percent.txt": 400}


def write(root: Path) -> dict[str, Path]:
    """Folder by flag, and the two lists of few labels by name. `ds` is a small labelled data set in two parts."""
    pictures = draw_pictures(root / "pictures")
    imagenet, shipped = class_maps.imagenet(), class_maps.shipped()
    training = [imagenet[number % 1000] for number in range(TRAINING)]
    by_class(root / "imagenet" / "train", training, pictures)
    by_class(root / "imagenet" / "val", imagenet[::42], pictures)
    for variant in IN9:
        names = [f"{number:02d}_{name}" for number, name in enumerate(shipped["in9"]["classes"])]
        by_class(root / "in9" / variant / "val", names * 2, pictures)
    by_class(root / "ina", shipped["imagenet_a"]["classes"], pictures)
    by_class(root / "inr", shipped["imagenet_r"]["classes"], pictures)
    by_class(root / "sketch", imagenet, pictures)
    for name in NAMES:
        for severity in SEVERITIES:
            by_class(root / "inc" / name / str(severity), imagenet[::250], pictures)
    tasks = [word for name in ("coco", "ade20k", "davis", "copydays") for word in (f"--{name}", str(root / name))]
    sample.main([*tasks, "--out", str(root / "ds"), "--count", "10", "--size", "32"])
    landmarks(root / "landmarks")
    naturalist(root / "inat18", pictures)
    names = sorted(path.name for path in (root / "imagenet" / "train").rglob("*.png"))
    for name, count in FEW.items():
        (root / name).write_text("\n".join(names[:: TRAINING // count][:count]))
    folders = "imagenet coco ade20k in9 ina inr sketch inc davis landmarks copydays inat18 ds".split()
    return {name: root / name for name in (*folders, *FEW)}


def draw_pictures(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (PICTURES, SIDE, SIDE, 3), dtype=np.uint8)
    paths = [folder / f"{number}.png" for number in range(PICTURES)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths


def by_class(folder: Path, classes: Iterable[str], pictures: Sequence[Path]) -> None:
    """One picture for each entry, in the folder of its class, by a name of its own."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        os.link(pictures[number % len(pictures)], folder / name / f"{name}_{number}.png")


def landmarks(folder: Path) -> None:
    """Revisited Oxford and Paris with their ground truths as `probes.retrieval.revisited` converts them."""
    for name in ("roxford5k", "rparis6k"):
        sample.main(["--roxford", str(folder), "--count", "10", "--size", "32"])
        truth = folder / "roxford5k" / "gnd_roxford5k.pkl"
        assert run_command(revisited.main, [str(truth), "--out", str(truth.with_name(f"gnd_{name}.json"))]) == 0
        truth.unlink()
        (folder / "roxford5k").rename(folder / f"{name}.drawn")
    for drawn in folder.glob("*.drawn"):
        drawn.rename(drawn.with_suffix(""))


def naturalist(folder: Path, pictures: Sequence[Path]) -> None:
    """iNaturalist 2018: images by class, and a list of each part."""
    by_class(folder / "images", [str(number % 5) for number in range(20)], pictures)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    for part, chosen in (("train", names[:12]), ("val", names[12:])):
        ids = dict(enumerate(chosen))
        content: Mapping[str, object] = {
            "images": [{"id": number, "file_name": name} for number, name in ids.items()],
            "annotations": [{"image_id": number, "category_id": int(Path(name).parent.name)} for number, name in ids.items()],
            "categories": [{"id": number, "name": str(number)} for number in range(5)],
        }
        (folder / f"{part}2018.json").write_text(json.dumps(content))


def flags_of(folders: Mapping[str, Path], transfers: str = "ds") -> list[str]:
    """The command line that names all of them; `transfers` stands for all of Table 7's data sets but iNaturalist 2018."""
    given = {name: path for name, path in folders.items() if name not in ("ds", *FEW)}
    given |= dict.fromkeys(("cifar10", "cifar100", "flowers", "cars", "inat19"), folders[transfers])
    return [
        *(word for name, path in given.items() for word in (f"--{name}", str(path))),
        *("--few", *(str(folders[name]) for name in FEW)),
    ]
