"""Pictures: what is computed for them, and that each command leaves files and a page that say what they show."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from pretrain.batches import augment
from pretrain.images.source import InMemory
from pretrain.sample import __main__ as sample
from pretrain.sample import clips
from probes.features.attention import most_of_the_mass
from probes.segment import __main__ as segment
from probes.visualize import __main__ as visualize
from probes.visualize import correspondence, gallery, inputs, pca, prototypes, tsne
from probes.visualize.correspondence import View
from tests.support import networks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    sample.main(["--out", str(root), "--count", "20", "--size", "32"])
    return root


def test_a_mask_is_the_fewest_patches_that_hold_more_than_the_share() -> None:
    """Added up from the greatest down, patch by patch, until the share is passed."""
    attention = torch.rand(3, 2, 12, generator=torch.Generator().manual_seed(0)) ** 3
    masks = most_of_the_mass(attention, 0.6)
    for one, mask in zip(attention.flatten(0, 1), masks.flatten(0, 1), strict=True):
        total, chosen = 0.0, set()
        for place in one.argsort(descending=True).tolist():
            if total > 0.6 * one.sum():
                break
            chosen.add(place)
            total += one[place].item()
        assert set(mask.nonzero()[:, 0].tolist()) == chosen


def test_mutual_matches_are_each_others_nearest() -> None:
    """Tokens that were only put in another order find themselves; one that is two others' nearest keeps the likest."""
    tokens = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    matches = correspondence.mutual(tokens, tokens[order] * 3)
    assert sorted(matches.first.tolist()) == list(range(9)) and torch.equal(order[matches.second], matches.first)
    assert_close(matches.similarity, torch.ones(9))
    first, second = torch.tensor([[1.0, 0.0], [1.0, 0.3]]), torch.tensor([[1.0, 0.29], [-1.0, 0.0]])
    matches = correspondence.mutual(first, second)
    assert matches.first.tolist() == [1] and matches.second.tolist() == [0]


def test_views_know_where_their_patches_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture's red says x and its green y, from 0 to 1; each patch's middle must show its place, mirrored or not."""
    drawn = augment.draw
    flips = []

    def plain(*arguments: Any) -> augment.Draws:
        draws = drawn(*arguments)
        flips.extend(draws.flip.ravel().tolist())
        return draws._replace(jittered=np.zeros_like(draws.jittered), grey=np.zeros_like(draws.grey))

    monkeypatch.setattr(augment, "draw", plain)
    x, y = np.meshgrid((np.arange(200) + 0.5) / 200, (np.arange(160) + 0.5) / 160)
    image = (np.stack([x, y, x * 0], axis=2) * 255).round().astype(np.uint8)
    backbone, generator = networks.backbone(), np.random.default_rng(0)
    for _ in range(4):
        for view in correspondence._views(InMemory("ramp", [image]), 0, backbone, 64, generator):
            middles = view.image.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)).reshape(64, 3)[:, :2] / 255
            assert view.places is not None
            assert_close(middles, view.places / [200, 160], atol=0.01, rtol=0)
    assert set(flips) == {True, False}


def test_a_match_is_right_within_a_patch_of_the_true_place_and_only_checked_where_it_could_be() -> None:
    places = np.stack(np.meshgrid(np.arange(4) * 10.0 + 5, np.arange(4) * 10.0 + 5), axis=2).reshape(-1, 2)
    first = View("a", torch.zeros(1, 3, 8, 8), np.zeros((8, 8, 3), dtype=np.uint8), places)
    second = first._replace(places=places + 10)  # what is at x = 5 in the first lies outside the second
    matches = correspondence.Matches(torch.tensor([5, 5, 0]), torch.tensor([1, 10, 0]), torch.ones(3))
    # patch 5 lies at (15, 15): the second's patch 1 is at (25, 15), one away; its patch 10 at (35, 35), two away
    assert correspondence.right(matches, first, second, 10.0).tolist() == [True, False]


def test_components_find_the_directions_of_most_variance_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(500, 3, generator=generator) * torch.tensor([9.0, 3.0, 1.0])
    axes = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q[:3]
    found = pca.components(scores @ axes + 7)
    assert_close(found.explained, scores.var(dim=0) / scores.var(dim=0).sum(), atol=0.02, rtol=0)
    for number in range(3):
        both = torch.stack([found.levels[:, number], scores[:, number]])
        assert torch.corrcoef(both)[0, 1].abs() > 0.98
    assert found.levels.min() == 0 and found.levels.max() == 1


def test_a_prototypes_row_has_its_strongest_token_of_each_image() -> None:
    assigned = prototypes.Assigned(
        np.array([[7, 7, 2], [2, 7, 7], [2, 2, 2]]), np.array([[0.1, 0.4, 0.9], [0.8, 0.7, 0.2], [0.1, 0.3, 0.2]])
    )
    assert prototypes.rows(assigned, 2, 5) == [
        prototypes.Row(2, 5, [(0, 2), (1, 0), (2, 1)]),
        prototypes.Row(7, 4, [(1, 1), (0, 1)]),
    ]
    assert prototypes.rows(assigned, 1, 1) == [prototypes.Row(2, 5, [(0, 2)])]


def test_a_patch_is_shown_framed_in_the_middle_of_its_surroundings() -> None:
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[8:16, 24:32] = 255  # row 1, column 3 of patches of 8
    window = prototypes.around(image, 7, 8)
    assert window.shape == (40, 40, 3) and (window[16:24, 16:24] == 255).all()
    assert (window[15, 15:25] == gallery.COLOURS[1]).all() and (window[:8] == 200).all()


def test_a_caption_is_in_the_page_and_in_the_file_and_cannot_break_either(tmp_path: Path) -> None:
    figure, axes = gallery.panels(1, "title")
    gallery.picture(axes[0], np.zeros((4, 4)))
    page = gallery.hang(tmp_path, "A <b>", ["said & done"], [gallery.Shown("one", figure, 'image "x" <script>')])
    text = page.read_text()
    assert "&lt;script&gt;" in text and "<script" not in text and "said &amp; done" in text
    assert Image.open(tmp_path / "one.png").info["Description"] == 'image "x" <script>'


@pytest.mark.parametrize(
    ("command", "count"),
    [
        ("attention --limit 2 --mass 0.4", 2),
        ("correspondence --limit 2", 2),
        ("correspondence --pairs class --limit 3", 3),
        ("pca --images 3 5", 2),
        ("tsne --part train --perplexity 3", 1),
    ],
)
def test_every_kind_of_picture_is_drawn_and_says_checkpoint_and_image(
    command: str, count: int, data: Path, tmp_path: Path
) -> None:
    checkpoint = networks.write(tmp_path / "backbone.safetensors")
    kind, *flags = command.split()
    out = tmp_path / "out"
    assert run_command(visualize.main, [kind, *flags, "--ckpt", str(checkpoint), "--data", str(data), "--out", str(out)]) == DONE
    page = (out / "index.html").read_text()
    files = re.findall(r'<img src="([^"]+)"', page)
    assert len(files) == count and page.count(str(checkpoint)) >= 2 * count
    for name in files:
        with Image.open(out / name) as image:
            assert image.format == "PNG" and len(np.unique(np.asarray(image.convert("L")))) > 10
    if kind != "tsne":
        assert re.search(r"\d+\.png \(\w+\)", page)  # the image's name and its class


def test_one_image_file_and_the_frames_of_a_video_are_taken(data: Path, tmp_path: Path) -> None:
    checkpoint = networks.write(tmp_path / "backbone.safetensors")
    clips.write_davis(tmp_path / "davis", count=1, size=32)
    one = next(data.rglob("*.png"))
    common = ["attention", "--ckpt", str(checkpoint)]
    assert run_command(visualize.main, [*common, "--data", str(one), "--out", str(tmp_path / "one")]) == DONE
    assert one.name in (tmp_path / "one/index.html").read_text()
    clip = tmp_path / "davis/JPEGImages/480p/clip_000"
    video = [*common, "--data", str(clip), "--video", "--limit", "4", "--size", "32", "--out", str(tmp_path / "video")]
    assert run_command(visualize.main, video) == DONE
    with Image.open(tmp_path / "video/attention_video.png") as film:
        assert film.n_frames == 4 and film.size == (64, 32)


def test_patterns_are_those_of_the_checkpoints_own_heads(parity_dir: Path, data: Path, tmp_path: Path) -> None:
    """The file is a full one in the original's layout; its head must give what the assignment says."""
    path = parity_dir / "checkpoint_published_layout.pth"
    common = ["--ckpt", str(path), "--data", str(data), "--out", str(tmp_path)]
    for level in ("patch", "cls"):
        assert run_command(visualize.main, ["patterns", "--level", level, *common]) == DONE
    assert (tmp_path / "patterns_patch.png").is_file() and (tmp_path / "patterns_cls.png").is_file()


