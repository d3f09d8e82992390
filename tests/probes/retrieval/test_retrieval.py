"""Retrieval: mAP by the rules of revisited Oxford and of Copydays on small cases, ground truths that hold code, whitening."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from pretrain.sample import retrieval as sample_pairs
from probes.retrieval import __main__ as retrieval
from probes.retrieval import copydays, descriptors, revisited
from tests.support import networks, records


def test_average_precision_of_small_cases_reckoned_by_hand() -> None:
    """Two positives at ranks 0 and 2: (1 + (1 / 2 + 2 / 3) / 2) / 2. One of two found, at rank 1: (0 + 1 / 2) / 2 / 2."""
    assert_close(revisited.average_precision([0, 1, 2], 3), 1.0)
    assert_close(revisited.average_precision([0, 2], 2), (1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert_close(revisited.average_precision([1], 2), 0.125)
    assert revisited.average_precision([], 4) == 0.0


TOY = [
    {"easy": np.array([0, 1]), "hard": np.array([2]), "junk": np.array([3])},
    {"easy": np.array([4]), "hard": np.array([], dtype=np.int64), "junk": np.array([5])},
]


def test_junk_is_looked_through_and_queries_without_positives_do_not_count() -> None:
    """Query 0 finds 3 (junk), 0, 5, 2, 1, 4; query 1 has nothing in the hard setting.

    Medium: without junk 0, 5, 2, 1, 4 with positives at ranks 0, 2, 3. Hard: without 3, 0, 1: 5, 2, 4, positive at rank 1.
    """
    ranking = np.array([[3, 0, 5, 2, 1, 4], [5, 0, 4, 1, 2, 3]])
    first = (1.0 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2) / 3
    second = (0 + 1 / 2) / 2  # 4 comes second when 5, its junk, is out
    medium = revisited.precision(ranking, TOY, "medium")
    assert_close(medium.mean_average, (first + second) / 2)
    # at 5 the first query looks at four images (where its last positive is), the second at two
    assert_close(medium.at, {1: (1 + 0) / 2, 5: (3 / 4 + 1 / 2) / 2, 10: (3 / 4 + 1 / 2) / 2})
    hard = revisited.precision(ranking, TOY, "hard")
    assert_close(hard.mean_average, (0 + 1 / 2) / 2)
    assert_close(hard.at, {1: 0.0, 5: 0.5, 10: 0.5})


def slow_precision(ranked: list[int], ok: set[int], junk: set[int]) -> float:
    """Precision and recall image by image, the area between them by trapezoids."""
    seen = found = 0
    area, before = 0.0, 1.0
    for number in ranked:
        if number in junk:
            continue
        seen += 1
        if number in ok:
            found += 1
            area += (before + found / seen) / 2 / len(ok)
        before = found / seen
    return area


def test_mean_average_precision_equals_counting_image_by_image() -> None:
    generator = np.random.default_rng(0)
    ranking = np.stack([generator.permutation(60) for _ in range(5)])
    kinds = [np.split(generator.permutation(60)[:18], [5, 12]) for _ in range(5)]
    relevant = [dict(zip(("easy", "hard", "junk"), parts, strict=True)) for parts in kinds]
    for setting, (wanted, ignored) in revisited.SETTINGS.items():
        each = [
            slow_precision(
                ranked.tolist(),
                {int(number) for kind in wanted for number in one[kind]},
                {int(number) for kind in ignored for number in one[kind]},
            )
            for ranked, one in zip(ranking, relevant, strict=True)
        ]
        assert_close(revisited.precision(ranking, relevant, setting).mean_average, float(np.mean(each)))


def ground_truth(**more: object) -> dict:
    return {"gnd": [{"bbx": [0.0], **one} for one in TOY], "imlist": [*"abcdef"], "qimlist": ["q0", "q1"], **more}


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


def test_a_ground_truth_is_read_as_data_and_code_in_it_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "gnd.pkl"
    for protocol in (0, 2, 4):
        path.write_bytes(pickle.dumps(ground_truth(), protocol=protocol))
        truth = revisited.read_truth(path)
        assert truth.names == [*"abcdef"] and truth.relevant[0]["easy"].tolist() == [0, 1]
    for content, said in (
        (pickle.dumps(ground_truth(extra=Bomb())), "it holds code"),
        (pickle.dumps(ground_truth(extra=np.load)), "it holds code"),
        (pickle.dumps(ground_truth())[:-9], "no ground truth"),
        (pickle.dumps([1, 2]), "no ground truth"),
        (pickle.dumps(ground_truth(imlist=["a"])), "does not agree with itself"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            revisited.read_truth(path)
    assert not (tmp_path / "exploded").exists()


def test_copies_find_their_originals_among_the_first_twenty() -> None:
    """The first copy finds its only original at rank 0, the second at rank 1, the third not at all."""
    found, wanted = np.array([[7, 1], [3, 8], [1, 2]]), [{7}, {8}, {9}]
    assert_close(copydays.mean_average_precision(found, wanted), (1 + 0.25 + 0) / 3)
    vectors = F.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    numbers = retrieval.search(vectors[:4] * 3, vectors, torch.device("cpu"))
    assert numbers.shape == (4, 20)
    assert numbers.tolist() == (vectors[:4] @ vectors.T).topk(20).indices.tolist()


def test_a_whitening_makes_vectors_uncorrelated_and_of_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(400, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3
    white = descriptors.learn_whitening(vectors)(vectors)
    assert_close(white.mean(dim=0), torch.zeros(6), atol=1e-4, rtol=0)
    assert_close(white.T @ white / 400, torch.eye(6), atol=1e-3, rtol=0)


def test_a_landmarks_vector_is_the_mean_of_three_scales_and_a_copys_has_pooled_patches() -> None:
    backbone, generator = networks.backbone(), np.random.default_rng(0)
    pixels = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    whole = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - torch.tensor(backbone.shape.mean)[:, None, None]) / (
        torch.tensor(backbone.shape.std)[:, None, None]
    )
    half = F.interpolate(whole, scale_factor=0.5, mode="bilinear")
    middle = F.interpolate(whole, scale_factor=2**-0.5, mode="bilinear")[:, :, :32, :40]  # 33 x 45 pixels are 4 x 5 patches
    expected = F.normalize(sum(backbone(image)[0, 0] for image in (whole, middle, half)), dim=0)
    assert_close(descriptors.landmark(backbone, pixels, 64, descriptors.SCALES), expected)
    square = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC))
    tokens = backbone(
        (torch.from_numpy(square.copy()).permute(2, 0, 1)[None] / 255 - torch.tensor(backbone.shape.mean)[:, None, None])
        / (torch.tensor(backbone.shape.std)[:, None, None])
    )[0]
    pooled = torch.stack([(column.clamp(min=1e-6) ** 4).mean() ** 0.25 for column in tokens[1:].T])
    assert_close(descriptors.copy(backbone, pixels, 32), torch.cat([tokens[0], pooled]))


def test_no_copy_is_left_out_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 46c01a2 whatever did not end in .jpg was passed over."""
    sample_pairs.write_copydays(tmp_path, count=4, size=32)
    before = copydays.open_blocks(str(tmp_path))["strong"]
    first = tmp_path / "strong" / before.names[0]
    first.rename(first.with_suffix(".JPEG"))
    (tmp_path / "strong" / "0000.avif").write_bytes(b"x")
    capsys.readouterr()
    after = copydays.open_blocks(str(tmp_path))["strong"]
    assert len(after.images) == len(before.images) and first.with_suffix(".JPEG").name in after.names
    said = capsys.readouterr().out
    assert "1 ignored (1 in a format that is not read, .avif (0000.avif))" in said and said.count("\n") == 2


