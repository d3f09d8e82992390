"""Reads a torch file as data before torch itself reads it.

torch's safe reader runs no code, and still calls what a file wants with what a file says: arrays of any size, tensors without
numbers, parts of others. Here the file's pickle is gone through once by `plain_pickle`, where only the names below stand for
anything, and every tensor must lie within the numbers that the file really holds. Both of torch's formats are known: the zip, and
the pickles in a row from before 1.6.
"""

import io
import math
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from checkpoints import plain_numpy, plain_pickle
from checkpoints.plain_pickle import Built, Leaf, Named, NotPlain, Ordered

ZIP, MAGIC, PROTOCOL = b"PK\x03\x04", 0x1950A86A20F9469CFC6C, 1001
LARGEST = 1 << 26
"""Letters of values besides tensors: a million numbers."""
EXPANDED = 1 << 20
"""Numbers of a tensor that stands for more than it holds."""
KINDS = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
}
STORAGE = re.compile(r"^torch\.(cuda\.)?|Storage$")
CONSTANT = re.compile(r"torch\.(?:u?int\d+|b?float\d+\w*|complex\d+|bool|double|float|half|long|int|short)")


class Storage(Leaf):
    """Numbers that the file holds under a key."""

    def __init__(self, key: str, dtype: torch.dtype, count: int) -> None:
        self.key, self.dtype, self.count = key, dtype, count


class Part(Leaf):
    """A tensor: where its numbers are in a storage."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any) -> None:
        """Raises NotPlain where the storage does not hold it."""
        if type(storage) is not Storage or not _counts([offset]) or not (_counts(size) and _counts(stride)):
            raise NotPlain("it has a forged tensor")
        if len(size) != len(stride):
            raise NotPlain("it has a forged tensor")
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        numbers = math.prod(size)
        within = last < storage.count and numbers <= max(storage.count, EXPANDED)
        if not (within if numbers else max(size) <= EXPANDED and offset <= storage.count):
            raise NotPlain(f"it has a tensor of {'x'.join(map(str, size))[:40]} in a place that holds {storage.count} numbers")
        self.storage, self.offset, self.size, self.stride = storage, offset, tuple(size), tuple(stride)

    def value(self) -> "Part":
        """Returns itself."""
        return self


class Constant(Leaf):
    """A dtype, a device."""

    def __init__(self, *_: Any) -> None:
        pass

    def value(self) -> None:
        """Returns None: its value is not used here."""


class Attributes(Built):
    """Stand-in for `argparse.Namespace` and other classes that only hold attributes."""

    held: Mapping[str, Any] = {}

    def __init__(self, *_: Any) -> None:
        if _:
            raise NotPlain("it makes options of something")

    def restore(self, state: Any) -> None:
        """Attributes by name, none of Python's own."""
        if type(state) is not dict or not all(type(name) is str and not name.startswith("__") for name in state):
            raise NotPlain("it sets what is no option")
        self.held = state

    def value(self) -> dict[str, Any]:
        """By name."""
        return dict(self.held)


class Content(NamedTuple):
    """Content of a file."""

    value: Any
    """The value, with a Part for every tensor."""
    raw: Callable[[str], bytes]
    """A storage's bytes by its key."""


Classes = Mapping[str, Callable[..., Any]]
"""By a class's full name, what makes its stand-in."""
NONE: Classes = {}


def check(path: Path, classes: Classes = NONE) -> None:
    """Raise NotPlain for a file that torch should not be given. `classes` are allowed besides."""
    with open(path, "rb") as file:
        read(file, classes)


def read(file: io.BufferedIOBase, classes: Classes = NONE) -> Content:
    """Content of a file, without torch's reader. Raises as `check`."""
    start = file.read(4)
    file.seek(0)
    content = _zipped(file, classes) if start == ZIP else _in_a_row(file, classes)
    plain_pickle.plain(content.value, LARGEST)
    return content


def tensor(part: Part, raw: Callable[[str], bytes]) -> torch.Tensor:
    """The numbers themselves, on the CPU."""
    storage = part.storage
    if not storage.count:
        return torch.zeros(part.size, dtype=storage.dtype)
    numbers = torch.frombuffer(bytearray(raw(storage.key)), dtype=storage.dtype, count=storage.count)
    return numbers.as_strided(part.size, part.stride, part.offset).clone()


