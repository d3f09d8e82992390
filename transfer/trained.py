"""What a run's weights are of: the model, the steps of its test, its classes and their numbers in the data, as plain data.

MMEngine keeps the config as Python, which must be run to be read; this is JSON, and nothing in it is run or followed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints import checked, places, reading, store, terminal
from checkpoints.architecture import Architecture, stored_architecture
from checkpoints.cli import UserError
from pretrain.models.measured import Measured

FILE = "model.json"
"""In the run's folder."""
SCHEMA = 1
WITHOUT = frozenset({"init_cfg", "pretrained", "checkpoint"})
"""Where weights came from before training: files or addresses, of no use after it."""
TUPLE = "tuple"
"""The one key of a dict that stands for a tuple, which some steps tell from a list."""
SCOPE = "_scope_"
"""MMEngine's word for the library of a part."""
DEEPEST = 12
"""Dicts and lists within each other."""


class Trained(NamedTuple):
    """A model to be built again."""

    task: str
    config: str
    """Name of the config that it was trained with."""
    shape: Architecture | None
    """Of the backbone; None for a network of another library, which needs its checkpoint to be built."""
    model: dict[str, Any]
    """`model` of the config, as it was built."""
    pipeline: list[Any]
    """The steps of the test, from reading an image to packing it."""
    classes: list[str]
    ids: list[int]
    """The classes' numbers in the data: category ids, or labels of label maps."""
    palette: list[Any]
    """Red, green and blue of each class; empty where there are none."""


def of_run(task: str, config: Any, backbone: Any) -> Trained:
    """What a prepared config trains. The test images are listed for it, none is opened."""
    from mmengine.registry import DATASETS, init_default_scope  # noqa: PLC0415 (a heavy import, and an optional one)

    init_default_scope(config.default_scope)
    settings = config.test_dataloader.dataset
    dataset = DATASETS.build(settings)
    classes, palette = [str(name) for name in dataset.metainfo["classes"]], list(dataset.metainfo.get("palette") or ())
    ids, colours = [int(one) for one in getattr(dataset, "cat_ids", ())], list[Any]()
    if task == "ade20k":
        ids, colours = _labels(settings.pipeline, dataset.label_map, len(classes))
    palette = [colours[one] for one in ids] if colours else palette[: len(classes)]
    palette = [[int(value) for value in colour] for colour in palette] if len(palette) == len(classes) else []
    model, pipeline = config.model.to_dict(), [dict(step) for step in settings.pipeline]
    shape = None if isinstance(backbone, Measured) else backbone.shape
    return Trained(task, Path(config.filename).stem, shape, model, pipeline, classes, ids, palette)


def _labels(steps: Sequence[Any], changed: Mapping[int, int] | None, classes: int) -> tuple[list[int], list[Any]]:
    """The label in the data of each class, and the table of colours, where maps have one."""
    reader = next(step for step in steps if step.type == "IBOTLabels")
    first = 1 if reader.background == 0 else 0
    old = {new: number for number, new in (changed or {}).items()}  # a config may leave classes out
    return [old.get(number, number) + first for number in range(classes)], list(reader.colours)


def keep(folder: Path, trained: Trained) -> None:
    """Write it into a run's folder; where the config holds something else than plain values, say so in place of it."""
    try:
        plain = _plain(trained._asdict(), {"coco": "mmdet", "ade20k": "mmseg"}[trained.task])
        content = json.dumps({"schema": SCHEMA, **plain, "shape": trained.shape and trained.shape._asdict()}, indent=1)
    except TypeError as error:
        terminal.say(
            f"note: the config holds {error}, and so transfer.predict and transfer.exports cannot build this model again"
        )
        return
    store.write_bytes(places.below(folder, FILE), content.encode())


def _plain(value: Any, scope: str) -> Any:
    """As JSON has it, without what WITHOUT names. Raises TypeError for what is not plain, and for parts of another library."""
    if isinstance(value, Mapping):
        if value.get(SCOPE, scope) != scope:
            raise TypeError(f"parts of {value[SCOPE]}")
        return {str(name): _plain(one, scope) for name, one in value.items() if name not in (*WITHOUT, SCOPE)}
    if isinstance(value, tuple):
        return {TUPLE: [_plain(one, scope) for one in value]}
    if isinstance(value, list):
        return [_plain(one, scope) for one in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"{checked.shown(value)} in place of a number or a name")


def read(folder: Path) -> Trained:
    """What a run's folder says of its model; names are checked where it is built. Raises UserError where it says nothing."""
    file = folder / FILE
    try:
        content = reading.values(file)
    except FileNotFoundError as error:
        cure = (
            "give the folder of a run of transfer.train; one from before this was kept can be continued for it (transfer.train)"
        )
        raise UserError(f"{folder} has no {FILE}: {cure}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({store.first_line(error)}): take another copy of the run") from error
    found = checked.mapping(content, str(file), ("schema", *Trained._fields))
    checked.count(found["schema"], f"{file}: schema", 1, SCHEMA)
    if found["task"] not in ("coco", "ade20k"):
        checked.refuse(f"{file}: task", checked.shown(found["task"]), "coco or ade20k")
    classes = [checked.text(name, f"{file}: classes") for name in checked.listed(found["classes"], f"{file}: classes")]
    ids = [checked.count(one, f"{file}: ids") for one in checked.listed(found["ids"], f"{file}: ids")]
    if not classes or len(ids) != len(classes) or len(set(ids)) < len(ids):
        checked.refuse(f"{file}: ids", f"a list of {len(ids)}", f"a number of its own for each of {len(classes)} classes")
    palette = [_colour(one, f"{file}: palette") for one in checked.listed(found["palette"], f"{file}: palette")]
    return Trained(
        str(found["task"]),
        checked.text(found["config"], f"{file}: config"),
        None if found["shape"] is None else stored_architecture(found["shape"], str(file)),
        checked.mapping(_revived(found["model"], f"{file}: model"), f"{file}: model", ("type", "backbone")),
        checked.listed(_revived(found["pipeline"], f"{file}: pipeline"), f"{file}: pipeline"),
        classes,
        ids,
        palette if len(palette) == len(classes) else [],
    )


def _colour(value: Any, where: str) -> tuple[int, ...]:
    found = tuple(checked.count(one, where) for one in checked.listed(value, where))
    if len(found) != 3 or max(found) > 255:
        checked.refuse(where, checked.shown(value), "three numbers to 255")
    return found


def _revived(value: Any, where: str, depth: int = 0) -> Any:
    """Tuples as they were. Raises UserError for what is too deep, and for a name with a low line before it, as scopes have."""
    if depth > DEEPEST:
        checked.refuse(where, "nested too deeply", "a config")
    if isinstance(value, dict) and value.keys() == {TUPLE}:
        return tuple(_revived(one, where, depth + 1) for one in checked.listed(value[TUPLE], where))
    if isinstance(value, dict):
        if strange := next((name for name in value if name.startswith("_") or name in WITHOUT), None):
            checked.refuse(f"{where}: {checked.shown(strange)}", "there", "in such a file")
        return {name: _revived(one, where, depth + 1) for name, one in value.items()}
    return [_revived(one, where, depth + 1) for one in value] if isinstance(value, list) else value
