"""A linear layer on frozen features: the one that `probes.linear` kept, or one trained on the spot.

b images, d width of the features, k classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from checkpoints import checked, store
from checkpoints.architecture import Architecture
from checkpoints.cli import UserError
from pretrain.batches.color_ops import normalise
from pretrain.evaluate import finite, knn
from pretrain.evaluate.views import evaluation_box
from pretrain.images.source import Images
from pretrain.models.backbone import Backbone
from pretrain.models.measured import Measured, pooled, pooled_and_patches
from probes.features.cache import weights_digest
from probes.shared.console import steps

FOUR, MEAN, LAST = "cls4", "cls+mean", "cls"
"""[CLS] of the last four blocks side by side (ViT-S, Swin); the last beside the mean patch token (ViT-B and larger); alone."""
ON_THE_SPOT = "trained on the spot"
WIDE = 768
EPOCHS, BATCH, RATE, DECAY = 60, 512, 3e-3, 1e-2


class View(NamedTuple):
    """Preprocessing: shorter side to `resize`, then the centre `crop`, in pixels."""

    resize: int
    crop: int
    resample: Image.Resampling = Image.Resampling.BICUBIC


class Head(NamedTuple):
    """A linear classifier and what it reads."""

    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]
    features: str
    classes: tuple[str, ...]
    protocol: Mapping[str, Any] = {}
    """Protocol of its training, as far as it is known (`probes/paper/protocols.py`)."""

    def __call__(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        return features @ self.weight.T + self.bias


class Classifier(NamedTuple):
    """A frozen backbone with its head, on one device."""

    backbone: Backbone
    head: Head

    def logits(self, crops: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """On the CPU. Raises WorkError where they are not finite."""
        found = self.head(features(self.backbone, crops, self.head.features)).cpu()
        return finite.checked(found, self.backbone, finite.of_batch, "logits")


def features(backbone: Backbone, crops: Float[Tensor, "b 3 h w"], kind: str) -> Float[Tensor, "b d"]:
    """FOUR, MEAN or LAST of a batch, on the backbone's device. Raises WorkError where they are not finite."""
    with torch.inference_mode():
        return finite.checked(_features(backbone, crops.to(next(backbone.parameters()).device), kind), backbone, finite.of_batch)


def _features(backbone: Backbone, crops: Tensor, kind: str) -> Tensor:
    if kind == FOUR:
        return torch.cat([tokens[:, 0] for tokens in backbone.last_blocks(crops, 4)], dim=1).float()
    if kind == LAST:
        return pooled(backbone, crops).float()
    first, patches = (part.float() for part in pooled_and_patches(backbone, crops))
    return torch.cat([first, patches.mean(dim=1)], dim=1)


def default_features(backbone: Backbone) -> str:
    """Features of the paper's linear probe for such a network (Table 1).

    Of a backbone that is only measured its pooled feature, unless that is the last [CLS] token as in the paper's networks.
    """
    shape = backbone.shape
    if isinstance(backbone, Measured) and not (backbone.cls_is_pooled and "blocks" in backbone.abilities):
        return LAST
    return MEAN if shape.kind != "swin" and shape.embed_dim >= WIDE else FOUR


def seen(pixels: np.ndarray, view: View, shape: Architecture) -> Float[Tensor, "3 crop crop"]:
    """One image in that view, normalised."""
    size, left, upper = evaluation_box(pixels.shape[1], pixels.shape[0], view.resize, view.crop)
    resized = np.array(Image.fromarray(pixels).resize(size, view.resample))
    cut = torch.from_numpy(resized[upper : upper + view.crop, left : left + view.crop].copy())
    return normalise(cut.permute(2, 0, 1)[None].float() / 255, shape.mean, shape.std)[0]


def batches(images: Images, view: View, shape: Architecture, size: int, what: str = "") -> Iterator[tuple[range, Tensor]]:
    """Numbers and crops [b, 3, crop, crop] of all images, batch by batch. Raises UserError naming one that cannot be read."""
    starts = range(0, len(images), size)
    for start in steps(what or images.name, starts, len(starts)):
        numbers = range(start, min(start + size, len(images)))
        yield numbers, torch.stack([seen(knn.read(images, number), view, shape) for number in numbers])


