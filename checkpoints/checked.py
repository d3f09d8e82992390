"""Validation of checkpoints field by field: anything invalid is refused in a sentence that names file, field and value.

Every function takes a value as it was read and `where`, its file and name; it returns the value or raises UserError. A file's
checksum is no proof of its content: whoever writes the one can write the other.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from checkpoints.cli import UserError

Weights = dict[str, Tensor]

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MOST = 2**48
"""Largest value of any count: steps, images, processes."""
LARGEST = 1e30
SHARED = 4
"""Times that a network may use the bytes of one storage: prototypes are tied, a huge network made of a few bytes is none."""
SHOWN = 40
COUNTER = "num_batches_tracked"
"""Counter of batch normalisation in others' heads: the only weights that are integers."""
SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
CURE = "the file is damaged or was changed: take another copy"


def refuse(where: str, found: str, wanted: str) -> NoReturn:
    raise UserError(f"{where} is {found}, not {wanted}: {CURE}")


def shown(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, int) and abs(value) > 2**64:
        return "a huge number"
    if value is None or isinstance(value, (str, int, float)):
        return repr(value[:SHOWN] if isinstance(value, str) else value)
    return f"a {type(value).__name__}"


def mapping(value: Any, where: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """A dict whose keys are words, `needed` among them."""
    if not isinstance(value, Mapping):
        refuse(where, shown(value), "a dict")
    strange = next((key for key in value if not isinstance(key, str)), "")
    if not isinstance(strange, str):
        refuse(f"{where}: a key", shown(strange), "a name")
    missing = [name for name in needed if name not in value]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}: {CURE}")
    return dict(value)


def listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        refuse(where, shown(value), "a list")
    return list(value)


def count(value: Any, where: str, least: int = 0, most: int = MOST) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        refuse(where, shown(value), f"a whole number from {least} to {most}")
    return value


def number(value: Any, where: str, least: float | int = -LARGEST, most: float | int = LARGEST) -> float:
    """A finite one; a tensor of one number stands for it."""
    if isinstance(value, Tensor) and _unfit(value) is None and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        refuse(where, shown(value), f"a number from {least:g} to {most:g}")
    return float(value)


def text(value: Any, where: str, longest: int = 4096) -> str:
    if not isinstance(value, str) or len(value) > longest:
        refuse(where, shown(value), f"a text of at most {longest} letters")
    return value


def one_of(value: Any, where: str, known: Collection[str]) -> str:
    if not isinstance(value, str) or value not in known:
        refuse(where, shown(value), f"one of {', '.join(known)}")
    return value


def version(value: Any, where: str, newest: int) -> int:
    """Version of a format; a file without it has the first."""
    found = count(1 if value is None else value, f"{where}: version", 1)
    if found > newest:
        raise UserError(f"{where} was written by a newer version of this project (format {found}, known up to {newest}): update")
    return found


def tensor(value: Any, where: str, shape: tuple[int | None, ...] | None = None) -> Tensor:
    """Real floating-point numbers, in memory, all finite (as float32 too); `shape` has None for a size that is free."""
    if not isinstance(value, Tensor):
        refuse(where, shown(value), "a tensor")
    wrong = _unfit(value) or (None if bool(value.float().isfinite().all()) else "a tensor with NaN or infinite numbers")
    if wrong:
        refuse(where, wrong, "a tensor of finite real numbers")
    axes = tuple(value.shape)
    if shape is not None and (len(axes) != len(shape) or any(b not in (None, a) for a, b in zip(axes, shape, strict=True))):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        refuse(where, shown(value), f"of shape [{wanted}]")
    return value


def _unfit(value: Tensor) -> str | None:
    """Why a tensor cannot be weights, by its type and layout; None if it can."""
    if type(value) not in (Tensor, nn.Parameter) or value.is_nested:
        return f"a {type(value).__name__}"
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        kind = "quantised" if value.is_quantized else value.device.type if value.layout == torch.strided else str(value.layout)
        return f"a tensor that is {kind.removeprefix('torch.')}"
    if value.dtype not in FLOATS:
        return shown(value)
    if not value.numel():
        return f"an empty tensor {list(value.shape)}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"{shown(value)} of which only {value.untyped_storage().nbytes()} bytes exist"
    return None


def network(value: Any, where: str) -> Weights:
    """Weights by name."""
    found = mapping(value, where)
    if not found:
        refuse(where, "empty", "a network's weights")
    used: dict[int, int] = {}
    for name, weight in found.items():
        if name.endswith(COUNTER) and isinstance(weight, Tensor) and weight.dtype == torch.int64 and weight.ndim == 0:
            continue
        storage = tensor(weight, f"{where}: {text(name, f'{where}: a name', 300)}").untyped_storage()
        at = storage.data_ptr()
        used[at] = used.get(at, 0) + weight.numel() * weight.element_size()
        if used[at] > SHARED * storage.nbytes():
            raise UserError(f"{where}: {name} and others are the same {storage.nbytes()} bytes again and again: {CURE}")
    return found


