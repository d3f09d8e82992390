"""Robustness: class maps, the suites' numbers on invented logits and errors, dropped and shuffled patches, the commands."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from checkpoints import store, zoo
from checkpoints.cli import DONE, FAILED, WRONG_COMMAND, WorkError, run_command
from pretrain.images.open import open_images
from pretrain.images.source import Images, InMemory
from pretrain.models.vit import ViT
from pretrain.sample import __main__ as sample
from pretrain.sample import classification, corruptions, scene, shifts
from probes.features.cache import weights_digest
from probes.linear.head import FOUR, MEAN, Classifier, Head, View, features, linear_head, read_head
from probes.paper import protocols
from probes.robustness import __main__ as robustness
from probes.robustness import class_maps, drops, imagenet9, imagenet_c, imagenet_variants, occlusion, suites
from tests.support import networks
from tests.support.networks import DEEP, bare, original_names


def test_the_shipped_maps_have_the_published_sizes_and_equal_timms_lists() -> None:
    members, known = class_maps.shipped()["in9"]["classes"], set(class_maps.imagenet())
    sizes = {name: len(own) for name, own in members.items()}
    expected = [116, 52, 42, 36, 35, 27, 26, 20, 16]  # dog, bird, vehicle, reptile, carnivore, insect, instrument, primate, fish
    assert list(sizes.values()) == expected and sum(expected) == 370
    every = [one for own in members.values() for one in own]
    assert len(set(every)) == 370 and set(every) <= known
    order = class_maps.imagenet()
    assert order.index("n02085620") == 151 and "n02085620" in members["dog"]  # Chihuahua
    assert not {order[171], order[172]} & set(every)  # two greyhounds that ImageNet-9 leaves out
    info = Path(timm.__file__).parent / "data" / "_info"
    for letter in "ar":
        shipped = class_maps.shipped()[f"imagenet_{letter}"]["classes"]
        assert shipped == (info / f"imagenet_{letter}_synsets.txt").read_text().split() and len(shipped) == 200
        assert set(shipped) <= known
    assert all(part["source"] for part in class_maps.shipped().values())


def test_the_best_class_of_all_is_mapped_and_one_without_a_superclass_is_wrong() -> None:
    """Classes a b c d, of which a and c are the first superclass, b the second, d none."""
    head = Head(torch.zeros(4, 1), torch.zeros(4), FOUR, ("a", "b", "c", "d"))
    superclass = imagenet9.superclass_of(head, {"first": ["a", "c"], "second": ["b"]})
    assert superclass.tolist() == [0, 1, 0, imagenet9.NONE]
    logits = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 0], [9, 0, 0, 10], [0, 1, 2, 0]])
    assert (
        imagenet9.right(logits, torch.tensor([0, 1, 0, 1]), superclass) == 2
    )  # the third says d although a is next, the fourth c
    with pytest.raises(ValueError, match="does not know e"):
        imagenet9.superclass_of(head, {"first": ["e"]})


def test_superclasses_come_from_the_folders_numbers_even_where_a_folder_is_missing() -> None:
    images = InMemory("some", [np.zeros((4, 4, 3), dtype=np.uint8)] * 3)
    images.labels, images.classes = np.array([0, 1, 1]), ["00_dog", "07_primate"]
    assert imagenet9.labels_of(images, 9).tolist() == [0, 7, 7]
    images.classes = ["dog", "primate"]
    with pytest.raises(ValueError, match="are called 00_dog"):
        imagenet9.labels_of(images, 9)


def test_a_map_is_read_in_the_originals_form_too(tmp_path: Path) -> None:
    path = tmp_path / "in_to_in9.json"
    path.write_text(json.dumps({"0": 8, "151": 0, "152": 0, "500": -1}))
    order = class_maps.imagenet()
    assert class_maps.superclasses(path) == {"0": [order[151], order[152]], "8": [order[0]]}
    path.write_text("[1]")
    with pytest.raises(ValueError, match="is no map of classes"):
        class_maps.superclasses(path)


def test_only_the_logits_of_the_asked_classes_count() -> None:
    logits = torch.tensor([[9.0, 1, 2, 3], [9, 5, 1, 0]])
    assert imagenet_variants.right(logits, torch.tensor([2, 0]), [1, 2, 3]) == 2
    assert imagenet_variants.right(logits, torch.tensor([0, 0]), [3, 1]) == 1


def test_both_numbers_of_imagenet_c_on_invented_errors() -> None:
    """AlexNet's own errors are an mCE of 100; the other four corruptions only move the mean that is not normalised."""
    errors = {name: dict.fromkeys(corruptions.SEVERITIES, imagenet_c.ALEXNET.get(name, 0.0)) for name in corruptions.NAMES}
    assert_close(imagenet_c.mean_corruption_error(errors), 100.0)
    assert_close(imagenet_c.mean_error(errors), sum(imagenet_c.ALEXNET.values()) / 19)
    errors["gaussian_noise"] = {1: 0.0, 2: 10.0, 3: 20.0, 4: 30.0, 5: 40.0}  # mean 20, AlexNet's is 88.6428
    assert_close(imagenet_c.mean_corruption_error(errors), (1400 + 100 * 20 / 88.6428) / 15)
    errors["spatter"] = dict.fromkeys(corruptions.SEVERITIES, 19.0)
    numbers = imagenet_c.summary(errors)
    assert_close(numbers["mean_error"], (sum(imagenet_c.ALEXNET.values()) - 88.6428 + 20 + 19) / 19)
    assert_close(numbers["mce"], imagenet_c.mean_corruption_error(errors))
    assert_close(numbers["severity_5_error"] - numbers["severity_1_error"], 40 / 19)
    assert list(imagenet_c.ALEXNET) == corruptions.STANDARD and len(imagenet_c.ALEXNET) == 15


