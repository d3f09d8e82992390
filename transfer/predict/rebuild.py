"""A run's model with its weights, built again from `model.json` (transfer/trained.py) and the newest checkpoint.

Nothing of the folder is run. Of what `model.json` names, only parts that this project's configs use are built, or those of a
config that was typed on this command line.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS
from torch import Tensor, nn

from checkpoints import store
from checkpoints.architecture import stored_architecture
from checkpoints.cli import UserError
from pretrain.models.backbone import make
from transfer import resume, trained, watching
from transfer.backbone import Pyramid
from transfer.config import build, read_config
from transfer.options import TransferOptions
from transfer.predict import limits
from transfer.predict.limits import READERS
from transfer.trained import Trained

BACKBONE = "IBOTBackbone"
ORIGIN = ("arch", "patch_size", "window", "key", "drop_path")
"""Arguments of IBOTBackbone that say where weights come from, or how they are trained."""
MODEL_PARTS = frozenset(
    "AnchorGenerator BN CascadeRCNN CascadeRoIHead ConvFCBBoxHead CrossEntropyLoss DeltaXYWHBBoxCoder DetDataPreprocessor "
    "EncoderDecoder FCNHead FCNMaskHead FPN GIoULoss L1Loss MaskRCNN MaxIoUAssigner RPNHead RandomSampler RoIAlign "
    "SegDataPreProcessor Shared2FCBBoxHead SingleRoIExtractor SmoothL1Loss StandardRoIHead SyncBN UPerHead nms".split()
)
TRUTH = ("LoadAnnotations", "IBOTLabels")
STEPS = frozenset([*READERS, *TRUTH, "PackDetInputs", "PackSegInputs", "Resize"])
"""What this project's configs build (tests/transfer/test_predict.py compares them)."""
CURE = "give the run's own --config"


class Rebuilt(NamedTuple):
    """A model in evaluation mode on the CPU, and what it is."""

    model: nn.Module
    trained: Trained
    config: Any
    """`default_scope` and `model`, as they were built."""
    file: Path
    """Of the weights."""


@MODELS.register_module()
class IBOTRebuilt(Pyramid):
    """A pyramid of a known shape, whose weights are loaded later."""

    def __init__(self, shape: dict[str, Any], **how: Any) -> None:
        super().__init__(make(stored_architecture(shape, trained.FILE), maskable=False), **how)


def rebuilt(run: Path, config: str | None, ckpt: Path | None = None) -> Rebuilt:
    """The model of a run; `ckpt`: what it began with, from which networks of other libraries are built.

    Raises UserError where the folder has none, or something that does not belong in one.
    """
    about = trained.read(run)
    file = newest(run)
    typed = None if config is None else read_config(TransferOptions(task=about.task, config=config))  # type: ignore[arg-type]
    refuse_unknown(about, run / trained.FILE, typed)
    limits.check(about, run / trained.FILE)
    weights = weights_of(file)
    model = dict(about.model)
    if model["backbone"].get("type") == BACKBONE:
        how = {name: value for name, value in model["backbone"].items() if name not in (*ORIGIN, "type")}
        if about.shape is None and ckpt is None:
            raise UserError(f"the backbone of {run} is another library's: give --ckpt, the checkpoint that the run began with")
        if about.shape is None:
            model["backbone"] = {"type": BACKBONE, "checkpoint": str(ckpt), **how}
        else:
            model["backbone"] = {"type": "IBOTRebuilt", "shape": about.shape._asdict(), **how}
    scope = {"coco": "mmdet", "ade20k": "mmseg"}[about.task]
    settings = Config({"default_scope": scope, "model": model})
    try:
        with limits.Frugal(weights, run / trained.FILE):
            built = build(settings)
    except UserError:
        raise
    except Exception as error:  # whatever parts say of arguments that are not theirs
        where = f"{run / trained.FILE} says nothing that can be built ({store.first_line(error)})"
        raise UserError(f"{where}: take another copy of the run") from error
    load(built, weights, file)
    return Rebuilt(built.eval().requires_grad_(False), about, settings, file)


def newest(run: Path) -> Path:
    """The newest checkpoint of a run. Raises UserError where there is none."""
    found = resume.newest(run)
    if found is None:
        raise UserError(f"{run} holds no checkpoint: give the folder (--out) of a run of transfer.train that has saved one")
    return found


def weights_of(file: Path) -> dict[str, Any]:
    """The weights in a checkpoint, read as data."""
    found = resume.load(str(file)).get("state_dict")
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no state_dict: take another copy of the run")
    return found


def load(model: nn.Module, weights: dict[str, Any], file: Path) -> None:
    """Load all weights. Raises UserError naming the first that does not fit, WorkError where one is not finite."""
    mine = model.state_dict()
    sizes = [{name: tuple(w.shape) for name, w in some.items() if isinstance(w, Tensor)} for some in (mine, weights)]
    wrong = sorted(name for name in sizes[0].keys() | weights.keys() if sizes[0].get(name) != sizes[1].get(name))
    if wrong:
        first = wrong[0]
        what = f"{first} is {_side(sizes[0].get(first))} in the model and {_side(sizes[1].get(first))} in the file"
        more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        raise UserError(f"{file} does not fit the model of {trained.FILE}: {what}{more}; take another copy of the run")
    model.load_state_dict(weights)
    watching.refuse_weights(model, f"nothing was made: train again, or give another run than {file.parent}")


def _side(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else " x ".join(map(str, shape)) or "one number"


def refuse_unknown(about: Trained, file: Path, typed: Any) -> None:
    """Raise UserError naming a part that neither the project's configs nor a typed one use."""
    models, steps = set(MODEL_PARTS) | own(MODELS), set(STEPS) | own(TRANSFORMS)
    if typed is not None:
        models |= set(types(typed.model.to_dict()))
        steps |= set(types([dict(step) for step in typed.test_dataloader.dataset.pipeline]))
    for part, known in ((about.model, models), (about.pipeline, steps)):
        strange = next((name for name in types(part) if not isinstance(name, str) or name not in known), None)
        if strange is not None:
            raise UserError(
                f"{file} names {str(strange)[:80]!r}, which no config of this project uses, and so it is not built: {CURE}"
            )


def reading(step: dict[str, Any]) -> dict[str, Any]:
    """The toolboxes' own step in place of one that reads an image: it opens what it is given, whatever the run read from."""
    kept = {name: value for name, value in step.items() if name in ("color_type", "to_float32", "imdecode_backend")}
    return {**kept, "type": READERS[0]}


def own(registry: Any) -> set[str]:
    """Names of this project's own parts."""
    return {name for name, one in registry.module_dict.items() if one.__module__.partition(".")[0] == "transfer"}


def modules(part: Any) -> list[str]:
    """Modules of this project's own parts that a part of a config has."""
    found = {MODELS.module_dict[name].__module__ for name in types(part) if name in own(MODELS)}
    return sorted(found)


def types(part: Any) -> Iterator[Any]:
    """Every `type` in a part of a config, at any depth."""
    if isinstance(part, dict):
        if "type" in part:
            yield part["type"]
        for value in part.values():
            yield from types(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from types(value)
