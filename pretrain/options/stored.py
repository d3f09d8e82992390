"""Options by their flat names, as recipes, config.json and checkpoints have them; what a continued run may change."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from checkpoints import flat
from pretrain.engine import options as engine_options
from pretrain.options.groups import Config

FREE_TO_CHANGE = frozenset(
    "out replay recipe workers max_bad knn_data knn_every track report serve save_minutes keep_every log_every "
    "allow_config_change allow_foreign_files".split()
)
"""Options that a continued run may change: none of them touches its numbers."""
NEVER_TO_CHANGE = frozenset(
    "arch patch_size window width depth channels global_crops_size out_dim patch_out_dim shared_head shared_head_teacher "
    "head_hidden_dim head_bottleneck_dim norm_last_layer targets separate_layers".split()
)
"""Options that a continued run cannot change even with --allow-config-change: they decide which weights there are."""


def from_values(**values: Any) -> Config:
    """Options by their flat names, the others at their defaults. Raises TypeError for a name that is no option's."""
    left, groups = dict(values), {}
    for group in dataclasses.fields(Config):
        kind: Any = group.type
        groups[group.name] = kind(**{field.name: left.pop(field.name) for field in flat.fields(kind) if field.name in left})
    if left:
        raise TypeError(f"there is no option {', '.join(sorted(left))}")
    return Config(**groups)


def differences(now: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, str]:
    """Option -> words for what a run's stored options have otherwise. One that is newer than the run was at its default."""
    return engine_options.differences(now, stored, engine_options.as_values(Config()), FREE_TO_CHANGE)
