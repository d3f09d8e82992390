"""Images of a folder to a rebuilt model's predictions.

h w pixels of an image as it is seen, turned by its EXIF.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from torch import nn

from checkpoints import store
from checkpoints.cli import UserError
from transfer.pictures import BACKEND
from transfer.predict.rebuild import READERS, TRUTH, Rebuilt, reading
from transfer.trained import FILE


class Predictor:
    """A model on the machine's best device, and the steps of its run's test without those that read the truth."""

    def __init__(self, rebuilt: Rebuilt) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: nn.Module = rebuilt.model.to(self.device)
        steps = [step for step in rebuilt.trained.pipeline if step.get("type") not in TRUTH]
        reader = next(step for step in steps if step["type"] in READERS)
        read: dict[str, Any] = {**reading(reader), "backend_args": {"backend": BACKEND}}
        try:
            self.read = Compose([read])
            self.steps = Compose([step for step in steps if step.get("type") not in READERS])
        except Exception as error:  # whatever steps say of arguments that are not theirs
            where = f"{rebuilt.file.parent / FILE}: the steps of the test cannot be made ({store.first_line(error)})"
            raise UserError(f"{where}: take another copy of the run") from error

    def __call__(self, path: Path) -> tuple[np.ndarray, Any]:
        """An image [h, w, 3] of red, green, blue in bytes, and the toolbox's data sample of its predictions.

        Raises UserError naming an image that cannot be used, or on which the model or its steps do not work.
        """
        try:
            found: Any = self.read({"img_path": str(path), "img_id": 0})
            image = np.ascontiguousarray(found["img"][..., ::-1]).astype(np.uint8)
        except UserError:
            raise
        except Exception as error:  # OpenCV meets damage behind a sound header in many ways
            raise UserError(f"{path} cannot be used ({store.first_line(error)}): fetch it again") from error
        try:
            return image, self.predicted(found)
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(f"{path}: the GPU has too little memory for this image: give a smaller one") from error
        except Exception as error:  # an image of a few pixels' height, or steps that another hand has changed
            where = f"{path}: the run's model cannot be applied to it ({store.first_line(error)})"
            raise UserError(f"{where}: give one of another size, or another copy of the run") from error

    def predicted(self, found: Any) -> Any:
        """The data sample of what `read` has found."""
        batch: Any = self.steps(found)
        with torch.no_grad():
            (sample,) = self.model.test_step({"inputs": [batch["inputs"]], "data_samples": [batch["data_samples"]]})  # type: ignore[operator]
        return sample.cpu()
