"""The systems iBOT is compared with: what each trains, and its losses against their formulas written out."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from checkpoints import flat, store
from checkpoints.architecture import MEAN, STD
from checkpoints.cli import DONE, WRONG_COMMAND, UserError, parse, run_command
from pretrain import train
from pretrain.batches import masking
from pretrain.batches.dataset import Batch, Placed
from pretrain.engine import optim
from pretrain.engine.guard import Guard
from pretrain.engine.precision import Precision
from pretrain.method import dense, ibot
from pretrain.method.ibot import Centres, Student, Teacher, TeacherOutput
from pretrain.method.objective import IBOT, Objective
from pretrain.method.schedule import ScheduleValues
from pretrain.options.groups import Config
from pretrain.options.stored import from_values
from pretrain.sample import scene
from pretrain.setup import data
from pretrain.setup import objective as comparisons
from pretrain.setup.networks import build
from pretrain.setup.plan import Plan, plan_of
from pretrain.tokenizers.base import Colour
from pretrain.train import LossWeights, train_step
from tests.support.commands import SMALL
from tests.support.networks import FAN_IN
from tests.support.parity import Read, assert_near, schedule_of

SHAPE = FAN_IN._replace(arch="vit_tiny")
CPU = torch.device("cpu")
FLOAT32 = Precision("fp32", CPU)
NOW = ScheduleValues(0, 1e-3, 0.1, 0.9, 0.04, 0.07, False, True)
FLAGS = [*SMALL, *"--init fan_in --norm-last-layer false --shared-head true --pred-shape rand --drop-path 0".split()]
BASE = flat.values(parse(Config, FLAGS))
SIZE: int = BASE["out_dim"]
APART = {"shared_head": False, "shared_head_teacher": False}


def batch(seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    grid, local = torch.rand(2, 4, 4, 4) < 0.3, torch.rand(2, 4, 2, 2) < 0.5
    grid[:, 0] = False
    box = torch.tensor([[[0, 0, 40, 40], [4, 0, 24, 20], [0, 0, 10, 10], [8, 8, 32, 32]]] * 2)
    box[1, :, 0] += torch.tensor([0, 6, 60, 0])
    placed = Placed(box, torch.tensor([[False, True, False, False], [False, False, False, True]]))
    crops, small = torch.randn(2, 4, 3, 32, 32), torch.randn(2, 4, 3, 16, 16)
    return Batch(crops, masking.as_masks(grid), small, (), placed, masking.as_masks(local))


def made(values: dict[str, Any]) -> tuple[Plan, Objective, Student, Teacher]:
    plan = plan_of(from_values(**BASE | values))
    objective = comparisons.objective_of(plan, SHAPE, CPU)
    return plan, objective, *build(plan, SHAPE, patch_prototypes=objective.patch_prototypes)


def two_steps(values: dict[str, Any]) -> dict[str, float]:
    """Two steps; the length of each tensor's gradient in the second, before it is clipped, NaN for none."""
    plan, objective, student, teacher = made(values)
    optimizer = optim.build_optimizer("adamw", student)
    lengths: dict[str, float] = {}

    class Looks(Guard):
        def accepts(self, losses: Any, norms: Tensor) -> Any:
            for name, weight in student.named_parameters():
                lengths[name] = float("nan") if weight.grad is None else weight.grad.norm().item()
            return super().accepts(losses, norms)

    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    for seed in (0, 1):
        now = NOW._replace(masking=plan.options.masks.use_masked_im_modeling)
        outcome = train_step(student, teacher, optimizer, [batch(seed)], now, plan.loss_weights, Looks(), FLOAT32, objective)
        assert outcome.accepted and outcome.losses.total.isfinite()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert any(not torch.equal(before[name], weight) for name, weight in teacher.state_dict().items())
    network = getattr(objective, "network", None)
    if isinstance(network, nn.Module):
        assert all(weight.grad is None for weight in network.parameters())
    return lengths


