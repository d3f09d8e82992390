"""A backbone to measure, by what `--ckpt` says: our own kinds as `load_backbone` reads them, or another library's as it is."""

from pathlib import Path

from checkpoints import zoo
from pretrain.backbones import hf_file, own, timm_file, torchvision_model
from pretrain.models.backbone import Loaded, load_backbone

SCHEMES = {
    "timm:": timm_file.opened,
    "hf:": hf_file.opened,
    "torchvision:": torchvision_model.opened,
    "python:": own.opened,
}
"""What `--ckpt` may begin with, and who opens it; a path that exists is a path first."""


def open_backbone(checkpoint: Path | None, *, runs: Path = Path("runs"), key: str = "teacher", full: bool = False) -> Loaded:
    """A frozen backbone on the CPU: see `load_backbone`, and besides, to be measured only:

    names of the zoo that stand for one of these; `timm:NAME[.TAG][@FILE]`;
    `hf:OWNER/NAME`, `hf:FOLDER`, `hf:FILE` and a folder in Hugging Face's layout or a file in it;
    `torchvision:NAME[.WEIGHTS][@FILE]`; `python:FILE.py:FUNCTION` of the command line.

    Raises UserError for what is not known or does not fit, WorkError where something cannot be fetched.
    """
    checkpoint = zoo.meant(checkpoint)
    if checkpoint is None:
        return load_backbone(checkpoint, runs=runs, key=key, full=full)
    if not checkpoint.exists():
        for scheme, opened in SCHEMES.items():
            if str(checkpoint).startswith(scheme):
                return opened(str(checkpoint))
    elif hf_file.is_folder(checkpoint):
        return hf_file.opened(f"hf:{checkpoint}")
    return load_backbone(checkpoint, runs=runs, key=key, full=full)