def columns(head: Head, classes: Sequence[str], name: str) -> list[int]:
    """The head's numbers of these classes. Raises UserError for one that it does not know."""
    require_known(head.classes, classes, name)
    numbers = {known: number for number, known in enumerate(head.classes)}
    return [numbers[one] for one in classes]


def require_known(known: Sequence[str], classes: Sequence[str], name: str) -> None:
    """Raise UserError where a head that knows some classes is asked for others."""
    among = set(known)
    strangers = [one for one in classes if one not in among]
    if strangers:
        shown = f"{', '.join(known[:3])}, ..."
        raise UserError(
            f"{name}: the linear head does not know {', '.join(strangers[:3])} (it knows {shown}): are these its classes?"
        )


def linear_head(backbone: Backbone, images: Images, view: View, batch_size: int, seed: int) -> Head:
    """Train a head on frozen features of labelled images: cross-entropy, AdamW, a cosine to zero; features are scaled first.

    A quick stand-in for the sweep of `probes.linear`. Raises UserError where there are no labels.
    """
    if images.labels is None:
        raise UserError(f"{images.name} has no labels: a linear head needs class sub-folders, or a label column")
    kind = default_features(backbone)
    found = torch.cat(
        [
            features(backbone, crops, kind)
            for _, crops in batches(images, view, backbone.shape, batch_size, "features to learn from")
        ]
    )
    labels = torch.as_tensor(np.asarray(images.labels, dtype=np.int64), device=found.device)
    mean, spread = found.mean(dim=0), found.std(dim=0) + 1e-6
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(len(images.classes), found.shape[1], device=found.device, requires_grad=True)
    bias = torch.zeros(len(images.classes), device=found.device, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-len(found) // BATCH))
    scaled = ((found - mean) / spread).clone()  # out of inference mode
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(scaled), generator=generator).to(scaled.device).split(BATCH):
            loss = F.cross_entropy(scaled[chosen] @ weight.T + bias, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    plain = (weight / spread).detach()
    about = {"mode": ON_THE_SPOT, "epochs": EPOCHS, "batch_size": BATCH, "lr": [RATE], "features": kind}
    about |= {"resize": view.resize, "crop": view.crop, "train_images": len(images)}
    return Head(plain, (bias - plain @ mean).detach(), kind, tuple(images.classes), about)


def _stated(about: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The training protocol stored with a head; older heads store only the view."""
    view = checked.listed(about.get("view") or [], f"{path}: view")
    stated = checked.mapping(about.get("protocol") or {}, f"{path}: protocol")
    return dict(zip(("resize", "crop"), view, strict=False)) | stated | {"features": about["features"]}


def read_head(path: Path, backbone: Backbone, imagenet: Sequence[str]) -> Head:
    """A kept head: `weight`, `bias`, and metadata that says `features` and maybe `classes` and `protocol`.

    A thousand classes without names are ImageNet's. Raises UserError where the file is another, or the head another backbone's.
    """
    weights, metadata = store.read_safetensors(path)
    about = metadata.get("about", metadata)
    if weights.keys() != {"weight", "bias"} or about.get("features") not in (FOUR, MEAN, LAST):
        raise UserError(f"{path} is no linear head (weight, bias, and features {FOUR}, {MEAN} or {LAST} in its metadata)")
    if about.get("task", "classes") != "classes":
        raise UserError(f"{path} is a head for several labels an image: give one for classes")
    count = len(checked.part(weights, "weight", path, None, None))
    checked.part(weights, "bias", path, count)
    named = [checked.text(name, f"{path}: a class") for name in checked.listed(about.get("classes") or [], f"{path}: classes")]
    classes = named or (imagenet if count == len(imagenet) else [str(number) for number in range(count)])
    head = Head(weights["weight"].float(), weights["bias"].float(), about["features"], tuple(classes), _stated(about, path))
    if about.get("weights", weights_digest(backbone)) != weights_digest(backbone):
        raise UserError(f"{path} was trained on another backbone: give the head that probes.linear kept beside this one")
    side = backbone.shape.image_size
    device = next(backbone.parameters()).device
    width = features(backbone, torch.zeros(1, 3, side, side), head.features).shape[1]
    if head.weight.shape != (len(head.classes), width):
        raise UserError(
            f"{path} reads {head.weight.shape[1]} features for {len(head.classes)} classes, this backbone has {width}"
        )
    return head._replace(weight=head.weight.to(device), bias=head.bias.to(device))
