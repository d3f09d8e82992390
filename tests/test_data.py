"""Images, crops and batches."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as reference

from checkpoints.command import UserError
from pretrain import augment, masking, sample
from pretrain.images import Files, Parquet, Sample, has_part, open_images
from pretrain.loader import Batch, Loader, Steps

VIEW = augment.View(16, (0.3, 1.0), 0.5, 0.5)
VIEWS = augment.MultiCrop((VIEW, VIEW), augment.View(8, (0.1, 0.3), 0.5, 0.0), 3)
MASKS = masking.MaskSettings((0.0, 0.3), (0.0, 0.2), "block")


def pictures(count: int, size: int = 20) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (size, size + 4, 3), dtype=np.uint8)) for _ in range(count)]


def write_folders(root: Path, count: int = 6) -> list[Image.Image]:
    images = pictures(count)
    for index, image in enumerate(images):
        folder = root / ("cat" if index % 2 else "bird")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{index}.png")
    return images


def write_parquet(path: Path, images: list[Image.Image], labels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, image in enumerate(images):
        file = path.with_name(f"{index}.png")
        image.save(file)
        rows.append({"bytes": file.read_bytes(), "path": file.name})
        file.unlink()
    pq.write_table(pa.table({"image": rows, "label": labels}), path)


def same(image: Image.Image, other: Image.Image) -> bool:
    return image.mode == other.mode == "RGB" and bool((np.asarray(image) == np.asarray(other)).all())


def test_class_folders_flat_folders_and_parquet_give_the_same_images(tmp_path: Path) -> None:
    images = write_folders(tmp_path / "classes")
    (tmp_path / "flat").mkdir()
    for index, image in enumerate(images):
        image.save(tmp_path / "flat" / f"{index}.png")
    write_parquet(tmp_path / "rows.parquet", images, [0, 1] * 3)
    classes, flat = open_images(str(tmp_path / "classes")), open_images(str(tmp_path / "flat"))
    rows = open_images(str(tmp_path / "rows.parquet"))
    assert isinstance(classes, Files) and isinstance(rows, Parquet)
    assert list(classes.classes) == ["bird", "cat"] and classes.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert flat.labels is None and rows.labels.tolist() == [0, 1] * 3
    assert len(classes) == len(flat) == len(rows) == 6
    for index, image in enumerate(images):
        assert same(flat[index], image) and same(rows[index], image)
        assert same(classes[index // 2 + 3 * (index % 2)], image)


def test_a_divided_source_gives_the_part_that_is_asked_for(tmp_path: Path) -> None:
    write_folders(tmp_path / "a" / "train", 6)
    write_folders(tmp_path / "a" / "val", 4)
    write_parquet(tmp_path / "b" / "train-00000.parquet", pictures(5), [0] * 5)
    write_parquet(tmp_path / "b" / "test.parquet", pictures(3), [0] * 3)
    for folder, sizes in (("a", (6, 4)), ("b", (5, 3))):
        source = str(tmp_path / folder)
        assert (len(open_images(source, "train")), len(open_images(source, "val"))) == sizes
        assert has_part(source, "val")
    write_folders(tmp_path / "c")
    assert not has_part(str(tmp_path / "c"), "val") and len(open_images(str(tmp_path / "c"), "train")) == 6
    with pytest.raises(UserError, match="no part named val, test, validation"):
        open_images(str(tmp_path / "c"), "val")


def test_grey_palette_and_alpha_images_become_rgb(tmp_path: Path) -> None:
    for index, mode in enumerate(("L", "P", "RGBA", "1", "CMYK")):
        pictures(1)[0].convert(mode).save(tmp_path / f"{index}.{'tif' if mode == 'CMYK' else 'png'}")
    images = open_images(str(tmp_path))
    assert [images[index].mode for index in range(5)] == ["RGB"] * 5


def test_sources_that_hold_nothing_are_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    pq.write_table(pa.table({"picture": [1]}), tmp_path / "wrong.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no image")
    for name, message in (
        ("nowhere", "there is no folder or file"),
        ("empty", "there are no images in"),
        ("text.txt", "is not a parquet file"),
        ("wrong.parquet", "has no column `image`"),
        ("broken.parquet", "is no readable parquet"),
    ):
        with pytest.raises(UserError, match=message):
            open_images(str(tmp_path / name))
    with pytest.raises(UserError, match="no readable image"):
        open_images(str(tmp_path / "bad"))[0]


def test_the_sample_is_the_same_every_time_and_its_parts_differ() -> None:
    first, again = sample.classification.__wrapped__("train", 20), sample.classification.__wrapped__("train", 20)
    other = sample.classification.__wrapped__("val", 20)
    assert (first.images == again.images).all() and not (first.images == other.images).all()
    assert np.bincount(first.labels).tolist() == [2] * len(sample.KINDS)
    assert len(np.unique(first.images.reshape(20, -1), axis=0)) == 20


def test_a_scene_knows_which_pixel_belongs_to_what() -> None:
    scene = sample.draw_scene(np.random.default_rng(3), [0, 4, 7])
    picture = sample.render(scene, 64)
    assert picture.image.shape == (64, 64, 3) and picture.image.dtype == np.uint8
    alone = sample.render(sample.Scene(scene.things[-1:], scene.background, scene.light), 64)
    assert set(np.unique(picture.owner)) <= {-1, 0, 1, 2}
    front = picture.owner == 2
    assert (front == (alone.owner == 0)).all() and front.any()
    inner = front & np.roll(front, 1, 0) & np.roll(front, -1, 0) & np.roll(front, 1, 1) & np.roll(front, -1, 1)
    assert (picture.image[inner] == alone.image[inner]).all()


def test_every_class_has_its_own_shape_and_texture() -> None:
    assert len({kind.shape for kind in sample.KINDS}) == len({kind.texture for kind in sample.KINDS}) == len(sample.KINDS)


def test_the_sample_is_written_as_class_folders_and_as_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample.main(["--out", str(tmp_path / "d"), "--count", "20", "--show", str(tmp_path / "sheet.png"), "--size", "16"])
    train = open_images(str(tmp_path / "d"), "train")
    assert sorted(train.classes) == sorted(sample.CLASSES) and len(train) == 20
    drawn = sample.classification("train", 20, 16)
    files = sorted((tmp_path / "d" / "train").rglob("*.png"), key=lambda path: path.stem)
    for file, image in zip(files, drawn.images, strict=True):
        with Image.open(file) as written:
            assert (np.asarray(written) == image).all()
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (12 * 18 + 2, 10 * 18 + 2)
    assert sample._name_the_sheet(["--show", "--size", "8"]) == ["--show", "sample.png", "--size", "8"]
    assert sample._name_the_sheet(["--show"]) == ["--show", "sample.png"]
    with pytest.raises(UserError, match="nothing to do"):
        sample.main([])


def test_crop_boxes_lie_inside_with_areas_and_aspects_in_range() -> None:
    generator = np.random.default_rng(0)
    for _ in range(2000):
        left, upper, right, lower = augment.crop_box(generator, 120, 80, (0.1, 0.5))
        assert 0 <= left < right <= 120 and 0 <= upper < lower <= 80
        assert 0.09 < (right - left) * (lower - upper) / 9600 < 0.52
        assert 0.7 < (right - left) / (lower - upper) < 1.42
    assert augment.crop_box(generator, 1000, 10, (0.9, 1.0)) == (493, 0, 506, 10)


def test_colour_changes_equal_torchvisions() -> None:
    x = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    for ours, theirs, amounts in (
        (augment.brightness, reference.adjust_brightness, (0.6, 1.4, 1.0)),
        (augment.contrast, reference.adjust_contrast, (0.6, 1.4, 1.0)),
        (augment.saturation, reference.adjust_saturation, (0.8, 1.2, 0.0)),
        (augment.hue, reference.adjust_hue, (-0.1, 0.1, 0.0)),
    ):
        mine = ours(x, torch.tensor(amounts)[:, None, None, None])
        expected = torch.stack([theirs(image, amount) for image, amount in zip(x, amounts, strict=True)])
        assert_close(mine, expected, rtol=0, atol=2e-3)  # torchvision rounds its grey weights to four digits
    assert_close(augment.solarize(x), reference.solarize(x, augment.SOLARIZE_FROM))


def test_blur_equals_torchvisions_for_each_image_of_a_batch() -> None:
    x = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.5, 1.0, 1.5])
    ours = augment.blur(x, sigma)
    for image, blurred, one in zip(x, ours, sigma, strict=True):
        expected = reference.gaussian_blur(image, [9, 9], [float(one)] * 2)
        assert_close(blurred[:, 5:-5, 5:-5], expected[:, 5:-5, 5:-5], rtol=0, atol=5e-3)


def test_probabilities_zero_and_one_mean_never_and_always() -> None:
    crops = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    plain = augment.change(np.random.default_rng(1), crops, augment.View(8, (1, 1), 0.0, 0.0))
    solarized = augment.change(np.random.default_rng(1), crops, augment.View(8, (1, 1), 0.0, 1.0))
    mean, std = torch.tensor(augment.MEAN)[:, None, None], torch.tensor(augment.STD)[:, None, None]
    assert_close(augment.normalise(augment.solarize(plain * std + mean)), solarized, rtol=0, atol=1e-4)


def test_the_evaluation_view_is_resize_then_centre_crop() -> None:
    image = pictures(1, 60)[0]
    ours = augment.evaluation_view(image, 32, 28)
    resized = image.resize((34, 32), Image.Resampling.BICUBIC)
    expected = reference.to_dtype(reference.pil_to_tensor(resized), torch.float32, scale=True)[:, 2:30, 3:31]
    assert_close(ours, augment.normalise(expected[None])[0])
    assert (augment.evaluation_resize(224), augment.evaluation_resize(32)) == (256, 32)


def steps(count: int = 37, batch_size: int = 4, seed: int = 0) -> Steps:
    drawn = Sample.__new__(Sample)
    drawn.name, drawn.labels, drawn.classes = "few", np.arange(count) % 10, sample.CLASSES
    drawn._images = sample.classification("train", 40).images[:count]
    return Steps(drawn, VIEWS, MASKS, (4, 4), batch_size, seed)


def equal(batch: Batch, other: Batch) -> bool:
    pairs = [(batch.crops, other.crops), (batch.local_crops, other.local_crops), *zip(batch.masks, other.masks, strict=True)]
    return all(torch.equal(one, two) for one, two in pairs)


def test_a_step_has_the_same_batch_however_it_is_reached() -> None:
    data = steps()
    batches = list(Loader(data, 0, 20, 0, torch.device("cpu")))
    assert len(batches) == 20 and batches[0].crops.shape == (2, 4, 3, 16, 16)
    assert batches[0].local_crops.shape == (3, 4, 3, 8, 8) and batches[0].masks.grid.shape == (2, 4, 4, 4)
    again = list(Loader(steps(), 13, 20, 2, torch.device("cpu")))
    assert all(equal(one, two) for one, two in zip(batches[13:], again, strict=True))
    assert not equal(batches[0], batches[1]) and not equal(batches[0], steps(seed=1)[0])


def test_an_epoch_sees_no_image_twice_also_over_several_processes() -> None:
    shares = [steps(), steps()]
    for rank, data in enumerate(shares):
        data.rank, data.world_size, data.steps_per_epoch = rank, 2, 37 // 8
    epochs = []
    for epoch in range(2):
        numbers = range(epoch * 4, epoch * 4 + 4)
        seen = np.concatenate([data.chosen(step) for step in numbers for data in shares])
        assert len(seen) == len(set(seen.tolist())) == 32
        epochs.append(seen.tolist())
    assert epochs[0] != epochs[1]


def test_no_local_crops_is_an_empty_batch_of_them() -> None:
    data = steps()
    data.views = augment.MultiCrop((VIEW, VIEW), VIEW, 0)
    assert data[0].local_crops.shape == (0, 4, 3, 16, 16)
