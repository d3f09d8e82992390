"""Every command that measures a checkpoint, with the flags that it needs besides `--ckpt`."""

from collections.abc import Callable
from typing import Any

from probes import cluster, knn, logistic, parts, semi
from probes.finetune import __main__ as finetune
from probes.linear import __main__ as linear
from probes.retrieval import __main__ as retrieval
from probes.robustness import __main__ as robustness
from probes.segment import __main__ as segment
from probes.video import __main__ as video
from probes.visualize import __main__ as visualize

PROBES: dict[str, tuple[Callable[..., Any], str]] = {
    "knn": (knn.main, ""),
    "linear": (linear.main, "--epochs 1"),
    "logistic": (logistic.main, ""),
    "cluster": (cluster.main, "--method kmeans"),
    "parts": (parts.main, ""),
    "semi": (semi.main, "--frozen"),
    "segment": (segment.main, ""),
    "finetune": (finetune.main, ""),
    "robustness": (robustness.main, "--suite occlusion"),
    "retrieval": (retrieval.main, "--suite copydays"),
    "video": (video.main, ""),
    "attention": (visualize.main, "attention"),
}
