"""Clips of a folder: frames of any format and any name, what is not used is said, what does not fit together is one sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from checkpoints.cli import DONE, WRONG_COMMAND, UserError, run_command
from probes.video import __main__ as video
from probes.video import davis
from probes.video.scores import score_clip
from tests.support import networks

FORMATS = ["jpg", "JPG", "jpeg", "png", "PNG", "webp", "bmp", "tif", "gif", "ppm"]
NAMES = ["dogs", "a[1]", "a[bc]*", "what?", "two words", "übung", "**", "{a,b}"]


def draw(folder: Path, name: str, frames: int = 5, suffix: str = "jpg", pattern: str = "{:05d}") -> None:
    """A clip whose square moves; frame n has the brightness 20 n, the mask object 1."""
    for number in range(frames):
        mask = np.zeros((32, 48), dtype=np.uint8)
        mask[4:20, 4 + number : 20 + number] = 1
        image = np.full((32, 48, 3), 20 * number, dtype=np.uint8) + 90 * mask[:, :, None]
        for root, kind, pixels in ((davis.IMAGES, suffix, image), (davis.MASKS, "png", mask)):
            path = folder / root / name / f"{pattern.format(number)}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    text = folder / davis.LIST
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text((text.read_text() if text.exists() else "") + f"{name}\n")


def brightness(clip: davis.Clip) -> list[int]:
    return [round(float(davis.read_frame(frame)[-1, -1].mean()) / 20) for frame in clip.frames]


@pytest.mark.parametrize("suffix", FORMATS)
def test_frames_are_pictures_of_any_format(suffix: str, tmp_path: Path) -> None:
    """On 46c01a2 a clip of anything but .jpg had 0 frames."""
    draw(tmp_path, "clip", suffix=suffix)
    (clip,) = davis.open_clips(str(tmp_path), None)
    assert brightness(clip) == [0, 1, 2, 3, 4] and len(clip.masks) == 5


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_has_any_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 46c01a2 a name of two words was two clips."""
    draw(tmp_path, name)
    (clip,) = davis.open_clips(str(tmp_path), None)
    assert clip.name == name and brightness(clip) == [0, 1, 2, 3, 4]
    assert f"{tmp_path}: 5 frames in 1 clips, 0 ignored" in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["{}", "frame{}", "f{:03d}_left", "a7-{}"])
def test_frames_follow_the_numbers_in_their_names(pattern: str, tmp_path: Path) -> None:
    """On 46c01a2 frame 10 came before frame 2."""
    draw(tmp_path, "clip", frames=12, pattern=pattern)
    (clip,) = davis.open_clips(str(tmp_path), None)
    assert brightness(clip) == [*range(12)]
    assert [Path(str(mask)).stem for mask in clip.masks] == [Path(str(frame)).stem for frame in clip.frames]


def beside(folder: Path) -> None:
    clip, masks = folder / davis.IMAGES / "clip", folder / davis.MASKS / "clip"
    (clip / "._00000.jpg").write_bytes(b"x")
    (clip / "old.avif").write_bytes(b"x")
    (clip / "notes.txt").write_text("x")
    (clip / "00000.txt").write_text("x")
    (clip / "thumbs").mkdir()
    (masks / "overview.jpg").write_bytes((clip / "00000.jpg").read_bytes())


def test_what_is_not_used_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path, "clip")
    beside(tmp_path)
    (clip,) = davis.open_clips(str(tmp_path), None)
    said = capsys.readouterr().out
    assert len(clip.frames) == 5 and "5 frames in 1 clips, 3 ignored (" in said
    for words in (
        "1 hidden (clip/._00000.jpg)",
        "format that is not read, .avif",
        "no .png, which masks are (clip/overview.jpg)",
    ):
        assert words in said
    assert "thumbs is a folder in a clip, and not used" in said and "neither frames nor masks: 2 .txt" in said


def resize(path: Path, width: int, height: int) -> None:
    Image.open(path).resize((width, height)).save(path)


def without_a_frame(clip: Path, masks: Path, _: Path) -> None:
    (clip / "00002.jpg").unlink()
    (masks / "00002.png").unlink()


def of_another_size(clip: Path, masks: Path, _: Path) -> None:
    resize(clip / "00002.jpg", 24, 16)
    resize(masks / "00002.png", 24, 16)


def a_device(clip: Path, *_: Path) -> None:
    (clip / "00004.jpg").unlink()
    (clip / "00004.jpg").symlink_to("/dev/zero")


def without_objects(_: Path, masks: Path, __: Path) -> None:
    for mask in masks.iterdir():
        Image.fromarray(np.full((32, 48), 255, dtype=np.uint8)).save(mask)


