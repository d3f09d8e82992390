"""Turned files, ranges of values, sources of any size: each kind tried on many instances."""

import io
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from checkpoints.architecture import shape_of, stored_architecture
from checkpoints.cli import DONE, UserError, WorkError, run_command
from pretrain import train
from pretrain.batches import augment, masking
from pretrain.batches.dataset import Cut, StepDataset
from pretrain.engine import logs
from pretrain.images import parquet, values
from pretrain.images.decode import BadImage, LazyImage, decode
from pretrain.images.open import open_images
from pretrain.images.path_lists import Paths
from pretrain.images.source import InMemory
from tests.support.commands import SMALL

HEIGHT, WIDTH = 40, 56


def picture() -> np.ndarray:
    """Smooth, so that JPEG keeps it, and different in each corner."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([rows * 6, columns * 4, (rows + columns) * 2], axis=-1).astype(np.uint8)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """The slow way: what each orientation of TIFF 6.0 says of the stored row 0 and column 0."""
    found: np.ndarray = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }[orientation](array)
    return found


def turned(kind: str, orientation: int) -> tuple[bytes, int]:
    """A file of that kind with the orientation, and its channels."""
    stream, array = io.BytesIO(), picture()
    extra = [(274, "H", 1, orientation, True)]
    if kind == "tiff of 4":
        four = np.concatenate([array, array[:, :, :1]], axis=2)
        tifffile.imwrite(stream, four, photometric="rgb", extrasamples=["unspecified"], extratags=extra)
        return stream.getvalue(), 4
    if kind == "planes of 16":
        tifffile.imwrite(
            stream,
            (array.astype(np.uint16) * 257).transpose(2, 0, 1),
            photometric="rgb",
            planarconfig="separate",
            extratags=extra,
        )
        return stream.getvalue(), 3
    if kind == "pages":
        tifffile.imwrite(stream, array.transpose(2, 0, 1), photometric="minisblack", extratags=extra)
        return stream.getvalue(), 3
    if kind == "grey of 16":
        tifffile.imwrite(stream, array[:, :, 0].astype(np.uint16) * 257, extratags=extra)
        return stream.getvalue(), 1
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings: dict[str, dict[str, Any]] = {"webp": {"lossless": True}, "jpeg": {"quality": 100, "subsampling": 0}}
    options = settings.get(kind, {})
    Image.fromarray(array).save(stream, kind, exif=exif, **options)
    return stream.getvalue(), 3


KINDS = ("jpeg", "png", "webp", "tiff", "tiff of 4", "planes of 16", "pages", "grey of 16")


@pytest.mark.parametrize("kind", KINDS)
def test_a_turned_file_has_the_size_and_the_crops_of_the_upright_picture(kind: str) -> None:
    for orientation in range(1, 9):
        content, channels = turned(kind, orientation)
        whole = upright(picture(), orientation)
        opened = LazyImage(content, channels)
        assert (opened.height, opened.width) == whole.shape[:2], orientation
        draws = augment.draw(np.random.default_rng(orientation), augment.View(16, (0.5, 1.0), 0.0, 0.0), 20, 1)
        boxes = augment.boxes(draws, np.array([opened.width]), np.array([opened.height])).reshape(-1, 4)
        share = boxes[:, 2] * boxes[:, 3] / (HEIGHT * WIDTH)
        assert share.min() > 0.45 and share.max() <= 1, (orientation, share)
        pixels = opened.pixels()
        assert pixels.shape == (*whole.shape[:2], channels)
        levels = pixels.astype(float) * (1 if pixels.dtype == np.uint8 else 255)
        wanted = whole if channels == 3 else np.concatenate([whole, whole[:, :, :1]], axis=2)[:, :, :channels]
        for left, upper, width, height in [(0, 0, opened.width, opened.height), *boxes]:
            here = slice(upper, upper + height), slice(left, left + width)
            assert np.abs(levels[here] - wanted[here]).max() <= (4 if kind == "jpeg" else 0.51), orientation


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("layout", ["separate", "contig"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bit_are_those_that_tifffile_reads(
    order: Literal["<", ">"], layout: str, channels: int, tmp_path: Path
) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (20, 24, channels), dtype=np.uint16)
    stored = deep.transpose(2, 0, 1) if layout == "separate" else deep
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=layout, byteorder=order)
    pixels = decode((tmp_path / "a.tif").read_bytes(), channels)
    levels = pixels * (1.0 if pixels.dtype == np.uint8 else 255.0)
    assert np.abs(levels - deep / 257).max() <= 1.01


RANGES: dict[str, tuple[np.ndarray, tuple[float, float]]] = {
    "float to 255": (np.linspace(0, 255, 400, dtype=np.float32), (0, 255)),
    "reflectance": (np.linspace(0, 10000, 400, dtype=np.float32), (0, 10000)),
    "CT": (np.linspace(-1024, 3071, 400).astype(np.int16), (-1024, 3071)),
    "negative floats": (np.linspace(-2, 2, 400, dtype=np.float32), (-2, 2)),
    "doubles": (np.linspace(5, 900, 400), (5, 900)),
    "wide": (np.linspace(0, 1e6, 400).astype(np.int32), (0, 1e6)),
}
KEPT: dict[str, np.ndarray] = {
    "unit": np.linspace(0, 1, 400, dtype=np.float32),
    "12 bit": np.linspace(0, 4095, 400).astype(np.uint16),
    "16 bit": np.linspace(0, 65535, 400).astype(np.uint16),
    "positive": np.linspace(0, 30000, 400).astype(np.int16),
}


def written(folder: Path, values_: np.ndarray, channels: int, kind: str) -> str:
    folder.mkdir()
    array = values_.reshape(20, 20)
    for number in range(3):
        if kind == "npy":
            np.save(folder / f"{number}.npy", np.stack([array] * channels, axis=-1))
        else:
            stored = array if channels == 1 else np.stack([array] * channels, axis=-1)
            tifffile.imwrite(folder / f"{number}.tif", stored, photometric="minisblack" if channels == 1 else "rgb")
    return str(folder)


@pytest.mark.parametrize("kind", ["npy", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", RANGES)
def test_values_outside_their_type_are_refused_or_scaled(name: str, channels: int, kind: str, tmp_path: Path) -> None:
    array, (low, high) = RANGES[name][0], tuple(map(float, RANGES[name][1]))
    source = written(tmp_path / "a", array, channels, kind)
    images = open_images(source, None, channels)
    with pytest.raises(
        UserError, match=rf"hold .* from .* to .*: give .* such as --value-range {re.escape(f'{low:g} {high:g}')}"
    ):
        values.check(images, ())
    with pytest.raises(UserError, match="pretrain with --value-range"):
        values.refuse_others(images)
    assert "begin another run" in values.check(images, (), begun=True)[0]
    ranged = open_images(source, None, channels, (low, high))
    values.refuse_others(ranged)
    (line,) = values.check(ranged, (low, high))
    assert f"scaled from {low:g} to {high:g}" in line
    pixels = ranged[1]
    levels = pixels / (255 if pixels.dtype == np.uint8 else 1)
    wanted = (array.reshape(20, 20, 1).astype(float) - low) / (high - low)
    assert np.abs(levels - wanted).max() < (0.51 / 255 if pixels.dtype == np.uint8 else 1e-5)


@pytest.mark.parametrize("name", KEPT)
def test_values_that_keep_to_their_type_are_as_before(name: str, tmp_path: Path) -> None:
    images = open_images(written(tmp_path / "a", KEPT[name], 1, "npy"), None, 1)
    (line,) = values.check(images, ())
    assert ("would use all levels" in line) == (name == "12 bit")
    whole = KEPT[name].dtype.kind in "ui"
    assert np.allclose(images[0].ravel(), KEPT[name] / (65535 if whole else 1), atol=1e-6)


def test_eight_bit_has_no_range_and_a_checkpoint_keeps_its_own() -> None:
    images = open_images("sample")
    assert values.check(images, ()) == []
    with pytest.raises(UserError, match="leave it out"):
        values.check(images, (0.0, 9.0))
    shape = shape_of("vit_tiny", 16, 32)
    assert stored_architecture({k: v for k, v in shape._asdict().items() if k != "value_range"}, "a").value_range == ()
    ranged = shape._replace(value_range=(-1024.0, 3071.0))
    assert stored_architecture(ranged._asdict(), "a") == ranged
    for wrong in ((3.0, 1.0), (1.0,), (1.0, float("nan")), "ab"):
        with pytest.raises(UserError, match="value_range"):
            stored_architecture(shape._replace(value_range=wrong)._asdict(), "a")  # type: ignore[arg-type]


MANY = 200_000


def test_a_path_costs_its_length_and_any_name_is_kept() -> None:
    names = ["a", "", "b" * 3900, "\udcff.jpg", "\u00e4/\u6f22", "x\ty"]
    paths = Paths(names)
    assert list(paths) == names and paths[-1] == names[-1] and len(paths) == 6
    with pytest.raises(IndexError):
        paths[6]
    long = ["n" * 3900] + [f"class/{number:06d}.jpg" for number in range(MANY)]
    tracemalloc.start()
    paths = Paths(iter(long))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 30 * MANY and peak < 80 * MANY and paths[MANY] == long[MANY]  # fixed width: 15,600 each


def test_opening_a_long_list_is_bounded(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    lines = "".join(f"{'no-such-file-' if number % 7 else ''}{number % 7}.png\tc{number % 12}\n" for number in range(MANY))
    (tmp_path / "list.tsv").write_text(lines + "n" * 3000 + "\tc3\n")
    tracemalloc.start()
    images = open_images(str(tmp_path / "list.tsv"))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(images) == MANY + 1 and images.classes == sorted(f"c{n}" for n in range(12)) and images.labels is not None
    assert [images.classes[n] for n in images.labels[[0, 1, 11, -1]]] == ["c0", "c1", "c11", "c3"]
    assert held < 150 * MANY and peak < 400 * MANY


def rows(path: Path, count: int, group: int, labels: np.ndarray | None = None) -> None:
    content = [{"bytes": b"%08d" % number, "path": None} for number in range(count)]
    columns = {"image": content} | ({} if labels is None else {"label": labels})
    pq.write_table(pa.table(columns), path, row_group_size=group)


def test_parquet_is_read_a_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows(tmp_path / "a.parquet", MANY, 1000)
    images = open_images(str(tmp_path / "a.parquet"))
    groups: Any = images._rows  # type: ignore[attr-defined]
    assert len(images) == MANY and groups.reads == 0
    assert (images.content(123_456), images.content(123_457), groups.reads) == (b"00123456", b"00123457", 1)
    images.fingerprint()
    assert groups.reads == 1  # the files' state stands for their bytes
    monkeypatch.setattr(parquet, "MOST_HELD", groups.size // 20)
    order = images.order(np.random.default_rng(0))
    assert sorted(order) == list(range(MANY)) and np.abs(np.diff(order)).mean() > 100
    for index in order[:20_000]:
        assert images.content(int(index)) == b"%08d" % index
    assert len(groups._held) <= 10 and groups.reads < 60  # a plain permutation reads about 19,000 times


@pytest.mark.parametrize("labels", [[0, 1, 2, 1], [0, 5, 7, 5], [3, 2_000_000_000, 7, 3], [2**40, 0, 1, 2]])
def test_large_labels_are_numbered_and_small_ones_kept(labels: list[int], tmp_path: Path) -> None:
    rows(tmp_path / "a.parquet", 4, 2, np.array(labels))
    images = open_images(str(tmp_path / "a.parquet"))
    assert images.labels is not None and [images.classes[n] for n in images.labels] == [str(label) for label in labels]
    assert len(images.classes) == (max(labels) + 1 if max(labels) < 2**16 else len(set(labels)))


def test_a_group_that_cannot_be_read_is_its_images_fault(tmp_path: Path) -> None:
    rows(tmp_path / "a.parquet", 40, 10)
    images = open_images(str(tmp_path / "a.parquet"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadImage, match="its rows cannot be read"):
        images.open(3)
    assert images.where(3).endswith("row 3")


def test_bad_images_that_lie_together_are_read_once() -> None:
    class Counted(InMemory):
        opened = 0

        def content(self, index: int) -> Any:
            Counted.opened += 1
            return super().content(index)

    good = np.zeros((20, 20, 3), np.uint8)
    images = Counted("held", [b"no image" if 20 <= n < 80 else good for n in range(100)])
    view = augment.View(16, (0.5, 1.0), 0.0, 0.0)
    views = augment.MultiCrop((view, view), view, 0)
    steps = StepDataset(images, views, masking.MaskSettings((0.0,), (0.0,), "rand"), (1, 1), 10, 0, most_bad=60)
    again = [{bad.number for bad in steps[step].bad} for step in range(10)]
    assert set.union(*again) == set(range(20, 80)) and Counted.opened <= 60 + 100
    with pytest.raises(WorkError, match="more than --max-bad 5"):
        StepDataset(images, views, masking.MaskSettings((0.0,), (0.0,), "rand"), (1, 1), 100, 0, most_bad=5)[0]


def test_a_long_log_is_sampled_with_all_that_is_rare(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(MANY):
            more = '"alarm": "x"' if step % 50_000 == 7 else '"loss": 1.5, "lr": 0.1'
            file.write(f'{{"step": {step}, {more}}}\n')
        file.write('{"step": 99')
    tracemalloc.start()
    found = logs.sampled(path, 1000)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000 and len(found) <= 1005 + 1
    assert [line.value["step"] for line in found if "alarm" in line.value] == [7, 50_007, 100_007, 150_007]
    steps = [line.value["step"] for line in found]
    assert steps == sorted(steps) and (steps[0], steps[-1]) == (0, MANY - 1) and max(np.diff(steps)) < MANY / 400
    assert all(line.number == line.value["step"] + 1 for line in found) and held < peak
    assert len(logs.sampled(path, MANY)) == MANY
    path.write_text('{"step": 1}\n{"step": 2}')
    assert [line.value["step"] for line in logs.sampled(path)] == [1, 2]


def test_images_of_8_bit_and_floats_in_one_batch_are_the_same_brightness() -> None:
    images = InMemory("held", [np.full((20, 20, 3), 128, np.uint8), np.full((20, 20, 3), 128 / 255, np.float32)])
    view = augment.View(16, (0.5, 1.0), 0.0, 0.0)
    steps = StepDataset(images, augment.MultiCrop((view,), view, 0), masking.MaskSettings((0.0,), (0.0,), "rand"), (1, 1), 2, 0)
    steps.make_crops = False
    batch = steps[0]
    assert isinstance(batch, Cut) and (batch.crops - 128 / 255).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["npy", "tif"])
@pytest.mark.parametrize(("value", "dtype"), [(3e38, "float32"), (-3e38, "float32"), (2e6, "float32"), (1e300, "float64")])
def test_an_image_near_the_limits_of_its_type_is_bad_and_named(
    value: float, dtype: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 its batch was not finite: a refused step without a name, again in every epoch."""
    generator = np.random.default_rng(0)
    for number in range(40):
        pixels = generator.random((24, 24, 3)).astype(dtype)
        if number == 9:  # not one of those that are looked at before the first step
            pixels[3, 4] = value
        path = tmp_path / "data" / f"{number:02}.{kind}"
        path.parent.mkdir(exist_ok=True)
        np.save(path, pixels) if kind == "npy" else tifffile.imwrite(path, pixels, photometric="rgb")
    flags = [*SMALL, "--knn-every", "0", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert run_command(train.main, flags) == DONE
    said = capsys.readouterr().out
    assert f"09.{kind}" in said and "far outside 0 to 1" in said
    assert all(
        json.loads(line).get("skipped_steps", 0) == 0 for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    )


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint32", "float32", "uint16"])
def test_a_value_range_keeps_what_its_type_can_tell_apart(dtype: str) -> None:
    """Large numbers that differ little: in float32 they would be one."""
    low = 60_000 if dtype == "uint16" else 8_000_000 if dtype == "float32" else 2_000_000_000
    levels = values.to_unit(np.arange(low, low + 5).astype(dtype), (float(low), float(low + 4)))
    assert levels.dtype == np.float32 and levels.tolist() == [0, 0.25, 0.5, 0.75, 1]
