"""Reproduction section of a report: command lines from stored options, versions, checksums."""

import importlib
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from checkpoints import escape, flat, store
from pretrain.engine.options import as_values
from pretrain.options.groups import Config
from pretrain.options.stored import from_values
from pretrain.recipes.registry import RECIPES
from probes.report import page as report_page
from probes.report.page import Row, Section
from probes.report.run import Run
from probes.shared.record import PACKAGES

NOT_OURS = frozenset({"recipe", "out", "replay", "allow_config_change", "report", "serve"})
"""Options that say nothing of what was computed, or are said otherwise."""
FILES = (store.BACKBONE, store.LAST, "config.json", "metrics.jsonl")
PROBES = {
    "knn": "probes.knn.KnnOptions",
    "linear": "probes.linear.protocol.LinearOptions",
    "logistic": "probes.logistic.LogisticOptions",
    "semi": "probes.semi.SemiOptions",
    "cluster": "probes.cluster.ClusterOptions",
    "parts": "probes.parts.PartsOptions",
    "segment": "probes.segment.options.SegmentOptions",
    "finetune": "probes.finetune.options.FinetuneOptions",
    "video": "probes.video.__main__.VideoOptions",
    "retrieval": "probes.retrieval.tasks.RetrievalOptions",
    "robustness": "probes.robustness.suites.RobustnessOptions",
}
"""Measurements that are commands of this folder under their own names, and the class of their options."""
NO_FILES = {"head": ("trained on the spot",), "class_map": ("ImageNet-9's", "the sample's")}
"""Values in records of `probes.robustness` that stand for the default file, and so for no flag."""
SAMPLE = re.compile(r"sample(:\d+)?( \(\w+\)|, .*)?")
"""Names of the embedded images."""
CAN_BE_NONE = frozenset(field.name for field in flat.fields(Config) if field.default is None)
"""Options of a training that are typed as `None` where a recipe gives them a value."""
TOOLS = {"transfer_coco": "tools/transfer_coco.sh", "transfer_ade20k": "tools/transfer_ade20k.sh"}


def training(run: Run) -> str:
    """The command that trains this run again: its recipe, and what differs from it."""
    recipe = run.config.get("recipe")
    values = RECIPES.get(recipe, {}) if recipe else {}
    usual = as_values(from_values(**{"recipe": recipe if values else None, **values}))
    words = ["tools/pretrain.sh", *(["--recipe", str(recipe)] if values else [])]
    for name, value in run.config.items():
        if name in usual and name not in NOT_OURS and value != usual[name]:
            words += [flat.flag(name), "None"] if value is None and name in CAN_BE_NONE else _flag(name, value)
    return escape.shell([*words, "--out", str(run.folder)])


def measuring(record: Mapping[str, Any]) -> str:
    """The command that measures this record again, as far as it tells its options."""
    probe, data, checkpoint = record["probe"], record["data"], Path(record["checkpoint"]["path"])
    if probe not in PROBES and probe not in TOOLS:
        return f"# this project has no command for {escape.terminal(str(probe))}"
    named = checkpoint.parent if checkpoint.name in (store.LAST, store.BACKBONE) else checkpoint
    words = [*_command_of(probe), "--ckpt", str(named), *_data(data)]
    usual = _options_of(probe)
    for name, value in record["protocol"].items():
        if name in usual and value is not None and value != _plain(usual[name]) and value not in NO_FILES.get(name, ()):
            words += _flag(name, value)
    return escape.shell(words)


def _command_of(probe: str) -> list[str]:
    return [TOOLS[probe]] if probe in TOOLS else ["python", "-m", f"probes.{probe}"]


def _options_of(probe: str) -> dict[str, Any]:
    """A probe's flags with their defaults, none where it is a tool.

    Only modules named in PROBES are imported, whatever a record says.
    """
    if probe not in PROBES:
        return {}
    module, _, name = PROBES[probe].rpartition(".")
    return {field.name: field.default for field in fields(getattr(importlib.import_module(module), name))}


