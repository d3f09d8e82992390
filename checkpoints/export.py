"""A checkpoint for other libraries: `python -m checkpoints.export --ckpt runs/sample --to timm`.

Every export is loaded again by the library it is for, and its tokens of random images are compared with ours, before it is left
behind. This is a command that nothing imports, which is why it may use what stands on the floor above.
"""

import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoints import card, escape, exported, foreign, layouts, onnx, terminal
from checkpoints.command import UserError, WorkError, parse, run_command
from checkpoints.published import Contents
from checkpoints.store import first_line
from pretrain.augment import evaluation_resize
from pretrain.backbone import Backbone, backbone_part, load_backbone
from pretrain.vit import POSITION_OFFSET, ViT

TOLERANCE = 1e-4
"""Largest difference of a token's number."""


@dataclass(frozen=True)
class Options:
    """Write a backbone as other libraries load it, and check that they do."""

    to: Literal["timm", "huggingface", "openmmlab", "onnx", "original"]
    """timm: for timm.create_model(..., checkpoint_path=...); huggingface: a folder for AutoModel and AutoImageProcessor;
    openmmlab: for MMPretrain and what builds on it; onnx: any batch and image size; original: the original iBOT's own layout
    (student, teacher, heads, centres and optimizer where the checkpoint has them)."""
    ckpt: Path | None = None
    """A run's folder, a checkpoint file of any kind, a name of checkpoints/zoo.json, timm:NAME (default: the newest run)."""
    out: Path | None = None
    """The folder to write (default: exports/NAME-TO, NAME being the checkpoint's)."""
    key: Literal["teacher", "student"] = "teacher"
    """Which network."""


class Source(NamedTuple):
    """What is to be exported."""

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
    """`model.safetensors`."""
    save_file(source.weights(), folder / "model.safetensors", metadata={"format": "pt"})
    return "model.safetensors"


def to_huggingface(source: Source, folder: Path) -> str:
    """`model.safetensors`, `config.json`, `preprocessor_config.json`."""
    weights, shape = source.weights(), source.shape
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    if source.kind == "swin":
        _needs_one_window(source, "transformers")
        weights = foreign.swin_to_huggingface(weights)
    elif "dinov2" in shape["arch"]:
        weights = foreign.dinov2_to_huggingface(weights)
    elif source.kind == "vit":
        weights = foreign.vit_to_huggingface(weights)
    else:
        raise UserError(f"transformers has no model of its own for {shape['arch']}: give --to timm, which transformers reads too")
    weights = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", foreign.huggingface_config(shape, registers))
    resize = evaluation_resize(shape["image_size"])
    _write_json(folder / "preprocessor_config.json", foreign.huggingface_processor(shape, resize))
    return "."


def to_openmmlab(source: Source, folder: Path) -> str:
    """`backbone.pth`."""
    weights = source.weights()
    if source.kind == "swin":
        _needs_one_window(source, "OpenMMLab")
        weights = foreign.swin_to_openmmlab(weights, len(source.shape["depths"]))
    elif source.kind == "vit":
        weights = foreign.vit_to_openmmlab(weights)
    else:
        raise UserError(f"OpenMMLab has no backbone for {source.shape['arch']}: it loads plain ViTs and Swins")
    state = {f"backbone.{name}": weight.contiguous() for name, weight in weights.items()}
    torch.save({"meta": {"from": str(source.path.name)}, "state_dict": state}, folder / "backbone.pth")
    return "backbone.pth"


def to_onnx(source: Source, folder: Path) -> str:
    """`model.onnx`."""
    network = onnx.ViTGraph(source.backbone, POSITION_OFFSET) if isinstance(source.backbone, ViT) else source.backbone
    onnx.write(network, _images(source, 2), folder / "model.onnx")
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


def by_us(file: Path, shape: exported.Shape, images: Tensor) -> Tensor:
    """Through our own reader."""
    with torch.no_grad():
        return load_backbone(file).backbone(images)


class Target(NamedTuple):
    """How to write for a library, and how it reads."""

    write: Callable[[Source, Path], str]
    read: Callable[[Path, exported.Shape, Tensor], Tensor]


TARGETS = {
    "timm": Target(to_timm, exported.by_timm),
    "huggingface": Target(to_huggingface, exported.by_transformers),
    "openmmlab": Target(to_openmmlab, exported.by_openmmlab),
    "onnx": Target(to_onnx, exported.by_onnxruntime),
    "original": Target(to_original, by_us),
}


def main(arguments: Sequence[str]) -> None:
    options = parse(Options, arguments, prog="python -m checkpoints.export")
    full = options.to == "original"
    loaded = load_backbone(options.ckpt, key=options.key, full=full)
    source = Source(loaded.backbone, loaded.contents, loaded.path)
    name = loaded.path.parent.name if loaded.path.name in card.OURS else loaded.path.stem or "checkpoint"
    out = options.out or Path("exports") / f"{name}-{options.to}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: give another --out, or remove it")
    part = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        target = TARGETS[options.to]
        file = written(source, target, part)
        difference = compare(source, target, part / file)
        text = card.text(source.shape, loaded.contents, loaded.path, options.to, file, options.key, difference)
        (part / "README.md").write_text(text, encoding="utf-8")
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise WorkError(f"{out} could not be written ({error.strerror or first_line(error)})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    console = terminal.Console(soft_wrap=True)
    sizes = ", ".join(f"{path.name} ({path.stat().st_size / 2**20:.1f} MB)" for path in sorted(out.iterdir()))
    console.print(f"{loaded.path} ({loaded.contents.layout}) for {options.to}: {sizes} in {out}")
    console.print(f"loaded again, its tokens differ from ours by at most {difference:.1e}; how to load it: {out / 'README.md'}")


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


if __name__ == "__main__":
    sys.exit(run_command(main))
