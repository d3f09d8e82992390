"""`timm:NAME[.TAG][@FILE]`: timm's published weights of a model, or a file that holds them, loaded strictly."""

import logging
import sys
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from checkpoints import checked, layouts, nests, published, store, terminal
from checkpoints.cli import UserError, WorkError
from checkpoints.published import Contents
from checkpoints.resolve import arch_of, pretrained_config, refuse_misfits
from checkpoints.store import first_line
from pretrain.backbones.timm_model import TimmModel, built
from pretrain.models.backbone import Loaded

CLASSIFIERS = (*layouts.CLASSIFIERS, "head.fc.", "last_linear.", "fc_aux.", "aux_head.", "aux.")
"""Beginnings of a classifier's names, which no feature needs."""
COMPUTED = (*layouts.COMPUTED, "relative_coords_table", "num_batches_tracked")
"""Endings of buffers that follow from the sizes, or that no feature needs."""


def opened(said: str) -> Loaded:
    """The model. Raises UserError for a name or a tag that timm has not, and for a file that does not fit; else WorkError."""
    name, _, file = said.removeprefix("timm:").partition("@")
    if not name:
        raise UserError(f"{said} names no model: give timm:NAME or timm:NAME@FILE")
    arch_of(name)
    pretrained_config(name)
    anew = partial(_made, name)
    model = anew() if file else fetched(name)
    ignored = fill(model, Path(file), name) if file else ()
    backbone = TimmModel(name, model, anew).eval().requires_grad_(False)
    contents = Contents(f"timm's {name}", {"only": {}}, arch=name, ignored=ignored)
    return Loaded(backbone, Path(file) if file else Path(said), 0, contents)


def _made(name: str, **settings: Any) -> nn.Module:
    """timm's model with random weights. Raises UserError where it cannot be made without other packages."""
    try:
        return built(name, pretrained=False, **settings)
    except Exception as error:
        raise UserError(f"timm cannot make {name} ({first_line(error)}): give another model") from error


def fetched(name: str) -> nn.Module:
    """timm's model with its published weights, from its cache or the Hugging Face hub. Raises WorkError without them."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warnings count tries; what failed is said at the end
    terminal.say(f"timm:{name} comes from the Hugging Face hub's cache, or is fetched from there", error=True)
    timm.models.set_pretrained_check_hash(True)  # of files whose names end in one; the hub's client compares the others
    try:
        return built(name, pretrained=True)
    except Exception as error:  # the hub's client raises a great many things
        cure = f"give a file with --ckpt timm:{name}@FILE"
        raise WorkError(f"timm's weights of {name} could not be fetched ({first_line(error)}): {cure}") from error


def fill(model: nn.Module, file: Path, name: str) -> tuple[str, ...]:
    """Load a file into timm's model by timm's own filter, every weight but a classifier's; returns the names left out.

    Raises UserError where a weight is missing, left over or of another shape.
    """
    wanted = model.state_dict()
    weights = weights_of(file, wanted.keys())
    try:
        weights = _filtered(weights, model)
    except Exception as error:  # a filter trusts the weights to be what it is for
        raise UserError(f"{file} does not fit: timm cannot read it as {name} ({first_line(error)})") from error
    ignored = tuple(one for one in weights if one not in wanted and one.startswith(CLASSIFIERS))
    kept = {one: weight for one, weight in weights.items() if one not in ignored and not one.endswith(COMPUTED)}
    computed = {one: value for one, value in wanted.items() if one.endswith(COMPUTED)}
    refuse_misfits(model, computed | kept, file, f" as {name}")
    model.load_state_dict(kept, strict=False)
    return ignored


def _filtered(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights under timm's names, their tables of positions resized to the model's size."""
    module = sys.modules[type(model).__module__]
    convert: Any = getattr(module, "checkpoint_filter_fn", None)
    return dict(convert(dict(weights), model)) if convert is not None else weights


def weights_of(file: Path, known: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a file below the prefix of most `known` names. Raises UserError for a file without any."""
    if file.suffix == ".safetensors":
        content: Mapping[str, Any] = store.read_safetensors(file)[0]
    else:
        content = store.read_torch(file, published.ALLOWED)
    every = nests.joined(content)
    below = nests.under(nests.root_of(every, known), every, file)
    found = {name: every[theirs] for name, theirs in below.items() if not name.endswith(COMPUTED)}
    if not found:
        raise UserError(f"{file} holds no weights: its keys are {', '.join(list(content)[:4]) or 'none'}")
    return checked.network(found, f"{file}: the weights")
