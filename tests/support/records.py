"""Records by the probe that wrote them."""

import json
from pathlib import Path


def only(folder: Path, probe: str) -> Path:
    """The one record of a probe in a folder, as `knn` or `knn_untrained`. Fails where there are more, or none."""
    named = [path for path in folder.glob(f"{probe}_*.json") if probe.endswith("_untrained") or "_untrained_" not in path.name]
    found = [path for path in named if probe.startswith(json.loads(path.read_text())["probe"])]  # not those of its parts
    assert len(found) == 1, found
    return found[0]
