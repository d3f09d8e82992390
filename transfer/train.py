"""Train and test a detector or a segmenter on a pretrained backbone: `python -m transfer.train --task coco --ckpt F --data DIR`.

`tools/transfer_coco.sh` and `tools/transfer_ade20k.sh` set the environment up and start one process for each GPU.
"""

import contextlib
import copy
import importlib
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from checkpoints import hold, places, reading, store, terminal
from checkpoints.architecture import Architecture, shape_of
from checkpoints.cli import UserError, WorkError, parse, run_command
from pretrain.batches.feeding import PATIENCE
from pretrain.models.backbone import load_backbone
from pretrain.sample import dense
from probes.shared import record
from transfer import choosing, coco_layout, data, ops, resume
from transfer.exports.reload import mmpretrain, needed
from transfer.scenes import MapFlags, num_classes

CONFIGS = Path(__file__).parent / "configs"
SHOWN = 4
"""Test images whose predictions are drawn."""
METRICS = {
    "coco": {"box_ap": "coco/bbox_mAP", "mask_ap": "coco/segm_mAP"}
    | {
        f"{kind}_ap_{size}": f"coco/{name}_mAP_{size}"
        for kind, name in (("box", "bbox"), ("mask", "segm"))
        for size in ("50", "75", "s", "m", "l")
    },
    "ade20k": {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc", "miou_ms": "ms_mIoU", "macc_ms": "ms_mAcc"},
}
"""Our names for the toolboxes' numbers."""
HEADLINES = {"coco": ("box_ap", "mask_ap"), "ade20k": ("miou",)}
"""The numbers without which there is no record."""
LOADERS = (("train", "train"), ("val", "test"))
"""Our names for the parts of the data, and the runner's."""
TABLES = {"coco": "T6a_dense_small", "ade20k": "T6a_dense_small"}


@dataclass(frozen=True)
class TransferOptions:
    """Fine-tune a detector (COCO) or a segmenter (ADE20K) on a pretrained backbone, then test it (paper, Table 6)."""

    task: Literal["coco", "ade20k"]
    """Task."""
    ckpt: Path | None = None
    """A run's folder, a checkpoint file of any kind, a name of checkpoints/zoo.json (default: the newest run)."""
    data: Path | None = None
    """COCO's folder (annotations, train2017, val2017) or ADEChallengeData2016 (images, annotations); default: the sample."""
    train_json: Path | None = None
    """coco: annotations to train on (default: looked for in --data)."""
    train_images: Path | None = None
    """coco: the folder of their images."""
    val_json: Path | None = None
    """coco: annotations to test on (default: looked for in --data)."""
    val_images: Path | None = None
    """coco: the folder of their images."""
    val_percent: float | None = None
    """coco: hold this percentage of the training images out to test on, where there are no others."""
    val_seed: int = 0
    """coco: which images those are."""
    boxes_only: bool = False
    """coco: learn boxes alone, whatever masks there are (always so where there are none)."""
    config: str | None = None
    """A name in transfer/configs/TASK, or a file (default: the recipe for the checkpoint's size, with its widths;
    for the sample `sample`)."""
    head: Literal["upernet", "linear"] = "upernet"
    """ade20k: which head, where no --config is given."""
    background: str | None = None
    """ade20k: the label of pixels without a class, or `none` (default: the config's, 0 in all here). Where it is 0, label 1 is
    the first class, else label 0 is. It must be given where classes.txt or classes.json lists classes."""
    ignore: tuple[int, ...] = ()
    """ade20k: further void labels; 255 always is one."""
    classes: Literal["listed", "counted"] = "listed"
    """ade20k: `listed` in classes.txt or classes.json beside images/, else in the config; `counted` in the label maps."""
    out: Path | None = None
    """The folder to write (default: runs/transfer-TASK-CONFIG); what is there is continued."""
    key: Literal["teacher", "student"] = "teacher"
    """Network of the checkpoint."""
    from_scratch: bool = False
    """Random weights in the checkpoint's architecture: what pretraining is worth."""
    freeze: bool = False
    """Train the neck and heads alone, on the backbone as it is: what its features are worth without tuning it."""
    cfg_options: tuple[str, ...] = ()
    """Single values of the config: train_cfg.max_iters=200 model.backbone.drop_path=0.2."""
    multi_scale: bool = False
    """ade20k: test once more at six scales, each also mirrored."""
    seed: int = 0
    """Seed of weights and order."""


def toolboxes() -> None:
    """Import what the configs name. mmcv's operations come from torchvision where no compiled ones exist."""
    ops.register()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their remarks on versions and optional parts
        for module in ("mmengine", "mmcv"):
            needed(module, "transfer")
        mmpretrain()
        # "mmseg::" in a config means this module, whatever its distribution is called.
        importlib.import_module("mmengine.config.utils").MODULE2PACKAGE["mmseg"] = "mmseg"
        for module in ("mmdet", "mmseg"):
            needed(module, "transfer")
        from transfer import backbone, layer_decay, resizing  # noqa: F401, PLC0415 (they register themselves)
    resume.register()
    # Class names of annotations are drawn into pictures: between two dollars they would be taken for formulas.
    importlib.import_module("matplotlib").rcParams["text.parse_math"] = False


def read_config(options: TransferOptions, shape: Architecture | None = None) -> Any:
    """The config with what was given on the command line. Raises UserError for an unknown one.

    Where none is given, it is the recipe for a backbone of `shape`, whose sizes then count.
    """
    from mmengine.config import Config, DictAction  # noqa: PLC0415 (a heavy import, and an optional one)

    name = options.config or _default(options, shape)
    path = Path(name) if name.endswith(".py") else CONFIGS / options.task / f"{name}.py"
    if not path.exists():
        known = sorted(path.stem for path in (CONFIGS / options.task).glob("*.py") if not is_base(path))
        raise UserError(f"there is no config {name}: choose from {', '.join(known)}, or give a file")
    config = Config.fromfile(path)
    if options.config is None and shape is not None and not _of_sample(options):
        choosing.follow(config, shape)
    changes = {}
    for change in _changes(options):
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--cfg-options {change}: give KEY=VALUE, as in train_cfg.max_iters=200")
        changes[key] = DictAction._parse_iterable(value)
    config.merge_from_dict(changes)
    return config


def _changes(options: TransferOptions) -> list[str]:
    """--cfg-options, and what other flags are short for."""
    return [*options.cfg_options, *(["model.backbone.frozen=True"] if options.freeze else [])]


def _default(options: TransferOptions, shape: Architecture | None) -> str:
    if _of_sample(options):
        return "sample" if options.task == "coco" else f"sample_{options.head}"
    return choosing.recipe_for(options.task, options.head, shape or shape_of("vit_small", 16, 224))


def _of_sample(options: TransferOptions) -> bool:
    return options.data is None and options.train_json is None


def is_base(path: Path) -> bool:
    """Whether a config is only for others to build on."""
    return path.stem in ("recipe", "cascade", "mask_rcnn", "upernet", "linear")


def adapt(config: Any, *, device: str, distributed: bool) -> None:
    """Make a config fit the machine: mixed precision where a GPU has it, the processes' backend."""
    wrapper = config.optim_wrapper
    if wrapper.get("type") == "AmpOptimWrapper" and wrapper.get("dtype") == "auto":
        if device == "cpu":
            wrapper.type = "OptimWrapper"
            wrapper.pop("dtype")
        else:
            wrapper.dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    config.launcher = "pytorch" if distributed else "none"
    config.env_cfg.dist_cfg = {"backend": "gloo" if device == "cpu" else "nccl"}


def fit(config: Any, widths: Sequence[int]) -> None:
    """Give necks and heads that leave it open the widths of the backbone's four maps."""
    model = config.model
    if "neck" in model and "in_channels" not in model.neck:
        model.neck.in_channels = list(widths)
    head, auxiliary = model.get("decode_head"), model.get("auxiliary_head")
    if head is not None and "in_channels" not in head:
        head.in_channels = list(widths)
        head.channels = head.get("channels") or (sum(widths) if head.type == "FCNHead" else widths[-1])
    if auxiliary is not None and "in_channels" not in auxiliary:
        auxiliary.in_channels = widths[auxiliary.in_index]


def build(config: Any) -> Any:
    """The config's model, on the CPU, its normalisation not synchronised."""
    from mmengine.model import revert_sync_batchnorm  # noqa: PLC0415
    from mmengine.registry import MODELS, init_default_scope  # noqa: PLC0415

    toolboxes()
    init_default_scope(config.default_scope)
    needed(f"{config.default_scope}.models", "transfer")
    return revert_sync_batchnorm(MODELS.build(config.model))


def prepare(options: TransferOptions, loaded: Any) -> Any:
    """Everything decided: the config that is run."""
    from transfer.backbone import try_out, widths  # noqa: PLC0415

    toolboxes()
    from transfer.coco_images import set_images  # noqa: PLC0415
    from transfer.labels import set_labels  # noqa: PLC0415
    from transfer.pictures import set_backend  # noqa: PLC0415

    config = read_config(options, loaded.backbone.shape)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.multi_scale and options.task == "coco":
        raise UserError("--multi-scale is for ade20k: detectors are tested at one scale, as in the paper")
    maps = MapFlags(options.background, options.ignore, options.classes)
    if maps.typed() and options.task == "coco":
        raise UserError(f"{maps.typed()} is for ade20k: it says how label maps are read")
    given = _given(options)
    adapt(config, device=device, distributed="RANK" in os.environ)
    backbone, shape = config.model.backbone, loaded.backbone.shape
    backbone.checkpoint, backbone.key = str(loaded.path), options.key
    try_out(backbone)
    fit(config, widths(shape))
    name = Path(options.config or _default(options, shape)).stem
    config.work_dir = str(options.out or Path("runs") / f"transfer-{options.task}-{name}{'-frozen' if options.freeze else ''}")
    look_through(Path(config.work_dir))
    if is_main():
        places.tried(record_path(config, options))
    root = options.data or (options.train_json.parent if options.train_json else Path(config.work_dir) / "data")
    if options.data is None and options.train_json is None:
        draw_sample(options.task, root)
    data.set_root(config, root)
    found = data.look_through(options.task, root, config, Path(config.work_dir), maps=maps, given=given)
    if is_main():
        for line in found.lines:
            terminal.say(line)
    data.same_as_before(Path(config.work_dir), found.protocol, write=is_main())
    config.of_data = found.protocol
    if options.task == "ade20k":
        set_labels(config, num_classes(config), found.rule)
    set_backend(config)
    if options.task == "coco":
        set_images([config[loader].dataset for loader in data.PARTS])
    config.randomness = {"seed": options.seed}
    last = resume.newest(Path(config.work_dir))
    config.resume, config.load_from = last is not None, None if last is None else str(last)
    mine = [{"type": "WeightsHook", "random": options.from_scratch}, {"type": "WatchHook"}, {"type": "ShowHook", "count": SHOWN}]
    config.custom_hooks = [*config.get("custom_hooks", []), *mine]
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        if device == "cpu":
            loader.update(num_workers=0, persistent_workers=False)
        elif loader.get("num_workers"):
            loader.setdefault("timeout", PATIENCE)
    return config


def _given(options: TransferOptions) -> coco_layout.Given:
    """The flags for annotations. Raises UserError where there is nothing that they could mean."""
    given = coco_layout.Given(**{name: getattr(options, name) for name in coco_layout.Given._fields})
    typed = given.typed()
    if typed and options.task != "coco":
        raise UserError(f"{typed[0]} is for coco: it says where annotations of boxes lie")
    if options.data is None and options.train_json is None and set(typed) - {"--boxes-only"}:
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


def run(options: TransferOptions) -> int:
    """Train from where the folder stands, test, write the record; an exit code."""
    began = time.perf_counter()
    loaded = load_backbone(options.ckpt, key=options.key)
    config = prepare(options, loaded)
    from mmengine.model import revert_sync_batchnorm  # noqa: PLC0415
    from mmengine.runner import Runner  # noqa: PLC0415

    from transfer import hooks, watching  # noqa: F401, PLC0415 (they register themselves)

    ratio, stack = state_the_rate(config), contextlib.ExitStack()
    if os.environ.get("RANK", "0") == "0":  # MMEngine has not joined the processes yet
        stack.enter_context(hold.held(Path(config.work_dir) / hold.NAME, f"--out {config.work_dir}", "give another --out"))
    try:
        runner = Runner.from_cfg(config)
        if not torch.cuda.is_available():
            runner.model = revert_sync_batchnorm(runner.model)
        runner.train()
        numbers = dict(runner.test())
        if options.multi_scale:
            numbers |= {f"ms_{name}": value for name, value in at_several_scales(config).items()}
    except (UserError, WorkError) as error:  # a picture or a label map that cannot be used, found by a worker
        raise _as_raised(error) from None
    except torch.cuda.OutOfMemoryError as error:
        raise WorkError(
            "the GPU has too little memory: --cfg-options train_dataloader.batch_size=1, or a smaller config"
        ) from error
    finally:
        stack.close()
    if is_main():
        counts = {f"{name}_images": len(getattr(runner, f"{loader}_dataloader").dataset) for name, loader in LOADERS}
        report(options, config, loaded, numbers, ratio, time.perf_counter() - began, counts)
    return 0


def _as_raised(error: UserError | WorkError) -> UserError | WorkError:
    """The error without the worker's traceback that torch puts before its message: the loader is MMEngine's here."""
    kind = type(error)
    return kind(str(error).rpartition(f"{kind.__module__}.{kind.__name__}: ")[2].strip())


def at_several_scales(config: Any) -> dict[str, Any]:
    """Test what was trained at the scales of the config's `tta_pipeline`."""
    from mmengine.runner import Runner  # noqa: PLC0415

    config = copy.deepcopy(config)
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    config.load_from, config.resume = str(resume.newest(Path(config.work_dir))), False
    config.model = {**config.tta_model, "module": config.model}
    config.custom_hooks = []
    runner = Runner.from_cfg(config)
    return dict(runner.test())


def state_the_rate(config: Any) -> float:
    """Say how the learning rate follows the batch; the factor."""
    base = config.auto_scale_lr.base_batch_size if config.get("auto_scale_lr", {}).get("enable") else 0
    batch = config.train_dataloader.batch_size * int(os.environ.get("WORLD_SIZE", "1"))
    ratio = batch / base if base else 1.0
    rate = config.optim_wrapper.optimizer.lr
    if is_main():
        terminal.say(
            f"{batch} images a step; the config's learning rate {rate:g} is for {base or batch}: {rate * ratio:.3g} is used"
        )
    return ratio


def report(
    options: TransferOptions,
    config: Any,
    loaded: Any,
    numbers: Mapping[str, Any],
    ratio: float,
    seconds: float,
    counts: Mapping[str, int],
) -> None:
    """Print the numbers and write the record."""
    found = {ours: float(numbers[theirs]) for ours, theirs in METRICS[options.task].items() if theirs in numbers}
    if options.task == "coco":  # -1 where there is nothing of that size
        found = {name: 100 * value for name, value in found.items() if value >= 0}
    out = Path(config.work_dir)
    refuse_without(found, [name for name in HEADLINES[options.task] if name != "mask_ap" or "heads" not in config.of_data])
    protocol = {
        "config": Path(config.filename).stem,
        "from_scratch": options.from_scratch,
        "key": options.key,
        "lr": config.optim_wrapper.optimizer.lr * ratio,
        "lr_ratio": ratio,
        "images_a_step": config.train_dataloader.batch_size * int(os.environ.get("WORLD_SIZE", "1")),
        "cfg_options": _changes(options),
        "position": position(loaded.backbone.shape.kind, config.model.backbone.get("grid")),
        **config.of_data,
        "max_epochs": config.train_cfg.get("max_epochs"),
        "max_iters": config.train_cfg.get("max_iters"),
    }
    record.write(
        record_path(config, options),
        probe=f"transfer_{options.task}",
        table=TABLES[options.task],
        loaded=loaded,
        data={"root": str(options.data or options.train_json or "sample"), **counts},
        protocol=protocol,
        metrics=found,
        seconds=seconds,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    terminal.say(json.dumps({name: round(value, 2) for name, value in found.items()}))
    terminal.say(f"predictions drawn in {out}/predictions, record in {out}/results/transfer_{options.task}.json")


def refuse_without(found: Mapping[str, float], names: Sequence[str]) -> None:
    """Raise WorkError where one of the numbers that a record is for is not there, or is not finite."""
    missing = [name for name in names if not math.isfinite(found.get(name, math.nan))]
    if missing:
        what = "nothing was found in any test image, or there is nothing to find"
        raise WorkError(
            f"the test has no {' and no '.join(missing)} ({what}): no record is written; train longer, or look at the data"
        )


def record_path(config: Any, options: TransferOptions) -> Path:
    """Path of the record, in the folder of the run."""
    return Path(config.work_dir) / "results" / f"transfer_{options.task}.json"


def position(kind: str, grid: Sequence[int] | None) -> str:
    """The rule for position embeddings, as in a record."""
    if kind == "swin":
        return "none"
    return "of the checkpoint's grid" if grid is None else f"by size on loading to {grid[0]} x {grid[1]}"


def main(arguments: Sequence[str]) -> int:
    return run(parse(TransferOptions, arguments, prog="python -m transfer.train"))


if __name__ == "__main__":
    sys.exit(run_command(main))
