"""Label propagation and DAVIS' scores, against formulas written out and small cases reckoned by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from pretrain.sample import clips
from probes.video import __main__ as video
from probes.video import davis, propagate
from probes.video import scores as video_scores
from tests.support import networks, records


def square(top: int, left: int, side: int, size: tuple[int, int] = (20, 20)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_j_is_the_share_of_the_union_that_both_have() -> None:
    """Two 4 x 4 squares, one row apart: 12 pixels in common, 20 in all."""
    assert video_scores.region_similarity(square(5, 5, 4), square(6, 5, 4)) == 12 / 20
    nothing = np.zeros((20, 20), dtype=bool)
    assert video_scores.region_similarity(nothing, nothing) == 1.0
    assert video_scores.region_similarity(nothing, square(5, 5, 4)) == 0.0


def test_a_boundary_lies_before_the_change_and_the_pictures_edge_is_none() -> None:
    """A 2 x 2 square: the eight pixels left of, above and inside it whose right, lower or lower right neighbour differs."""
    drawn = ["......", ".BBB..", ".B#B..", ".BBB..", "......"]
    mask = square(2, 2, 2, (5, 6))
    edge = video_scores.boundary(mask)
    expected = np.zeros((5, 6), dtype=bool)
    expected[1:4, 1:4] = True
    expected[2, 2] = False
    assert [list(row).count("B") for row in drawn] == expected.sum(axis=1).tolist()
    assert np.array_equal(edge, expected)
    assert not video_scores.boundary(np.ones((5, 6), dtype=bool)).any()


def slow_f(said: np.ndarray, true: np.ndarray, reach: float) -> float:
    """Every pixel of each boundary against every pixel of the other."""
    places = [np.argwhere(video_scores.boundary(mask)) for mask in (said, true)]
    near = [
        np.mean([min(np.hypot(*(place - other)) for other in others) <= reach for place in own])
        for own, others in (places, places[::-1])
    ]
    return 2 * near[0] * near[1] / (near[0] + near[1]) if sum(near) else 0.0


def test_f_equals_all_distances_written_out() -> None:
    """60 x 80 pixels have a diagonal of 100: a tolerance of one pixel."""
    generator = np.random.default_rng(0)
    for _ in range(5):
        (top, left, side), other = (generator.integers((5, 5, 8), (25, 25, 30)).tolist() for _ in range(2))
        said, true = square(top, left, side, (60, 80)), square(other[0], other[1], other[2], (60, 80))
        assert_close(video_scores.boundary_measure(said, true), float(slow_f(said, true, 1.0)))
    one_off = video_scores.boundary_measure(square(10, 10, 20, (60, 80)), square(11, 10, 20, (60, 80)))
    two_off = video_scores.boundary_measure(square(10, 10, 20, (60, 80)), square(12, 10, 20, (60, 80)))
    assert one_off == 1.0 and 0.4 < two_off < 0.9
    nothing = np.zeros((60, 80), dtype=bool)
    assert video_scores.boundary_measure(nothing, nothing) == 1.0
    assert video_scores.boundary_measure(nothing, square(1, 1, 9, (60, 80))) == 0.0


def test_a_clips_scores_leave_out_its_first_and_last_frame_and_unknown_pixels() -> None:
    """Of frames 1, 2, 3 of five, J is 1, 1/2 and 0; frames 0 and 4 are wrong and do not count."""
    true = np.zeros((5, 20, 20), dtype=np.uint8)
    true[:, 4:8, 4:8] = 1
    true[2, 12:15] = video_scores.VOID
    said = np.zeros_like(true)
    said[1, 4:8, 4:8] = said[2, 4:6, 4:8] = said[3, 15:18, 15:18] = 1
    said[2, 12:15] = 1
    (scores,) = video_scores.score_clip(said, true)
    assert_close(scores.region.mean, 0.5)
    assert_close(scores.region.recall, 1 / 3)  # a half is not above a half
    assert_close(scores.region.decay, 1.0 - 0.25)  # frames overlap where there are fewer than four
    numbers = video_scores.summary([scores, scores])
    assert_close(numbers["j_m"], 50.0)
    assert_close(numbers["jf_m"], (numbers["j_m"] + numbers["f_m"]) / 2)


def test_labels_are_carried_as_the_affinity_matrix_written_out_says() -> None:
    """The original's way: exp(cosine / 0.1), zero outside the neighbourhood, all but the top five zeroed, columns to sum one."""
    generator = torch.Generator().manual_seed(0)
    rows, columns, frames, objects = 5, 6, 3, 3
    n = rows * columns
    source = torch.nn.functional.normalize(torch.randn(frames, n, 8, generator=generator), dim=2)
    query = torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1)
    labels = torch.rand(frames, n, objects, generator=generator)
    expected = torch.zeros(n, objects)
    for place in range(n):
        weights = torch.zeros(frames, n)
        for frame in range(frames):
            for other in range(n):
                apart = max(abs(place // columns - other // columns), abs(place % columns - other % columns))
                if apart <= 2:
                    weights[frame, other] = torch.exp(query[place] @ source[frame, other] / 0.1)
        weights[weights < weights.flatten().topk(5).values[-1]] = 0
        expected[place] = ((weights / weights.sum())[..., None] * labels).sum(dim=(0, 1))
    found = propagate.carry(query, source, labels, (rows, columns), propagate.Protocol(0, 2, 2, 5))
    assert_close(found, expected)


def test_the_context_is_the_first_frame_and_the_last_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame is one patch that equals exactly one earlier frame: it takes that one's label where it is still looked at."""
    frames = [torch.eye(4)[number][None] for number in (0, 1, 2, 3, 1, 0)]
    mask = np.array([[1]], dtype=np.uint8)
    followed = list(propagate.follow(iter(frames), mask, (1, 1), propagate.Protocol(1, 1, 1, 1)))
    assert len(followed) == 5 and all(torch.equal(labels, torch.tensor([[0.0, 1.0]])) for labels in followed)
    seen: list[int] = []
    original = propagate.carry

    def counted(query: Any, sources: Any, *rest: Any) -> Any:
        seen.append(len(sources))
        return original(query, sources, *rest)

    monkeypatch.setattr(propagate, "carry", counted)
    list(propagate.follow(iter(frames), mask, (1, 1), propagate.Protocol(1, 2, 1, 1)))
    assert seen == [1, 2, 3, 3, 3]


def test_frames_have_480_pixels_and_a_longer_side_of_a_multiple_of_64() -> None:
    assert propagate.frame_size(480, 854, 480, 16) == (480, 832)
    assert propagate.frame_size(1080, 1920, 480, 8) == (480, 832)
    assert propagate.frame_size(1920, 1080, 480, 16) == (832, 480)
    assert propagate.frame_size(480, 854, 480, 14) == (476, 840)


def test_the_highest_label_wins_after_each_has_been_stretched_to_one() -> None:
    """The background is everywhere at 0.6 or more, the object at most 0.4: stretched, the object has its own place."""
    labels = torch.tensor([[1.0, 0.0], [0.6, 0.4], [1.0, 0.0], [1.0, 0.0]])
    said = propagate.decide(labels, (2, 2), 8, (16, 16))
    assert said.shape == (16, 16) and said[2, 13] == 1 and said[13, 2] == 0


def test_clips_move_and_their_masks_are_what_was_drawn() -> None:
    clip, again = clips.draw(3), clips.draw(3)
    assert np.array_equal(clip.frames, again.frames) and not np.array_equal(clip.frames[0], clip.frames[-1])
    assert clip.masks.max() >= 1 and not np.array_equal(clip.masks[0], clip.masks[-1])
    for number in range(1, int(clip.masks[0].max()) + 1):
        assert (clip.masks[0] == number).mean() >= clips.LEAST_VISIBLE
    other = clip.frames[0][clip.masks[0] == 0].astype(float).std(axis=0).mean()
    assert (
        clip.frames[0][clip.masks[0] == 1].astype(float).std(axis=0).mean() > other
    )  # things have contrast, the background has little


def test_the_command_reads_the_layout_of_davis_and_writes_a_record_and_masks(tmp_path: Path) -> None:
    clips.write_davis(tmp_path / "davis", count=2, size=64)
    checkpoint = networks.write(tmp_path / "run" / "backbone.safetensors")
    flags = ["--ckpt", str(checkpoint), "--data", str(tmp_path / "davis"), "--size", "64", "--limit", "2"]
    assert run_command(video.main, [*flags, "--baselines", "--masks", str(tmp_path / "masks")]) == DONE
    record = json.loads(records.only(tmp_path / "run" / "results", "video").read_text())
    assert record["table"] == "T16_retrieval_vos" and record["data"]["val_images"] == 2
    assert {"jf_m", "j_m", "f_m", "kept_j_m", "untrained_f_m"} <= record["metrics"].keys()
    clip = davis.open_clips(str(tmp_path / "davis"), 1)[0]
    written = [davis.read_mask(tmp_path / "masks" / clip.name / f"{frame:05d}.png") for frame in range(len(clip.frames))]
    assert np.array_equal(written[0], davis.read_mask(clip.masks[0])) and written[-1].shape == written[0].shape
    assert np.array_equal(np.stack(written), video.segment(networks.backbone(), clip, propagate.Protocol(64, 7, 12, 5)))


def test_what_is_missing_of_davis_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, checkpoint = tmp_path / "davis", networks.write(tmp_path / "backbone.safetensors")
    flags = ["--ckpt", str(checkpoint), "--data", str(root)]
    clips.write_davis(root, count=1, size=32)

    def refused(said: str) -> None:
        assert run_command(video.main, flags) == WRONG_COMMAND
        assert said in capsys.readouterr().err

    mask = next((root / "Annotations/480p/clip_000").iterdir())
    mask.unlink()
    refused(f"1 masks of clip_000 are missing, the first is {mask}")
    Image.new("RGB", (32, 32)).save(mask)
    refused("has colours (RGB), not numbers of objects")
    (root / "ImageSets/2017/val.txt").write_text("clip_000\nclip_007\n")
    refused("clip_007 has 0 frames")
    (root / "ImageSets/2017/val.txt").unlink()
    refused("has no ImageSets/2017/val.txt")
    assert run_command(video.main, ["--ckpt", str(checkpoint), "--top-k", "0"]) == WRONG_COMMAND
    assert run_command(video.main, ["--ckpt", str(checkpoint), "--size", "48", "--limit", "1"]) == WRONG_COMMAND
    assert "--size 48 is too small" in capsys.readouterr().err
