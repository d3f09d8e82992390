"""The formats that a backbone is exported to, and how each is compared with ours."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from checkpoints import escape, layouts, store
from checkpoints.cli import UserError, WorkError
from checkpoints.published import Contents
from checkpoints.resolve import backbone_part
from checkpoints.store import first_line
from pretrain.evaluate.views import evaluation_resize
from pretrain.models.backbone import Backbone, load_backbone
from pretrain.models.vit import POSITION_OFFSET, ViT
from transfer.exports import key_maps, onnx_graph, reload

TOLERANCE = 1e-4
"""Largest difference of a token's number."""


class Source(NamedTuple):
    """A backbone to export."""

    backbone: Backbone
    contents: Contents
    path: Path

    @property
    def shape(self) -> dict[str, Any]:
        return self.backbone.shape._asdict()

    def weights(self) -> dict[str, Tensor]:
        """Under timm's names, without the mask token."""
        found = {name.removeprefix("model."): weight for name, weight in self.backbone.state_dict().items()}
        return {name: weight.contiguous() for name, weight in found.items() if name != "masked_embed"}

    @property
    def kind(self) -> str:
        return self.backbone.shape.kind


def to_timm(source: Source, folder: Path) -> str:
    """`model.safetensors`, and `config.json` for `timm.create_model("local-dir:...")`."""
    store.write_bytes(folder / "model.safetensors", save(source.weights(), metadata={"format": "pt"}))
    _write_json(folder / "config.json", key_maps.timm_config(source.shape, evaluation_resize(source.shape["image_size"])))
    return "model.safetensors"


