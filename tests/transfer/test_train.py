"""Dense transfer: operations, pyramids, layer-wise decay and configs, against the original's numbers and by hand."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from pretrain.models.vit import ViT
from tests.support.commands import ROOT, command
from tests.support.networks import SWIN, VIT, write_moved
from tests.support.parity import Read, assert_near

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")

from transfer import ops

ops.register()

import mmcv.ops  # noqa: E402
from mmengine.config import Config  # noqa: E402

from checkpoints.architecture import Architecture, shape_of  # noqa: E402
from checkpoints.cli import DONE, WRONG_COMMAND, UserError, WorkError, run_command  # noqa: E402
from pretrain.models.backbone import load_backbone, make  # noqa: E402
from pretrain.models.layer_index import layer_of  # noqa: E402
from pretrain.sample import dense as sample_dense  # noqa: E402
from probes import segment  # noqa: E402
from probes.paper import protocols  # noqa: E402
from transfer import backbone as dense  # noqa: E402
from transfer import hooks, layer_decay, train  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things


def test_parity_nms_of_every_kind(parity: Read) -> None:
    given = parity("mmcv_ops").tensors
    boxes, scores = given["boxes"], given["scores"]
    for threshold in (0.3, 0.7):
        dets, keep = mmcv.ops.nms(boxes, scores, threshold)
        assert torch.equal(keep, given[f"nms.{threshold}.keep"]) and torch.equal(dets, given[f"nms.{threshold}.dets"])
        settings = {"type": "nms", "iou_threshold": threshold}
        dets, keep = mmcv.ops.batched_nms(boxes, scores, given["ids"], settings)
        assert torch.equal(keep, given[f"batched_nms.{threshold}.keep"])
        assert torch.equal(dets, given[f"batched_nms.{threshold}.dets"])
    _, keep = mmcv.ops.nms(boxes, scores, 0.5, score_threshold=0.3, max_num=20)
    assert torch.equal(keep, given["nms.limited.keep"])
    dets, keep = mmcv.ops.soft_nms(boxes, scores, iou_threshold=0.3, min_score=1e-3, method="linear")
    assert torch.equal(keep, given["soft_nms.keep"]) and torch.equal(dets, given["soft_nms.dets"])


@pytest.mark.parametrize("name, sampling, aligned", [("det", 0, True), ("fixed", 2, True), ("unaligned", 2, False)])
def test_parity_roi_align_forward_and_backward(parity: Read, name: str, sampling: int, aligned: bool) -> None:
    given = parity("mmcv_ops").tensors
    features, expected = given["roi.features"].requires_grad_(), given[f"roi.{name}.out"]
    found = mmcv.ops.roi_align(features, given["roi.rois"], expected.shape[2:], 0.25, sampling, "avg", aligned)
    found.backward(given[f"roi.{name}.grad_out"])
    assert_near(found, expected)
    assert features.grad is not None
    assert_near(features.grad, given[f"roi.{name}.grad_in"])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_operations_take_half_precision(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    boxes = torch.rand(30, 4) * 20
    boxes[:, 2:] += boxes[:, :2] + 5
    _, keep = mmcv.ops.nms(boxes.to(kind), torch.linspace(0, 1, 30).to(kind), 0.5)
    assert 0 < len(keep) < 30
    features, rois = torch.randn(1, 3, 16, 16), torch.tensor([[0.0, 2, 2, 10, 12]])
    half = features.to(kind).requires_grad_()
    found = mmcv.ops.roi_align(half, rois.to(kind), (4, 4), 1.0, 2)
    found.sum().backward()
    assert found.dtype == kind and half.grad is not None and half.grad.dtype == kind
    assert_close(found.float(), mmcv.ops.roi_align(features, rois, (4, 4), 1.0, 2), rtol=0.02, atol=0.02)


def test_offset_one_counts_both_edge_pixels_and_soft_nms_is_its_formula() -> None:
    """Two boxes of 10 pixels that share 5: IoU 1/3 with edges counted from 0, 6/16 = 0.375 with both counted."""
    boxes, scores = torch.tensor([[0.0, 0, 10, 10], [5.0, 0, 15, 10]]), torch.tensor([0.9, 0.8])
    assert len(ops.nms(boxes, scores, 0.35, 0)) == 2 and len(ops.nms(boxes, scores, 0.35, 1)) == 1
    dets = torch.empty(2, 5)
    ops.softnms(boxes, scores, dets, 0.3, 0.5, 0.0, 2, 0)
    assert_close(dets[1, 4], torch.tensor(0.8) * torch.exp(torch.tensor(-((1 / 3) ** 2) / 0.5)))
    ops.softnms(boxes, scores, dets, 0.3, 0.5, 0.0, 1, 0)
    assert_close(dets[1, 4], torch.tensor(0.8 * 2 / 3))
    assert len(ops.softnms(boxes, scores, dets, 0.3, 0.5, 0.01, 0, 0)) == 1
    assert ops.nms_match(torch.cat([boxes, scores[:, None]], dim=1), 0.3) == [[0, 1]]


def test_an_operation_that_is_not_covered_is_named_when_it_is_called() -> None:
    with pytest.raises(NotImplementedError, match="the operation roi_pool_forward of mmcv needs mmcv's compiled part"):
        mmcv.ops.roi_pool(torch.randn(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 3, 3]]), 2)


def test_a_compiled_mmcv_is_left_in_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").touch()
    suffix = ops.importlib.machinery.EXTENSION_SUFFIXES[0]
    (tmp_path / "mmcv" / f"_ext{suffix}").touch()
    for name in [name for name in sys.modules if name == "mmcv" or name.startswith("mmcv.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert ops.compiled() and not ops.register() and ops.NAME not in sys.modules


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
    assert dense.taps_of(12) == [3, 5, 7, 11] and dense.taps_of(24) == [7, 11, 15, 23] and dense.taps_of(4) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="taps four blocks, this ViT has 2"):
        dense.taps_of(2)


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


CONFIGS = sorted(path for path in train.CONFIGS.glob("*/*.py") if not train.is_base(path))


def test_every_promised_config_is_there() -> None:
    names = {path.stem for path in CONFIGS}
    dets = {
        f"{head}_{arch}_{times}"
        for head in ("cascade", "mask_rcnn")
        for arch in ("vits16", "vitb16", "swint")
        for times in ("1x", "3x")
    }
    dets |= {"cascade_vitl16_1x", "mask_rcnn_vitl16_1x"}
    large = {f"{head}_{arch}" for head in ("upernet", "linear") for arch in ("vitl16", "vitb16_640", "vitl16_640")}
    assert dets | large | {"upernet_vits16", "upernet_vitb16", "upernet_swint", "linear_vits16", "linear_vitb16"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_at_full_size_and_takes_a_step(path: Path) -> None:
    """One forward and backward on a small image: every learnable parameter gets a gradient. ViT-L is built without memory."""
    train.toolboxes()
    config = Config.fromfile(path)
    train.adapt(config, device="cpu", distributed=False)
    if "sample" in path.stem:
        config.model.backbone.update(arch="vit_tiny", patch_size=8)
        train.fit(config, [192] * 4)
    with torch.device("meta" if "vitl" in path.stem else "cpu"):
        model = train.build(config).train()
    if path.stem in MILLIONS:
        assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == MILLIONS[path.stem]
    if "vitl" in path.stem:
        assert model.backbone.taps == [7, 11, 15, 23]
        return
    torch.manual_seed(0)
    losses = model.loss(*small_batch(config))
    parts = [
        value for name, values in losses.items() if "loss" in name for value in (values if isinstance(values, list) else [values])
    ]
    total = torch.stack([part.sum() for part in parts]).sum()
    assert total.isfinite()
    total.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not [name for name in without if not name.startswith("backbone.net.norm")], without


MILLIONS = {
    "cascade_vits16_1x": 82.7, "cascade_vitb16_1x": 153.4, "cascade_swint_1x": 85.6, "cascade_vitl16_1x": 377.4,
    "mask_rcnn_vits16_1x": 44.9, "mask_rcnn_vitb16_1x": 115.6, "mask_rcnn_swint_1x": 47.8, "mask_rcnn_vitl16_1x": 339.6,
    "upernet_vits16": 41.7, "upernet_vitb16": 163.3, "upernet_swint": 59.9, "upernet_vitl16": 439.9,
    "upernet_vitb16_640": 163.7, "upernet_vitl16_640": 440.5, "linear_vitb16_640": 87.3, "linear_vitl16_640": 305.4,
    "linear_vits16": 22.2, "linear_vitb16": 86.9, "linear_vitl16": 304.8,
}  # fmt: skip
"""Parameters of whole models. Swin-T's are the published 86, 48 and 60, UPerNet with ViT-B the published 163."""


