"""Hugging Face's layout: a folder with `config.json`, the weights and `preprocessor_config.json`, here or on the hub.

Nothing in it is run and nothing that it names is fetched or opened elsewhere: the class comes from `hf_model.KINDS` by the
config's `model_type`, of the config plain numbers and words alone are taken, and weights are safetensors or read as data.
"""

import copy
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from checkpoints import checked, elsewhere, published, reading, store
from checkpoints.cli import UserError, WorkError
from checkpoints.published import Contents
from checkpoints.store import first_line
from pretrain.backbones import hf_processor, timm_folder
from pretrain.backbones.hf_model import KINDS, HuggingFaceModel, Kind
from pretrain.models.backbone import Loaded

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
"""`owner/name`, or `owner/name@REVISION`."""
HEADS: tuple[str, ...] = (
    "classifier",
    "cls_classifier",
    "distillation_classifier",
    "lm_head",
    "decoder",
    "decode_head",
    "auxiliary_head",
    "fpn",
)
HEADS += ("text_model", "visual_projection", "text_projection", "logit_scale", "logit_bias", "pooler", "embeddings.position_ids")
HEADS += ("embeddings.mask_token", "mask_token")
"""Beginnings of names that no feature needs: classifiers, the text tower and its projection."""
MOST, MOST_TOKENS = 2**16, 2**14


def is_folder(path: Path) -> bool:
    """Whether a folder, or its file of weights, is of a model type that is read here; timm's layout counts as a folder."""
    if path.is_file() and path.name not in WEIGHTS:
        return False
    try:
        values = reading.values((path if path.is_dir() else path.parent) / CONFIG)
        return values.get("model_type") in KINDS or (path.is_dir() and isinstance(values.get("architecture"), str))
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def opened(said: str) -> Loaded:
    """`hf:FOLDER`, `hf:FILE` or `hf:OWNER/NAME[@REVISION]`. Raises UserError, WorkError where it cannot be fetched."""
    what = said.removeprefix("hf:")
    path = Path(what)
    if not what:
        raise UserError("hf: names no model: give hf:OWNER/NAME, or hf: and a folder or a file in it")
    if path.is_dir():
        return of_folder(path, path)
    if path.is_file():
        return of_folder(path.parent, path, path)
    if not NAME.fullmatch(what):
        raise UserError(f"{said}: there is no such folder or file, and OWNER/NAME is the form of a model on the hub")
    return of_folder(fetched(what), Path(said), named=what)


def fetched(name: str) -> Path:
    """Folder of a model of the hub, in its client's cache. Raises WorkError where it is not there."""
    repository, _, revision = name.partition("@")
    hub: Any = needed("huggingface_hub")
    try:
        files = [CONFIG, hf_processor.FILE, hf_processor.OTHER, *WEIGHTS, "model-*.safetensors"]
        folder = Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=files[:4]))
        if not (folder / WEIGHTS[0]).exists():
            hub.snapshot_download(repository, revision=revision or None, allow_patterns=files)
    except Exception as error:  # its client raises a great many things
        raise WorkError(
            f"hf:{name} could not be fetched ({first_line(error)}): see to the name and the network, or give a folder"
        ) from error
    return folder


def of_folder(folder: Path, path: Path, file: Path | None = None, named: str = "") -> Loaded:
    """The model of a folder, from `file` where one is named. `path` is what records say. Raises UserError."""
    values = _values(folder / CONFIG)
    if "architecture" in values and "model_type" not in values:
        return timm_folder.of_folder(folder, values, path, weights_file(folder, file), named)
    kind = KINDS.get(str(values.get("model_type")))
    if kind is None:
        said = str(values.get("model_type"))[:80]
        raise UserError(f"{folder / CONFIG}: models of type {said} are not known here: {', '.join(KINDS)}")
    preprocessing = hf_processor.preprocessing(folder)
    config = configured(kind, values, str(folder / CONFIG))
    weights, where = weights_of(folder, file)
    model, ignored = filled(kind, config, weights, where)
    name = named or f"{values['model_type']}"
    build = partial(made, kind, config, pooler=_has_pooler(kind, weights))
    backbone = HuggingFaceModel(name, kind, model, preprocessing, build).eval().requires_grad_(False)
    contents = Contents(f"Hugging Face's {values['model_type']}", {"only": {}}, arch=name, ignored=ignored)
    return Loaded(backbone, where if not named else path, 0, contents)


def needed(module: str) -> Any:
    """A library of the extra `export`. Raises UserError without it."""
    try:
        return elsewhere.imported(module)
    except ImportError as error:
        raise UserError(f"hf: needs {module}: tools/setup.sh export adds it") from error


def _values(path: Path) -> dict[str, Any]:
    try:
        return checked.mapping(reading.values(path), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): give a folder with {CONFIG} and the weights") from error


