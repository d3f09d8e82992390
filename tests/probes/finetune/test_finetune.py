"""Fine-tuning: layers and rates, what is drawn for a step, the traps of each data set, and the command from start to record."""

import csv
import dataclasses
import io
import json
import math
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.io import savemat
from timm.data.distributed_sampler import RepeatAugSampler
from timm.scheduler import CosineLRScheduler
from torch.testing import assert_close
from torchvision import datasets

from checkpoints import store
from checkpoints.architecture import Architecture
from checkpoints.cli import DONE, FAILED, INTERRUPTED, WRONG_COMMAND, UserError, WorkError, run_command
from checkpoints.published import Contents
from pretrain.engine import bad_images, distributed
from pretrain.engine.guard import Guard
from pretrain.engine.precision import Precision
from pretrain.images.source import Images, InMemory
from pretrain.models.backbone import Loaded, load_backbone, make, starting_weights
from pretrain.models.vit import ViT
from probes.finetune import __main__ as finetune
from probes.finetune import train as finetune_train
from probes.finetune.checkpoint import Lines
from probes.finetune.data import Data, open_data
from probes.finetune.dataset import Batch, StepDataset, operations_of, training_view
from probes.finetune.evaluate import Evaluator, evaluation_view
from probes.finetune.model import Classifier, classifier, optimizer_of, parameter_groups
from probes.finetune.options import FinetuneOptions, read_command_line, settled, with_recipe
from probes.finetune.recipes import RECIPES
from probes.finetune.report import by_class, confusion
from probes.finetune.subsets import Share, balanced, part_of
from probes.finetune.watch import Diverged, Watch
from probes.shared.confusion_picture import picture
from tests.support.commands import ROOT, command, exit_code
from tests.support.finetuning import SHAPES, TINY, network_of, options_for
from tests.support.killing import until_enough
from tests.support.states import named, same
from tests.support.trainings import trained

SMALL_VIT = Architecture("vit_small", 16, 224, 3, 384, 12, 6)
KERNELS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
KILLS = 4
FAST = "--batch-size 8 --epochs 3 --warmup-epochs 1 --workers 0 --log-every 2".split()


@pytest.fixture(scope="module")
def run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining of two steps, one block deep."""
    flags = ["--data", folders, "--steps", 2, "--depth", 1, "--knn-every", 0]
    return trained(tmp_path_factory.mktemp("runs") / "small", *flags)


@pytest.fixture(scope="module")
def loaded(run: Path) -> Loaded:
    return load_backbone(run, full=True)


def labels_of(images: Images) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()


def held(count: int = 20, classes: int = 4, size: int = 40) -> InMemory:
    """Random pictures."""
    images = InMemory("noise", np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))
    images.labels, images.classes = np.arange(count) % classes, [str(number) for number in range(classes)]
    return images


def steps_of(options: FinetuneOptions, count: int = 20) -> StepDataset:
    return StepDataset(held(count), 4, TINY, options, 20)


@pytest.mark.parametrize("name", ["rand-m10-inc1", "rand-m0", "original-mstd0.5"])
def test_the_strongest_posterisation_is_black_and_the_weaker_ones_are_pillows(name: str) -> None:
    """timm draws 0 bits; on 46c01a2 Pillow 13 ended the training there, within an epoch of the paper's recipes."""
    view = training_view(options_for(randaugment=name), TINY)
    (posterize,) = {one.aug_fn for one in operations_of(view) if one.name.startswith("Posterize")}
    image = Image.fromarray(held(1)[0])
    assert image.getextrema() != ((0, 0),) * 3
    assert posterize(image, 0).getextrema() == ((0, 0),) * 3 and posterize(image, 0).size == image.size
    for bits in range(1, 9):
        assert (np.asarray(posterize(image, bits)) == np.asarray(image) & (256 - 2 ** (8 - bits))).all()
    if name == "rand-m10-inc1":
        for one in operations_of(view):
            one.prob = 1.0
            assert one(image).size == image.size


@pytest.mark.parametrize("kind", SHAPES)
def test_every_layer_learns_at_the_rate_that_the_formula_gives(kind: str) -> None:
    """Of n blocks, block i (from 1) learns with decay^(n + 1 - i), the embedding with decay^(n + 1), norm and head with 1."""
    model, decay = Classifier(make(SHAPES[kind], maskable=False), 4), 0.7
    blocks = list(model.backbone.blocks)
    expected = {id(parameter): 1.0 for parameter in model.parameters()}
    net: Any = getattr(model.backbone, "model", model.backbone)
    stem = [*net.patch_embed.parameters(), *(getattr(net, name) for name in ("cls_token", "pos_embed") if hasattr(net, name))]
    expected |= {id(parameter): decay ** (len(blocks) + 1) for parameter in stem}
    for number, block in enumerate(blocks, start=1):
        expected |= {id(parameter): decay ** (len(blocks) + 1 - number) for parameter in block.parameters()}
    if kind == "swin":  # the merging before a stage goes with its first block
        for stage, first in ((1, 3), (2, 4)):
            scale = decay ** (len(blocks) + 1 - first)
            expected |= {id(parameter): scale for parameter in net.layers[stage].downsample.parameters()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, options_for(layer_decay=decay, weight_decay=0.05))
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found.keys() == expected.keys()
    for number, (scale, weight_decay) in found.items():
        name = names[number]
        parameter = dict(model.named_parameters())[name]
        plain = parameter.ndim == 1 or name.endswith(("pos_embed", "cls_token"))
        assert scale == pytest.approx(expected[number]) and weight_decay == (0.0 if plain else 0.05), name