def to_huggingface(source: Source, folder: Path) -> str:
    """`model.safetensors`, `config.json`, `preprocessor_config.json`."""
    weights, shape = source.weights(), source.shape
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    if source.kind == "swin":
        _needs_one_window(source, "transformers")
        weights = key_maps.swin_to_huggingface(weights)
    elif "dinov2" in shape["arch"]:
        weights = key_maps.dinov2_to_huggingface(weights)
    elif source.kind == "vit":
        weights = key_maps.vit_to_huggingface(weights)
    else:
        raise UserError(f"transformers has no model of its own for {shape['arch']}: give --to timm, which transformers reads too")
    weights = {name: weight.contiguous() for name, weight in weights.items()}
    store.write_bytes(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    _write_json(folder / "config.json", key_maps.huggingface_config(shape, registers))
    resize = evaluation_resize(shape["image_size"])
    _write_json(folder / "preprocessor_config.json", key_maps.huggingface_processor(shape, resize))
    return "."


def to_openmmlab(source: Source, folder: Path) -> str:
    """`backbone.pth`."""
    weights = source.weights()
    if source.kind == "swin":
        _needs_one_window(source, "OpenMMLab")
        weights = key_maps.swin_to_openmmlab(weights, len(source.shape["depths"]))
    elif source.kind == "vit":
        weights = key_maps.vit_to_openmmlab(weights)
    else:
        raise UserError(f"OpenMMLab has no backbone for {source.shape['arch']}: it loads plain ViTs and Swins")
    state = {f"backbone.{name}": weight.contiguous() for name, weight in weights.items()}
    torch.save({"meta": {"from": str(source.path.name)}, "state_dict": state}, folder / "backbone.pth")
    return "backbone.pth"


def to_onnx(source: Source, folder: Path) -> str:
    """`model.onnx`."""
    network = onnx_graph.ViTGraph(source.backbone, POSITION_OFFSET) if isinstance(source.backbone, ViT) else source.backbone
    onnx_graph.write(network, _images(source, 2), folder / "model.onnx")
    return "model.onnx"


def to_original(source: Source, folder: Path) -> str:
    """`checkpoint.pth`: everything, if the checkpoint is whole, else the backbone as the published backbone files have it."""
    contents = source.contents
    if not contents.lacks() and contents.centres.keys() == {"cls", "patch"} and source.kind != "timm":
        networks = {key: _original_names(contents.networks[key]) for key in ("student", "teacher")}
        whole = {
            "student": {f"module.{name}": weight for name, weight in networks["student"].items()},
            "teacher": networks["teacher"],
            "optimizer": contents.optimizer,
            "epoch": contents.epoch,
            "args": Namespace(**_original_arguments(source)),
            "ibot_loss": {"center": contents.centres["cls"], "center2": contents.centres["patch"]},
        }
        torch.save(whole, folder / "checkpoint.pth")
    elif source.kind == "timm":
        raise UserError(f"the original has no {source.shape['arch']}: give --to timm")
    else:
        torch.save({"state_dict": layouts.with_indices(layouts.to_original(source.weights()))}, folder / "checkpoint.pth")
    return "checkpoint.pth"


def _original_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    backbone = layouts.with_indices(layouts.to_original(backbone_part(weights)))
    return {f"backbone.{name}": w for name, w in backbone.items()} | {n: w for n, w in weights.items() if n.startswith("head.")}


def _original_arguments(source: Source) -> dict[str, Any]:
    theirs = {"data": "data_path", "out": "output_dir", "workers": "num_workers", "window": "window_size"}
    theirs |= {"lambda_cls": "lambda1", "lambda_patch": "lambda2"}
    arguments = {theirs.get(name, name): value for name, value in source.contents.args.items()}
    return arguments | {"arch": source.shape["arch"], "patch_size": source.shape["patch_size"]}


def _needs_one_window(source: Source, library: str) -> None:
    shape = source.backbone.shape
    last = shape.image_size // shape.stride
    if last < shape.window:
        raise UserError(
            f"{library} gives every stage of a Swin the same window, but with images of {shape.image_size} pixels the last stage "
            f"of this one has {last} x {last} patches, fewer than the window of {shape.window}: give --to timm or --to onnx"
        )


def by_us(file: Path, shape: reload.Shape, images: Tensor) -> Tensor:
    """Through our own reader."""
    with torch.no_grad():
        return load_backbone(file).backbone(images)


class Target(NamedTuple):
    """Writer for a library, and the code that loads its file there."""

    write: Callable[[Source, Path], str]
    read: Callable[[Path, reload.Shape, Tensor], Tensor]


TARGETS = {
    "timm": Target(to_timm, reload.by_timm),
    "huggingface": Target(to_huggingface, reload.by_transformers),
    "openmmlab": Target(to_openmmlab, reload.by_openmmlab),
    "onnx": Target(to_onnx, reload.by_onnxruntime),
    "original": Target(to_original, by_us),
}


def written(source: Source, target: Target, folder: Path) -> str:
    """The name of the file that was written. Raises WorkError where a library cannot."""
    try:
        return target.write(source, folder)
    except (UserError, OSError):
        raise
    except Exception as error:  # exporters fail in many ways
        raise WorkError(f"the export could not be made ({first_line(error)}): nothing is left behind") from error


def compare(source: Source, target: Target, file: Path) -> float:
    """The largest difference between the reloaded export's tokens and ours. Raises WorkError above TOLERANCE."""
    images = _images(source, 3)
    with torch.no_grad():
        ours = source.backbone(images)
    try:
        theirs = target.read(file, source.shape, images)
    except UserError:
        raise
    except Exception as error:  # whatever a library says of a file that it cannot load
        raise WorkError(f"the export was written but does not load ({first_line(error)}): nothing is left behind") from error
    difference = float((theirs - ours).abs().max()) if theirs.shape == ours.shape else float("inf")
    if not difference <= TOLERANCE:
        raise WorkError(f"the export loads but its tokens differ from ours by {difference:.1e}: nothing is left behind")
    return difference


def _images(source: Source, count: int) -> Tensor:
    size, generator = source.shape["image_size"], torch.Generator().manual_seed(0)
    return torch.randn(count, source.shape["channels"], size, size, generator=generator)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(escape.json_text(values, indent=2))
