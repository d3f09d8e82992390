"""What there is to measure: each step's command, the tables it fills, the data it needs and what it costs.

Costs are counted in images that go forward through the backbone at the size it was trained on (a step of training is three
forwards), so that one short calibration turns all of them into seconds.
"""

from collections.abc import Sequence
from typing import NamedTuple

IN1K, IN1K_VAL = 1_281_167, 50_000
COCO_IMAGES, COCO_VAL, COCO_TIMES = 118_287, 5_000, 25.0
"""Images of a training epoch and of the test; what one of 800 x 1333 pixels costs beside one of 224."""
ADE_STEPS, ADE_BATCH, ADE_TIMES = 160_000, 16, 6.0
TRAINING = 3.0
START = 10.0
"""Seconds of a command before its first image."""


class Step(NamedTuple):
    """One command. `{ckpt}`, `{data}`, `{out}` (its record) and `{folder}` (of what else it leaves) are filled in."""

    name: str
    tables: tuple[str, ...]
    needs: str
    """The flag of `probes.reproduce` whose data it reads; `sample` for none."""
    words: tuple[str, ...]
    images: float
    """Forwards of one image."""
    vit_only: bool = False
    """Reads the attention of [CLS]."""
    full: bool = False
    """Needs a checkpoint with its head."""


def probe(name: str, module: str, flags: str = "") -> tuple[str, ...]:
    """A probe's command on one data set."""
    return ("-m", f"probes.{module}", "--ckpt", "{ckpt}", "--data", "{data}", "--out", "{out}", *flags.split())


def on_sample(module: str, flags: str = "") -> tuple[str, ...]:
    """The same on the embedded sample."""
    return ("-m", f"probes.{module}", "--ckpt", "{ckpt}", "--out", "{out}", *flags.split())


def dense(task: str, flags: str = "") -> tuple[str, ...]:
    """A detector's or segmenter's training."""
    return ("-m", "transfer.train", "--task", task, "--ckpt", "{ckpt}", "--out", "{folder}", *flags.split())


CONFIGS = {"vit_small": "vits16", "vit_base": "vitb16", "swin_tiny": "swint"}
"""Of transfer/configs, by architecture."""
EPOCHS = {"vit_small": 200, "vit_base": 100, "vit_large": 50}
"""Of fine-tuning on ImageNet (Table 2)."""


def real(arch: str) -> list[Step]:
    """Everything that the paper measures, for a backbone of this architecture."""
    every_epoch, once = 100 * IN1K, IN1K + IN1K_VAL
    steps = [
        Step("knn", ("T1", "T10", "T15"), "imagenet", probe("knn", "knn"), once),
        Step("logistic", ("T12",), "imagenet", probe("logistic", "logistic"), once),
        Step("semi", ("T12",), "imagenet", probe("semi", "semi", "--frozen"), once),
        Step("cluster", ("T5",), "imagenet", probe("cluster", "cluster", "--method head"), IN1K_VAL, full=True),
        Step("parts", ("F5",), "imagenet", probe("parts", "parts"), once, vit_only=True),
        Step("linear", ("T1", "T8", "T10", "T15"), "imagenet", probe("linear", "linear", "--mode paper"), every_epoch),
        Step("occlusion", ("T8", "F9"), "imagenet", probe("occlusion", "robustness", "--suite occlusion"), 40 * IN1K_VAL, True),
        Step("shuffle", ("F10",), "imagenet", probe("shuffle", "robustness", "--suite shuffle"), 7 * IN1K_VAL),
        Step(
            "finetune",
            ("T2", "T11"),
            "imagenet",
            probe("finetune", "finetune", "--recipe imagenet --folder {folder}"),
            4 * TRAINING * EPOCHS.get(arch, 100) * IN1K,
        ),
        Step(
            "finetune_1pct",
            ("T4", "T12"),
            "imagenet",
            probe("finetune_1pct", "finetune", "--recipe semi --percent 1 --folder {folder}"),
            TRAINING * 10 * IN1K,
            full=True,
        ),
        Step(
            "finetune_10pct",
            ("T4", "T12"),
            "imagenet",
            probe("finetune_10pct", "finetune", "--recipe semi --percent 10 --folder {folder}"),
            TRAINING * 100 * IN1K,
            full=True,
        ),
        Step("in9", ("T8",), "in9", probe("in9", "robustness", "--suite in9"), 8 * 4050),
        Step("ina", ("T8",), "ina", probe("ina", "robustness", "--suite ina"), 7_500),
        Step("inr", ("THIRD",), "inr", probe("inr", "robustness", "--suite inr"), 30_000),
        Step("sketch", ("THIRD",), "sketch", probe("sketch", "robustness", "--suite sketch"), 50_889),
        Step("inc", ("T8",), "inc", probe("inc", "robustness", "--suite inc"), 95 * IN1K_VAL),
        Step("video", ("T16",), "davis", probe("video", "video"), 2_000 * 10, True),
        Step("roxford5k", ("T16",), "landmarks", probe("roxford5k", "retrieval", "--suite roxford5k"), 5_000 * 12),
        Step("rparis6k", ("T16",), "landmarks", probe("rparis6k", "retrieval", "--suite rparis6k"), 6_400 * 12),
        Step("copydays", ("copydays",), "copydays", probe("copydays", "retrieval", "--suite copydays"), 3_200),
    ]
    for flag, images in (("cifar10", 50_000), ("cifar100", 50_000), ("flowers", 2_040), ("cars", 8_144)):
        flags = f"--recipe transfer --data-set {flag} --folder {{folder}}"
        steps.append(Step(flag, ("T7a", "T7b"), flag, probe(flag, "finetune", flags), TRAINING * 1000 * images))
    for flag, images in (("inat18", 437_513), ("inat19", 265_240)):
        flags = f"--recipe transfer --data-set {flag} --folder {{folder}}"
        steps.append(Step(flag, ("T7a", "T7b"), flag, probe(flag, "finetune", flags), TRAINING * 360 * images))
    return steps + _dense(arch)