def test_corruptions_are_the_same_for_the_same_seed_and_leave_numpys_generator_alone() -> None:
    image = classification.classification("val", 10, 40).images[0]
    np.random.seed(5)
    before: Any = np.random.get_state()
    for name in corruptions.NAMES:
        one, again, other = (corruptions.corrupt(image, name, 3, (seed, 7)) for seed in (0, 0, 1))
        assert one.shape == image.shape and one.dtype == np.uint8 and not np.array_equal(one, image), name
        assert np.array_equal(one, again), name
        assert name not in ("gaussian_noise", "glass_blur", "impulse_noise", "frost") or not np.array_equal(one, other), name
    after: Any = np.random.get_state()
    assert np.array_equal(after[1], before[1])
    for name in ("gaussian_noise", "contrast", "pixelate"):
        mild, severe = (np.abs(corruptions.corrupt(image, name, level, (0,)).astype(int) - image).mean() for level in (1, 5))
        assert mild < severe
    with pytest.raises(ValueError, match="too small to corrupt: 32"):
        corruptions.corrupt(image[:20], "fog", 1, (0,))


def test_large_pictures_are_cut_before_they_are_corrupted() -> None:
    assert imagenet_c.cut(np.zeros((300, 500, 3), dtype=np.uint8)).shape == (224, 224, 3)
    assert imagenet_c.cut(np.zeros((224, 260, 3), dtype=np.uint8)).shape == (224, 260, 3)


def test_draws_belong_to_seed_and_image_and_larger_shares_drop_more() -> None:
    numbers = [3, 4, 5]
    order = drops.orders(numbers, 16, 0, same=False)
    assert torch.equal(order[1:], drops.orders([4, 5], 16, 0, same=False))  # whatever the batch
    assert not torch.equal(order[0], order[1]) and not torch.equal(order, drops.orders(numbers, 16, 1, same=False))
    same = drops.orders(numbers, 16, 0, same=True)
    assert torch.equal(same, same[:1].expand(3, -1)) and torch.equal(same[0], order[0])
    few, many = drops.by_chance(order, 0.25), drops.by_chance(order, 0.5)
    assert few.sum(dim=1).tolist() == [4, 4, 4] and many.sum(dim=1).tolist() == [8, 8, 8] and (many | ~few).all()


