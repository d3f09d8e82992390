"""The dense backbone: pyramids against the original's numbers, layer-wise decay, position embeddings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pretrain.models.vit import ViT
from tests.support.networks import SWIN, VIT, write_moved
from tests.support.parity import Read, assert_near

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")

from transfer import ops

ops.register()


from checkpoints.architecture import Architecture, shape_of  # noqa: E402
from checkpoints.cli import UserError, WorkError  # noqa: E402
from pretrain.models.backbone import load_backbone, make  # noqa: E402
from pretrain.models.layer_index import layer_of  # noqa: E402
from tests.support.dense import config_of  # noqa: E402
from transfer import backbone as dense  # noqa: E402
from transfer import layer_decay, levels  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things


@pytest.mark.parametrize("name", ["pyramid_raw", "pyramid_norm"])
@torch.no_grad()
def test_parity_pyramid_of_a_square_and_of_a_rectangle(parity: Read, name: str) -> None:
    fixture = parity(name)
    about, given = fixture.about, fixture.tensors
    shape = Architecture("vit", about["patch"], about["img"], 3, about["dim"], about["depth"], about["heads"])
    pyramid = dense.Pyramid(make(shape, maskable=False), taps=about["out_indices"], norm_taps=about["out_with_norm"]).eval()
    levels = {f"levels.{name}": weight for name, weight in fixture.part("state.").items() if name.startswith("fpn")}
    net = {f"net.{name}": weight for name, weight in fixture.part("state.").items() if not name.startswith("fpn")}
    pyramid.load_state_dict(
        {key: weight.float() if weight.is_floating_point() else weight for key, weight in (levels | net).items()}
    )
    for images, prefix in (("x", "level."), ("x_rect", "level_rect.")):
        found = pyramid(given[images])
        for number, level in enumerate(found):
            assert_near(level, given[f"{prefix}{number}"])


@torch.no_grad()
def test_images_that_patches_do_not_divide_are_padded_with_zeros() -> None:
    torch.manual_seed(0)
    for shape in (VIT._replace(depth=4), SWIN):
        pyramid = dense.Pyramid(make(shape, maskable=False)).eval()
        images = torch.randn(2, 3, 45, 38)
        padded = torch.zeros(2, 3, 48, 40)
        padded[:, :, :45, :38] = images
        for one, other in zip(pyramid(images), pyramid(padded), strict=True):
            assert torch.equal(one, other)


def test_taps_follow_the_depth() -> None:
    assert levels.taps_of(12) == [3, 5, 7, 11] and levels.taps_of(24) == [7, 11, 15, 23] and levels.taps_of(4) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="taps four blocks, this ViT has 2"):
        levels.taps_of(2)


@torch.no_grad()
def test_swins_levels_are_its_four_stages_in_the_sizes_of_a_pyramid() -> None:
    shape = shape_of("swin_tiny", 4, 224)
    pyramid = dense.IBOTBackbone(arch="swin_tiny", patch_size=4, window=7).eval()
    assert [tuple(level.shape[1:]) for level in pyramid(torch.randn(1, 3, 64, 96))] == [
        (96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3),
    ]  # fmt: skip
    assert pyramid.shape.depths == shape.depths


def test_a_frozen_backbone_stays_as_it_is_and_checkpointed_blocks_give_the_same(tmp_path: Path) -> None:
    path = write_moved(tmp_path / "b.safetensors", VIT._replace(depth=4))
    frozen = dense.IBOTBackbone(checkpoint=str(path), frozen=True, levels=False, drop_path=0.5).train()
    assert not any(parameter.requires_grad for parameter in frozen.parameters()) and not frozen.net.training
    images = torch.randn(2, 3, 32, 32)
    assert all(torch.equal(one, other) for one, other in zip(frozen(images), frozen(images), strict=True))
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        network = dense.IBOTBackbone(checkpoint=str(path), checkpointed=checkpointed).train()
        torch.manual_seed(1)
        torch.stack([level.square().mean() for level in _without_syncbn(network)(images)]).sum().backward()
        grads.append(first_weight(network).grad)
    assert_close(grads[0], grads[1])


def first_weight(network: Any) -> torch.nn.Parameter:
    """Of the first block's MLP."""
    return network.net.blocks[0].mlp.fc1.weight


def _without_syncbn(network: torch.nn.Module) -> torch.nn.Module:
    from mmengine.model import revert_sync_batchnorm  # noqa: PLC0415

    return revert_sync_batchnorm(network)


def test_overwritten_weights_stop_the_training(tmp_path: Path) -> None:
    """MMEngine calls init_weights of what is inside a model that has none of its own: timm's would draw new weights."""
    path = write_moved(tmp_path / "b.safetensors", VIT._replace(depth=4))
    network = dense.IBOTBackbone(checkpoint=str(path))
    network.init_weights()
    before = first_weight(network).clone()
    network.verify()
    assert torch.equal(before, first_weight(network))
    net: Any = network.net
    net.init_weights(needs_reset=False)
    torch.nn.init.normal_(first_weight(network))
    with pytest.raises(WorkError, match="overwritten while the model was built"):
        network.verify()