def test_the_cosine_of_the_imagenet_recipe_moves_by_step_after_a_warm_up_from_zero() -> None:
    options = options_for("imagenet", epochs=10, warmup_epochs=2, lr=(1e-3,), layer_decay=0.5)
    optimizer = optimizer_of(Classifier(make(TINY, maskable=False), 4), options, 1e-3)
    schedule, steps = finetune_train.schedule_of(optimizer, options, 5), 50
    for step in range(steps):
        schedule.step_update(step)
        schedule.step(step // 5)
        share = (step - 10) / (steps - 10)
        rate = 1e-3 * step / 10 if step < 10 else 1e-6 + 0.5 * (1e-3 - 1e-6) * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(rate * group["lr_scale"])


def rates_of(options: FinetuneOptions, steps_per_epoch: int = 3) -> list[float]:
    """The learning rate of every epoch, the same for all of its steps and all parameters."""
    optimizer = optimizer_of(Classifier(make(TINY, maskable=False), 4), options, options.lr[0])
    schedule = finetune_train.schedule_of(optimizer, options, steps_per_epoch)
    rates: list[float] = []
    for epoch in range(options.epochs or 0):
        found = set()
        for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
            finetune_train.set_rate(schedule, step, steps_per_epoch, options)
            found |= {group["lr"] for group in optimizer.param_groups}
        assert len(found) == 1
        rates += found
    return rates


def test_the_rate_of_semi_is_flat_after_the_warm_up_as_the_original_really_has_it() -> None:
    """Its flag of 5e-6 times 1024 / 512 is its least rate, 1e-5. On 46c01a2 the second epoch had the third one's rate already."""
    rates = rates_of(options_for("semi"))
    assert rates[:6] == pytest.approx([1e-6, *(1e-6 + epoch * 9e-6 / 5 for epoch in range(5))])
    assert rates[6:] == pytest.approx([1e-5] * 994)


@pytest.mark.parametrize(
    ("recipe", "changes"), [("semi", {}), ("transfer", {"data_set": "inat18"}), ("transfer", {"data_set": "cars"})]
)
def test_every_epoch_has_the_rate_of_timms_schedule_in_deits_loop(recipe: str, changes: dict) -> None:
    """The loop trains an epoch, then asks the schedule for it. On 46c01a2 each epoch but the first was one ahead."""
    options = options_for(recipe, **changes)
    assert options.epochs is not None
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=options.lr[0])
    schedule = CosineLRScheduler(
        optimizer, t_initial=options.epochs, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6, t_in_epochs=True, cycle_limit=1
    )
    rates = []
    for epoch in range(options.epochs or 0):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step(epoch)
    assert len(rates) == (360 if changes.get("data_set") == "inat18" else 1000)
    assert rates_of(options) == pytest.approx(rates, rel=1e-12)


def test_position_and_class_tokens_are_decayed_by_semi_and_transfer_alone() -> None:
    """The 152 tensors of a ViT-S/16. On 46c01a2 no recipe decayed the two."""
    model = Classifier(make(SMALL_VIT, maskable=False), 10)
    embeddings = {"backbone.cls_token", "backbone.pos_embed"}
    kernels = {f"backbone.blocks.{number}.{name}.weight" for number in range(12) for name in KERNELS}
    matrices = {"backbone.patch_embed.proj.weight", "head.weight"} | kernels
    for recipe, data_set in (("small", None), ("imagenet", None), ("semi", None), ("transfer", "inat18"), ("transfer", "cars")):
        options = settled(with_recipe(recipe, data_set=data_set), 384, 224)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = parameter_groups(model, options)
        decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
        plain = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
        assert len(decayed) + len(plain) == len(decayed | plain) == len(names) == 152
        assert decayed == (matrices | embeddings if recipe in ("semi", "transfer") else matrices), recipe
        assert {group["weight_decay"] for group in groups} == {0.0, 0.05}


def test_over_inaturalist_2018_position_embeddings_shrink_to_two_thirds() -> None:
    """By decay alone, 0.65 of their size: 360 epochs of 569 steps. On 46c01a2 they kept it."""
    options = settled(with_recipe("transfer", data_set="inat18"), 384, 224)
    a_share = len(RepeatAugSampler(range(437513), 8, 0, num_repeats=3))  # of one of eight processes
    steps = a_share // (768 // 8)
    slow = 1.0
    for rate in rates_of(options):
        slow *= (1 - rate * 0.05) ** steps
    assert steps == 569 and slow == pytest.approx(0.65, abs=0.005)

    model = Classifier(make(TINY, maskable=False), 4).double()
    optimizer = optimizer_of(model, options, options.lr[0])
    schedule, positions = finetune_train.schedule_of(optimizer, options, 1), model.backbone.get_parameter("pos_embed")
    shrunk, biases = 1.0, model.head.bias.data.fill_(1.0).clone()
    for epoch in range(360):
        finetune_train.set_rate(schedule, epoch, 1, options)
        before = positions.data.clone()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        shrunk *= (positions.data / before).mean().item() ** steps
    assert shrunk == pytest.approx(slow, rel=1e-6) and torch.equal(model.head.bias.data, biases)


def test_recipes_take_the_values_of_the_backbone_and_the_data_set() -> None:
    def of(recipe: str, width: int, **changes: object) -> FinetuneOptions:
        return settled(with_recipe(recipe, **changes), width, 224)

    for width, epochs, decay, drop, warm in ((384, 200, 0.75, 0.1, 20), (768, 100, 0.65, 0.2, 20), (1024, 50, 0.75, 0.4, 5)):
        found = of("imagenet", width)
        assert (found.epochs, found.layer_decay, found.drop_path, found.warmup_epochs) == (epochs, decay, drop, warm)
        assert found.lr == (8e-4, 9e-4, 1e-3, 2e-3) and found.batch_size == 1024
    for data, width, flag, epochs, erasing in (
        ("cifar10", 384, 7.5e-6, 1000, 0.25),
        ("cifar100", 768, 7.5e-6, 1000, 0.25),
        ("flowers", 384, 7.5e-6, 1000, 0.25),
        ("cars", 768, 7.5e-5, 1000, 0.25),
        ("inat18", 384, 5e-5, 360, 0.1),
        ("inat18", 768, 7.5e-6, 360, 0.1),
        ("inat19", 384, 2.5e-5, 360, 0.1),
        ("inat19", 768, 7.5e-6, 360, 0.1),
    ):
        found = of("transfer", width, data_set=data)
        assert found.lr == (pytest.approx(flag * 768 / 512),) and (found.epochs, found.erasing) == (epochs, erasing), data
        assert found.repeats == 3 and found.min_lr == 1e-5
    assert of("transfer", 384, data_set="inat18", erasing=0.25).erasing == 0.25  # what was asked for stays
    assert of("transfer", 384, data="torchvision:StanfordCars@DIR").data_set == "cars"


