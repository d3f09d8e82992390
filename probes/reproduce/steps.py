"""All measurements: each step's command, the tables it fills, the data it needs and its cost.

Costs are counted in images that go forward through the backbone at the size it was trained on (a step of training is three
forwards), so that one short calibration turns all of them into seconds.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

IN1K, IN1K_VAL = 1_281_167, 50_000
COCO_IMAGES, COCO_VAL, COCO_TIMES = 118_287, 5_000, 25.0
"""Images of a training epoch and of the test; what one of 800 x 1333 pixels costs beside one of 224."""
ADE_STEPS, ADE_BATCH, ADE_TIMES = 160_000, 16, 6.0
TRAINING = 3.0
START = 10.0
"""Seconds of a command before its first image."""


class Step(NamedTuple):
    """One command. `{ckpt}`, `{data}`, `{out}` (its record) and `{folder}` (of what else it leaves) are filled in, `{head}` (the
    linear head that step `linear` leaves), `{few_1}` and `{few_10}` (lists of labelled images)."""

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
    after: tuple[str, ...] = ()
    """Steps whose files it reads."""
    leaves: tuple[str, ...] = ()
    """Endings of the files that other steps read, after the record's name."""
    plain_only: bool = False
    """For networks whose blocks share one grid."""


def probe(module: str, flags: str = "") -> tuple[str, ...]:
    """A probe's command on one data set."""
    return ("-m", f"probes.{module}", "--ckpt", "{ckpt}", "--data", "{data}", "--out", "{out}", *flags.split())


def on_sample(module: str, flags: str = "") -> tuple[str, ...]:
    """The command of a module on the embedded sample."""
    return ("-m", f"probes.{module}", "--ckpt", "{ckpt}", "--out", "{out}", *flags.split())


def dense(task: str, flags: str = "") -> tuple[str, ...]:
    """A detector's or segmenter's training."""
    return ("-m", "transfer.train", "--task", task, "--ckpt", "{ckpt}", "--out", "{folder}", *flags.split())


EPOCHS = {"vit_small": 200, "vit_base": 100, "vit_large": 50}
"""Epochs of fine-tuning on ImageNet (Table 2)."""
LONG = ("vit_small", "vit_base")
"""Whose Table 11 has 300 epochs without layer decay, too."""
HEAD = ("linear",)
"""Whose head the robustness suites are measured with."""
AS_ONE = "--same-for-batch --batch-size 1024"
"""Flags that draw patches and orders as the original does (Figures 9 and 10)."""
FEW = ("semi", "finetune_1pct", "finetune_10pct", "finetune_1pct_bare", "finetune_10pct_bare")
"""Steps that learn from few labels."""


def real(arch: str, few: bool = False) -> list[Step]:
    """Everything that the paper measures, for a backbone of this architecture; `few`: the lists of few labels are given."""
    return [*_frozen(few), *_tuned(arch), *_tuned_few(few), *_robust(), *_others(), *_transferred(), *_dense()]


def _frozen(few: bool) -> list[Step]:
    every_epoch, once = 100 * IN1K, IN1K + IN1K_VAL
    lists = " --names {few_1} {few_10}" if few else ""
    tables = ("T1", "T8", "T10", "T15")
    return [
        Step("knn", ("T1", "T10", "T15"), "imagenet", probe("knn"), once),
        Step("logistic", ("T12",), "imagenet", probe("logistic"), once),
        Step("semi", ("T12",), "imagenet", probe("semi", f"--frozen{lists}"), once + 0.11 * every_epoch),
        Step("cluster", ("T5",), "imagenet", probe("cluster", "--method head"), IN1K_VAL, full=True),
        Step("parts", ("F5",), "imagenet", probe("parts", "--mode paper"), 6 * every_epoch, vit_only=True),
        Step("linear", tables, "imagenet", probe("linear", "--mode paper"), every_epoch, leaves=("_head.safetensors",)),
    ]


def _tuned(arch: str) -> list[Step]:
    epochs = EPOCHS.get(arch, 100)
    flags = "--recipe imagenet --folder {folder}"
    steps = [Step("finetune", ("T2", "T11"), "imagenet", probe("finetune", flags), 4 * TRAINING * epochs * IN1K)]
    if arch in LONG:
        flags += " --epochs 300 --layer-decay 1.0"
        steps.append(Step("finetune_300", ("T11",), "imagenet", probe("finetune", flags), 4 * TRAINING * 300 * IN1K))
    return steps


