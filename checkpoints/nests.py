"""Finds backbones in files of any framework: by the prefix under which a backbone's own names stand, however it was wrapped.

A checkpoint is a nest of dicts (`state_dict`, `model`, `teacher`, ...), its names begin with whatever held the network
(`backbone.`, `model.student_backbone.vit.`, ...), and other networks lie beside it. None of that is listed here: names are
joined, and a backbone's root is what stands before a name that only a backbone has.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from checkpoints.cli import UserError

Weights = dict[str, Tensor]

TRANSPARENT = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that DistributedDataParallel, torch.compile and FSDP put in, at any depth."""
DEEPEST = 8
"""Dicts within dicts that are looked into."""
CLIP, CONVNEXT, HUGGINGFACE = "conv1.weight", "downsample_layers.0.0.weight", "embeddings.patch_embeddings.projection.weight"
LANDMARKS = (
    ("patch_embed.proj.weight",),
    (CLIP, "class_embedding"),
    (CLIP, "layer1.0.conv1.weight"),
    (CONVNEXT, "stages.0.0.dwconv.weight"),
    ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
    (HUGGINGFACE,),
)
"""Names that stand together under the root of a ViT or Swin, CLIP's tower, a ResNet, a ConvNeXt, transformers' ViT or Swin."""
TEACHER, ASIDE = re.compile(r"teacher|momentum|(?<![a-z])(ema|target)(?![a-z])"), re.compile(r"gram")
"""What names of a moving average hold, and of networks that are neither student nor teacher (DINOv3's Gram teacher)."""
OTHER_TASKS = {
    "a detector": {"rpn_head", "rpn", "roi_head", "roi_heads", "bbox_head", "bbox_embed", "class_embed", "bbox_predictor"},
    "a segmentation network": {
        "decode_head",
        "auxiliary_head",
        "aux_classifier",
        "mask_decoder",
        "sem_seg_head",
        "segmentation_head",
    },
}


def joined(content: Mapping[Any, Any], before: str = "", depth: int = 0) -> Weights:
    """Every tensor of nested dicts by its name, what leads to its dict first: `state_dict/backbone.norm.bias`."""
    found: Weights = {}
    for key, value in content.items():
        if not isinstance(key, str):  # numbered: an optimizer's
            continue
        if isinstance(value, Tensor):
            found[f"{before}{key}"] = value
        elif isinstance(value, Mapping) and depth < DEEPEST:
            found |= joined(value, f"{before}{key}/", depth + 1)
    return found


def under(root: str, every: Mapping[str, Tensor], path: Path) -> dict[str, str]:
    """Names of the weights below a root, in the same dict, without wrappers: ours -> the file's.

    Raises UserError where two have the same name.
    """
    found: dict[str, str] = {}
    for name in every:
        rest = name.removeprefix(root)
        if not name.startswith(root) or "/" in rest:
            continue
        short = ".".join(_parts(rest))
        if short in found:
            raise UserError(f"{path} holds {short[:200]} twice, with and without a wrapper's name: take one of the networks out")
        found[short] = name
    return found


def _parts(name: str) -> list[str]:
    return [part for part in name.split(".") if part not in TRANSPARENT]


def roots(every: Mapping[str, Tensor], path: Path) -> list[str]:
    """Prefixes under which a known backbone stands, those with far fewer weights than another left out."""
    ends = {name.rpartition(".")[2] for landmark in LANDMARKS for name in landmark}
    sizes: dict[str, int] = {}
    for name in every:
        if name.rpartition(".")[2] not in ends:
            continue
        for first, *others in LANDMARKS:
            root = _before(name, first.split("."))
            if root is not None and root not in sizes and not ASIDE.search(root):
                below = under(root, every, path)
                if all(other in below for other in others):
                    sizes[root] = len(below)
    return [root for root, size in sizes.items() if 2 * size >= max(sizes.values())]


def _before(name: str, end: Sequence[str]) -> str | None:
    """What stands before the parts of a name at its end, wrappers between them left out; None where it ends otherwise."""
    home, slash, last = name.rpartition("/")
    parts, place = last.split("."), len(last.split("."))
    for part in reversed(end):
        while place and parts[place - 1] in TRANSPARENT:
            place -= 1
        if not place or parts[place - 1] != part:
            return None
        place -= 1
    return home + slash + "".join(f"{part}." for part in parts[:place])


def root_of(every: Mapping[str, Tensor], known: Collection[str]) -> str:
    """The prefix under which most `known` names stand, a teacher's of two alike; the largest dict where none holds a tenth."""
    counts: dict[str, int] = {}
    for name in every:
        home, slash, last = name.rpartition("/")
        parts = last.split(".")
        for start, part in enumerate(parts):
            if part not in TRANSPARENT and ".".join(_parts(".".join(parts[start:]))) in known:
                root = home + slash + "".join(f"{one}." for one in parts[:start])
                counts[root] = counts.get(root, 0) + 1
    best = max(counts, key=lambda root: (counts[root], TEACHER.search(root) is not None), default="")
    if 10 * counts.get(best, 0) >= len(known):
        return best
    homes = Counter("".join(name.rpartition("/")[:2]) for name in every)
    return max(homes, key=lambda home: homes[home], default="")


def networks(found: Collection[str], path: Path) -> dict[str, str]:
    """Root of each network: of `only` one, or of `student` and `teacher`. Raises UserError where more could be meant."""
    online = [root for root in found if root.endswith("base_encoder.")]
    if len(online) == 1:  # MoCo v3: its authors measure the encoder that was trained, not the average
        return {"only": online[0]}
    if len(found) == 1:
        return {"only": next(iter(found))}
    roles = {
        "student": [root for root in found if not TEACHER.search(root)],
        "teacher": [root for root in found if TEACHER.search(root)],
    }
    if [len(of) for of in roles.values()] != [1, 1]:
        names = ", ".join(root[:100].replace("/", ".") or "no prefix" for root in found)
        raise UserError(
            f"{path} holds several backbones, and none is named a teacher beside one other: {names}: keep one of them"
        )
    return {role: of[0] for role, of in roles.items()}


def refuse_other_tasks(names: Iterable[str], path: Path) -> None:
    """Raise UserError for a detector's file, or a segmentation network's: their backbones were trained on for that."""
    parts = {part for name in names for part in re.split(r"[./]", name)[:-1]}
    for task, heads in OTHER_TASKS.items():
        if parts & heads:
            found = ", ".join(sorted(parts & heads))
            raise UserError(f"{path} is {task} ({found}), trained on from a backbone: give the backbone's own file")


def summary(names: Collection[str]) -> str:
    """What was left out, by first part and number: `dino_head (12), ibot_head (12)`."""
    counts: dict[str, int] = {}
    for name in names:
        first = re.split(r"[./]", name)[0]
        counts[first] = counts.get(first, 0) + 1
    shown = [f"{first[:60]} ({count})" for first, count in counts.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
