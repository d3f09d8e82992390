"""Dense configs: each builds at full size, and has the grid, the batch and the recipe of its protocol."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")

from transfer import ops

ops.register()

from mmengine.config import Config  # noqa: E402

from probes.paper import protocols  # noqa: E402
from tests.support.dense import CONFIGS, config_of  # noqa: E402
from transfer.config import adapt, build, fit, toolboxes  # noqa: E402
from transfer.report import position  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things


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


def built(path: Path, device: str, few_regions: bool = False) -> tuple[Config, Any]:
    """A config and its model in training, at full size; the sample's with the smallest backbone.

    `few_regions` are those that a detector's heads learn from: 32 in place of 512, for each stage.
    """
    toolboxes()
    config = Config.fromfile(path)
    stages = config.model.get("train_cfg", {}).get("rcnn", []) if few_regions else []
    for stage in stages if isinstance(stages, list) else [stages]:
        stage.sampler.num = 32
    adapt(config, device="cpu", distributed=False)
    if "sample" in path.stem:
        config.model.backbone.update(arch="vit_tiny", patch_size=8)
        fit(config, [192] * 4)
    with torch.device(device):
        return config, build(config).train()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_at_full_size_and_its_parts_fit(path: Path) -> None:
    """On tensors without content: from images to the maps that heads take, through the heads of those that have no boxes."""
    config, model = built(path, "meta")
    if path.stem in MILLIONS:
        assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == MILLIONS[path.stem]
    if "vitl" in path.stem:
        assert model.backbone.layout.taps == (7, 11, 15, 23)
    maps = model.eval().extract_feat(torch.empty(2, 3, 96, 96, device="meta"))
    if config.default_scope == "mmseg":
        heads = [model.decode_head, *([model.auxiliary_head] if model.with_auxiliary_head else [])]
        assert all(head(maps).shape[:2] == (2, config.model.decode_head.num_classes) for head in heads)
    else:
        scores, boxes = model.rpn_head(maps)
        assert len(scores) == len(boxes) == len(maps) == 5


STEPPED = "sample sample_upernet sample_linear upernet_vits16 upernet_swint linear_vits16".split()
STEPPED += [f"{head}_{arch}_1x" for head in ("cascade", "mask_rcnn") for arch in ("vits16", "swint")]
"""The smallest of every kind."""


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in STEPPED], ids=lambda path: path.stem)
def test_a_step_of_every_kind_gives_each_learnable_parameter_a_gradient(path: Path) -> None:
    """One forward and backward on a small image. Larger backbones and longer schedules have the same parts."""
    config, model = built(path, "cpu", few_regions=True)
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
        assert resized["protocol.position"] == position("vit", grid)
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
    adapt(config, device="cpu", distributed=False)
    model = build(config)
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
