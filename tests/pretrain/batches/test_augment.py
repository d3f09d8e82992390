"""Crops against Pillow and torchvision, on photographs; draws against the original's ranges."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from scipy import stats
from torch.testing import assert_close
from torchvision import transforms
from torchvision.transforms import functional as reference
from torchvision.transforms.v2 import functional as reference_v2

from pretrain.batches import augment, color_ops, resample
from pretrain.evaluate.views import evaluation_resize, evaluation_view
from pretrain.images.decode import LazyImage
from tests.support.pictures import encoded, noise, photographs

FIRST = augment.View(224, (0.25, 1.0), 1.0, 0.0)
SECOND = augment.View(224, (0.25, 1.0), 0.1, 0.2)
LOCAL = augment.View(96, (0.05, 0.25), 0.5, 0.0)
PLAIN = augment.View(224, (0.25, 1.0), 0.0, 0.0)


def draws_for(view: augment.View, views: int, images: list[np.ndarray], seed: int = 0) -> augment.Crops:
    drawn = augment.draw(np.random.default_rng(seed), view, views, len(images))
    height, width = (np.array([image.shape[axis] for image in images]) for axis in (0, 1))
    return augment.Crops(drawn, augment.boxes(drawn, width, height), view.size)


def pillow_crop(image: np.ndarray, box: np.ndarray, size: int) -> Image.Image:
    left, upper, width, height = box.tolist()
    return Image.fromarray(image).crop((left, upper, left + width, upper + height)).resize((size, size), Image.Resampling.BICUBIC)


def pillow_chain(image: np.ndarray, crops: augment.Crops, view: int, number: int) -> np.ndarray:
    """One crop as the original makes it, operation by operation, with the same parameters."""
    draws, at = crops.draws, (view, number)
    picture = pillow_crop(image, crops.box[at], crops.size)
    if draws.flip[at]:
        picture = reference.hflip(picture)
    steps = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation, reference.adjust_hue)
    for kind in draws.order[at] if draws.jittered[at] else ():
        picture = steps[kind](picture, float(draws.factors[at][kind]))
    if draws.grey[at]:
        picture = reference.to_grayscale(picture, 3)
    if draws.sigma[at]:
        picture = picture.filter(ImageFilter.GaussianBlur(float(draws.sigma[at])))
    if draws.solarize[at]:
        picture = ImageOps.solarize(picture)
    return np.asarray(picture).astype(float)


def levels(crops: torch.Tensor) -> np.ndarray:
    """Normalised crops [v, b, c, h, w] as levels of 255 [v, b, h, w, c]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (augment.MEAN, augment.STD))
    return ((crops * std + mean) * 255).permute(0, 1, 3, 4, 2).numpy()


@pytest.mark.parametrize("view", [PLAIN, LOCAL], ids=["224", "96"])
def test_cut_and_resized_is_what_pillow_gives(view: augment.View) -> None:
    images = [*photographs(), np.array(noise(1, 50)[0])]  # the last is enlarged
    crops = draws_for(view, 4, images)
    for number, image in enumerate(images):
        box, flip = crops.box[:, number], crops.draws.flip[:, number]
        for crop, edges, flipped in zip(resample.cut(image, box, flip, view.size), box, flip, strict=True):
            expected = np.asarray(pillow_crop(image, edges, view.size)).astype(int)
            difference = np.abs(crop.permute(1, 2, 0).numpy() - (expected[:, ::-1] if flipped else expected))
            assert difference.mean() < 0.3  # of 255
            if edges[2] >= edges[3]:  # for tall boxes Pillow 13 resizes along y first, which clips elsewhere
                assert difference.max() <= 2 and difference.mean() < 0.02


