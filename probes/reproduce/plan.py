"""The plan of `probes.reproduce`: an order in which every step's inputs exist, and reasons for steps that are left out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints.cli import UserError
from pretrain.models.backbone import Loaded
from probes.features.attention import require_attention
from probes.linear import head as linear_head
from probes.paper import protocols, published
from probes.reproduce.look import Look
from probes.reproduce.steps import START, Step, real, sample
from probes.robustness import class_maps
from probes.shared import record as results

LookAt = Callable[[Step, str], Look]
"""At a step's data: `probes/reproduce/look.py`."""


class Asked(NamedTuple):
    """Tables and data asked for."""

    data: Mapping[str, Any]
    """Folders and names by flag; without any, the sample is meant."""
    tables: Sequence[str]
    """Only what fills these, if there are any."""
    few: bool
    """The lists of few labels are given."""
    key: str
    out: Path


class Planned(NamedTuple):
    """A step with its data and an estimate."""

    step: Step
    data: str
    seconds: float
    head: Path | None = None
    """A linear head from before, where none is trained in this plan."""
    look: Look = Look()
    """Result of checking its data."""


class Left(NamedTuple):
    """A step that cannot run, though its data was given."""

    step: Step
    reason: str


class KeptHead(NamedTuple):
    """A linear head from before."""

    path: Path
    classes: tuple[str, ...]


class Plan(NamedTuple):
    """Steps to run, in order; steps without their data; steps left out for other reasons."""

    planned: list[Planned]
    missing: list[Step]
    left: list[Left]
    unanswered: list[str]
    """Flags and tables that were asked for and for which nothing runs."""


def make(asked: Asked, loaded: Loaded, speed: float, look: LookAt) -> Plan:
    """`look` says what a step's data is good for. Raises UserError for unknown tables."""
    rehearsal = not any(asked.data.values())
    steps = sample() if rehearsal else real(loaded.backbone.shape.arch, asked.few)
    wanted = [step for step in steps if _wanted(step, asked.tables)]
    given = [step for step in wanted if rehearsal or asked.data[step.needs]]

    def planned_of(step: Step) -> Planned:
        data = "the sample" if rehearsal else str(asked.data[step.needs])
        return Planned(step, data, START + step.images / speed, look=look(step, data))

    possible, left = _apart(given, asked, loaded)
    ready, unfit = _fit([planned_of(step) for step in possible])
    left += unfit
    if any(one.step.after for one in ready):
        sources = [planned_of(step) for step in steps if step.name == "linear" and (rehearsal or asked.data[step.needs])]
        ready, without = _headed(ready, sources, asked, loaded)
        left += without
    missing = [step for step in wanted if step not in given]
    return Plan(list(in_order(ready)), missing, left, _unanswered(asked, wanted, [one.step for one in ready]))


def _fit(planned: Sequence[Planned]) -> tuple[list[Planned], list[Left]]:
    """Steps whose data can serve, and the others."""
    left = [Left(one.step, one.look.reason) for one in planned if one.look.reason]
    return [one for one in planned if not one.look.reason], left


def _headed(
    ready: Sequence[Planned], sources: Sequence[Planned], asked: Asked, loaded: Loaded
) -> tuple[list[Planned], list[Left]]:
    """Add the head that suites read: trained in this plan (`sources`), or kept. Suites that it cannot serve are left out."""
    usable, lost = _fit(sources)
    alone = [one for one in ready if not one.step.after]
    reading = [one for one in ready if one.step.after]
    kept = None
    if usable:
        known, alone = usable[0].look.classes, [*(one for one in alone if one.step.name != "linear"), *usable]
    else:
        kept, reason = (None, "") if not any(asked.data.values()) else kept_head(asked, loaded)
        if kept is None:
            why = f"it needs linear ({lost[0].reason})" if lost else reason
            return alone, [Left(one.step, why) for one in reading]
        known = kept.classes
    reading = [one._replace(head=kept.path if kept else None) for one in reading]
    return _knowing(alone, reading, known)


