"""What vanishes without a word: odd layouts of folders and shards, the images that are used of each and what is said of the rest.

Of each layout the exact names of the images, their classes, and the line (issue 20, 9 and 5).
"""

import io
import os
import re
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from checkpoints.cli import DONE, WRONG_COMMAND, UserError, run_command
from pretrain import train
from pretrain.images import tar_headers
from pretrain.images.formats import BadImage
from pretrain.images.open import has_part, open_images
from pretrain.images.tally import UNREAD
from pretrain.options.stored import from_values
from pretrain.setup import data
from pretrain.setup.plan import plan_of
from pretrain.setup.validate import without_effect
from probes import cluster, knn, logistic, parts, semi
from probes.finetune import __main__ as finetune
from probes.finetune.subsets import named
from probes.linear import __main__ as linear
from probes.shared import subject
from probes.visualize import __main__ as visualize
from tests.support import networks
from tests.support.pictures import encoded, noise

PICTURE = encoded(noise(1)[0])
BLOCK = tarfile.BLOCKSIZE


def put(root: Path, *names: str, content: bytes = PICTURE) -> None:
    """Files of this content, by names with braces: `cat/{0..3}.png`."""
    for name in names:
        first, last = (int(number) for number in (re.findall(r"\{(\d+)\.\.(\d+)\}", name) or [(0, 0)])[0])
        for number in range(first, last + 1):
            path = root / re.sub(r"\{.*\}", str(number), name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


class Layout(NamedTuple):
    """How to write it; images used; the classes; parts of the line that is said."""

    write: Callable[[Path], None]
    used: int
    classes: str | None
    said: tuple[str, ...]


CLASSES = "cat/{0..3}.png", "dog/{0..3}.png", "eel/{0..3}.png"


def with_classes(*more: str, content: bytes = PICTURE) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        put(root, *CLASSES)
        put(root, *more, content=content)

    return write


def link(name: str, target: str, *, before: tuple[str, ...] = CLASSES) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        put(root, *before)
        put(root.parent / "elsewhere", "{0..1}.png")
        (root / name).symlink_to(target)

    return write


def special(kind: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        put(root, *CLASSES)
        if kind == "pipe":
            os.mkfifo(root / "cat" / "x.png")
        elif kind == "socket":
            here = os.getcwd()
            os.chdir(root / "cat")  # a socket's path is short
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind("x.png")
            os.chdir(here)
        else:
            (root / "cat" / "x.png").symlink_to("/dev/zero")

    return write


def archive(name: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        put(root, *CLASSES)
        write_tar(root / name, [("a.png", PICTURE)])

    return write


THREE = "12 images in 3 classes"
FOLDERS = {
    "class folders": Layout(with_classes(), 12, "cat dog eel", (f"{THREE}, 0 ignored, labels yes",)),
    "a class called train": Layout(with_classes("train/{0..3}.png"), 16, "cat dog eel train", ("16 images in 4 classes, 0",)),
    "classes called train and validate": Layout(
        with_classes("train/{0..3}.png", "validate/1.png"), 17, "cat dog eel train validate", ("17 images in 5 classes",)
    ),
    "a class called val": Layout(with_classes("val/{0..3}.png"), 16, "cat dog eel val", ("16 images in 4 classes",)),
    "checkpoints of notebooks": Layout(
        with_classes(".ipynb_checkpoints/a-checkpoint.png"),
        12,
        "cat dog eel",
        (f"{THREE}, 1 ignored (1 hidden (.ipynb_checkpoints/a-checkpoint.png))",),
    ),
    "checkpoints in a class": Layout(with_classes("cat/.ipynb_checkpoints/a.png"), 12, "cat dog eel", ("1 ignored (1 hidden",)),
    "macOS's folder": Layout(with_classes("__MACOSX/cat/._0.png"), 12, "cat dog eel", (f"{THREE}, 1 ignored (1 hidden",)),
    "macOS's files": Layout(with_classes("cat/._{0..3}.png", content=b"x"), 12, "cat dog eel", (f"{THREE}, 4 ignored",)),
    "Synology's thumbnails": Layout(with_classes("cat/@eaDir/x.jpg"), 12, "cat dog eel", (f"{THREE}, 1 ignored",)),
    "a repository": Layout(with_classes(".git/objects/pack", content=b"x"), 12, "cat dog eel", (f"{THREE}, 0 ignored",)),
    "one wrapper": Layout(
        lambda root: put(root / "archive", *CLASSES), 12, "cat dog eel", (THREE, "archive, the only folder in")
    ),
    "three wrappers": Layout(lambda root: put(root / "a" / "b" / "c", *CLASSES), 12, "cat dog eel", (THREE, "a/b/c")),
    "a wrapper beside macOS's": Layout(
        lambda root: put(root, "flowers/a/1.png", "flowers/b/2.png", "__MACOSX/flowers/._a.png", "README.md"),
        2,
        "a b",
        ("2 images in 2 classes",),
    ),
    "a wrapper around parts": Layout(
        lambda root: put(root / "data", "train/a/1.png", "train/b/2.png", "val/a/3.png"), 2, "a b", ("the parts are those in",)
    ),
    "a wrapper beside a stray picture": Layout(
        lambda root: put(root, "cover.png", *(f"archive/{name}" for name in CLASSES)),
        12,
        "cat dog eel",
        (THREE, "1 ignored (1 beside the class folders (cover.png))"),
    ),
    "a wrapper beside what is not read": Layout(
        lambda root: put(root, "cover.avif", "labels.csv", ".x/1.png", *(f"archive/{name}" for name in CLASSES)),
        12,
        "cat dog eel",
        (THREE, "2 ignored", ".avif (cover.avif)", "1 hidden (.x/1.png)", "no images: 1 .csv"),
    ),
    "one folder beside more pictures than it holds": Layout(
        lambda root: put(root, "{0..2}.png", "more/a/1.png", "more/b/1.png"), 5, None, ("5 images in 0 classes, 0 ignored",)
    ),
    "parts in capital letters": Layout(
        lambda root: put(root, *(f"Train/{name}" for name in CLASSES), "Test/cat/1.png"), 12, "cat dog eel", (THREE,)
    ),
    "train, valid and test": Layout(
        lambda root: put(root, *(f"train/{name}" for name in CLASSES), "valid/cat/1.png", "test/cat/1.png"),
        12,
        "cat dog eel",
        (f"{THREE}, 0 ignored", "valid is not used: give --val"),
    ),
    "classes that are called like parts": Layout(
        lambda root: put(root, *(f"seg_train/{name}" for name in CLASSES), "seg_test/cat/1.png"),
        13,
        "seg_test seg_train",
        ("13 images in 2 classes", "the classes are called seg_test and seg_train: if these are parts, give them with"),
    ),
    "one class": Layout(lambda root: put(root, "cat/{0..3}.png"), 4, "cat", ("4 images in 1 class,", "labels yes")),
    "one class by years": Layout(lambda root: put(root, "a/b/c/{0..3}.png"), 4, "a", ("4 images in 1 class,",)),
    "a stray picture": Layout(
        with_classes("overview.png"), 12, "cat dog eel", ("1 ignored (1 beside the class folders (overview.png))", "labels yes")
    ),
    "three stray pictures": Layout(with_classes("x{0..2}.png"), 12, "cat dog eel", (f"{THREE}, 3 ignored",)),
    "pictures at all depths": Layout(
        with_classes("x{0..20}.png"), 33, None, ("33 images in 0 classes, 0 ignored", "labels no", "21 of the images lie beside")
    ),
    "a flat folder": Layout(lambda root: put(root, "{0..5}.png"), 6, None, ("6 images in 0 classes, 0 ignored, labels no",)),
    "a leftover tar": Layout(archive("photos.tar"), 12, "cat dog eel", (THREE, "photos.tar beside the images is not used")),
    "a leftover tar called train": Layout(archive("train.tar"), 12, "cat dog eel", (THREE, "train.tar beside the images")),
    "another archive": Layout(with_classes("cats.zip", content=b"PK"), 12, "cat dog eel", (THREE, "no images: 1 .zip")),
    "JPEG's other suffixes": Layout(with_classes("cat/a.jfif", "cat/b.jpe", "cat/c.JPEG"), 15, "cat dog eel", ("15 images",)),
    "grey maps": Layout(with_classes("cat/a.pgm", "dog/b.pnm", "dog/b.pbm"), 15, "cat dog eel", ("15 images", "0 ignored")),
    "formats that are not read": Layout(
        with_classes("cat/a.jp2", "cat/b.avif", "dog/c.avif", "dog/d.HEIC"),
        12,
        "cat dog eel",
        (f"{THREE}, 4 ignored", "2 in a format that is not read, .avif (cat/b.avif)", "1 in a format that is not read, .jp2"),
    ),
    "names without suffix": Layout(with_classes("cat/0001", "dog/IMG.2024.05.0001"), 14, "cat dog eel", ("14 images",)),
    "texts without suffix": Layout(with_classes("cat/LICENSE", content=b"text"), 12, "cat dog eel", (THREE, "1 no suffix")),
    "captions": Layout(with_classes("cat/{0..3}.txt", content=b"a cat"), 12, "cat dog eel", (THREE, "no images: 4 .txt")),
    "names with dots": Layout(lambda root: put(root, "a/x.2024.{0..3}.png", "b/y.{0..3}.png"), 8, "a b", ("8 images in 2",)),
    "a link to a folder": Layout(
        link("fox", "../elsewhere"), 14, "cat dog eel fox", ("14 images in 4 classes, 0 ignored, 1 link",)
    ),
    "a link to a class": Layout(link("ape", "cat"), 12, "cat dog eel", (THREE, "ape is a link to a folder that is read")),
    "a link to itself": Layout(link("cat/loop", ".."), 12, "cat dog eel", (THREE, "is read already, or lies above")),
    "a link to all": Layout(link("root", "/"), 12, "cat dog eel", (THREE, "or lies above")),
    "a link to a file": Layout(link("cat/x.png", "../../elsewhere/0.png"), 13, "cat dog eel", ("13 images", "1 link,")),
    "a link to nothing": Layout(
        link("cat/x.png", "gone.png"), 12, "cat dog eel", ("1 ignored (1 a link to nothing (cat/x.png))",)
    ),
    "two links in a circle": Layout(link("cat/x.png", "x.png"), 12, "cat dog eel", ("1 ignored",)),
    "a pipe": Layout(special("pipe"), 12, "cat dog eel", (THREE, "1 no plain file, but a pipe, socket or device (cat/x.png)")),
    "a socket": Layout(special("socket"), 12, "cat dog eel", (THREE, "1 no plain file")),
    "a link to a device": Layout(special("device"), 12, "cat dog eel", (THREE, "1 no plain file")),
    "a folder called like a picture": Layout(with_classes("cat/x.png/0.png"), 13, "cat dog eel", ("13 images in 3",)),
    "parts and more": Layout(
        lambda root: put(root, "train/a/1.png", "train/b/2.png", "val/a/3.png", "extra/{0..4}.png", "fig.png"),
        2,
        "a b",
        ("2 images in 2 classes, 6 ignored (6 beside the parts",),
    ),
    "parts and annotations": Layout(
        lambda root: put(root, "train/a/1.png", "train/b/2.png", "meta/readme.txt"),
        2,
        "a b",
        ("2 images in 2 classes, 0 ignored",),
    ),
}


def classes_of(root: Path) -> tuple[int, str | None]:
    images = open_images(str(root))
    names = {images.where(index) for index in range(len(images))}
    assert len(names) == len(images)
    assert all(images[index].shape == (20, 24, 3) for index in range(len(images)))
    return len(images), None if images.labels is None else " ".join(images.classes)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_used_as_said(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = FOLDERS[name]
    layout.write(tmp_path / "data")
    assert classes_of(tmp_path / "data") == (layout.used, layout.classes)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith(str(tmp_path / "data"))
    for words in layout.said:
        assert words in said, said


AMBIGUOUS = {
    "two archives beside classes": (lambda root: (archive("a.tar")(root), archive("b.tar")(root)), "which are meant"),
    "parquet beside classes": (with_classes("x.parquet", content=b"PAR1"), "which are meant"),
    "parquet and shards": (lambda root: put(root, "a.parquet", "b.tar", content=b"x"), "both parquet files and shards"),
    "a nested train beside nested folders": (
        lambda root: put(root, "train/a/1.png", "train/b/1.png", "more/a/2.png"),
        "may be the part to train on",
    ),
    "train and val beside folders as flat as they are": (
        lambda root: put(root, *CLASSES, "train/1.png", "val/1.png"),
        "may be the part to train on",
    ),
    "only hidden images": (lambda root: put(root, ".x/1.png", "._2.png"), "no images in .* 2 are not used: 2 hidden"),
    "only formats that are not read": (lambda root: put(root, "a/1.avif"), r"1 in a format that is not read, \.avif"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_could_mean_two_things_is_asked(name: str, tmp_path: Path) -> None:
    write, message = AMBIGUOUS[name]
    write(tmp_path)
    with pytest.raises(UserError, match=message):
        open_images(str(tmp_path))


def write_tar(path: Path, members: list[tuple[str, bytes]], **how: int) -> None:
    """Names and contents in this order; a name `a -> b` is a hard link, `a ~> b` a symbolic one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **how) as file:  # type: ignore[call-overload]
        for words, content in members:
            hard, symbolic = " -> " in words, " ~> " in words
            name, _, target = words.partition(" -> " if hard else " ~> ")
            member = tarfile.TarInfo(name)
            member.linkname = target
            member.type = tarfile.LNKTYPE if hard else tarfile.SYMTYPE if symbolic else tarfile.REGTYPE
            member.size = 0 if member.linkname else len(content)
            file.addfile(member, io.BytesIO(content))


def with_labels(name: str, count: int = 64, suffix: str = ".cls") -> list[tuple[str, bytes]]:
    members: list[tuple[str, bytes]] = []
    for number in range(count):
        stem = name.format(number)
        members += [(f"{stem}.png", PICTURE), (f"{stem}{suffix}", str(number % 2).encode())]
    return members


PAIRS = [(f"{number:03}.{kind}", PICTURE) for number in range(32) for kind in ("png", "jpg")]
ALL = "64 images in 2 classes, 0 ignored, labels yes"
SHARDS: dict[str, tuple[list[tuple[str, bytes]], int, str | None, tuple[str, ...]]] = {
    "plain": (with_labels("{:06}"), 64, "0 1", (ALL,)),
    "dates in names": (with_labels("IMG.2024.05.{:04}"), 64, "0 1", (ALL,)),
    "tiles": (with_labels("slide1.tile{:03}"), 64, "0 1", (ALL,)),
    "decimals": (with_labels("scan_{}.5"), 64, "0 1", (ALL,)),
    "folders with dots": (with_labels("./v1.0/x.y/{:03}"), 64, "0 1", (ALL,)),
    "capital suffixes": ([(name.upper(), content) for name, content in with_labels("a{:03}")], 64, "0 1", (ALL,)),
    "two images a sample": (PAIRS, 64, None, ("64 images in 0 classes", "32 samples hold several images, and all are used")),
    "left and right": (
        [
            (f"{number}.{name}", PICTURE if name != "cls" else b"a")
            for number in range(3)
            for name in ("left.png", "right.png", "cls")
        ],
        6,
        "a",
        ("6 images in 1 class,",),
    ),
    "maps": (
        [(f"{number}{suffix}", PICTURE) for number in range(3) for suffix in (".jpg", ".seg.png")],
        3,
        None,
        ("3 ignored (3 a map of another image (.seg.png) (",),
    ),
    "labels apart": (sorted(with_labels("{:06}"), key=lambda member: member[0][-3:]), 64, "0 1", (ALL,)),
    "captions": (
        with_labels("{:03}", suffix=".txt"),
        64,
        None,
        ("64 images in 0 classes", "labels no", "(.txt) are taken for captions", "no images: 64 .txt"),
    ),
    "captions and classes": (
        [*with_labels("{:03}", 4), *((f"{number:03}.txt", b"words") for number in range(4))],
        4,
        "0 1",
        ("4 images in 2 classes", "no images: 4 .txt"),
    ),
    "classes of some": (
        [*with_labels("{:03}", 4), ("x.png", PICTURE)],
        5,
        None,
        ("5 images in 0 classes", "only 4 of 5 images have a class"),
    ),
    "hard links": (
        [("a.png", PICTURE), ("b.png -> a.png", b""), ("c.png -> b.png", b"")],
        3,
        None,
        ("3 images in 0 classes, 0 ignored, 2 links",),
    ),
    "symbolic links": (
        [("d/a.png", PICTURE), ("d/b.png ~> a.png", b""), ("c.png ~> gone.png", b"")],
        2,
        None,
        ("2 images in 0 classes, 1 ignored (1 a link to nothing in its shard", "1 link,"),
    ),
    "links in a circle": ([("a.png", PICTURE), ("b.png ~> c.png", b""), ("c.png ~> b.png", b"")], 1, None, ("2 ignored",)),
    "the same name twice": ([("a.png", PICTURE), ("a.png", PICTURE)], 1, None, ("1 of a name that came before in the shard",)),
    "macOS's files": ([("a.png", PICTURE), ("._a.png", b"x"), ("__MACOSX/a.png", b"x")], 1, None, ("2 ignored (2 hidden",)),
    "formats that are not read": ([("a.png", PICTURE), ("b.avif", b"x")], 1, None, ("1 in a format that is not read, .avif",)),
    "JPEG's other suffixes": ([("a.jfif", PICTURE), ("b.jpe", PICTURE), ("c.pgm", PICTURE)], 3, None, ("3 images",)),
    "names without suffix": ([("0001", PICTURE), ("0002", PICTURE), ("notes", b"text")], 2, None, ("2 images",)),
    "long names": (
        [(f"{'n' * 300}/{number}.png", PICTURE) for number in range(3)],
        3,
        None,
        ("3 images in 0 classes, 0 ignored",),
    ),
}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_is_used_as_said(name: str, form: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members, used, classes, words = SHARDS[name]
    write_tar(tmp_path / "s.tar", members, format=form)
    assert classes_of(tmp_path) == (used, classes)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    for word in words:
        assert word in said, said


def raw(count: int = 32) -> bytearray:
    """A shard of so many images, a header and content in whole blocks each."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as opened:
        for number in range(count):
            member = tarfile.TarInfo(f"{number:03}.png")
            member.size = len(PICTURE)
            opened.addfile(member, io.BytesIO(PICTURE))
    return bytearray(file.getvalue())


EACH = BLOCK + -(-len(PICTURE) // BLOCK) * BLOCK
AT = 5 * EACH


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def put_in(*blocks: bytes) -> bytes:
    return bytes(raw()[:AT]) + b"".join(blocks) + bytes(raw()[AT:])


def over(content: bytes) -> bytes:
    return bytes(raw()[:AT]) + content + bytes(raw()[AT + len(content) :])


SPARSE = bytearray(header("sparse.png", 0, tarfile.GNUTYPE_SPARSE))
SPARSE[482:483] = b"\1"
SPARSE[148:156] = b" " * 8
SPARSE[148:156] = f"{sum(SPARSE):06o}\0 ".encode()
BROKEN = "with a broken extended header"
DAMAGE: dict[str, tuple[bytes, int, str]] = {
    "a header of letters": (over(b"x" * BLOCK), 31, "1 with a damaged header"),
    "a header of zeros": (over(bytes(BLOCK)), 31, "1 with a damaged header"),
    "a wrong sum": (over(header("005.png", len(PICTURE))[:148] + b"0000000\0"), 31, "1 with a damaged header"),
    "a hundred bytes less": (bytes(raw()[:AT]) + bytes(raw()[AT + 100 :]), 31, "1 with a damaged header"),
    "a hundred bytes more": (put_in(b"x" * 100), 32, "1 with a damaged header"),
    "the first header": (b"x" * BLOCK + bytes(raw()[BLOCK:]), 31, "1 with a damaged header"),
    "the last header": (
        bytes(raw()[: 31 * EACH]) + b"x" * BLOCK + bytes(raw()[31 * EACH + BLOCK :]),
        31,
        "1 with a damaged header",
    ),
    "three headers": (over((b"x" * BLOCK + bytes(raw()[AT + BLOCK : AT + EACH])) * 3), 29, "1 with a damaged header"),
    "an absurd size": (put_in(header("big.png", 1 << 60)), 32, "1 of an impossible size of 1152921504606846976 bytes"),
    "an absurd size at the end": (
        bytes(raw()[: 32 * EACH]) + header("big.png", 1 << 40) + bytes(2 * BLOCK),
        32,
        "impossible size",
    ),
    "a negative size": (put_in(header("n.png", 0)[:124] + b"\xff" * 12 + header("n.png", 0)[136:]), 32, "with a damaged header"),
    "a sparse file": (put_in(bytes(SPARSE), bytes(BLOCK)), 32, "1 sparse"),
    "a sparse file of pax": (
        put_in(header("p", 22, tarfile.XHDTYPE), padded(b"22 GNU.sparse.major=1\n"), header("s.png", 0)),
        32,
        "1 sparse",
    ),
    "pax that is no text": (put_in(header("p", 9, tarfile.XHDTYPE), padded(b"\xff" * 9), header("s.png", 0)), 32, BROKEN),
    "pax with a length of nothing": (
        put_in(header("p", 9, tarfile.XHDTYPE), padded(b"0 path=x\n"), header("s.png", 0)),
        32,
        BROKEN,
    ),
    "pax with an endless length": (put_in(header("p", 9, tarfile.XHDTYPE), padded(b"99999 a=b"), header("s.png", 0)), 32, BROKEN),
    "pax with a size of letters": (
        put_in(header("p", 9, tarfile.XHDTYPE), padded(b"9 size=x\n"), header("s.png", 0)),
        32,
        BROKEN,
    ),
    "pax of an absurd size": (put_in(header("p", 1 << 50, tarfile.XHDTYPE)), 32, "1 of an impossible size"),
    "pax of 4 GB": (put_in(header("p", 1 << 32, tarfile.XHDTYPE)), 32, "1 of an impossible size"),
    "a long name of nothing": (put_in(header("l", 0, tarfile.GNUTYPE_LONGNAME), header("s.png", 0)), 32, BROKEN),
    "a name of 100 kB": (
        put_in(header("l", 100_000, tarfile.GNUTYPE_LONGNAME), padded(b"n" * 100_000), header("s.png", 0)),
        32,
        BROKEN,
    ),
    "a long name of an absurd size": (put_in(header("l", 1 << 50, tarfile.GNUTYPE_LONGNAME)), 32, "1 of an impossible size"),
    "a pipe": (put_in(header("s.png", 0, tarfile.FIFOTYPE)), 32, "1 no plain file, but a pipe or device"),
    "a device": (put_in(header("s.png", 0, tarfile.CHRTYPE)), 32, "1 no plain file, but a pipe or device"),
    "an unknown kind": (put_in(header("s.png", 0, b"Q")), 32, "1 of the unknown kind b'Q'"),
    "a volume in the middle": (bytes(raw(16)[: 16 * EACH]) + bytes(2 * BLOCK) + bytes(raw()[16 * EACH :]), 32, "0 ignored"),
    "words behind the end": (bytes(raw()) + b"x" * 600 + bytes(2 * BLOCK), 32, "1 with a damaged header"),
    "half a block behind the end": (bytes(raw()) + bytes(100), 32, "0 ignored"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_one_bad_member_is_passed_over_and_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, used, words = DAMAGE[name]
    (tmp_path / "s.tar").write_bytes(content)
    assert classes_of(tmp_path) == (used, None)
    assert words in capsys.readouterr().out


CUT = [0, 100, BLOCK, AT, AT + 100, AT + BLOCK, AT + BLOCK + 100, 31 * EACH, 32 * EACH - 1, 32 * EACH]


@pytest.mark.parametrize("length", CUT)
def test_a_shard_that_is_cut_off_anywhere_is_refused(length: int, tmp_path: Path) -> None:
    """On 46c01a2 one that is cut between two members was read as a whole one."""
    (tmp_path / "s.tar").write_bytes(raw()[:length])
    with pytest.raises(UserError, match="no plain, whole tar file"):
        open_images(str(tmp_path))


@pytest.mark.parametrize("start", [b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"PK\3\4"])
def test_a_compressed_shard_is_refused_at_once(start: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(start + bytes(raw()))
    with pytest.raises(UserError, match="it is compressed"):
        open_images(str(tmp_path / "s.tar"))


def test_a_shard_that_is_damaged_in_more_than_a_fifth_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(bytes(raw()[:EACH]) + b"x" * (20 * EACH) + bytes(raw()[21 * EACH :]))
    assert 0.2 < 20 / 32 and tar_headers.MOST_LOST == 0.2
    with pytest.raises(UserError, match="of its bytes are damaged"):
        open_images(str(tmp_path))


ROWS = ["/dev/zero", "{outside}/0.png", "x\0y.png", "n" * 5000, "pipe.png", "socket.png", "{here}/device.png", "gone.png", ""]


@pytest.mark.parametrize("name", ROWS, ids=lambda name: name[:12].replace("\0", "0"))
def test_a_row_of_parquet_that_names_no_file_below_its_folder_is_a_bad_image(name: str, tmp_path: Path) -> None:
    here = tmp_path / "data"
    put(here, "good.png")
    put(tmp_path / "outside", "0.png")
    os.mkfifo(here / "pipe.png")
    (here / "device.png").symlink_to("/dev/zero")
    name = name.replace("{outside}", str(tmp_path / "outside")).replace("{here}", str(here))
    rows = [{"bytes": None, "path": path} for path in (name, str(here / "good.png"))]
    pq.write_table(
        pa.table({"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}), here / "x.parquet"
    )
    images = open_images(str(here))
    with pytest.raises(BadImage):
        images[0]
    assert len(images) == 2 and images[1].shape == (20, 24, 3) and images.fingerprint()


def test_the_line_stays_one_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, *CLASSES)
    for number in range(40):
        put(tmp_path, f"cat/x{number}.{sorted(UNREAD)[number][1:]}")
        (tmp_path / f"link{number}").symlink_to("cat")
    open_images(str(tmp_path))
    said = capsys.readouterr().out
    assert "12 images in 3 classes, 40 ignored" in said and "34 for 34 other reasons" in said
    assert said.count("is a link to") == 6 and "and 34 more notes" in said and len(said) < 2500


RELATIVE = ["good.png", "deep/../good.png"]


@pytest.mark.parametrize("name", RELATIVE)
def test_relative_names_in_rows_begin_where_the_parquet_lies(name: str, tmp_path: Path) -> None:
    put(tmp_path / "data", "good.png", "deep/x.png")
    rows = [{"bytes": None, "path": path} for path in (name, "gone.png", "../good.png")]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, struct)}), tmp_path / "data" / "x.parquet")
    images = open_images(str(tmp_path / "data"))
    assert images[0].shape == (20, 24, 3)
    for index, reason in ((1, "No such file"), (2, "names a file outside")):
        with pytest.raises(BadImage, match=reason):
            images[index]


@pytest.mark.parametrize("name", ["pipe.png", "device.png", "/dev/zero", "n" * 5000, "x\0y.png", "gone.png", "img.png"])
def test_a_list_with_a_name_that_is_no_picture_s_has_a_bad_image(name: str, tmp_path: Path) -> None:
    """On 46c01a2 a pipe was waited for, a device read without end."""
    put(tmp_path, "good.png", "img.png/x.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "train.txt").write_text(f"\ufeffgood.png\n{name}\n", encoding="utf-8")
    for source in ("train.txt", *([] if name.startswith("/") else ["."])):  # in a folder a list names nothing outside
        images = open_images(str(tmp_path / source))
        with pytest.raises(BadImage):
            images[1]
        assert images[0].shape == (20, 24, 3) and len(images) == 2 and images.fingerprint()


def test_equal_names_in_several_classes_need_their_class(tmp_path: Path) -> None:
    for name in ("folders", "shard"):
        (tmp_path / name).mkdir()
    put(tmp_path / "folders", *CLASSES)
    write_tar(tmp_path / "shard" / "s.tar", [(f"{kind}/{number}.png", PICTURE) for kind in ("cat", "dog") for number in range(4)])
    for name in ("folders", "shard"):
        images = open_images(str(tmp_path / name))
        (tmp_path / "list.txt").write_text("cat/0.png\ndog/0.png\ndog/1.png\n")
        assert named(images, tmp_path / "list.txt").tolist() == [0, 4, 5]
        (tmp_path / "list.txt").write_text("0.png\n")
        with pytest.raises(UserError, match=r"0.png in .* is the name of \d images of .*: write CLASS/0.png"):
            named(images, tmp_path / "list.txt")


def test_one_class_only_is_an_error_in_a_probe(tmp_path: Path) -> None:
    put(tmp_path, "cat/{0..3}.png")
    images = open_images(str(tmp_path))
    with pytest.raises(UserError, match=r"has one class only \(cat\), and a probe needs two or more"):
        subject.of_several_classes(images)
    put(tmp_path, "dog/0.png")
    assert len(subject.of_several_classes(open_images(str(tmp_path)))) == 5


def test_parts_of_a_folder_with_a_class_called_train(tmp_path: Path) -> None:
    put(tmp_path, *CLASSES, "train/{0..3}.png")
    assert not has_part(str(tmp_path), "train") and not has_part(str(tmp_path), "val")
    put(tmp_path, "test/cat/0.png")
    assert has_part(str(tmp_path), "val")


def test_commands_say_what_they_found_and_refuse_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "val"):
        put(tmp_path / "data" / part, *CLASSES, "cat/.hidden.png")
    put(tmp_path / "one", "train/cat/{0..3}.png", "val/cat/{0..3}.png")
    networks.write(tmp_path / "tiny.safetensors")
    about = [
        "--ckpt",
        str(tmp_path / "tiny.safetensors"),
        "--cache",
        str(tmp_path / "cache"),
        "--out",
        str(tmp_path / "knn.json"),
    ]
    assert run_command(knn.main, [*about, "--data", str(tmp_path / "data")]) == DONE
    said = capsys.readouterr().out
    assert "k = 20, 100, 200: the bank has 12 images, and all of them vote" in said
    for part in ("train", "val"):
        assert f"{tmp_path}/data/{part}: 12 images in 3 classes, 1 ignored (1 hidden (cat/.hidden.png)), labels yes" in said
    (tmp_path / "knn.json").unlink()
    assert run_command(knn.main, [*about, "--data", str(tmp_path / "one")]) == WRONG_COMMAND
    assert "has one class only (cat)" in capsys.readouterr().err and not (tmp_path / "knn.json").exists()


PROBES: dict[str, tuple[Callable[..., object], tuple[str, ...]]] = {
    "knn": (knn.main, ()),
    "knn, leave-one-out": (knn.main, ("--leave-one-out",)),
    "linear": (linear.main, ("--epochs", "1")),
    "logistic": (logistic.main, ()),
    "cluster": (cluster.main, ("--method", "kmeans")),
    "parts": (parts.main, ()),
    "semi": (semi.main, ("--frozen", "--epochs", "1", "--percent", "50")),
    "finetune": (finetune.main, ("--recipe", "small", "--epochs", "3")),
}
ONE_CLASS = {
    "in all": (("train/cat/{0..3}.png", "val/cat/{0..3}.png"), ()),
    "after --limit": (("train/cat/{0..3}.png", "train/dog/{0..3}.png", "val/cat/0.png", "val/dog/0.png"), ("--limit", "1")),
}


@pytest.mark.parametrize("kind", ONE_CLASS)
@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_of_one_class_is_an_error_without_a_record(
    probe: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 each of these was 100.0 % and a record."""
    (main, flags), (files, more) = PROBES[probe], ONE_CLASS[kind]
    if kind == "after --limit" and probe == "semi":
        more = ("--limit", "1", "--seed", "1")
    put(tmp_path / "data", *files)
    networks.write(tmp_path / "tiny.safetensors")
    about = ("--ckpt", tmp_path / "tiny.safetensors", "--data", tmp_path / "data", "--out", tmp_path / "out" / "record.json")
    assert run_command(main, [str(word) for word in (*about, "--workers", "0", *flags, *more)]) == WRONG_COMMAND
    said = capsys.readouterr().err
    assert "one class only" in said and "needs two or more" in said and said.count("\n") == 1
    assert not list(tmp_path.glob("out/**/*.json"))


@pytest.mark.parametrize("names", ["cat/0.png\ncat/1.png\n", "cat/0.png\n"])
@pytest.mark.parametrize("probe", ["semi", "finetune"])
def test_a_list_of_names_of_one_class_is_an_error(
    probe: str, names: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, flags = PROBES[probe]
    flags = tuple(flag for flag in flags if flag not in ("--percent", "50"))
    put(tmp_path / "data", "train/cat/{0..3}.png", "train/dog/{0..3}.png", "val/cat/0.png", "val/dog/0.png")
    (tmp_path / "names.txt").write_text(names)
    networks.write(tmp_path / "tiny.safetensors")
    about = ("--ckpt", tmp_path / "tiny.safetensors", "--data", tmp_path / "data", "--out", tmp_path / "record.json")
    words = [str(word) for word in (*about, *flags, "--names", tmp_path / "names.txt")]
    assert run_command(main, words) == WRONG_COMMAND
    assert "one class only (cat)" in capsys.readouterr().err


NO_SUCH_PART = {
    "cluster, val": (cluster.main, ("--method", "kmeans", "--part", "val"), "--part val: .* has no such part"),
    "cluster, train": (cluster.main, ("--method", "kmeans", "--part", "train"), "--part train: .* has no such part"),
    "cluster, of other images": (cluster.main, ("--val", "sample", "--part", "train"), "--part is of --data"),
    "cluster, of prototypes": (cluster.main, ("--method", "head", "--clusters", "3"), "--clusters is for k-means"),
    "visualize, val": (visualize.main, ("attention", "--part", "val"), "--part val: .* has no such part"),
    "visualize, train": (visualize.main, ("pca", "--part", "train"), "--part train: .* has no such part"),
    "knn": (knn.main, (), "has no part named val, test"),
    "linear": (linear.main, (), "has no part named val, test"),
    "logistic": (logistic.main, (), "has no part named val, test"),
    "parts": (parts.main, (), "has no part named val, test"),
    "semi": (semi.main, ("--frozen",), "has no part named val, test"),
    "finetune": (finetune.main, ("--recipe", "small"), "has no part named val, test"),
}


@pytest.mark.parametrize("name", NO_SUCH_PART)
def test_a_part_that_is_not_there_is_an_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 46c01a2 the pictures and clusters were of all images."""
    main, flags, message = NO_SUCH_PART[name]
    put(tmp_path / "data", *CLASSES)
    networks.write(tmp_path / "tiny.safetensors")
    about = ("--ckpt", tmp_path / "tiny.safetensors", "--data", tmp_path / "data", "--out", tmp_path / "out")
    first, rest = (flags[:1], flags[1:]) if main is visualize.main else ((), flags)
    assert run_command(main, [str(word) for word in (*first, *about, *rest)]) == WRONG_COMMAND
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", PROBES)
def test_a_network_that_is_not_in_the_file_is_an_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A backbone's file holds one network: the teacher is not measured where the student was asked for."""
    main, flags = PROBES[name]
    put(tmp_path / "data", *(f"{part}/{one}" for part in ("train", "val") for one in CLASSES))
    networks.write(tmp_path / "tiny.safetensors")
    about = ("--ckpt", tmp_path / "tiny.safetensors", "--data", tmp_path / "data", "--out", tmp_path / "out" / "record.json")
    assert run_command(main, [str(word) for word in (*about, "--key", "student", *flags)]) == WRONG_COMMAND
    assert "student" in capsys.readouterr().err and not list(tmp_path.glob("out/**/*.json"))


IMPOSSIBLE = (
    "--momentum-teacher 2",
    "--drop-path 1.5",
    "--out-dim 1",
    "--patch-out-dim 1",
    "--depth 0",
    "--width 0",
    "--width 65",
    "--patch-size 0",
    "--patch-size 7",
    "--pred-ratio 2",
    "--channels 0",
    "--local-crops-scale 0.4 0.05",
    "--lambda-cls 0 --lambda-patch 0",
    "--lambda-cls 0 --use-masked-im-modeling false",
    "--masked-crops all --local-crops-number 0",
    "--arch nonsense",
    "--recipe nonsense",
    "--init-from nonsense",
    "--replay nonsense.pt",
    "--data nonsense",
)


@pytest.mark.parametrize("flags", IMPOSSIBLE)
def test_what_cannot_be_met_is_an_error_and_no_other_training(
    flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 a momentum of 2, a drop path of 1.5, one prototype and no blocks were trained, or met with something else."""
    tiny_run = "--arch vit_tiny --width 64 --depth 1 --epochs 1 --steps 1 --batch-size-per-gpu 4 --workers 0 --report false"
    sizes = "--global-crops-size 32 --local-crops-size 16 --patch-size 8 --out-dim 8 --patch-out-dim 8 --local-crops-number 1"
    words = [*tiny_run.split(), *sizes.split(), "--out", str(tmp_path / "run"), *flags.split()]
    assert run_command(train.main, words) == WRONG_COMMAND
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said and not (tmp_path / "run").exists()


NO_EFFECT = {
    "shard": (from_values(shard=True), "--shard spreads"),
    "prototypes": (from_values(shared_head=True, out_dim=32, patch_out_dim=64), "--patch-out-dim 64 has no effect"),
    "warmup": (from_values(epochs=5, warmup_epochs=10), "--warmup-epochs 10 is not over"),
    "masks": (from_values(epochs=5, warmup_epochs=1, pred_start_epoch=5), "--pred-start-epoch 5 is not reached"),
    "curve": (from_values(knn_data="x", knn_every=0), "--knn-data is for the k-NN curve"),
}


@pytest.mark.parametrize("name", NO_EFFECT)
def test_an_option_without_effect_is_said(name: str) -> None:
    config, words = NO_EFFECT[name]
    (remark,) = without_effect(config)
    assert words in remark
    assert not without_effect(from_values())


def test_a_curve_over_one_class_is_left_out_and_said(tmp_path: Path) -> None:
    put(tmp_path / "one", "cat/{0..9}.png")
    put(tmp_path / "two", "cat/{0..9}.png", "dog/{0..9}.png")
    one, two = (open_images(str(tmp_path / name)) for name in ("one", "two"))
    plan, other = (plan_of(from_values(data=str(tmp_path / name))) for name in ("one", "two"))
    assert data.online_knn(plan, one) is None and "one class only" in data.no_curve(plan, one)[0]
    assert data.online_knn(other, two) is not None and not data.no_curve(other, two)
    with pytest.raises(UserError, match="one class only"):
        data.online_knn(plan_of(from_values(knn_data=str(tmp_path / "one"))), two)
