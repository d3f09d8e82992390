"""Features in a file, and probes that read them from there. 46c01a2 had no such command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from checkpoints import store
from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from pretrain.images.open import open_images
from pretrain.models.backbone import load_backbone
from probes import cluster, knn, logistic
from probes.embed import main as embed_main
from probes.features import cache
from probes.linear import __main__ as linear
from probes.shared import feature_files
from tests.support import networks
from tests.support.pictures import noise

FLAGS = ["--workers", "0", "--crop", "32", "--resize", "32"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, images of two classes in two parts, and their features as Parquet and as arrays."""
    root = tmp_path_factory.mktemp("embed")
    networks.write(root / "a.safetensors")
    for number, image in enumerate(noise(48, 32)):
        path = root / "data" / ("train", "val")[number // 24] / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    embedded(root, "f.parquet")
    embedded(root, "f.npy", "--patches")
    return root


def embedded(root: Path, out: str, *more: str) -> None:
    words = [
        "--ckpt",
        root / "a.safetensors",
        "--data",
        root / "data",
        "--cache",
        root / "cache",
        "--out",
        root / out,
        *FLAGS,
        *more,
    ]
    assert run_command(embed_main, [str(word) for word in words]) == DONE


def measured(main: Any, root: Path, out: Path, *flags: str) -> dict[str, Any]:
    assert run_command(main, [*flags, "--out", str(out)]) == DONE
    return json.loads(out.read_text())


def test_the_file_holds_features_names_labels_and_what_they_are_of(root: Path) -> None:
    table = parquet.read_table(root / "f.parquet")
    about = json.loads(table.schema.metadata[b"ibot"])
    assert about["checkpoint"]["sha256"] == store.sha256(root / "a.safetensors") and about["view"]["crop"] == 32
    assert about["classes"] == ["a", "b"] and about["width"] == 64
    backbone = load_backbone(root / "a.safetensors").backbone
    images = open_images(str(root / "data"), "val")
    view = cache.View(32, 32)
    crops = next(cache._batches(images, [0], view, backbone, knn.KnnOptions(workers=0)))[1]
    tokens = backbone(crops).numpy()
    rows = feature_files.read(root / "f.parquet")
    val = rows.parts == "val"
    np.testing.assert_allclose(rows.features[val], tokens[:, 0], atol=1e-5)
    assert list(np.asarray(rows.names)[val]) == [images.where(number) for number in range(24)]
    assert rows.labels is not None and list(rows.labels[val]) == list(images.labels)  # type: ignore[arg-type]
    arrays = feature_files.read(root / "f.npy")
    assert np.array_equal(arrays.features, rows.features) and list(arrays.names) == list(rows.names)
    patches = np.load(root / "f.patches.npy")
    assert patches.shape == (48, 16, 64)
    np.testing.assert_allclose(patches[val], tokens[:, 1:], atol=1e-5)
    assert sorted(path.name for path in root.iterdir() if "f." in path.name) == ["f.json", "f.npy", "f.parquet", "f.patches.npy"]


def test_a_zarr_store_holds_the_same_in_chunks_and_is_not_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zarr = pytest.importorskip("zarr")  # Python 3.11 or later
    embedded(root, "g.zarr", "--patches")
    store_, rows = zarr.open_group(root / "g.zarr", mode="r"), feature_files.read(root / "f.npy")
    assert np.array_equal(store_["features"][:], rows.features)
    assert np.array_equal(store_["patches"][:], np.load(root / "f.patches.npy"))
    assert store_.attrs["ibot"]["width"] == 64 and json.loads((root / "g.json").read_text())["names"] == list(rows.names)
    for words in (["--embeddings", str(root / "g.zarr")], ["--out", str(root / "g.zarr")]):
        main = knn.main if words[0] == "--embeddings" else embed_main
        data = [] if words[0] == "--embeddings" else ["--ckpt", str(root / "a.safetensors"), "--data", str(root / "data")]
        assert run_command(main, [*data, *words]) == WRONG_COMMAND
        assert "g.zarr" in capsys.readouterr().err
    assert not (root / ".g.zarr.part").exists()


PROBES: dict[str, tuple[Any, list[str], list[str]]] = {
    "knn": (knn.main, ["--k", "1", "3"], []),
    "linear": (linear.main, ["--epochs", "2", "--lr", "0.1"], ["--mode", "cached", "--features", "cls"]),
    "logistic": (logistic.main, [], []),
    "cluster": (cluster.main, ["--method", "kmeans"], []),
}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_of_the_file_has_the_numbers_of_the_probe_of_the_images(name: str, root: Path, tmp_path: Path) -> None:
    main, flags, more = PROBES[name]
    images = ["--ckpt", str(root / "a.safetensors"), "--data", str(root / "data"), "--cache", str(root / "cache"), *FLAGS]
    direct = measured(main, root, tmp_path / "direct.json", *images, *flags, *more)
    for file in ("f.parquet", "f.npy"):
        record = measured(main, root, tmp_path / f"{file}.json", "--embeddings", str(root / file), *flags)
        assert record["metrics"] == direct["metrics"]
        assert record["checkpoint"]["arch"] == direct["checkpoint"]["arch"] and record["protocol"]["crop"] == 32
        assert record["protocol"]["embeddings_of"]["sha256"] == direct["checkpoint"]["sha256"]


def test_parquet_of_another_program_is_read(root: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    features = generator.normal(size=(40, 5)).astype(np.float32)
    features[np.arange(40), labels] += 20  # a direction for each class
    content = {"features": features.tolist(), "label": labels, "part": ["train", "train", "val", "val"] * 10}
    parquet.write_table(pa.table(content), tmp_path / "theirs.parquet")
    flags = ["--embeddings", str(tmp_path / "theirs.parquet"), "--k", "1"]
    assert measured(knn.main, root, tmp_path / "r.json", *flags)["metrics"]["top1"] == 100.0
    loo = measured(knn.main, root, tmp_path / "loo.json", *flags, "--leave-one-out")
    assert loo["data"]["val_images"] == 40


def test_wrong_files_and_flags_are_one_sentence(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = parquet.read_table(root / "f.parquet")
    broken = np.array(table["features"].to_pylist(), dtype=np.float32)
    broken[3, 0] = np.nan
    place = table.schema.get_field_index("features")
    parquet.write_table(table.set_column(place, "features", pa.array(broken.tolist())), tmp_path / "nan.parquet")
    parquet.write_table(table.drop_columns(["features"]), tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("features")
    one = table.filter(pa.compute.equal(table["part"], "train"))
    parquet.write_table(one, tmp_path / "one.parquet")
    whole = str(root / "f.parquet")
    cases: list[tuple[list[str], str]] = [
        ([str(tmp_path / "nan.parquet")], "are not finite"),
        ([str(tmp_path / "none.parquet")], "no column `features`"),
        ([str(tmp_path / "text.parquet")], "cannot be read as features"),
        ([str(tmp_path / "one.parquet")], "holds the part train alone"),
        ([str(tmp_path / "nothing.parquet")], "cannot be read as features"),
        ([str(root / "a.safetensors")], "is no file of features"),
        ([whole, "--ckpt", str(root / "a.safetensors")], "--ckpt and --embeddings do not go together"),
        ([whole, "--data", str(root / "data")], "--data and --embeddings do not go together"),
        ([whole, "--features", "patches"], "holds the pooled feature"),
        ([whole, "--group", "site"], "--group and --embeddings do not go together"),
    ]
    for words, said in cases:
        assert run_command(knn.main, ["--embeddings", *words, "--out", str(tmp_path / "r.json")]) == WRONG_COMMAND
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    out = ["--ckpt", str(root / "a.safetensors"), "--data", str(root / "data"), "--out", str(tmp_path / "f.csv")]
    assert run_command(embed_main, out) == WRONG_COMMAND and "ends with .parquet, .npy or .zarr" in capsys.readouterr().err


def test_an_interrupted_embedding_goes_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "--ckpt",
        root / "a.safetensors",
        "--data",
        root / "data",
        "--cache",
        tmp_path / "cache",
        *FLAGS,
        "--batch-size",
        "8",
    ]
    words += ["--out", tmp_path / "f.parquet"]
    seen: list[int] = []
    forward = cache._forward

    def stops(*given: Any) -> Any:
        seen.append(len(given[1]))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return forward(*given)

    monkeypatch.setattr(cache, "_forward", stops)
    assert run_command(embed_main, [str(word) for word in words]) == 130 and not (tmp_path / "f.parquet").exists()
    assert run_command(embed_main, [str(word) for word in words]) == DONE
    assert sum(seen) - seen[2] == 48, "no image goes forward twice but those of the block that was interrupted"
    assert np.array_equal(feature_files.read(tmp_path / "f.parquet").features, feature_files.read(root / "f.parquet").features)