def learning(lengths: dict[str, float]) -> set[str]:
    return {name for name, length in lengths.items() if length > 0}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full checkpoint of a run: a DINO of two steps on the sample."""
    out = tmp_path_factory.mktemp("dino")
    flags = "--data sample:32 --use-masked-im-modeling false --steps 2 --batch-size-per-gpu 4 --knn-every 0".split()
    assert run_command(train.main, [*FLAGS, *flags, "--out", str(out)]) == DONE
    return out


TRAINED = {"backbone.cls_token", "backbone.patch_embed.proj.weight", "backbone.blocks.1.mlp.fc2.weight", "head.mlp.0.weight"}
CASES: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "ibot": ({}, {"backbone.masked_embed", "head.last_layer.weight_v", *TRAINED}, set()),
    "dino": ({"use_masked_im_modeling": False}, {"head.last_layer.weight_v", *TRAINED}, {"backbone.masked_embed"}),
    "mim_only": (
        {"lambda_cls": 0.0, **APART},
        {"backbone.masked_embed", "head.last_layer2.weight_v", *TRAINED},
        {"head.last_layer.weight_v"},
    ),
    "separate heads": (APART, {"head.last_layer.weight_v", "head.last_layer2.weight_v", *TRAINED}, set()),
    "vanilla heads": (
        {"separate_layers": 3, **APART},
        {"head.mlp.4.weight", "head.patch_mlp.0.weight", "head.patch_mlp.4.weight", "head.last_layer2.weight_v", *TRAINED},
        set(),
    ),
    "semi-shared, two layers common": (
        {"separate_layers": 1, "shared_head": False},
        {"head.mlp.4.weight", "head.patch_mlp.0.weight", "head.last_layer2.weight_v", *TRAINED},
        set(),
    ),
    "hard": ({"targets": "hard"}, {"backbone.masked_embed", *TRAINED}, set()),
    "not centred": ({"centre_patches": False}, {"backbone.masked_embed", *TRAINED}, set()),
    "beit": (
        {"targets": "codes", "tokenizer": "colour", "lambda_cls": 0.0, **APART},
        {"backbone.masked_embed", "head.codes.weight", "backbone.blocks.1.mlp.fc2.weight"},
        {"head.mlp.0.weight", "head.last_layer.weight_v"},
    ),
    "beit+dino": (
        {"targets": "codes", "tokenizer": "colour", **APART},
        {"backbone.masked_embed", "head.codes.weight", "head.last_layer.weight_v", *TRAINED},
        set(),
    ),
    "frozen_tokenizer": (
        {"targets": "frozen", "tokenizer": "FULL", "lambda_cls": 0.0, **APART},
        {"backbone.masked_embed", "head.last_layer2.weight_v", *TRAINED},
        {"head.last_layer.weight_v"},
    ),
    "dense_position": ({"targets": "dense_position"}, {"head.last_layer.weight_v", *TRAINED}, {"backbone.masked_embed"}),
    "dense_feature": ({"targets": "dense_feature"}, {"head.last_layer.weight_v", *TRAINED}, {"backbone.masked_embed"}),
    "one crop": ({"masked_crops": "one"}, {"backbone.masked_embed", *TRAINED}, set()),
    "every crop": ({"masked_crops": "all"}, {"backbone.masked_embed", *TRAINED}, set()),
}


@pytest.mark.parametrize("name", CASES)
def test_two_steps_train_what_they_should_and_nothing_else(name: str, full: Path) -> None:
    values, must, must_not = CASES[name]
    lengths = two_steps({key: str(full) if value == "FULL" else value for key, value in values.items()})
    assert must <= learning(lengths), must - learning(lengths)
    assert not must_not & learning(lengths)


def both(
    values: dict[str, Any], given: Batch
) -> tuple[Objective, Student, Teacher, ibot.Losses, ibot.Targets, ibot.StudentOutput]:
    plan, objective, student, teacher = made(values)
    with torch.no_grad():
        for centre in (teacher.centres.cls, teacher.centres.patch):
            centre.normal_(std=0.3)
        masks = objective.masks(given)
        answer, logits = objective.teacher_forward(teacher, given, masks), objective.student_forward(student, given, masks)
        targets = objective.targets(answer, given, masks, teacher.centres, NOW)
        losses = objective.losses(logits, targets, given, masks, plan.loss_weights.cls, plan.loss_weights.patch)
    return objective, student, teacher, losses, targets, logits


@torch.no_grad()
def every_patch(network: ibot.Network, crops: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits of all patches [v, b, n, k]."""
    tokens = network.backbone(crops.flatten(0, 1)) if mask is None else network.backbone(crops.flatten(0, 1), mask.flatten(0, 1))
    return network.head.patches(network.head.bottleneck(tokens[:, 1:])).float().unflatten(0, crops.shape[:2])


