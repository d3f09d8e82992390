"""A trained detector or segmenter as plain MMDetection or MMSegmentation loads it: `python -m transfer.predict.export --run R`.

`config.py`, `weights.pth`, and for plain ViTs `vit_pyramid.py`, the backbone, which needs PyTorch and MMEngine alone. Other
backbones are built by this project, which must be installed then. What was written is loaded again and compared before it is
left behind.
"""

import importlib
import pprint
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from checkpoints import places, store, terminal
from checkpoints.cli import UserError, WorkError, parse, run_command
from pretrain.models.vit import ViT
from transfer.config import toolboxes

TOLERANCE = 1e-4
"""Largest difference of a number in the backbone's maps, beside the largest of them."""
FILE = "vit_pyramid"
HEAD = f"""# Written by iBOT's transfer.predict.export. For MMDetection: init_detector("config.py", "weights.pth");
# for MMSegmentation: init_model("config.py", "weights.pth").
import sys

sys.path.insert(0, r"{{{{ fileDirname }}}}")  # {FILE}.py lies beside this file

"""
HEAD_INSTALLED = """# Written by iBOT's transfer.predict.export. The backbone is this project's, which must be installed.

"""


@dataclass(frozen=True)
class ExportOptions:
    """Write a trained detector or segmenter for plain MMDetection or MMSegmentation, and check that it loads there."""

    run: Path
    """The folder of a run of transfer.train; its newest checkpoint is taken."""
    out: Path | None = None
    """The folder to write, which must be new or empty (default: exports/NAME, NAME that of the run)."""
    ckpt: Path | None = None
    """The checkpoint that the run began with, where its backbone is another library's; the written config names it too."""
    config: str | None = None
    """The config that the run was trained with, where it was a file of your own: it is run as a program, as in training."""


