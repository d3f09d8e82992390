"""Features as a file for other programs: Parquet, `.npy` with a `.json` beside it, or zarr likewise.

A row an image: `name`, `part` (train or val), `label` and `class` where there are classes (null where an image has none),
`features` [d], `patches` [t * d] on request. What they are of stands in the file's metadata under the key `ibot`, as JSON: the
checkpoint with its digest, the view, the images, the classes. Written piece by piece, and under its name only when it is whole.
zarr is written and not read: what a store's metadata names as its codec would be run.

n images, d width, t patch tokens.
"""

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.lib.format import open_memmap
from pyarrow import parquet

from checkpoints import checked, escape, places, reading, store
from checkpoints.cli import UserError
from pretrain.images.source import Images

KEY, FORMAT = b"ibot", 1
SUFFIXES = (".parquet", ".npy")
ZARR = ".zarr"
"""Written only."""
PIECE = 1024
"""Rows that are held at once, and rows of a Parquet row group."""


class Part(NamedTuple):
    """The features of one part of the images."""

    name: str
    images: Images
    features: np.ndarray
    patches: np.ndarray | None
    """[n, t, d], or None."""


class Rows(NamedTuple):
    """The content of such a file."""

    features: np.ndarray
    """[n, d] float32."""
    names: Sequence[str]
    parts: np.ndarray
    labels: np.ndarray | None
    classes: Sequence[str]
    about: Mapping[str, Any]
    """What stands in its metadata; empty for a file of another program."""


def refuse_other_suffix(path: Path) -> Path:
    """The path. Raises UserError for an ending that is not written, and for zarr where the library is not there."""
    if path.suffix not in (*SUFFIXES, ZARR):
        raise UserError(f"--out {path}: give a name that ends with {', '.join(SUFFIXES)} or {ZARR}")
    if path.suffix == ZARR and importlib.util.find_spec("zarr") is None:
        raise UserError(f"--out {path}: zarr is not installed: tools/setup.sh zarr (Python 3.11 or later), or give a name.npy")
    if path.suffix == ZARR and os.path.lexists(path):
        raise UserError(f"--out {path} exists: a store is not replaced, give another name")
    return path


def write(path: Path, parts: Sequence[Part], about: Mapping[str, Any]) -> list[Path]:
    """Write a file of these features; the paths of all that was written. Raises OSError."""
    text = escape.json_text({"format": FORMAT, **about}).encode()
    forms = {".parquet": _write_parquet, ".npy": _write_arrays, ZARR: _write_store}
    return forms[path.suffix](path, parts, text)


def _write_parquet(path: Path, parts: Sequence[Part], text: bytes) -> list[Path]:
    labelled = all(part.images.labels is not None for part in parts)
    fields = [pa.field("name", pa.string()), pa.field("part", pa.string())]
    fields += [pa.field("label", pa.int64()), pa.field("class", pa.string())] if labelled else []
    fields.append(pa.field("features", pa.list_(pa.float32(), parts[0].features.shape[1])))
    tokens = parts[0].patches
    if tokens is not None:
        fields.append(pa.field("patches", pa.list_(pa.float32(), tokens.shape[1] * tokens.shape[2])))
    schema = pa.schema(fields, metadata={KEY: text})
    with _whole(path) as unfinished, parquet.ParquetWriter(unfinished, schema) as writer:
        for part in parts:
            for start in range(0, len(part.features), PIECE):
                writer.write_table(pa.table(_columns(part, slice(start, start + PIECE), labelled, schema), schema))
    return [path]


def _columns(part: Part, rows: slice, labelled: bool, schema: pa.Schema) -> list[pa.Array]:
    numbers = range(*rows.indices(len(part.features)))
    columns = [pa.array([_name(part.images, number) for number in numbers]), pa.array([part.name] * len(numbers))]
    if labelled:
        labels = np.asarray(part.images.labels)[rows]
        of = [None if label < 0 else _text(part.images.classes[int(label)]) for label in labels]
        columns += [pa.array(labels, pa.int64(), mask=labels < 0), pa.array(of, pa.string())]
    for array in (part.features, *(() if part.patches is None else (part.patches,))):
        flat = pa.array(np.asarray(array[rows], dtype=np.float32).reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, int(np.prod(array.shape[1:]))))
    return columns


def _write_arrays(path: Path, parts: Sequence[Part], text: bytes) -> list[Path]:
    """`NAME.npy` [n, d], `NAME.patches.npy` [n, t, d], and `NAME.json` with names, parts, labels and the metadata."""
    count = sum(len(part.features) for part in parts)
    written = []
    for kind, which in (("", "features"), (".patches", "patches")):
        arrays = [getattr(part, which) for part in parts]
        if arrays[0] is None:
            continue
        with _whole(path.with_name(f"{path.stem}{kind}.npy")) as unfinished:
            out = open_memmap(unfinished, mode="w+", dtype=np.float32, shape=(count, *arrays[0].shape[1:]))
            start = 0
            for array in arrays:
                for first in range(0, len(array), PIECE):
                    piece = array[first : first + PIECE]
                    out[start : start + len(piece)] = piece
                    start += len(piece)
            out.flush()
        written.append(path.with_name(f"{path.stem}{kind}.npy"))
    return [*written, _write_list(path, parts, text)]