def _zipped(file: Any, classes: Classes) -> Content:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise NotPlain("it is damaged or cut off") from error
    parts = {entry.filename: entry for entry in archive.infolist()}
    top = {name.partition("/")[0] for name in parts}
    if len(parts) != len(archive.infolist()) or len(top) != 1:
        raise NotPlain("it holds parts of the same name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in parts.values()):
        raise NotPlain("its parts are compressed, as torch never writes them")
    root = top.pop()
    if f"{root}/data.pkl" not in parts or f"{root}/constants.pkl" in parts:
        raise NotPlain("it is no checkpoint of torch, but an archive of something else: ask for weights alone")

    def size(key: str) -> int:
        entry = parts.get(f"{root}/data/{key}")
        if entry is None:
            raise NotPlain("it lacks numbers that it names")
        return entry.file_size

    def raw(key: str) -> bytes:
        if f"{root}/byteorder" in parts and archive.read(f"{root}/byteorder").decode("latin1") != sys.byteorder:
            raise NotPlain("it was written on a machine of another byte order")
        return archive.read(f"{root}/data/{key}")

    try:
        pickled = archive.read(f"{root}/data.pkl")
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise NotPlain("it is damaged or cut off") from error
    return Content(plain_pickle.read(io.BytesIO(pickled), _names(classes), _storages(size)), raw)


def _in_a_row(file: io.BufferedIOBase, classes: Classes) -> Content:
    """Before torch 1.6: magic number, protocol, machine, content, keys, a pickle each, then numbers in the order of keys."""
    if file.read(2) != b"\x80\x02":
        raise NotPlain("it is a pickle that torch has not written, which may hold code and is not read; ask for weights alone")
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    names = _names(classes)
    magic, protocol = plain_pickle.read(file, names), None
    if type(magic) is int and magic == MAGIC:
        protocol, machine = plain_pickle.read(file, names), plain_pickle.read(file, names)
    if type(protocol) is not int or protocol != PROTOCOL or type(machine) is not dict:
        raise NotPlain("it is a pickle that torch has not written, which may hold code and is not read; ask for weights alone")
    if machine.get("little_endian", True) is not True:
        raise NotPlain("it was written on a machine of another byte order")
    sizes: dict[str, Storage] = {}
    content = plain_pickle.read(file, names, _storages(lambda key: end, sizes))
    keys, places = plain_pickle.read(file, names), {}
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(sizes):
        raise NotPlain("it lacks numbers that it names")
    for key in keys:
        count, width = sizes[key].count, sizes[key].dtype.itemsize
        if int.from_bytes(file.read(8), "little") != count or file.tell() + count * width > end:
            raise NotPlain("it is damaged or cut off")
        places[key] = file.tell(), count * width
        file.seek(count * width, io.SEEK_CUR)

    def raw(key: str) -> bytes:
        place, count = places[key]
        file.seek(place)
        return file.read(count)

    return Content(content, raw)


def _storages(size: Callable[[str], int], found: dict[str, Storage] | None = None) -> Callable[[Any], Any]:
    """Answers persistent ids; `size` says how many bytes a key has, or at most could have."""
    storages: dict[str, Storage] = {} if found is None else found

    def stored(identity: Any) -> Any:
        if type(identity) is tuple and len(identity) == 4 and identity[0] == "module" and isinstance(identity[1], Named):
            return identity[1]  # the class of a module and its source, which is passed over
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise NotPlain("it refers to something that is no numbers")
        _, kind, key, where, count, *view = identity
        dtype = KINDS.get(STORAGE.sub("", kind.name)) if isinstance(kind, Named) else None
        if dtype is None or type(key) is not str or type(where) is not str or not _counts([count]) or view not in ([], [None]):
            raise NotPlain("it refers to numbers in a way that torch does not")
        storage = storages.setdefault(key, Storage(key, dtype, count))
        if (storage.dtype, storage.count) != (dtype, count) or count * dtype.itemsize > size(key):
            raise NotPlain(f"it claims {count} numbers that it does not hold")
        return storage

    return stored


def _names(classes: Classes) -> plain_pickle.Names:
    def look_up(full: str) -> Any:
        if full in classes:
            return Named(full, classes[full])
        if full in FUNCTIONS:
            return Named(full, FUNCTIONS[full])
        if STORAGE.sub("", full) in KINDS:
            return Named(full, None)
        return Constant() if CONSTANT.fullmatch(full) else plain_numpy.names(full)

    return look_up


def _counts(values: Any) -> bool:
    return type(values) in (list, tuple) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _rebuilt(storage: Any, offset: Any, size: Any, stride: Any, gradient: Any = False, hooks: Any = (), more: Any = None) -> Part:
    """Stand-in for `torch._utils._rebuild_tensor_v2`."""
    if type(gradient) is not bool or hooks or more:
        raise NotPlain("it has a tensor with functions attached")
    return Part(storage, offset, size, stride)


def _parameter(data: Any, gradient: Any, hooks: Any) -> Part:
    """Stand-in for `torch._utils._rebuild_parameter`."""
    if type(data) is not Part or type(gradient) is not bool or hooks:
        raise NotPlain("it has a parameter with functions attached")
    return data


def _size(values: Any = ()) -> tuple[int, ...]:
    if not _counts(values):
        raise NotPlain("it has a forged size")
    return tuple(values)


def _set(values: Any = ()) -> list[Any]:
    if type(values) not in (list, tuple):
        raise NotPlain("it has a set of something else")
    plain_pickle.set_items({}, [part for value in values for part in (value, None)])
    return list(values)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": Ordered,
    "torch._utils._rebuild_tensor": Part,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "torch.device": Constant,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "argparse.Namespace": Attributes,
}
"""All that a file may call; storages, dtypes and numpy's arrays apart."""
