"""Any model of timm: pooled features are timm's own, by timm's own preprocessing of the tag; files load strictly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from timm.models._hub import save_for_hf
from torch.testing import assert_close

from checkpoints.cli import UserError
from checkpoints.resolve import pretrained_config
from pretrain.backbones.open import open_backbone
from pretrain.backbones.timm_model import TimmModel, built, preprocessing_of
from pretrain.evaluate.views import evaluation_view
from pretrain.models.measured import Measured, patch_tokens, require

FAMILIES = {
    "beit_base_patch16_224": "cls patches blocks attention",
    "beitv2_base_patch16_224": "cls patches blocks attention",
    "cait_xxs24_224": "cls patches",
    "convnext_atto": "patches blocks",
    "convnextv2_atto": "patches blocks",
    "deit3_small_patch16_224": "cls patches blocks attention",
    "deit_tiny_distilled_patch16_224": "cls patches blocks attention",
    "densenet121": "patches blocks",
    "edgenext_xx_small": "patches blocks",
    "efficientnet_b0": "patches blocks",
    "eva02_tiny_patch14_224": "cls patches blocks attention",
    "hiera_tiny_224": "patches blocks",
    "levit_128s": "patches blocks",
    "maxvit_pico_rw_256": "patches blocks",
    "mixer_s32_224": "patches blocks",
    "mobilenetv3_small_050": "patches blocks",
    "poolformer_s12": "patches blocks",
    "pvt_v2_b0": "patches blocks",
    "regnety_002": "patches blocks",
    "resnet18": "patches blocks",
    "swin_tiny_patch4_window7_224": "patches blocks",
    "swinv2_tiny_window8_256": "patches blocks",
    "vit_base_patch16_siglip_224": "patches blocks",
    "vit_base_patch16_siglip_gap_224": "patches blocks",
    "vit_small_patch14_dinov2": "cls patches blocks attention",
    "vit_small_patch16_dinov3": "cls patches blocks attention",
    "vit_tiny_patch16_224": "cls patches blocks attention",
    "xcit_nano_12_p16_224": "cls patches",
}
"""A small model of each family, and what it has besides a pooled feature."""


def picture(height: int = 250, width: int = 310) -> Image.Image:
    """Smooth, so that a pixel's rounding is not all there is."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (20 + 9 * number)) + np.cos(columns / (15 + 7 * number)) for number in range(3)]
    return Image.fromarray(((np.stack(waves, axis=-1) + 2) * 63).astype(np.uint8))


@pytest.mark.parametrize("name", FAMILIES)
def test_pooled_features_are_timms_own(name: str) -> None:
    """On 46c01a2 half of these families were refused, and plain ViTs normalised by ImageNet's mean."""
    torch.manual_seed(0)
    large = name.startswith(("beit", "deit3", "vit_base", "vit_small"))  # those take seconds
    fewer = {"depth": 4, "embed_dim": 96, "num_heads": 3} if large else {}
    model = built(name, pretrained=False, **fewer).eval()
    found = TimmModel(name, model, lambda: model)
    assert found.abilities == set(FAMILIES[name].split())
    its, shape = found.preprocessing, found.shape
    view = evaluation_view(
        np.asarray(picture()), its.resize, its.crop, its.interpolation, its.squash, mean=shape.mean, std=shape.std
    )
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    expected = transform(picture())
    assert_close(view, expected, rtol=0, atol=1e-5)
    with torch.inference_mode():
        assert_close(found.pooled(view[None]), model(expected[None]), rtol=1e-4, atol=1e-4)
        if "patches" in found.abilities:
            side = its.crop // shape.stride
            assert patch_tokens(found, view[None]).shape[1] == side * side
        if "blocks" in found.abilities:
            assert found.last_blocks(view[None], 4)[-1].shape[1] == 1 + side * side
        if "attention" in found.abilities:
            rows = found.get_last_selfattention(view[None])
            assert rows.shape[1:] == (shape.num_heads, 1 + side * side, 1 + side * side)