def test_mixed_targets_sum_to_one_and_name_two_classes_at_most() -> None:
    steps = steps_of(options_for(batch_size=4, mixup=0.8, cutmix=1.0, smoothing=0.1))
    mixed = 0
    for number in range(20):
        batch = steps[number]
        assert_close(batch.targets.sum(dim=1), torch.ones(4))
        above = batch.targets > 0.1 / 4 + 1e-6
        assert int(above.sum(dim=1).max()) <= 2 and batch.images.isfinite().all()
        mixed += int((above.sum(dim=1) == 2).any())
    assert mixed > 5
    plain = steps_of(options_for(batch_size=4, smoothing=0.1))[0]
    assert plain.targets.max(dim=1).values.tolist() == pytest.approx([0.9 + 0.1 / 4] * 4)


def test_a_batch_is_addressed_by_seed_and_step_and_leaves_the_generators_alone() -> None:
    strong: dict[str, Any] = {"batch_size": 4, "mixup": 0.8, "erasing": 0.5, "randaugment": "rand-m9-mstd0.5-inc1"}
    one, other, seeded = (steps_of(options_for(**strong, seed=seed)) for seed in (0, 0, 1))
    before = torch.get_rng_state()
    first = one[3]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    _, again = other[2], other[3]
    assert same(first, again) and not same(first, seeded[3])
    assert not torch.equal(one[3].images, one[8].images)


def test_an_epoch_has_each_image_once_or_a_third_of_them_three_times_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    plain, repeated = [], []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        plain.append(steps_of(options_for(batch_size=4)).order(0))
        repeated.append(steps_of(options_for(batch_size=4, repeats=3)).order(0))
    assert sorted(np.concatenate(plain)) == list(range(20))
    together = np.stack(repeated, axis=1).reshape(-1)
    assert len(together) == 20 and all(len(set(together[at : at + 3])) == 1 for at in range(0, 18, 3))
    assert len(set(together)) == 7


def test_processes_and_parts_must_share_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--batch-size 6 cannot be shared by 1 processes in 4 parts"):
        steps_of(options_for(batch_size=6, accumulate=4))
    with pytest.raises(UserError, match="an even number of images"):
        steps_of(options_for(batch_size=5, mixup=0.8))
    with pytest.raises(UserError, match="20 images, fewer than one step of 64: lower --batch-size"):
        steps_of(options_for())


@pytest.mark.parametrize(
    ("recipe", "size", "resize", "kind"),
    [
        ("imagenet", 224, 256, Image.Resampling.BILINEAR),
        ("imagenet", 384, 384, Image.Resampling.BILINEAR),
        ("semi", 224, 256, Image.Resampling.BICUBIC),
        ("small", 32, 32, Image.Resampling.BICUBIC),
    ],
)
def test_test_images_are_resized_and_cut_as_the_recipe_says(recipe: str, size: int, resize: int, kind: Image.Resampling) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    found = evaluation_view(options_for(recipe, input_size=size), TINY)(image)
    whole = image.resize((int(resize * 400 / 300), resize), kind)
    left, upper = round((whole.width - size) / 2), round((whole.height - size) / 2)
    cut = torch.from_numpy(np.array(whole.crop((left, upper, left + size, upper + size)))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (TINY.mean, TINY.std))
    assert_close(found, (cut - mean) / std)


def test_a_damaged_image_gives_its_place_and_label_to_the_next_and_is_named() -> None:
    images = held(8)
    broken = InMemory("noise", [b"junk" if number == 2 else images.content(number) for number in range(8)])
    broken.labels, broken.classes = images.labels, images.classes
    steps = StepDataset(broken, 4, TINY, options_for(batch_size=8, smoothing=0.0), 20)
    batch, order = steps[0], steps.chosen(0)
    assert batch.targets.argmax(dim=1).tolist() == [3 if number == 2 else number % 4 for number in order]
    assert [bad.name for bad in batch.bad] == ["noise 2"]
    broken._images = [b"junk"] * 8
    with pytest.raises(WorkError, match="4 images could not be used"):
        StepDataset(broken, 4, TINY, options_for(batch_size=8), 3)[0]


def test_a_classifier_begins_as_its_recipe_says(loaded: Loaded) -> None:
    images = torch.randn(2, 3, 32, 32)
    first = classifier(loaded, 5, options_for("imagenet", input_size=32, lr=(1e-3,)), fused=False).eval()
    plain = classifier(loaded, 5, options_for(input_size=32), fused=False)
    assert_close(first.head.weight, plain.head.weight * 0.001)
    tokens = loaded.backbone.eval()(images)
    assert_close(first(images), F.linear(tokens[:, 0], first.head.weight, first.head.bias))

    kept = classifier(loaded, 5, options_for("semi", input_size=32), fused=False).eval()
    head = {name.removeprefix("head."): w for name, w in loaded.contents.networks["teacher"].items() if name.startswith("head.")}
    hidden = F.gelu(F.linear(tokens[:, 0], head["mlp.0.weight"], head["mlp.0.bias"]))
    assert_close(kept(images), F.linear(hidden, kept.head.weight, kept.head.bias))

    scratch = classifier(loaded, 5, options_for("semi", input_size=32, from_scratch=True), fused=False).eval()
    ours, theirs = scratch.state_dict(), kept.state_dict()
    assert ours.keys() == theirs.keys() and all(ours[name].shape == theirs[name].shape for name in ours)
    assert all(not torch.equal(ours[name], theirs[name]) for name in ("backbone.blocks.0.attn.qkv.weight", "kept.0.weight"))


