"""Exports as their users load them again: each function gives tokens [b, t, d] of images, in that library, from that file.

They are what `checkpoints.export` compares with our own tokens before it leaves a file behind.
"""

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from checkpoints import elsewhere, layouts
from checkpoints.cli import UserError

Shape = Mapping[str, Any]
"""`checkpoints.architecture.Shape` as a dict."""


def needed(module: str, extra: str) -> Any:
    """An optional library. Raises UserError that says how to get it."""
    from checkpoints import figures  # noqa: F401, PLC0415  # before a library imports matplotlib by itself

    try:
        return elsewhere.imported(module)
    except ImportError as error:
        raise UserError(f"this needs {module}: run tools/setup.sh {extra}, or pip install {module}") from error


def mmpretrain() -> Any:
    """MMPretrain's models, without its language models: these break beside a transformers newer than they know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses operations that backbones do not use
        needed("mmpretrain", "transfer")
        dependency = importlib.import_module("mmpretrain.utils.dependency")
        dependency.WITH_MULTIMODAL = False  # type: ignore[attr-defined]
        return elsewhere.imported("mmpretrain.models")


def timm_name(shape: Shape) -> str:
    """timm's architecture that is nearest by name; `timm_arguments` say the rest."""
    if shape["depths"]:
        size = shape["arch"].removeprefix("swin").removeprefix("_") or "tiny"
        return f"swin_{size}_patch4_window7_224"
    if shape["arch"].startswith("vit") and "patch" not in shape["arch"]:
        known = shape["arch"] if shape["arch"] != "vit" else "vit_small"
        return f"{known}_patch16_224"
    return str(shape["arch"])


def timm_arguments(shape: Shape) -> dict[str, Any]:
    """Arguments of `timm.create_model` besides the name for weights of this shape."""
    arguments: dict[str, Any] = {"num_classes": 0, "img_size": shape["image_size"]}
    if shape["channels"] != 3:
        arguments["in_chans"] = shape["channels"]
    if shape["depths"]:
        stages = layouts.swin_stages(shape)
        arguments |= {
            "patch_size": shape["patch_size"],
            "embed_dim": stages.widths[0],
            "depths": tuple(shape["depths"]),
            "num_heads": stages.heads,
            "window_size": shape["window"],
        }
    elif timm_name(shape) != shape["arch"]:
        arguments |= {
            "patch_size": shape["patch_size"],
            "embed_dim": shape["embed_dim"],
            "depth": shape["depth"],
            "num_heads": shape["num_heads"],
        }
    return arguments


def by_timm(file: Path, shape: Shape, images: Tensor) -> Tensor:
    """Through `timm.create_model(..., checkpoint_path=...)`, which loads strictly."""
    model: Any = timm.create_model(timm_name(shape), checkpoint_path=str(file), **timm_arguments(shape))
    if shape["depths"]:
        _set_epsilon(model, 1e-6)
    with torch.no_grad():
        found = model.eval().forward_features(images)
    if shape["depths"]:
        return _mean_first(found.flatten(1, 2))
    return torch.cat([found[:, :1], found[:, model.num_prefix_tokens :]], dim=1)


def by_transformers(folder: Path, shape: Shape, images: Tensor) -> Tensor:
    """Through `AutoModel.from_pretrained`; a weight that is missing or left over is a ValueError."""
    transformers = needed("transformers", "export")
    transformers.utils.logging.disable_progress_bar()
    model, found = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    wrong = {kind: sorted(names) for kind, names in found.items() if names}
    if wrong:
        raise ValueError(f"transformers does not load it whole: {wrong}")
    transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        tokens = model.eval()(images).last_hidden_state
    if shape["depths"]:
        return _mean_first(tokens)
    registers = getattr(model.config, "num_register_tokens", 0)
    return torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], dim=1)


def by_openmmlab(file: Path, shape: Shape, images: Tensor) -> Tensor:
    """Through MMPretrain's `VisionTransformer` or `SwinTransformer`."""
    models = mmpretrain()
    common = {"img_size": shape["image_size"], "patch_size": shape["patch_size"], "in_channels": shape["channels"]}
    if shape["depths"]:
        stages = layouts.swin_stages(shape)
        arch = {"embed_dims": stages.widths[0], "depths": list(shape["depths"]), "num_heads": list(stages.heads)}
        model = models.SwinTransformer(arch=arch, window_size=shape["window"], **common)
        _set_epsilon(model, 1e-6)
    else:
        arch = {
            "embed_dims": shape["embed_dim"],
            "num_layers": shape["depth"],
            "num_heads": shape["num_heads"],
            "feedforward_channels": 4 * shape["embed_dim"],
        }
        model = models.VisionTransformer(arch=arch, out_type="raw", **common)
    state = torch.load(file, weights_only=True)["state_dict"]
    weights = {name.removeprefix("backbone."): weight for name, weight in state.items()}
    missing = model.load_state_dict(weights, strict=False)
    if missing.unexpected_keys or not all(name.endswith(layouts.COMPUTED) for name in missing.missing_keys):
        raise ValueError(f"MMPretrain does not load it whole: {missing}")
    with torch.no_grad():
        model.eval()  # gives nothing back there
        found = model(images)[-1]
    return _mean_first(found.flatten(2).transpose(1, 2)) if shape["depths"] else found


def by_onnxruntime(file: Path, shape: Shape, images: Tensor) -> Tensor:
    """Through onnxruntime on the CPU."""
    runtime = needed("onnxruntime", "export")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (tokens,) = session.run(None, {"images": images.numpy().astype(np.float32)})
    return torch.from_numpy(tokens)


def _mean_first(tokens: Tensor) -> Tensor:
    return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)


def _set_epsilon(model: nn.Module, epsilon: float) -> None:
    """The original's norms add 1e-6 to the variance where Swin elsewhere adds 1e-5."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = epsilon
