"""The protocols of the published numbers, part by part, and how a record's differs.

A part has a name like `protocol.mode` or `data.val_images`: the place in a record. A record that does not state a part, as older
ones do not, is not compared. Sources: `docs/probes.md` and the pages it names; each table's protocol in the paper.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isclose
from typing import Any

from probes.finetune.recipes import values

Parts = Mapping[str, Any]
Needs = Parts | Callable[[Mapping[str, Any]], Parts]
"""The parts themselves, or how they follow from what a record says of its checkpoint."""


class OneOf(tuple[Any, ...]):
    """Values any of which will do."""


GRID = tuple(number * 10.0**power for power in range(-4, 1) for number in range(1, 10))
"""Learning rates of the linear probe, for batches of 256."""
WITH_CLS = ("cls4", "cls+mean", "cls", None)
"""Features of a linear probe that Table 1 is about; older records do not name them."""
WIDTHS = {"vit_tiny": 192, "vit_small": 384, "vit_base": 768, "vit_large": 1024, "swin_tiny": 768, "swin_small": 768}
MODEL = {"vit_small": "vits16", "vit_base": "vitb16", "swin_tiny": "swint", "vit_large": "vitl16"}
"""Names of architectures in the dense configs."""

MEASURED: Parts = {"protocol.key": "teacher", "protocol.untrained": None}
VIEW: Parts = {
    **MEASURED,
    "protocol.resize": 256,
    "protocol.crop": 224,
    "protocol.interpolation": None,
    "protocol.squash": None,
    "protocol.precision": "float32",
}
"""Bicubic and in proportion is not stated in records."""
IMAGENET_VAL: Parts = {"data.val_images": 50_000}
IMAGENET: Parts = {**IMAGENET_VAL, "data.train_images": 1_281_167}

KNN: Parts = {
    **VIEW,
    "protocol.features": "cls",
    "protocol.k": (10, 20, 100, 200),
    "protocol.temperature": 0.07,
    "protocol.leave_one_out": False,
}
_LINEAR: Parts = {
    **VIEW,
    "protocol.mode": "paper",
    "protocol.epochs": 100,
    "protocol.batch_size": 1024,
    "protocol.lr": GRID,
    "protocol.selected_on": "test images",
}
PARTS: Parts = {**_LINEAR, "protocol.norm": False}
"""Figure 5: as the linear probe, on tokens without the final norm."""
LOGISTIC: Parts = {**VIEW, "protocol.strength": (0.01, 0.1, 1.0)}
CLUSTER: Parts = {**VIEW, **IMAGENET_VAL, "protocol.prototypes": 1000}
"""Table 5: a pretraining of its own with 1000 prototypes."""
DAVIS: Parts = {
    **MEASURED,
    "data.val_images": 30,
    "protocol.size": 480,
    "protocol.context": 7,
    "protocol.radius": 12,
    "protocol.top_k": 5,
    "protocol.temperature": 0.1,
}
LANDMARKS = {"roxford5k": 4_993, "rparis6k": 6_322}
"""Images that are searched."""
TRANSFER: dict[str, Parts] = {
    "cifar10": {"data.train_images": 50_000, "data.val_images": 10_000},
    "cifar100": {"data.train_images": 50_000, "data.val_images": 10_000},
    "inat18": {"data.train_images": 437_513, "data.val_images": 24_426},
    "inat19": {"data.train_images": 265_240, "data.val_images": 3_030},
    "flowers": {"data.train_images": 2_040, "data.val_images": 6_149},
    "cars": {"data.train_images": 8_144, "data.val_images": 8_041},
}
"""Table 7."""
FEW = {1: 12_811, 10: 128_116}
"""Images in SimCLRv2's lists."""
SUITES: dict[str, Parts] = {
    "in9": {"data.val_images": 8 * 4050, "protocol.resize": 224, "protocol.class_map": "ImageNet-9's"},
    "ina": {"data.val_images": 7_500, "protocol.resize": 256},
    "inc": {"data.val_images": 19 * 5 * 50_000, "protocol.resize": 224, "protocol.corrupt": False},
    "occlusion": {
        **IMAGENET_VAL,
        "protocol.resize": 256,
        "protocol.saliency": "dino_vits16",
        "protocol.saliency_head": 1,
    },
    "random": {**IMAGENET_VAL, "protocol.resize": 256, "protocol.same_for_batch": True, "protocol.batch_size": 1024},
    "shuffle": {**IMAGENET_VAL, "protocol.resize": 256, "protocol.same_for_batch": True, "protocol.batch_size": 1024},
}
"""Table 8, Figures 9 and 10."""


def features_of(arch: str) -> str:
    """Features of the paper's probe: [CLS] of the last four blocks, or for ViT-B and larger the last and the mean patch."""
    return "cls+mean" if arch in ("vit_base", "vit_large") else "cls4"


def linear(checkpoint: Mapping[str, Any]) -> Parts:
    """Table 1's linear probe."""
    return {**_LINEAR, "protocol.features": features_of(str(checkpoint.get("arch")))}


def part_of(prefix: str, needs: Needs) -> tuple[Needs, ...]:
    """Requirements for one of several protocols in a record (`probes.semi`), whose fields lie below `protocol.PREFIX`."""

    def inside(checkpoint: Mapping[str, Any]) -> Parts:
        found = resolved((needs,), checkpoint)
        shared = {name: value for name, value in found.items() if name in VIEW}
        own = {f"protocol.{prefix}.{name.removeprefix('protocol.')}": found[name] for name in found if name not in VIEW}
        return {**shared, **own}

    return (inside,)


