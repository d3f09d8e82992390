"""An export as a repository of the Hugging Face Hub, on request of the command line alone."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints import elsewhere
from checkpoints.cli import UserError, WorkError
from checkpoints.store import first_line

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LIBRARIES = {"timm": "timm", "huggingface": "transformers", "onnx": "onnx"}
"""By target: the Hub's name of the library that loads it."""


def check(name: str | None) -> None:
    """Raise UserError for what can be no repository, before the work."""
    if name is not None and not NAME.fullmatch(name):
        raise UserError(f"--push {name[:120]}: give OWNER/NAME, as on the Hugging Face Hub")


def header(shape: Mapping[str, Any], target: str) -> str:
    """The lines of YAML that the Hub reads at the head of a model card. No licence: whose the weights are is not known here."""
    library = f"library_name: {LIBRARIES[target]}\n" if target in LIBRARIES else ""
    tags = "".join(
        f"- {tag}\n" for tag in ("ibot", "self-supervised", "feature-extraction", "swin" if shape["depths"] else "vit")
    )
    return f"---\n{library}pipeline_tag: image-feature-extraction\ntags:\n{tags}---\n\n"


def push(folder: Path, name: str) -> str:
    """Upload all of a folder in one commit; the repository's address. A new repository is private.

    Raises WorkError with what the Hub said; the folder stays as it is.
    """
    hub: Any = elsewhere.imported("huggingface_hub")
    try:
        api = hub.HfApi()
        api.create_repo(repo_id=name, repo_type="model", private=True, exist_ok=True)
        found = api.upload_folder(repo_id=name, repo_type="model", folder_path=str(folder), commit_message="iBOT backbone")
    except Exception as error:  # the hub's client raises a great many things
        cure = f"log in with `hf auth login`, or upload {folder} yourself"
        raise WorkError(f"{folder} could not be pushed to {name} ({first_line(error)}): {cure}") from error
    return str(getattr(found, "commit_url", None) or found)
