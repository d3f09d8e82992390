"""Images of a detector, each as large as the annotations say. Importing this file registers `IBOTImage`.

MMDetection goes by the image that it opens, whatever its entry says: boxes of a photograph that is turned by its EXIF, or of
images that were scaled when the file was not, would be learnt where nothing is.
"""

from pathlib import Path
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from transfer.annotations import refuse_size


@TRANSFORMS.register_module()
class IBOTImage(LoadImageFromFile):
    """`LoadImageFromFile` with that check."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Raises WorkError naming an image of another size."""
        found = super().transform(results)
        if found is not None and "height" in results:
            height, width = found["ori_shape"][:2]
            refuse_size(
                Path("the annotations"), Path(results["img_path"]), (results["width"], results["height"]), (width, height)
            )
        return found


def set_images(config: Any) -> None:
    """Put it in the place of every `LoadImageFromFile` of a config's data, at any depth, in place."""
    if isinstance(config, dict | Config):
        if str(config.get("type")).rpartition(".")[2] == "LoadImageFromFile":
            config["type"] = "IBOTImage"
        for value in config.values():
            set_images(value)
    elif isinstance(config, list | tuple):
        for value in config:
            set_images(value)
