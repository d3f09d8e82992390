"""--epochs and --iters scale the whole schedule; lengths and sizes follow the images where own data is small."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")
pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things

from checkpoints.architecture import shape_of  # noqa: E402
from checkpoints.cli import DONE, WRONG_COMMAND, UserError, run_command  # noqa: E402
from pretrain.sample import dense  # noqa: E402
from tests.support.networks import VIT, write_moved  # noqa: E402
from transfer import prepare, scales, schedules, train  # noqa: E402
from transfer.config import read_config, toolboxes  # noqa: E402
from transfer.options import TransferOptions  # noqa: E402
from transfer.scenes import Measures  # noqa: E402

SMALL = shape_of("vit_small", 16, 224)


@pytest.fixture(autouse=True, scope="module")
def _toolboxes() -> None:
    toolboxes()


def recipe(task: Any, **options: Any) -> Any:
    return read_config(TransferOptions(task=task, data=Path("x"), **options), SMALL)


def rates(schedulers: list[dict[str, Any]], steps: int, epoch: int) -> list[float]:
    """Learning rate of every step, by MMEngine's own schedulers; `epoch` steps are an epoch."""
    from mmengine.registry import PARAM_SCHEDULERS  # noqa: PLC0415

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    default = {"optimizer": optimizer, "epoch_length": epoch}
    made = [(PARAM_SCHEDULERS.build(dict(one), default_args=default)) for one in schedulers]
    found = []
    for step in range(1, steps + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for one in made:
            if not one.by_epoch or step % epoch == 0:
                one.step()
    return found


@pytest.mark.parametrize("name", ["cascade_vits16_1x", "sample"])
def test_a_schedule_of_its_own_length_has_the_rates_of_the_recipe(name: str) -> None:
    """All counted in steps, with as many steps as a warm-up wants: nothing moves."""
    config = recipe("coco", config=name)
    epochs, epoch = config.train_cfg.max_epochs, 600
    mine = schedules.scaled(config.param_scheduler, "epochs", epochs, epochs * epoch)
    theirs = rates(config.param_scheduler, epochs * epoch, epoch)
    if name != "sample":  # MMEngine applies a rate by epochs one step earlier than the ramp moves it
        assert rates(mine, epochs * epoch, epoch) == pytest.approx(theirs, rel=1e-6)
    assert [one["end"] for one in mine] == [{"sample": 50}.get(name, 500), epochs * epoch]


def test_a_short_run_warms_up_shortly_and_decays_where_the_recipe_does() -> None:
    warm, steps = schedules.scaled(recipe("coco").param_scheduler, "epochs", 12, 120)
    assert (warm["end"], steps["milestones"], steps["end"], steps["by_epoch"]) == (12, [80, 110], 120, False)
    found = rates([warm, steps], 120, 10)
    assert found[0] == pytest.approx(1e-3) and found[11] == pytest.approx(1.0) and found[79] == pytest.approx(1.0)
    assert found[80] == pytest.approx(0.1) and found[110] == pytest.approx(0.01)
    warm, decay = schedules.scaled(recipe("ade20k").param_scheduler, "iters", 160_000, 120)
    found = rates([warm, decay], 120, 10)
    assert (warm["end"], decay["begin"], decay["end"]) == (12, 12, 120)
    assert max(found) == pytest.approx(1.0, abs=0.02) and found[66] == pytest.approx(0.5, abs=0.02)
    assert found[-1] == 0


@pytest.mark.parametrize("steps", [1, 5, 19, 20])
def test_a_run_of_a_few_steps_has_no_ramp_that_it_never_leaves(steps: int) -> None:
    for task, unit, before in (("coco", "epochs", 12), ("ade20k", "iters", 160_000)):
        assert max(rates(schedules.scaled(recipe(task).param_scheduler, unit, before, steps), steps, steps)) > 0.9


def test_steps_that_nothing_says_how_to_scale_are_refused() -> None:
    with pytest.raises(UserError, match="counts in steps, its training in epochs"):
        schedules.scaled([{"type": "PolyLR", "by_epoch": False, "begin": 500, "end": 9000}], "epochs", 12, 100)


def test_each_task_has_its_flag() -> None:
    with pytest.raises(UserError, match="--iters is for ade20k: give --epochs for coco"):
        schedules.asked(TransferOptions(task="coco", iters=3))
    with pytest.raises(UserError, match="--epochs is for coco: give --iters for ade20k"):
        schedules.asked(TransferOptions(task="ade20k", epochs=3))
    with pytest.raises(UserError, match="name the length twice"):
        schedules.asked(TransferOptions(task="coco", epochs=3, cfg_options=("train_cfg.max_epochs=4",)))
    config = recipe("coco")
    schedules.set_length(config, TransferOptions(task="coco"), 36)
    assert (config.train_cfg.max_epochs, config.train_cfg.val_interval, config.default_hooks.checkpoint.interval) == (36, 3, 3)
    config = recipe("ade20k")
    schedules.set_length(config, TransferOptions(task="ade20k"), 400)
    assert (config.train_cfg.max_iters, config.train_cfg.val_interval, config.default_hooks.checkpoint.interval) == (400, 40, 40)


TABLE = [
    ("coco", 60, 100), ("coco", 250, 48), ("coco", 500, 24), ("coco", 1_000, 12), ("coco", 118_287, 12),
    ("ade20k", 20, 1_000), ("ade20k", 367, 11_653), ("ade20k", 2_000, 63_500), ("ade20k", 20_210, 160_000),
]  # fmt: skip


@pytest.mark.parametrize(("task", "images", "length"), TABLE)
def test_few_images_have_a_length_of_their_own(task: str, images: int, length: int) -> None:
    """The table of docs/dense-transfer.md, for four images a step."""
    assert schedules.for_images(recipe(task), images) == length
    row = f"| {images:,} | {length:,} "
    assert row in Path("docs/dense-transfer.md").read_text() or images > 20_000


def test_all_sizes_of_a_config_follow_the_short_side() -> None:
    config = recipe("coco")
    assert (
        scales.for_images(config, 480) == 480 and scales.for_images(config, 20) == 64 and scales.for_images(config, 800) is None
    )
    scales.set_side(config, 480)
    choice = config.train_dataloader.dataset.pipeline[3].transforms
    assert [choice[0][0].scales[number] for number in (0, -1)] == [(800, 288), (800, 480)]
    assert choice[1][1].crop_size == (230, 360) and choice[1][2].scales == choice[0][0].scales
    for part in ("val_dataloader", "test_dataloader"):
        assert config[part].dataset.pipeline[1].scale == (800, 480)
    assert config.model.backbone.grid == (30, 38) and scales.short_side(config) == 480
    config = recipe("ade20k")
    assert scales.for_images(config, 360) == 352 and scales.for_images(config, 683) is None
    scales.set_side(config, 352)
    train_pipeline = config.train_dataloader.dataset.pipeline
    assert (train_pipeline[2].scale, train_pipeline[3].crop_size) == ((1408, 352), (352, 352))
    assert (config.model.data_preprocessor.size, config.model.test_cfg.crop_size) == ((352, 352), (352, 352))
    assert config.model.test_cfg.stride == (234, 234) and config.model.backbone.grid == (22, 22)
    several = config.tta_pipeline[1].transforms[0]
    assert (several[2].scale, several[2].least) == ((1408, 352), 352)
    config.test_dataloader.dataset.pipeline = []
    with pytest.raises(UserError, match="resizes to no size"):
        scales.set_side(config, 64)


def followed(tmp_path: Path, published: bool = False, **flags: Any) -> Any:
    options = TransferOptions(task="coco", data=Path("x"), **flags)
    config = read_config(options, SMALL)
    config.work_dir = str(tmp_path)
    prepare.follow_images(config, options, Measures({"train": 60, "val": 30}, 480, published), schedules.asked(options))
    return config


def test_own_small_data_is_trained_at_its_size_and_published_data_and_typed_configs_are_not(tmp_path: Path) -> None:
    own = followed(tmp_path / "a")
    assert (own.train_cfg.max_epochs, scales.short_side(own), own.schedule["scaled"]) == (100, 480, True)
    coco = followed(tmp_path / "b", published=True)
    typed = followed(tmp_path / "c", config="cascade_vits16_1x")
    for one in (coco, typed):
        assert (one.train_cfg.max_epochs, scales.short_side(one), one.schedule["scaled"]) == (12, 800, False)
        assert one.model.backbone.grid == (50, 63)
    flags = followed(tmp_path / "d", published=True, epochs=3, size=320)
    assert (flags.train_cfg.max_epochs, scales.short_side(flags), flags.schedule["scaled"]) == (3, 320, True)


def test_the_flags_reach_the_run_and_its_record_and_another_schedule_is_not_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "ade"
    dense.write_ade20k(root, {"train": 6, "val": 3}, size=64)
    ckpt = write_moved(tmp_path / "b.safetensors", VIT._replace(depth=4, image_size=32))
    typed = ["--task", "ade20k", "--ckpt", ckpt, "--data", root, "--config", "sample_linear", "--out", tmp_path / "out"]
    typed += ["--batch-size", 2, "--lr", 0.02, "--size", 64, "--iters"]
    assert run_command(train.main, [*map(str, typed), "24"]) == DONE
    protocol = json.loads((tmp_path / "out/results/transfer_ade20k.json").read_text())["protocol"]
    assert (protocol["max_iters"], protocol["images_a_step"], protocol["lr"], protocol["size"]) == (24, 2, 0.005, 64)
    assert "optim_wrapper.optimizer.lr=0.02" in protocol["cfg_options"] and "train_cfg.max_iters=24" in protocol["cfg_options"]
    state = torch.load(tmp_path / "out/iter_24.pth", weights_only=False)["param_schedulers"]
    assert [(one["begin"], one["end"]) for one in state] == [(0, 2), (2, 24)]
    capsys.readouterr()
    assert run_command(train.main, [*map(str, typed), "30"]) == WRONG_COMMAND
    assert "was trained with another schedule (length 24 then, 30 now)" in capsys.readouterr().err


def test_the_screen_says_the_rate_that_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    """MMEngine keeps the optimizer's base settings beside its groups and scales by the batch only the groups."""
    from mmengine.optim import OptimWrapper  # noqa: PLC0415

    from transfer import screen  # noqa: PLC0415

    layers = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [layer], "lr": rate} for layer, rate in zip(layers, (0.1, 0.8), strict=True)], lr=0.8)
    wrapper = OptimWrapper(optimizer)
    wrapper.base_param_settings = {"params": torch.tensor([0.0]), "lr": 0.8}
    for group in optimizer.param_groups:
        group["lr"] /= 8
    runner = SimpleNamespace(iter=9, max_iters=10, optim_wrapper=wrapper, train_loop=None)
    with screen.Screen("ade20k", True) as shown:
        shown.after_train_iter(runner, 0, outputs={"loss": torch.tensor(2.5)})
    assert "loss 2.500, lr 0.1" in capsys.readouterr().out