def test_positions_are_resized_to_the_input_and_trained(loaded: Loaded) -> None:
    """On 46c01a2 by the scale factor."""
    given = loaded.backbone
    assert isinstance(given, ViT)
    model = classifier(loaded, 5, options_for(input_size=48), fused=False)
    positions = model.backbone.get_parameter("pos_embed")
    assert_close(positions.data, by_size(given.pos_embed, 6))
    assert positions.requires_grad and model.backbone.shape.image_size == 48
    same_size = classifier(loaded, 5, options_for(), fused=False)
    assert torch.equal(same_size.backbone.get_parameter("pos_embed"), given.pos_embed)
    by_scale = classifier(loaded, 5, options_for(input_size=48, positions="scale"), fused=False)
    assert torch.equal(by_scale.backbone.get_parameter("pos_embed"), given.position(6, 6))
    with pytest.raises(UserError, match="--input-size 50 is not divisible by 8"):
        classifier(loaded, 5, options_for(input_size=50), fused=False)


def by_size(positions: torch.Tensor, side: int) -> torch.Tensor:
    """The formula: the square grid to so many rows and columns, bicubic; output i looks at (i + 1/2) * old / new - 1/2."""
    old = math.isqrt(positions.shape[1] - 1)
    weights = torch.zeros(side, old, dtype=torch.float64)
    for place in range(side):
        middle = (place + 0.5) * old / side - 0.5
        for near in range(math.floor(middle) - 1, math.floor(middle) + 3):
            far = abs(middle - near)
            share = 1.25 * far**3 - 2.25 * far**2 + 1 if far <= 1 else -0.75 * far**3 + 3.75 * far**2 - 6 * far + 3
            weights[place, min(max(near, 0), old - 1)] += share
    grid = positions[0, 1:].detach().double().unflatten(0, (old, old))
    resized = torch.einsum("ri,sj,ijd->rsd", weights, weights, grid).flatten(0, 1)
    return torch.cat([positions[:, :1].detach(), resized[None].float()], dim=1)


@pytest.mark.parametrize(("side", "apart"), [(16, 0.03), (24, 0.02), (32, 0.015)])
def test_positions_of_a_vit_s_at_256_384_and_512_pixels_are_resized_by_size(side: int, apart: float) -> None:
    """Twelve blocks, width 384, from 14 x 14 smooth positions. On 46c01a2 another grid, by at least `apart` of its rms."""
    backbone = ViT(SMALL_VIT, maskable=True)
    ramp = torch.linspace(-1, 1, 14)
    rows, columns = torch.meshgrid(ramp, ramp, indexing="ij")
    waves = torch.stack([torch.sin(rows * n * 0.02 + n) * torch.cos(columns * n * 0.01) for n in range(384)], dim=-1)
    backbone.pos_embed.data[:, 1:] = waves.flatten(0, 1)
    pretrained = Loaded(backbone.eval(), Path("weights"), 0, Contents("none", {}))
    options = settled(with_recipe("imagenet", input_size=side * 16), 384, 224)
    model = classifier(pretrained, 5, options, fused=False)
    assert isinstance(model.backbone, ViT)
    found = model.backbone.pos_embed
    assert found.shape == (1, 1 + side * side, 384) and found.requires_grad and options.positions == "size"
    slow = F.interpolate(
        backbone.pos_embed[:, 1:].reshape(1, 14, 14, 384).permute(0, 3, 1, 2),
        size=(side, side),
        mode="bicubic",
        align_corners=False,
    )
    assert torch.equal(found[:, 1:], slow.permute(0, 2, 3, 1).reshape(1, -1, 384))
    assert torch.equal(found[:, 0], backbone.pos_embed[:, 0])
    assert_close(found, by_size(backbone.pos_embed, side), atol=1e-5, rtol=1e-5)
    assert torch.equal(model.backbone.position(side, side), found)  # nothing is resized in the forward
    other = backbone.position(side, side)
    assert ((other - found)[:, 1:].square().mean() / found[:, 1:].square().mean()).sqrt() > apart
    frozen = starting_weights(backbone, SMALL_VIT._replace(image_size=side * 16), Path("x"))
    assert torch.equal(frozen["pos_embed"], other)  # pretraining's --init-from keeps the rule of the forward


@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_of_backbone_begins_with_its_weights_and_takes_a_larger_input(kind: str) -> None:
    pretrained = Loaded(make(SHAPES[kind], maskable=True).eval(), Path("weights"), 0, Contents("none", {}))
    model = classifier(pretrained, 5, options_for(input_size=64, drop_path=0.2, positions="scale"), fused=False).eval()
    images = torch.randn(2, 3, 64, 64)
    assert_close(model(images), F.linear(pretrained.backbone(images)[:, 0], model.head.weight, model.head.bias))


