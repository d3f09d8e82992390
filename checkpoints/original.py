"""The original iBOT's flags on our commands: accepted, or refused with their replacement.

Those of its training script that only have another name are aliases in `pretrain/options/groups.py`.
"""

from collections.abc import Collection, Sequence


class Replaced(ValueError):
    """A flag of the original that a command does not have; the message names its replacement."""


NAMES = {
    "--pretrained-weights": "--ckpt",
    "--data-path": "--data",
    "--num-workers": "--workers",
    "--checkpoint-key": "--key",
    "--batch-size-per-gpu": "--batch-size",
    "--saveckp-freq": "--keep-every",
    "--nb-knn": "--k",
}
"""Flags of ours that mean the same, on commands that have them."""

ONLY = {
    "--act-in-head": (("gelu",), "heads have GELU here, as in every published run: leave it out"),
    "--norm-in-head": (("none", ""), "heads have no norm here, as in every published run: leave it out"),
    "--dist-url": (("env://",), "processes find each other by what torchrun sets: start with torchrun and leave it out"),
    "--local-rank": (None, ""),
    "--use-cuda": (("true", "1", "yes", "on"), "give --device cpu in place of it"),
}
"""Flags that have one value here, which changes nothing (None: any), and what to say of others."""

REPLACED = {
    "--load-from": "a run in --out goes on by itself, and --init-from FILE begins with any other checkpoint",
    "--load-features": "features are kept by themselves (--cache DIR says where)",
    "--dump-features": "features are kept by themselves (--cache DIR says where)",
    "--saveckp-freq": "this command keeps what it needs: leave it out",
    "--n-last-blocks": "give --features cls4 ([CLS] of the last four blocks) or cls to probes.linear",
    "--avgpool-patchtokens": "give --features cls+mean ([CLS] beside the mean of the patches) or cls to probes.linear",
    "--num-labels": "classes are counted in the data: leave it out",
    "--val-freq": "python -m probes.linear tests at its end: leave it out",
    "--arch": "the checkpoint says its architecture: leave it out",
    "--patch-size": "the checkpoint says its patch size: leave it out",
    "--window-size": "the checkpoint says its window: leave it out",
    "--output-dir": "give --out FILE, or leave it out: records lie beside the checkpoint",
    "--nb-knn": "leave it out: the paper's numbers of neighbours are all measured",
    "--temperature": "leave it out: the paper's temperature is used",
    "--lr": "leave it out: the paper's learning rates are used",
    "--epochs": "leave it out",
    "--pretrained-weights": "give --ckpt to a probe, --init-from to a training",
    "--checkpoint-key": "it is for probes: leave it out",
}


def translated(words: Sequence[str], known: Collection[str]) -> list[str]:
    """The words with flags of the original as ours. `known` are the command's own flags, which are left alone.

    Words are flags and values, each by itself. Raises Replaced for what something else stands for.
    """
    found: list[str] = []
    skip = False
    for word, following in zip(words, [*words, "--"][1:], strict=True):
        if skip:
            skip = False
        elif word in known or word not in {*NAMES, *ONLY, *REPLACED}:
            found.append(word)
        elif NAMES.get(word) in known:
            found.append(NAMES[word])
        elif word in ONLY:
            values, instead = ONLY[word]
            bare = following.startswith("--")
            if values is not None and not bare and following.lower() not in values:
                raise Replaced(f"{word} {following} of the original: {instead}")
            skip = not bare
        else:
            raise Replaced(f"{word} of the original: {REPLACED.get(word, 'this command has no such flag')}")
    return found