def few_labels(percent: int, where: str) -> Parts:
    """SimCLRv2's list of so many percent of ImageNet's labels, tested on all validation images."""
    return {f"protocol.{where}.from": "list", f"protocol.{where}.images": FEW[percent], **IMAGENET_VAL}


def tuned(recipe: str, data_set: str | None = None, **changed: Any) -> Needs:
    """Every value of a recipe of `probes.finetune` for the record's size of backbone. `changed` are those that a row names.

    Of several learning rates the paper reports the best.
    """

    def of_size(checkpoint: Mapping[str, Any]) -> Parts:
        wanted = values(recipe, WIDTHS.get(str(checkpoint.get("arch")), 0), data_set) | changed
        wanted = {name: value for name, value in wanted.items() if name not in ("percent", "names")}
        about = {"recipe": recipe, "from_scratch": False, "key": "teacher", "limit": None}
        return {f"protocol.{name}": value for name, value in (about | wanted).items()}

    return of_size


def linear_head(checkpoint: Mapping[str, Any]) -> Parts:
    """Requirements on the linear head that a record was measured with: Table 1's, of ImageNet."""
    head = {f"protocol.linear_head.{name.removeprefix('protocol.')}": value for name, value in linear(checkpoint).items()}
    head |= {"protocol.linear_head.train_images": 1_281_167, "protocol.linear_head.val_images": 50_000}
    head.pop("protocol.linear_head.untrained")
    return head


def headed(suite: str) -> Needs:
    """A robustness suite under the linear head of Table 1's protocol."""

    def of_arch(checkpoint: Mapping[str, Any]) -> Parts:
        return {**MEASURED, "protocol.crop": 224, "protocol.classes": 1000, **SUITES[suite], **linear_head(checkpoint)}

    return of_arch


def landmarks(suite: str) -> Parts:
    """Table 16's retrieval."""
    return {
        **MEASURED,
        "data.val_images": 70,
        "data.database": LANDMARKS[suite],
        "protocol.size": 512,
        "protocol.scales": (1.0, 0.7071, 0.5),
        "protocol.whiten": None,
        "protocol.distractors": None,
    }


def _dense(config: str, position: str) -> Parts:
    return {
        "protocol.position": position,
        "protocol.key": "teacher",
        "protocol.from_scratch": False,
        "protocol.config": config,
        "protocol.cfg_options": (),
        "protocol.lr_ratio": 1.0,
    }


def detector(checkpoint: Mapping[str, Any]) -> Parts:
    """Table 6's Cascade Mask R-CNN, 12 epochs."""
    # 117,266 of the images have an annotation.
    arch = str(checkpoint.get("arch"))
    config = f"cascade_{MODEL.get(arch, 'of this architecture')}_1x"
    position = "none" if arch.startswith("swin") else f"by size on loading to {'50 x 63' if arch == 'vit_small' else '42 x 68'}"
    return {**_dense(config, position), "data.train_images": OneOf((118_287, 117_266)), "data.val_images": 5_000}


def segmenter(head: str) -> Needs:
    """Table 6's segmenters, 160,000 steps."""

    def of_arch(checkpoint: Mapping[str, Any]) -> Parts:
        arch = str(checkpoint.get("arch"))
        config = f"{head}_{MODEL.get(arch, 'of this architecture')}"
        position = "none" if arch.startswith("swin") else "by size on loading to 32 x 32"
        return {**_dense(config, position), "data.train_images": 20_210, "data.val_images": 2_000}

    return of_arch


def resolved(needs: Sequence[Needs], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """All parts by name."""
    found: dict[str, Any] = {}
    for one in needs:
        found |= one(checkpoint) if callable(one) else one
    return found


def differences(needs: Sequence[Needs], record: Mapping[str, Any]) -> list[str]:
    """Phrases on parts of a record's protocol that differ from the published one; empty if all agree."""
    wanted = resolved(needs, record["checkpoint"])
    return [words for name, value in wanted.items() for words in _difference(name, value, record)]


def _difference(name: str, wanted: Any, record: Mapping[str, Any]) -> Iterator[str]:
    found: Any = record
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            if wanted is not None:
                yield f"{name.removeprefix('protocol.').removeprefix('data.')} is not stated"
            return
        found = found[part]
    if not any(_same(found, one) for one in (wanted if isinstance(wanted, OneOf) else (wanted,))):
        short = name.removeprefix("protocol.").removeprefix("data.").replace("_", " ")
        yield f"{short} {_words(found)}, published with {_words(wanted)}"


def _same(found: Any, wanted: Any) -> bool:
    """Equal, whatever JSON has made of tuples; numbers but for their last digits; nothing and False are one."""
    if isinstance(wanted, (tuple, list)):
        some = isinstance(found, (tuple, list)) and len(found) == len(wanted)
        return some and all(_same(a, b) for a, b in zip(found, wanted, strict=True))
    if wanted is None or wanted is False:
        return found is None or found is False
    if isinstance(wanted, bool) or isinstance(found, bool):
        return found is wanted
    if isinstance(wanted, (int, float)):
        return isinstance(found, (int, float)) and isclose(found, wanted, rel_tol=1e-9)
    return bool(found == wanted)


def _words(value: Any) -> str:
    if value is None or (isinstance(value, (tuple, list)) and not value):
        return "none"
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values" if len(value) > 5 else " ".join(_words(one) for one in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