def _tuned_few(few: bool) -> Iterator[Step]:
    """Fine-tuning with few labels, without the pretrained head's first layer (Table 12) and with it (Tables 4 and 12)."""
    for percent in (1, 10):
        labels = f"--names {{few_{percent}}}" if few else f"--percent {percent}"
        flags = f"--recipe semi {labels} --folder {{folder}}"
        bare, name, images = probe("finetune", f"{flags} --no-keep-head-layer"), f"finetune_{percent}pct", 10 * percent * IN1K
        yield Step(name, ("T4", "T12"), "imagenet", probe("finetune", flags), TRAINING * images, full=True)
        yield Step(f"{name}_bare", ("T12",), "imagenet", bare, TRAINING * images)


def _robust() -> list[Step]:
    def suite(name: str, tables: tuple[str, ...], data: str, images: int, flags: str = "") -> Step:
        words = probe("robustness", f"--suite {name} --head {{head}} {flags}")
        return Step(name, tables, data, words, images, after=HEAD)

    return [
        suite("occlusion", ("T8", "F9"), "imagenet", 40 * IN1K_VAL, f"--saliency dino_vits16 {AS_ONE}"),
        suite("shuffle", ("F10",), "imagenet", 7 * IN1K_VAL, AS_ONE),
        suite("in9", ("T8",), "in9", 8 * 4050),
        suite("ina", ("T8",), "ina", 7_500),
        suite("inr", ("THIRD",), "inr", 30_000),
        suite("sketch", ("THIRD",), "sketch", 50_889),
        suite("inc", ("T8",), "inc", 95 * IN1K_VAL),
    ]


def _others() -> list[Step]:
    return [
        Step("video", ("T16",), "davis", probe("video"), 2_000 * 10),
        Step("roxford5k", ("T16",), "landmarks", probe("retrieval", "--suite roxford5k"), 5_000 * 12),
        Step("rparis6k", ("T16",), "landmarks", probe("retrieval", "--suite rparis6k"), 6_400 * 12),
        Step("copydays", ("copydays",), "copydays", probe("retrieval", "--suite copydays"), 3_200),
    ]


def _transferred() -> Iterator[Step]:
    small = (("cifar10", 50_000), ("cifar100", 50_000), ("flowers", 2_040), ("cars", 8_144))
    for epochs, data in ((1000, small), (360, (("inat18", 437_513), ("inat19", 265_240)))):
        for flag, images in data:
            words = probe("finetune", f"--recipe transfer --data-set {flag} --folder {{folder}}")
            yield Step(flag, ("T7a", "T7b"), flag, words, TRAINING * epochs * images)


def _dense() -> Iterator[Step]:
    """Without --config: the recipe follows from the checkpoint, and length and size from data that is not COCO or ADE20K."""
    both = ("T6a", "T6b", "T13", "T14")
    ade = TRAINING * ADE_STEPS * ADE_BATCH * ADE_TIMES
    coco = (TRAINING * 12 * COCO_IMAGES + COCO_VAL) * COCO_TIMES
    data = "--data {data}"
    yield Step("coco", both, "coco", dense("coco", data), coco)
    yield Step("upernet", both, "ade20k", dense("ade20k", data), ade)
    linear = dense("ade20k", f"{data} --head linear")
    yield Step("segment_linear", ("T6b", "T14", "TC"), "ade20k", linear, ade / TRAINING, plain_only=True)


SPEED = 1000.0
"""Images a second of the sample's backbone on the two cores where the seconds below were measured."""


def sample() -> list[Step]:
    """Everything on the embedded sample: a small rehearsal of each protocol."""
    return [
        _seconds("knn", ("T1",), on_sample("knn", "--baselines"), 15),
        _seconds("linear", ("T1", "T8"), on_sample("linear"), 15, leaves=("_head.safetensors",)),
        _seconds("logistic", ("T12",), on_sample("logistic"), 10),
        _seconds("semi", ("T4", "T12"), on_sample("semi"), 150),
        _seconds("cluster", ("T5",), on_sample("cluster"), 10),
        _seconds("parts", ("F5",), on_sample("parts"), 30, vit_only=True),
        # Only what is seen before its usual background is learnt here, by a head of its own.
        _seconds("in9", ("T8",), on_sample("robustness", "--suite in9"), 30),
        _on_head("ina", ("T8",), 30),
        _on_head("inr", ("THIRD",), 30),
        _on_head("sketch", ("THIRD",), 30),
        _on_head("inc", ("T8",), 100),
        _on_head("occlusion", ("T8", "F9"), 60, "--saliency itself", vit_only=True),
        _on_head("shuffle", ("F10",), 30),
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


def _on_head(suite: str, tables: tuple[str, ...], seconds: int, flags: str = "", **more: Any) -> Step:
    words = on_sample("robustness", f"--suite {suite} --head {{head}} {flags}")
    return _seconds(suite, tables, words, seconds, after=HEAD, **more)


def _seconds(name: str, tables: tuple[str, ...], words: Sequence[str], seconds: int, **more: Any) -> Step:
    return Step(name, tables, "sample", tuple(words), seconds * SPEED, **more)
