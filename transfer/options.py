"""The flags of `python -m transfer.train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class TransferOptions:
    """Fine-tune a detector (COCO) or a segmenter (ADE20K) on a pretrained backbone, then test it (paper, Table 6)."""

    task: Literal["coco", "ade20k"]
    """Task."""
    ckpt: Path | None = None
    """A run's folder, a checkpoint file of any kind, a name of checkpoints/zoo.json (default: the newest run)."""
    data: Path | None = None
    """COCO's folder (annotations, train2017, val2017) or ADEChallengeData2016 (images, annotations); default: the sample."""
    train_json: Path | None = None
    """coco: annotations to train on (default: looked for in --data)."""
    train_images: Path | None = None
    """coco: the folder of their images."""
    val_json: Path | None = None
    """coco: annotations to test on (default: looked for in --data)."""
    val_images: Path | None = None
    """coco: the folder of their images."""
    val_percent: float | None = None
    """coco: hold this percentage of the training images out to test on, where there are no others."""
    val_seed: int = 0
    """coco: which images those are."""
    boxes_only: bool = False
    """coco: learn boxes alone, whatever masks there are (always so where there are none)."""
    config: str | None = None
    """A name in transfer/configs/TASK, or a file (default: the recipe for the checkpoint's size, with its widths;
    for the sample `sample`)."""
    head: Literal["upernet", "linear"] = "upernet"
    """ade20k: which head, where no --config is given."""
    neck: Literal["taps", "simple"] = "taps"
    """`taps`: four blocks of a ViT, as in the paper; `simple`: ViTDet's simple feature pyramid, of its last map alone."""
    background: str | None = None
    """ade20k: the label of pixels without a class, or `none` (default: the config's, 0 in all here). Where it is 0, label 1 is
    the first class, else label 0 is. It must be given where classes.txt or classes.json lists classes."""
    ignore: tuple[int, ...] = ()
    """ade20k: further void labels; 255 always is one."""
    classes: Literal["listed", "counted"] = "listed"
    """ade20k: `listed` in classes.txt or classes.json beside images/, else in the config; `counted` in the label maps."""
    out: Path | None = None
    """The folder to write (default: runs/transfer-TASK-CONFIG); what is there is continued."""
    key: Literal["teacher", "student"] = "teacher"
    """Network of the checkpoint."""
    from_scratch: bool = False
    """Random weights in the checkpoint's architecture: what pretraining is worth."""
    freeze: bool = False
    """Train the neck and heads alone, on the backbone as it is: what its features are worth without tuning it."""
    epochs: int | None = None
    """coco: passes over the training images; the whole schedule is scaled (default: the recipe's, more for few images)."""
    iters: int | None = None
    """ade20k: training steps; the whole schedule is scaled (default: the recipe's, fewer for few images)."""
    batch_size: int | None = None
    """Images of a step in each process (default: the config's)."""
    lr: float | None = None
    """Learning rate for the batch that the config names, scaled to yours as its own is (default: the config's)."""
    size: int | None = None
    """Short side of images (coco), crops and windows (ade20k) in pixels; the config's other sizes follow (default: the config's,
    the median of the training images where own data is smaller and no --config is given)."""
    cfg_options: tuple[str, ...] = ()
    """Single values of the config: optim_wrapper.clip_grad.max_norm=1 model.backbone.drop_path=0.2."""
    multi_scale: bool = False
    """ade20k: test once more at six scales, each also mirrored."""
    seed: int = 0
    """Seed of weights and order."""
