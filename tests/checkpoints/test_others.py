"""Files as other projects leave them: found under any prefix, read strictly, with the features that timm's own model has.

Every file is made by its project's documented names, its weights drawn. 46c01a2 refused most of them, DINOv3's as a DINOv2's.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from checkpoints import checked, nests, others
from checkpoints.architecture import Architecture
from checkpoints.cli import UserError
from pretrain.models.backbone import load_backbone
from pretrain.models.vit import ViT
from tests.support.networks import VIT, moved

Weights = dict[str, Tensor]


def drawn(model: torch.nn.Module) -> Any:
    """The model with noise on every weight."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def small_vit(**settings: Any) -> Any:
    """timm's plain ViT, three blocks of width 128."""
    sizes = {"embed_dim": 128, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 0}
    return drawn(timm.create_model("vit_small_patch16_224", **{**sizes, **settings}))


def under(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}{name}": weight for name, weight in weights.items()}


def head(prefix: str) -> Weights:
    return {f"{prefix}mlp.0.weight": torch.zeros(4, 128), f"{prefix}last_layer.weight_v": torch.zeros(9, 4)}


def mae(weights: Weights) -> Weights:
    """MAE's with its decoder."""
    decoder = {"decoder_embed.weight": torch.zeros(64, 128), "decoder_pos_embed": torch.zeros(1, 17, 64)}
    decoder |= {"decoder_blocks.0.norm1.weight": torch.zeros(64), "decoder_norm.weight": torch.zeros(64)}
    return weights | decoder | {"mask_token": torch.zeros(1, 1, 64), "decoder_pred.bias": torch.zeros(192)}


NESTS: dict[str, tuple[Callable[[Weights], dict[str, Any]], str]] = {
    "mae": (lambda w: {"model": mae(w), "epoch": 3, "scaler": {"scale": 1.0}}, "decoder_embed.weight"),
    "moco": (
        lambda w: {
            "state_dict": under("module.base_encoder.", w | {"head.0.weight": torch.zeros(9, 128)})
            | under("module.momentum_encoder.", {name: weight + 1 for name, weight in w.items()})
            | {"module.predictor.0.weight": torch.zeros(3)}
        },
        "momentum_encoder.cls_token",
    ),
    "dinov2-training": (
        lambda w: {"teacher": under("backbone.", w) | head("dino_head.") | head("ibot_head.")},
        "ibot_head.mlp.0.weight",
    ),
    "chunks": (
        lambda w: {
            "teacher": {
                re.sub(r"^backbone\.blocks\.(\d)", r"backbone.blocks.0.\1", n): x for n, x in under("backbone.", w).items()
            }
        },
        "",
    ),
    "lightly": (
        lambda w: {
            "state_dict": under("student_backbone.vit.", {n: x + 1 for n, x in w.items()})
            | under("teacher_backbone.vit.", w)
            | head("student_head.")
            | head("teacher_head."),
            "pytorch-lightning_version": "2.5",
        },
        "teacher_head.mlp.0.weight",
    ),
    "stable-pretraining": (
        lambda w: {"state_dict": under("model.backbone._orig_mod.", w) | head("projector.") | {"backbone_knn.x": torch.zeros(1)}},
        "projector.mlp.0.weight",
    ),
    "compiled": (lambda w: {"model": under("module._orig_mod.", w)}, ""),
    "bare": (lambda w: w, ""),
    "timm-training": (lambda w: {"state_dict": {n: x + 1 for n, x in w.items()}, "state_dict_ema": w, "arch": "vit"}, ""),
}


@pytest.fixture(scope="module")
def vit() -> Any:
    return small_vit()


