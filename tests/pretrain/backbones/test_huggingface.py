"""Hugging Face's layouts: written by transformers itself with random weights, read here, equal to transformers' own features."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.testing import assert_close

from checkpoints.cli import UserError
from pretrain.backbones.hf_model import KINDS
from pretrain.backbones.open import open_backbone
from pretrain.evaluate.views import evaluation_view
from pretrain.models.measured import Measured, patch_tokens

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
}
VIT = SMALL | {"patch_size": 8}
SWIN = {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 2}
CONV = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
SETTINGS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "deit": VIT,
    "dinov2": {name: value for name, value in VIT.items() if name != "intermediate_size"},
    "dinov2_with_registers": {name: value for name, value in VIT.items() if name != "intermediate_size"},
    "dinov3_vit": VIT | {"num_register_tokens": 4},
    "dinov3_convnext": CONV | {"image_size": 64},
    "clip": VIT,
    "clip_vision_model": VIT,
    "siglip": VIT,
    "siglip_vision_model": VIT,
    "data2vec-vision": VIT | {"use_mean_pooling": True},
    "beit": VIT | {"use_mean_pooling": True, "use_relative_position_bias": True},
    "swin": SWIN,
    "swinv2": SWIN,
    "convnext": CONV,
    "convnextv2": CONV,
    "resnet": CONV | {"embedding_size": 8, "layer_type": "basic"},
}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}}),
    "siglip": ("SiglipImageProcessor", {"size": {"height": 32, "width": 32}}),
    "beit": (
        "BeitImageProcessor",
        {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True},
    ),
    "dinov2": ("BitImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}),
}
"""Of the others ViT's, with squares of 32 (64 for stages)."""


def picture() -> Image.Image:
    rows, columns = np.mgrid[:90, :120]
    waves = [np.sin(rows / (8 + 3 * number)) + np.cos(columns / (6 + 2 * number)) for number in range(3)]
    return Image.fromarray(((np.stack(waves, axis=-1) + 2) * 63).astype(np.uint8))


def written(kind: str, folder: Path) -> tuple[Any, Any]:
    """A model of that type as transformers saves it, and its image processor (Pillow's, where transformers has it)."""
    torch.manual_seed(0)
    known = KINDS[kind]
    if known.tower:
        text = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        name = known.config.replace("Vision", "")
        config = getattr(transformers, name)(vision_config=SETTINGS[kind], text_config=text, projection_dim=16)
        whole = getattr(transformers, name.replace("Config", "Model"))(config).eval()
        model = whole.vision_model
    else:
        more = {"add_pooling_layer": True} if known.pooler else {}
        whole = model = getattr(transformers, known.model)(getattr(transformers, known.config)(**SETTINGS[kind]), **more).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    whole.save_pretrained(folder)
    side = 64 if kind in ("swin", "swinv2", "resnet", "convnextv2", "dinov3_convnext") else 32
    name, settings = PROCESSORS.get(kind, ("ViTImageProcessor", {"size": {"height": side, "width": side}}))
    processor = getattr(transformers, f"{name}Pil")(**settings)
    processor.save_pretrained(folder)
    return model, processor


@pytest.mark.parametrize("kind", KINDS)
def test_pooled_features_are_transformers_own(kind: str, tmp_path: Path) -> None:
    """On 46c01a2 every one of these folders was refused."""
    model, processor = written(kind, tmp_path)
    loaded = open_backbone(Path(f"hf:{tmp_path}"))
    found, (file,) = loaded.backbone, tmp_path.glob("*.safetensors")
    assert isinstance(found, Measured) and loaded.path == file
    its = found.preprocessing
    view = evaluation_view(
        np.asarray(picture()), its.resize, its.crop, its.interpolation, its.squash, mean=its.mean, std=its.std
    )[None]
    expected = processor(picture(), return_tensors="pt")["pixel_values"]
    assert_close(view, expected, rtol=0, atol=1e-5)
    with torch.inference_mode():
        output = model(pixel_values=expected)
        pooled = output.pooler_output.flatten(1)
        assert_close(found.pooled(view), pooled, rtol=1e-4, atol=1e-4)
        patches = patch_tokens(found, view)
        side = its.crop // found.shape.stride
        assert patches.shape[1] == side * side
        blocks = found.last_blocks(view, 4)
        assert len(blocks) == (4 if found.shape.depth else 1) and blocks[-1].shape[1] == 1 + side * side
        if KINDS[kind].norm:
            assert_close(blocks[-1][:, 0], output.last_hidden_state[:, 0], rtol=1e-4, atol=1e-4)
        if "attention" in found.abilities:
            rows = found.get_last_selfattention(view)
            assert rows.shape[1:] == (2, 1 + side * side, 1 + side * side)
    assert {part.device.type for part in found.parameters()} == {"cpu"} and not found.training


def test_a_folder_is_read_as_data_and_names_nothing(tmp_path: Path) -> None:
    """Code, other repositories and kernels that a config names are not looked at; what is not known is one sentence."""
    written("vit", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    naming = {"auto_map": {"AutoModel": "evil.py--Evil"}, "_name_or_path": "evil/else", "attn_implementation": "evil/kernel"}
    naming |= {
        "_attn_implementation": "evil/kernel",
        "quantization_config": {"quant_method": "evil"},
        "transformers_weights": "evil",
    }
    (tmp_path / "config.json").write_text(json.dumps(config | naming))
    loaded = open_backbone(Path(f"hf:{tmp_path}"))
    model: Any = loaded.backbone
    assert "evil" not in json.dumps(model.model.config.to_dict())
    for change, words in (
        ({"model_type": "timm_wrapper"}, "models of type timm_wrapper are not known here"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1e\\+09, which no model has"),
        ({"image_size": 60000, "patch_size": 1}, "more than any model has"),
        ({"hidden_size": 64}, "does not fit"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=words):
            open_backbone(Path(f"hf:{tmp_path}"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"has no readable preprocessor_config\.json"):
        open_backbone(Path(f"hf:{tmp_path}"))
    with pytest.raises(UserError, match="OWNER/NAME is the form"):
        open_backbone(Path("hf:nothing"))