def test_a_tag_decides_the_preprocessing_and_a_wrong_one_is_refused() -> None:
    """On 46c01a2 the tag was cut off: both of the first pair had ImageNet's mean, and a wrong tag was taken."""
    web, space = (preprocessing_of(pretrained_config(f"vit_large_patch16_dinov3.{tag}")) for tag in ("lvd1689m", "sat493m"))
    assert web.mean == (0.485, 0.456, 0.406) and space.mean == pytest.approx((0.430, 0.411, 0.296), abs=1e-6)
    assert preprocessing_of(pretrained_config("vit_small_patch16_224")).mean == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match="timm has no weights 'nonsense' of resnet18"):
        open_backbone(Path("timm:resnet18.nonsense"))
    with pytest.raises(UserError, match="timm has no model resnet1"):
        open_backbone(Path("timm:resnet1"))


def test_a_file_of_timm_loads_strictly(tmp_path: Path) -> None:
    """On 46c01a2 `timm:resnet18@FILE` was refused, as it has no class token."""
    torch.manual_seed(0)
    model: Any = timm.create_model("resnet18", num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    torch.save({"state_dict": {f"module.{name}": one for name, one in model.state_dict().items()}}, tmp_path / "nested.pth")
    images = torch.rand(2, 3, 64, 64)
    for name in ("whole.safetensors", "nested.pth"):
        loaded = open_backbone(Path(f"timm:resnet18@{tmp_path / name}"))
        assert set(loaded.contents.ignored) == {"fc.weight", "fc.bias"} and loaded.path == tmp_path / name
        assert isinstance(loaded.backbone, Measured) and not loaded.backbone.training
        with torch.inference_mode():
            expected = model.forward_head(model.forward_features(images), pre_logits=True)
            assert_close(loaded.backbone.pooled(images), expected)
    save_file({name: one for name, one in model.state_dict().items() if "layer4.1" not in name}, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match=r"as resnet18 does not fit: it lacks layer4\.1\.bn1\.bias"):
        open_backbone(Path(f"timm:resnet18@{tmp_path / 'less.safetensors'}"))
    with pytest.raises(UserError, match="has no \\[CLS\\] token, which this needs"):
        require(loaded.backbone, "patches", "cls")


def test_a_size_that_a_network_cannot_take_is_one_sentence() -> None:
    found = TimmModel("hiera_tiny_224", built("hiera_tiny_224", pretrained=False), lambda: built("hiera_tiny_224"))
    with pytest.raises(UserError, match="timm:hiera_tiny_224 takes images of 224 pixels only, not 128: give --view own"):
        found.fit(128)
    beit = TimmModel("beit_base_patch16_224", built("beit_base_patch16_224", depth=2), lambda: built("beit_base_patch16_224"))
    beit.fit(96)
    assert beit.shape.image_size == 96 and patch_tokens(beit, torch.rand(1, 3, 96, 96)).shape[1] == 36


def test_a_folder_of_timm_for_the_hub_is_read_with_its_own_numbers(tmp_path: Path) -> None:
    """As timm itself writes it; an architecture that timm has not, or numbers that cannot be, are one sentence."""
    torch.manual_seed(0)
    model: Any = timm.create_model("test_vit", num_classes=0, reg_tokens=2).eval()
    args, config = {"reg_tokens": 2}, dict(model.pretrained_cfg) | {"mean": (0.1, 0.2, 0.3), "crop_pct": 1.0}
    save_for_hf(model, str(tmp_path), model_config={"pretrained_cfg": config, "model_args": args}, safe_serialization=True)
    found = open_backbone(Path(f"hf:{tmp_path}")).backbone
    assert isinstance(found, TimmModel) and found.shape.mean == (0.1, 0.2, 0.3) and found.preprocessing.resize == 160
    images = torch.rand(1, 3, 160, 160)
    with torch.inference_mode():
        assert_close(found.pooled(images), model(images))
    content = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"architecture": "hf-hub:evil/else"}, "not one of timm's own"),
        ({"model_args": {"depth": 9999}}, "depth"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=words):
            open_backbone(Path(f"hf:{tmp_path}"))
