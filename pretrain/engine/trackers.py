"""Sends the log to Weights & Biases, MLflow or Trackio, if the package is installed."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from checkpoints import elsewhere, escape, places
from checkpoints.cli import UserError
from pretrain.engine import board

FORBIDDEN = re.compile(r"[/\\#?%:]")
"""Characters that W&B refuses in a run's id."""
Track = Callable[[Mapping[str, float], int], None]
"""Takes one line of the log and its step."""


def look_through(name: str) -> None:
    """Raise UserError for files of the current folder that would decide where the package sends its key, or writes."""
    settings = next((file for file in (Path("wandb/settings"), Path(".wandb/settings")) if os.path.lexists(file)), None)
    if name == "wandb" and settings is not None and not os.environ.get("WANDB_DIR"):
        raise UserError(f"{settings} would choose the server that W&B sends your key to: remove it, or set WANDB_DIR to mean it")
    if name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
        places.refuse_link(Path("mlflow.db"))
        places.refuse_link(Path("mlruns"))
        places.refuse_links(Path("mlruns"))


def package_of(name: str) -> Any:
    """The package of `--track`, imported; None for `none` and for `tensorboard`, whose file `pretrain.engine.board` writes.

    Raises UserError if it is missing, or would be misled.
    """
    if name == "none":
        return None
    if name == "tensorboard":
        if not board.installed():
            raise UserError("--track tensorboard needs the package: tools/setup.sh tensorboard, or pip install tensorboard")
        return None
    look_through(name)
    try:
        return elsewhere.imported(name)
    except ImportError as error:
        raise UserError(f"--track {name} needs the package: pip install {name}") from error


def tracker(name: str, run: str, config: Mapping[str, Any]) -> Track:
    """The function that sends a line to `wandb`, `mlflow` or `trackio`, as configured on this machine; others send nothing.

    Raises UserError where the package is missing.
    """
    package = package_of(name)
    if package is None:
        return lambda values, step: None
    if name == "wandb":
        shown, identity = escape.terminal(run), FORBIDDEN.sub("-", escape.terminal(run))
        started = package.init(project="ibot", name=shown, config=dict(config), resume="allow", id=identity)
        return lambda values, step: started.log(dict(values), step=step)
    if name == "trackio":  # the same interface as wandb's; what is left to send when the process ends, it sends then
        sent = package.init(project="ibot", name=escape.terminal(run), config=dict(config), resume="allow", embed=False)
        return lambda values, step: sent.log(dict(values), step=step)
    package.set_experiment("ibot")
    package.start_run(run_name=escape.terminal(run))
    package.log_params({key: str(value)[:250] for key, value in config.items()})
    return lambda values, step: package.log_metrics(dict(values), step=step)
