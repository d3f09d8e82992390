"""Which keys a config may have: the parameters of the classes that its groups name, read from both toolboxes' registries.

MMEngine notices an unknown key when it builds the group, minutes later, and some never.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from checkpoints.cli import UserError
from transfer.exports.reload import needed

READ = (
    "auto_scale_lr", "tta_model", "tta_pipeline", "model_wrapper_cfg", "activation_checkpointing", "compile", "sync_bn",
    "find_unused_parameters", "efficient_conv_bn_eval",
)  # fmt: skip
"""Groups that are read besides those of MMEngine's runner."""
LACKING = ("default_scope", "model", "train_dataloader", "val_dataloader", "test_dataloader", "val_evaluator", "test_evaluator",
           "train_cfg", "val_cfg", "test_cfg", "optim_wrapper", "env_cfg")  # fmt: skip
"""Groups without which nothing can be trained and tested."""
EXTRA = frozenset(
    {"type", "_delete_", "_scope_", "convert_to_iter_based", "priority", "constructor", "optimizer", "paramwise_cfg"}
)
"""Keys that the builders take before the class is made."""
GROUPS: dict[str, tuple[str, ...] | None] = {
    "filter_cfg": ("filter_empty_gt", "min_size", "bbox_min_size"),
    "clip_grad": ("type", "max_norm", "norm_type", "error_if_nonfinite", "foreach", "clip_value"),
    "paramwise_cfg": (
        "layer_decay", "custom_keys", "norm_decay_mult", "bias_decay_mult", "bias_lr_mult", "flat_decay_mult",
        "dwconv_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate",
    ),
    "metainfo": ("classes", "palette"),
    "default_hooks": ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint", "visualization"),
    "env_cfg": ("cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"),
    "auto_scale_lr": ("enable", "base_batch_size"),
    "custom_keys": None,
    "backend_args": None,
    "data_prefix": None,
}  # fmt: skip
"""Keys of groups that are no class; None: any."""
LAYERS = frozenset({"norm_cfg", "conv_cfg", "act_cfg", "roi_layer", "upsample_cfg", "init_cfg", "plugins", "nms", "nms_cfg"})
"""Groups of a model whose classes are looked up elsewhere; they are not checked."""
LOADERS = ("dataset", "sampler", "batch_sampler", "collate_fn", "num_batch_per_epoch", "batch_size", "num_workers",
           "persistent_workers", "pin_memory", "drop_last", "timeout", "prefetch_factor", "worker_init_fn")  # fmt: skip
TESTED = ("rpn", "rcnn", "mode", "crop_size", "stride", "score_thr", "nms", "nms_pre", "max_per_img", "min_bbox_size",
          "mask_thr_binary")  # fmt: skip
"""Keys of a model's `test_cfg`."""


def known(node: Mapping[str, Any], path: Sequence[str]) -> frozenset[str] | None:
    """Keys that the group at this path may have; None where any may be."""
    if not path:
        from mmengine.runner import Runner  # noqa: PLC0415 (a heavy import, and an optional one)

        return frozenset([*(set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}), *READ])
    name = path[-1]
    if name in GROUPS:
        keys = GROUPS[name]
        return None if keys is None else frozenset([*keys, *node, "_delete_"])
    if name.endswith("_dataloader"):
        return frozenset([*LOADERS, *node])
    if isinstance(node.get("type"), str):
        return parameters(str(node["type"]))
    return frozenset([*node, "_delete_", "type", *(TESTED if "test_cfg" in path else ())])


def parameters(kind: str) -> frozenset[str] | None:
    """Keys for a class of this name; None where it takes any or is not known."""
    names = [accepted(maker) for maker in makers(kind)]
    return EXTRA.union(*(one or () for one in names)) if names and None not in names else None


def makers(kind: str) -> Iterator[Any]:
    """Classes and functions that are registered under a name, with or without its toolbox before a dot."""
    scope, _, name = kind.rpartition(".")
    for registry in registries():
        if name in registry.module_dict and scope in ("", registry.scope):
            yield registry.module_dict[name]


def registries() -> Iterator[Any]:
    """MMEngine's registries and those of the toolboxes below them, filled."""
    from mmengine import registry  # noqa: PLC0415 (a heavy import, and an optional one)

    for one in list(vars(registry).values()):
        if isinstance(one, registry.Registry):
            yield one
            yield from one.children.values()


def fill() -> None:
    """Import what registers itself: a registry of a toolbox is empty before."""
    for toolbox in ("mmdet", "mmseg"):
        for part in ("models", "datasets", "datasets.transforms", "evaluation", "engine", "visualization", "structures"):
            needed(f"{toolbox}.{part}", "transfer")


def accepted(maker: Callable[..., Any]) -> frozenset[str] | None:
    """Names of the parameters of a class, its bases' too where it hands them on; None where it takes any."""
    chain = [one.__dict__["__init__"] for one in maker.__mro__ if "__init__" in vars(one)] if inspect.isclass(maker) else [maker]
    names = set[str]()
    for function in chain:
        try:
            found = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # of a class in C
            return None
        names |= {one.name for one in found if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
        if all(one.kind is not one.VAR_KEYWORD for one in found):
            return frozenset(names - {"self"})
    return None


def check(config: Any, name: str) -> None:
    """Raise UserError naming the first group, class or key of a whole config that there is not."""
    lacking = [one for one in LACKING if one not in config]
    if lacking:
        raise UserError(f"the config {name} lacks {', '.join(lacking)}: build on one of transfer/configs, or complete it")
    fill()
    read = known(config._cfg_dict, ()) or frozenset()
    for group in config:
        if group in read:
            _check(config[group], group, name)


def _check(node: Any, path: str, name: str) -> None:
    if isinstance(node, list | tuple):
        for number, one in enumerate(node):
            _check(one, f"{path}.{number}", name)
        return
    if not isinstance(node, Mapping):
        return
    kind = node.get("type")
    if isinstance(kind, str) and "." not in kind:  # with one it may be a path of Python, MMEngine's business
        _check_class(node, kind, path, name)
    for key, value in node.items():
        if key not in LAYERS:
            _check(value, f"{path}.{key}", name)


def nearest_class(kind: str) -> str:
    """The registered name that is nearest to one that is not registered."""
    names = {one for registry in registries() for one in registry.module_dict}
    nearest = get_close_matches(kind, sorted(names), 1, 0.5)
    return f": the nearest is {nearest[0]}" if nearest else ""


def _check_class(node: Mapping[str, Any], kind: str, path: str, name: str) -> None:
    if not list(makers(kind)):
        raise UserError(f"the config {name}: {path}.type is {kind}, which neither toolbox has{nearest_class(kind)}")
    allowed = parameters(kind)
    for key in node if allowed is not None else ():
        if allowed is not None and key not in allowed:
            nearest = get_close_matches(key, sorted(allowed - EXTRA), 1, 0.4)
            cure = f": the nearest is {nearest[0]}" if nearest else f": it has {', '.join(sorted(allowed - EXTRA))}"[:200]
            raise UserError(f"the config {name}: {path} is a {kind}, which has no {key}{cure}")
