"""What a config says of its network, settled by the checkpoint: the backbone is built once, and necks and heads follow it."""

from typing import Any

from checkpoints.cli import UserError
from transfer import normalising
from transfer.backbone import Pyramid, try_out
from transfer.config import changes_of, fit
from transfer.options import TransferOptions


def settle(config: Any, options: TransferOptions, loaded: Any) -> list[str]:
    """Fill in checkpoint, widths and normalisation; `of_backbone` of the config is for the record. Returns lines to print.

    Raises UserError for a backbone that cannot be built so, before anything is written.
    """
    backbone, shape = config.model.backbone, loaded.backbone.shape
    backbone.checkpoint, backbone.key = str(options.ckpt or loaded.path), options.key
    built = try_out(backbone)
    if built is None:
        fit(config, [shape.embed_dim] * 4)
        config.of_backbone = {"neck": options.neck}
        return []
    if options.from_scratch:
        try:
            built.drawn()
        except UserError as error:
            raise UserError(f"--from-scratch true: {error}") from error
    fit(config, built.layout.widths, built.stride)
    normalised = normalising.follow(config, shape, changes_of(options))
    given = config.model.get("data_preprocessor") or {}
    config.of_backbone = {"neck": options.neck, "pyramid": in_words(built)} | {
        name: list(given.get(name) or []) for name in normalising.FIELDS
    }
    lines = [f"backbone {shape.arch}: {in_words(built)}", normalised]
    lacks = getattr(built, "lacks", [])
    if lacks:
        lines.append(f"{shape.arch} has no {' and no '.join(lacks)} in its library: the config's is left out")
    return [line for line in lines if line]


def in_words(pyramid: Pyramid) -> str:
    """Where the maps come from."""
    layout, places = pyramid.layout, ", ".join(str(tap + 1) for tap in pyramid.layout.taps)
    if not layout.plain:
        return f"maps of stages {places}"
    blocks = f"block{'s' if len(layout.taps) > 1 else ''} {places} of {layout.num_layers}"
    resized = "" if layout.stride == pyramid.stride else f", resized to tokens of {pyramid.stride}"
    return f"patches of {layout.stride} pixels after {blocks}{resized}"
