"""Labels in every form that people write them in (46c01a2 took whole numbers from 0 up alone, and ended a training at others)."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from checkpoints.cli import UserError
from pretrain.evaluate.online_knn import online_knn
from pretrain.images.labels import Columns
from pretrain.images.open import open_images
from pretrain.images.source import Images, aligned, with_labels
from tests.support.pictures import encoded, noise, write_flat

COUNT = 6
CONTENTS = [encoded(image) for image in noise(COUNT)]
STRUCTS = [{"bytes": content, "path": None} for content in CONTENTS]


def rows(path: Path, **columns: object) -> str:
    """A parquet file of the six images and these columns."""
    pq.write_table(pa.table({"image": STRUCTS} | columns), path)
    return str(path)


def text(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


def labels_of(images: Images) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()


WORDS = ["dog", "cat", "dog", "cat", "cat", "dog"]
CLASSES = {
    "words": (WORDS, [1, 0, 1, 0, 0, 1], ["cat", "dog"]),
    "dictionary": (pa.array(WORDS).dictionary_encode(), [1, 0, 1, 0, 0, 1], ["cat", "dog"]),
    "booleans": ([True, False, True, None, False, True], [1, 0, 1, -1, 0, 1], ["false", "true"]),
    "from 1": ([1, 2, 3, 1, 2, 3], [1, 2, 3, 1, 2, 3], ["0", "1", "2", "3"]),
    "with nulls": ([0, 1, None, 0, None, 1], [0, 1, -1, 0, -1, 1], ["0", "1"]),
    "with -1": ([0, 1, -1, 0, -1, 1], [0, 1, -1, 0, -1, 1], ["0", "1"]),
    "other negative numbers": ([-2, 5, -1, 5, -2, 5], [0, 2, 1, 2, 0, 2], ["-2", "-1", "5"]),
    "words with nulls": (["dog", None, "cat", "", "cat", "dog"], [1, -1, 0, -1, 0, 1], ["cat", "dog"]),
    "whole floats with gaps": ([0.0, 1.0, None, 1.0, 0.0, 1.0], [0, 1, -1, 1, 0, 1], ["0", "1"]),
    "large numbers": ([10**9, 5, 10**9, 5, 5, 5], [1, 0, 1, 0, 0, 0], ["5", "1000000000"]),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_of_every_form_in_parquet(kind: str, tmp_path: Path) -> None:
    column, labels, names = CLASSES[kind]
    images = open_images(rows(tmp_path / "a.parquet", label=column))
    assert labels_of(images) == labels and list(images.classes) == names
    without = labels.count(-1)
    some = with_labels(images)
    assert len(some) == COUNT - without and -1 not in labels_of(some)


def test_a_line_says_how_many_have_no_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_images(rows(tmp_path / "a.parquet", label=[0, 1, None, 0, None, 1]))
    assert "in 2 classes" in (said := capsys.readouterr().out) and "labels yes, 2 without one" in said
    images = open_images(rows(tmp_path / "b.parquet", label=pa.nulls(COUNT, pa.int64())))
    assert images.labels is None and "labels no" in capsys.readouterr().out


def test_several_labels_and_values_in_parquet(tmp_path: Path) -> None:
    wanted = [[1, 0, 1], [0, 0, 0], [-1, -1, -1], [0, 1, 0], [0, 1, 1], [1, 1, 1]]
    forms = {
        "numbers": [[0, 2], [], None, [1], [1, 2], [0, 1, 2]],
        "words": [["a", "c"], [], None, ["b"], ["b", "c"], ["a", "b", "c"]],
        "zeros and ones": [[1, 0, 1], [0, 0, 0], None, [0, 1, 0], [0, 1, 1], [1, 1, 1]],
    }
    for column in forms.values():
        images = open_images(rows(tmp_path / "a.parquet", labels=column))
        assert images.labels is None and images.several is not None and images.several.tolist() == wanted
        assert len(images.classes) == 3 and len(with_labels(images)) == COUNT - 1
    values = open_images(rows(tmp_path / "b.parquet", label=[0.5, 1.5, None, float("nan"), 2.0, 3.0]))
    assert values.targets is not None and np.isfinite(values.targets).tolist() == [True, True, False, False, True, True]
    ages = open_images(rows(tmp_path / "c.parquet", age=[31, 40, 50, 60, 70, 80]), columns=Columns("age", task="regression"))
    assert ages.targets is not None and ages.targets.tolist() == [31, 40, 50, 60, 70, 80]


def test_lists_with_a_header_commas_several_labels_or_without_some(tmp_path: Path) -> None:
    write_flat(tmp_path, noise(3))
    cases = {
        "pairs.txt": "0.png,dog\n1.png,cat\n2.png,dog\n",
        "table.csv": 'file_name,label,patient\n0.png,"dog",p1\n1.png,cat,p2\n2.png,dog,p1\n',
        "europe.csv": "label;path\ndog;0.png\ncat;1.png\ndog;2.png\n",
        "head.tsv": "path\tpatient\tlabel\n0.png\tp1\tdog\n1.png\tp2\tcat\n2.png\tp1\tdog\n",
        "plain.csv": "0.png,dog\n1.png,cat\n2.png,dog\n",
    }
    for name, content in cases.items():
        images = open_images(text(tmp_path / name, content))
        assert labels_of(images) == [1, 0, 1] and list(images.classes) == ["cat", "dog"], name
        assert images[0].shape[2] == 3
    grouped = open_images(str(tmp_path / "table.csv"), columns=Columns(group="patient"))
    assert grouped.groups is not None and grouped.groups.tolist() == ["p1", "p2", "p1"]
    other = open_images(str(tmp_path / "head.tsv"), columns=Columns(label="patient"))
    assert list(other.classes) == ["p1", "p2"]
    part = open_images(text(tmp_path / "part.txt", "0.png\tdog\n1.png\n2.png\tcat\n"))
    assert labels_of(part) == [1, -1, 0]
    numbers = open_images(text(tmp_path / "numbers.tsv", "0.png\t-1\n1.png\t1\n2.png\t2\n"))
    assert labels_of(numbers) == [-1, 0, 1] and list(numbers.classes) == ["1", "2"]
    several = open_images(text(tmp_path / "several.txt", "0.png\ta,b\n1.png\tb\n2.png\n"))
    assert several.several is not None and several.several.tolist() == [[1, 1], [0, 1], [-1, -1]]
    names = open_images(text(tmp_path / "names.txt", "0.png\tLabrador, yellow\n1.png\tPoodle\n2.png\tPoodle\n"))
    assert list(names.classes) == ["Labrador, yellow", "Poodle"]  # a comma before a space is part of a name
    values = open_images(text(tmp_path / "values.txt", "0.png\t1.5\n1.png\t2\n2.png\t-3e1\n"))
    assert values.targets is not None and values.targets.tolist() == [1.5, 2, -30]


def test_plain_bytes_paths_and_files_with_other_columns(tmp_path: Path) -> None:
    plain = open_images(str(_table(tmp_path / "bytes.parquet", image=CONTENTS, label=[0, 1] * 3)))
    whole = open_images(rows(tmp_path / "structs.parquet", label=[0, 1] * 3))
    assert all(np.array_equal(plain[number], whole[number]) for number in range(COUNT)) and plain.files() is not None
    write_flat(tmp_path, noise(COUNT))
    named = open_images(str(_table(tmp_path / "paths.parquet", image=[f"{number}.png" for number in range(COUNT)])))
    assert named.files() is None and np.array_equal(named[3], whole[3])
    folder = tmp_path / "folder"
    folder.mkdir()
    _table(folder / "train-0.parquet", image=STRUCTS, label=pa.array([0, 1] * 3, pa.int32()))
    _table(folder / "train-1.parquet", image=STRUCTS, label=pa.array([2, 1] * 3, pa.int64()), score=[0.5] * COUNT)
    _table(folder / "train-2.parquet", image=STRUCTS, score=[0.5] * COUNT)
    joined = open_images(str(folder))
    assert labels_of(joined) == [0, 1] * 3 + [2, 1] * 3 + [-1] * COUNT and len(joined) == 3 * COUNT


def _table(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_labels_that_cannot_be_used_are_said_and_stop_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = rows(tmp_path / "a.parquet", label=[{"x": 1}] * COUNT, patient=[1, 1, 2, 2, 3, None])
    assert open_images(source).labels is None
    assert "column `label` is not used as labels" in capsys.readouterr().out
    for columns, message in (
        (Columns(label="label"), "column `label` cannot be used"),
        (Columns(label="lable"), "has no such column, its columns are image, label, patient"),
        (Columns(group="site"), "--group site: .* has no such column"),
        (Columns(group="patient"), "1 rows have no value"),
        (Columns("patient", task="multi-label"), "one number a row, and not a list"),
    ):
        with pytest.raises(UserError, match=message):
            open_images(source, columns=columns)
    with pytest.raises(UserError, match="--group: sample has no columns"):
        open_images("sample", columns=Columns(group="x"))
    listed = text(tmp_path / "list.txt", "0.png\tdog\n")
    write_flat(tmp_path, noise(1))
    with pytest.raises(UserError, match="'dog' is no number to predict"):
        open_images(listed, columns=Columns(task="regression"))
    with pytest.raises(UserError, match="no first line with the names of its columns"):
        open_images(listed, columns=Columns(group="patient"))


def test_test_images_take_over_the_numbers_of_those_learnt_from(tmp_path: Path) -> None:
    train = open_images(rows(tmp_path / "train.parquet", label=["a", "b", "c", "a", None, "b"]))
    val = aligned(open_images(rows(tmp_path / "val.parquet", label=["c", None, "c", "a", "c", "a"])), train)
    assert labels_of(val) == [2, -1, 2, 0, 2, 0]
    known = open_images(rows(tmp_path / "known.parquet", labels=[["a"], ["b"], ["c"], [], ["a", "c"], ["b"]]))
    several = aligned(open_images(rows(tmp_path / "few.parquet", labels=[["c"], None, ["c", "a"], [], ["a"], []])), known)
    assert several.several is not None
    assert several.several.tolist() == [[0, 0, 1], [-1] * 3, [1, 0, 1], [0] * 3, [1, 0, 0], [0] * 3]
    with pytest.raises(UserError, match=r"has labels for multi-label, .* for classes: give --task"):
        aligned(several, train)


def test_the_curve_of_a_training_is_measured_on_the_labelled_images(tmp_path: Path) -> None:
    images = open_images(rows(tmp_path / "a.parquet", label=[0, 1, -1, 0, None, 1]))
    curve = online_knn(str(tmp_path / "a.parquet"), images, 16)
    assert curve is not None and len(curve._bank) + len(curve._queries) == 4


def test_a_hugging_face_data_set_with_words_and_lists_of_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["bird", "cat", "dog"])
    kinds = {"label": datasets.Value("string"), "labels": datasets.Sequence(names)}
    columns = {"label": WORDS, "labels": [[0, 2], [], [1], [1], [2], [0]]}
    for name, feature in kinds.items():
        features = datasets.Features({"image": datasets.Image(), name: feature})
        datasets.Dataset.from_dict({"image": STRUCTS, name: columns[name]}, features=features).save_to_disk(str(tmp_path / name))
    words, lists = open_images(f"hf:{tmp_path / 'label'}", None), open_images(f"hf:{tmp_path / 'labels'}", None)
    assert labels_of(words) == [1, 0, 1, 0, 0, 1] and list(words.classes) == ["cat", "dog"]
    assert list(lists.classes) == ["bird", "cat", "dog"] and lists.several is not None
    assert lists.several.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
