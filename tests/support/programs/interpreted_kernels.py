"""Triton's interpreter (TRITON_INTERPRET=1) runs the colour kernels on CPU tensors beside their slow definition.

Prints the share of levels of 255 that differ, and the largest difference, for each set of draws.
"""

import numpy as np
import torch

from checkpoints.architecture import MEAN, STD
from pretrain.batches import augment, color_kernels, color_table


def drawn(crops: int, seed: int, **fixed: float) -> augment.Draws:
    view = augment.View(16, (0.3, 1.0), 0.6, 0.4)
    draws = augment.draw(np.random.default_rng(seed), view, 1, crops)
    draws = augment.Draws(*(values[0] for values in draws))
    return draws._replace(**{name: np.full_like(getattr(draws, name), value) for name, value in fixed.items()})


def pictures(crops: int, height: int, width: int) -> torch.Tensor:
    """Smooth ones, with grey pixels, black and white."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(crops, 3, 5, 6, generator=generator)
    found = (torch.nn.functional.interpolate(small, (height, width), mode="bicubic") * 300 - 20).clamp(0, 255).round()
    found[:, :, :2] = found[:, :1, :2]
    return found.to(torch.uint8)


def main() -> None:
    cases: dict[str, dict[str, float]] = {
        "as drawn": {},
        "nothing": {"jittered": False, "grey": False, "sigma": 0.0, "solarize": False},
        "everything": {"jittered": True, "grey": False, "sigma": 2.0, "solarize": True},
        "jittered": {"jittered": True, "grey": False, "sigma": 0.0, "solarize": False},
        "grey": {"jittered": True, "grey": True, "sigma": 0.0, "solarize": False},
        "blurred": {"jittered": False, "grey": False, "sigma": 0.7, "solarize": False},
    }
    for number, (name, fixed) in enumerate(cases.items()):
        crops, draws = pictures(12, 37, 43), drawn(12, number, **fixed)
        plain = augment.change(crops, draws)
        table = color_table.table(draws)
        jittered = color_kernels.launch_jitter(crops, table)
        blurred = color_kernels.launch_blur_x(jittered, table)
        factor, shift = color_kernels.normalisation(MEAN, STD)
        ours = color_kernels.launch_blur_y(jittered, blurred, table, factor, shift)
        difference = ((ours - plain) * torch.tensor(STD)[:, None, None] * 255).abs()
        print(f"{name}: {(difference > 0.01).float().mean():.5f} {difference.max():.3f}")


if __name__ == "__main__":
    main()