def small_batch(config: Config, size: int = 96) -> tuple[torch.Tensor, list]:
    """An image with two things, as the toolbox's pipeline would pack it."""
    from mmengine.structures import InstanceData, PixelData  # noqa: PLC0415

    images = torch.randn(1, 3, size, size)
    meta = {"img_shape": (size, size), "ori_shape": (size, size), "pad_shape": (size, size), "scale_factor": (1.0, 1.0)}
    if config.default_scope == "mmseg":
        from mmseg.structures import SegDataSample  # noqa: PLC0415

        sample = SegDataSample(metainfo=meta)
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 11, (1, size, size)))
        return images.repeat(2, 1, 1, 1), [sample, sample]  # batch normalisation of one pixel needs two
    from mmdet.structures import DetDataSample  # noqa: PLC0415
    from mmdet.structures.mask import BitmapMasks  # noqa: PLC0415

    sample = DetDataSample(metainfo=meta | {"batch_input_shape": (size, size)})
    boxes = torch.tensor([[8.0, 8, 60, 70], [30.0, 20, 90, 88]])
    masks = np.zeros((2, size, size), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 3]), masks=BitmapMasks(masks, size, size))
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return images, [sample]


def config_of(name: str) -> Config:
    train.toolboxes()
    return Config.fromfile(next(path for path in CONFIGS if path.stem == name))


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
    assert dense.drawn(frozen.shape, frozen.grid).state_dict().keys() == frozen.net.state_dict().keys()


