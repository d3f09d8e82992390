"""Published checkpoints by name: where they are, fetched once, looked into before they are kept, compared ever after."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from checkpoints import download, reading, store, terminal
from checkpoints.cli import UserError
from checkpoints.places import cache_folder

LIST = Path(__file__).with_name("zoo.json")
EXPORTED = ("model.safetensors", "pytorch_model.bin")
"""Names of weights in folders that `--to timm` and `--to huggingface` write, and in those of the Hugging Face Hub."""
THEIRS = "checkpoint.pth"
"""Name of checkpoints in the original's output folders."""
Check = Callable[[Path], str]
"""Says in words what a file is, or raises UserError if it is not what it should be."""


def names() -> dict[str, dict[str, Any]]:
    """The zoo: name -> address, arch, patch size, epochs and published numbers; or what of --ckpt it is the same `as`."""
    return json.loads(LIST.read_text())["checkpoints"]


def meant(checkpoint: Path | None) -> Path | None:
    """What a name of the zoo stands for where timm or Hugging Face have it (`timm:...`, `hf:...`); all else as it is."""
    if checkpoint is None or len(checkpoint.parts) != 1 or checkpoint.exists():
        return checkpoint
    return Path(names().get(str(checkpoint), {}).get("as", checkpoint))


def kept(name: str) -> Path:
    """Where the file of a name lies once it was fetched: with the suffix that its address has."""
    suffix = re.search(r"(\.(pth|pt|bin|safetensors))(\.tar)?$", names().get(name, {}).get("address", ""))
    return cache() / f"{name}{suffix[0] if suffix else '.pth'}"


def find(checkpoint: Path | None, runs: Path, *, whole: bool, check: Callable[[dict[str, Any], Path], str]) -> Path:
    """The file that `--ckpt` means: the newest run's under `runs`, a folder's, a path's, or one of the zoo's, fetched if need be.

    Of a run's folder its backbone alone, or everything if `whole`. `check` looks into the file of an entry of the zoo. Raises
    UserError where there is none, WorkError where it could not be fetched.
    """
    path = store.newest_run(runs) if checkpoint is None else checkpoint
    if path.is_dir():
        return _in_folder(path, whole)
    if path.exists():
        return path
    zoo = names()
    if str(path) in zoo:
        entry = zoo[str(path)]
        return fetch(entry["address"], kept(str(path)), partial(check, entry), entry.get("sha256", ""))
    similar = [name for name in zoo if str(path).split("_")[0] in name]
    hint = f"; the zoo has {', '.join(similar)}" if similar and path.suffix == "" else ""
    kinds = "a run's folder, a checkpoint file, a name of checkpoints/zoo.json or timm:NAME"
    raise UserError(f"there is no checkpoint at {path}: give {kinds}{hint}")


def _in_folder(folder: Path, whole: bool) -> Path:
    candidates = [store.LAST, store.PREVIOUS, THEIRS] if whole else [store.BACKBONE, store.LAST, store.PREVIOUS, THEIRS]
    for name in (*candidates, *EXPORTED):
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder} holds no checkpoint ({' or '.join(candidates)}): give a run's folder or a checkpoint file")


def cache() -> Path:
    """Folder of downloaded files: `$IBOT_CACHE`, or in the user's cache folder."""
    return cache_folder("IBOT_CACHE")


def fetch(address: str, path: Path, check: Check, sha256: str = "") -> Path:
    """The file at an address, from the cache or the network, where it gets its name once it is whole and `check` knows it.

    Its digest must be `sha256` where that is known. Otherwise it is shown and kept beside the file at first, and a file that no
    longer agrees is refused, as UserError; WorkError where the network, the server or the disk fails.
    """
    if not download.fetch(address, path, lambda part: _seal(part, path, check, sha256)):
        if not path.is_file():
            raise UserError(f"{path} is no file: remove it, or give another $IBOT_CACHE")
        _seal(path, path, check, sha256)
    return path


def _seal(file: Path, path: Path, check: Check, sha256: str) -> None:
    """Raise UserError unless the file, which is or will be `path`, is what it should be, or was when it was first looked into."""
    digest, seal = store.sha256(file), path.with_suffix(".sha256")
    if sha256 and digest != sha256:
        raise UserError(f"{file} is not the file that is known by this name (sha256 {digest}, not {sha256}): delete it")
    kept = reading.text(seal, errors="replace").split() if seal.is_file() and file == path else []
    if kept and kept[0] != digest:
        raise UserError(f"{path} is no longer what was fetched (its checksum differs): delete it and start again")
    if len(kept) > 1:  # one word alone was written before anything was looked into
        return
    found = check(file)
    verdict = "as is known of it" if sha256 else "none is known of it, so that it is only compared with itself from now on"
    terminal.say(f"{path}: {found}; sha256 {digest} ({verdict})", error=True)
    try:
        store.write_bytes(seal, f"{digest}  {path.name}\n".encode())  # as sha256sum -c reads it
    except OSError:
        if file != path:
            raise
        terminal.say(f"{path}: the folder cannot be written to, so that its sha256 is not kept", error=True)


def verdict(path: Path) -> str | None:
    """A sentence on what the digest of a file in the cache was compared with. None for other files."""
    if path.parent != cache():
        return None
    known = names().get(path.name.partition(".")[0], {}).get("sha256")
    return "the digest known of it" if known else "its first fetch alone (no digest is known)"
