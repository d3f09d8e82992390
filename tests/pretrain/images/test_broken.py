"""Files that are no images, or no longer: skipped, replaced, counted and named, and never half used."""

import hashlib
import io
import json
import os
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.cli import DONE, FAILED, INTERRUPTED, WorkError, run_command
from pretrain import train
from pretrain.batches import augment, masking
from pretrain.batches.dataset import StepDataset
from pretrain.batches.loader import Loader
from pretrain.engine.guard import Guard
from pretrain.images.decode import BadImage, decode
from pretrain.images.open import open_images
from tests.support.commands import SMALL
from tests.support.pictures import encoded, noise, photographs

PICTURE = Image.fromarray(photographs()[1][100:164, 200:280])


def png_chunk(kind: bytes, content: bytes, *, right: bool = True) -> bytes:
    crc = zlib.crc32(kind + content) ^ (0 if right else 1)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png_of(width: int, height: int, data: bytes, *, right: bool = True) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(data), right=right)
        + png_chunk(b"IEND", b"")
    )


def numpy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def broken_files() -> dict[str, bytes]:
    """Sixty-odd files that must be refused, by name."""
    files = {}
    whole = {kind: encoded(PICTURE, kind) for kind in ("jpeg", "png", "webp", "bmp")}
    whole["tiff"] = encoded(PICTURE, "tiff", compression="tiff_lzw")
    whole["gif"] = encoded(PICTURE, "gif")
    for kind, content in whole.items():
        for tenth in range(1, 10):
            files[f"cut-at-{tenth}-tenths.{kind}"] = content[: len(content) * tenth // 10]
    jpeg, rows = whole["jpeg"], b"\0" * (64 * (80 * 3 + 1))
    start = jpeg.index(b"\xff\xc0")
    huge = jpeg[: start + 5] + struct.pack(">HH", 65500, 65500) + jpeg[start + 9 :]
    return files | {
        "empty.jpg": b"",
        "text.jpg": b"This is no image.\n" * 50,
        "page.png": b"<!DOCTYPE html><html><body>404</body></html>",
        "drawing.jpg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "zeros.png": b"\0" * 4096,
        "noise.jpg": np.random.default_rng(0).bytes(4096),
        "start-only.jpg": jpeg[:2],
        "signature-only.png": whole["png"][:8],
        "archive.jpg": b"PK\x03\x04" + b"\0" * 100,
        "wrong-crc.png": png_of(80, 64, rows, right=False),
        "wrong-data.png": png_of(80, 64, rows)[:60] + b"\xff" * 20 + png_of(80, 64, rows)[80:],
        "too-little-data.png": png_of(80, 64, rows[:1000]),
        "no-width.png": png_of(0, 64, rows),
        "bomb.png": png_of(50_000, 50_000, b"\0" * 100),
        "smaller-bomb.png": png_of(12_000, 12_000, b"\0" * 100),
        "bomb.jpg": huge,
        "bomb.bmp": whole["bmp"][:18] + struct.pack("<ii", 60_000, 60_000) + whole["bmp"][26:],
        "no-frame.jpg": jpeg[:start] + jpeg[start + 19 :],
        "pickle.npy": numpy_bytes(np.array([{"a": 1}], dtype=object)),
        "short.npy": numpy_bytes(np.zeros((20, 20, 3), np.uint8))[:-10],
        "promise.npy": numpy_bytes(np.zeros((20, 20, 3), np.uint8)).replace(b"(20, 20, 3)", b"(99999,99999,3)"[:11].ljust(11)),
        "flat.npy": numpy_bytes(np.zeros(100, np.uint8)),
        "nan.npy": numpy_bytes(np.full((20, 20, 3), np.nan, np.float32)),
        "words.npy": numpy_bytes(np.full((20, 20, 3), "x")),
    }


def odd_but_good_files() -> dict[str, bytes]:
    """Files with a fault that leaves the pixels whole."""
    exif = Image.Exif()
    exif[0x0112] = 6
    right = encoded(PICTURE, "jpeg", exif=exif)
    return {
        "broken-exif.jpg": right.replace(b"Exif\0\0II*\0", b"Exif\0\0XX*\1").replace(b"Exif\0\0MM\0*", b"Exif\0\0XX\1*"),
        "broken-profile.png": encoded(PICTURE, "png", icc_profile=b"not a profile"),
        "surplus.jpg": encoded(PICTURE, "jpeg") + b"surplus bytes",
        "wrong-suffix.jpg": encoded(PICTURE, "png"),
    }


def test_there_are_sixty_kinds_and_each_is_refused_with_a_reason() -> None:
    files = broken_files()
    assert len(files) >= 60
    for name, content in files.items():
        with pytest.raises(BadImage) as caught:
            decode(content)
        assert 2 < len(str(caught.value)) < 300, name


def test_a_fault_beside_the_pixels_does_not_matter() -> None:
    for name, content in odd_but_good_files().items():
        pixels = decode(content)
        assert pixels.shape == (64, 80, 3), name
        assert np.abs(pixels.astype(int) - np.asarray(PICTURE)).mean() < 8, name


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


class Recording(StepDataset):
    """Writes down the pixels that crops are cut from, in whichever process."""

    record = Path()

    def _decode_one(self, *how: Any) -> tuple[np.ndarray, np.ndarray]:
        pixels, box = super()._decode_one(*how)
        with self.record.open("a") as file:
            file.write(digest(pixels) + "\n")
        return pixels, box


def test_sixty_kinds_among_two_thousand_good_ones_end_an_epoch(tmp_path: Path) -> None:
    broken, odd, good = broken_files(), odd_but_good_files(), 2000
    content = {**broken, **odd} | {f"{number}.png": encoded(image) for number, image in enumerate(noise(good, 4))}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    images = open_images(str(tmp_path))
    view = augment.View(32, (0.5, 1.0), 0.0, 0.0)  # too large for anything to be decoded small
    views, masks = augment.MultiCrop((view,), view, 1), masking.MaskSettings((0.0,), (0.0,), "rand")
    batch_size = max(size for size in range(1, 64) if len(images) % size == 0)  # an epoch leaves none out
    steps = Recording(images, views, masks, (1, 1), batch_size, 0, most_bad=100, make_crops=False)
    steps.record = tmp_path / "record"
    bad = []
    for batch in Loader(steps, 0, steps.steps_per_epoch, 2, torch.device("cpu")).made():
        bad += batch.bad
    seen = steps.record.read_text().splitlines()
    assert {Path(one.name).name for one in bad} == set(broken)
    assert len(seen) == len(images) == len(content)
    wanted = {digest(decode(data)) for name, data in content.items() if name not in broken}
    assert set(seen) == wanted  # every good one, and nothing that was half decoded


def folder_with(path: Path, good: int, bad: int) -> Path:
    path.mkdir()
    for number, image in enumerate(noise(good, 32)):
        image.save(path / f"good-{number:03d}.png")
    for number in range(bad):
        (path / f"bad-{number:03d}.jpg").write_bytes(b"no image")
    return path


def test_a_run_names_and_counts_what_it_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_with(tmp_path / "data", 29, 3)
    flags = [*SMALL, "--data", str(data), "--epochs", "2", "--out", str(tmp_path / "run"), "--workers", "1"]
    assert run_command(train.main, flags) == DONE
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    named = [line for line in lines if "bad_image" in line]
    assert {line["bad_image"] for line in named} == {str(data / f"bad-{number:03d}.jpg") for number in range(3)}
    assert len(named) == 3 and all(line["reason"] == "no image" for line in named)
    assert [line["bad_images"] for line in lines if "loss" in line][-1] == 3
    shown = capsys.readouterr().out
    assert shown.count("skipped") == 3 and "images that could not be used" in shown


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize(("bad", "flags"), [(25, []), (5, ["--max-bad", "4"]), (30, ["--max-bad", "0"])])
def test_too_many_bad_images_stop_the_run_with_a_list(
    workers: str, bad: int, flags: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = folder_with(tmp_path / "data", 23, bad)
    out = ["--out", str(tmp_path / "run"), "--workers", workers]
    assert run_command(train.main, [*SMALL, "--data", str(data), "--epochs", "3", *out, *flags]) == FAILED
    complained = capfd.readouterr().err
    limit = flags[1] if flags else "20"
    assert complained.startswith("failed: ") and f"more than --max-bad {limit}" in complained and "Traceback" not in complained
    listed = [line for line in complained.splitlines() if line.endswith(": no image")]
    assert len(listed) == min(10, int(limit) + 1) or int(limit) < len(listed) <= 10


def test_the_count_goes_on_when_a_run_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder_with(tmp_path / "data", 29, 3)
    flags = [*SMALL, "--data", str(data), "--epochs", "3", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(Guard, "accepts", stop_at(4))
        assert run_command(train.main, flags) == INTERRUPTED
    assert run_command(train.main, flags) == DONE
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "bad_image" in line]) == 3
    assert [line["bad_images"] for line in lines if "loss" in line][-1] == 3


def stop_at(step: int) -> Callable[..., Any]:
    """Ctrl-C after so many steps."""
    accepts, calls = Guard.accepts, []

    def counted(self: Guard, losses: Any, lengths: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return accepts(self, losses, lengths)

    return counted


def test_nothing_but_bad_images_is_an_error_and_not_an_endless_search(tmp_path: Path) -> None:
    data = folder_with(tmp_path / "data", 0, 50)
    view = augment.View(8, (0.5, 1.0), 0.0, 0.0)
    masks = masking.MaskSettings((0.0,), (0.0,), "rand")
    steps = StepDataset(open_images(str(data)), augment.MultiCrop((view,), view, 1), masks, (1, 1), 8, 0)
    with pytest.raises(WorkError, match="21 images could not be used, more than --max-bad 20"):
        steps[0]
