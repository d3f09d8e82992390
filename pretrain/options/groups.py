"""The options of a pretraining in groups, one a concern, and their defaults (the original script's).

Flags, files and recipes know them by their own names only (`--lr`, `config.json`); the groups are sections of `--help`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

PORT = 8000
"""Of a bare --serve."""
DEIT = {"deit_tiny": "vit_tiny", "deit_small": "vit_small", "deit_base": "vit_base"}
"""What the original calls ViTs, too."""


def original(name: str) -> Any:
    """The original script's name for a flag; its other flags are in `checkpoints/original.py`."""
    return tyro.conf.arg(aliases=(name,))


ARCH = PrimitiveConstructorSpec(
    nargs=1,
    metavar="STR",
    instance_from_str=lambda words: DEIT.get(words[0], words[0]),
    is_instance=lambda value: isinstance(value, str),
    str_from_instance=lambda value: [value],
)
"""DeiT's names are those of the same ViTs."""
SERVE = PrimitiveConstructorSpec[int | None](
    nargs=(0, 1),
    metavar="[INT]",
    instance_from_str=lambda words: PORT if not words else None if words[0] == "None" else int(words[0]),
    is_instance=lambda value: value is None or isinstance(value, int),
    str_from_instance=lambda value: [str(value)],
)
"""With or without a port."""


@dataclass(frozen=True)
class ImageOptions:
    """The images to train on."""

    data: Annotated[str, original("--data-path")] = "sample"
    """Images: a folder (class sub-folders or flat), a text file of paths, .tar shards, .parquet files, hf:NAME,
    torchvision:NAME, `sample`, or `sample:PIXELS` (the same pictures drawn at another size). A part named train is used if
    there is one."""
    channels: int = 3
    """Channels of an image; other than 3 they are read from .tif or .npy, and normalised by the data's own mean and spread."""
    value_range: tuple[float, ...] = ()
    """LOW HIGH: the values that become 0 and 1 in images of more than 8 bit (default: whole numbers 0 to 65535, others 0 to 1,
    refused where the values lie outside). Kept in the checkpoint, so that probes use the same."""
    max_bad: int | None = None
    """Images that may turn out unusable before the run stops (default: 0.1 % of the data, at least 20)."""


@dataclass(frozen=True)
class RunOptions:
    """The run: its folder, its recipe, what it writes."""

    out: Annotated[Path | None, original("--output-dir")] = None
    """The run's folder (default: runs/RECIPE)."""
    recipe: str | None = None
    """Named settings that the other flags then change: `python -m pretrain.config` lists them."""
    seed: int = 0
    """Of weights, order, crops and masks."""
    replay: Path | None = None
    """Do nothing but repeat a step that was refused (a run's refused-*.pt) and show where it goes wrong. What the run's
    --tokenizer named must be named again: a file may not open another."""
    allow_config_change: bool = False
    """Continue a run although options have changed (they are listed); without this it is refused."""
    allow_foreign_files: bool = False
    """Begin a run in an --out that holds other files than a run's; without this it is refused. None of them is touched, unless
    a file of a run has the same name."""
    log_every: int = 20
    """Steps between log lines."""
    save_minutes: float = 10.0
    """Minutes between checkpoints; one more at every epoch's end and at the run's end."""
    keep_every: Annotated[int | None, original("--saveckp-freq")] = None
    """Epochs between checkpoints that stay (epoch-0040.pt, for --ckpt and --init-from); none is ever removed or replaced."""
    track: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = "none"
    """Send the log also there; the package must be installed and set up. TensorBoard's file is written wherever TensorBoard is
    installed; `tensorboard` refuses to begin without it."""
    report: bool = True
    """Write a page about the run into its folder at the end (report.html)."""
    serve: Annotated[int | None, SERVE] = None
    """Show the page of the run while it trains, on this machine's own address only, at this port (0 for any free one; without a
    number 8000)."""


