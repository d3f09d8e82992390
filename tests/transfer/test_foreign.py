"""Other libraries' networks as pyramids: four maps at strides of 4 to 32, the weights kept, every parameter in one layer."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch.testing import assert_close
from torchvision import models

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")

from transfer import ops

ops.register()


from checkpoints.cli import UserError  # noqa: E402
from pretrain.backbones.timm_model import TimmModel, built  # noqa: E402
from pretrain.backbones.torchvision_model import TorchvisionModel, preprocessing_of  # noqa: E402
from pretrain.models.timm_vit import AnyViT  # noqa: E402
from pretrain.models.vit import ViT  # noqa: E402
from transfer import layer_decay, necks, networks, normalising  # noqa: E402
from transfer.backbone import IBOTBackbone, Pyramid  # noqa: E402
from transfer.config import toolboxes  # noqa: E402
from transfer.levels import resized_tokens  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things
SIZE = (72, 100)
"""Of images: neither patches of 14 nor 32 pixels divide it."""


def of_timm(name: str, **settings: Any) -> TimmModel:
    build = partial(built, name, pretrained=False, **settings)
    return TimmModel(name, build(), build)


def of_torchvision(name: str) -> TorchvisionModel:
    build = partial(models.get_model, name, weights=None)
    weights: Any = models.get_model_weights(name)
    return TorchvisionModel(name, build(), preprocessing_of(weights.DEFAULT), build)


def dinov2_folder(folder: Path) -> Path:
    config = transformers.Dinov2Config(hidden_size=48, num_hidden_layers=6, num_attention_heads=2, image_size=70, patch_size=14)
    transformers.Dinov2Model(config).save_pretrained(folder)
    transformers.BitImageProcessor(size={"shortest_edge": 70}, crop_size={"height": 70, "width": 70}).save_pretrained(folder)
    return folder


def pyramid_of(net: Any, **how: Any) -> Any:
    from mmengine.model import revert_sync_batchnorm  # noqa: PLC0415

    return revert_sync_batchnorm(Pyramid(net, **how))


SHALLOW = {"depth": 4}
FAMILIES = [
    ("vit_small_patch14_reg4_dinov2", SHALLOW, [384] * 4, [1, 2, 3, 4]),
    ("vit_small_patch16_dinov3", SHALLOW, [384] * 4, [1, 2, 3, 4]),
    ("vit_small_patch8_224", SHALLOW, [384] * 4, [1, 2, 3, 4]),
    ("vit_base_patch32_clip_224", SHALLOW | {"embed_dim": 192, "num_heads": 3}, [192] * 4, [1, 2, 3, 4]),
    ("vit_base_patch16_siglip_224", SHALLOW | {"embed_dim": 192, "num_heads": 3}, [192] * 4, [1, 2, 3, 4]),
    ("eva02_tiny_patch14_224", SHALLOW, [192] * 4, [1, 2, 3, 4]),
    ("resnet18", {}, [64, 128, 256, 512], [2, 3, 4, 5]),
    ("resnet50", {"layers": (1, 1, 1, 1)}, [256, 512, 1024, 2048], [2, 3, 4, 5]),
    ("convnext_atto", {}, [40, 80, 160, 320], [1, 2, 3, 4]),
    ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, [96, 192, 384, 768], [1, 2, 3, 4]),
    ("efficientnet_b0", {}, [24, 40, 112, 320], [2, 3, 4, 5]),
]


@pytest.mark.parametrize(("name", "settings", "widths", "taps"), FAMILIES, ids=[family[0] for family in FAMILIES])
def test_networks_of_timm_are_four_maps_whose_gradients_reach_the_backbone(
    name: str, settings: dict[str, Any], widths: list[int], taps: list[int]
) -> None:
    torch.manual_seed(0)
    net = of_timm(name, **settings)
    before = {key: weight.clone() for key, weight in net.state_dict().items()}
    assert net.make_trainable_(drop_path=0.1, checkpointed=True) == []
    pyramid = pyramid_of(net).train()
    look_at(pyramid, widths)
    assert [tap + 1 for tap in pyramid.layout.taps] == taps
    after = net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[key], weight) for key, weight in before.items())


def look_at(pyramid: Any, widths: list[int]) -> None:
    """Strides and widths of the maps; all that learns has a gradient; every parameter is in one layer of the optimizer."""
    maps = pyramid(torch.randn(2, 3, *SIZE))
    wanted = [
        (2, width, *(math.ceil(side / stride) for side in SIZE)) for width, stride in zip(widths, (4, 8, 16, 32), strict=True)
    ]
    assert [tuple(one.shape) for one in maps] == wanted
    torch.stack([one.square().mean() for one in maps]).sum().backward()
    learning = {name: one for name, one in pyramid.named_parameters() if one.requires_grad}
    assert all(one.grad is not None for one in learning.values())
    model = torch.nn.Module()
    model.backbone, model.head = pyramid, torch.nn.Linear(2, 2)
    wrapper = {"optimizer": {"type": "AdamW", "lr": 1.0, "weight_decay": 0.05}}
    groups = layer_decay.IBOTLayerDecay(wrapper, {"layer_decay": 0.5}).groups(model)
    found = [id(one) for group in groups for one in group["params"]]
    assert len(found) == len(set(found)) == len(learning) + 2
    rates = {id(one): group["lr"] for group in groups for one in group["params"]}
    assert rates[id(model.head.weight)] == 1
    assert min(rates.values()) == 0.5 ** (pyramid.layout.num_layers + (1 if pyramid.layout.plain else 0))


def test_layers_of_a_vit_are_its_blocks_and_of_stages_its_maps() -> None:
    pyramid = pyramid_of(of_timm("vit_small_patch14_reg4_dinov2", depth=6), norm_taps=True)
    of_vit = {name.removeprefix("model."): layer for name, layer in pyramid.layout.layers.items()}
    for name in ("pos_embed", "cls_token", "reg_token", "patch_embed.proj.weight"):
        assert of_vit[name] == 0
    assert [of_vit[f"blocks.{number}.attn.qkv.weight"] for number in range(6)] == [1, 2, 3, 4, 5, 6]
    assert of_vit["norm.weight"] == 7
    of_resnet = pyramid_of(of_timm("resnet18").requires_grad_(True)).layout.layers
    names = ("conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.1.conv2")
    assert [of_resnet[f"model.{name}.weight"] for name in names] == [1, 1, 2, 3, 4]


@torch.no_grad()
def test_tokens_of_14_pixels_are_resized_where_they_lie() -> None:
    """The token of a ramp has the value of its centre: so has the resized one."""
    tokens = (14 * torch.arange(16.0) + 7).expand(1, 1, 16, 16)
    found = resized_tokens(tokens, 14 / 16)
    assert found.shape == (1, 1, 14, 14)
    assert_close(found[0, 0, 0], 16 * torch.arange(14.0) + 8)


@torch.no_grad()
def test_maps_are_timm_s_own() -> None:
    """For images that need no padding; patches of 16 need no resizing either."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 96)
    vit = of_timm("vit_small_patch16_dinov3", depth=4)
    for found, own in zip(
        Pyramid(vit, levels=False, norm_taps=True).eval()(images),
        vit.model.forward_intermediates(images, norm=True)[1],
        strict=True,
    ):
        assert_close(found, own)
    resnet = of_timm("resnet18")
    for found, own in zip(Pyramid(resnet).eval()(images), resnet.model.forward_intermediates(images)[1][1:], strict=True):
        assert_close(found, own)