@pytest.mark.parametrize("view", [FIRST, SECOND, LOCAL], ids=["first global", "second global", "local"])
def test_the_whole_chain_is_pillows_and_torchvisions(view: augment.View) -> None:
    images = photographs()
    crops = draws_for(view, 16, images, seed=1)
    ours = levels(augment.make(images, crops))
    pairs = [(at, number) for at in range(16) for number in range(2)]
    errors = [np.abs(ours[at, number] - pillow_chain(images[number], crops, at, number)).mean() for at, number in pairs]
    assert max(errors) < 2.0, errors  # of 255
    assert crops.draws.jittered.any() and crops.draws.grey.any()


def as_levels(image: np.ndarray, count: int) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float().expand(count, -1, -1, -1)


def test_each_colour_change_equals_torchvisions_on_pillow_images() -> None:
    image = photographs()[1][100:200, 100:230]
    for ours, theirs, amounts, worst in (
        (color_ops.brightness, reference.adjust_brightness, (0.6, 1.4, 1.0), 1),
        (color_ops.contrast, reference.adjust_contrast, (0.6, 1.4, 1.0), 1),
        (color_ops.saturation, reference.adjust_saturation, (0.8, 1.2, 0.0), 1),
        (color_ops.hue, reference.adjust_hue, (-0.1, 0.1, 0.0), 6),  # Pillow keeps hue and saturation as whole 255ths
    ):
        changed = ours(as_levels(image, 3), np.array(amounts))
        for mine, amount in zip(changed, amounts, strict=True):
            expected = np.asarray(theirs(Image.fromarray(image), amount)).astype(float)
            difference = np.abs(mine.permute(1, 2, 0).numpy() - expected)
            assert difference.max() <= worst and difference.mean() < 1.0, (ours, amount)
    grey = color_ops.grey(as_levels(image, 1))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(grey, np.asarray(reference.to_grayscale(Image.fromarray(image), 3)))
    solarized = color_ops.solarize(as_levels(image, 1))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(solarized, np.asarray(ImageOps.solarize(Image.fromarray(image))))


def test_blur_is_pillows_for_each_image_of_a_batch() -> None:
    image = photographs()[0][:200, :200]
    sigma = np.array([0.1, 0.5, 1.0, 1.5, 2.0])
    for blurred, one in zip(color_ops.blur(as_levels(image, 5), sigma), sigma.tolist(), strict=True):
        expected = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(one))).astype(float)
        difference = np.abs(blurred.permute(1, 2, 0).numpy() - expected)
        assert difference.mean() < 0.6 and difference[8:-8, 8:-8].max() < 3  # Pillow rounds after each of its six passes


def test_each_crop_is_changed_by_its_own_draws_whatever_goes_beside_it() -> None:
    images = photographs()
    crops = draws_for(SECOND, 3, images)
    whole = augment.make(images, crops)
    for view in range(3):
        alone = augment.Crops(
            augment.Draws(*(values[view : view + 1] for values in crops.draws)), crops.box[view : view + 1], 224
        )
        assert_close(augment.make(images, alone)[0], whole[view], rtol=0, atol=1e-5)


def test_images_with_other_channels_keep_them() -> None:
    generator = np.random.default_rng(0)
    images = [generator.random((40, 50, 5), dtype=np.float32) for _ in range(3)]
    crops = draws_for(augment.View(16, (0.3, 1.0), 0.5, 0.5), 4, images)
    ours = augment.make(images, crops, (0.5,) * 5, (0.3,) * 5)
    assert ours.shape == (4, 3, 5, 16, 16) and bool(torch.isfinite(ours).all())


def many(view: augment.View, seed: int = 0) -> augment.Draws:
    return augment.draw(np.random.default_rng(seed), view, 100, 1000)