def mean_over_masked(each: Tensor, mask: Tensor) -> Tensor:
    """Over an image's masked patches, then over all images and views."""
    mask = mask.flatten(2).float()
    return ((each * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean()


def test_dinos_loss_is_the_cls_part_of_the_original(parity: Read) -> None:
    """Table 9's DINO, as a run with these options has it: the fixture's [CLS] loss in three calls, and nothing of patches."""
    fixture = parity("loss")
    about = fixture.about
    images, prototypes = about["B"], about["out_dim"]
    _, objective, _, _ = made({"use_masked_im_modeling": False})
    centres = Centres(prototypes, prototypes)
    schedule = schedule_of(about)  # a step is an epoch
    for step in range(sum(name.endswith(".loss") for name in fixture.tensors)):
        call = fixture.part(f"step{step}.")
        empty = masking.as_masks(torch.zeros_like(call["mask"]))
        none, mean = torch.empty(0, prototypes), call["teacher_patch"].mean(dim=(0, 1))
        answer = TeacherOutput(call["teacher_cls"].unflatten(0, (-1, images)), none, mean)
        said = torch.cat([call["student_cls"], call["student_local_cls"]]).unflatten(0, (-1, images))
        now, given = NOW._replace(cls_temperature=schedule.at(step).cls_temperature), batch()._replace(masks=empty)
        targets = objective.targets(answer, given, empty, centres, now)
        losses = objective.losses(ibot.StudentOutput(said, none), targets, given, empty, 1.0, 1.0)
        centres.update_(targets)
        assert_near(losses.cls, call["loss_cls"] / about["lambda_cls"])
        assert losses.patch == 0 and losses.total == losses.cls


def test_hard_and_uncentred_targets_are_their_formulas() -> None:
    given = batch()
    for hard, centred in ((True, True), (True, False), (False, False)):
        values = {"targets": "hard" if hard else "online", "centre_patches": centred}
        _, student, teacher, losses, _, _ = both(values, given)
        logits = every_patch(teacher, given.crops) - (teacher.centres.patch if centred else 0)
        wanted = F.one_hot(logits.argmax(-1), SIZE).float() if hard else F.softmax(logits / NOW.patch_temperature, -1)
        said = F.log_softmax(every_patch(student, given.crops, given.masks.grid) / 0.1, -1)
        assert_close(losses.patch, mean_over_masked(-(wanted * said).sum(-1), given.masks.grid), rtol=1e-4, atol=1e-5)


def test_beits_loss_is_cross_entropy_over_the_tokenizers_codes() -> None:
    given, values = batch(), {"targets": "codes", "tokenizer": "colour", **APART}
    _, student, _, losses, _, _ = both(values, given)
    codes = Colour(MEAN, STD)(given.crops.flatten(0, 1), (4, 4)).flatten()
    with torch.no_grad():
        tokens = student.backbone(given.crops.flatten(0, 1), given.masks.grid.flatten(0, 1))[:, 1:]
        head: Any = student.head
        each = F.cross_entropy(head.codes(tokens).flatten(0, 1), codes, reduction="none")
    assert_close(losses.patch, mean_over_masked(each.view(2, 4, 16), given.masks.grid), rtol=1e-4, atol=1e-5)


def test_a_frozen_tokenizers_targets_are_its_own_answer_less_its_centre(full: Path) -> None:
    given = batch()
    _, student, _, losses, _, _ = both({"targets": "frozen", "tokenizer": str(full), **APART}, given)
    state = store.read_torch(full / store.LAST)
    _, _, _, fixed = made({"use_masked_im_modeling": False})
    fixed.load_state_dict(state["teacher"] | {f"centres.{name}": value for name, value in state["centres"].items()})
    wanted = F.softmax((every_patch(fixed.eval(), given.crops) - fixed.centres.patch) / NOW.patch_temperature, -1)
    said = F.log_softmax(every_patch(student, given.crops, given.masks.grid) / 0.1, -1)
    assert_close(losses.patch, mean_over_masked(-(wanted * said).sum(-1), given.masks.grid), rtol=1e-4, atol=1e-5)


def middle(placed: Placed, view: int, image: int, patch: int, side: int) -> tuple[float, float]:
    """The point of the image in the middle of a patch."""
    left, upper, width, height = placed.box[view, image].tolist()
    row, column = divmod(patch, side)
    across = (column + 0.5) / side
    return left + (1 - across if placed.flip[view, image] else across) * width, upper + (row + 0.5) / side * height


def holds(placed: Placed, view: int, image: int, patch: int, side: int, x: float, y: float) -> bool:
    left, upper, width, height = placed.box[view, image].tolist()
    row, column = divmod(patch, side)
    column = side - 1 - column if placed.flip[view, image] else column
    inside_x = left + column * width / side <= x < left + (column + 1) * width / side
    return inside_x and upper + row * height / side <= y < upper + (row + 1) * height / side


def test_the_same_place_is_found_through_crops_and_mirrors() -> None:
    placed, side = batch().placed, 4
    assert placed is not None
    number, has = dense.same_place(placed, side)
    for view in range(2):
        for image in range(4):
            for patch in range(side**2):
                x, y = middle(placed, view, image, patch, side)
                there = [other for other in range(side**2) if holds(placed, 1 - view, image, other, side, x, y)]
                assert bool(has[view, image, patch]) == bool(there)
                if there and not placed.flip[1 - view, image]:  # where a middle lies on an edge, a mirror takes the other side
                    assert there == [int(number[view, image, patch])]
    assert has.any() and not has.all() and not has[:, 2].any()


@pytest.mark.parametrize("by", ["position", "feature"])
def test_dense_self_distillation_is_its_formula(by: str) -> None:
    given = batch()
    _, student, teacher, losses, _, _ = both({"targets": f"dense_{by}"}, given)
    wanted = F.softmax((every_patch(teacher, given.crops) - teacher.centres.patch) / NOW.patch_temperature, -1)
    said = F.log_softmax(every_patch(student, given.crops) / 0.1, -1)
    tokens = teacher.backbone(given.crops.flatten(0, 1))[:, 1:].unflatten(0, (2, 4))
    assert given.placed is not None
    number, has = dense.same_place(given.placed, 4)
    total = torch.zeros(())
    for view in range(2):
        for image in range(4):
            terms = []
            for patch in range(16):
                match = int(number[view, image, patch])
                if by == "feature":
                    match = int(F.cosine_similarity(tokens[view, image, patch], tokens[1 - view, image], dim=-1).argmax())
                elif not has[view, image, patch]:
                    continue
                terms.append(-(wanted[1 - view, image, match] * said[view, image, patch]).sum())
            total = total + (torch.stack(terms).mean() if terms else 0.0)
    assert_close(losses.patch, total / 8, rtol=1e-4, atol=1e-5)


def test_one_masked_crop_is_the_first_and_the_other_is_seen_whole() -> None:
    given = batch()
    _, student, teacher, losses, _, _ = both({"masked_crops": "one"}, given)
    wanted = F.softmax((every_patch(teacher, given.crops) - teacher.centres.patch) / NOW.patch_temperature, -1)
    said = F.log_softmax(every_patch(student, given.crops, given.masks.grid) / 0.1, -1)
    each = -(wanted * said).sum(-1)
    assert_close(losses.patch, mean_over_masked(each[:1], given.masks.grid[:1]), rtol=1e-4, atol=1e-5)
    unmasked = student.backbone(given.crops[1])[:, 0]
    cls = student.head.cls(student.head.bottleneck(unmasked)).float()
    with torch.no_grad():
        logits = student(given.crops, comparisons.OneGlobal().masks(given), given.local_crops)
    assert_close(logits.cls[1], cls, rtol=1e-4, atol=1e-5)


def test_masks_on_every_crop_count_each_crop_once() -> None:
    given = batch()
    _, student, teacher, losses, targets, _ = both({"masked_crops": "all"}, given)
    parts, means = [], []
    assert given.local_masks is not None
    for crops, masks in ((given.crops, given.masks), (given.local_crops, given.local_masks)):
        logits = every_patch(teacher, crops)
        wanted = F.softmax((logits - teacher.centres.patch) / NOW.patch_temperature, -1)
        said = F.log_softmax(every_patch(student, crops, masks.grid) / 0.1, -1)
        parts.append(mean_over_masked(-(wanted * said).sum(-1), masks.grid))
        means.append(logits.flatten(0, 2))
    assert_close(losses.patch, sum(parts) / 2, rtol=1e-4, atol=1e-5)  # two global and two local crops
    assert_close(targets.patch_mean, torch.cat(means).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"targets": "hard"},
        {"centre_patches": False},
        {"targets": "dense_position"},
        {"targets": "dense_feature"},
        {"masked_crops": "one"},
        {"masked_crops": "all"},
        {"separate_layers": 3, **APART},
    ],
    ids=str,
)
def test_a_step_of_a_comparison_asks_the_device_for_nothing(values: dict[str, Any]) -> None:
    """On tensors without content, where any question for a number is an error."""
    _, objective, student, teacher = made(values)
    real = batch()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def pretended(value: Any) -> Any:
            if isinstance(value, Tensor):
                return mode.from_tensor(value)
            return type(value)(*map(pretended, value)) if isinstance(value, Batch | Placed | masking.Masks) else value

        for network in (student, teacher):
            weights = {name: mode.from_tensor(value) for name, value in network.state_dict().items()}
            network.load_state_dict(weights, assign=True)
        optimizer, guard = optim.build_optimizer("adamw", student), Guard(late=True)
        train_step(student, teacher, optimizer, [pretended(real)], NOW, LossWeights(), guard, FLOAT32, objective)


