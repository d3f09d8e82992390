"""Checkpoint files: written whole or not at all, read without running code from them, found by the folder they lie in.

Our own layout is one dict:

    format      "ibot-run", version 1
    student     weights, "backbone.*" and "head.*"
    teacher     the same without `masked_embed`
    centres     {"cls": [1, k], "patch": [1, 1, k]}
    optimizer   its state_dict
    scaler      of the loss, empty but for fp16
    step        optimisation steps done; epoch = step // steps_per_epoch
    processes   how many there were
    random      states of torch's generators, one entry a process
    checksum    of all of this
    config      the run's options as plain values
    shape       the backbone's architecture, `checkpoints.architecture.Architecture` as a dict
"""

import contextlib
import filecmp
import hashlib
import json
import os
import re
import shutil
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from checkpoints import checked, places, reading, torch_pickle
from checkpoints.cli import UserError, WorkError
from checkpoints.plain_pickle import NotPlain

TEXT = frozenset(range(32, 127)) | frozenset(b"\n\r\t")
FORMAT, VERSION = "ibot-run", 1
SEALED = 2
"""Version of backbone files that carry a checksum."""
SEAL = ("version", "checksum")
"""Fields of a backbone file's `about` that are added on writing."""
MOST_PARTS = 1_000_000
"""Largest number of parts that a checksum covers: nested lists could have more than any computer could walk through."""
LAST, PREVIOUS, BACKBONE = "last.pt", "previous.pt", "backbone.safetensors"


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one move: a reader, or a crash at any moment, sees the old file or the new one.

    A link in its place is replaced, not written through. Folders on the way are the caller's matter (`places.below`). Raises
    UserError where a device or a pipe lies there, OSError.
    """
    places.refuse_special(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with new_file(temporary) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def new_file(path: Path) -> BinaryIO:
    """A new file, open for writing; what was there, a link perhaps, is taken away first."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")


def take_apart(path: Path) -> None:
    """Replace a file that has other names (hard links) by a copy, so that writing to it changes this folder only.

    Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(path)
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
            with reading.opened(path) as old, new_file(temporary) as file:
                shutil.copyfileobj(old, file)
            os.replace(temporary, path)


def append(path: Path, text: str) -> None:
    """Write at the end of a file. Raises UserError where a link or no plain file lies there, WorkError where writing fails."""
    places.refuse_link(path)
    try:
        take_apart(path)
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        with os.fdopen(number, "ab", buffering=0) as file:
            before, content = os.fstat(number).st_size, text.encode("utf-8", "backslashreplace")
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                os.ftruncate(number, before)  # no half a line
                raise
    except OSError as error:
        raise WorkError(cannot_write(path, error)) from error


def save_run(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write `state` as the run's newest checkpoint and keep the one before it as `previous.pt`.

    A damaged one is not kept. Raises WorkError where that cannot be done, or a weight or moment is not finite; what was there
    before is then untouched.
    """
    _refuse_not_finite(folder / LAST, state)
    content, last = {"format": FORMAT, "version": VERSION, **state}, folder / LAST
    keep = folder / PREVIOUS if _is_whole(last) else None
    save_file(last, {**content, "checksum": checksum(content)}, keep=keep)
    _whole.add(_identity(last))
    return last


_whole: set[tuple[int, ...]] = set()
"""Identities of checkpoints that this process has written, or read and found to agree with their checksum."""


def _identity(path: Path) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _is_whole(path: Path) -> bool:
    """Whether a run's checkpoint is there and whole; it is read unless this process knows it."""
    try:
        if _identity(path) not in _whole:
            _read_run(path)
    except (UserError, OSError):
        return False
    return True


def _read_run(path: Path) -> dict[str, Any]:
    """A run's checkpoint without its checksum. Raises UserError where it does not agree with it."""
    known = _identity(path)
    state = read_torch(path)
    if state.pop("checksum", None) != _checksum_of(state, path):
        raise UserError(f"{path} does not agree with its checksum")
    _whole.add(known)
    return state


def _refuse_not_finite(path: Path, content: Mapping[str, Any]) -> None:
    """Raise WorkError where a tensor of nested dicts and lists holds what is not finite."""
    name = _not_finite(content, "")
    if name:
        raise WorkError(
            f"{name} is not finite: {path} is not written, what was saved before stays; the training has diverged, begin again "
            "from there with a lower --lr"
        )


