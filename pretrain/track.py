"""The log sent to where a team looks: Weights & Biases or MLflow, where the package is installed."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from checkpoints.command import UserError

Track = Callable[[Mapping[str, float], int], None]
"""Takes one line of the log and its step."""


def tracker(name: str, run: str, config: Mapping[str, Any]) -> Track:
    """`none`, `wandb` or `mlflow`, as each is set up on this machine. Raises UserError where the package is missing."""
    if name == "none":
        return lambda values, step: None
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"--track {name} needs the package: pip install {name}") from error
    if name == "wandb":
        started = package.init(project="ibot", name=run, config=dict(config), resume="allow", id=run)
        return lambda values, step: started.log(dict(values), step=step)
    package.set_experiment("ibot")
    package.start_run(run_name=run)
    package.log_params({key: str(value)[:250] for key, value in config.items()})
    return lambda values, step: package.log_metrics(dict(values), step=step)
