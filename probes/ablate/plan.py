"""The commands of an ablation table: for each row its training and its probes, in an order in which each finds what it needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from checkpoints.cli import UserError
from pretrain.recipes.ablation_recipes import recipe_name
from pretrain.recipes.ablation_rows import Row, Table
from pretrain.recipes.ablations import TABLES
from pretrain.recipes.registry import as_flag

SAMPLE_EPOCHS = 6
SAMPLE_SECONDS = {"two crops": 15.0, "local crops": 22.0, "start": 8.0, "probe": 20.0}
"""An epoch, a training's start, and a probe of a row, on two free cores."""
STEP = 1024
"""Images of a step of the paper's."""
PER_GPU = {"ViT-S/16": 64, "ViT-B/16": 32}
SAMPLE_CODES, PAPER_CODES = 256, 4096
PATCHES = "patches"
"""The k-means of raw patches, by its name in the folder of tokenizers."""
Words = tuple[str, ...]


class Setting(NamedTuple):
    """Settings of a table's runs."""

    out: Path
    data: str | None = None
    """Images; None is the embedded sample."""
    epochs: int | None = None
    tokenizer: str | None = None
    """The --tokenizer given for DALL-E's."""
    probes: tuple[str, ...] = ("knn", "linear")
    seed: int = 0

    @property
    def patches(self) -> Path:
        """The file of the k-means of raw patches."""
        return self.out / "tokenizers" / f"{PATCHES}.safetensors"


class Job(NamedTuple):
    """Commands of one row."""

    row: Row
    asked: bool
    """False: only because another row needs its checkpoint."""
    train: Words
    probes: dict[str, Words]
    """By the name of the record."""
    patches: Words = ()
    """Command that first fits its tokenizer, if it has one."""
    lost: str = ""
    """Why it cannot be done."""
    remark: str = ""


def table_named(name: str) -> Table:
    """`T9`, or the id that the paper's numbers have. Raises UserError for another."""
    for table in TABLES.values():
        if name in (table.name, table.published):
            return table
    raise UserError(f"there is no ablation {name}: choose from {', '.join(TABLES)}")


def plan(table: Table, setting: Setting, names: Sequence[str] = ()) -> list[Job]:
    """Jobs of these rows (all, if none is named), each after the row that it needs. Raises UserError for unknown names."""
    known = [row.name for row in table.rows]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{table.name} has no row {unknown[0]}: choose from {', '.join(known)}")
    asked = [name for name in known if not names or name in names]
    order: list[str] = []
    for name in asked:
        need = table.row(name).needs
        order += [one for one in (need, name) if one is not None and one not in order]
    return [_job(table, table.row(name), setting, name in asked) for name in order]


def _job(table: Table, row: Row, setting: Setting, asked: bool) -> Job:
    remarks = [row.note] * bool(row.note)
    spec, lost = None, ""
    if row.needs:
        spec = str(setting.out / row.needs)
    elif row.tokenizer == "colour":
        spec = "colour"
    elif row.tokenizer == "dalle" and setting.tokenizer:
        spec = setting.tokenizer
    elif row.tokenizer == "patches" or (row.tokenizer and setting.data is None):
        spec = f"kmeans:{setting.patches}"
        if row.tokenizer == "dalle":
            remarks.append("tokenizer: k-means of raw patches in place of DALL-E's")
    elif row.tokenizer:
        lost = "needs --tokenizer dalle:FILE"
    if setting.data is None and row.arch == "ViT-B/16":
        lost = "ViT-B/16 needs --data"
    if row.pooled:
        remarks.append("mean of patch tokens")
    extra = ("--tokenizer", spec) if spec else ()
    train = _train(table, row, setting) + extra + ("--out", str(setting.out / row.name))
    patches = _patches(setting) if spec == f"kmeans:{setting.patches}" else ()
    return Job(row, asked, train, _probes(row, setting) if asked else {}, patches, lost, "; ".join(remarks))


def _train(table: Table, row: Row, setting: Setting) -> Words:
    seed = ("--seed", str(setting.seed), "--report", "false")
    if setting.data is None:
        flags = [word for name, value in table.on_sample(row).items() for word in as_flag(name, value).split()]
        epochs = str(setting.epochs or SAMPLE_EPOCHS)
        start = ("-m", "pretrain.train", "--data", "sample", "--recipe", "sample")
        return (*start, *flags, "--epochs", epochs, "--knn-every", "0", *seed)
    gpus = max(1, torch.cuda.device_count())
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)) if gpus > 1 else ()
    accumulate = max(1, STEP // (PER_GPU[row.arch.partition(" (")[0]] * gpus))
    epochs = str(setting.epochs or row.epochs or table.epochs)
    words = ("-m", "pretrain.train", "--data", setting.data, "--recipe", recipe_name(table, row), "--epochs", epochs)
    return (*launcher, *words, "--accumulate", str(accumulate), *seed)


def _patches(setting: Setting) -> Words:
    """K-means of raw patches: as in Table 20, or as many codes as fit the sample."""
    small = setting.data is None
    side, size, codes = (8, 32, SAMPLE_CODES) if small else (16, 224, PAPER_CODES)
    words = f"--patch-size {side} --codes {codes} --share 0.1 --size {size} --seed {setting.seed}"
    made = ("-m", "pretrain.tokenizers", "patches", "--data", setting.data or "sample")
    return (*made, *words.split(), "--out", str(setting.patches))


def _probes(row: Row, setting: Setting) -> dict[str, Words]:
    """A pooled row is measured as the paper does; its k-NN on [CLS] is shown beside."""
    view = ("--features", "patches") if row.pooled else ()
    jobs: dict[str, Words] = {}
    for name in setting.probes:
        if name == "cluster":
            jobs[name] = _probe(name, name, row, setting, ("--method", "head"))
        else:
            jobs[name] = _probe(name, name, row, setting, view)
        if name == "knn" and row.pooled:
            jobs["knn_cls"] = _probe("knn", "knn_cls", row, setting, ())
    return jobs


def _probe(module: str, record: str, row: Row, setting: Setting, flags: Words) -> Words:
    folder = setting.out / row.name
    words = ("-m", f"probes.{module}", "--ckpt", str(folder), "--data", setting.data or "sample", "--seed", str(setting.seed))
    return (*words, *flags, "--out", str(folder / f"{record}.json"))


def seconds(table: Table, jobs: Sequence[Job], setting: Setting) -> float:
    """About how long it takes on the sample."""
    total = 0.0
    for job in (job for job in jobs if not job.lost):
        local = table.on_sample(job.row).get("local_crops_number", 2) > 0
        epoch = SAMPLE_SECONDS["local crops" if local else "two crops"]
        total += SAMPLE_SECONDS["start"] + epoch * (setting.epochs or SAMPLE_EPOCHS)
        total += SAMPLE_SECONDS["probe"] * len(job.probes)
    return total