def test_the_default_is_ibot_itself() -> None:
    given = batch()
    objective, student, teacher, losses, _, _ = both({}, given)
    assert type(objective) is Objective and isinstance(IBOT, Objective)
    answer = teacher(given.crops, given.masks)
    targets = ibot.center_and_sharpen(answer, teacher.centres, NOW.cls_temperature, NOW.patch_temperature)
    with torch.no_grad():
        plain = ibot.losses(student(given.crops, given.masks, given.local_crops), targets, given.masks, 1.0, 1.0)
    assert torch.equal(losses.total, plain.total)


def test_the_patch_centre_has_its_own_momentum() -> None:
    _, _, _, teacher = made({"patch_centre_momentum": 0.99})
    given = batch()
    targets = ibot.center_and_sharpen(teacher(given.crops, given.masks), teacher.centres, 0.04, 0.07)
    teacher.centres.update_(targets)
    assert_close(teacher.centres.patch[0, 0], 0.01 * targets.patch_mean)
    assert_close(teacher.centres.cls[0], 0.1 * targets.cls_mean)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"targets": "codes", **APART}, "--targets codes needs --tokenizer: give it: dalle"),
        ({"targets": "frozen", **APART}, "needs --tokenizer: give it: a full checkpoint"),
        ({"tokenizer": "colour"}, "--targets online has no --tokenizer"),
        ({"targets": "codes", "tokenizer": "colour"}, "give --shared-head false --shared-head-teacher false"),
        ({"separate_layers": 1}, "give --shared-head false"),
        ({"separate_layers": 4, **APART}, "must be from 0 to 3"),
        ({"targets": "hard", "masked_crops": "one"}, "do not go together"),
        ({"targets": "dense_feature", "global_crops_number": 1}, "give --global-crops-number 2"),
        ({"targets": "hard", "use_masked_im_modeling": False}, "says nothing"),
        ({"masked_crops": "all", "local_crops_number": 0}, "give --local-crops-number"),
        ({"patch_centre_momentum": 1.0}, "less than 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        plan_of(from_values(**BASE | values))


def test_a_backbone_alone_is_no_tokenizer(full: Path) -> None:
    with pytest.raises(UserError, match=r"has no projection head.*pretrain.tokenizers kmeans"):
        made({"targets": "frozen", "tokenizer": str(full / store.BACKBONE), **APART})


def test_a_run_with_a_tokenizer_goes_on_exactly_and_refuses_another(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frozen targets: two steps and two more are four; then the tokenizer's file changes."""
    mine = tmp_path / "tokenizer.pt"
    mine.write_bytes((full / store.LAST).read_bytes())
    flags = [*FLAGS, *"--shared-head false --shared-head-teacher false --data sample:32 --batch-size-per-gpu 4".split()]
    flags += ["--knn-every", "0", "--targets", "frozen", "--tokenizer", str(mine), "--steps", "4"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_command(train.main, [*flags, "--out", str(whole)]) == DONE
    stopped = Stops(2)
    with stopped:
        assert run_command(train.main, [*flags, "--out", str(parts)]) != DONE
    assert run_command(train.main, [*flags, "--out", str(parts)]) == DONE
    first, second = (store.read_torch(out / store.LAST) for out in (whole, parts))
    assert all(torch.equal(weight, second["student"][name]) for name, weight in first["student"].items())
    state = store.read_torch(mine)
    state["teacher"]["head.mlp.0.bias"] += 1
    store.save_file(mine, state)
    assert run_command(train.main, [*flags, "--out", str(parts)]) == WRONG_COMMAND
    assert "is another file now" in capsys.readouterr().err


class Stops:
    """Asks a run to stop after so many steps."""

    def __init__(self, after: int) -> None:
        self.after, self.done = after, 0

    def __enter__(self) -> None:
        self.real = train.train_step

        def step(*given: Any, **more: Any) -> Any:
            self.done += 1
            if self.done == self.after:
                os.kill(os.getpid(), signal.SIGTERM)
            return self.real(*given, **more)

        train.train_step = step

    def __exit__(self, *error: object) -> None:
        train.train_step = self.real


def test_local_masks_and_places_belong_to_the_step() -> None:
    values: dict[str, Any] = {"masked_crops": "all", "data": "sample:32", "batch_size_per_gpu": 4, "pred_ratio": (0.5,)}
    steps = data.open_data(plan_of(from_values(**BASE | values | {"pred_ratio_var": (0.0,)})), CPU).steps
    first, again, other = steps[3], steps[3], steps[4]
    assert isinstance(first, Batch) and isinstance(again, Batch) and isinstance(other, Batch)
    assert first.local_masks is not None and again.local_masks is not None and other.local_masks is not None
    assert torch.equal(first.local_masks.grid, again.local_masks.grid) and first.local_masks.grid.shape == (2, 4, 2, 2)
    assert not torch.equal(first.local_masks.grid, other.local_masks.grid)
    assert first.placed is not None and first.placed.box.shape == (2, 4, 4) and first.placed.flip.dtype == torch.bool
    assert (first.placed.box[..., :2] + first.placed.box[..., 2:] <= 32).all() and np.isfinite(scene.SIZE)
