"""Labels as people have them: numbers, words, booleans, several an image, or values to predict; rows may lack one.

n images, k classes.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from checkpoints.cli import UserError

NONE = -1
"""Class number of an image without a label; in a row of several it stands in every column."""
DENSE = 1 << 16
"""Numbers below it are class numbers as they stand; where one is larger, those that occur are numbered."""
MOST = 1 << 32
"""Images times classes of several labels an image: each takes a byte."""
Task = Literal["classes", "multi-label", "regression"]


class Columns(NamedTuple):
    """The columns that were asked for by name, and the task that labels are meant for; None: as the data suggests."""

    label: str | None = None
    group: str | None = None
    task: Task | None = None


class Labels(NamedTuple):
    """Labels of n images: class numbers [n], NONE without one; 0 and 1 [n, k]; or values [n], NaN without one."""

    task: Task
    values: np.ndarray
    classes: Sequence[str] = ()

    @property
    def known(self) -> np.ndarray:
        """Which images have a label [n]."""
        if self.task == "regression":
            return np.isfinite(self.values)
        return self.values != NONE if self.values.ndim == 1 else (self.values != NONE).all(axis=1)


class Unusable(ValueError):
    """What keeps a column from being used as labels."""


def number_classes(labels: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Names -> numbers [count] and the names by number: in order of size if all are whole numbers, else of the alphabet."""
    known = set(labels)
    whole = all(name.isdecimal() for name in known)
    names = sorted(known, key=lambda name: (int(name) if whole else 0, name))
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[label] for label in labels]), names


def of_words(codes: np.ndarray, words: Sequence[str], task: Task | None) -> Labels:
    """Labels from the number of each image's word, NONE without one. Raises Unusable."""
    kept = [bool(word.strip()) for word in words]
    if all(word.strip().isdecimal() or word.strip() == "-1" for word in words) and task != "regression":
        kept = [one and word.strip() != "-1" for one, word in zip(kept, words, strict=True)]
    place = np.array([NONE, *np.where(kept, np.cumsum(kept) - 1, NONE).tolist()])
    codes, words = place[np.asarray(codes) + 1], [word for word, one in zip(words, kept, strict=True) if one]
    task = task or _suggested(words)
    if task == "regression":
        numbers = np.array([*map(_number, words), np.nan])
        if np.isnan(numbers[:-1]).any():
            word = words[int(np.isnan(numbers[:-1]).argmax())]
            raise Unusable(f"{word[:40]!r} is no number to predict")
        return Labels("regression", numbers[codes])
    if task == "multi-label":
        return _several([[part.strip() for part in word.split(",") if part.strip()] for word in words], codes)
    order, names = number_classes(words)
    return Labels("classes", np.append(order, NONE).astype(np.int64)[codes], names)


def _suggested(words: Sequence[str]) -> Task:
    """What words look like: `a,b` several labels, 3.7 a value, others classes; a comma before a space is part of a name."""
    if any("," in word and ", " not in word for word in words):
        return "multi-label"
    numbers = np.array([_number(word) for word in words])
    return "regression" if len(numbers) and np.isfinite(numbers).all() and (numbers % 1).any() else "classes"


def _number(word: str) -> float:
    """The number that a word is, or NaN."""
    try:
        return float(word) if np.isfinite(float(word)) else np.nan
    except ValueError:
        return np.nan


def _several(parts: Sequence[Sequence[str]], codes: np.ndarray) -> Labels:
    """Labels [n, k] from the names in each distinct entry."""
    names = number_classes(sorted({name for one in parts for name in one}))[1]
    numbers = {name: number for number, name in enumerate(names)}
    rows = _room(len(parts) + 1, len(names))
    for row, one in zip(rows, parts, strict=False):
        row[[numbers[name] for name in one]] = 1
    rows[-1] = NONE
    _check_room(len(codes), len(names))
    return Labels("multi-label", rows[codes], names)


def _room(images: int, classes: int) -> np.ndarray:
    _check_room(images, classes)
    return np.zeros((images, classes), np.int8)


def _check_room(images: int, classes: int) -> None:
    if images * classes > MOST:
        raise Unusable(f"{images} images with {classes} labels to have or not are more than {MOST >> 30} GiB of them")
    if not classes:
        raise Unusable("no image has a label")


