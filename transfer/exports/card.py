"""The model card that goes along with an export: what it is, where from, how to load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints import escape, reading, store
from checkpoints.published import Contents
from probes.shared.record import newest_first
from transfer.exports import push, reload

OURS = (store.LAST, store.PREVIOUS, store.BACKBONE)


def text(shape: Mapping[str, Any], contents: Contents, path: Path, target: str, file: str, key: str, difference: float) -> str:
    """The card, as Markdown."""
    rows = {"architecture": architecture(shape), "images": images(shape)} | origin(contents, path, key)
    rows["check"] = f"loaded again by {target}, tokens of random images differ by at most {difference:.1e}"
    table = "\n".join(f"| {name} | {escape.markdown(value)} |" for name, value in rows.items())
    return f"""{push.header(shape, target)}# {escape.markdown(architecture(shape))}

A backbone pretrained by iBOT (arXiv 2111.07832), or by a method related to it, exported for {target}.

| | |
|---|---|
{table}

## Load it

```python
{loading(shape, target, file)}
```

Images are scaled to 0..1, then normalised by mean {numbers(shape["mean"])} and deviation {numbers(shape["std"])}. Tokens are
`[batch, 1 + patches, {shape["embed_dim"]}]`, {first_token(shape)}.
{remarks(shape, target)}"""


def architecture(shape: Mapping[str, Any]) -> str:
    """A short description of an architecture."""
    window = f", window {shape['window']}" if shape["window"] else ""
    return f"{shape['arch']}, patch {shape['patch_size']}{window}, {shape['embed_dim']} wide, {shape['depth']} blocks"


def images(shape: Mapping[str, Any]) -> str:
    return f"{shape['image_size']} x {shape['image_size']} pixels, {shape['channels']} channels"


def first_token(shape: Mapping[str, Any]) -> str:
    return "their mean first" if shape["depths"] else "[CLS] first"


def numbers(values: Any) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def origin(contents: Contents, path: Path, key: str) -> dict[str, str]:
    """Facts on the training."""
    options = contents.args or _options_beside(path)
    rows = {"from": f"{path.name}, {contents.layout}", "sha256": _digest(path)}
    if len(contents.networks) > 1 or "only" not in contents.networks:
        rows["network"] = key
    rows |= trained_on(options)
    if contents.epoch:
        rows["epochs"] = str(contents.epoch)
    accuracy = _knn_beside(path)
    if accuracy:
        rows["k-NN top-1 %"] = accuracy
    return rows


def trained_on(options: Mapping[str, Any]) -> dict[str, str]:
    """Data and recipe, by our names of the options or the original's."""
    names = (("data", "data"), ("data", "data_path"), ("recipe", "recipe"))
    return {label: str(options[name]) for label, name in names if options.get(name)}


def _options_beside(path: Path) -> dict[str, Any]:
    """A run's options, where its backbone alone is exported."""
    try:
        return dict(reading.values(path.parent / "config.json")) if path.name in OURS else {}
    except (OSError, ValueError, TypeError):
        return {}


def _knn_beside(path: Path) -> str:
    """The newest result of `probes.knn` for this file, or for another file of the same run."""
    for record in newest_first((path.parent / "results").glob("knn*.json")):
        try:
            found = reading.values(record)
            of = found.get("checkpoint", {"path": path})
            if of.get("sha256") != _digest(path) and not (path.name in OURS and Path(of["path"]).name in OURS):
                continue
            if not found.get("protocol", {}).get("untrained"):
                return f"{found['metrics']['top1']:.1f} on {found['data']['val']}"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return ""


def _digest(path: Path) -> str:
    return store.sha256(path) if path.is_file() else "not a file"


def loading(shape: Mapping[str, Any], target: str, file: str) -> str:
    """The lines that load it, run in the export's folder; a test runs them."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in reload.timm_arguments(shape).items())
    epsilon = ", norm_layer=partial(LayerNorm, eps=1e-6)" if shape["depths"] else ""
    name = escape.python(reload.timm_name(shape)) if target == "timm" else ""
    imports = "from functools import partial\nfrom torch.nn import LayerNorm\n" if shape["depths"] else ""
    return {
        "timm": f"""import timm
{imports}model = timm.create_model({name}, checkpoint_path="{file}", {arguments}{epsilon}).eval()
tokens = model.forward_features(images)""",
        "huggingface": """from transformers import AutoImageProcessor, AutoModel
processor, model = AutoImageProcessor.from_pretrained("."), AutoModel.from_pretrained(".").eval()
tokens = model(images).last_hidden_state""",
        "openmmlab": f"""# in a config of MMPretrain, MMDetection or MMSegmentation:
init_cfg = dict(type="Pretrained", checkpoint="{file}", prefix="backbone")""",
        "onnx": f"""import onnxruntime
session = onnxruntime.InferenceSession("{file}")
(tokens,) = session.run(None, {{"images": images.numpy()}})""",
        "original": f"""from argparse import Namespace
import torch
with torch.serialization.safe_globals([Namespace]):
    checkpoint = torch.load("{file}", map_location="cpu", weights_only=True)
print(checkpoint.keys())  # what the original's scripts take with --pretrained_weights""",
    }[target]


def remarks(shape: Mapping[str, Any], target: str) -> str:
    """Notes for users of that library."""
    if target in ("timm", "huggingface", "openmmlab") and not shape["depths"]:
        return (
            f"\nAt {shape['image_size']} pixels the tokens equal the original's. Position embeddings for other sizes are resized "
            "by the library's own rule, which is not the original's.\n"
        )
    if target == "timm":
        return "\nWhere windows do not divide a grid, timm shifts before it pads and the original after: tokens differ there.\n"
    return ""
