"""Published checkpoints by name: where they are, fetched once, resumed where a download broke off, checked ever after."""

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from checkpoints import store
from checkpoints.command import UserError, WorkError
from checkpoints.places import cache_folder

LIST = Path(__file__).with_name("zoo.json")
THEIRS = "checkpoint.pth"
"""In the original's output folders."""
BLOCK = 1 << 20
PATIENCE = 30
"""Seconds without an answer."""


def names() -> dict[str, dict[str, Any]]:
    """The zoo: name -> address, arch, patch size, epochs and published numbers."""
    return json.loads(LIST.read_text())["checkpoints"]


def find(checkpoint: Path | None, runs: Path, *, whole: bool) -> Path:
    """The file that `--ckpt` means: the newest run's under `runs`, a folder's, a path's, or one of the zoo's, fetched if need be.

    Of a run's folder its backbone alone, or everything if `whole`. Raises UserError where there is none, WorkError where it could
    not be fetched.
    """
    path = store.newest_run(runs) if checkpoint is None else checkpoint
    if path.is_dir():
        return _in_folder(path, whole)
    if path.exists():
        return path
    zoo = names()
    if str(path) in zoo:
        return fetch(zoo[str(path)]["address"], cache() / f"{path}.pth")
    similar = [name for name in zoo if str(path).split("_")[0] in name]
    hint = f"; the zoo has {', '.join(similar)}" if similar and path.suffix == "" else ""
    kinds = "a run's folder, a checkpoint file, a name of checkpoints/zoo.json or timm:NAME"
    raise UserError(f"there is no checkpoint at {path}: give {kinds}{hint}")


def _in_folder(folder: Path, whole: bool) -> Path:
    candidates = [store.LAST, store.PREVIOUS, THEIRS] if whole else [store.BACKBONE, store.LAST, store.PREVIOUS, THEIRS]
    for name in candidates:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder} holds no checkpoint ({' or '.join(candidates)}): give a run's folder or a checkpoint file")


def cache() -> Path:
    """Where fetched files lie: `$IBOT_CACHE`, or the user's cache folder."""
    return cache_folder("IBOT_CACHE")


def fetch(address: str, path: Path) -> Path:
    """The file at an address, from the cache or the network. A part that is there is continued, not fetched again.

    After the first fetch its checksum is kept beside it, and a file that no longer agrees is refused. Raises UserError for
    that, WorkError where the network or the disk fails.
    """
    seal = path.with_suffix(".sha256")
    if path.exists():
        if seal.exists() and seal.read_text().strip() != store.sha256(path):
            raise UserError(f"{path} is no longer what was fetched (its checksum differs): delete it and start again")
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _continue(address, part)
        store.write_bytes(seal, (store.sha256(part) + "\n").encode())
        os.replace(part, path)
    except OSError as error:  # urllib's errors are among them
        kept = f"; what there is of it stays at {part} and is continued" if part.exists() else ""
        reason = getattr(error, "reason", None) or error.strerror or error
        raise WorkError(f"{address} could not be fetched ({reason}){kept}: try again, or fetch it yourself to {path}") from error
    return path


def _continue(address: str, part: Path) -> None:
    """Fetch what is still missing of a file."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing
            return
        raise
    with answer, open(part, "ab" if answer.status == 206 else "wb") as file:
        have = have if answer.status == 206 else 0
        missing = answer.headers.get("Content-Length")
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"fetching {part.name.removesuffix('.part')}", total=have + int(missing) if missing else None)
            bar.advance(task, have)
            got = 0
            while block := answer.read(BLOCK):
                file.write(block)
                got += len(block)
                bar.advance(task, len(block))
        file.flush()
        os.fsync(file.fileno())
    if missing and got != int(missing):
        raise ConnectionError(f"only {got} of {missing} bytes came")