SPOILT: dict[str, tuple[Callable[[Path, Path, Path], object], str]] = {
    "a frame is missing": (without_a_frame, r"00003.jpg is 2 after the frame before it, others are 1: one is missing"),
    "a frame is missing, its mask is there": (
        lambda clip, masks, names: (clip / "00004.jpg").unlink(),
        r"1 masks of clip have no frame in .*clip, the first is .*00004.png",
    ),
    "a mask is missing": (
        lambda clip, masks, names: (masks / "00002.png").unlink(),
        r"1 masks of clip are missing, the first is .*00002.png",
    ),
    "a frame is there twice": (
        lambda clip, masks, names: Image.open(clip / "00002.jpg").save(clip / "00002.png"),
        r"00002.jpg and 00002.png beside it would be one frame",
    ),
    "a mask of another size": (
        lambda clip, masks, names: resize(masks / "00002.png", 24, 16),
        r"00002.png has 24 x 16 pixels and its frame .*00002.jpg 48 x 32",
    ),
    "a frame and its mask of another size": (
        of_another_size,
        r"00002.jpg has 24 x 16 pixels, the first frame of its clip 48 x 32",
    ),
    "a frame is broken": (
        lambda clip, masks, names: (clip / "00002.jpg").write_bytes(b"\xff\xd8\xff nothing else"),
        r"00002.jpg cannot be used",
    ),
    "a mask is broken": (
        lambda clip, masks, names: (masks / "00002.png").write_bytes(b"\x89PNG\r\n\x1a\n"),
        r"00002.png cannot be used",
    ),
    "a frame is a device": (a_device, r"1 masks of clip have no frame"),
    "a clip is listed twice": (lambda clip, masks, names: names.write_text("clip\nclip\n"), r"names 'clip' twice"),
    "the list leads out": (lambda clip, masks, names: names.write_text("../480p/clip\n/etc\n"), r"does not lie in"),
    "the list is empty": (lambda clip, masks, names: names.write_text("\n\n"), r"names no clips"),
    "no objects": (without_objects, r"no clip has an object in its first frame"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_does_not_fit_together_is_one_sentence_before_any_work(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 a missing frame was passed over, a mask of another size a traceback after the whole clip."""
    draw(tmp_path / "davis", "clip")
    act, words_of = SPOILT[what]
    act(*(tmp_path / "davis" / part for part in (davis.IMAGES / "clip", davis.MASKS / "clip", davis.LIST)))
    checkpoint = networks.write(tmp_path / "tiny.safetensors")
    words = ["--ckpt", str(checkpoint), "--data", str(tmp_path / "davis"), "--size", "64", "--out", str(tmp_path / "out.json")]
    assert run_command(video.main, words) == WRONG_COMMAND
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("error: ")
    with pytest.raises(UserError, match=words_of):
        davis.open_clips(str(tmp_path / "davis"), None)
    assert not (tmp_path / "out.json").exists()


def test_every_fifth_frame_is_no_gap(tmp_path: Path) -> None:
    draw(tmp_path, "clip", frames=4)
    for root, suffix in ((davis.IMAGES, "jpg"), (davis.MASKS, "png")):
        for number in (3, 2, 1):
            path = tmp_path / root / "clip" / f"{number:05d}.{suffix}"
            path.rename(path.with_stem(f"{5 * number:05d}"))
    (clip,) = davis.open_clips(str(tmp_path), None)
    assert brightness(clip) == [0, 1, 2, 3]


def test_a_clip_without_an_object_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 46c01a2 it was counted among the images of the record."""
    draw(tmp_path / "davis", "clip")
    draw(tmp_path / "davis", "void")
    for mask in (tmp_path / "davis" / davis.MASKS / "void").iterdir():
        Image.fromarray(np.zeros((32, 48), dtype=np.uint8)).save(mask)
    words = ["--ckpt", str(networks.write(tmp_path / "tiny.safetensors")), "--data", str(tmp_path / "davis"), "--size", "64"]
    assert run_command(video.main, [*words, "--out", str(tmp_path / "out.json")]) == DONE
    assert "1 clips have no object in their first frame and do not count, void first" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["data"]["val_images"] == 1


def test_numbers_of_objects_may_have_gaps() -> None:
    """On 46c01a2 an object 2 between 1 and 3 that nobody has drawn was right in every frame."""
    true = np.zeros((5, 20, 20), dtype=np.uint8)
    true[:, 2:6, 2:6], true[:, 10:14, 10:14] = 1, 3
    scores = score_clip(np.zeros_like(true), true)
    assert len(scores) == 2 and all(one.region.mean == 0.0 for one in scores)