def test_the_commands_read_both_layouts_and_name_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample_pairs.write_roxford(tmp_path, count=4, size=32)
    sample_pairs.write_copydays(tmp_path / "copies", count=4, size=32)
    checkpoint = networks.write(tmp_path / "run" / "backbone.safetensors")
    common = ["--ckpt", str(checkpoint)]
    oxford = [*common, "--data", str(tmp_path)]
    assert run_command(retrieval.main, [*oxford, "--baselines", "--whiten", str(tmp_path / "copies/original")]) == DONE
    record = json.loads(records.only(tmp_path / "run/results", "retrieval_roxford5k").read_text())
    assert record["data"]["val_images"] == 4 and record["data"]["database"] == 4 * 10 + 20
    assert {"roxford5k_medium_map", "roxford5k_hard_mp10", "untrained_roxford5k_medium_map"} <= record["metrics"].keys()
    copies = [*common, "--suite", "copydays", "--data", str(tmp_path / "copies"), "--size", "32"]
    assert run_command(retrieval.main, [*copies, "--distractors", str(tmp_path / "roxford5k/jpg")]) == DONE
    record = json.loads(records.only(tmp_path / "run/results", "retrieval_copydays").read_text())
    assert record["metrics"]["map_original"] == 100.0 and record["data"]["database"] == 4 + 64
    next((tmp_path / "roxford5k/jpg").glob("query*")).unlink()
    next((tmp_path / "copies/strong").iterdir()).rename(tmp_path / "copies/strong/999901.jpg")
    capsys.readouterr()
    for flags, said in (
        (oxford, "1 of 4 images of the queries are missing"),
        ([*oxford, "--suite", "rparis6k"], "there is no ground truth"),
        (copies, "999901.jpg is a copy of no original"),
        ([*common, "--suite", "copydays", "--data", str(tmp_path)], "has no original"),
        ([*common, "--suite", "copydays", "--size", "30"], "--size 30 is not divisible by 8"),
        ([*common, "--distractors", "x"], "--distractors is for --suite copydays"),
    ):
        assert run_command(retrieval.main, flags) == WRONG_COMMAND
        assert said in capsys.readouterr().err
