"""`mmcv.ops` without a compiler: what MMDetection and MMSegmentation need of mmcv's compiled part, from torchvision's kernels.

`register()` puts a module in the place of `mmcv._ext` where there is no compiled one. An operation that is not covered raises an
error that names it when it is called, not when it is imported.

n boxes [x1, y1, x2, y2]; r regions [image, x1, y1, x2, y2]; f features [b, c, h, w].
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torchvision
from jaxtyping import Float, Int
from torch import Tensor

NAME = "mmcv._ext"
LATE = "mmdet.structures.mask.structures"
HALVES = (torch.float16, torch.bfloat16)


def register() -> bool:
    """Answer for `mmcv._ext` where no compiled one exists; whether that was so.

    Raises ImportError after `mmdet.structures`, which keeps a stub of the operations that it did not find.
    """
    if NAME in sys.modules:
        return isinstance(sys.modules[NAME], Extension)
    if compiled():
        return False
    if LATE in sys.modules:
        raise ImportError(f"{LATE} was imported before transfer.ops.register(): call that first, or transfer.config.toolboxes()")
    sys.modules[NAME] = Extension()
    return True


def compiled() -> bool:
    """Whether mmcv was installed with its compiled part."""
    package = importlib.util.find_spec("mmcv")
    places = package.submodule_search_locations if package else None
    return importlib.machinery.PathFinder.find_spec(NAME, list(places or [])) is not None


class Extension(ModuleType):
    """Stands for the compiled module."""

    def __init__(self) -> None:
        super().__init__(NAME, __doc__)
        self.__spec__ = importlib.machinery.ModuleSpec(NAME, loader=None)  # MMEngine looks for it

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return OPERATIONS.get(name) or _missing(name)


def _missing(name: str) -> Callable[..., Any]:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError(
            f"the operation {name} of mmcv needs mmcv's compiled part, which is not installed: this project covers "
            f"{', '.join(sorted(OPERATIONS))}; for the others install a compiled mmcv"
        )

    return refuse


def nms(boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], iou_threshold: float, offset: int) -> Int[Tensor, " kept"]:
    """Indices of the boxes that no better one covers, best first. `offset` 1 counts both edge pixels of a box."""
    wide, scores = boxes.float(), scores.float()
    if offset:
        wide = wide + wide.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(wide, scores, iou_threshold)


def softnms(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    dets: Float[Tensor, "n 5"],
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Int[Tensor, " kept"]:
    """Soft-NMS (Bodla et al. 2017): covered boxes lose score in place of being dropped.

    `method` 0 drops, 1 multiplies by 1 - IoU, 2 by exp(-IoU^2 / sigma). `dets` is filled with boxes and their new scores in the
    order in which they were taken; what falls below `min_score` goes.
    """
    left, scores = torch.arange(len(boxes)), scores.float().clone()
    boxes = boxes.float()
    taken: list[int] = []
    while len(left):
        best = left[scores[left].argmax()]
        dets[len(taken)] = torch.cat([boxes[best], scores[best, None]])
        taken.append(int(best))
        left = left[left != best]
        iou = overlaps(boxes[best, None], boxes[left], offset)[0]
        if method == 2:
            weight = (-iou.square() / sigma).exp()
        else:
            weight = torch.where(iou >= iou_threshold, 1 - iou if method == 1 else torch.zeros_like(iou), torch.ones_like(iou))
        scores[left] *= weight
        left = left[scores[left] >= min_score]
    return torch.tensor(taken, dtype=torch.long)


def overlaps(one: Float[Tensor, "n 4"], other: Float[Tensor, "m 4"], offset: int) -> Float[Tensor, "n m"]:
    """Intersection over union."""
    edge = one.new_tensor([0, 0, offset, offset])
    return torchvision.ops.box_iou(one + edge, other + edge)


def nms_match(dets: Float[Tensor, "n 5"], iou_threshold: float) -> list[list[int]]:
    """For each box that NMS keeps, itself and those that it covers."""
    left = dets[:, 4].float().argsort(descending=True, stable=True)
    groups = []
    while len(left):
        covered = overlaps(dets[left[:1], :4].float(), dets[left, :4].float(), 0)[0] >= iou_threshold
        covered[0] = True
        groups.append(left[covered].tolist())
        left = left[~covered]
    return groups


def roi_align_forward(
    features: Float[Tensor, "b c h w"],
    rois: Float[Tensor, "r 5"],
    output: Float[Tensor, "r c ph pw"],
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Bilinear samples of each region, averaged; fills `output`."""
    _only_average(pool_mode)
    size = (aligned_height, aligned_width)
    found = torchvision.ops.roi_align(_wide(features), _wide(rois), size, spatial_scale, sampling_ratio, aligned)
    output.copy_(found)


def roi_align_backward(
    grad_output: Float[Tensor, "r c ph pw"],
    rois: Float[Tensor, "r 5"],
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Float[Tensor, "b c h w"],
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align`; fills `grad_input`."""
    _only_average(pool_mode)
    sizes = (aligned_height, aligned_width, *grad_input.shape, sampling_ratio, aligned)
    found = torch.ops.torchvision._roi_align_backward(_wide(grad_output), _wide(rois), spatial_scale, *sizes)
    grad_input.copy_(found)


def _only_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError("RoIAlign with pool_mode max needs mmcv's compiled part: use avg, as all published configs do")


def _wide(tensor: Tensor) -> Tensor:
    """Half precision is computed in float32: torchvision's CPU kernels have no halves."""
    return tensor.float() if tensor.dtype in HALVES else tensor


OPERATIONS: dict[str, Callable[..., Any]] = {
    "nms": nms,
    "softnms": softnms,
    "nms_match": nms_match,
    "roi_align_forward": roi_align_forward,
    "roi_align_backward": roi_align_backward,
}