@dataclass(frozen=True)
class MachineOptions:
    """What the machine does, and in which precision."""

    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """bf16 and fp16 are autocast of the two forwards, fp16 with a scaled loss; auto takes bf16 where the device is fast at it,
    fp16 on GPUs without bf16. tf32 is float32 with a GPU's rounded products, fp32 without them. [original: use_fp16]"""
    residual: Literal["auto", "fp32", "bf16"] = "auto"
    """In what the sums of the blocks are kept: bf16 halves what a GPU reads and writes for them; the paper's numbers were made
    with fp32. auto: bf16 on a GPU with --precision bf16, else fp32 (docs/performance.md)."""
    workers: Annotated[int | None, original("--num-workers")] = None
    """Processes that prepare batches (default: the cores divided by the machine's processes, less one)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Make the blocks fast: a ViT's in 16 bits on a GPU by this project's kernels (Triton), others by torch.compile; auto on a
    GPU. The run says which, or that it goes on without. Compiled code is kept for the next run in $IBOT_COMPILED (default:
    ~/.cache/ibot/compiled)."""
    checkpoint_activations: bool = False
    """Compute blocks twice to keep less: for large networks on small GPUs."""
    shard: bool = False
    """Spread weights, gradients and optimizer states over the processes (FSDP2): for networks that do not fit into one GPU."""


@dataclass(frozen=True)
class ModelOptions:
    """The backbone, and what its weights begin with."""

    arch: Annotated[str, ARCH] = "vit_small"
    """vit_tiny, vit_small, vit_base or vit_large; swin_tiny, swin_small, swin_base or swin_large; or a ViT of timm with a class
    token by its name there (vit_base_patch14_reg4_dinov2)."""
    patch_size: int = 16
    """Pixels of a patch's side (Swin: 4; timm's names carry their own)."""
    window: Annotated[int, original("--window-size")] = 7
    """Swin: patches of a window's side (7 or 14)."""
    width: int | None = None
    """Embedding width in place of the architecture's, a multiple of 64."""
    depth: int | None = None
    """Number of blocks in place of the architecture's."""
    drop_path: float = 0.1
    """Stochastic depth of the student's last block, rising from 0 at the first."""
    init: Literal["original", "fan_in", "whiten"] = "original"
    """How weights begin: linear layers with standard deviation 0.02, or one over the root of their inputs (for narrow
    networks), or that with patches that are whitened (for short trainings on small pictures)."""
    init_from: Path | None = None
    """Begin with this checkpoint: anything that --ckpt of the probes takes. A full one brings backbones, heads, centres and the
    optimizer's moments, a backbone alone begins with fresh heads."""
    init_heads: bool = True
    """With --init-from: false leaves heads, centres and moments of a full checkpoint out."""


@dataclass(frozen=True)
class HeadOptions:
    """The projection head (section 3.2, App. E)."""

    out_dim: int = 8192
    """Prototypes for [CLS]."""
    patch_out_dim: int = 8192
    """Prototypes for patches; with a shared head --out-dim counts."""
    shared_head: bool = False
    """Student: the same prototypes for [CLS] and patches. The paper's setting is true."""
    shared_head_teacher: bool = True
    """Teacher: likewise. Student false and teacher true is the paper's semi-shared head (App. E)."""
    separate_layers: int = 0
    """Heads that are not shared: how many of the three layers before the prototypes [CLS] and patches have apart (Table 17)."""
    head_hidden_dim: int = 2048
    """Width of the head's two hidden layers."""
    head_bottleneck_dim: int = 256
    """Width of the head before its prototypes."""
    norm_last_layer: bool = True
    """Keep every prototype's length at one."""