def test_drawn_parameters_have_the_originals_distributions() -> None:
    """1e5 draws each; Kolmogorov-Smirnov at p > 1e-3 and shares within five standard errors, seeds fixed."""
    draws = many(augment.View(96, (0.05, 0.4), 0.5, 0.2))

    def uniform(values: np.ndarray, low: float, high: float) -> bool:
        return stats.kstest(values.ravel(), stats.uniform(low, high - low).cdf).pvalue > 1e-3

    def share(values: np.ndarray, expected: float) -> bool:
        return abs(values.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / values.size)

    assert uniform(draws.area[..., 0], 0.05, 0.4) and uniform(np.log(draws.aspect[..., 0]), np.log(3 / 4), np.log(4 / 3))
    assert all(uniform(draws.place[..., axis], 0, 1) for axis in range(2))
    for kind, (low, high) in enumerate(((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1))):
        assert uniform(draws.factors[..., kind], low, high)
    assert share(draws.flip, 0.5) and share(draws.jittered, 0.8) and share(draws.grey, 0.2)
    assert share(draws.sigma > 0, 0.5) and share(draws.solarize, 0.2)
    assert uniform(draws.sigma[draws.sigma > 0], 0.1, 2.0)
    _, counts = np.unique(draws.order.reshape(-1, 4), axis=0, return_counts=True)
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 1e-3
    columns = [
        draws.area[..., 0],
        draws.place[..., 0],
        draws.flip,
        draws.jittered,
        draws.factors[..., 0],
        draws.grey,
        draws.solarize,
    ]
    correlation = np.corrcoef([np.asarray(column, dtype=float).ravel() for column in columns]) - np.eye(len(columns))
    assert np.abs(correlation).max() < 5 / np.sqrt(1e5)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (90, 300)])
def test_boxes_are_distributed_as_torchvisions(width: int, height: int) -> None:
    scale = (0.25, 1.0)
    torch.manual_seed(0)
    blank = Image.new("RGB", (width, height))
    theirs = np.array([transforms.RandomResizedCrop.get_params(blank, scale, (3 / 4, 4 / 3)) for _ in range(5000)])
    draws = augment.draw(np.random.default_rng(0), augment.View(96, scale, 0, 0), 1, 20000)
    ours = augment.boxes(draws, np.full(20000, width), np.full(20000, height))[0]
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= [width, height]).all() and (ours[:, 2:] > 0).all()
    for column, other in zip(ours[:, [1, 0, 3, 2]].T, theirs.T, strict=True):
        assert stats.ks_2samp(column, other).pvalue > 1e-3
    long = augment.boxes(draws, np.full(20000, 1000), np.full(20000, 10))
    assert (long == [493, 0, 13, 10]).all(axis=-1).any()


def test_large_photographs_are_decoded_small_only_where_no_crop_needs_more() -> None:
    sizes = np.array([224, 224, 96])
    for smallest, factor in (((224, 230), 1), ((900, 895), 1), ((896, 910), 2), ((1800, 1795), 4), ((4000, 3600), 8)):
        boxes = np.array([[0, 0, 4000, 3600], [9, 9, *smallest], [0, 0, 2000, 2000]])
        assert augment.reduction(boxes, sizes) == factor, smallest
    assert augment.reduction(np.array([[0, 0, 100, 50]]), np.array([224])) == 1


def test_a_photograph_decoded_small_gives_nearly_the_same_crops() -> None:
    large = Image.fromarray(photographs()[0]).resize((3840, 2562), Image.Resampling.BICUBIC)
    opened = LazyImage(encoded(large, "jpeg", quality=95))
    whole, small = LazyImage(encoded(large, "jpeg", quality=95)).pixels(), opened.pixels(4)
    assert small.shape[0] * 4 - whole.shape[0] in range(4)
    box = np.array([[200, 120, 3000, 2001], [602, 404, 2406, 2010]])
    shrunk = augment.shrink(box, 4, small.shape[1], small.shape[0])
    flip = np.zeros(2, dtype=bool)
    near = torch.stack(resample.cut(small, shrunk, flip, 224)).float()
    exact = torch.stack(resample.cut(whole, shrunk * 4, flip, 224)).float()
    assert (near - exact).abs().mean() < 1.0  # of 255