def test_so_many_whole_patches_are_dropped_by_chance() -> None:
    """On 46c01a2 the ratios 0.1, 0.3, 0.6 and 0.8 dropped 20, 59, 118 and 157 of 196."""
    order = drops.orders([0, 1], 196, 0, same=False)
    found = [drops.by_chance(order, ratio).sum(dim=1).tolist() for ratio in drops.RATIOS]
    assert found == [[count, count] for count in (0, 19, 39, 58, 78, 98, 117, 137, 156, 176)]
    wrong = [
        (tenth, patches)
        for tenth, ratio in enumerate(drops.RATIOS)
        for patches in range(1, 1600)
        if int(drops.by_chance(torch.arange(patches)[None], ratio).sum()) != tenth * patches // 10
    ]
    assert not wrong
    assert int(drops.by_chance(torch.arange(100)[None], 0.29).sum()) == 29  # int(0.29 * 100) is 28


def test_dropped_patches_are_zero_and_the_others_untouched() -> None:
    crops = torch.rand(2, 3, 8, 8) + 1
    gone = torch.zeros(2, 2, 2, dtype=torch.bool)
    gone[0, 0, 1] = gone[1, 1, 0] = True
    left = drops.without(crops, gone)
    assert (left[0, :, :4, 4:] == 0).all() and (left[1, :, 4:, :4] == 0).all() and (left == 0).sum() == 2 * 3 * 16
    assert torch.equal(left[left != 0], crops[left != 0])


