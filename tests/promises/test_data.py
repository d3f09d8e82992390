"""Data that changes under a run or a cache: what a training goes on with, what kept features and records are of."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from checkpoints import store
from checkpoints.cli import DONE, WRONG_COMMAND, WorkError, run_command
from pretrain import train
from pretrain.images import digests
from pretrain.images.identity import SAMPLED, SIZED, differences, identity
from pretrain.images.open import open_images
from pretrain.models.backbone import Backbone
from probes.features import cache, kept
from probes.finetune import __main__ as finetune
from probes.shared.subject import Common, View
from tests.support.commands import SMALL
from tests.support.networks import VIT, backbone
from tests.support.networks import write as backbone_file
from tests.support.pictures import CLASSES, encoded, noise, write_folders, write_list, write_parquet, write_shard

VIEW = View(32, 32)


def inverted(path: Path) -> None:
    """The picture of a file as its negative, the same size in pixels."""
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def all_pixels(data: Path) -> None:
    for path in data.rglob("*.png"):
        inverted(path)


def one_image(data: Path) -> None:
    inverted(sorted(data.rglob("*.png"))[7])


def one_added(data: Path) -> None:
    shutil.copy(sorted(data.rglob("*.png"))[0], sorted(data.rglob("*.png"))[0].with_name("zz.png"))


def one_exchanged(data: Path) -> None:
    first, *_, last = sorted(data.rglob("*.png"))
    content = first.read_bytes(), last.read_bytes()
    last.write_bytes(content[0])
    first.write_bytes(content[1])


def class_renamed(data: Path) -> None:
    (data / "bird").rename(data / "albatross")


def label_changed(data: Path) -> None:
    (data / "bird" / "0.png").rename(data / "cat" / "0.png")


CHANGES: dict[Callable[[Path], None], str] = {
    all_pixels: "other images (all contents compared)",
    one_image: "other images (all contents compared)",
    one_exchanged: "other images (all contents compared)",
    one_added: "21 images, there were 20",
    class_renamed: "other names of classes",
    label_changed: "other labels",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_run_goes_on_with_the_images_it_began_with(
    change: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """46c01a2 went on with other pixels, another image, other class names and labels without a word."""
    write_folders(tmp_path / "data", 20)
    flags = [*SMALL, "--knn-every", "0", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--epochs", "2"]
    assert run_command(train.main, [*flags, "--epochs", "1"]) == DONE
    assert run_command(train.main, [*flags, "--allow-config-change", "true"]) == DONE  # the same images, copied or not
    change(tmp_path / "data")
    capsys.readouterr()
    assert run_command(train.main, flags) == WRONG_COMMAND
    said = capsys.readouterr().err
    assert f"data has {CHANGES[change]}" in said
    assert said.count("\n") == 1 and "--allow-config-change true" in said
    flags += ["--epochs", "3"]
    assert run_command(train.main, [*flags, "--allow-config-change", "true"]) == DONE
    assert f"the images have changed: {CHANGES[change]}" in capsys.readouterr().out
    assert run_command(train.main, flags) == DONE  # they are remembered now


def test_a_checkpoint_that_remembers_no_images_goes_on_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folders(tmp_path / "data", 20)
    flags = [*SMALL, "--knn-every", "0", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert run_command(train.main, flags) == DONE
    found = store.load_run(tmp_path / "run")
    assert found is not None and found.state.pop("data")["images"] == "20"
    store.save_run(tmp_path / "run", {name: one for name, one in found.state.items() if name not in ("format", "version")})
    capsys.readouterr()
    assert run_command(train.main, flags) == DONE
    assert "whether they have changed is not known" in capsys.readouterr().out


def test_a_fine_tuning_goes_on_with_the_images_it_began_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """46c01a2 asked for the number of steps alone."""
    for part in ("train", "val"):
        write_folders(tmp_path / "data" / part, 20)
    flags = [
        "--ckpt",
        str(backbone_file(tmp_path / "b.safetensors")),
        "--data",
        str(tmp_path / "data"),
        "--folder",
        str(tmp_path / "run"),
    ]
    flags += "--recipe small --epochs 1 --lr 1e-3 --batch-size 8 --workers 0 --precision fp32 --warmup-epochs 0".split()
    assert run_command(finetune.main, flags) == DONE
    one_image(tmp_path / "data" / "train")
    capsys.readouterr()
    assert run_command(finetune.main, flags) == WRONG_COMMAND
    assert "other images (all contents compared)" in capsys.readouterr().err


def sources(root: Path, images: list[Image.Image]) -> dict[str, str]:
    """The same pictures in every layout."""
    for index, image in enumerate(images):
        (root / "folder" / CLASSES[index % 2]).mkdir(parents=True, exist_ok=True)
        (root / "folder" / CLASSES[index % 2] / f"{index:03}.png").write_bytes(encoded(image))
    write_list(root / "list.txt", images, labels=True)
    write_parquet(root / "rows.parquet", images, [index % 2 for index in range(len(images))])
    write_shard(root / "a.tar", images)
    return {name: str(root / name) for name in ("folder", "list.txt", "rows.parquet", "a.tar")}


@pytest.mark.parametrize("affordable", [True, False], ids=["all", "some"])
@pytest.mark.parametrize("kind", ["folder", "list.txt", "rows.parquet", "a.tar"])
def test_an_identity_is_of_the_images_wherever_they_lie(
    kind: str, affordable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not affordable:
        monkeypatch.setattr(digests, "AFFORDED", 1000)
    first, others = noise(12), noise(12)
    others[5] = Image.fromarray(255 - np.asarray(others[5]))
    one, copy, other = (
        identity(open_images(sources(tmp_path / name, images)[kind]))
        for name, images in (("one", first), ("copy", first), ("other", others))
    )
    assert one == copy and one.images == "12" and one.compared.startswith("all" if affordable else "sizes")
    assert [words.split(" (")[0] for words in differences(other._asdict(), one._asdict())] == ["other images"]


def test_of_a_million_files_a_bounded_number_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of some, contents of fewer: a start must not read everything over a network."""
    looked: list[Any] = []

    class Many(cache.Images):
        name = "many"

        def __len__(self) -> int:
            return 1_000_000

        def files(self) -> range:  # type: ignore[override]
            return range(len(self))

        def content(self, index: int) -> bytes:
            looked.append(index)
            return b"x"

        def where(self, index: int) -> str:
            return str(index)

    sized: list[Any] = []
    monkeypatch.setattr(digests, "state", sized.append)
    assert identity(Many()).compared == f"sizes and {SAMPLED} contents"
    assert len(looked) == SAMPLED
    assert len(sized) == SIZED
    assert looked[0] == 0
    assert looked[-1] == 999_999