def test_batch_norms_keep_the_statistics_of_the_checkpoint() -> None:
    net = of_timm("resnet18")
    pyramid = Pyramid(net.requires_grad_(True)).train()
    before = net.model.bn1.running_mean.clone()
    pyramid(torch.randn(2, 3, 64, 64))
    assert torch.equal(net.model.bn1.running_mean, before) and net.model.bn1.weight.requires_grad
    pyramid.statistics = True  # random weights
    pyramid.train()(torch.randn(2, 3, 64, 64))
    assert not torch.equal(net.model.bn1.running_mean, before)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_folder_of_hugging_face_s_dinov2(tmp_path: Path, checkpointed: bool) -> None:
    torch.manual_seed(0)
    folder = dinov2_folder(tmp_path / "dinov2")
    from mmengine.model import revert_sync_batchnorm  # noqa: PLC0415

    network: Any = revert_sync_batchnorm(IBOTBackbone(checkpoint=str(folder), checkpointed=checkpointed, drop_path=0.1)).train()
    network.verify()
    look_at(network, [48] * 4)
    assert network.layout.num_layers == 6 and network.lacks == []
    layers = network.layout.layers
    assert layers["model.embeddings.cls_token"] == 0 and max(layers.values()) == 6
    assert network.drawn().state_dict().keys() == network.net.state_dict().keys()