def _not_finite(value: Any, name: str) -> str:
    """The name of the first such tensor, or nothing."""
    if isinstance(value, torch.Tensor):
        return name if value.is_floating_point() and not bool(torch.isfinite(value).all()) else ""
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    found = (_not_finite(one, f"{name}.{key}" if name else str(key)) for key, one in parts)
    return next(filter(None, found), "")


def keep(folder: Path, epoch: int) -> Path:
    """Give a run's newest checkpoint a name that stays, `epoch-0040.pt`, and take no more room for it than need be.

    What has that name already stays: another checkpoint of the same epoch becomes `epoch-0040-2.pt`. Raises WorkError.
    """
    last, number = folder / LAST, 1
    try:
        while True:
            path = folder / f"epoch-{epoch:04}{f'-{number}' if number > 1 else ''}.pt"
            if not os.path.lexists(path):
                break
            if path.is_file() and filecmp.cmp(path, last, shallow=False):
                return path
            number += 1
        try:
            os.link(last, path)
        except OSError:  # file systems without hard links
            temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
            shutil.copyfile(last, temporary)
            os.replace(temporary, path)
    except OSError as error:
        raise WorkError(cannot_write(path, error)) from error
    return path


def save_file(path: Path, content: Mapping[str, Any], keep: Path | None = None) -> Path:
    """Write a torch file whole or not at all; the one in its place, if any, becomes `keep`. Raises WorkError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(temporary) as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch wraps what its writer meets
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise WorkError(cannot_write(path, error)) from error
    return path


def cannot_write(path: Path, error: BaseException) -> str:
    """The error message for a run's file that could not be written."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return f"{path} could not be written ({why}): make room, or see to the folder, and start again from the last good checkpoint"


class Found(NamedTuple):
    """A run's checkpoint."""

    state: dict[str, Any]
    path: Path
    passed_over: str
    """Why a newer one was not taken, or nothing."""


def load_run(folder: Path) -> Found | None:
    """The newest whole checkpoint of a run, or None where the run has none.

    A damaged `last.pt` is passed over for `previous.pt`. Raises UserError when there are files and none can be read.
    """
    broken: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            return Found(_read_run(path), path, "; ".join(broken))
        except UserError as error:
            broken.append(str(error))
    if broken:
        raise UserError("; ".join(broken) + f". Delete {folder} to begin again")
    return None


def checksum(content: Any) -> str:
    """Hex digest of nested dicts, lists, tensors and plain values, whatever the order of the keys."""
    digest = hashlib.sha256()
    _add(digest, content, iter(range(MOST_PARTS)))
    return digest.hexdigest()


def _checksum_of(content: Any, path: Path) -> str:
    """The checksum of the content of a file that was read."""
    try:
        return checksum(content)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:  # of tensors and nestings that we never write
        raise UserError(f"{path} holds what no checkpoint of this project has ({first_line(error)})") from error


def _add(digest: Any, value: Any, left: Iterator[int]) -> None:
    if next(left, None) is None:
        raise ValueError(f"more than {MOST_PARTS:,} parts")
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            digest.update(repr(key).encode())
            _add(digest, value[key], left)
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}]".encode())
        for one in value:
            _add(digest, one, left)
    else:
        digest.update(repr(value).encode())


def read_torch(path: Path, allowed: Sequence[Any] = (), classes: torch_pickle.Classes = torch_pickle.NONE) -> dict[str, Any]:
    """A torch file's dict, on the CPU. Code in the file is never run: only tensors, plain values and `allowed` types pass.

    The file is read as data first (`torch_pickle`), so that torch is given nothing forged; `classes` says there what stands for
    types other than a published file's.
    Raises UserError for a missing, damaged or foreign file.
    """
    content = read_object(path, allowed, classes)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def read_object(path: Path, allowed: Sequence[Any] = (), classes: torch_pickle.Classes = torch_pickle.NONE) -> Any:
    """The object in a torch file, of any type, read as by `read_torch`."""
    look_at(path)
    try:
        torch_pickle.check(path, classes)
        with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on foreign pickles before it refuses or reads them
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(f"{path} is not a readable checkpoint: {_why(error)}") from error