def _write_store(path: Path, parts: Sequence[Part], text: bytes) -> list[Path]:
    """`NAME.zarr` with the arrays `features` [n, d] and `patches` [n, t, d], and `NAME.json` as beside `.npy`."""
    import zarr  # noqa: PLC0415  # of an extra

    count = sum(len(part.features) for part in parts)
    unfinished = path.with_name(f".{path.name}.part")
    places.refuse_link(unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)
    group = zarr.open_group(unfinished, mode="w")
    group.attrs[KEY.decode()] = json.loads(text)
    for which in ("features", "patches"):
        arrays = [getattr(part, which) for part in parts]
        if arrays[0] is None:
            continue
        sides = arrays[0].shape[1:]
        piece = PIECE if which == "features" else max(1, PIECE // sides[0])
        made = group.create_array(which, shape=(count, *sides), chunks=(min(piece, count), *sides), dtype="float32")
        start = 0
        for array in arrays:
            for first in range(0, len(array), piece):
                some = np.asarray(array[first : first + piece], dtype=np.float32)
                made[start : start + len(some)] = some
                start += len(some)
    os.replace(unfinished, path)
    return [path, _write_list(path, parts, text)]


def _write_list(path: Path, parts: Sequence[Part], text: bytes) -> Path:
    """`NAME.json` beside arrays: names, parts, labels and the metadata."""
    listed: dict[str, Any] = {"names": [_name(part.images, number) for part in parts for number in range(len(part.features))]}
    listed["parts"] = [part.name for part in parts for _ in range(len(part.features))]
    if all(part.images.labels is not None for part in parts):
        listed["labels"] = [int(label) for part in parts for label in np.asarray(part.images.labels)]
    beside = path.with_suffix(".json")
    store.write_bytes(beside, escape.json_text({KEY.decode(): json.loads(text), **listed}).encode())
    return beside


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path to write to, which gets its name when all is written, or is removed."""
    unfinished = path.with_name(f".{path.name}.part")
    places.refuse_link(path)
    places.refuse_link(unfinished)
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _name(images: Images, number: int) -> str:
    return _text(images.where(number))


def _text(text: str) -> str:
    """Text that UTF-8 can hold."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def read(path: Path) -> Rows:
    """The content of a file that `write` has left, or of another program's Parquet file with the columns `features` and `label`.

    Raises UserError for what is none, and for features that are not finite.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is no file of features: give one that ends with {' or '.join(SUFFIXES)} (probes.embed)")
    try:
        found = _read_parquet(path) if path.suffix == ".parquet" else _read_arrays(path)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as features ({store.first_line(error)}): give a file of probes.embed") from error
    if found.features.ndim != 2 or not found.features.size:
        raise UserError(f"{path} holds features of shape {list(found.features.shape)}: they must be [images, width]")
    if not len(found.names) == len(found.parts) == len(found.features):
        raise UserError(f"{path} names {len(found.names)} images and holds features of {len(found.features)}")
    for start in range(0, len(found.features), PIECE):
        wrong = np.flatnonzero(~np.isfinite(found.features[start : start + PIECE]).all(axis=1))
        if len(wrong):
            raise UserError(f"{path}: the features of {found.names[start + int(wrong[0])]} are not finite: embed it again")
    if found.labels is not None and (len(found.labels) != len(found.features) or found.labels.min() < -1):
        raise UserError(f"{path} holds labels that are no numbers of classes, one an image")
    if found.labels is not None and int(found.labels.max()) >= len(found.classes):
        raise UserError(f"{path} has label {int(found.labels.max())} and {len(found.classes)} classes")
    return found


def _read_parquet(path: Path) -> Rows:
    with parquet.ParquetFile(path) as file:
        schema, names = file.schema_arrow, set(file.schema_arrow.names)
        if "features" not in names:
            raise UserError(f"{path} has no column `features` (it has {', '.join(sorted(names))}): write it with probes.embed")
        some = file.read([name for name in ("name", "part", "label", "class", "features") if name in names])
    about = _about((schema.metadata or {}).get(KEY, b"{}"), path)
    column = some["features"].combine_chunks()
    flat = np.asarray(column.flatten(), dtype=np.float32)
    if column.null_count or len(flat) % max(len(column), 1):
        raise UserError(f"{path} holds features of different widths")
    count = len(column)
    labels = pa.compute.fill_null(some["label"], -1).to_numpy().astype(np.int64) if "label" in names else None
    classes = list(about.get("classes", ()))
    if labels is not None and not classes:
        of = some["class"].to_pylist() if "class" in names else [str(label) for label in labels.tolist()]
        named = dict(zip(labels.tolist(), of, strict=True))
        classes = [str(named.get(number, number)) for number in range(int(labels.max()) + 1)]
    names_of = some["name"].to_pylist() if "name" in names else [f"row {number}" for number in range(count)]
    parts = np.asarray(some["part"].to_pylist() if "part" in names else ["train"] * count)
    return Rows(flat.reshape(count, -1), names_of, parts, labels, classes, about)


def _read_arrays(path: Path) -> Rows:
    reading.opened(path).close()
    features = np.load(path, mmap_mode="r", allow_pickle=False)
    beside = path.with_suffix(".json")
    listed = checked.mapping(reading.values(beside), str(beside), ("names", "parts", KEY.decode()))
    labels = np.asarray(listed["labels"], dtype=np.int64) if "labels" in listed else None
    about = checked.mapping(listed[KEY.decode()], f"{beside}: ibot")
    classes = [str(one) for one in about.get("classes", ())]
    return Rows(features, [str(name) for name in listed["names"]], np.asarray(listed["parts"]), labels, classes, about)


def _about(text: bytes, path: Path) -> dict[str, Any]:
    return dict(checked.mapping(json.loads(text), f"{path}: metadata"))
