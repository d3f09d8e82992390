"""Sources of images, and what makes them clear errors."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torchvision
from PIL import Image

from checkpoints.cli import UserError
from pretrain.images import tar_shards
from pretrain.images.decode import BadImage, LazyImage, decode
from pretrain.images.hubs import open_torchvision
from pretrain.images.open import has_part, open_images
from pretrain.images.source import aligned, spread_of
from pretrain.setup import data
from tests.support.pictures import encoded, noise, write_flat, write_folders, write_list, write_parquet, write_shard


def same(pixels: np.ndarray, image: Image.Image) -> bool:
    return pixels.dtype == np.uint8 and np.array_equal(pixels, np.asarray(image))


def write_hugging_face(path: Path, images: list[Image.Image]) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["bird", "cat"])})
    rows = {
        "picture": [{"bytes": encoded(image), "path": None} for image in images],
        "label": [n % 2 for n in range(len(images))],
    }
    train = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": train, "test": train.select([3, 2])}).save_to_disk(str(path))


def test_every_source_gives_the_same_images_and_labels_for_the_same_content(tmp_path: Path) -> None:
    images = write_folders(tmp_path / "classes")
    labels = [0, 1] * 3
    write_flat(tmp_path / "flat", images)
    write_list(tmp_path / "list.txt", images, labels=True)
    write_list(tmp_path / "bare.txt", images, labels=False)
    write_parquet(tmp_path / "rows.parquet", images, labels)
    for number in range(2):
        write_parquet(tmp_path / "several" / f"part-{number}.parquet", images[number * 3 :][:3], labels[number * 3 :][:3])
    for number in range(3):
        write_shard(tmp_path / "shards" / f"s-{number:03d}.tar", images[number * 2 :][:2], number * 2)
    write_hugging_face(tmp_path / "hub", images)
    write_folders(tmp_path / "torchvision" / "country211" / "train")
    in_class_order = [0, 2, 4, 1, 3, 5]
    for source, order, known in (
        ("classes", in_class_order, True),
        ("torchvision:Country211@" + str(tmp_path / "torchvision"), in_class_order, True),
        ("flat", range(6), False),
        ("list.txt", range(6), True),
        ("bare.txt", range(6), False),
        ("rows.parquet", range(6), True),
        ("several", range(6), True),
        ("several/part-{0..1}.parquet", range(6), True),
        ("several/*.parquet", range(6), True),
        ("shards", range(6), True),
        ("shards/s-{000..002}.tar", range(6), True),
        ("hf:" + str(tmp_path / "hub"), range(6), True),
    ):
        opened = open_images(source if ":" in source else str(tmp_path / source))
        assert len(opened) == 6 and (opened.labels is not None) == known, source
        for place, index in enumerate(order):
            assert same(opened[place], images[index]), source
            assert opened.where(place)
            if opened.labels is not None:
                assert opened.labels[place] == index % 2, source


def test_a_hugging_face_data_set_has_splits_and_names(tmp_path: Path) -> None:
    images = noise(6)
    write_hugging_face(tmp_path, images)
    test = open_images(f"hf:{tmp_path}", "val")
    assert len(test) == 2
    assert same(test[0], images[3])
    assert test.labels is not None
    assert test.labels.tolist() == [1, 0]
    assert list(test.classes) == ["bird", "cat"] and has_part(f"hf:{tmp_path}", "val")


def test_torchvision_data_sets_come_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = open_images("torchvision:FakeData")
    assert len(fake) == 1000 and fake[3].shape == (224, 224, 3)
    with pytest.raises(UserError, match="no data set Nothing"):
        open_images("torchvision:Nothing")
    with pytest.raises(UserError, match="no part to test on"):
        open_images("torchvision:FakeData", "val")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "file:///nowhere/cifar.tar.gz")
    with pytest.raises(UserError, match="torchvision:CIFAR10 could not be opened in"):
        open_images(f"torchvision:CIFAR10@{tmp_path}")


def test_archives_never_write_outside_their_folder(tmp_path: Path) -> None:
    open_torchvision("FakeData", "train")  # from here on extraction is guarded
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as archive:
        archive.addfile(tarfile.TarInfo("../outside.png"))
    with pytest.raises(tarfile.FilterError):
        torchvision.datasets.utils.extract_archive(str(evil), str(tmp_path / "inside"))
    assert not (tmp_path / "outside.png").exists()
    name = tar_shards._cache_name("https://me:secret@host/a/../../etc/x.tar?y=%2e")
    assert name[32:] == "-https___host_a_.._.._etc_x.tar" and len(tar_shards._cache_name("pipe:" + "x" * 900)) < 100


def test_shards_that_are_not_local_are_fetched_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "far.tar", noise(4))
    monkeypatch.setenv("WDS_CACHE", str(tmp_path / "cache"))
    address = f"pipe:cat {tmp_path / 'far.tar'}"
    first = open_images(address)
    (tmp_path / "far.tar").unlink()
    again = open_images(address)
    assert len(first) == len(again) == 4 and same(again[3], noise(4)[3])
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with pytest.raises(UserError, match="could not be fetched"):
        open_images(f"pipe:cat {tmp_path / 'other.tar'}")


def test_shards_are_shuffled_within_a_bounded_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_shards, "WINDOW", 8)
    pictures = noise(2, 2) * 16
    for number in range(4):
        write_shard(tmp_path / f"{number}.tar", pictures, number * 32)
    images = open_images(str(tmp_path))
    order, other = images.order(np.random.default_rng(0)), images.order(np.random.default_rng(1))
    assert sorted(order) == sorted(other) == list(range(128)) and order.tolist() != other.tolist()
    places = np.argsort(order).reshape(4, 32)  # where the images of each shard came
    assert set((places.min(axis=1) // 24).tolist()) <= {0, 1, 2, 3, 4}
    assert (np.abs(places - places.min(axis=1, keepdims=True) - np.arange(32)) <= 2 * 8).all()
    assert not (np.diff(order) == 1).all()


def test_a_divided_source_gives_the_part_that_is_asked_for(tmp_path: Path) -> None:
    write_folders(tmp_path / "a" / "train", 6)
    write_folders(tmp_path / "a" / "val", 4)
    write_parquet(tmp_path / "b" / "train-00000.parquet", noise(5), [0] * 5)
    write_parquet(tmp_path / "b" / "test.parquet", noise(3), [0] * 3)
    write_shard(tmp_path / "c" / "train-0.tar", noise(3))
    write_shard(tmp_path / "c" / "train-1.tar", noise(2))
    write_shard(tmp_path / "c" / "val-0.tar", noise(1))
    write_list(tmp_path / "d" / "train.txt", noise(3), labels=True)
    write_list(tmp_path / "d" / "val.txt", noise(2), labels=True)
    for folder, sizes in (("a", (6, 4)), ("b", (5, 3)), ("c", (5, 1)), ("d", (3, 2))):
        source = str(tmp_path / folder)
        assert (len(open_images(source, "train")), len(open_images(source, "val"))) == sizes
        assert has_part(source, "val")
    write_folders(tmp_path / "e")
    assert not has_part(str(tmp_path / "e"), "val") and len(open_images(str(tmp_path / "e"), "train")) == 6
    with pytest.raises(UserError, match="no part named val, test, validation"):
        open_images(str(tmp_path / "e"), "val")


def test_class_numbers_of_a_part_that_lacks_a_class_are_those_of_the_whole(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", 4)
    (tmp_path / "val" / "cat").mkdir(parents=True)
    noise(1)[0].save(tmp_path / "val" / "cat" / "0.png")
    train, val = open_images(str(tmp_path)), open_images(str(tmp_path), "val")
    assert val.labels is not None and val.labels.tolist() == [0]
    matched = aligned(val, train)
    assert matched.labels is not None and matched.labels.tolist() == [1] and list(matched.classes) == ["bird", "cat"]
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "dog")
    with pytest.raises(UserError, match=r"has classes that .* has not: dog"):
        aligned(open_images(str(tmp_path), "val"), train)


def test_whole_numbers_as_labels_stand_in_the_order_of_their_size(tmp_path: Path) -> None:
    write_flat(tmp_path, noise(3))
    (tmp_path / "list.tsv").write_text("0.png\t10\n1.png\t9\n2.png\t10\n")
    images = open_images(str(tmp_path / "list.tsv"))
    assert list(images.classes) == ["9", "10"] and images.labels is not None and images.labels.tolist() == [1, 0, 1]


def test_sources_that_hold_nothing_are_refused_with_a_sentence(tmp_path: Path) -> None:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    (tmp_path / "empty").mkdir()
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "notes.md").write_text("x")
    (tmp_path / "blank.txt").write_text("# nothing\n")
    (tmp_path / "lost.txt").write_text("a.png\nb.png\n")
    (tmp_path / "mixed.txt").write_text("a.png\tx\nb.png\tx\ty\n")
    (tmp_path / "text.md").write_text("x")
    pq.write_table(pa.table({"picture": [1]}), tmp_path / "wrong.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "broken.tar").write_bytes(b"x" * 5000)
    write_shard(tmp_path / "one-0.tar", noise(2))
    with tarfile.open(tmp_path / "no.tar", "w") as archive:
        archive.add(tmp_path / "text.md", "text.md")
    for name, message in (
        ("nowhere", "there is no folder or file"),
        ("nowhere/*.parquet", "there is no folder or file"),
        ("empty", "there are no images in"),
        ("only", "there are no images in"),
        ("blank.txt", "lists no images"),
        ("lost.txt", "none of the 2 paths in"),
        ("mixed.txt", "entry 2 differs from the first"),
        ("text.md", "is neither a list of paths nor parquet"),
        ("*.md", "patterns are for .parquet and .tar"),
        ("wrong.parquet", "has no column `image`"),
        ("broken.parquet", "is no readable parquet"),
        ("broken.tar", "is no plain, whole tar file"),
        ("no.tar", "there are no images in"),
        ("one-{0..1}.tar", "there is no shard"),
        ("some.tar.gz", "there is no shard"),
    ):
        with pytest.raises(UserError, match=message):
            open_images(str(tmp_path / name))
    with pytest.raises(UserError, match="hf:nobody/nothing could not be opened"):
        open_images("hf:nobody/nothing")


def test_every_format_and_mode_becomes_upright_rgb(tmp_path: Path) -> None:
    picture = noise(1, 24)[0]
    for kind in ("png", "webp", "tiff", "bmp", "ppm", "gif", "jpeg"):
        options = {"lossless": True} if kind == "webp" else {}
        pixels = decode(encoded(picture, kind, **options))
        assert pixels.shape == (24, 28, 3) and pixels.dtype == np.uint8
        if kind not in ("jpeg", "gif"):
            assert same(pixels, picture)
    for mode, kind in (
        ("L", "png"),
        ("P", "png"),
        ("RGBA", "png"),
        ("LA", "png"),
        ("1", "png"),
        ("CMYK", "tiff"),
        ("CMYK", "jpeg"),
    ):
        changed = picture.convert(mode)
        pixels = decode(encoded(changed, kind))
        assert pixels.shape == (24, 28, 3)
        if kind == "png":
            assert same(pixels, changed.convert("RGB")), mode
    palette = picture.quantize(16)
    palette.info["transparency"] = bytes(range(16))
    assert decode(encoded(palette)).shape == (24, 28, 3)


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    values = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    for kind in ("png", "tiff"):
        pixels = decode(encoded(Image.fromarray(values), kind))
        assert pixels.shape == (64, 64, 3) and np.abs(pixels[:, :, 0] - values / 257.0).max() <= 0.51


def test_exif_orientation_is_followed_and_known_before_decoding() -> None:
    picture = noise(1, 24)[0]
    for orientation, turned in ((1, picture), (3, picture.rotate(180)), (6, picture.rotate(-90, expand=True))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        opened = LazyImage(encoded(picture, "png", exif=exif))
        assert (opened.width, opened.height) == turned.size
        assert same(opened.pixels(), turned)


def test_other_numbers_of_channels_come_from_numpy_and_tiff(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    deep = generator.integers(0, 65536, (20, 24, 6), dtype=np.uint16)
    byte = generator.integers(0, 256, (20, 24, 6), dtype=np.uint8)
    for name, array in (("deep", deep), ("byte", byte), ("float", (deep / 65535).astype(np.float32))):
        np.save(tmp_path / f"{name}.npy", array)
        tifffile.imwrite(tmp_path / f"{name}.tif", array, photometric="minisblack", planarconfig="contig")
        tifffile.imwrite(tmp_path / f"{name}-planes.tif", array.transpose(2, 0, 1), photometric="minisblack")
        expected = array if name == "byte" else (deep / 65535).astype(np.float32)
        for file in (f"{name}.npy", f"{name}.tif", f"{name}-planes.tif"):
            pixels = decode((tmp_path / file).read_bytes(), 6)
            assert pixels.dtype == expected.dtype and np.allclose(pixels, expected, atol=1e-7), file
    assert len(open_images(str(tmp_path), channels=6)) == 9
    with pytest.raises(BadImage, match="not height x width x 5 channels"):
        decode((tmp_path / "byte.npy").read_bytes(), 5)
    grey = decode(encoded(Image.fromarray(deep[:, :, 0])), 1)
    assert grey.shape == (20, 24, 1) and np.allclose(grey[:, :, 0], deep[:, :, 0] / 65535)
    assert decode(encoded(noise(1)[0].convert("RGBA")), 4).shape == (20, 24, 4)


def test_pages_of_a_tiff_are_its_channels_and_never_lost_in_silence(tmp_path: Path) -> None:
    """Pillow would take the first page of a stack and call it the image."""
    deep = np.random.default_rng(0).integers(0, 4096, (3, 20, 24), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "3.tif", deep, photometric="minisblack")
    pixels = decode((tmp_path / "3.tif").read_bytes(), 3)
    assert pixels.shape == (20, 24, 3) and np.allclose(pixels, deep.transpose(1, 2, 0) / 65535, atol=1e-7)
    tifffile.imwrite(tmp_path / "4.tif", np.concatenate([deep, deep[:1]]), photometric="minisblack")
    for channels in (1, 3):
        with pytest.raises(BadImage, match=rf"its shape is \[4, 20, 24\], not height x width x {channels} channels"):
            decode((tmp_path / "4.tif").read_bytes(), channels)


def test_images_that_are_nearly_black_are_remarked_upon(tmp_path: Path) -> None:
    """A camera's 12 bits in a file of 16 are 16 levels of 256."""
    for number, deep in enumerate(np.random.default_rng(0).integers(0, 4096, (10, 20, 24), dtype=np.uint16)):
        tifffile.imwrite(tmp_path / f"{number}.tif", deep)
    (remark,) = data.too_dark(open_images(str(tmp_path)))
    assert "brightest value 16 of 255" in remark and "--channels 1 reads grey ones as they are stored" in remark
    assert not data.too_dark(open_images(str(tmp_path), channels=1))
    Image.new("RGB", (20, 20), "white").save(tmp_path / "0.png")
    assert not data.too_dark(open_images(str(tmp_path)))
    assert not data.too_dark(open_images("sample"))


def test_the_spread_of_other_channels_is_measured(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal([0.1, 0.5], [0.01, 0.1], (8, 30, 30, 2)).astype(np.float32)
    for number, array in enumerate(values):
        np.save(tmp_path / f"{number}.npy", array)
    (tmp_path / "bad.npy").write_bytes(b"x")
    spread = spread_of(open_images(str(tmp_path), channels=2))
    assert np.allclose(spread.mean, values.mean(axis=(0, 1, 2)), atol=1e-5)
    assert np.allclose(spread.std, values.std(axis=(0, 1, 2)), atol=1e-5)
    with pytest.raises(UserError, match=r"no image of .* can be used with --channels 3"):
        spread_of(open_images(str(tmp_path), channels=3))