def configured(kind: Kind, values: Mapping[str, Any], where: str) -> Any:
    """The configuration, of plain fields that its class has of its own. Raises UserError for sizes that cannot be."""
    transformers: Any = needed("transformers")
    known = getattr(transformers, kind.config)
    own = checked.mapping(values.get(kind.tower), f"{where}: {kind.tower}") if kind.tower else dict(values)
    usual = known().to_dict()
    names = usual.keys() - transformers.PretrainedConfig().to_dict().keys() - {"model_type", "transformers_version"}
    fields = {name: value for name, value in own.items() if name in names and not name.startswith("_") and _plain(value)}
    for name, value in fields.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and abs(number) > (512 if "layers" in name or name == "depths" else MOST):
                raise UserError(f"{where}: {name} is {number:g}, which no model has")
    try:
        config = known(**fields)
    except Exception as error:  # transformers' own checks raise what they like
        raise UserError(f"{where} is no configuration of {kind.model} ({first_line(error)})") from error
    size, patch = getattr(config, "image_size", 224), getattr(config, "patch_size", 16)
    side = (size if isinstance(size, int) else max(size)) // max(patch if isinstance(patch, int) else min(patch), 1)
    if side**2 > MOST_TOKENS:
        raise UserError(f"{where}: {side} x {side} patches are more than any model has")
    return config


def _plain(value: Any) -> bool:
    """Whether a value is a number, a word, nothing, or a short list of numbers and words."""
    if isinstance(value, list):
        return len(value) <= 512 and all(isinstance(one, (int, float, str)) for one in value)
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) < 64)


def weights_file(folder: Path, file: Path | None) -> Path:
    """The file of weights, or their index. Raises UserError where there is none."""
    path = file or next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} holds no weights ({' or '.join(WEIGHTS[::2])}): give a model's whole folder")
    return path


def weights_of(folder: Path, file: Path | None) -> tuple[dict[str, Tensor], Path]:
    """Weights by name, and the file (of several, their index). Raises UserError."""
    path = weights_file(folder, file)
    if path.suffix != ".json":
        return _read(path), path
    parts = checked.mapping(_values(path).get("weight_map"), f"{path}: weight_map")
    found: dict[str, Tensor] = {}
    for name in sorted({checked.text(part, f"{path}: weight_map", 200) for part in parts.values()}):
        if Path(name).name != name:
            raise UserError(f"{path} names {name}, which does not lie in its folder")
        found |= _read(folder / name)
    return found, path


def _read(path: Path) -> dict[str, Tensor]:
    content = store.read_safetensors(path)[0] if path.suffix == ".safetensors" else store.read_torch(path, published.ALLOWED)
    found = {name: value for name, value in content.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return checked.network(found, f"{path}: the weights")


def _has_pooler(kind: Kind, weights: Mapping[str, Tensor]) -> bool:
    return bool(kind.pooler) and any(kind.pooler in name for name in weights)


def made(kind: Kind, config: Any, *, pooler: bool, **changed: Any) -> nn.Module:
    """The model with random weights, `changed` in place of these fields of its configuration."""
    config = copy.deepcopy(config)
    for name, value in changed.items():
        setattr(config, name, value)
    build = getattr(needed("transformers"), kind.model)
    return build(config, add_pooling_layer=_wants_pooler(kind, config, pooler)) if kind.pooler else build(config)


def _wants_pooler(kind: Kind, config: Any, has_weights: bool) -> bool:
    """Whether the pooler is made: where its weights are there, or where it has none."""
    return has_weights or getattr(config, "use_mean_pooling", None) is False


def filled(kind: Kind, config: Any, weights: Mapping[str, Tensor], path: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """The model with these weights, each under the name that transformers has for it, and those left out.

    Raises UserError where one is missing, left over or of another shape.
    """
    build: Any = getattr(needed("transformers"), kind.model)
    own = {name: weight for name, weight in weights.items() if name.startswith(kind.prefix)} or dict(weights)
    left_out = [name for name in weights if name not in own]
    arguments = {"add_pooling_layer": _wants_pooler(kind, config, _has_pooler(kind, weights))} if kind.pooler else {}
    try:
        model, about = build.from_pretrained(
            None, config=config, state_dict=own, output_loading_info=True, trust_remote_code=False, **arguments
        )
    except Exception as error:  # transformers raises many things for weights of another shape
        raise UserError(f"{path} does not fit as {kind.model} ({first_line(error)})") from error
    missing = sorted(
        name for name in about["missing_keys"] if not name.endswith(("mask_token", "position_ids", "num_batches_tracked"))
    )
    surplus = [str(name) for name in about["unexpected_keys"]]
    strange = sorted(name for name in surplus if not _is_head(name))
    problems = [f"it lacks {name}" for name in missing] + [f"{name} has no place" for name in strange]
    problems += [f"{name} has another shape" for name in sorted(map(str, about["mismatched_keys"]))]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{path} does not fit as {kind.model}: {', '.join(problems[:5])}{more}")
    return model.float(), (*left_out, *surplus)


def _is_head(name: str) -> bool:
    inner = name.split(".", 1)[1] if "." in name else name
    return name.startswith(HEADS) or inner.startswith(HEADS)