def tensors(value: Any, where: str) -> Weights:
    """A dict of tensors of any kind: what is not a network's weight is yet to be taken out."""
    found = mapping(value, where)
    for name, one in found.items():
        if not isinstance(one, Tensor):
            refuse(f"{where}: {name[:300]}", shown(one), "a tensor")
    return found


def part(weights: Mapping[str, Any], name: str, path: Path, *shape: int | None) -> Tensor:
    """One of a network's weights, of that shape."""
    if name not in weights:
        raise UserError(f"{path} lacks {name}")
    return tensor(weights[name], f"{path}: {name}", shape)


def optimizer(value: Any, where: str) -> dict[str, Any]:
    """An optimizer's `state_dict`: numbered states of numbers and tensors, groups of parameters' numbers."""
    found = mapping(value, where)
    for place, group in enumerate(listed(found.get("param_groups", []), f"{where}: param_groups")):
        name = f"{where}: group {place}"
        for one in listed(mapping(group, name, ["params"])["params"], f"{name}: params"):
            count(one, f"{name}: a parameter's number")
    state = found.get("state", {})
    if not isinstance(state, Mapping):
        refuse(f"{where}: state", shown(state), "a dict")
    for key, values in state.items():
        name = f"{where}: state {count(key, f'{where}: a parameter')}"
        for what, one in mapping(values, name).items():
            if isinstance(one, Tensor):
                tensor(one, f"{name}: {what}")
            elif one is not None:
                number(one, f"{name}: {what}")
    return found


def scaler(value: Any, where: str) -> dict[str, Any]:
    """A loss scaler's state, or nothing."""
    found = mapping(value, where)
    mapping(found, where, SCALER if found else ())
    for name in found:
        number(found[name], f"{where}: {name}", 0.0)
    for name in ("growth_interval", "_growth_tracker") if found else ():
        count(found[name], f"{where}: {name}")
    return found


def randoms(value: Any, where: str) -> list[dict[str, Any]]:
    """States of random generators, one entry a process: `cpu` bytes, `cuda` a list of them."""
    found = [mapping(one, f"{where}: an entry", ("cpu", "cuda")) for one in listed(value, where)]
    for one in found:
        for state in (one["cpu"], *listed(one["cuda"], f"{where}: cuda")):
            if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.ndim != 1:
                refuse(f"{where}: a state", shown(state), "bytes")
    return found


def training(content: Any, where: str, newest: int) -> dict[str, Any]:
    """Validates what checkpoints of every training hold: optimizer, progress, options."""
    needed = ("optimizer", "step", "steps_per_epoch", "processes", "random", "config")
    found = mapping(content, where, needed)
    version(found.get("version"), where, newest)
    optimizer(found["optimizer"], f"{where}: optimizer")
    scaler(found.get("scaler", {}), f"{where}: scaler")
    count(found["step"], f"{where}: step")
    count(found["steps_per_epoch"], f"{where}: steps_per_epoch", 1)
    count(found["processes"], f"{where}: processes", 1)
    randoms(found["random"], f"{where}: random")
    mapping(found["config"], f"{where}: config")
    return found


def centres(value: Any, where: str) -> dict[str, Tensor]:
    """`cls` [1, k] and maybe `patch` [1, 1, k]."""
    found = mapping(value, where)
    for name, centre in found.items():
        one_of(name, f"{where}: a key", ("cls", "patch"))
        tensor(centre, f"{where}: {name}", (1, None) if name == "cls" else (1, 1, None))
    return found


def run(content: Any, where: str, newest: int) -> dict[str, Any]:
    """A pretraining's checkpoint (`checkpoints/store.py`)."""
    found = mapping(content, where, ("student", "teacher", "centres"))
    for name in ("student", "teacher"):
        network(found[name], f"{where}: the {name}")
    centres(mapping(found["centres"], f"{where}: centres", ("cls", "patch")), f"{where}: centres")
    text(found.get("tokenizer", ""), f"{where}: tokenizer")
    mapping(found.get("shape", {}), f"{where}: shape")
    return training(found, where, newest)


def colours(value: Any, where: str, channels: int, least: float) -> tuple[float, ...]:
    """Means or deviations of images, one number a channel."""
    found = tuple(number(one, f"{where}: a channel", least, 1e6) for one in listed(value, where))
    if len(found) != channels:
        refuse(where, f"{len(found)} numbers", f"one for each of {channels} channels")
    return found


def finite(values: Any) -> bool:
    """Whether all numbers of nested lists are finite."""
    if isinstance(values, (list, tuple)):
        return all(finite(one) for one in values)
    return isinstance(values, (int, float)) and math.isfinite(values)
