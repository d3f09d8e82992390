"""Without --config the recipe follows from the checkpoint: its size chooses the recipe, its shape fills in the widths."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from checkpoints.architecture import Architecture, shape_of
from checkpoints.cli import UserError
from pretrain.models.backbone import make
from transfer.config import build, changes_of, fit, read_config, toolboxes
from transfer.layout import layout_of
from transfer.options import TransferOptions

pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things
Task = Literal["coco", "ade20k"]
OWN = Architecture("vit", 16, 224, 3, 512, 6, 8)


def widths(shape: Architecture) -> tuple[int, ...]:
    return layout_of(make(shape, maskable=False)).widths


@pytest.fixture(autouse=True, scope="module")
def _toolboxes() -> None:
    toolboxes()


def followed(task: Task, shape: Architecture, head: Literal["upernet", "linear"] = "upernet") -> Any:
    config = read_config(TransferOptions(task=task, data=Path("x"), head=head), shape)
    fit(config, widths(shape))
    return config


@pytest.mark.parametrize(
    ("task", "head", "arch", "name"),
    [
        ("coco", "upernet", "vit_small", "cascade_vits16_1x"),
        ("coco", "upernet", "vit_base", "cascade_vitb16_1x"),
        ("coco", "upernet", "vit_large", "cascade_vitl16_1x"),
        ("coco", "upernet", "swin_tiny", "cascade_swint_1x"),
        ("ade20k", "upernet", "vit_small", "upernet_vits16"),
        ("ade20k", "upernet", "vit_base", "upernet_vitb16"),
        ("ade20k", "upernet", "swin_tiny", "upernet_swint"),
        ("ade20k", "linear", "vit_base", "linear_vitb16"),
    ],
)
def test_for_a_network_of_the_paper_it_is_the_paper_s_own_config(
    task: Task, head: Literal["upernet", "linear"], arch: str, name: str
) -> None:
    shape = shape_of(arch, 4 if "swin" in arch else 16, 224)
    mine, written = followed(task, shape, head), read_config(TransferOptions(task=task, config=name))
    for word in ("arch", "patch_size", "window"):
        written.model.backbone.pop(word, None)
    assert mine.model.to_dict() == written.model.to_dict()
    assert mine.optim_wrapper.to_dict() == written.optim_wrapper.to_dict()


def test_other_sizes_get_their_own_widths_and_grids() -> None:
    """46c01a2 took the config of ViT-S for every checkpoint, and refused all others."""
    tiny = followed("coco", shape_of("vit_tiny", 16, 224))
    assert tiny.model.neck.in_channels == [192] * 4 and tiny.model.backbone.drop_path == 0.1
    own = followed("ade20k", OWN)
    assert own.model.decode_head.in_channels == [512] * 4 and own.model.decode_head.channels == 512
    assert own.model.auxiliary_head.in_channels == 512
    swin = followed("coco", shape_of("swin_base", 4, 224))
    assert swin.model.neck.in_channels == [128, 256, 512, 1024] and swin.optim_wrapper.optimizer.lr == 1e-4
    fine = followed("coco", shape_of("vit_small", 8, 224))
    assert fine.model.backbone.grid == (100, 126)


def test_a_frozen_backbone_has_nothing_to_train_and_its_record_says_so() -> None:
    options = TransferOptions(task="ade20k", data=Path("x"), freeze=True)
    shape = shape_of("vit_tiny", 16, 224)
    config = read_config(options, shape)
    config.model.backbone.update(arch="vit_tiny", patch_size=16)  # random weights: no checkpoint says them here
    fit(config, widths(shape))
    model = build(config)
    learning = {name.split(".")[0] for name, one in model.named_parameters() if one.requires_grad}
    assert learning == {"backbone", "decode_head", "auxiliary_head"}  # of the backbone what makes a pyramid of it
    assert not any(one.requires_grad for one in model.backbone.net.parameters())
    assert "model.backbone.frozen=True" in changes_of(options)


def test_a_linear_head_on_a_swin_is_refused() -> None:
    with pytest.raises(UserError, match="--head linear is for ViTs"):
        followed("ade20k", shape_of("swin_tiny", 4, 224), "linear")


@pytest.mark.parametrize(("task", "head"), [("coco", "neck"), ("ade20k", "decode_head")])
def test_vit_l_s_configs_build_with_the_simple_feature_pyramid(task: Task, head: str) -> None:
    shape = shape_of("vit_large", 16, 224)
    options = TransferOptions(task=task, data=Path("x"), neck="simple")
    with torch.device("meta"):
        config = read_config(options, shape)
        config.model.backbone.update(arch="vit_large", patch_size=16, drop_path=0.0)
        fit(config, (1024,), 16)
        model = build(config)
    assert config.model[head].in_channels == {"coco": 1024, "ade20k": [256] * 4}[task]
    assert type(model.neck).__name__ == "SimpleFeaturePyramid" and model.neck.num_outs == {"coco": 5, "ade20k": 4}[task]
    assert model.backbone.layout.taps == (23,) and model.backbone.levels is None


def test_other_libraries_networks_get_the_recipe_of_their_kind() -> None:
    plain = shape_of("vit_small_patch14_dinov2", 14, 518)
    options = TransferOptions(task="coco", data=Path("x"))
    config = read_config(options, plain)
    assert config.filename.endswith("cascade_vits16_1x.py") and "grid" not in config.model.backbone
    stages = Architecture("resnet50", 32, 224, 3, 2048, 0, 0)
    config = read_config(options, stages, plain=False)
    assert config.filename.endswith("cascade_swint_1x.py") and "window" not in config.model.backbone
    fit(config, (256, 512, 1024, 2048))
    assert config.model.neck.in_channels == [256, 512, 1024, 2048]
