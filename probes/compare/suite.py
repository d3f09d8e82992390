"""A suite as a YAML file: data sets, probes with their options, and the protocol that all share.

```yaml
data: [sample, images/flowers]     # `sample`, or folders and files below the suite's own folder
probes: {knn: {}, linear: {epochs: 50}, logistic: {strength: [0.01, 1]}}
protocol: {crop: 224, resize: 256, limit: 2000, seeds: 3}
```

A suite decides nothing else: other data are typed on the command line, and no option that names a file is read from it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from checkpoints import checked, flat, places, reading
from checkpoints.cli import UserError
from checkpoints.store import first_line

SHIPPED = Path(__file__).with_name("suites")
OPTIONS: dict[str, tuple[str, ...]] = {
    "knn": ("k", "temperature", "features"),
    "linear": ("epochs", "lr", "mode", "features", "select", "batch_size"),
    "logistic": ("strength",),
    "cluster": ("clusters",),
    "retrieval": ("suite", "size", "multi_scale"),
    "segment": ("head", "size", "epochs", "lr", "k", "images", "background", "ignore", "held_out", "batch_size"),
}
"""By probe: the options that a suite may set."""
PROTOCOL = ("crop", "resize", "limit", "seeds")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+.-]{0,30}")


class Suite(NamedTuple):
    """What is measured, and how."""

    data: tuple[str, ...] = ()
    probes: Mapping[str, Mapping[str, Any]] = {}
    protocol: Mapping[str, int] = {}


def read(name: str) -> Suite:
    """The suite in a file, or the shipped one of that name. Raises UserError for what is none, naming the part."""
    file = SHIPPED / f"{name}.yaml" if WORD.fullmatch(name) and (SHIPPED / f"{name}.yaml").is_file() else Path(name)
    try:
        content = yaml.safe_load(reading.text(file))
    except (OSError, ValueError, yaml.YAMLError) as error:
        shipped = ", ".join(sorted(path.stem for path in SHIPPED.iterdir() if path.suffix == ".yaml"))
        raise UserError(
            f"--suite {name} cannot be read ({first_line(error)}): give a YAML file, or one of those that are shipped ({shipped})"
        ) from error
    found = checked.mapping(content if content is not None else {}, str(file))
    for part in found:
        if part not in ("data", "probes", "protocol"):
            raise UserError(f"{file}: there is no part {str(part)[:100]!r} in a suite: it has data, probes, protocol")
    data = tuple(_data(one, file) for one in checked.listed(found.get("data") or [], f"{file}: data"))
    probes = checked.mapping(found.get("probes") or {}, f"{file}: probes")
    protocol = checked.mapping(found.get("protocol") or {}, f"{file}: protocol")
    for key, value in protocol.items():
        if key not in PROTOCOL:
            raise UserError(f"{file}: protocol has no {str(key)[:100]!r}: it has {', '.join(PROTOCOL)}")
        checked.count(value, f"{file}: protocol: {key}", 1, 2**31 - 1)
    return Suite(data, {str(probe): _options(str(probe), some, file) for probe, some in probes.items()}, protocol)


def _data(name: object, file: Path) -> str:
    if name == "sample":
        return "sample"
    if not isinstance(name, str) or not name or ":" in name:
        raise UserError(f"{file}: data names {str(name)[:100]!r}: give `sample` or a path below its folder, others with --data")
    inside = places.inside_of(file.parent, name, file=file, cure="give it with --data")
    return str(places.recorded(str(inside), file=file, below=[file.parent], cure="give it with --data"))


def _options(probe: str, content: Any, file: Path) -> Mapping[str, Any]:
    """The options of a probe. Raises UserError for others than OPTIONS has, and for values that are no numbers or plain words."""
    if probe not in OPTIONS:
        raise UserError(f"{file}: there is no probe {probe[:100]!r}: choose from {', '.join(OPTIONS)}")
    found = checked.mapping(content if content is not None else {}, f"{file}: {probe}")
    for name, value in found.items():
        if name not in OPTIONS[probe]:
            raise UserError(f"{file}: {probe} takes {', '.join(OPTIONS[probe])} from a suite, not {str(name)[:100]!r}")
        for one in value if isinstance(value, list) and value else [value]:
            if not isinstance(one, (bool, int, float)) and not (isinstance(one, str) and WORD.fullmatch(one)):
                raise UserError(f"{file}: {probe}: {name} is {str(one)[:100]!r}, neither a number nor a word")
    return found


def words(options: Mapping[str, Any]) -> list[str]:
    """The options as a command line has them."""
    found: list[str] = []
    for name, value in options.items():
        flag = flat.flag(name)
        if isinstance(value, bool):
            found.append(flag if value else f"--no-{flag[2:]}")
        else:
            found += [flag, *(str(one) for one in (value if isinstance(value, list) else [value]))]
    return found
