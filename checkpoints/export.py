"""A checkpoint for other libraries: `python -m checkpoints.export --ckpt runs/sample --to timm`.

Every export is loaded again by the library it is for, and its tokens of random images are compared with ours, before it is left
behind. This is a command that nothing imports, which is why it may use what stands on the floor above.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from checkpoints import places, terminal
from checkpoints.cli import UserError, WorkError, parse, run_command
from checkpoints.store import first_line
from pretrain.models.backbone import load_backbone
from transfer.exports import card, push
from transfer.exports.targets import TARGETS, Source, compare, written


@dataclass(frozen=True)
class ExportOptions:
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
    """Network of the checkpoint."""
    push: str | None = None
    """OWNER/NAME: also upload it to the Hugging Face Hub, where a new repository is private; needs `hf auth login`."""


def main(arguments: Sequence[str]) -> None:
    options = parse(ExportOptions, arguments, prog="python -m checkpoints.export")
    push.check(options.push)
    full = options.to == "original"
    loaded = load_backbone(options.ckpt, key=options.key, full=full)
    source = Source(loaded.backbone, loaded.contents, loaded.path)
    name = loaded.path.parent.name if loaded.path.name in card.OURS else loaded.path.stem or "checkpoint"
    out = options.out or Path("exports") / f"{name}-{options.to}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: give another --out, or remove it")
    part = places.tried(out.with_name(f".{out.name}.part"))
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
    if options.push is not None:
        console.print(f"pushed to {options.push}: {push.push(out, options.push)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
