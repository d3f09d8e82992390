"""Part-wise linear probing: `python -m probes.parts --ckpt runs/sample`.

Protocol of Figure 5: the mean of the k patch tokens at which the last block's [CLS] looks most (mean over its heads), without the
final norm, is what the linear layer sees; k is 1, 7, 14, 56, 112 and 196 of 196; learning rates, optimizer, epochs and both modes
are those of `probes.linear`.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from checkpoints.cli import UserError, at_least, parse, run_command
from pretrain.models.vit import ViT
from probes.features.cache import extract
from probes.linear import protocol
from probes.linear import train as linear_train
from probes.paper import protocols
from probes.shared import console, record
from probes.shared.subject import Common, about_data, about_view, labelled_parts, open_subject, record_path

COUNTS = (1, 7, 14, 56, 112, 196)


@dataclass(frozen=True)
class PartsOptions(Common):
    """A linear layer on the k patches with the largest [CLS] attention (paper, Figure 5)."""

    batch_size: int = protocol.BATCH
    """Images a step, over all processes; the learning rates are for 256 and follow it."""
    k: tuple[int, ...] = COUNTS
    """Numbers of patches; those beyond the number of patches there are mean all of them."""
    mode: Literal["paper", "cached"] | None = None
    """`paper`: augmented crops, the backbone runs in every epoch of every k, in bfloat16. `cached`: centre crops, once (default
    for the sample)."""
    lr: tuple[float, ...] = protocols.GRID
    """Learning rates for batches of 256; all are trained at once."""
    epochs: int = protocol.EPOCHS
    """Passes over the training images."""


def counts(options: PartsOptions, patches: int) -> list[int]:
    """The numbers of patches to use, of so many."""
    return sorted({min(count, patches) for count in options.k})


def main(arguments: Sequence[str]) -> None:
    options = parse(PartsOptions, arguments, prog="python -m probes.parts")
    at_least(1, options, "k")
    began = time.perf_counter()
    with open_subject(options) as subject:
        backbone = subject.loaded.backbone
        if not isinstance(backbone, ViT):
            raise UserError(f"{backbone.shape.arch} does not show the patches that [CLS] looks at: give a ViT of iBOT's own kind")
        parts = labelled_parts(options, backbone.shape)
        every = counts(options, (subject.view.crop // backbone.shape.patch_size) ** 2)
        arrays, mode = tuple(f"parts{count}" for count in every), options.mode or protocol.default_mode(options.data)
        out, states = record_path(options, subject, "parts"), []
        if mode == "cached":
            for images in parts:  # one pass for all of them
                extract(backbone, images, subject.view, options, arrays)
        found: dict[int, protocol.Chosen] = {}
        excluded: dict[int, list[float]] = {}
        for count, array in zip(every, arrays, strict=True):
            rates = tuple(rate * options.batch_size / 256 for rate in options.lr)
            settings = linear_train.Settings(rates, options.epochs, mode, array, "test", arrays)
            division = linear_train.Division(parts.train, parts.val, parts.val)
            states.append(out.with_name(f"{out.stem}_{count}.state.pt"))
            trained = linear_train.train(subject, division, settings, options, states[-1], keep=True)
            found[count], about = (
                protocol.chosen(trained, options.lr),
                protocol.about(settings, options.lr, options.batch_size, trained),
            )
            protocol.say_excluded(trained, options.lr, f"{count} patches, ")
            excluded[count] = about["excluded_lr"]
        title = f"part-wise linear, top-1 % on {parts.val.name}: {subject.loaded.path}"
        rows = [[str(count), f"{best.top1:.1f}", f"{best.lr:g}"] for count, best in found.items()]
        console.table(title, ["patches", "top-1", "learning rate"], rows)
        record.write(
            out,
            probe="parts",
            table="F5_partwise_linear",
            loaded=subject.loaded,
            data=about_data(parts),
            protocol=about_view(options, subject.view)
            | about
            | {"k": every, "features": "parts", "norm": False, "excluded_lr": excluded},
            metrics={f"top1_k{count}": best.top1 for count, best in found.items()},
            seconds=time.perf_counter() - began,
            device=subject.device.type,
        )
        linear_train.forget(states)


if __name__ == "__main__":
    sys.exit(run_command(main))
