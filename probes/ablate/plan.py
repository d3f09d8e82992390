"""The commands of an ablation table: for each row its training and its probes, in an order in which each finds what it needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from checkpoints.cli import UserError
from pretrain.recipes.ablation_recipes import recipe_name
from pretrain.recipes.ablation_rows import CONTROLS, Row, Table
from pretrain.recipes.ablations import TABLES
from pretrain.recipes.registry import NAMED, as_flag

SAMPLE_EPOCHS = 6
SAMPLE_SECONDS = {"two crops": 15.0, "local crops": 22.0, "start": 8.0, "probe": 20.0}
"""An epoch, a training's start, and a probe of a row, on two free cores."""
STEP = 1024
"""Images of a step of the paper's."""
PER_GPU = {"ViT-S/16": 64, "ViT-B/16": 32}
SAMPLE_CODES, PAPER_CODES = 256, 4096
NOT_BY_TEST: dict[str, tuple[str, ...]] = {"knn": ("--k", "20"), "linear": ("--mode", "cached", "--select", "val-split")}
"""Flags of probes with --recipe: nothing is chosen on the test images."""
RAW_PIXELS = Path(__file__).parent / "raw_pixels.py"
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
    recipe: str | None = None
    """Recipe for small images, on which a table's changes are made; None: the paper's networks, or `sample` without data."""
    controls: bool = False

    @property
    def small(self) -> str | None:
        """The recipe for small images that is used, if one is."""
        return self.recipe or ("sample" if self.data is None else None)

    @property
    def settings(self) -> dict[str, Any]:
        """The values of that recipe."""
        return NAMED[self.small].settings if self.small else {}

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
    needs: str | None = None
    """The row whose checkpoint it takes."""


def table_named(name: str) -> Table:
    """`T9`, or the id that the paper's numbers have. Raises UserError for another."""
    for table in TABLES.values():
        if name in (table.name, table.published):
            return table
    raise UserError(f"there is no ablation {name}: choose from {', '.join(TABLES)}")


def plan(table: Table, setting: Setting, names: Sequence[str] = ()) -> list[Job]:
    """Jobs of these rows (all, if none is named), each after the row that it needs. Raises UserError for unknown names."""
    known = [row.name for row in rows_of(table, setting)]
    unknown = [name for name in names if name not in known]
    if unknown:
        more = "; --controls adds others" if unknown[0] in [row.name for row in CONTROLS] else ""
        raise UserError(f"{table.name} has no row {unknown[0]}: choose from {', '.join(known)}{more}")
    asked = [name for name in known if not names or name in names]
    order: list[str] = []
    for name in asked:
        need = _need(table, table.row(name))
        order += [one for one in (need, name) if one is not None and one not in order]
    return [_job(table, table.row(name), setting, name in asked) for name in order]


def rows_of(table: Table, setting: Setting) -> tuple[Row, ...]:
    """The table's rows, then the controls where they are wished for."""
    return (*table.rows, *(CONTROLS if setting.controls else ()))


def _need(table: Table, row: Row) -> str | None:
    """The row whose checkpoint another takes: a tokenizer; or for a control the first, which has its architecture."""
    return table.rows[0].name if row.control in ("supervised", "untrained") else row.needs


def _job(table: Table, row: Row, setting: Setting, asked: bool) -> Job:
    if row.control:
        return _control(table, row, setting)
    remarks = [row.note] * bool(row.note)
    spec, lost = None, ""
    if row.needs:
        spec = str(setting.out / row.needs)
    elif row.tokenizer == "colour":
        spec = "colour"
    elif row.tokenizer == "dalle" and setting.tokenizer:
        spec = setting.tokenizer
    elif row.tokenizer == "patches" or (row.tokenizer and setting.small):
        spec = f"kmeans:{setting.patches}"
        if row.tokenizer == "dalle":
            remarks.append("tokenizer: k-means of raw patches in place of DALL-E's")
    elif row.tokenizer:
        lost = "needs --tokenizer dalle:FILE"
    if setting.small and row.arch == "ViT-B/16":
        lost = f"ViT-B/16 needs --data{' without --recipe' if setting.recipe else ''}"
    if row.pooled:
        remarks.append("mean of patch tokens")
    extra = ("--tokenizer", spec) if spec else ()
    train = _train(table, row, setting) + extra + ("--out", str(setting.out / row.name))
    patches = _patches(setting) if spec == f"kmeans:{setting.patches}" else ()
    probes = _probes(row, setting) if asked else {}
    return Job(row, asked, train, probes, patches, lost, "; ".join(remarks), row.needs)


