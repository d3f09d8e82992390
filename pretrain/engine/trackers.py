"""The log sent to where a team looks: Weights & Biases or MLflow, where the package is installed."""

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from checkpoints import escape
from checkpoints.cli import UserError

FORBIDDEN = re.compile(r"[/\\#?%:]")
"""Signs that W&B refuses in a run's id."""
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
        shown, identity = escape.terminal(run), FORBIDDEN.sub("-", escape.terminal(run))
        started = package.init(project="ibot", name=shown, config=dict(config), resume="allow", id=identity)
        return lambda values, step: started.log(dict(values), step=step)
    package.set_experiment("ibot")
    package.start_run(run_name=escape.terminal(run))
    package.log_params({key: str(value)[:250] for key, value in config.items()})
    return lambda values, step: package.log_metrics(dict(values), step=step)