def of_column(column: pa.ChunkedArray, task: Task | None, names: Sequence[str] = ()) -> Labels | None:
    """Labels from a column, or None where no row has one. `names` are known names of class numbers. Raises Unusable."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind: Any = column.type
    if len(column) == column.null_count:
        return None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _of_lists(column, task, names)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
        encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
        codes = encoded.indices.fill_null(NONE).to_numpy(zero_copy_only=False)
        return _kept(of_words(codes, encoded.dictionary.to_pylist(), task))
    if pa.types.is_boolean(kind):
        column, names = column.cast(pa.int8()), names or ("false", "true")
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _kept(_of_floats(column.cast(pa.float64()).fill_null(np.nan).to_numpy(), task, names))
    elif not pa.types.is_integer(kind):
        raise Unusable(f"it holds {kind}")
    if pa.types.is_uint64(kind):
        column = column.cast(pa.int64(), safe=False)
    whole = column.cast(pa.int64()).fill_null(0).to_numpy().astype(np.int64)
    return _kept(of_numbers(whole, column.is_valid().to_numpy(), task, names))


def _kept(labels: Labels) -> Labels | None:
    return labels if labels.known.any() else None


def of_numbers(numbers: np.ndarray, known: np.ndarray, task: Task | None, names: Sequence[str] = ()) -> Labels:
    """Labels from whole numbers: from 0 up as they stand, others numbered in their order; a lone -1 is no label."""
    if task == "multi-label":
        raise Unusable("it holds one number a row, and not a list")
    if task == "regression":
        return Labels("regression", np.where(known, numbers.astype(float), np.nan))
    if numbers[known].min() == NONE:
        known = known & (numbers != NONE)
    if not known.any():
        return Labels("classes", np.full(len(numbers), NONE))
    low, high = int(numbers[known].min()), int(numbers[known].max())
    if low >= 0 and high < len(names):
        return Labels("classes", np.where(known, numbers, NONE), list(names))
    if low >= 0 and high < DENSE:
        return Labels("classes", np.where(known, numbers, NONE), [str(value) for value in range(high + 1)])
    distinct, places = np.unique(numbers[known], return_inverse=True)
    found = np.full(len(numbers), NONE)
    found[known] = places
    return Labels("classes", found, [str(value) for value in distinct.tolist()])


def _of_floats(values: np.ndarray, task: Task | None, names: Sequence[str]) -> Labels:
    """Values to predict; class numbers where all are whole and some are missing, as tables write numbers with gaps."""
    known = np.isfinite(values)
    whole = not (values[known] % 1).any()
    if task == "regression" or (task is None and not (whole and not known.all())):
        return Labels("regression", np.where(known, values, np.nan))
    if not whole:
        raise Unusable(f"it holds {values[known][values[known] % 1 != 0][0]:g}, which is no class")
    return of_numbers(np.where(known, values, 0).astype(np.int64), known, task, names)


def _of_lists(column: pa.ChunkedArray, task: Task | None, names: Sequence[str]) -> Labels | None:
    """Several labels an image: lists of class numbers or names, or as many zeros and ones in every row as there are classes."""
    if task not in (None, "multi-label"):
        raise Unusable("it holds lists, of several labels an image")
    known, lengths = column.is_valid().to_numpy(), pc.list_value_length(column).fill_null(0).to_numpy()
    flat: pa.ChunkedArray = pc.list_flatten(column)
    rows = np.repeat(np.arange(len(column)), lengths)
    own = flat.is_valid().to_numpy()
    flat, rows = flat.drop_null(), rows[own]
    kind: Any = flat.type
    same = len(np.unique(lengths[known])) == 1 and own.all()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        numbers, names = number_classes(flat.to_pylist())
        numbers, places = np.asarray(numbers, np.int64), None
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        numbers = flat.cast(pa.float64()).to_numpy()
        if (numbers % 1).any():
            raise Unusable("its lists hold numbers that are no class numbers")
        width = int(lengths[known][0]) if known.any() else 0
        hot = same and np.isin(numbers, (0, 1)).all() and (width > 2 or pa.types.is_boolean(kind))
        if hot:
            found = _room(len(column), width)
            found[known] = numbers.reshape(-1, width)
            found[~known] = NONE
            return Labels("multi-label", found, [str(n) for n in range(width)] if len(names) != width else list(names))
        numbers = numbers.astype(np.int64)
        places = None if not len(numbers) or (numbers.min() >= 0 and numbers.max() < len(names)) else np.unique(numbers)
    else:
        raise Unusable(f"its lists hold {kind}")
    if places is not None:
        numbers, names = np.searchsorted(places, numbers), [str(value) for value in places.tolist()]
    found = _room(len(column), len(names))
    found[rows, numbers] = 1
    found[~known] = NONE
    return Labels("multi-label", found, list(names))


def groups_of(column: pa.ChunkedArray) -> np.ndarray:
    """Each image's group [n] as text. Raises Unusable where a row has none, or the column is no text and no number."""
    if column.null_count:
        raise Unusable(f"{column.null_count} rows have no value")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        raise Unusable(f"it holds {column.type}")
    return np.array([str(value) for value in column.to_pylist()])


def refused(where: str, column: str, why: Unusable) -> UserError:
    """An error for a column that was asked for."""
    return UserError(f"{where}: column `{column}` cannot be used ({why}): name another with --label-column")


def no_columns(source: str, columns: Columns) -> None:
    """Raises UserError where columns were asked for of a source that has none, or a task other than its own."""
    flag = "--label-column" if columns.label else "--group" if columns.group else None
    if flag:
        raise UserError(f"{flag}: {source} has no columns: give .parquet files, hf:NAME, or a list whose first line names them")
    if columns.task not in (None, "classes"):
        raise UserError(f"--task {columns.task}: the labels of {source} are classes")
