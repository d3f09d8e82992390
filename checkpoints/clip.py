"""The vision tower of a CLIP, as OpenAI and open_clip name its weights, under timm's names."""

from collections.abc import Mapping

from torch import Tensor

RENAMED = {
    "conv1.weight": "patch_embed.proj.weight",
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
}
PARTS = (
    ("transformer.resblocks.", "blocks."),
    ("ln_pre.", "norm_pre."),
    ("ln_post.", "norm."),
    (".ln_", ".norm"),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)
PROJECTION = "proj"
"""From the tower's features to the space that texts share: no part of a backbone."""
OPENAI = {"input_resolution", "context_length", "vocab_size"}
"""Numbers that stand beside the weights in OpenAI's own files: their networks have QuickGELU."""


def to_ours(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tower's weights, and the names of those that are no backbone's."""
    found = {}
    for name, weight in weights.items():
        new = RENAMED.get(name, name)
        for theirs, ours in PARTS:
            new = new.replace(theirs, ours)
        found[new] = weight
    for name, axes in (("cls_token", 3), ("pos_embed", 3)):
        if name in found:
            found[name] = found[name].reshape((1,) * (axes - found[name].ndim) + tuple(found[name].shape))
    ignored = (PROJECTION,) if found.pop(PROJECTION, None) is not None else ()
    return found, ignored