def _dense(arch: str) -> list[Step]:
    if arch not in CONFIGS:
        return []
    name, data = CONFIGS[arch], "--data {data} --config "
    ade = TRAINING * ADE_STEPS * ADE_BATCH * ADE_TIMES
    coco = (TRAINING * 12 * COCO_IMAGES + COCO_VAL) * COCO_TIMES
    steps = [
        Step("coco", ("T6a", "T6b", "T13", "T14"), "coco", dense("coco", f"{data}cascade_{name}_1x"), coco),
        Step("upernet", ("T6a", "T6b", "T13", "T14"), "ade20k", dense("ade20k", f"{data}upernet_{name}"), ade),
    ]
    if arch.startswith("vit"):
        linear = dense("ade20k", f"{data}linear_{name}")
        steps.append(Step("segment_linear", ("T6b", "T14", "TC"), "ade20k", linear, ade / TRAINING))
    return steps


SPEED = 1000.0
"""Images a second of the sample's backbone on the two cores where the seconds below were measured."""


def sample() -> list[Step]:
    """Everything on the embedded sample: a small rehearsal of each protocol."""
    return [
        _seconds("knn", ("T1",), on_sample("knn", "--baselines"), 15),
        _seconds("linear", ("T1", "T8"), on_sample("linear"), 15),
        _seconds("logistic", ("T12",), on_sample("logistic"), 10),
        _seconds("semi", ("T4", "T12"), on_sample("semi"), 150),
        _seconds("cluster", ("T5",), on_sample("cluster"), 10),
        _seconds("parts", ("F5",), on_sample("parts"), 30, vit_only=True),
        _seconds("in9", ("T8",), on_sample("robustness", "--suite in9"), 30),
        _seconds("ina", ("T8",), on_sample("robustness", "--suite ina"), 30),
        _seconds("inr", ("THIRD",), on_sample("robustness", "--suite inr"), 30),
        _seconds("sketch", ("THIRD",), on_sample("robustness", "--suite sketch"), 30),
        _seconds("inc", ("T8",), on_sample("robustness", "--suite inc"), 100),
        _seconds("occlusion", ("T8", "F9"), on_sample("robustness", "--suite occlusion"), 60, vit_only=True),
        _seconds("shuffle", ("F10",), on_sample("robustness", "--suite shuffle"), 30),
        _seconds("roxford5k", ("T16",), on_sample("retrieval", "--suite roxford5k"), 30),
        _seconds("rparis6k", ("T16",), on_sample("retrieval", "--suite rparis6k"), 30),
        _seconds("copydays", ("copydays",), on_sample("retrieval", "--suite copydays"), 20),
        _seconds("video", ("T16",), on_sample("video"), 30),
        _seconds("finetune", ("T2",), on_sample("finetune", "--limit 2000 --epochs 5 --folder {folder}"), 90),
        _seconds("segment", (), on_sample("segment"), 60),
        _seconds("upernet", ("T6a", "T13"), dense("ade20k", "--head upernet"), 300),
        _seconds("segment_linear", ("T6b", "T14", "TC"), dense("ade20k", "--head linear"), 120),
        _seconds("coco", ("T6a", "T13"), dense("coco"), 300),
    ]


def _seconds(name: str, tables: tuple[str, ...], words: Sequence[str], seconds: int, vit_only: bool = False) -> Step:
    return Step(name, tables, "sample", tuple(words), seconds * SPEED, vit_only)