def _knowing(
    alone: Sequence[Planned], reading: Sequence[Planned], known: Sequence[str] | None
) -> tuple[list[Planned], list[Left]]:
    """Leaves out suites with classes that the head does not know."""
    found, left = list(alone), []
    for one in reading:
        try:
            for name, classes in one.look.asks.items():
                linear_head.require_known(known or (), classes, name)
            found.append(one)
        except UserError as error:
            left.append(Left(one.step, str(error)))
    return found, left


def _wanted(step: Step, tables: Sequence[str]) -> bool:
    return not tables or bool(_ids(tables) & set(step.tables))


def _ids(tables: Sequence[str]) -> set[str]:
    try:
        return {name.partition("_")[0] for name in published.chosen(tables)}
    except KeyError as error:
        raise UserError(f"there is no table {error.args[0]}: python -m probes.tables --every lists them") from error


def _apart(steps: Sequence[Step], asked: Asked, loaded: Loaded) -> tuple[list[Step], list[Left]]:
    """Steps that are possible for this checkpoint, and the others."""
    reasons = {step.name: lacking(step, asked.key, loaded) for step in steps}
    left = [Left(step, reasons[step.name]) for step in steps if reasons[step.name]]
    return [step for step in steps if not reasons[step.name]], left


def lacking(step: Step, key: str, loaded: Loaded) -> str:
    """Why this checkpoint cannot have the step, or nothing."""
    if step.plain_only and loaded.backbone.shape.depths:
        return "its head is for ViTs, whose blocks share one grid"
    if step.vit_only:
        try:
            require_attention(loaded.backbone)
        except UserError as error:
            return str(error)
    network = loaded.contents.network(key, loaded.path)
    if step.full and not any(name.startswith("head.") for name in network):
        return "the checkpoint has no projection head: give a full one (last.pt, checkpoint.pth)"
    return ""


def kept_head(asked: Asked, loaded: Loaded) -> tuple[KeptHead | None, str]:
    """A linear head of this very backbone by Table 1's protocol, from an earlier call or beside the checkpoint; or why not."""
    earlier = asked.out / f"{record_name('linear', asked.key)}_head.safetensors"
    reasons = []
    for path in (earlier, *results.left(loaded, "linear", "_head.safetensors")):
        if path.is_file():
            found = _by_protocol(path, loaded)
            if isinstance(found, KeptHead):
                return found, ""
            reasons.append(found)
    return None, "; ".join(reasons) or "there is no linear head of this checkpoint: give --imagenet, on which it is trained"


def _by_protocol(path: Path, loaded: Loaded) -> KeptHead | str:
    """The head, or in what its protocol is not Table 1's."""
    try:
        head = linear_head.read_head(path, loaded.backbone, class_maps.imagenet())
    except UserError as error:
        return str(error)
    record = {"checkpoint": {"arch": loaded.backbone.shape.arch}, "protocol": {"linear_head": head.protocol}}
    found = protocols.differences((protocols.linear_head,), record)
    if found:
        return f"{path} is not by Table 1's protocol ({', '.join(found).replace('linear_head.', '')})"
    return KeptHead(path, head.classes)


def record_name(step: str, key: str) -> str:
    """A record's file name, without its ending: the student's have one of their own."""
    return step if key == "teacher" else f"{step}_{key}"


def in_order(planned: Sequence[Planned]) -> Iterator[Planned]:
    """The cheapest first among those whose sources have run."""
    waiting = sorted(planned, key=lambda one: one.seconds)
    while waiting:
        names = {one.step.name for one in waiting}
        now = next(one for one in waiting if not names & set(one.step.after))
        waiting.remove(now)
        yield now


def _unanswered(asked: Asked, wanted: Sequence[Step], ready: Sequence[Step]) -> list[str]:
    running = {step.needs for step in ready}
    flags = [f"--{name}" for name, value in asked.data.items() if value and name not in running]
    flags = [flag for flag in flags if any(f"--{step.needs}" == flag for step in wanted)]
    filled = {table for step in ready for table in step.tables}
    tables = _ids(asked.tables) if asked.tables else set()
    return flags + sorted(f"--table {name}" for name in tables if name not in filled)