@dataclass(frozen=True)
class CropOptions:
    """Multi-crop and its augmentations (App. B)."""

    global_crops_number: int = 2
    """Crops seen by student and teacher."""
    global_crops_size: int = 224
    """Pixels of a global crop's side."""
    global_crops_scale: tuple[float, float] = (0.14, 1.0)
    """Share of the image that a global crop covers, least and most."""
    local_crops_number: int = 0
    """Crops seen by the student only."""
    local_crops_size: int = 96
    """Pixels of a local crop's side."""
    local_crops_scale: tuple[float, float] = (0.05, 0.4)
    """Share of the image that a local crop covers, least and most."""
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of Gaussian blur: first global, other globals, locals."""
    solarize: tuple[float, float, float] = (0.0, 0.2, 0.0)
    """Probability of solarisation: first global, other globals, locals."""


@dataclass(frozen=True)
class MaskOptions:
    """Which patches the student does not see."""

    use_masked_im_modeling: bool = True
    """False: no masks and no patch loss (DINO)."""
    pred_ratio: tuple[float, ...] = (0.3,)
    """Shares of patches to mask; each crop draws one of them."""
    pred_ratio_var: tuple[float, ...] = (0.0,)
    """How far each share moves up or down."""
    pred_shape: Literal["block", "rand"] = "block"
    """Masks as rectangles or anywhere."""
    pred_start_epoch: int = 0
    """First epoch with masks."""
    masked_crops: Literal["global", "one", "all"] = "global"
    """Which crops are masked: the global ones, the first of them, or the local ones as well (App. B, Fig. 8)."""


@dataclass(frozen=True)
class LossOptions:
    """Targets, their centres, and the weights of the two losses."""

    targets: Literal["online", "hard", "codes", "frozen", "dense_position", "dense_feature"] = "online"
    """Patch targets: the teacher's soft distribution (iBOT), its argmax, an offline tokenizer's codes (BEiT), a fixed
    network's distribution, or, unmasked, the teacher's for the matching patch of the other crop (docs/ablations.md)."""
    tokenizer: str | None = None
    """With --targets codes: dalle, dalle:FILE, kmeans:FILE or colour (docs/tokenizers.md); frozen: a full checkpoint."""
    centre_patches: bool = True
    """False: targets of patches are sharpened but not centred (Table 18)."""
    patch_centre_momentum: float = 0.9
    """Of the patches' centre (App. E)."""
    lambda_cls: Annotated[float, original("--lambda1")] = 1.0
    """Weight of the [CLS] loss."""
    lambda_patch: Annotated[float, original("--lambda2")] = 1.0
    """Weight of the patch loss."""


@dataclass(frozen=True)
class TeacherOptions:
    """How the teacher follows the student, and how sharp its targets are."""

    momentum_teacher: float = 0.996
    """Teacher momentum at the start; it ends at 1 (cosine)."""
    warmup_teacher_temp: float = 0.04
    """Teacher temperature for [CLS] at the start."""
    teacher_temp: float = 0.04
    """Teacher temperature for [CLS] after its warm-up."""
    warmup_teacher_patch_temp: float = 0.04
    """Teacher temperature for patches at the start."""
    teacher_patch_temp: float = 0.07
    """Teacher temperature for patches after its warm-up."""
    warmup_teacher_temp_epochs: int = 30
    """Epochs over which both temperatures rise."""


@dataclass(frozen=True)
class OptimisationOptions:
    """Length, batch, optimizer and its schedules."""

    epochs: int = 100
    """Passes over the data."""
    steps: int | None = None
    """Optimisation steps of the whole run, in place of --epochs; schedules end there."""
    batch_size_per_gpu: int = 128
    """Images per process and step."""
    accumulate: int = 1
    """Batches of each process that make one step: as one batch so many times as large, in the memory of one."""
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """How weights move."""
    lr: float = 5e-4
    """Peak learning rate for 256 images a step; it is scaled by (images a step) / 256."""
    min_lr: float = 1e-6
    """Learning rate at the end."""
    warmup_epochs: int = 10
    """Epochs over which the learning rate rises from 0."""
    weight_decay: float = 0.04
    """At the start."""
    weight_decay_end: float = 0.4
    """At the end (cosine)."""
    clip_grad: float = 3.0
    """Largest length of each tensor's gradient; 0 for no limit."""
    freeze_last_layer: int = 1
    """Epochs during which the prototypes stay as they are."""


@dataclass(frozen=True)
class KnnOptions:
    """The k-NN curve of a run."""

    knn_data: str | None = None
    """Labelled images for the k-NN curve (default: the run's own where they have labels), like --data."""
    knn_every: int = 10
    """Epochs between k-NN measurements on labelled data; 0 for none."""


@dataclass(frozen=True)
class Config:
    """Pretrain a ViT or a Swin by iBOT.

    Nothing given: the embedded sample with recipe `sample`. Only --data given: recipe `ibot_vits16`. With --arch and no
    recipe, what is not given has the original script's default, so that its published command lines mean what they meant.
    A run that exists in --out is continued.
    """

    images: ImageOptions = ImageOptions()
    run: RunOptions = RunOptions()
    machine: MachineOptions = MachineOptions()
    model: ModelOptions = ModelOptions()
    head: HeadOptions = HeadOptions()
    crops: CropOptions = CropOptions()
    masks: MaskOptions = MaskOptions()
    loss: LossOptions = LossOptions()
    teacher: TeacherOptions = TeacherOptions()
    optimisation: OptimisationOptions = OptimisationOptions()
    knn: KnnOptions = KnnOptions()