PUBLISHED_GRIDS = {"coco": {"vit_small": (50, 63), "vit_base": (42, 68), "vit_large": (42, 68)}, "ade20k": (32, 32)}
BATCHES = {"coco": {"vit_small": 32, "vit_base": 16, "vit_large": 16, "swin_tiny": 16}, "ade20k": 16}


@pytest.mark.parametrize("path", [path for path in CONFIGS if "sample" not in path.stem], ids=lambda path: path.stem)
def test_every_config_has_the_grid_and_the_batch_of_its_protocol(path: Path) -> None:
    """46c01a2 had no grids, and 32 images a step for Swin's detectors."""
    config, task = config_of(path.stem), path.parent.name
    arch, grid = config.model.backbone.arch, config.model.backbone.get("grid")
    if arch == "swin_tiny":
        assert grid is None
    elif path.stem.endswith("640"):
        assert tuple(grid) == (40, 40) and config.model.test_cfg.crop_size == (640, 640)
        assert config.model.test_cfg.stride == (426, 426) and config.model.data_preprocessor.size == (640, 640)
        pipeline = {step.type: step for step in config.train_dataloader.dataset.pipeline}
        assert pipeline["RandomCrop"].crop_size == (640, 640) and pipeline["RandomResize"].scale == (2560, 640)
        for loader in (config.val_dataloader, config.test_dataloader):
            assert [step.scale for step in loader.dataset.pipeline if step.type == "Resize"] == [(2560, 640)]
    else:
        wanted = PUBLISHED_GRIDS[task]
        assert tuple(grid) == (wanted[arch] if isinstance(wanted, dict) else wanted)
        resized = protocols.resolved((protocols.detector if task == "coco" else protocols.segmenter("upernet"),), {"arch": arch})
        assert resized["protocol.position"] == train.position("vit", grid)
    batch = BATCHES[task]
    assert config.auto_scale_lr.base_batch_size == (batch[arch] if isinstance(batch, dict) else batch)


