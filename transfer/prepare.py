"""Everything that is decided and looked at before the first step."""

import os
import time
from pathlib import Path
from typing import Any

import torch

from checkpoints import places, reading, store, terminal
from checkpoints.cli import UserError
from pretrain.batches.feeding import PATIENCE
from pretrain.sample import dense
from transfer import coco_layout, data, resume, scales, schedules
from transfer.config import adapt, default_config, of_sample, read_config, toolboxes
from transfer.layout import is_plain
from transfer.options import TransferOptions
from transfer.report import record_path
from transfer.scenes import MapFlags, Measures, num_classes

SHOWN = 8
"""Test images whose predictions are drawn."""


def prepare(options: TransferOptions, loaded: Any) -> Any:
    """Everything decided: the config that is run."""
    from transfer import network_config  # noqa: PLC0415

    toolboxes()
    from transfer.coco_images import set_images  # noqa: PLC0415
    from transfer.labels import set_labels  # noqa: PLC0415
    from transfer.pictures import set_backend  # noqa: PLC0415
    from transfer.results.evaluators import keep_classes  # noqa: PLC0415

    shape, plain = loaded.backbone.shape, is_plain(loaded.backbone)
    config = read_config(options, shape, plain=plain)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.multi_scale and options.task == "coco":
        raise UserError("--multi-scale is for ade20k: detectors are tested at one scale, as in the paper")
    maps = MapFlags(options.background, options.ignore, options.classes)
    if maps.typed() and options.task == "coco":
        raise UserError(f"{maps.typed()} is for ade20k: it says how label maps are read")
    given, length = _given(options), schedules.asked(options)
    adapt(config, device=device, distributed="RANK" in os.environ)
    said = network_config.settle(config, options, loaded)
    name = Path(options.config or default_config(options, shape, plain=plain)).stem
    name += ("-simple" if options.neck == "simple" else "") + ("-frozen" if options.freeze else "")
    config.work_dir = str(options.out or Path("runs") / f"transfer-{options.task}-{name}")
    look_through(Path(config.work_dir))
    if is_main():
        places.tried(record_path(config, options))
    root = options.data or (options.train_json.parent if options.train_json else Path(config.work_dir) / "data")
    if of_sample(options):
        draw_sample(options.task, root)
    data.set_root(config, root)
    found = data.look_through(options.task, root, config, Path(config.work_dir), maps=maps, given=given)
    if is_main():
        for line in [*said, *found.lines]:
            terminal.say(line)
    data.same_as_before(Path(config.work_dir), found.protocol, write=is_main())
    config.test_images = found.measures.images["val"]
    config.of_data = found.protocol | follow_images(config, options, found.measures, length)
    if options.task == "ade20k":
        set_labels(config, num_classes(config), found.rule)
    set_backend(config)
    keep_classes(config)
    if options.task == "coco":
        set_images([config[loader].dataset for loader in data.PARTS])
    config.randomness = {"seed": options.seed}
    last = resume.newest(Path(config.work_dir))
    config.resume, config.load_from = last is not None, None if last is None else str(last)
    show = {"type": "ShowHook", "count": SHOWN, "task": options.task}
    mine = [{"type": "WeightsHook", "random": options.from_scratch}, {"type": "WatchHook"}, show]
    config.custom_hooks = [*config.get("custom_hooks", []), *mine]
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        if device == "cpu":
            loader.update(num_workers=0, persistent_workers=False)
        elif loader.get("num_workers"):
            loader.setdefault("timeout", PATIENCE)
    return config


def follow_images(config: Any, options: TransferOptions, measures: Measures, length: int | None) -> dict[str, Any]:
    """Sizes and length by the command line, or by the images of data of one's own; their part of a record's protocol.

    A typed --config, COCO, ADE20K and the sample keep what the config says. Raises UserError where a run that is continued
    had others.
    """
    own = options.config is None and not of_sample(options) and not measures.published
    unit, before = schedules.length_of(config)
    config.schedule = {"unit": unit, "before": before, "scaled": own or length is not None}
    if length is None and own:
        length = schedules.for_images(config, measures.images["train"])
    if length is not None:
        schedules.set_length(config, options, length)
    side = options.size or (scales.for_images(config, measures.side) if own else None)
    if side is not None:
        usual = scales.short_side(config)
        scales.set_side(config, side)
        why = "--size" if options.size else f"the median of the training images, whose short side is {measures.side:g}"
        if is_main():
            terminal.say(f"short side {side} in place of {usual}: {why}; other sizes of the config in proportion")
    now = {"length": length, "size": side}
    data.same_as_before(Path(config.work_dir), now, write=is_main(), what="schedule", flags=data.SCHEDULE)
    return {"size": scales.short_side(config)}


def _given(options: TransferOptions) -> coco_layout.Given:
    """The flags for annotations. Raises UserError where there is nothing that they could mean."""
    given = coco_layout.Given(**{name: getattr(options, name) for name in coco_layout.Given._fields})
    typed = given.typed()
    if typed and options.task != "coco":
        raise UserError(f"{typed[0]} is for coco: it says where annotations of boxes lie")
    if of_sample(options) and set(typed) - {"--boxes-only"}:
        raise UserError(f"{typed[0]} belongs to data of your own: give --data DIR, or --train-json and --train-images")
    return given


def look_through(folder: Path) -> None:
    """Raise UserError where a link lies in the folder, or its word for the last checkpoint leads out: MMEngine follows both.

    Files that have other names (hard links) are taken apart: MMEngine writes into what is there.
    """
    places.refuse_links(folder)
    for inside, _, files in os.walk(folder):
        for name in files:
            store.take_apart(Path(inside, name))
    last = folder / "last_checkpoint"
    if last.is_file():
        try:
            name = reading.text(last, 4096, "replace").strip()
        except OSError as error:
            raise UserError(f"{last} cannot be read ({error.strerror}): remove it to begin anew") from error
        places.recorded(name, file=last, below=[folder], cure="remove that file to begin anew, or give another --out")


def draw_sample(task: str, root: Path) -> None:
    """Write the embedded sample's layout once; the other processes wait for it."""
    done = root / "complete"
    if is_main() and not done.exists():
        write = dense.write_coco if task == "coco" else dense.write_ade20k
        write(root, dense.COUNTS)
        done.touch()
    while not done.exists():
        time.sleep(0.2)


def is_main() -> bool:
    """Whether this process writes and prints; MMEngine joins the processes only later."""
    return os.environ.get("RANK", "0") == "0"