def batch_of(count: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images, scores = torch.randn(count, 3, 32, 32, generator=generator), torch.randn(count, 4, generator=generator)
    return Batch(images, scores.softmax(dim=1))


@pytest.mark.parametrize("kind", SHAPES)
def test_a_step_is_soft_cross_entropy_and_parts_of_it_are_the_whole(kind: str) -> None:
    whole, halves, slow = (network_of(kind) for _ in range(3))
    precision, batch = Precision("fp32", torch.device("cpu")), batch_of()
    outcome = finetune_train.train_step(whole.model, whole, [batch], Guard(), precision)
    parts = [Batch(batch.images[at : at + 4], batch.targets[at : at + 4]) for at in (0, 4)]
    finetune_train.train_step(halves.model, halves, parts, Guard(), precision)
    loss = -(batch.targets * slow.model(batch.images).log_softmax(dim=1)).sum(dim=1).mean()
    loss.backward()
    assert_close(outcome.loss, loss.detach())
    for (name, ours), other, plain in zip(
        whole.model.named_parameters(), halves.model.parameters(), slow.model.parameters(), strict=True
    ):
        assert_close(ours, other, rtol=1e-4, atol=1e-6, msg=named(name))
        assert plain.grad is not None
        assert_close(ours.data, plain.data - 0.1 * plain.grad, rtol=1e-4, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing_and_twenty_in_a_row_stop() -> None:
    network, guard = network_of(), Guard()
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    broken, precision = batch_of()._replace(images=torch.full((8, 3, 32, 32), math.nan)), Precision("fp32", torch.device("cpu"))
    assert not finetune_train.train_step(network.model, network, [broken], guard, precision).accepted
    assert same(before, dict(network.model.state_dict())) and guard.skipped == 1
    assert finetune_train.train_step(network.model, network, [batch_of()], guard, precision).accepted
    with pytest.raises(WorkError, match=r"20 steps in a row: lower --lr[^;]*$"):
        for _ in range(20):
            finetune_train.train_step(network.model, network, [broken], guard, precision)


def watch_at(step: int) -> Watch:
    return Watch(step, 5, skipped=0, late=False)


def test_a_loss_that_is_not_finite_is_named_by_its_step_and_epoch() -> None:
    network, precision = network_of(), Precision("fp32", torch.device("cpu"))
    broken, watch = batch_of()._replace(images=torch.full((8, 3, 32, 32), math.nan)), watch_at(10)
    for batch in (batch_of(), batch_of(), broken, broken):
        finetune_train.train_step(network.model, network, [batch], watch, precision)
    with pytest.raises(Diverged, match=r"the loss of step 13, in epoch 3, is not finite: lower --lr"):
        watch.check()
    assert all(weight.isfinite().all() for weight in network.model.state_dict().values())

    watch = watch_at(0)
    with pytest.raises(Diverged, match=r"the loss of step 1, in epoch 1"):  # --log-every may be far away
        for _ in range(20):
            finetune_train.train_step(network.model, network, [broken], watch, precision)


def test_gradients_that_are_not_finite_are_counted_and_twenty_in_a_row_stop() -> None:
    loss, bad, good = finetune_train.Loss(torch.tensor(1.0)), torch.tensor([math.inf]), torch.tensor([1.0])
    watch = Watch(7, 5, skipped=2, late=False)
    assert not watch.accepts(loss, bad) and watch.accepts(loss, good)
    watch.check()
    assert watch.skipped == 3
    with pytest.raises(Diverged, match=r"gradients of 20 steps in a row, up to step 29, are not finite"):
        for _ in range(20):
            watch.accepts(loss, bad)


@pytest.mark.parametrize("averaged", [False, True])
def test_scores_that_are_not_finite_are_no_answers(averaged: bool) -> None:
    """On 46c01a2 the first class was the answer to every image: a quarter was right."""
    network, precision = network_of(ema=0.9), Precision("fp32", torch.device("cpu"))
    assert network.ema is not None
    (network.ema.module if averaged else network.model).head.weight.data[2] = math.nan
    data, bad = Data(held(), held(), list("abcd"), Share(None, {})), bad_images.BadImages(0, ())
    evaluator = Evaluator(data, options_for(workers=0), TINY, precision, bad)
    who = "by the averaged weights after epoch 4" if averaged else "^after epoch 4"
    with pytest.raises(Diverged, match=f"{who} the scores of 20 test images are not finite, noise 0 for one: lower --lr"):
        evaluator.of(network, 4)


def test_a_diverged_learning_rate_has_no_record_and_of_several_is_left_out_by_name(
    run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 fourteen refused steps of fifteen went unsaid, and NaN was the first class: such a rate could be the best."""
    flags = ["--ckpt", str(run), "--data", str(folders), *FAST, "--warmup-epochs", "0", "--out", str(tmp_path / "one.json")]
    alone = [*flags, "--lr", "1e30", "--folder", str(tmp_path / "one")]
    assert run_command(finetune.main, alone) == FAILED and not (tmp_path / "one.json").exists()
    assert "failed: the loss of step 2, in epoch 1, is not finite: lower --lr" in capsys.readouterr().err
    record = tuned(run, folders, tmp_path, "--warmup-epochs", "0", "--lr", "1e30", "1e-3", name="several")
    assert record["protocol"]["diverged"] == [1e30] and record["metrics"]["best_lr"] == 1e-3
    assert "learning rate 1e+30 is left out: the loss of step 2" in capsys.readouterr().out
    assert "top1_lr1e+30" not in record["metrics"]


def test_averaged_weights_follow_by_the_formula() -> None:
    network, precision = network_of(ema=0.9), Precision("fp32", torch.device("cpu"))
    slow = network.model.head.weight.detach().clone()
    for seed in range(3):
        finetune_train.train_step(network.model, network, [batch_of(seed=seed)], Guard(), precision)
        slow = 0.9 * slow + 0.1 * network.model.head.weight.detach()
    assert network.ema is not None
    assert_close(network.ema.module.head.weight, slow)


def test_a_part_has_the_same_share_of_every_class_and_the_seed_draws_it() -> None:
    labels = np.repeat([0, 1, 2], [1000, 200, 3])
    one = balanced(labels, 1.0, seed=0)
    assert np.bincount(labels[one]).tolist() == [10, 2, 1] and len(set(one)) == 13
    assert np.array_equal(one, balanced(labels, 1.0, seed=0)) and not np.array_equal(one, balanced(labels, 1.0, seed=1))
    assert np.bincount(labels[balanced(labels, 10.0)]).tolist() == [100, 20, 1]


def test_a_list_of_names_takes_the_place_of_a_recipes_share() -> None:
    """The published command names a list and no share; the recipe's own 1 % must not stand beside it."""
    listed = read_command_line(["--recipe", "semi", "--names", "1percent.txt"])
    assert (listed.names, listed.percent) == (Path("1percent.txt"), None)
    assert read_command_line(["--recipe", "semi"]).percent == 1.0
    both = read_command_line(["--recipe", "semi", "--names=1percent.txt", "--percent", "10"])
    assert both.percent == 10  # and is refused when the images are opened


def test_a_part_can_be_named_as_simclr_names_it(folders: Path, tmp_path: Path) -> None:
    images = open_data(FinetuneOptions(data=str(folders)), 3).train
    names = tmp_path / "1percent.txt"
    chosen = [3, 17, 30]
    names.write_text("".join(f"{Path(images.where(number)).name}\n" for number in chosen))
    part = part_of(images, None, names)
    assert [part.where(number) for number in range(3)] == [images.where(number) for number in chosen]
    names.write_text("nobody.JPEG\n")
    with pytest.raises(UserError, match=r"lacks 1 of the 1 names in .*1percent.txt, nobody.JPEG for one"):
        part_of(images, None, names)


def test_flowers_are_learnt_from_train_and_val_and_tested_on_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "flowers-102"
    (root / "jpg").mkdir(parents=True)
    for number in range(1, 13):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(root / "jpg" / f"image_{number:05d}.jpg")
    savemat(root / "imagelabels.mat", {"labels": np.arange(12) % 3 + 1})
    parts = {"trnid": [1, 2, 3], "valid": [4, 5, 6], "tstid": [7, 8, 9, 10, 11, 12]}
    savemat(root / "setid.mat", parts)
    files = {name: (file, None) for name, (file, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    data = open_data(FinetuneOptions(data=f"torchvision:Flowers102@{tmp_path}"), 3)
    assert labels_of(data.train) == [0, 1, 2] * 2 and labels_of(data.test) == [0, 1, 2] * 2
    assert len(data.classes) == 102
    reds = [int(data.train[number][4, 4, 0]) for number in range(6)]
    assert reds == pytest.approx([20 * number for number in range(1, 7)], abs=3)
    assert int(data.test[0][4, 4, 0]) == pytest.approx(140, abs=3)


def test_cars_have_the_class_of_its_own_column_counted_from_zero(tmp_path: Path) -> None:
    """Columns: path, box (4), class, test. The original takes the class count from a column of the box."""
    kinds = [("relative_im_path", object), *((f"bbox_{edge}", object) for edge in ("x1", "y1", "x2", "y2"))]
    rows = np.empty((1, 4), dtype=[*kinds, ("class", object), ("test", object)])
    (tmp_path / "car_ims").mkdir()
    for number, (kind, test) in enumerate(((2, 0), (1, 0), (3, 1), (2, 0))):
        rows[0, number] = (f"car_ims/{number}.jpg", 10, 20, 300, 400, kind, test)
        Image.new("RGB", (8, 8)).save(tmp_path / "car_ims" / f"{number}.jpg")
    names = np.array(["a", "b", "c"], dtype=object)
    savemat(tmp_path / "cars_annos.mat", {"annotations": rows, "class_names": names})
    data = open_data(FinetuneOptions(data=str(tmp_path)), 3)
    assert labels_of(data.train) == [1, 0, 1] and labels_of(data.test) == [2]
    assert list(data.classes) == ["a", "b", "c"] and data.train.where(0).endswith("0.jpg")


def test_inaturalist_is_read_from_its_lists(tmp_path: Path) -> None:
    categories = [{"id": 4, "name": "moth"}, {"id": 9, "name": "wasp"}]
    for part, kinds in (("train", (9, 4, 9)), ("val", (4,))):
        images = [{"id": 10 + number, "file_name": f"images/{part}{number}.jpg"} for number in range(len(kinds))]
        annotations = [{"image_id": 10 + number, "category_id": kind} for number, kind in enumerate(kinds)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / f"{part}2019.json").write_text(json.dumps(content))
    data = open_data(FinetuneOptions(data=str(tmp_path)), 3)
    assert labels_of(data.train) == [1, 0, 1] and labels_of(data.test) == [0] and list(data.classes) == ["moth", "wasp"]
    assert data.train.where(1) == str(tmp_path / "images" / "train1.jpg")


def test_confusion_and_the_table_of_classes_count_what_was_answered() -> None:
    labels, answers = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 2, 1, 1])
    shares = confusion(labels, answers, 4)
    assert shares[0].tolist() == [50, 25, 25, 0] and shares[1].tolist() == [0, 100, 0, 0] and np.isnan(shares[3]).all()
    rows = list(csv.DictReader(io.StringIO(by_class(labels, answers, labels, ["a", "b", "c", "d"]))))
    assert [row["images"] for row in rows] == ["4", "2", "0", "0"]
    assert (rows[0]["top1_best_epoch"], rows[0]["top1_last_epoch"], rows[0]["mistaken_for"]) == ("50.00", "100.00", "b")
    for classes, least in ((4, 1000), (1000, 2000)):
        drawn = Image.open(io.BytesIO(picture(np.eye(classes) * 100, [f"class {number}" for number in range(classes)], "images")))
        assert drawn.format == "PNG" and drawn.width >= least


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_help_of_a_recipe_shows_its_values_and_their_source(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(finetune.main, ["--recipe", recipe, "--help"]) == DONE
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    expected = {
        "small": ["found by experiment"],
        "imagenet": [
            "Tables 2, 3 and 11",
            "(default: 0.0008 0.0009 0.001 0.002)",
            "(default: rand-m9-mstd0.5-inc1)",
            "base: --epochs 100 --layer-decay 0.65 --drop-path 0.2 --warmup-epochs 20",
            "84.0 (ViT-B/16)",
        ],
        "semi": [
            "Tables 4 and 12",
            "(default: 1e-05)",
            "61.9 and 75.1",
            "--epochs {None}|INT",
            "(default: 1000)",
            "(default: 3)",
        ],
        "transfer": ["Table 7", "cars: --epochs 1000 --lr 0.0001125", "inat19, small: --lr 3.75e-05", "--erasing 0.1", "768"],
    }
    for words in expected[recipe]:
        assert words in shown, words


def tuned(run: Path, folders: Path, tmp_path: Path, *flags: str, name: str = "tuned") -> dict:
    places = ["--folder", str(tmp_path / name), "--out", str(tmp_path / f"{name}.json")]
    assert run_command(finetune.main, ["--ckpt", str(run), "--data", str(folders), *FAST, *places, *flags]) == DONE
    return json.loads((tmp_path / f"{name}.json").read_text())


def test_the_command_leaves_a_record_classes_a_picture_and_a_run(
    run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tuned(run, folders, tmp_path, "--ema", "0.9")
    numbers, protocol = record["metrics"], record["protocol"]
    assert record["probe"] == "finetune" and record["checkpoint"]["sha256"] == store.sha256(run / store.BACKBONE)
    assert numbers["top1"] >= numbers["last_top1"] and numbers["last_epoch"] == 3 and 0 <= numbers["ema_last_top1"] <= 100
    assert protocol["recipe"] == "small" and protocol["layer_decay"] == 1.0 and record["table"] == "none"
    assert {field.name for field in dataclasses.fields(FinetuneOptions)} < protocol.keys()
    about = "diverged pretrained_size position_embeddings test_resize test_crop train_interpolation colour_jitter".split()
    assert [protocol[name] for name in about] == [[], 32, "as trained", 32, 32, "bicubic", 0.4]
    lines = [json.loads(line) for line in (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["top1"] for line in lines if "top1" in line) == pytest.approx(numbers["top1"], abs=1e-3)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tuned.csv").read_text())))
    right = sum(float(row["top1_best_epoch"]) * int(row["images"]) for row in rows if int(row["images"]))
    assert right / 40 == pytest.approx(numbers["top1"], abs=0.1)
    assert Image.open(tmp_path / "tuned.png").format == "PNG"
    names = {path.name for path in (tmp_path / "tuned").iterdir() if not path.name.startswith("events")}
    assert names == {"config.json", "metrics.jsonl", store.LAST, store.PREVIOUS, "best.safetensors"}
    weights, metadata = store.read_safetensors(tmp_path / "tuned" / "best.safetensors")
    assert metadata["about"]["classes"] and metadata["about"]["epoch"] == numbers["best_epoch"] and "head.weight" in weights

    assert tuned(run, folders, tmp_path, "--ema", "0.9")["metrics"] == numbers
    assert "this run is finished: give another --folder" in capsys.readouterr().out
    common = ["--ckpt", str(run), "--data", str(folders), *FAST, "--folder", str(tmp_path / "tuned")]
    assert run_command(finetune.main, [*common, "--ema", "0.9", "--from-scratch"]) == WRONG_COMMAND
    assert "--from-scratch was False, now True" in capsys.readouterr().err


def test_several_learning_rates_are_runs_of_their_own_and_the_best_is_reported(run: Path, folders: Path, tmp_path: Path) -> None:
    numbers = tuned(run, folders, tmp_path, "--lr", "1e-5", "2e-3", "--epochs", "2")["metrics"]
    assert numbers["top1"] == max(numbers["top1_lr1e-05"], numbers["top1_lr0.002"])
    assert {path.name for path in (tmp_path / "tuned").iterdir()} == {"lr-1e-05", "lr-0.002"}
    alone = tuned(run, folders, tmp_path, "--lr", "2e-3", "--epochs", "2", name="alone")["metrics"]
    assert alone["top1"] == numbers["top1_lr0.002"]


def test_a_fine_tuning_taken_up_again_ends_where_an_unbroken_one_does(
    run: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after step 8 by the signal that Ctrl-C sends; dropped paths draw from torch's own generator."""
    flags = ["--mixup", "0.8", "--drop-path", "0.2", "--ema", "0.9", "--accumulate", "2"]
    whole = tuned(run, folders, tmp_path, *flags, name="whole")
    logged = Lines.log

    def stop_after_eight(self: Lines, done: int, *rest: Any) -> None:
        logged(self, done, *rest)
        if done == 8:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Lines, "log", stop_after_eight)
    places = ["--folder", str(tmp_path / "again"), "--out", str(tmp_path / "again.json")]
    again = ["--ckpt", str(run), "--data", str(folders), *FAST, *flags, *places]
    assert run_command(finetune.main, again) == INTERRUPTED and not (tmp_path / "again.json").exists()
    assert store.read_torch(tmp_path / "again" / store.LAST)["step"] == 8
    monkeypatch.setattr(Lines, "log", logged)
    assert tuned(run, folders, tmp_path, *flags, name="again")["metrics"] == whole["metrics"]
    assert_same_end(tmp_path / "whole", tmp_path / "again")


def test_runs_older_than_an_option_are_known_by_what_they_did(
    run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of 46c01a2, which has neither --positions nor --decay-embeddings, goes on as it was."""

    def begun(name: str, *flags: str) -> Path:
        tuned(run, folders, tmp_path, *flags, "--epochs", "2", name=name)
        state = store.read_torch(tmp_path / name / store.LAST)
        for option in ("positions", "decay_embeddings"):
            del state["config"][option]
        del state["skipped"]
        store.save_run(tmp_path / name, state)
        return tmp_path / name

    begun("same")
    tuned(run, folders, tmp_path, "--epochs", "2", name="same")
    common = ["--ckpt", str(run), "--data", str(folders), *FAST, "--epochs", "2", "--out", str(tmp_path / "x.json")]
    folder = begun("larger", "--input-size", "48", "--positions", "scale")
    again = [*common, "--input-size", "48", "--folder", str(folder)]
    capsys.readouterr()
    assert run_command(finetune.main, again) == WRONG_COMMAND
    assert "--positions was scale, now size" in capsys.readouterr().err
    assert run_command(finetune.main, [*again, "--decay-embeddings", "--positions", "scale"]) == WRONG_COMMAND
    assert "(--decay-embeddings was False, now True)" in capsys.readouterr().err
    assert run_command(finetune.main, [*again, "--positions", "scale"]) == DONE
    assert json.loads((tmp_path / "x.json").read_text())["protocol"]["position_embeddings"] == "scale"


def assert_same_end(one: Path, other: Path) -> None:
    first, second = (store.load_run(path) for path in (one, other))
    assert first is not None and second is not None
    for part in ("model", "ema", "optimizer", "random", "tests", "answers", "step"):
        assert same(first.state[part], second.state[part]), part


def test_a_fine_tuning_killed_at_any_moment_ends_in_the_same_bits(run: Path, folders: Path, tmp_path: Path) -> None:
    """Saved after every step, so that kills fall into saves too."""
    flags = ["--ckpt", str(run), "--data", str(folders), *FAST, "--epochs", "12", "--drop-path", "0.2", "--save-minutes", "0"]

    def repeatedly(name: str, kills: int, longest: float) -> dict:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        places = ["--mixup", "0.8", "--folder", str(tmp_path / name), "--out", str(tmp_path / f"{name}.json")]
        words = ["-m", "tests.support.killing", "probes.finetune", "1", str(kills), str(longest), *flags, *places]
        done = subprocess.run(**command(*words, PYTHONPATH=str(ROOT)), check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    whole = repeatedly("whole", 0, 0.0)
    longest = 0.5 + 2 * whole["seconds"] / KILLS
    killed = until_enough(lambda longest: repeatedly("killed", KILLS, longest), longest, KILLS // 2)
    assert whole["code"] == killed["code"] == DONE
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*.part"))


def test_two_processes_fine_tune_and_leave_one_record(run: Path, folders: Path, tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "probes.finetune"]
    places = ["--folder", str(tmp_path / "two"), "--out", str(tmp_path / "two.json")]
    flags = ["--ckpt", str(run), "--data", str(folders), *FAST, "--epochs", "2", "--repeats", "3", *places]
    done = subprocess.run(**command(*launch, *flags), check=False, timeout=200)
    assert done.returncode == 0 and done.stdout.count("results written") == 1, done.stderr
    state = store.read_torch(tmp_path / "two" / store.LAST)
    assert state["step"] == 10 and state["processes"] == 2 and len(state["answers"]["last"]) == 40


def test_a_compiled_fine_tuning_has_the_same_losses(run: Path, folders: Path, tmp_path: Path) -> None:
    """In processes of their own: the checks of shapes that tests install would be compiled too."""
    losses = []
    for mode in ("off", "on"):
        flags = ["--compile", mode, "--epochs", "2", "--limit", "16", "--precision", "fp32", "--drop-path", "0.2"]
        places = ["--folder", str(tmp_path / mode), "--out", str(tmp_path / f"{mode}.json")]
        words = ["-m", "probes.finetune", "--ckpt", str(run), "--data", str(folders), *FAST, *places, *flags]
        done = subprocess.run(**command(*words), check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert ("1 blocks compiled as 1 graph" in done.stdout) == (mode == "on"), done.stdout
        lines = [json.loads(line) for line in (tmp_path / mode / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


MISTAKES = (
    ("--recipe nothing", "unknown --recipe nothing: choose from small, imagenet, semi, transfer"),
    ("--recipe transfer", "give --data-set cifar10|cifar100"),
    ("--recipe semi --percent 10 --names nowhere.txt --input-size 32", "give --percent or --names, not both"),
    ("--percent 0", "--percent 0 must be greater than 0"),
    ("--names nowhere.txt", "--names nowhere.txt is no readable list"),
    ("--lr 0", "--lr must be greater than 0"),
    ("--lr 1e-3 1e-3", "--lr names a learning rate twice"),
    ("--layer-decay 1.5", "--layer-decay 1.5 must be greater than 0 and at most 1"),
    ("--warmup-epochs 3", "--warmup-epochs 3 must be fewer than --epochs 3"),
    ("--crop-scale 0.9 0.1", "give two shares"),
    ("--batch-size 64", "fewer than one step of 64: lower --batch-size"),
    ("--input-size 33", "--input-size 33 is not divisible by 8"),
    ("--ckpt nowhere", "there is no checkpoint at nowhere"),
    ("--ckpt RUN/backbone.safetensors --keep-head-layer", "has no projection head: give a run's folder or a full checkpoint"),
    ("--data flat", "no part named val, test, validation, valid to test on: name one with --val"),
    ("--data flat --val flat", "flat has no labels"),
)


@pytest.mark.parametrize(("flags", "message"), MISTAKES, ids=[flags for flags, _ in MISTAKES])
def test_a_wrong_fine_tuning_command_is_one_sentence_and_exit_code_2(
    flags: str,
    message: str,
    run: Path,
    folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "flat" / "0.png")
    monkeypatch.chdir(tmp_path)
    common = ["--ckpt", str(run), "--data", str(folders), *FAST, "--folder", "tuned"]
    assert exit_code(finetune.main, [*common, *flags.replace("RUN", str(run)).split()]) == WRONG_COMMAND
    complained = capfd.readouterr().err
    assert message in complained and "Traceback" not in complained and not (tmp_path / "tuned").exists()
