"""A folder as timm writes it for the Hugging Face hub: `config.json` names an architecture of timm and how images are seen.

Of the file plain numbers are taken; the architecture must stand in timm's own list, and nothing is fetched.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from checkpoints import checked
from checkpoints.cli import UserError
from checkpoints.published import Contents
from checkpoints.resolve import arch_of
from checkpoints.store import first_line
from pretrain.backbones.timm_file import fill
from pretrain.backbones.timm_model import TimmModel, built, preprocessing_of
from pretrain.models.backbone import Loaded

MOST = {"img_size": 2048, "patch_size": 512, "embed_dim": 2**15, "depth": 512, "num_heads": 1024, "reg_tokens": 64}
"""Arguments of a model that a file may give, and their limits."""
SHARES = ("init_values", "mlp_ratio")
FLAGS = ("no_embed_class", "class_token", "pre_norm", "qkv_bias", "reg_prefix_cls")
POOLS = ("token", "avg", "map", "max", "")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


def of_folder(folder: Path, values: Mapping[str, Any], path: Path, file: Path, named: str) -> Loaded:
    """The model. Raises UserError for what timm has not, for numbers that cannot be, for weights that do not fit."""
    where = str(folder / "config.json")
    arch = arch_of(checked.text(values["architecture"], f"{where}: architecture", 200).partition(".")[0])
    settings = _settings(values, where)
    how = preprocessing_of(_seen(checked.mapping(values.get("pretrained_cfg") or {}, f"{where}: pretrained_cfg"), where))
    try:
        with torch.device("meta"):
            built(arch, pretrained=False, **settings)
        anew = partial(built, arch, pretrained=False, **settings)
        model = anew()
    except Exception as error:  # timm's constructors raise what they like
        raise UserError(f"{where}: timm cannot make {arch} so ({first_line(error)})") from error
    ignored = fill(model, file, arch)
    backbone = TimmModel(named or arch, model, anew, how).eval().requires_grad_(False)
    contents = Contents(f"timm's {arch}", {"only": {}}, arch=arch, ignored=ignored)
    return Loaded(backbone, path if named else file, 0, contents)


def _settings(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Arguments of the model's constructor."""
    given = checked.mapping(values.get("model_args") or {}, f"{where}: model_args")
    found: dict[str, Any] = {
        name: checked.count(given[name], f"{where}: {name}", 0 if name == "reg_tokens" else 1, most)
        for name, most in MOST.items()
        if isinstance(given.get(name), int)
    }
    found |= {
        name: checked.number(given[name], f"{where}: {name}", 0, 100)
        for name in SHARES
        if isinstance(given.get(name), (int, float))
    }
    found |= {name: given[name] for name in FLAGS if isinstance(given.get(name), bool)}
    pool = values.get("global_pool", given.get("global_pool"))
    return found | ({"global_pool": checked.one_of(pool, f"{where}: global_pool", POOLS)} if isinstance(pool, str) else {})


def _seen(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a `pretrained_cfg` says of images, checked."""
    found: dict[str, Any] = {}
    for name, least in (("mean", -1e6), ("std", 1e-6)):
        if given.get(name) is not None:
            found[name] = checked.colours(tuple(checked.listed(given[name], f"{where}: {name}")), f"{where}: {name}", 3, least)
    if given.get("input_size") is not None:
        sizes = checked.listed(given["input_size"], f"{where}: input_size")
        found["input_size"] = (3, *(checked.count(size, f"{where}: input_size", 1, 2048) for size in sizes[1:]))
    if given.get("crop_pct") is not None:
        found["crop_pct"] = checked.number(given["crop_pct"], f"{where}: crop_pct", 0.05, 1)
    if given.get("interpolation") is not None:
        found["interpolation"] = checked.one_of(given["interpolation"], f"{where}: interpolation", INTERPOLATIONS)
    if given.get("crop_mode") is not None:
        found["crop_mode"] = checked.one_of(given["crop_mode"], f"{where}: crop_mode", ("center", "squash", "border"))
    return found
