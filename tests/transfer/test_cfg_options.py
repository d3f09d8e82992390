"""--cfg-options and configs of one's own: a mistake is one sentence that names the nearest key, before anything is built."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")
pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things

from checkpoints.cli import UserError  # noqa: E402
from tests.support.dense import CONFIGS, config_of  # noqa: E402
from transfer import blame, cfg_options, config_keys  # noqa: E402
from transfer.config import read_config, toolboxes  # noqa: E402
from transfer.options import TransferOptions  # noqa: E402

WRONG = {
    "scale=320,240": "the config has no scale",
    "scales=320,240": "nothing reads scales once the config is read",
    "model.backbone.gird=3,5": "model.backbone has no gird: the nearest is model.backbone.grid",
    "model.rpn_head.anchor_generator.scalez=3": "the nearest is model.rpn_head.anchor_generator.scales",
    "train_cfg.max_epoch=3": "the nearest is train_cfg.max_epochs",
    "train_cfg.max_iters=3": "train_cfg has no max_iters",
    "train_cfg.val_interval=1.5": "train_cfg.val_interval is a whole number, as in val_interval=1",
    "train_dataloader.batchsize=3": "the nearest is train_dataloader.batch_size",
    "train_dataloader.batch_size=many": "train_dataloader.batch_size is a number, as in batch_size=4",
    "train_dataloader.dataset.filter_cfg.min_sice=1": "the nearest is train_dataloader.dataset.filter_cfg.min_size",
    "train_dataloader.dataset.filter_cfg.filter_empty_gt=3": "is True or False",
    "optim_wrapper.clip_grad.maxnorm=1": "the nearest is optim_wrapper.clip_grad.max_norm",
    "optim_wrapper.optimizer.lr=high": "optim_wrapper.optimizer.lr is a number, as in lr=0.0001",
    "optim_wrapper.optimizer.momentum=1": "optim_wrapper.optimizer has no momentum: it has amsgrad, betas",
    "default_hooks.chekpoint.interval=4": "the nearest is default_hooks.checkpoint",
    "param_scheduler.7.end=10": "param_scheduler is a list of 2: 0 to 1",
    "param_scheduler.1.miletones=[1,2]": "the nearest is param_scheduler.1.milestones",
    "param_scheduler.1.milestones=8": "param_scheduler.1.milestones is a list",
    "model.backbone=3": "model.backbone is a group of keys",
    "model.backbone.drop_path.x=3": "model.backbone.drop_path is 0.1 and has no parts",
    "model.backbone.type=os.system": "neither toolbox has a os.system",
    "model.neck.type=FPNN": "neither toolbox has a FPNN: the nearest is FPN",
    "model.neck=[1": "brackets do not match",
    "model.neck.out_channels=1]": "brackets do not match",
    "model.neck.out_channels=": "no value",
    "=3": "give KEY=VALUE",
    "model..x=3": "model has no ",
    "train_cfg.max_epochs=__import__('os').system('touch x')": "code is not evaluated",
    "train_cfg.max_epochs=print(3)": "code is not evaluated",
    "train_cfg.max_epochs=lambda: 3": "code is not evaluated",
}
RIGHT: dict[str, Any] = {
    "model.backbone.frozen=True": True,
    "model.backbone.grid=None": None,
    "model.backbone.grid=3,5": [3, 5],
    "model.test_cfg.rcnn.score_thr=0.1": 0.1,
    "optim_wrapper.clip_grad.max_norm=1": 1,
    "optim_wrapper.optimizer.lr=1e-3": 1e-3,
    "param_scheduler.0.end=10": 10,
    "param_scheduler.1.milestones=[1,2]": [1, 2],
    "test_dataloader.dataset.indices=4": 4,
    "train_dataloader.dataset.pipeline.3.transforms.0.0.scales=[(64,64),(32,32)]": [(64, 64), (32, 32)],
    "default_hooks.checkpoint.max_keep_ckpts=1": 1,
    "model.neck.type=PAFPN": "PAFPN",
}


@pytest.fixture(autouse=True, scope="module")
def _toolboxes() -> None:
    toolboxes()


@pytest.mark.parametrize("change", WRONG)
def test_what_a_config_does_not_have_is_one_sentence(change: str) -> None:
    config = config_of("cascade_vits16_1x")
    before = config.to_dict()
    with pytest.raises(UserError) as raised:
        cfg_options.merge(config, [change])
    said = str(raised.value)
    assert WRONG[change] in said and said.startswith("--cfg-options") and "\n" not in said and len(said) < 500
    assert config.to_dict() == before


def test_what_it_has_is_set() -> None:
    config = config_of("cascade_vits16_1x")
    cfg_options.merge(config, RIGHT)
    for change, value in RIGHT.items():
        node: Any = config
        for name in change.partition("=")[0].split("."):
            node = node[int(name)] if name.isdigit() else node[name]
        if change.split("=")[0] != "model.backbone.grid":
            assert node == value
    assert config.model.backbone.grid == [3, 5]


def test_no_config_of_ours_has_a_key_that_is_refused() -> None:
    from transfer import hooks, watching  # noqa: F401, PLC0415 (they register themselves)

    for path in CONFIGS:
        config_keys.check(config_of(path.stem), path.name)


MISTAKES = {
    "def": "cannot be read as a config",
    "_base_ = './nowhere.py'": "cannot be read as a config",
    "x = 1 / 0": "cannot be read as a config (ZeroDivisionError: division by zero)",
    "model = dict()": "lacks default_scope, train_dataloader",
    "model = dict(neck=dict(out_chanels=3))": "model.neck is a FPN, which has no out_chanels: the nearest is out_channels",
    "model = dict(neck=dict(type='FPNN'))": "model.neck.type is FPNN, which neither toolbox has: the nearest is FPN",
    "train_cfg = dict(val_intervall=3)": "which has no val_intervall: the nearest is val_interval",
    "custom_hooks = [dict(type='EmptyCacheHook', after_iteer=True)]": "which has no after_iteer: the nearest is after_iter",
    "param_scheduler = [dict(type='PolyLR', powr=1)]": "param_scheduler.0 is a PolyLR, which has no powr: the nearest is power",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_config_of_one_s_own_is_looked_through_before_anything_is_built(text: str, tmp_path: Path) -> None:
    base = Path("transfer/configs/coco/mask_rcnn_vits16_1x.py").absolute()
    bare = "_base_" in text or text == "model = dict()"
    (tmp_path / "mine.py").write_text(("" if bare else f"_base_ = {str(base)!r}\n") + text + "\n")
    with pytest.raises(UserError) as raised:
        read_config(TransferOptions(task="coco", config=str(tmp_path / "mine.py")))
    assert MISTAKES[text] in str(raised.value) and "\n" not in str(raised.value) and "mine.py" in str(raised.value)


def test_what_mmengine_raises_for_a_changed_config_names_the_change(capsys: pytest.CaptureFixture[str]) -> None:
    plain = TransferOptions(task="coco")
    with pytest.raises(KeyError), blame.of_changes(plain):
        raise KeyError("x")
    changed = TransferOptions(task="coco", cfg_options=("model.neck.num_outs=0",))
    words = r"with --cfg-options model.neck.num_outs=0 \(RuntimeError: shapes\): more is in log.txt"
    with pytest.raises(UserError, match=words), blame.of_changes(changed):
        raise RuntimeError("shapes\nand more")
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(RuntimeError), blame.of_changes(changed, lambda: False):  # later it is no mistake of the config
        raise RuntimeError("shapes")
