"""Predictions of a trained detector or segmenter for a folder of images: `python -m transfer.predict --run R --images DIR`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints import places, reading, store, terminal
from checkpoints.cli import DONE, FAILED, UserError, parse, run_command
from pretrain.images import walk
from pretrain.images.tally import Tally
from probes.shared import console
from probes.shared.label_files import PICTURES
from transfer.trained import Trained

SCORE = 0.3
NAMED = 10
"""Broken images that are named."""


@dataclass(frozen=True)
class PredictOptions:
    """Detect or segment in images of your own with what `transfer.train` has trained."""

    run: Path
    """The folder of a run of transfer.train; its newest checkpoint is taken."""
    images: Path
    """A folder of images, folders below it too."""
    out: Path | None = None
    """The folder to write, which must be new or empty (default: predictions-NAME in the run's folder, NAME that of --images)."""
    score: float | None = None
    """Detectors: least score of a detection (default: 0.3; 0 keeps all, which average precision needs)."""
    ids: Path | None = None
    """Detectors: annotations in COCO's format, by whose ids images are numbered, by their file names (default: from 1)."""
    draw: int = 100
    """Images that are drawn."""
    ckpt: Path | None = None
    """The checkpoint that the run began with, where its backbone is another library's (timm's ResNet, hf:, torchvision:, ...)."""
    config: str | None = None
    """The config that the run was trained with, where it was a file of your own: it is run as a program, as in training."""


class Named(NamedTuple):
    """An image to predict for."""

    path: Path
    name: str
    """Below the folder."""
    id: int


def run(options: PredictOptions) -> int:
    """Predict, write, say what was done; an exit code."""
    from transfer.config import toolboxes  # noqa: PLC0415 (heavy, optional imports follow)

    images = images_of(options)
    out = out_of(options)
    toolboxes()
    from transfer.predict import outputs  # noqa: PLC0415
    from transfer.predict.rebuild import rebuilt  # noqa: PLC0415
    from transfer.predict.steps import Predictor  # noqa: PLC0415

    model = rebuilt(options.run, options.config, options.ckpt)
    trained = model.trained
    refuse_flags(options, trained)
    score = SCORE if options.score is None else options.score
    predict, draw = Predictor(model), outputs.Drawing(trained, score)
    detections: list[dict[str, Any]] = []
    sizes: dict[int, tuple[int, int]] = {}
    broken: list[str] = []
    for number, one in enumerate(console.steps("predicting", images, len(images))):
        try:
            pixels, sample = predict(one.path)
        except UserError as error:
            broken.append(str(error))
            continue
        sizes[one.id] = (pixels.shape[1], pixels.shape[0])
        if trained.task == "coco":
            detections += outputs.coco_results(sample, one.id, trained.ids, score)
        else:
            outputs.write_picture(outputs.label_map(sample, trained), out, "labels", f"{one.name}.png")
        if number < options.draw:
            outputs.write_picture(draw(pixels, sample), out, "drawn", f"{one.name}.png")
    if trained.task == "coco":
        write_coco(out, trained, [one for one in images if one.id in sizes], sizes, detections)
    what = f"{len(detections)} detections of score {score:g} or more" if trained.task == "coco" else "label maps"
    terminal.say(f"{model.file}: {what} in {len(sizes)} images, written to {out}")
    for sentence in broken[:NAMED]:
        terminal.say(sentence, error=True)
    if broken:
        more = f", of which {NAMED} are named above" if len(broken) > NAMED else ""
        others = "the others were predicted" if sizes else "nothing was predicted"
        terminal.say(f"{len(broken)} of {len(images)} images could not be used{more}: {others}", error=True)
    return FAILED if broken else DONE


def images_of(options: PredictOptions) -> list[Named]:
    """The pictures below the folder, in the order of their names. Raises UserError where there are none."""
    if not options.images.is_dir():
        raise UserError(f"there is no folder {options.images}: give --images DIR")
    tally = Tally()
    paths = [Path(path) for path in walk.pictures(options.images, tally) if Path(path).suffix.lower() in PICTURES]
    if not paths:
        raise UserError(f"{options.images} holds no images: give a folder of JPEG, PNG, WebP, TIFF or BMP files")
    if tally.ignored:
        terminal.say(f"{options.images}: {tally.ignored} pictures are not used: {tally.why()}")
    names = [path.relative_to(options.images).as_posix() for path in paths]
    numbers = ids_of(options.ids, names) if options.ids else dict(zip(names, range(1, len(names) + 1), strict=True))
    return [Named(path, name, numbers[name]) for path, name in zip(paths, names, strict=True)]


def ids_of(file: Path, names: Sequence[str]) -> dict[str, int]:
    """The ids of images in annotations. Raises UserError for what is no such file, and for an image that it does not list."""
    try:
        content = reading.values(file, reading.MOST_LISTED)
        found = {image["file_name"]: image["id"] for image in content["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--ids {file} is no annotation file of COCO ({store.first_line(error)}): give another") from error
    missing = [name for name in names if type(found.get(name)) is not int]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"--ids {file} lists no image {missing[0]}{more}: give the file of these images, or leave --ids out")
    return {name: found[name] for name in names}


def out_of(options: PredictOptions) -> Path:
    """The folder to write. Raises UserError where something is there already."""
    name = f"predictions-{options.images.resolve().name or 'images'}"
    out = options.out or places.below(options.run, name)
    try:
        there = out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))
    except OSError as error:
        raise UserError(f"{out} cannot be read ({error.strerror}): give another --out") from error
    if there:
        raise UserError(f"{out} is there already, and nothing in it is replaced: give another --out, or remove it")
    places.tried(out / "results.json")
    return out


def refuse_flags(options: PredictOptions, trained: Trained) -> None:
    """Raise UserError for flags of detectors where the run is of a segmenter."""
    typed = [flag for flag, value in (("--score", options.score), ("--ids", options.ids)) if value is not None]
    if trained.task != "coco" and typed:
        raise UserError(f"{typed[0]} is for detectors, and {options.run} is a segmenter: leave it out")


def write_coco(
    out: Path, trained: Trained, images: Sequence[Named], sizes: dict[int, tuple[int, int]], found: list[dict[str, Any]]
) -> None:
    """`results.json`, a list as COCO's tools load it, and `images.json`, which they load it beside."""
    listed = [{"id": one.id, "file_name": one.name, "width": sizes[one.id][0], "height": sizes[one.id][1]} for one in images]
    categories = [{"id": number, "name": name} for number, name in zip(trained.ids, trained.classes, strict=True)]
    about = {"info": {"description": "predictions"}, "images": listed, "annotations": [], "categories": categories}
    for name, content in (("results.json", found), ("images.json", about)):
        store.write_bytes(places.below(out, name), json.dumps(content).encode())


def main(arguments: Sequence[str]) -> int:
    options = parse(PredictOptions, arguments, prog="python -m transfer.predict")
    with terminal.aside(None):  # the toolboxes remark on optional parts
        return run(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
