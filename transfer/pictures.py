"""Pictures of dense tasks through the same door as all others: OpenCV, which decodes them, knows more formats and no small limit.

`set_backend` gives a config's loaders the file backend of this file. It hands on a picture's bytes where `images.formats` would
open it; what is decoded from them, and by what, stays as it was. Importing this file registers it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmengine.config import Config
from mmengine.fileio import register_backend
from mmengine.fileio.backends import LocalBackend

from checkpoints import fonts
from checkpoints.cli import UserError
from pretrain.images.formats import BadImage, load_stored, open_picture, read_file

BACKEND = "IBOTPictures"
LOADERS = frozenset({"LoadImageFromFile", "LoadAnnotations", "LoadPanopticAnnotations"})
"""Transforms of MMDetection and MMSegmentation that read pictures and label maps."""


class Pictures(LocalBackend):
    """Local files, each a whole picture of a documented format whose decoding stays within the limit.

    OpenCV makes up what is missing of a file that was cut off; so each is decoded by Pillow once in a process, which refuses it.
    """

    whole: ClassVar[set[str]] = set()
    """Paths that were decoded."""

    def get(self, filepath: str | Path) -> bytes:
        """Raises UserError naming a file that cannot be used."""
        try:
            content = read_file(filepath)
            if str(filepath) in self.whole:
                open_picture(content)
            else:
                load_stored(content)
                self.whole.add(str(filepath))
        except BadImage as error:
            raise UserError(f"{filepath} cannot be used ({error}): fetch it again") from error
        return content


register_backend(BACKEND, Pictures, force=True)


def drawn_names(names: Sequence[str], task: str) -> list[str]:
    """Names of classes as they are drawn into pictures: MMDetection draws by fonts, MMSegmentation (OpenCV) ASCII alone."""
    draws = fonts.legible if task == "coco" else fonts.latin
    return [draws(" ".join(name.split())) for name in names]


def set_backend(config: Any) -> None:
    """Set the backend in every loader of a config, at any depth, in place."""
    if isinstance(config, dict | Config):
        if str(config.get("type")).rpartition(".")[2] in LOADERS:
            config["backend_args"] = {"backend": BACKEND}
        for value in config.values():
            set_backend(value)
    elif isinstance(config, list | tuple):
        for value in config:
            set_backend(value)
