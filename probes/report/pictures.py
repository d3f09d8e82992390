"""Pictures of a run's own images in a report: attention of each head, nearest training images, confused classes.

b images, q queries, n patches.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from checkpoints import store
from checkpoints.cli import UserError
from checkpoints.escape import html as escape
from pretrain.evaluate import knn, views
from pretrain.evaluate.knn import Found
from pretrain.images.open import open_images
from pretrain.images.source import Images, with_labels
from pretrain.models.vit import ViT
from probes.features.cache import extract
from probes.report import page as report_page
from probes.report.confusion import confusion
from probes.report.page import Section
from probes.shared.subject import Common, Viewed, has_two_parts, labels_of, limited, open_subject

SHOWN, NEAREST = 6, 5
"""Images with attention, queries with neighbours; and neighbours of each."""
PIXELS = 96
"""Side of an embedded picture."""
FINER = 2
"""Attention is drawn at this times the trained size, as the original draws 480 pixels of a network for 224."""
WORK = {"cpu": 5e12, "cuda": 1e15}
"""Multiplications and additions that the features may cost: seconds, on two cores or a GPU."""
LEAST, MOST = 200, 6000
"""Training images, whatever they cost; a sixth as many are asked about."""
K = 20
DARKEST = 0.2
"""Share of a pixel's brightness that is left without attention."""


class Seen(NamedTuple):
    """A bank of training images, those that are asked about, and the nearest of each."""

    bank: Images
    queries: Images
    found: Found
    apart: bool
    """Whether the queries are other images than the bank's."""


def sections(folder: Path, source: str, channels: int, number: int = 0) -> list[Section]:
    """Attention, neighbours and confusions of a run's teacher on its own images. Raises UserError where these cannot be had."""
    options = Common(ckpt=folder, data=source, workers=0)
    with open_subject(options) as subject:
        seen = neighbours_of(subject, options, channels)
        found = [
            Section(f"attention-{number}", "Self-attention of the [CLS] token", attention(subject, seen.queries)),
            Section(f"neighbours-{number}", "Nearest neighbours", retrieved(seen)),
        ]
        if seen.bank.labels is not None and seen.queries.labels is not None:
            found.append(Section(f"confusion-{number}", "Confusion matrix", confused(seen)))
        return found