def tiny() -> Backbone:
    return backbone(VIT._replace(depth=4))


def computed(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Numbers of images that go through the backbone from now on."""
    seen: list[int] = []
    real = cache._forward

    def counted(backbone: Any, crops: Any, *rest: Any) -> Any:
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(len(crops))
        return real(backbone, crops, *rest)

    monkeypatch.setattr(cache, "_forward", counted)
    return seen


@pytest.mark.parametrize("affordable", [True, False], ids=["contents", "states"])
def test_features_are_never_those_of_images_that_were_replaced(
    affordable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """46c01a2 took features of images replaced under the same name, size and time for theirs: k-NN 100.0 in place of 50.0."""
    if not affordable:
        monkeypatch.setattr(digests, "AFFORDED", 0)
    (tmp_path / "data").mkdir()
    for index, image in enumerate(noise(4, 40)):
        image.save(tmp_path / "data" / f"{index}.bmp")
    how = Common(workers=0, cache=tmp_path / "cache")
    seen = computed(monkeypatch)
    before = cache.extract(tiny(), open_images(str(tmp_path / "data")), VIEW, how)
    cache.extract(tiny(), open_images(str(tmp_path / "data")), VIEW, how)
    assert seen == [4]
    path = tmp_path / "data" / "1.bmp"
    was = path.stat()
    Image.fromarray(255 - np.asarray(Image.open(path))).save(tmp_path / "new.bmp")
    os.replace(tmp_path / "new.bmp", path)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    after = cache.extract(tiny(), open_images(str(tmp_path / "data")), VIEW, how)
    assert seen == [4, 4] and not np.array_equal(before.cls[1], after.cls[1]) and np.array_equal(before.cls[0], after.cls[0])


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def nonsense(path: Path) -> None:
    path.write_bytes(b"nonsense")


def gone(path: Path) -> None:
    path.unlink()


def one_number(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x40
    path.write_bytes(content)


def not_finite(path: Path) -> None:
    np.load(path, mmap_mode="r+")[1, 2] = np.nan


def other_kind(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float64))


def fewer_rows(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


DAMAGES = (cut, nonsense, gone, one_number, not_finite, other_kind, fewer_rows, pickled)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["blocks", "mean"])
def test_damaged_features_are_made_anew(
    name: str, damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """46c01a2 measured with an array that was cut short, and ended in a traceback of others."""
    (tmp_path / "data").mkdir()
    write_folders(tmp_path / "data", 5)
    how, images = Common(workers=0, cache=tmp_path / "cache"), open_images(str(tmp_path / "data"))
    found = {key: array.copy() for key, array in cache.extract(tiny(), images, VIEW, how).arrays.items()}
    (folder,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    damage(folder / f"{name}.npy")
    seen = computed(monkeypatch)
    again = cache.extract(tiny(), images, VIEW, how).arrays
    assert seen == [5] and all(np.array_equal(found[key], again[key]) for key in found)
    assert "kept features are damaged" in capsys.readouterr().err
    cache.extract(tiny(), images, VIEW, how)
    assert seen == [5]


@pytest.mark.parametrize("damage", [*DAMAGES, None], ids=lambda damage: damage.__name__ if damage else "none")
@pytest.mark.parametrize("name", ["blocks", "done"])
def test_an_interrupted_pass_uses_only_rows_that_agree_with_their_checksum(
    name: str, damage: Callable[[Path], None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path / "data", 6)
    how, images = Common(workers=0, cache=tmp_path / "cache", batch_size=2), open_images(str(tmp_path / "data"))
    whole = cache.extract(tiny(), images, VIEW, Common(workers=0, cache=tmp_path / "whole", batch_size=2))
    with monkeypatch.context() as inside:
        computed(inside, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            cache.extract(tiny(), images, VIEW, how)
    (partial,) = (tmp_path / "cache").glob("*.partial")
    if damage is one_number:
        np.load(partial / f"{name}.npy", mmap_mode="r+")[1] += 1
    elif damage is not_finite:
        np.load(partial / f"{name}.npy", mmap_mode="r+")[1] = 7
    elif damage:
        damage(partial / f"{name}.npy")
    seen = computed(monkeypatch)
    found = cache.extract(tiny(), images, VIEW, how)
    assert np.array_equal(found.cls, whole.cls)
    assert sum(seen) == (2 if damage is None else 4 if damage in (one_number, not_finite) else 6)


def test_kept_features_of_a_version_that_sealed_nothing_are_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path / "data", 5)
    how, images = Common(workers=0, cache=tmp_path / "cache"), open_images(str(tmp_path / "data"))
    cache.extract(tiny(), images, VIEW, how)
    (folder,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    about = json.loads((folder / kept.ABOUT).read_text())
    del about[kept.SEALS]
    (folder / kept.ABOUT).write_text(json.dumps(about))
    seen = computed(monkeypatch)
    cache.extract(tiny(), images, VIEW, how)
    assert seen == []
    not_finite(folder / "mean.npy")
    cache.extract(tiny(), images, VIEW, how)
    assert seen == [5]


def test_a_cache_without_room_is_one_sentence_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 46c01a2 writing to a mapped file that found no room ended the process with SIGBUS."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    write_folders(tmp_path / "data", 5)
    seen = computed(monkeypatch)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        WorkError, match=r"could not be written to .* \(No space left on device\): make room, or give another --cache"
    ):
        cache.extract(tiny(), open_images(str(tmp_path / "data")), VIEW, Common(workers=0, cache=tmp_path / "cache"))
    assert seen == []