def save_backbone(path: Path, weights: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Backbone weights as safetensors; `about` (plain values) becomes the file's metadata under the key `about`.

    In the same text stands a checksum of itself and of all weights: one key, as safetensors keeps several in no order. Raises
    WorkError where a weight is not finite.
    """
    _refuse_not_finite(path, weights)
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    sealed = {**about, "version": SEALED}
    seal = checksum({"about": json.dumps(sealed), "weights": tensors})
    write_bytes(path, safetensors_bytes(tensors, metadata={"about": json.dumps({**sealed, "checksum": seal})}))


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and metadata of a safetensors file; `about`, where this project wrote it, as it was given to `save_backbone`.

    Raises UserError for a missing, damaged or foreign file. Files without a checksum are from before there was one.
    """
    look_at(path)
    try:
        with open(path, "rb") as opened, safe_open(_utf8(path, opened), framework="pt") as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if "about" in metadata:
            metadata["about"] = json.loads(metadata["about"])
        seal = _seal_of(metadata, path)
        if seal and seal != _checksum_of({"about": json.dumps(metadata["about"]), "weights": weights}, path):
            raise UserError(f"{path} does not agree with its checksum: it is damaged; take another copy")
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({first_line(error)}): it is damaged or cut off") from error
    except Exception as error:  # kinds of numbers that its reader knows and torch does not
        raise UserError(f"{path} is not a readable safetensors file ({first_line(error)})") from error
    if "about" in metadata:
        metadata["about"] = {name: value for name, value in metadata["about"].items() if name not in SEAL}
    return weights, metadata


def _utf8(path: Path, opened: BinaryIO) -> str:
    """A name of the open file that is UTF-8, which safetensors asks for."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"/dev/fd/{opened.fileno()}"
    return str(path)


def _seal_of(metadata: Mapping[str, Any], path: Path) -> str:
    """The checksum, taken out of `about`, or nothing for a file from before there was one."""
    if "about" not in metadata:
        if any(f'"version": {SEALED}, "checksum": "' in value for value in metadata.values()):
            raise UserError(f"{path} is damaged: what it says of itself stands under another name; take another copy")
        return ""
    about = checked.mapping(metadata["about"], f"{path}: about")
    version = checked.version(about.get("version"), str(path), SEALED)
    if (version == SEALED) != ("checksum" in about):
        raise UserError(f"{path} is damaged: it has lost its checksum; take another copy")
    return checked.text(metadata["about"].pop("checksum", ""), f"{path}: checksum")


def look_at(path: Path) -> None:
    """Raise UserError for what is plainly no checkpoint: nothing there, empty, a web page, a text."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        raise UserError(f"{path} is empty: a download or a copy has failed; fetch it again")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page, not a checkpoint: the download was answered by an error page; fetch it again")
    if b"version https://git-lfs" in start:
        raise UserError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull` where it comes from")
    if all(byte in TEXT for byte in start):
        raise UserError(f"{path} is a text file, not a checkpoint")


def newest_run(runs: Path) -> Path:
    """The run folder under `runs` whose checkpoint is newest. Raises UserError where there is none."""
    candidates = [path for name in (LAST, BACKBONE) for path in runs.glob(f"*/{name}")]
    if not candidates:
        raise UserError(f"no run under {runs}/ has a checkpoint yet: pretrain with tools/pretrain.sh, or name one with --ckpt")
    return max(candidates, key=lambda path: path.stat().st_mtime).parent


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _why(error: BaseException) -> str:
    """Why a file was refused, by `torch_pickle` or by torch's safe reader."""
    if isinstance(error, NotPlain):
        return f"{error}; ask for weights alone" if "holds code" in str(error) else str(error)
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
        return f"it holds code ({code[1]}), which is never run; ask for weights alone"
    if "WeightsUnpickler" in str(error):
        return "it is a pickle that torch has not written, which may hold code and is not read; ask for weights alone"
    return f"it is damaged or cut off ({first_line(error)})"


def first_line(error: BaseException) -> str:
    """An exception as a few words for a one-sentence message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:120].rstrip(". :")