@pytest.mark.parametrize(
    "name, rate, decay, drop",
    [
        ("upernet_swint", 6e-5, 0.01, 0.3),
        ("cascade_swint_1x", 1e-4, 0.05, 0.0),
        ("mask_rcnn_swint_1x", 1e-4, 0.05, 0.1),
        ("cascade_swint_3x", 1e-4, 0.05, 0.2),
        ("mask_rcnn_swint_3x", 1e-4, 0.05, 0.2),
    ],
)
def test_swins_configs_are_the_published_ones(name: str, rate: float, decay: float, drop: float) -> None:
    """By the groups of the optimizer that is built. 46c01a2: 0.05, drop path 0.1 or 0.2, tables decayed, biases not."""
    from mmengine.optim import build_optim_wrapper  # noqa: PLC0415

    config = config_of(name)
    train.adapt(config, device="cpu", distributed=False)
    model = train.build(config)
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    found = {id(one): group for group in optimizer.param_groups for one in group["params"]}
    names = [name for name, _ in model.named_parameters()]
    assert sum("relative_position_bias_table" in name for name in names) == 12 and len(found) == len(names)
    for key, parameter in model.named_parameters():
        plain = "norm" in key or "relative_position_bias_table" in key
        assert found[id(parameter)]["weight_decay"] == (0.0 if plain else decay) and found[id(parameter)]["lr"] == rate, key
    blocks = [block for layer in model.backbone.net.layers for block in layer.blocks]
    assert getattr(blocks[-1].drop_path1, "drop_prob", 0.0) == pytest.approx(drop)
    if config.default_scope == "mmseg":
        assert config.model.test_cfg == {"mode": "whole"}


@pytest.mark.parametrize("size", [(683, 512), (512, 683), (3000, 500), (200, 300), (100, 90), (2100, 300)])
def test_several_scales_are_ratios_of_2048_x_512_and_never_under_512(size: tuple[int, int]) -> None:
    """46c01a2 scaled the native image: 256 pixels of 512 at a ratio of 0.5, where windows of 512 do not fit."""
    width, height = size
    steps = config_of("upernet_vits16").tta_pipeline[1].transforms[0]
    from transfer.resizing import ResizeNotUnder  # noqa: PLC0415

    assert [step.pop("type") for step in steps] == ["ResizeNotUnder"] * 6
    for ratio, step in zip((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), steps, strict=True):
        image = np.zeros((height, width, 3), dtype=np.uint8)
        found = ResizeNotUnder(**step)({"img": image})
        factor = min(2048 * ratio / max(size), 512 * ratio / min(size))
        factor = max(factor, 512 / min(size))
        assert found["img"].shape[:2] == found["img_shape"] == (int(height * factor + 0.5), int(width * factor + 0.5))
        assert min(found["img_shape"]) >= 512