def test_shuffling_puts_every_cell_where_the_order_says() -> None:
    crops, grid = torch.rand(2, 3, 8, 12), (2, 3)
    order = drops.orders([0, 1], 6, 0, same=False)
    moved = drops.shuffled(crops, grid, order)
    for image in range(2):
        for place, cell in enumerate(order[image].tolist()):
            to, fro = ((slice(4 * (at // 3), 4 * (at // 3) + 4), slice(4 * (at % 3), 4 * (at % 3) + 4)) for at in (place, cell))
            assert torch.equal(moved[image][:, to[0], to[1]], crops[image][:, fro[0], fro[1]])


def test_cells_that_are_no_whole_pixels_are_shuffled_on_finer_ones() -> None:
    """Put nowhere else, an image stays as it is; shuffled, it keeps its mean colour."""
    crops = torch.rand(2, 3, 32, 32, dtype=torch.float64).float()
    still = torch.arange(196).repeat(2, 1)
    assert_close(drops.shuffled(crops, (14, 14), still), crops)
    moved = drops.shuffled(crops, (14, 14), drops.orders([0, 1], 196, 0, same=False))
    assert moved.shape == crops.shape and not torch.allclose(moved, crops)
    assert_close(moved.mean(dim=(2, 3)), crops.mean(dim=(2, 3)))


def test_accuracy_between_measured_points_lies_on_the_line() -> None:
    assert_close(drops.accuracy_at(0.5, [(1.0, 10.0), (0.0, 90.0), (0.4, 50.0)]), 50 - 40 / 6)


def test_salient_and_other_patches_are_each_others_complement() -> None:
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    for share in drops.MASSES:
        kinds = [occlusion.dropped(kind, share, maps, [0, 1], 0, same=False, side=4) for kind in ("salient", "non_salient")]
        assert torch.equal(kinds[0], ~kinds[1])
    assert not occlusion.dropped("salient", 0.0, maps, [0, 1], 0, same=False, side=4).any()
    assert occlusion.dropped("salient", 1.0, maps, [0, 1], 0, same=False, side=4).all()


def coloured(count: int, seed: int) -> InMemory:
    """Reddish, greenish and bluish noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = generator.integers(0, 120, (count, 32, 32, 3), dtype=np.uint8)
    images[np.arange(count), :, :, labels] += 100
    held = InMemory("colours", images)
    held.labels, held.classes = labels, ["red", "green", "blue"]
    return held


def test_a_head_trained_on_the_spot_reads_plain_features() -> None:
    """What it says of new pictures is right, by the formula on features that nobody has scaled."""
    backbone, view = networks.backbone(), View(32, 32)
    head = linear_head(backbone, coloured(60, 0), view, 16, 0)
    assert head.features == FOUR and head.classes == ("red", "green", "blue")
    fresh = coloured(30, 1)
    crops = torch.stack([robustness_view(fresh, number, view, backbone) for number in range(30)])
    tokens = torch.cat([block[:, 0] for block in backbone.last_blocks(crops, 4)], dim=1)
    assert_close(Classifier(backbone, head).logits(crops), tokens @ head.weight.T + head.bias)
    assert ((tokens @ head.weight.T + head.bias).argmax(dim=1) == torch.as_tensor(fresh.labels)).float().mean() > 0.9


def robustness_view(images: InMemory, number: int, view: View, backbone: torch.nn.Module) -> torch.Tensor:
    levels = torch.from_numpy(images[number]).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.shape.mean, backbone.shape.std))
    return (levels - mean) / std


def test_a_kept_head_is_read_and_others_are_refused(tmp_path: Path) -> None:
    backbone, path = networks.backbone(), tmp_path / "head.safetensors"
    wide = features(backbone, torch.zeros(1, 3, 32, 32), MEAN).shape[1]
    weight, bias = torch.randn(1000, wide), torch.randn(1000)
    save_file({"weight": weight, "bias": bias}, path, metadata={"features": MEAN})
    head = read_head(path, backbone, class_maps.imagenet())
    assert head.classes == class_maps.imagenet() and torch.equal(head.weight, weight) and head.features == MEAN
    about = json.dumps({"features": FOUR, "classes": ["a", "b"]})
    save_file({"weight": torch.zeros(2, 128), "bias": torch.zeros(2)}, path, metadata={"about": about})
    assert read_head(path, backbone, class_maps.imagenet()).classes == ("a", "b")
    for tensors, metadata, said in (
        ({"weight": weight}, {"features": MEAN}, "is no linear head"),
        ({"weight": weight, "bias": bias}, {}, "is no linear head"),
        (
            {"weight": weight, "bias": bias},
            {"about": json.dumps({"features": MEAN, "weights": "0"})},
            "was trained on another backbone",
        ),
        ({"weight": weight[:, :5].clone(), "bias": bias}, {"features": MEAN}, "reads 5 features for 1000 classes"),
    ):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(ValueError, match=said):
            read_head(path, backbone, class_maps.imagenet())


def test_the_samples_variants_are_parts_of_one_picture() -> None:
    parts = {name: shifts.in9(name, 18, 32).images.astype(int) for name in shifts.IN9}
    assert np.array_equal(parts["only_fg"] + parts["no_fg"], parts["original"])
    for name in ("mixed_same", "mixed_rand", "mixed_next"):
        inside = np.all(parts["only_fg"] > 0, axis=-1)
        inside[:, 1:-1, 1:-1] &= inside[:, :-2, 1:-1] & inside[:, 2:, 1:-1] & inside[:, 1:-1, :-2] & inside[:, 1:-1, 2:]
        assert np.abs(parts[name] - parts["original"])[inside].mean() < 3  # the thing stays, but for its soft edge
        assert np.abs(parts[name] - parts["original"])[~inside].mean() > 5  # what is behind it does not
    black = (parts["only_bg_b"] == 0).all(axis=-1)
    assert (black | ~(parts["no_fg"] == 0).all(axis=-1)).all()  # the box covers the thing
    assert shifts.in9_train(20, 32).labels.max() == shifts.FOREGROUNDS


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No published checkpoint is to be had."""

    def refuse(*_: Any) -> Path:
        raise WorkError("the network is down")

    monkeypatch.setattr(zoo, "fetch", refuse)


def write_all(root: Path) -> None:
    targets = [word for name in ("in9", "ina", "inr", "sketch", "inc") for word in (f"--{name}", str(root / name))]
    sample.main([*targets, "--count", "20", "--size", "32", "--out", str(root / "plain")])


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("layouts")
    write_all(root)
    return root


def run(tmp_path: Path, *flags: str) -> dict[str, float]:
    out = tmp_path / "record.json"
    checkpoint = networks.write(tmp_path / "backbone.safetensors")
    assert run_command(robustness.main, ["--ckpt", str(checkpoint), "--out", str(out), *flags]) == DONE
    record = json.loads(out.read_text())
    assert record["probe"] == "robustness"
    return record["metrics"]


def test_imagenet_9s_layout_gives_what_the_drawn_pictures_give(layouts: Path, tmp_path: Path) -> None:
    data, train = ("--data", str(layouts / "in9")), ("--train", str(layouts / "in9/train"))
    found = run(tmp_path, "--suite", "in9", *data, *train, "--class-map", str(layouts / "in9/in_to_in9.json"))
    learn_from = suites.drawn("train", shifts.in9_train(80, 32))
    learn_from.classes = sorted(scene.CLASSES)  # folders are numbered by name
    assert isinstance(learn_from, InMemory) and learn_from.labels is not None
    labels = np.array([learn_from.classes.index(scene.CLASSES[label]) for label in learn_from.labels])
    by_name = np.argsort(labels, kind="stable")
    images = InMemory("train", np.asarray(learn_from._images)[by_name])
    images.labels, images.classes = labels[by_name], learn_from.classes
    head = linear_head(networks.backbone(), images, View(32, 32), 64, 0)
    variants = {name: suites.drawn(name, shifts.in9(name, 20, 32)) for name in shifts.IN9}
    members = {name: [name] for name in scene.CLASSES[: shifts.FOREGROUNDS]}
    expected = imagenet9.measure(Classifier(networks.backbone(), head), variants, members, View(32, 32), 64)
    assert_close(found, {name: round(value, 4) for name, value in expected.items()})
    assert_close(found["bg_gap"], found["mixed_same"] - found["mixed_rand"])


@pytest.mark.parametrize("suite", ["ina", "inr", "sketch"])
def test_suites_of_class_folders_are_read(suite: str, layouts: Path, tmp_path: Path) -> None:
    found = run(tmp_path, "--suite", suite, "--data", str(layouts / suite), "--train", str(layouts / "plain"))
    assert 0 <= found[f"{suite}_all_classes_top1"] <= found[f"{suite}_top1"] <= 100


def test_imagenet_cs_layout_gives_what_corrupting_on_the_fly_gives(layouts: Path, tmp_path: Path) -> None:
    train = ("--train", str(layouts / "plain"))
    stored = run(tmp_path, "--suite", "inc", "--data", str(layouts / "inc"), *train)
    # written pictures were numbered in another order than class folders are: the same seed for each needs the drawn ones
    images = InMemory("val", classification.classification("val", 20, 32).images)
    images.labels, images.classes = classification.classification("val", 20, 32).labels, scene.CLASSES
    head = linear_head(networks.backbone(), open_train(layouts), View(32, 32), 64, 0)
    classifier = Classifier(networks.backbone(), head)
    for name in ("snow", "spatter"):
        errors = [
            imagenet_c.error(classifier, imagenet_c.Corrupted(images, name, severity), View(32, 32), 64)
            for severity in corruptions.SEVERITIES
        ]
        assert_close(stored[f"{name}_error"], round(float(np.mean(errors)), 4))
    assert stored["mce"] > 0 and "clean_error" not in stored


def open_train(layouts: Path) -> Images:
    return open_images(str(layouts / "plain"), "train")


def test_clean_lies_above_corrupted_and_mild_above_severe(layouts: Path, tmp_path: Path) -> None:
    """Tested on what it has learnt by heart, a head is right until the pictures are corrupted."""
    (tmp_path / "data").mkdir()
    for part in ("train", "val"):
        (tmp_path / "data" / part).symlink_to(layouts / "plain/train")
    found = run(tmp_path, "--suite", "inc", "--corrupt", "--data", str(tmp_path / "data"))
    assert found["clean_error"] == 0 and found["severity_1_error"] > 20
    assert found["severity_1_error"] + 10 < found["severity_5_error"]


@pytest.mark.parametrize("flags", [(), ("--same-for-batch",)])
def test_dropping_and_shuffling_start_at_the_untouched_pictures(flags: Sequence[str], layouts: Path, tmp_path: Path) -> None:
    data = ("--data", str(layouts / "plain"), *flags)
    occluded = run(tmp_path, "--suite", "occlusion", "--saliency", "itself", "--saliency-head", "0", *data)
    by_chance = json.loads((tmp_path / "record_random.json").read_text())
    assert by_chance["table"] == "F9_random_drop"
    clean = by_chance["metrics"]["random_0.0"]
    assert occluded["salient_0.0"] == occluded["non_salient_1.0"] == clean
    assert by_chance["metrics"]["random_0.5_loss"] == 0.5 and occluded["salient_1.0_loss"] == 1.0
    lost = [occluded[f"salient_{mass}_loss"] for mass in drops.MASSES]
    assert lost == sorted(lost) and min(occluded.values()) <= occluded["s_0.5"] <= 100
    shuffled = run(tmp_path, "--suite", "shuffle", *data)
    assert shuffled["grid_1"] == clean and list(shuffled) == [f"grid_{n}" for n in (1, 4, 8, 16, 32, 64, 196, 256)]
    names = {path.name for path in tmp_path.glob("*.png")}
    kept = {"record-1_examples.png"}  # with the record of the other suite
    assert names == {"record_curves.png", "record_examples.png", "record_curve.png"} | kept


MISTAKES = (
    ("--suite ina --data nowhere", "there is no folder nowhere"),
    ("--suite ina --data {}/ina", "there is no linear head: give --head FILE"),
    ("--suite in9 --data {}/ina", "has no original/val, only_fg/val"),
    ("--suite inc --data {}/ina", "lacks 95 of 95 folders of ImageNet-C, the first is gaussian_noise/1"),
    ("--suite in9 --data {}/in9 --train {}/plain", "the linear head does not know n02085620"),
    ("--suite ina --corrupt", "--corrupt is for --suite inc: leave it out"),
    ("--suite inc --class-map nowhere", "--class-map is for --suite in9: leave it out"),
    ("--suite ina --same-for-batch", "--same-for-batch is for --suite occlusion and shuffle: leave it out"),
    ("--suite in9 --saliency itself", "--saliency is for --suite occlusion: leave it out"),
    ("--suite shuffle --saliency-head 2", "--saliency-head is for --suite occlusion: leave it out"),
    ("--suite occlusion --saliency-head 1", "the saliency network has heads 0 to 0"),
    ("--head nowhere", "--head: there is no file nowhere"),
    ("--suite shuffle --crop 30", "--crop 30 is not divisible by 8"),
    ("--limit 0", "--limit must be 1 or more"),
)


@pytest.mark.parametrize(("command", "said"), MISTAKES)
def test_mistakes_are_named(command: str, said: str, layouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = networks.write(tmp_path / "backbone.safetensors")
    flags = command.replace("{}", str(layouts)).split()
    assert run_command(robustness.main, ["--ckpt", str(checkpoint), *flags]) == WRONG_COMMAND
    assert said in capsys.readouterr().err


def test_the_head_that_was_kept_beside_the_checkpoint_is_taken_unless_it_is_of_another_backbone(
    layouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone, path = networks.backbone(), tmp_path / "results" / "linear_head.safetensors"
    head = linear_head(backbone, open_train(layouts), View(32, 32), 64, 0)
    about = {"features": head.features, "weights": weights_digest(backbone), "classes": list(head.classes)}
    store.save_backbone(path, {"weight": head.weight, "bias": head.bias}, about)
    flags = ("--suite", "sketch", "--data", str(layouts / "sketch"))
    kept = run(tmp_path, *flags)
    assert f"linear head: {path}, 10 classes" in capsys.readouterr().out
    assert kept == run(tmp_path, *flags, "--train", str(layouts / "plain"))
    assert "linear head: trained on the spot" in capsys.readouterr().out
    store.save_backbone(path, {"weight": head.weight, "bias": head.bias}, about | {"weights": "0"})
    run(tmp_path, "--suite", "shuffle", "--data", str(layouts / "plain"))
    assert "was trained on another backbone" in capsys.readouterr().out


def test_a_data_set_with_missing_classes_is_refused(tmp_path: Path) -> None:
    for name in class_maps.shipped()["imagenet_a"]["classes"][:199]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"lacks 1 of 200 classes, the first is n12267677"):
        imagenet_variants.open_folder("ina", tmp_path)


def test_swin_shuffles_but_needs_anothers_attention_to_drop_what_is_salient(
    layouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swin, vit = networks.write(tmp_path / "swin.safetensors", networks.TWO_STAGES), networks.write(tmp_path / "vit.safetensors")
    common = ["--ckpt", str(swin), "--data", str(layouts / "plain"), "--out", str(tmp_path / "r.json")]
    assert run_command(robustness.main, [*common, "--suite", "shuffle"]) == DONE
    assert run_command(robustness.main, [*common, "--suite", "occlusion"]) == WRONG_COMMAND
    assert "Swin has no [CLS] token" in capsys.readouterr().err
    assert run_command(robustness.main, [*common, "--suite", "occlusion", "--saliency", str(vit), "--saliency-head", "0"]) == DONE


def protocol_of(tmp_path: Path, *flags: str, checkpoint: Path | None = None) -> dict[str, Any]:
    """What the record of a suite says."""
    given = checkpoint or networks.write(tmp_path / "backbone.safetensors")
    out = tmp_path / "record.json"
    assert run_command(robustness.main, ["--ckpt", str(given), "--out", str(out), *flags]) == DONE
    return json.loads(out.read_text())["protocol"]


def kept_head(path: Path, images: Images, **about: Any) -> Path:
    """A linear head on the tiny backbone as `probes.linear` keeps it."""
    head = linear_head(networks.backbone(), images, View(32, 32), 64, 0)
    fixed = {"features": head.features, "weights": weights_digest(networks.backbone()), "classes": list(head.classes)}
    store.save_backbone(path, {"weight": head.weight, "bias": head.bias}, fixed | {"view": [36, 32]} | about)
    return path


SUITE_FLAGS = {
    "in9": ("--class-map", "{}/in9/in_to_in9.json"),
    "inc": (),
    "occlusion": ("--saliency", "itself", "--saliency-head", "0"),
    "shuffle": ("--same-for-batch", "--batch-size", "16"),
}


@pytest.mark.parametrize("suite", SUITE_FLAGS)
def test_a_record_states_every_part_of_the_protocol_that_its_cell_needs(suite: str, layouts: Path, tmp_path: Path) -> None:
    """On 46c01a2 no record said how its head was trained, with which batches, or which map of classes it used."""
    learnt = {"mode": "paper", "epochs": 3, "batch_size": 8, "lr": [0.1], "selected_on": "test images", "resize": 36, "crop": 32}
    learnt |= {"precision": "float32", "key": "teacher", "train_images": 20, "val_images": 20, "features": FOUR}
    images = open_images(str(layouts / ("in9/train" if suite == "in9" else "plain/train")), None)
    head = kept_head(tmp_path / "head.safetensors", images, protocol=learnt)
    data = str(layouts / ("plain" if suite in ("occlusion", "shuffle") else suite))
    flags = [flag.replace("{}", str(layouts)) for flag in SUITE_FLAGS[suite]]
    said = protocol_of(tmp_path, "--suite", suite, "--data", data, "--head", str(head), *flags)
    assert said["linear_head"] == learnt and said["untrained"] is False and said["key"] == "teacher"
    needs = protocols.resolved((protocols.headed(suite),), {"arch": "vit_small"})
    record = {"protocol": said, "checkpoint": {"arch": "vit_small"}, "data": {"val_images": 1}}
    found = protocols.differences((needs,), record)
    assert not [words for words in found if "not stated" in words]
    if suite == "in9":
        assert said["class_map"] == str(layouts / "in9/in_to_in9.json") and said["resize"] == said["crop"] == 32
    if suite == "occlusion":
        beside = json.loads((tmp_path / "record_random.json").read_text())
        random = protocols.resolved((protocols.headed("random"),), {"arch": "vit_small"})
        assert not [words for words in protocols.differences((random,), record | beside) if "not stated" in words]
        assert said["saliency"] == "itself" and said["saliency_head"] == 0
    if suite == "shuffle":
        assert said["same_for_batch"] is True and said["batch_size"] == 16


def test_the_default_map_of_classes_has_its_name(tmp_path: Path) -> None:
    """Another file of that name is no default."""
    assert class_maps.name(None) == protocols.SUITES["in9"]["protocol.class_map"] == "ImageNet-9's"
    assert class_maps.name(Path("ImageNet-9's")) != class_maps.name(None)


def test_a_head_trained_on_the_spot_says_so_and_an_old_one_what_is_known(layouts: Path, tmp_path: Path) -> None:
    """On 46c01a2 both were compared with heads of Table 1's protocol."""
    data = ("--suite", "sketch", "--data", str(layouts / "sketch"))
    said = protocol_of(tmp_path, *data, "--train", str(layouts / "plain"))["linear_head"]
    assert said["mode"] == "trained on the spot" and said["train_images"] == 20 and said["epochs"] == 60
    old = kept_head(tmp_path / "head.safetensors", open_train(layouts))
    said = protocol_of(tmp_path, *data, "--head", str(old))["linear_head"]
    assert said == {"resize": 36, "crop": 32, "features": FOUR}
    liar = kept_head(tmp_path / "head.safetensors", open_train(layouts), protocol={"features": MEAN, "mode": "paper"})
    assert protocol_of(tmp_path, *data, "--head", str(liar))["linear_head"]["features"] == FOUR
    strange = kept_head(tmp_path / "head.safetensors", open_train(layouts), protocol=[1])
    words = ["--ckpt", str(networks.write(tmp_path / "b.safetensors")), *data, "--head", str(strange)]
    assert run_command(robustness.main, words) == WRONG_COMMAND


def test_what_is_salient_is_said_by_dinos_network_unless_it_is_not_to_be_had(
    layouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 it was always the measured network, unless one was named."""
    monkeypatch.chdir(tmp_path)
    data = ("--suite", "occlusion", "--data", str(layouts / "plain"), "--limit", "5", "--saliency-head", "0")
    assert protocol_of(tmp_path, *data)["saliency"] == "itself"
    assert "S_.5 and NS_.5 are not comparable with Table 8" in capsys.readouterr().out
    dino = bare(original_names(DEEP), tmp_path / "dino_vits16.pth")
    monkeypatch.setattr(zoo, "cache", lambda: tmp_path)
    monkeypatch.setattr(zoo, "fetch", lambda address, path, *_: path)
    itself = json.loads((tmp_path / "record.json").read_text())["metrics"]
    for flags in ((), ("--saliency", "dino_vits16")):
        assert protocol_of(tmp_path, *data, *flags)["saliency"] == "dino_vits16"
        assert "not comparable" not in capsys.readouterr().out
    found = json.loads((tmp_path / "record.json").read_text())["metrics"]
    assert found["salient_0.5_loss"] != itself["salient_0.5_loss"]
    # A file is a file, whatever it is called.
    assert protocol_of(tmp_path, *data, "--saliency", dino.name)["saliency"] == str(dino)
    (tmp_path / "dino_vits16").write_bytes(dino.read_bytes())
    assert protocol_of(tmp_path, *data, "--saliency", "dino_vits16")["saliency"] == str(tmp_path / "dino_vits16")
    assert protocol_of(tmp_path, "--suite", "occlusion", "--limit", "5", "--saliency-head", "0")["saliency"] == "itself"


def test_another_saliency_that_cannot_be_had_or_does_not_fit_is_an_error(
    layouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, wide = (
        networks.write(tmp_path / "b.safetensors"),
        networks.write(tmp_path / "w.safetensors", networks.FAN_IN._replace(patch_size=16)),
    )
    words = ["--ckpt", str(checkpoint), "--suite", "occlusion", "--data", str(layouts / "plain"), "--saliency-head", "0"]
    assert run_command(robustness.main, [*words, "--saliency", "dino_vitb16"]) == FAILED
    assert "the network is down" in capsys.readouterr().err
    assert run_command(robustness.main, [*words, "--saliency", str(wide), "--crop", "40"]) == WRONG_COMMAND
    assert "sees patches of 16 pixels, which do not divide crops of 40" in capsys.readouterr().err


def test_a_large_batch_goes_forward_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw for 1024 images needs the memory of few; the numbers are those of one forward."""
    backbone, images = networks.backbone(), coloured(7, 0)
    head = linear_head(backbone, images, View(32, 32), 16, 0)
    found = []
    for size in (2, 7):
        monkeypatch.setattr(occlusion, "AT_ONCE", size)
        assert isinstance(backbone, ViT)
        saliency = occlusion.Saliency(backbone, 0, "itself")
        curves = occlusion.occlude(Classifier(backbone, head), images, View(32, 32), 7, saliency, seed=0, same=True)
        found.append((curves, occlusion.shuffle(Classifier(backbone, head), images, View(32, 32), 7, seed=0, same=True)))
    assert found[0] == found[1]