def test_the_evaluation_view_is_resize_then_centre_crop() -> None:
    image = noise(1, 60)[0]
    resized = image.resize((34, 32), Image.Resampling.BICUBIC)
    expected = reference_v2.to_dtype(reference_v2.pil_to_tensor(resized), torch.float32, scale=True)[:, 2:30, 3:31]
    assert_close(evaluation_view(np.asarray(image), 32, 28), color_ops.normalise(expected[None])[0])
    assert (evaluation_resize(224), evaluation_resize(32)) == (256, 32)
    channels = np.dstack([np.asarray(image)] * 2)
    other = evaluation_view(channels, 32, 28, mean=augment.MEAN * 2, std=augment.STD * 2)
    assert_close(other, color_ops.normalise(expected[None])[0].repeat(2, 1, 1))


SUBSETS = {"none": (), "first": (0,), "last": (3,), "some": (1, 2), "all but one": (0, 1, 3), "all": (0, 1, 2, 3)}


def drawn_on(**subsets: tuple[int, ...]) -> augment.Draws:
    """Draws of four crops that change just these, with amounts of their own."""
    chosen = {name: np.isin(np.arange(4), subsets.get(name, ())) for name in ("jittered", "grey", "sigma", "solarize")}
    factors = np.stack(
        [np.linspace(0.7, 1.3, 4), np.linspace(1.2, 0.8, 4), np.linspace(0.9, 1.1, 4), np.linspace(-0.1, 0.1, 4)], 1
    )
    return augment.Draws(
        area=np.zeros((4, 1)),
        aspect=np.ones((4, 1)),
        place=np.zeros((4, 2)),
        flip=np.zeros(4, dtype=bool),
        jittered=chosen["jittered"],
        factors=factors,
        order=np.array([[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]]),
        grey=chosen["grey"],
        sigma=np.where(chosen["sigma"], np.linspace(0.5, 2.0, 4), 0.0),
        solarize=chosen["solarize"],
    )


@pytest.mark.parametrize("grey", SUBSETS)
@pytest.mark.parametrize("other", SUBSETS)
@pytest.mark.parametrize("kind", ["jittered", "sigma", "solarize", "all of them"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_operation_on_every_subset_of_a_batch_is_that_on_each_crop(
    grey: str, other: str, kind: str, dtype: torch.dtype
) -> None:
    """Before, all crops grey and some of them blurred was a RuntimeError: a write into memory that channels shared."""
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (4, 3, 12, 10), generator=generator, dtype=torch.uint8)
    crops = crops if dtype == torch.uint8 else crops / 255
    kinds = ("jittered", "sigma", "solarize") if kind == "all of them" else (kind,)
    draws = drawn_on(grey=SUBSETS[grey], **dict.fromkeys(kinds, SUBSETS[other]))
    kept = crops.clone()
    together = augment.change(crops, draws)
    one_by_one = [augment.change(crops[n : n + 1], augment.Draws(*(values[n : n + 1] for values in draws))) for n in range(4)]
    # A blur's kernel is as long as the widest of its batch: float32 sums in another order, which rounding may make one level.
    difference = (together - torch.cat(one_by_one)).abs()
    assert difference.max() <= (0.02 if "sigma" in kinds else 0) and difference.mean() < 1e-3
    assert torch.equal(crops, kept)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_no_operation_hands_out_memory_that_is_shared(channels: int) -> None:
    """Each element of a result has a place of its own, and none of the input's."""
    amounts = np.linspace(0.5, 1.5, 3)
    operations = dict.fromkeys(("brightness", "contrast", "blur"), (amounts,)) | {"grey": (), "solarize": ()}
    operations |= {"saturation": (amounts,), "hue": (amounts / 10,)} if channels == 3 else {}
    for name, arguments in operations.items():
        x = torch.rand(3, channels, 9, 8) * 255
        kept, result = x.clone(), getattr(color_ops, name)(x, *arguments)
        assert result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr(), name
        assert all(stride for stride, size in zip(result.stride(), result.shape, strict=True) if size > 1), name
        result.fill_(0.0)
        assert torch.equal(x, kept), name