@pytest.mark.parametrize("kind", NESTS)
def test_a_backbone_is_found_in_what_trained_it_and_the_rest_is_named(
    kind: str, vit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, left_out = NESTS[kind]
    torch.save(write(vit.state_dict()), tmp_path / "file.pth")
    loaded, images = load_backbone(tmp_path / "file.pth"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(loaded.backbone(images), vit.forward_features(images), rtol=0, atol=1e-4)
    assert not left_out or any(name.endswith(left_out) for name in loaded.contents.ignored)
    said = capsys.readouterr().err
    assert ("left out: " in said) == bool(loaded.contents.ignored) and said.count("\n") <= 1
    assert set(loaded.contents.networks) == ({"student", "teacher"} if kind in ("lightly", "timm-training") else {"only"})
    if kind == "lightly":
        student = load_backbone(tmp_path / "file.pth", key="student").backbone.state_dict()
        assert torch.equal(student["norm.bias"], vit.state_dict()["norm.bias"] + 1)


WORDS = st.sampled_from(
    ["module", "_orig_mod", "model", "backbone", "net", "vit", "student_backbone", "encoder", "state_dict", "0"]
)


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(outer=st.lists(WORDS, max_size=3), inner=st.lists(WORDS, max_size=4), beside=WORDS)
def test_a_backbone_is_found_under_any_prefix(outer: list[str], inner: list[str], beside: str) -> None:
    """Dicts in dicts, names after names, wrappers in any order; another network's weights beside them are left out, and named."""
    weights = moved_weights()
    prefix = "".join(f"{word}." for word in inner)
    content: dict[str, Any] = under(prefix, weights)
    for word in reversed(outer):
        content = {word: content, f"other_{beside}": {"fc.weight": torch.zeros(2)}, "epoch": 2}
    found = others.find(content, Path("file"), "")
    assert {name: id(weight) for name, weight in found.networks["only"].items()} == {n: id(w) for n, w in weights.items()}
    assert len(found.ignored) == len(outer) and all(f"other_{beside}.fc.weight" in name for name in found.ignored)


def moved_weights(cache: dict[str, Weights] = {}) -> Weights:  # noqa: B006 (made once)
    if not cache:
        cache["vit"] = moved(VIT).state_dict()
    return cache["vit"]


def test_two_networks_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"holds norm\.bias twice"):
        nests.under("", {"module.norm.bias": torch.zeros(1), "norm.bias": torch.ones(1)}, Path("file"))


def dinov3_file(model: Any, path: Path, biased: bool) -> Path:
    """Meta's names of timm's model, with what its files have besides."""
    state: Weights = {}
    for name, weight in model.state_dict().items():
        new = name.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        for ours, theirs in (("fc1_g", "w1"), ("fc1_x", "w2"), ("fc2", "w3")):
            new = new.replace(f"mlp.{ours}.", f"mlp.{theirs}.") if "blocks.0.mlp.fc1_g.weight" in model.state_dict() else new
        if not new.endswith(("q_bias", "v_bias", "k_bias")):
            state[new] = weight
    width = model.embed_dim
    for block, part in enumerate(model.blocks):
        name = f"blocks.{block}.attn.qkv.bias"
        mask = torch.cat([torch.ones(width), torch.zeros(width), torch.ones(width)])
        keys = torch.full((width,), 5.0)  # what the mask takes out
        state[name] = torch.cat([part.attn.q_bias, keys, part.attn.v_bias]) if biased else keys.repeat(3) * (1 - mask)
        state[f"{name}_mask"] = mask
    state["mask_token"] = torch.zeros(1, width)
    state["rope_embed.periods"] = 100.0 ** (torch.arange(16) / 16).to(torch.bfloat16)
    torch.save({"teacher": under("backbone.", state) | head("dino_head.")} if biased else state, path)
    return path


@pytest.mark.parametrize("arch", ["vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"])
def test_metas_own_dinov3_files_have_timms_features(arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """46c01a2 took them for DINOv2's and refused them."""
    model = drawn(timm.create_model(arch, num_classes=0))
    path = dinov3_file(model, tmp_path / "dinov3_pretrain.pth", biased=arch.endswith("qkvb"))
    loaded, images = load_backbone(path), torch.randn(1, 3, 64, 64)
    assert loaded.backbone.shape.arch == arch and loaded.contents.layout == "a backbone of DINOv3"
    with torch.no_grad():
        expected = model.forward_features(images)
        assert_close(loaded.backbone(images), torch.cat([expected[:, :1], expected[:, 5:]], dim=1), rtol=0, atol=1e-4)
    assert any(name.endswith("mask_token") for name in loaded.contents.ignored)
    assert not capsys.readouterr().out
    state = torch.load(path, weights_only=True)
    inner, prefix = (state["teacher"], "backbone.") if "teacher" in state else (state, "")
    inner[f"{prefix}rope_embed.periods"] *= 2
    torch.save(state, path)
    with pytest.raises(UserError, match="rotary positions are not those of the published DINOv3"):
        load_backbone(path)


def test_a_dinov2_trained_with_other_patches_keeps_them(tmp_path: Path) -> None:
    """Phikon-v2 has patches of 16: timm's filter resamples the patch embedding to its own 14 pixels in silence."""
    model = drawn(timm.create_model("vit_small_patch14_dinov2", img_size=64, patch_size=16, num_classes=0))
    torch.save({"teacher": under("backbone.", model.state_dict() | {"mask_token": torch.zeros(1, 384)})}, tmp_path / "file.pth")
    loaded, images = load_backbone(tmp_path / "file.pth"), torch.randn(1, 3, 64, 64)
    assert (loaded.backbone.shape.patch_size, loaded.backbone.shape.image_size) == (16, 64)
    with torch.no_grad():
        assert_close(loaded.backbone(images), model.forward_features(images), rtol=0, atol=1e-4)


def test_mocos_small_vit_has_twelve_heads(tmp_path: Path) -> None:
    """No weight shows it: with six heads its features are others."""
    shape = Architecture("vit_small", 16, 32, 3, 384, 12, 12)
    network = drawn(ViT(shape, maskable=False))
    torch.save({"state_dict": under("module.base_encoder.", network.state_dict())}, tmp_path / "vit-s-300ep.pth.tar")
    loaded, images = load_backbone(tmp_path / "vit-s-300ep.pth.tar"), torch.randn(1, 3, 32, 32)
    assert loaded.backbone.shape.num_heads == 12
    with torch.no_grad():
        assert_close(loaded.backbone(images), network(images), rtol=0, atol=1e-4)


def clip_names(weights: Weights) -> Weights:
    """open_clip's names of timm's vision tower, and its projection."""
    pairs = [("blocks.", "transformer.resblocks."), ("norm_pre.", "ln_pre."), ("attn.qkv.", "attn.in_proj_"), (".norm", ".ln_")]
    pairs += [("attn.proj.", "attn.out_proj."), ("mlp.fc1.", "mlp.c_fc."), ("mlp.fc2.", "mlp.c_proj.")]
    found: Weights = {}
    for name, weight in weights.items():
        new = f"ln_post.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        for ours, theirs in pairs:
            new = new.replace(ours, theirs)
        found[new] = weight
    found["conv1.weight"] = found.pop("patch_embed.proj.weight")
    found["class_embedding"] = found.pop("cls_token")[0, 0]
    found["positional_embedding"] = found.pop("pos_embed")[0]
    return found | {"proj": torch.zeros(768, 512)}


def test_clips_tower_is_read_and_its_activation_is_asked_for(tmp_path: Path) -> None:
    arch = "vit_xsmall_patch16_clip_224"
    model = drawn(timm.create_model(arch, num_classes=0))
    texts = {"transformer.resblocks.0.ln_1.weight": torch.zeros(512), "logit_scale": torch.zeros(())}
    torch.save(under("module.visual.", clip_names(model.state_dict())) | texts, tmp_path / "clip.pt")
    loaded, images = load_backbone(Path(f"timm:{arch}@{tmp_path / 'clip.pt'}")), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_close(loaded.backbone(images), timm_at(model, arch, images), rtol=0, atol=1e-4)
    assert {"module.visual.proj", "logit_scale"} <= set(loaded.contents.ignored)
    tower = {"visual.conv1.weight": torch.zeros(768, 3, 32, 32), "visual.class_embedding": torch.zeros(768)}
    tower |= {"visual.positional_embedding": torch.zeros(50, 768), "visual.ln_pre.weight": torch.zeros(768)}
    quick = "vit_base_patch32_clip_quickgelu_224"
    with pytest.raises(UserError, match=rf"timm:{quick}@f or --ckpt timm:vit_base_patch32_clip_224@f \(QuickGELU is OpenAI's"):
        others.find(tower, Path("f"), "")
    openais = tower | {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    assert others.find(openais, Path("f"), "").family.arch == quick


def timm_at(model: Any, arch: str, images: Tensor) -> Tensor:
    """Features of the same weights in timm's model for images of any size."""
    free: Any = timm.create_model(arch, num_classes=0, dynamic_img_size=True).eval()
    free.load_state_dict(model.state_dict())
    return free.forward_features(images)


def test_the_names_of_others_lead_to_timms_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    """By outlines alone: towers of SigLIP, ConvNeXts under both names, ResNets."""
    monkeypatch.setattr(checked, "tensor", lambda value, where, shape=None: value)  # which would look at their numbers
    with torch.device("meta"):
        for arch, wrap in (
            ("vit_base_patch16_siglip_224", "visual.trunk."),
            ("convnext_tiny", "backbone."),
            ("resnet50", "module.base_encoder."),
            ("resnet18", "model."),
        ):
            weights = timm.create_model(arch, num_classes=0).state_dict()
            found = others.find(under(wrap, weights), Path("file"), "")
            assert found.family.arch == arch and found.networks["only"].keys() == weights.keys(), arch
        small = timm.create_model("convnext_small").state_dict()
        weights = {meta_convnext(name): weight for name, weight in small.items()}
        found = others.find(weights | {"norms.3.weight": weights["norm.weight"]}, Path("file"), "")
        assert found.family.arch == "convnext_small" and "norms.3.weight" in found.ignored


def meta_convnext(name: str) -> str:
    name = re.sub(r"^stem\.(\d)", r"downsample_layers.0.\1", name)
    name = re.sub(r"^stages\.(\d)\.downsample\.(\d)", r"downsample_layers.\1.\2", name)
    name = re.sub(r"^stages\.(\d)\.blocks\.(\d+)", r"stages.\1.\2", name)
    name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace("head.norm", "norm")
    return name.replace("head.fc.", "head.")


def test_a_file_in_an_architecture_that_was_named_is_found_under_any_prefix(tmp_path: Path) -> None:
    arch = "deit3_small_patch16_224"
    model = drawn(timm.create_model(arch, num_classes=0))
    save_file(under("model.backbone.", model.state_dict()) | {"head.weight": torch.zeros(2)}, tmp_path / "file.safetensors")
    with pytest.raises(UserError, match=r"its weights alone do not name \(it begins with blocks"):
        load_backbone(tmp_path / "file.safetensors")
    loaded, images = load_backbone(Path(f"timm:{arch}@{tmp_path / 'file.safetensors'}")), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert_close(loaded.backbone(images), model.forward_features(images), rtol=0, atol=1e-4)
