"""Any model of timm: pooled features are timm's own, by timm's own preprocessing of the tag; files load strictly."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.testing import assert_close

from pretrain.backbones.timm_model import TimmModel, built
from pretrain.evaluate.views import evaluation_view
from pretrain.models.measured import patch_tokens

FAMILIES = {
    "beit_base_patch16_224": "cls patches blocks attention",
    "beitv2_base_patch16_224": "cls patches blocks attention",
    "cait_xxs24_224": "",
    "convnext_atto": "patches blocks",
    "convnextv2_atto": "patches blocks",
    "deit3_small_patch16_224": "cls patches blocks attention",
    "deit_tiny_distilled_patch16_224": "cls patches blocks attention",
    "densenet121": "patches",
    "edgenext_xx_small": "patches blocks",
    "efficientnet_b0": "patches blocks",
    "eva02_tiny_patch14_224": "cls patches blocks attention",
    "hiera_tiny_224": "patches blocks",
    "levit_128s": "patches",
    "maxvit_pico_rw_256": "patches blocks",
    "mixer_s32_224": "patches blocks",
    "mobilenetv3_small_050": "patches blocks",
    "poolformer_s12": "patches",
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
    "xcit_nano_12_p16_224": "",
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
    model = built(name, pretrained=False).eval()
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