def _data(data: Mapping[str, Any]) -> list[str]:
    """`--data` and what goes with it, from the names that a record has for its images."""
    if "root" in data:
        return [*_source("data", data["root"]), *([] if data.get("train") is None else _flag("train", data["train"]))]
    train, val = data.get("train"), data.get("val")
    if "train" not in data and val is not None:  # a probe that needs one part
        return _source("val", val)
    if val is None or train == val or _is_sample(train):
        return _source("data", train)
    if not (isinstance(train, str) and isinstance(val, str)):
        return [*_flag("data", train), *_flag("val", val)]
    one, other = Path(train), Path(val)
    if one.parent == other.parent and one.name.startswith("train") and other.name.startswith(("val", "test")):
        return _flag("data", str(one.parent))
    return [*_flag("data", train), *_flag("val", val)]


def _source(name: str, images: Any) -> list[str]:
    """A flag for images; none for the embedded ones of the usual size, which are the default."""
    if not _is_sample(images):
        return _flag(name, images)
    size = images.split(" ")[0].rstrip(",")
    return [] if size == "sample" else ["--data", size]


def _is_sample(images: Any) -> bool:
    return isinstance(images, str) and SAMPLE.fullmatch(images) is not None


def _flag(name: str, value: Any) -> list[str]:
    """A flag and its value. In capitals what the reader has to give: the file says nothing that could be typed there."""
    values = value if isinstance(value, list) else [value]
    typed = [str(one).lower() if isinstance(one, bool) else str(one) for one in values if _can_be_typed(one)]
    return [flat.flag(name), *(typed if typed and len(typed) == len(values) else [name.upper()])]


def _can_be_typed(value: Any) -> bool:
    """False for None, numbers that are not finite, empty values, and commands, which are not offered to a shell."""
    if isinstance(value, str):
        return bool(value) and not value.startswith("pipe:")
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def repeat(runs: Sequence[Run], records: Sequence[Mapping[str, Any]], paths: Sequence[Path], data: str | None = None) -> Section:
    """All commands. `data` was given to this page."""
    again = escape.shell(["python", "-m", "probes.report", *(str(path) for path in paths), *(["--data", data] if data else [])])
    groups = {
        "Pretraining": [training(run) for run in runs],
        "Evaluation": list(dict.fromkeys(measuring(record) for record in records)),
        "This report": [again],
    }
    parts = (f"<h3>{name}</h3>{report_page.commands(lines)}" for name, lines in groups.items() if lines)
    return Section("repeat", "Commands to reproduce", "".join(parts))


def provenance(runs: Sequence[Run], records: Sequence[Mapping[str, Any]]) -> Section:
    """Checksums of files and of the checkpoints that were measured; versions of what computed it all."""
    rows = [
        Row([str(run.folder / name), store.sha256(run.folder / name)])
        for run in runs
        for name in FILES
        if (run.folder / name).is_file()
    ]
    measured = {str(record["checkpoint"]["path"]): record["checkpoint"].get("sha256") for record in records}
    rows += [Row([f"{path}, at evaluation", str(digest)]) for path, digest in measured.items() if digest]
    files = report_page.table("Checksums", ["file", "SHA-256"], rows, "files")
    return Section("versions", "Software versions and checksums", f'<div class="columns">{_versions(runs, records)}{files}</div>')


def _versions(runs: Sequence[Run], records: Sequence[Mapping[str, Any]]) -> str:
    """A column for all that was computed by the same versions."""
    columns = [("this report", {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES})]
    columns += [(f"pretraining of {run.name}", run.starts[-1]["versions"]) for run in runs if run.starts]
    columns += [(str(record["probe"]), record["versions"]) for record in records]
    together: list[tuple[list[str], Mapping[str, Any]]] = []
    for who, versions in columns:
        group = next((names for names, same in together if same == versions), None)
        if group is None:
            together.append(([who], versions))
        elif who not in group:
            group.append(who)
    packages = dict.fromkeys(name for _, versions in together for name in versions)
    lines = [Row([name, *(str(versions.get(name, "")) for _, versions in together)]) for name in packages]
    return report_page.table("Versions", ["package", *(", ".join(names) for names, _ in together)], lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "not installed"
