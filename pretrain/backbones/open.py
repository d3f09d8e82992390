"""A backbone to measure, by what `--ckpt` says: our own kinds as `load_backbone` reads them, or another library's as it is."""

from pathlib import Path

from pretrain.backbones import timm_file
from pretrain.models.backbone import Loaded, load_backbone


def open_backbone(checkpoint: Path | None, *, runs: Path = Path("runs"), key: str = "teacher", full: bool = False) -> Loaded:
    """A frozen backbone on the CPU: see `load_backbone`, and besides

    `timm:NAME[.TAG][@FILE]`: any model of timm with features, by timm itself.

    Raises UserError for what is not known or does not fit, WorkError where something cannot be fetched.
    """
    said = "" if checkpoint is None or checkpoint.exists() else str(checkpoint)
    if said.startswith("timm:"):
        return timm_file.opened(said)
    return load_backbone(checkpoint, runs=runs, key=key, full=full)