def test_a_checkpoint_of_another_architecture_and_none_at_all_are_refused(tmp_path: Path) -> None:
    path = write_moved(tmp_path / "b.safetensors", VIT._replace(depth=4))
    with pytest.raises(UserError, match="has arch vit, the config is for vit_small: give another --config or --ckpt"):
        dense.IBOTBackbone(checkpoint=str(path), arch="vit_small", patch_size=8)
    with pytest.raises(UserError, match="the backbone has no checkpoint"):
        dense.IBOTBackbone()


def test_layers_learn_by_the_formula_in_vit_and_swin() -> None:
    for arch, patch, depths in (("vit_small", 16, (12,)), ("swin_tiny", 4, (2, 2, 6, 2))):
        model = torch.nn.Module()
        model.backbone = dense.IBOTBackbone(arch=arch, patch_size=patch, window=7)
        model.head = torch.nn.Linear(2, 2)
        constructor = layer_decay.IBOTLayerDecay(
            {"optimizer": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.05}}, {"layer_decay": 0.8}
        )
        optimizer = constructor(model).optimizer
        rates = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
        assert len(rates) == len(list(model.parameters()))
        last = sum(depths) + 1
        for name, parameter in model.named_parameters():
            group, layer = rates[id(parameter)], last
            parts = name.split(".")
            if ".blocks." in name:
                at = parts.index("blocks")
                stage = int(parts[at - 1]) if "layers" in parts else 0
                layer = sum(depths[:stage]) + int(parts[at + 1]) + 1
            elif "downsample" in parts:
                layer = sum(depths[: int(parts[parts.index("layers") + 1])]) + 1
            elif any(word in name for word in ("cls_token", "pos_embed", "patch_embed")):
                layer = 0
            assert group["lr"] == pytest.approx(1e-3 * 0.8 ** (last - layer)), name
            assert group["weight_decay"] == (0.0 if parameter.ndim == 1 or name.endswith(".bias") else 0.05), name


def by_size(positions: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The original's resizing on loading, of a square grid behind one [CLS]: bicubic, by size."""
    side = round((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)], dim=1)


@pytest.mark.parametrize(
    "name, grid", [("upernet_vits16", (32, 32)), ("cascade_vits16_1x", (50, 63)), ("cascade_vitb16_1x", (42, 68))]
)
def test_position_embeddings_are_resized_once_and_trained_at_the_configs_grid(tmp_path: Path, name: str, grid: tuple) -> None:
    """46c01a2 kept 197 positions and resized them in every forward with the rule of pretraining: 1.8 % rms apart at 512."""
    config = config_of(name)
    settings = {key: value for key, value in config.model.backbone.items() if key not in ("type", "arch")}
    assert tuple(settings["grid"]) == grid
    width = {"vit_small": 384, "vit_base": 768}[config.model.backbone.arch]
    shape = Architecture("vit", 16, 224, 3, width, 4, width // 64)
    torch.manual_seed(0)
    path = write_moved(tmp_path / "b.safetensors", shape)
    original = load_backbone(path).backbone
    assert isinstance(original, ViT)
    stored = original.pos_embed.detach()
    network: Any = _without_syncbn(dense.IBOTBackbone(checkpoint=str(path), **settings)).train()
    rows, columns = grid
    positions = network.net.pos_embed
    assert isinstance(positions, torch.nn.Parameter) and positions.shape == (1, 1 + rows * columns, width)
    assert_close(positions.detach(), by_size(stored, rows, columns), rtol=0, atol=1e-6)
    network.init_weights()  # the seal is the resized network's
    assert network.net.position(rows, columns) is positions
    images = torch.randn(1, 3, 64, 96)  # of another grid: resized in the forward by the rule that the fixtures show
    torch.stack([level.square().mean() for level in network(images)]).sum().backward()
    assert positions.grad is not None and positions.grad[:, 1:].abs().amax(-1).gt(0).float().mean() > 0.1
    factors = ((4 + 0.1) / rows, (6 + 0.1) / columns)
    patches = positions.detach()[:, 1:].reshape(1, rows, columns, width).permute(0, 3, 1, 2)
    smaller = torch.nn.functional.interpolate(patches, scale_factor=factors, mode="bicubic").flatten(2).transpose(1, 2)
    assert_close(network.net.position(4, 6)[:, 1:].detach(), smaller, rtol=0, atol=1e-6)
    assert layer_of("pos_embed", network.shape) == 0


def test_a_grid_is_two_numbers_and_for_vits(tmp_path: Path) -> None:
    path = write_moved(tmp_path / "b.safetensors", VIT._replace(depth=4))
    for grid in (32, (32,), (0, 4), (2.5, 2), "32", (4, 4000)):
        with pytest.raises(UserError, match="give rows and columns of patches"):
            dense.IBOTBackbone(checkpoint=str(path), grid=grid)
    with pytest.raises(UserError, match="is for ViTs: swin_tiny has no grid"):
        dense.IBOTBackbone(arch="swin_tiny", patch_size=4, grid=(4, 4))
    frozen = dense.IBOTBackbone(checkpoint=str(path), grid=(3, 5), frozen=True, levels=False)
    assert isinstance(frozen.net, ViT)
    assert frozen.net.pos_embed.shape[1] == 16 and not frozen.net.pos_embed.requires_grad
    assert frozen.drawn().state_dict().keys() == frozen.net.state_dict().keys()