def neighbours_of(subject: Viewed, options: Common, channels: int) -> Seen:
    """The K nearest training images of some test images, or of other training images where there are none to test on."""
    most = affordable(subject)
    apart = has_two_parts(options)
    kind = channels, subject.loaded.backbone.shape.value_range
    bank = limited(with_labels(open_images(options.data, "train", *kind)), common_limit(options, most))
    if len(bank) < 2:
        raise UserError(f"{bank.name} has {len(bank)} image: two or more are needed")
    rows = torch.tensor(extract(subject.loaded.backbone, bank, subject.view, options).cls)
    if apart:
        queries = limited(with_labels(open_images(options.data, "val", *kind)), common_limit(options, max(most // 6, SHOWN)))
        asked = torch.tensor(extract(subject.loaded.backbone, queries, subject.view, options).cls)
    else:
        queries, asked = bank, rows
    nearest = knn.nearest(F.normalize(asked, dim=1), F.normalize(rows, dim=1), K, others=not apart)
    return Seen(bank, queries, nearest, apart)


def common_limit(options: Common, most: int) -> Common:
    """The options with a limit on the number of images."""
    return Common(ckpt=options.ckpt, data=options.data, limit=most, seed=options.seed)


def affordable(subject: Viewed) -> int:
    """Number of training images to compute features of for a page: all of the sample's, some of large images on a CPU."""
    backbone, side = subject.loaded.backbone, subject.view.crop // subject.loaded.backbone.shape.patch_size
    each = 2.0 * sum(weight.numel() for weight in backbone.parameters()) * side**2
    return int(min(max(WORK[subject.device.type] / each, LEAST), MOST))


def attention(subject: Viewed, images: Images) -> str:
    """Each head of the last block on a few images, as HTML."""
    backbone = subject.loaded.backbone
    if not isinstance(backbone, ViT):
        return report_page.paragraph(f"{backbone.shape.arch} has no [CLS] token whose attention could be read.")
    side = subject.view.crop * FINER
    numbers = chosen(len(images))
    crops = torch.stack(
        [views.evaluation_view(images[n], side, side, mean=backbone.shape.mean, std=backbone.shape.std) for n in numbers]
    )
    with torch.inference_mode():
        maps = backbone.get_last_selfattention(crops.to(subject.device))[:, :, 0, 1:].float().cpu()
    grid = maps.unflatten(2, (side // backbone.shape.patch_size, -1))
    lead = report_page.paragraph(
        f"The light falls where the last block's [CLS] token looks: one picture for each of {grid.shape[1]} heads, images at "
        f"{side} pixels, {grid.shape[2]} x {grid.shape[3]} patches.",
        "soft",
    )
    strips = []
    for number, heads in zip(numbers, grid, strict=True):
        pixels, what = picture(images[number], side), called(images, number)
        items = [_item(pixels, f"{what}, the image itself", what, "query")]
        items += [_item(lit(pixels, one), f"{what}, seen by head {head}", f"head {head}") for head, one in enumerate(heads)]
        strips.append(_strip(items, f"Attention on {what}"))
    return f'{lead}<div class="strips">{"".join(strips)}</div>'


def lit(pixels: np.ndarray, weights: Float[Tensor, "gh gw"]) -> np.ndarray:
    """An image darkened by its attention weights."""
    light = F.interpolate(weights[None, None], size=pixels.shape[:2], mode="bilinear")[0, 0].numpy()
    light = (light - light.min()) / max(float(light.max() - light.min()), 1e-9)
    return (pixels * (DARKEST + (1 - DARKEST) * light[:, :, None])).astype(np.uint8)


def retrieved(seen: Seen) -> str:
    """A few queries, each with its nearest images, as HTML."""
    known = seen.bank.labels is not None and seen.queries.labels is not None
    marks = " Solid frame and \N{CHECK MARK}: same class; dashed frame and \N{MULTIPLICATION X}: another class." if known else ""
    queries = "Test images" if seen.apart else "Training images"
    among = "" if seen.apart else ", other than itself"
    lead = report_page.paragraph(
        f"{queries}, each with its most similar of {len(seen.bank):,} training images{among}, by the cosine of [CLS].{marks}",
        "soft",
    )
    strips = []
    for number in chosen(len(seen.queries)):
        what = called(seen.queries, number)
        items = [_item(picture(seen.queries[number]), f"Query: {what}", f"query: {what}", "query")]
        for similarity, row in zip(seen.found.similarity[number].tolist(), seen.found.row[number].tolist(), strict=True):
            if len(items) > NEAREST:
                break
            other = called(seen.bank, row)
            right = same_class(seen, number, row)
            mark = {True: "\N{CHECK MARK} ", False: "\N{MULTIPLICATION X} ", None: ""}[right]
            kind = {True: "right", False: "wrong", None: ""}[right]
            spoken = {True: ", the same class", False: ", another class", None: ""}[right]
            said = f"Neighbour {len(items)}: {other}{spoken}"
            items.append(_item(picture(seen.bank[row]), said, f"{mark}{other}, {similarity:.2f}", kind))
        strips.append(_strip(items, f"Nearest images of {what}"))
    return f'{lead}<div class="strips">{"".join(strips)}</div>'


def same_class(seen: Seen, query: int, row: int) -> bool | None:
    """Whether query and row have the same label; None without labels."""
    if seen.bank.labels is None or seen.queries.labels is None:
        return None
    mine, theirs = seen.queries.labels[query], seen.bank.labels[row]
    return name_of(seen.queries, int(mine)) == name_of(seen.bank, int(theirs))


def confused(seen: Seen) -> str:
    """Confusion of the k-NN predictions, as HTML."""
    labels = labels_of(seen.bank)
    classes = [name_of(seen.bank, number) for number in range(int(labels.max()) + 1)]
    answers = knn.votes(seen.found, labels, len(classes), (K,))[K][:, 0]
    names = {name: number for number, name in enumerate(classes)}
    mine = [names.get(name_of(seen.queries, int(label)), -1) for label in labels_of(seen.queries)]
    if -1 in mine:
        raise UserError(f"{seen.queries.name} has classes that {seen.bank.name} has not")
    what = "test images" if seen.apart else "training images, each without itself"
    title = f"k-NN (k = {K}, {len(labels):,} training images) on {len(mine):,} {what}"
    return confusion(np.asarray(mine), answers.numpy(), classes, title)


def chosen(count: int) -> list[int]:
    """A few images, the same ones every time."""
    return sorted(np.random.default_rng(0).permutation(count)[:SHOWN].tolist())


def called(images: Images, number: int) -> str:
    """The class of an image, or its number."""
    return name_of(images, int(images.labels[number])) if images.labels is not None else f"image {number}"


def name_of(images: Images, label: int) -> str:
    """A class by its name, in words that can be wrapped, or by its number."""
    return str(images.classes[label]).replace("_", " ") if label < len(images.classes) else str(label)


def picture(pixels: np.ndarray, side: int | None = None) -> np.ndarray:
    """A square of three channels and bytes, whatever the image has: the middle of it, the first three channels or the first."""
    values = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1].repeat(3, axis=2)
    if values.dtype != np.uint8:
        scaled = values.astype(np.float64)
        low, high = scaled.min(), scaled.max()
        values = ((scaled - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    height, width = values.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = Image.fromarray(np.ascontiguousarray(values[top : top + edge, left : left + edge]))
    return np.asarray(square.resize((side or PIXELS,) * 2, Image.Resampling.BICUBIC))


def _strip(items: Sequence[str], label: str) -> str:
    return f'<ul class="strip" aria-label="{escape(label)}">{"".join(items)}</ul>'


def _item(pixels: np.ndarray, alt: str, caption: str, kind: str = "") -> str:
    image = Image.fromarray(pixels).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    frame = f' class="{kind}"' if kind else ""
    return f"<li{frame}>{report_page.picture(image, alt)}{escape(caption)}</li>"


def has_backbone(folder: Path) -> bool:
    """Whether a run has saved anything yet."""
    return (folder / store.BACKBONE).is_file()
