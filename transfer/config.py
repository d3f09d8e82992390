"""The config that is run: a written one or the checkpoint's recipe, changed by the command line and fitted to the machine."""

import importlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from checkpoints import store
from checkpoints.architecture import Architecture, shape_of
from checkpoints.cli import UserError
from transfer import cfg_options, choosing, config_keys, distributions, ops, resume
from transfer.exports.reload import mmpretrain, needed
from transfer.options import TransferOptions

CONFIGS = Path(__file__).parent / "configs"


def toolboxes() -> None:
    """Import what the configs name. mmcv's operations come from torchvision where no compiled ones exist."""
    distributions.refuse_both()
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
        from transfer import backbone, layer_decay, necks, resizing  # noqa: F401, PLC0415 (they register themselves)
        from transfer.results import evaluators  # noqa: F401, PLC0415 (so do these)
    resume.register()
    # Class names of annotations are drawn into pictures: between two dollars they would be taken for formulas.
    importlib.import_module("matplotlib").rcParams["text.parse_math"] = False


def read_config(options: TransferOptions, shape: Architecture | None = None, *, plain: bool = True) -> Any:
    """The config with what was given on the command line. Raises UserError for an unknown one.

    Where none is given, it is the recipe for a backbone of `shape` (`plain` as a ViT, or of stages), whose sizes then count.
    """
    from mmengine.config import Config  # noqa: PLC0415 (a heavy import, and an optional one)

    name = options.config or default_config(options, shape, plain=plain)
    path = Path(name) if name.endswith(".py") else CONFIGS / options.task / f"{name}.py"
    if not path.exists():
        known = sorted(path.stem for path in (CONFIGS / options.task).glob("*.py") if not is_base(path))
        raise UserError(f"there is no config {name}: choose from {', '.join(known)}, or give a file")
    try:
        config = Config.fromfile(path)
    except UserError:
        raise
    except Exception as error:  # it is Python, which may raise anything
        raise UserError(f"{path} cannot be read as a config ({type(error).__name__}: {store.first_line(error)[:200]})") from error
    if name.endswith(".py"):
        config_keys.check(config, path.name)
    if options.config is None and shape is not None and not of_sample(options):
        choosing.follow(config, shape, plain=plain)
    if options.neck == "simple":
        from transfer import necks  # noqa: PLC0415 (it registers itself)

        necks.use_simple(config, options.task)
    cfg_options.merge(config, changes_of(options))
    return config


def changes_of(options: TransferOptions) -> list[str]:
    """--cfg-options, and the values of the config that other flags are short for."""
    short = {
        "model.backbone.frozen": options.freeze or None,
        "train_dataloader.batch_size": options.batch_size,
        "optim_wrapper.optimizer.lr": options.lr,
    }
    return [*options.cfg_options, *(f"{name}={value}" for name, value in short.items() if value is not None)]


def default_config(options: TransferOptions, shape: Architecture | None, *, plain: bool = True) -> str:
    if of_sample(options):
        return "sample" if options.task == "coco" else f"sample_{options.head}"
    return choosing.recipe_for(options.task, options.head, shape or shape_of("vit_small", 16, 224), plain=plain)


def of_sample(options: TransferOptions) -> bool:
    return options.data is None and options.train_json is None


def images_a_step(config: Any) -> int:
    """Images of all processes in one step."""
    return int(config.train_dataloader.batch_size) * int(os.environ.get("WORLD_SIZE", "1"))


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
    if distributed and device == "cpu":  # MMEngine would give the wrapper the number of a GPU
        wrapping = {"type": "MMDistributedDataParallel", "device_ids": None, "broadcast_buffers": False}
        config.model_wrapper_cfg = {**wrapping, "find_unused_parameters": config.get("find_unused_parameters", False)}
    config.env_cfg.dist_cfg = {"backend": "gloo" if device == "cpu" else "nccl"}


def fit(config: Any, widths: Sequence[int], stride: int = 16) -> None:
    """Give necks and heads that leave it open the widths of the backbone's maps; `stride`: of the one of the simple pyramid."""
    model = config.model
    if "neck" in model and model.neck.get("type") == "SimpleFeaturePyramid":
        model.neck.update(in_channels=widths[-1], stride=stride)
    if "neck" in model and "in_channels" not in model.neck:
        model.neck.in_channels = list(widths)
    head, auxiliary = model.get("decode_head"), model.get("auxiliary_head")
    if head is not None and ("in_channels" not in head or model.backbone.get("last")):
        head.in_channels = head.get("in_channels") or list(widths)
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