def run(options: ExportOptions) -> int:
    """Write, load again, compare."""
    toolboxes()
    from transfer.predict.rebuild import rebuilt  # noqa: PLC0415 (a heavy import, and an optional one)

    out = options.out or Path("exports") / (options.run.resolve().name or "run")
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError(f"{out} exists already: give another --out, or remove it")
    model = rebuilt(options.run, options.config, options.ckpt and absolute(options.ckpt))
    part = places.tried(out.with_name(f".{out.name}.part"))
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        alone = write(model, part)
        difference = compare(model, part)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise WorkError(f"{out} could not be written ({error.strerror or store.first_line(error)})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    needs = f"its backbone is {FILE}.py beside it" if alone else "its backbone needs this project installed"
    terminal.say(f"{model.file}: config.py and weights.pth in {out}; {needs}")
    terminal.say(f"loaded again, the backbone's maps differ from ours by at most {difference:.1e} of their largest number")
    return 0


def write(model: Any, folder: Path) -> bool:
    """Write the files; whether the backbone stands alone in one of them."""
    from transfer.predict.rebuild import READERS, TRUTH, modules, reading  # noqa: PLC0415

    about, backbone = model.trained, model.model.backbone
    settings = model.config.to_dict()
    others = modules({name: part for name, part in settings["model"].items() if name != "backbone"})
    alone = not others and isinstance(getattr(backbone, "net", None), ViT) and backbone.as_the_original
    settings["model"]["backbone"] = _standalone(backbone) if alone else settings["model"]["backbone"]
    imports = [FILE] if alone else ["transfer.predict.rebuild", *others]
    steps = [reading(step) if step["type"] in READERS else step for step in about.pipeline if step["type"] not in TRUTH]
    meta: dict[str, Any] = {"classes": tuple(about.classes)}
    if about.palette:
        meta["palette"] = [tuple(colour) for colour in about.palette]
    kind = {"coco": "CocoDataset", "ade20k": "BaseSegDataset"}[about.task]
    config = {
        "default_scope": settings["default_scope"],
        "custom_imports": {"imports": imports, "allow_failed_imports": False},
        "model": _unsynchronised(settings["model"]),
        "test_pipeline": steps,
        "test_dataloader": {"batch_size": 1, "dataset": {"type": kind, "metainfo": meta, "pipeline": steps}},
    }
    store.write_bytes(folder / "config.py", ((HEAD if alone else HEAD_INSTALLED) + written(config)).encode())
    if alone:
        store.write_bytes(folder / f"{FILE}.py", Path(__file__).with_name(f"{FILE}.py").read_bytes())
    weights = {name: weight.contiguous() for name, weight in model.model.state_dict().items()}
    torch.save({"meta": {"dataset_meta": meta}, "state_dict": weights}, folder / "weights.pth")
    return alone


def absolute(checkpoint: Path) -> Path:
    """A --ckpt whose file or folder is named from the root: what is written is loaded from any folder."""
    text = str(checkpoint)
    for mark in ("@", ":"):  # timm:NAME@FILE, hf:FOLDER
        before, found, rest = text.partition(mark)
        if found and rest and Path(rest).exists():
            return Path(f"{before}{mark}{Path(rest).absolute()}")
    return checkpoint.absolute() if checkpoint.exists() else checkpoint


def written(config: dict[str, Any]) -> str:
    """A config as Python of plain values.

    MMEngine's own writer puts keys down as they are, and its reader replaces what stands in double braces: a name in a run's
    folder would become a part of the program.
    """
    lines = (f"{name} = {pprint.pformat(value, width=120, sort_dicts=False)}\n" for name, value in config.items())
    return "".join(lines).replace("{{", "\\x7b{")  # only texts can hold two


def _standalone(backbone: Any) -> dict[str, Any]:
    """The settings of `ViTPyramid` for one of our pyramids of a ViT."""
    its = backbone.shape
    return {
        "type": "ViTPyramid",
        "patch_size": its.patch_size,
        "width": its.embed_dim,
        "depth": its.depth,
        "heads": its.num_heads,
        "taps": list(backbone.layout.taps),
        "grid": list(backbone.net.grid),
        "norm": not isinstance(backbone.net.norm, torch.nn.Identity),
        "levels": backbone.levels is not None,
        "channels": its.channels,
    }


def _unsynchronised(part: Any) -> Any:
    """Batch norms of one process: synchronised ones do not run on a CPU; their weights are the same."""
    if isinstance(part, dict):
        return {name: "BN" if (name, value) == ("type", "SyncBN") else _unsynchronised(value) for name, value in part.items()}
    return type(part)(_unsynchronised(one) for one in part) if isinstance(part, (list, tuple)) else part


def compare(model: Any, folder: Path) -> float:
    """Load the folder with the toolbox, its weights strictly, and compare the backbone's maps of random images.

    The largest difference, beside the largest number. Raises WorkError above TOLERANCE.
    """
    from mmengine.config import Config  # noqa: PLC0415

    init = {
        "coco": lambda: importlib.import_module("mmdet.apis").init_detector,
        "ade20k": lambda: importlib.import_module("mmseg.apis").init_model,
    }[model.trained.task]()
    before = list(sys.path)
    try:
        theirs = init(Config.fromfile(folder / "config.py"), str(folder / "weights.pth"), device="cpu")
        theirs.load_state_dict(model.model.state_dict())  # strictly: MMEngine leaves out what does not fit
    except Exception as error:  # whatever a toolbox says of what it cannot load
        raise WorkError(
            f"the export was written but does not load ({store.first_line(error)}): nothing is left behind"
        ) from error
    finally:
        sys.path[:] = before
        sys.modules.pop(FILE, None)
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, others = (list(one.extract_feat(images)) for one in (model.model, theirs))
    if [one.shape for one in ours] != [one.shape for one in others]:
        raise WorkError("the export loads but has maps of other sizes than ours: nothing is left behind")
    pairs = zip(ours, others, strict=True)
    largest = max(float((one - other).abs().max()) / max(float(one.abs().max()), 1e-9) for one, other in pairs)
    if not largest <= TOLERANCE:
        raise WorkError(f"the export loads but its maps differ from ours by {largest:.1e}: nothing is left behind")
    return largest


def main(arguments: Sequence[str]) -> int:
    options = parse(ExportOptions, arguments, prog="python -m transfer.predict.export")
    with terminal.aside(None):  # the toolboxes remark on optional parts
        return run(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