def _train(table: Table, row: Row, setting: Setting) -> Words:
    seed = ("--seed", str(setting.seed), "--report", "false")
    epochs = str(epochs_of(table, setting, row))
    if setting.small:
        flags = [word for name, value in table.on_sample(row).items() for word in as_flag(name, value).split()]
        start = ("-m", "pretrain.train", "--data", setting.data or "sample", "--recipe", setting.small)
        return (*start, *flags, "--epochs", epochs, "--knn-every", "0", *seed)
    gpus = max(1, torch.cuda.device_count())
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)) if gpus > 1 else ()
    accumulate = max(1, STEP // (PER_GPU[row.arch.partition(" (")[0]] * gpus))
    words = ("-m", "pretrain.train", "--data", str(setting.data), "--recipe", recipe_name(table, row), "--epochs", epochs)
    return (*launcher, *words, "--accumulate", str(accumulate), *seed)


def epochs_of(table: Table, setting: Setting, row: Row | None = None) -> int:
    """Epochs of a row, or of the table."""
    if setting.epochs:
        return setting.epochs
    if setting.recipe:
        return int(setting.settings["epochs"])
    return SAMPLE_EPOCHS if setting.data is None else (row.epochs if row else None) or table.epochs


def _patches(setting: Setting) -> Words:
    """K-means of raw patches: as in Table 20, or as many codes as fit a small recipe."""
    side, size, codes = 16, 224, PAPER_CODES
    if setting.small:
        side, size, codes = setting.settings["patch_size"], setting.settings["global_crops_size"], SAMPLE_CODES
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


def _control(table: Table, row: Row, setting: Setting) -> Job:
    """A row of ours: its architecture is that of the table's first row."""
    first, data = setting.out / table.rows[0].name, setting.data or "sample"
    if setting.small is None:
        return Job(row, True, (), {}, lost="controls are for small images: give --recipe")
    jobs: dict[str, Words] = {}
    train: Words = ()
    for name in setting.probes:
        if row.control == "untrained" and name != "cluster":
            jobs[name] = _probe(name, name, row, setting, ("--untrained",), str(first))
        elif row.control == "pixels" and name != "cluster":
            size = str(setting.settings["global_crops_size"])
            view = ("--resize", size, "--crop", size)  # as the networks see the images, not the paper's 224 pixels
            jobs[name] = _probe(name, name, row, setting, view, f"python:{RAW_PIXELS}:pixels_{size}")
        elif row.control == "supervised":
            jobs[name] = _probe(name, name, row, setting, ())
    if row.control == "supervised":
        epochs, folder = epochs_of(table, setting), setting.out / row.name
        flags = f"--epochs {epochs} --test-every {epochs} --warmup-epochs {min(2, epochs // 3)} --seed {setting.seed}".split()
        start = ("-m", "probes.finetune", "--ckpt", str(first), "--from-scratch", "--data", data)
        train = (*start, *flags, "--folder", str(folder), "--out", str(folder / "finetune.json"), "--allow-foreign-files")
    return Job(row, True, train, jobs, needs=_need(table, row))


def _probe(module: str, record: str, row: Row, setting: Setting, flags: Words, ckpt: str | None = None) -> Words:
    folder = setting.out / row.name
    where = ("--ckpt", ckpt or str(folder), "--data", setting.data or "sample", "--seed", str(setting.seed))
    chosen = NOT_BY_TEST.get(module, ()) if setting.recipe else ()
    return ("-m", f"probes.{module}", *where, *chosen, *flags, "--out", str(folder / f"{record}.json"))


def seconds(table: Table, jobs: Sequence[Job], setting: Setting) -> float:
    """About how long it takes on the sample."""
    total = 0.0
    for job in (job for job in jobs if not job.lost):
        local = table.on_sample(job.row).get("local_crops_number", 2) > 0
        epoch = SAMPLE_SECONDS["local crops" if local else "two crops"]
        total += SAMPLE_SECONDS["start"] + epoch * (setting.epochs or SAMPLE_EPOCHS)
        total += SAMPLE_SECONDS["probe"] * len(job.probes)
    return total