MISTAKES = (
    ("attention --mass 1.5", "--mass must lie between 0 and 1"),
    ("attention --video", "--video needs --data"),
    ("pca --images 99999", "--images: sample (val) has numbers 0 to 999"),
    ("pca --size 4", "--size 4 is less than one patch of 8 pixels"),
    ("patterns", "holds no heads"),
    ("tsne --limit 12", "too few for --perplexity 30"),
    ("correspondence --lines 0", "--lines must be 1 or more"),
    ("nothing", "say what to draw"),
    ("pca --device nowhere", "--device nowhere cannot be used here"),
)


@pytest.mark.parametrize(("command", "said"), MISTAKES)
def test_mistakes_are_named(command: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = networks.write(tmp_path / "backbone.safetensors")
    kind, *flags = command.split()
    assert run_command(visualize.main, [kind, *flags, "--ckpt", str(checkpoint)]) == WRONG_COMMAND
    assert said in capsys.readouterr().err


def test_swin_has_no_attention_to_show_but_components_and_matches(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = networks.write(tmp_path / "swin.safetensors", networks.TWO_STAGES)
    flags = ["--ckpt", str(checkpoint), "--data", str(data), "--out", str(tmp_path / "out")]
    assert run_command(visualize.main, ["attention", *flags]) == WRONG_COMMAND
    assert "Swin has no [CLS] token" in capsys.readouterr().err
    for kind in ("pca", "correspondence"):
        assert run_command(visualize.main, [kind, *flags, "--limit", "1"]) == DONE


def test_the_plane_is_the_same_for_the_same_seed() -> None:
    features = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    one, again, other = (tsne.plane(features, 4.0, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again) and one.shape == (20, 2) and np.isfinite(other).all()


def test_an_image_keeps_its_shape_and_loses_only_what_makes_no_patch() -> None:
    seen = inputs.see(InMemory("one", [np.zeros((40, 100, 3), dtype=np.uint8)]), 0, networks.backbone(), 32)
    assert seen.grid == (4, 10) and seen.image.shape == (32, 80, 3) and seen.crop.shape == (1, 3, 32, 80)


def test_pictures_have_three_channels_for_the_dense_probe_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    four = networks.write(tmp_path / "four.safetensors", networks.FAN_IN._replace(channels=4, mean=(0.5,) * 4, std=(0.2,) * 4))
    assert run_command(segment.main, ["--ckpt", str(four)]) == WRONG_COMMAND
    assert "takes 4 channels: this command is for pictures of three" in capsys.readouterr().err