def test_blocks_that_are_computed_again_give_the_same_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = dinov2_folder(tmp_path / "dinov2")
    images, grads = torch.randn(1, 3, 64, 64), []
    for checkpointed in (False, True):
        network: Any = IBOTBackbone(checkpoint=str(folder), checkpointed=checkpointed, last=True).train()
        network(images)[0].square().mean().backward()
        grads.append([one.grad for one in network.net.parameters() if one.requires_grad])
    assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("name", "widths"),
    [("resnet18", [64, 128, 256, 512]), ("swin_t", [96, 192, 384, 768]), ("efficientnet_b0", [24, 40, 112, 1280])],
)
def test_networks_of_torchvision(name: str, widths: list[int]) -> None:
    torch.manual_seed(0)
    net = of_torchvision(name)
    lacks = net.make_trainable_(drop_path=0.1, checkpointed=False)
    assert lacks == (["stochastic depth"] if name == "resnet18" else [])
    look_at(pyramid_of(net).train(), widths)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (
            lambda: of_torchvision("vit_b_16"),
            "does not take images of 128 x 192 pixels .*; dense transfer needs images of any size",
        ),
        (lambda: of_timm("beit_base_patch16_224", depth=4), "does not take images of 128 x 192"),
        (lambda: of_timm("vit_tiny_patch16_224", depth=2), "taps four blocks, this ViT has 2: give --neck simple"),
    ],
)
def test_what_cannot_be_a_pyramid_is_one_sentence(net: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        Pyramid(net())
    assert "\n" not in str(refused.value)


def test_a_file_of_timm_s_is_ibot_s_own_network_where_it_is_one(tmp_path: Path) -> None:
    """DINOv2 has LayerScale: computed by timm. A plain ViT is computed here, as before, with a grid of positions."""
    for name, kind in (("vit_tiny_patch16_224", ViT), ("vit_small_patch14_dinov2", AnyViT), ("test_resnet", TimmModel)):
        torch.manual_seed(0)
        weights = timm.create_model(name, num_classes=0).state_dict()
        save_file({key: weight.contiguous() for key, weight in weights.items()}, tmp_path / f"{name}.safetensors")
        found = networks.opened(Path(f"timm:{name}@{tmp_path / name}.safetensors")).backbone
        assert isinstance(found, kind)


def test_images_are_normalised_as_the_backbone_s_own_were() -> None:
    toolboxes()
    from mmengine.config import Config  # noqa: PLC0415

    shape = of_timm("vit_base_patch16_siglip_224", depth=1).shape
    written = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    config = Config({"model": {"data_preprocessor": dict(written)}})
    said = normalising.follow(config, shape, [])
    assert config.model.data_preprocessor == {"mean": [127.5] * 3, "std": [127.5] * 3}
    assert said == "images of 0 to 255 are normalised as the backbone's: mean 127.5 127.5 127.5, std 127.5 127.5 127.5"
    config = Config({"model": {"data_preprocessor": dict(written)}})
    normalising.follow(config, shape._replace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), [])
    assert config.model.data_preprocessor == written
    said = normalising.follow(config, shape, ["model.data_preprocessor.mean=[1,2,3]"])
    assert "as --cfg-options say" in said and config.model.data_preprocessor.mean == written["mean"]


@pytest.mark.parametrize(("patch", "stride"), [(16, 16), (14, 16), (8, 8), (32, 16)])
def test_the_simple_feature_pyramid_has_five_levels_of_the_last_map(patch: int, stride: int) -> None:
    torch.manual_seed(0)
    arch = {
        16: "vit_small_patch16_dinov3",
        14: "vit_small_patch14_dinov2",
        8: "vit_small_patch8_224",
        32: "vit_small_patch32_224",
    }
    net = of_timm(arch[patch], depth=2)
    pyramid = Pyramid(net.requires_grad_(True), last=True)
    assert pyramid.stride == stride and pyramid.layout.taps == (1,)
    neck = necks.SimpleFeaturePyramid(384, 32, 5, stride)
    maps = neck(pyramid(torch.randn(1, 3, 64, 96)))
    assert [tuple(one.shape[1:]) for one in maps] == [(32, 16, 24), (32, 8, 12), (32, 4, 6), (32, 2, 3), (32, 1, 2)]
    maps[0].sum().backward()
    assert net.model.blocks[0].attn.qkv.weight.grad is not None


def test_the_simple_feature_pyramid_is_the_paper_s() -> None:
    """Section 3: from stride 16 two deconvolutions, one, none, a max pooling; 1 x 1 and 3 x 3 convolutions with LayerNorm."""
    neck: Any = necks.SimpleFeaturePyramid(384)
    kinds = [[type(part).__name__.removesuffix("2d") for part in level] for level in neck.levels]
    last = ["Conv", "LayerNorm", "Conv", "LayerNorm"]
    assert kinds == [
        ["ConvTranspose", "LayerNorm", "GELU", "ConvTranspose", *last], ["ConvTranspose", *last], last, ["MaxPool", *last],
    ]  # fmt: skip
    widths = [[(part.in_channels, part.out_channels) for part in level if hasattr(part, "in_channels")] for level in neck.levels]
    assert widths[0] == [(384, 192), (192, 96), (96, 256), (256, 256)] and widths[1][0] == (384, 192)


def test_the_simple_feature_pyramid_of_a_network_of_stages_is_refused() -> None:
    for net in (of_timm("resnet18"), IBOTBackbone(arch="swin_tiny", patch_size=4).net):
        with pytest.raises(
            UserError, match=r"--neck simple makes a pyramid of a plain ViT's last map, .* is a pyramid by itself"
        ):
            Pyramid(net, last=True)
