"""What a backbone costs: parameters, operations an image, images a second of the forward pass that makes features."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from checkpoints import checked, escape, reading, store
from checkpoints.cli import UserError, WorkError
from pretrain.backbones.open import open_backbone
from pretrain.models.backbone import Backbone
from probes.compare.plan import CompareOptions, Protocol, checkpoint_stamp
from probes.features.cache import represent, standard
from probes.shared import record_name
from probes.shared.subject import made_ready, named_device

LEAST = 2.0
"""Seconds of measuring."""
BATCH = 16


class Cost(NamedTuple):
    """Numbers of one backbone at one size of images."""

    parameters: int
    gflops: float
    """Billions of floating-point operations of one image; a multiplication and an addition are two."""
    images_per_second: float
    device: str


def of(model: str, protocol: Protocol, options: CompareOptions) -> Cost | None:
    """Measured once and kept in the output folder; None for a checkpoint that cannot be read, of which the cells say why."""
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    device = named_device(options.device or usual)
    key = store.checksum(json.dumps([checkpoint_stamp(model), protocol.crop, device.type, options.precision, options.key]))[:10]
    path = options.out / "costs" / f"{record_name.plain(model)}-{key}.json"
    kept = _kept(path)
    if kept is not None:
        return kept
    try:
        backbone = open_backbone(Path(model), key=options.key).backbone.to(device)
        made_ready(backbone, protocol.crop)
        found = measured(backbone, protocol.crop, options.precision)
    except (UserError, WorkError):
        return None
    store.write_bytes(path, escape.json_text(found._asdict()).encode())
    return found


def measured(backbone: Backbone, crop: int, precision: str) -> Cost:
    """Count one image's operations, then repeat batches for a few seconds."""
    device = next(backbone.parameters()).device
    images = torch.zeros(BATCH, backbone.shape.channels, crop, crop, device=device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        with FlopCounterMode(display=False) as counter:
            represent(backbone, images[:1], standard(backbone))
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < LEAST:
            represent(backbone, images, standard(backbone))
            if device.type == "cuda":
                torch.cuda.synchronize()
            done += BATCH
    speed = done / (time.perf_counter() - began)
    parameters = sum(weight.numel() for weight in backbone.parameters())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return Cost(parameters, counter.get_total_flops() / 1e9, speed, name)


def _kept(path: Path) -> Cost | None:
    try:
        found = checked.mapping(reading.values(path), str(path), Cost._fields)
        numbers = [checked.number(found[name], f"{path}: {name}", 0) for name in Cost._fields[:3]]
    except (OSError, ValueError):
        return None
    return Cost(int(numbers[0]), numbers[1], numbers[2], str(found["device"])[:100])