def test_a_run_of_another_grid_or_another_model_is_not_continued() -> None:
    """46c01a2 knew no grid; weights that did not fit were left out with a warning, and the training went on."""
    weights = {"backbone.net.pos_embed": torch.zeros(1, 197, 8), "head.weight": torch.zeros(2, 3)}
    now = weights | {"backbone.net.pos_embed": torch.zeros(1, 1025, 8)}
    hooks.refuse_another(weights, dict(weights), "runs/a")
    with pytest.raises(UserError, match=r"runs/a was trained with 197 position embeddings, the config has 1025: .*grid=None"):
        hooks.refuse_another(now, weights, "runs/a")
    for other in ({"head.weight": torch.zeros(3, 3)}, {"more": torch.zeros(1)}, {"head.weight": 3}, {"head.weight": None}):
        with pytest.raises(UserError, match=r"runs/a holds another model than the config's, first in (head.weight|more)"):
            hooks.refuse_another(weights, weights | other, "runs/a")
    strange: tuple[Any, ...] = (None, [], {}, "weights")
    for nothing in strange:
        with pytest.raises(UserError, match="holds another model"):
            hooks.refuse_another(weights, nothing, "runs/a")
    groups = {"param_groups": [{"params": [0, 1]}, {"params": [2]}]}
    hooks.refuse_other_groups(groups, {**groups, "loss_scaler": {}}, "runs/a")
    for bad in ({"param_groups": [{"params": [0, 1, 2]}]}, {}, None, {"param_groups": [{"params": 3}, 4]}, {"param_groups": 1}):
        with pytest.raises(UserError, match="other groups of parameters in its optimizer"):
            hooks.refuse_other_groups(groups, bad, "runs/a")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with four blocks."""
    return write_moved(tmp_path_factory.mktemp("ckpt") / "b.safetensors", VIT._replace(depth=4, image_size=32))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    sample_dense.write_coco(root, {"train": 16, "val": 8}, size=64)
    return root


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ade20k")
    sample_dense.write_ade20k(root, {"train": 16, "val": 8}, size=64)
    return root


def transfer(task: str, *flags: object) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # the other package family is tested through it
    arguments = command("-m", "transfer.train", "--task", task, *map(str, flags), PYTHONPATH=paths)
    return subprocess.run(**arguments, check=False, timeout=600)


def test_detection_trains_saves_goes_on_tests_and_draws(tiny: Path, coco: Path, tmp_path: Path) -> None:
    flags = [
        "--ckpt",
        tiny,
        "--data",
        coco,
        "--config",
        "sample",
        "--out",
        tmp_path,
        "--cfg-options",
        "train_dataloader.batch_size=4",
    ]
    first = transfer("coco", *flags, "train_cfg.max_epochs=1")
    assert first.returncode == 0, first.stderr[-3000:]
    assert "4 images a step; the config's learning rate 0.003 is for 8: 0.0015 is used" in first.stdout
    assert "the checkpoint's weights, verified" in first.stdout + first.stderr
    again = transfer("coco", *flags, "train_cfg.max_epochs=2")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "resumed epoch: 1" in again.stdout + again.stderr and (tmp_path / "epoch_2.pth").exists()
    record = json.loads((tmp_path / "results" / "transfer_coco.json").read_text())
    assert {"box_ap", "mask_ap", "box_ap_50", "box_ap_m"} <= record["metrics"].keys() and record["checkpoint"]["epoch"] == 3
    pictures = sorted((tmp_path / "predictions").glob("*.png"))
    assert len(pictures) == train.SHOWN and Image.open(pictures[0]).size == (128, 64)


@pytest.mark.parametrize("head", ["upernet", "linear"])
def test_segmentation_trains_saves_goes_on_tests_and_draws(tiny: Path, ade20k: Path, tmp_path: Path, head: str) -> None:
    flags = [
        "--ckpt",
        tiny,
        "--data",
        ade20k,
        "--config",
        f"sample_{head}",
        "--out",
        tmp_path,
        "--cfg-options",
        "train_dataloader.batch_size=4",
    ]
    first = transfer("ade20k", *flags, "train_cfg.max_iters=4", "default_hooks.checkpoint.interval=2")
    assert first.returncode == 0, first.stderr[-3000:]
    more = ["--multi-scale", "true"] if head == "upernet" else []
    again = transfer("ade20k", *flags, "train_cfg.max_iters=6", "default_hooks.checkpoint.interval=2", *more)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "resumed epoch: 0, iter: 4" in again.stdout + again.stderr and (tmp_path / "iter_6.pth").exists()
    record = json.loads((tmp_path / "results" / "transfer_ade20k.json").read_text())
    assert {"miou", "macc", "aacc"} | ({"miou_ms", "macc_ms"} if more else set()) == record["metrics"].keys()
    assert len(list((tmp_path / "predictions").glob("*.png"))) == train.SHOWN
    if head == "linear":
        state = torch.load(tmp_path / "iter_6.pth", weights_only=False)["state_dict"]
        loaded = load_backbone(tiny).backbone.state_dict()
        assert all(torch.equal(state[f"backbone.net.{name}"], weight) for name, weight in loaded.items())  # frozen means frozen
        other = transfer("ade20k", *flags, "train_cfg.max_iters=8", "model.backbone.grid=3,5")
        assert other.returncode == WRONG_COMMAND and "Traceback" not in other.stdout + other.stderr
        assert (
            "was trained with 17 position embeddings, the config has 16: --cfg-options model.backbone.grid=None" in other.stderr
        )


def test_what_is_missing_is_named_before_anything_is_trained(
    tiny: Path, coco: Path, ade20k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*flags: object) -> str:
        assert run_command(train.main, [*map(str, flags), "--out", str(tmp_path / "out")]) == WRONG_COMMAND
        found = capsys.readouterr().err
        assert found.count("\n") == 1 and "Traceback" not in found
        return found

    ckpt = ["--ckpt", tiny]
    shutil.copytree(coco, tmp_path / "coco")
    next((tmp_path / "coco" / "train2017").iterdir()).unlink()
    assert "lacks train2017/0000000000" in said("--task", "coco", "--data", tmp_path / "coco", *ckpt, "--config", "sample")
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").write_text("{}")
    assert "is not an annotation file of COCO" in said("--task", "coco", "--data", tmp_path / "coco", *ckpt, "--config", "sample")
    shutil.copytree(ade20k, tmp_path / "ade")
    (tmp_path / "ade" / "annotations" / "validation" / "00003.png").unlink()
    assert "lacks annotations/validation/00003.png" in said(
        "--task", "ade20k", "--data", tmp_path / "ade", *ckpt, "--config", "sample_upernet"
    )
    assert "there is no folder" in said("--task", "coco", "--data", tmp_path / "nowhere", *ckpt, "--config", "sample")
    assert "there is no config swin_t: choose from cascade_swint_1x" in said("--task", "coco", *ckpt, "--config", "swin_t")
    assert "the config is for vit_small" in said("--task", "coco", "--data", coco, *ckpt, "--config", "cascade_vits16_1x")
    assert "give KEY=VALUE" in said("--task", "coco", *ckpt, "--cfg-options", "train_cfg.max_epochs")
    assert "there is no checkpoint at" in said("--task", "coco", "--ckpt", tmp_path / "none.pth")


def test_average_precision_is_what_a_hand_computes(tmp_path: Path) -> None:
    """Two things, one found exactly, then a wrong answer: precision 1 up to recall 0.5, then none: AP is 51 of 101 points."""
    from pycocotools.coco import COCO  # noqa: PLC0415
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415

    square = np.zeros((32, 32), dtype=bool)
    square[4:12, 6:20] = True
    other = np.zeros((32, 32), dtype=bool)
    other[20:30, 20:30] = True
    things = [
        sample_dense.outline(mask) | {"id": n + 1, "image_id": 0, "category_id": 1, "iscrowd": 0}
        for n, mask in enumerate((square, other))
    ]
    assert things[0]["bbox"] == [6, 4, 14, 8] and things[0]["area"] == 112
    content = {
        "images": [{"id": 0, "height": 32, "width": 32}],
        "annotations": things,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    truth = COCO(str(tmp_path / "a.json"))
    assert np.array_equal(truth.annToMask(truth.anns[1]), square)
    wrong = {"image_id": 0, "category_id": 1, "bbox": [0, 25, 5, 5], "score": 0.8}
    found = truth.loadRes([{"image_id": 0, "category_id": 1, "bbox": [6, 4, 14, 8], "score": 0.9}, wrong])
    measure = COCOeval(truth, found, "bbox")
    measure.evaluate()
    measure.accumulate()
    measure.summarize()
    assert measure.stats[0] == pytest.approx(51 / 101)


def test_segmentation_counts_are_their_formulas() -> None:
    labels = torch.tensor([[[0, 0, 1], [1, 1, 255]]])
    said = torch.tensor([[[0, 1, 1], [1, 0, 0]]])
    confusion = segment.Confusion(3)
    confusion.add(said, labels)
    metrics = confusion.metrics()  # class 0: 1 of 3, class 1: 2 of 4; class 2 does not occur
    assert metrics["miou"] == pytest.approx(100 * (1 / 3 + 2 / 4) / 2) and metrics["aacc"] == pytest.approx(60)
    assert metrics["macc"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    squares = torch.tensor([[[0, 0, 5, 255], [0, 1, 255, 255], [1, 1, 2, 2], [1, 1, 2, 2]]])
    assert segment.patch_labels(squares, 2, 6).tolist() == [[0, 255, 1, 2]]


@pytest.mark.parametrize("head", ["linear", "knn"])
def test_the_frozen_probe_writes_its_record(
    tiny: Path, ade20k: Path, tmp_path: Path, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    flags = [
        "--ckpt",
        str(tiny),
        "--data",
        str(ade20k),
        "--head",
        head,
        "--size",
        "64",
        "--epochs",
        "2",
        "--baseline",
        "--out",
        str(out),
    ]
    assert run_command(segment.main, flags) == DONE
    record = json.loads(out.read_text())
    numbers = record["metrics"]
    assert {"miou", "macc", "aacc", "untrained_miou"} <= numbers.keys() and 0 < numbers["miou"] < 100
    assert numbers["miou"] == max(value for name, value in numbers.items() if name.startswith(("miou_lr", "miou_k")))
    assert run_command(segment.main, [*flags[:2], "--data", str(tmp_path), "--head", head]) == WRONG_COMMAND
    assert "there are no images in" in capsys.readouterr().err
