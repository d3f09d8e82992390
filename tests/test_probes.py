"""The frozen probes against slow formulas and other libraries, their cache, and their commands end to end."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from test_commands import SMALL, command
from torch.testing import assert_close

from checkpoints import store
from checkpoints.command import DONE, WRONG_COMMAND, UserError, run_command
from pretrain import augment, neighbours, sample, train
from pretrain.backbone import load_backbone, make
from pretrain.images import open_images
from pretrain.shape import Shape
from pretrain.sources import Held
from probes import cluster, common, features, knn, linear, linear_run, logistic, parts, search, semi, subsets, tables
from probes.common import Common, View
from probes.heads import Heads

CPU = torch.device("cpu")
VIEW = View(32, 32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample as class folders: 80 images to train, 80 to test."""
    root = tmp_path_factory.mktemp("data")
    sample.main(["--out", str(root), "--count", "80", "--size", "32"])
    return root


@pytest.fixture(scope="module")
def run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch."""
    out = tmp_path_factory.mktemp("runs") / "small"
    assert run_command(train.main, [*SMALL, "--data", str(folders), "--epochs", "1", "--out", str(out)]) == DONE
    return out


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    shape = Shape("vit_tiny", patch_size=8, image_size=32, channels=3, embed_dim=64, depth=5, num_heads=1)
    return make(shape, maskable=False).eval().requires_grad_(False)


def pictures(count: int = 6) -> Held:
    return Held("pictures", np.random.default_rng(0).integers(0, 256, (count, 40, 36, 3), dtype=np.uint8))


def forwards(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Sizes of the batches that go through the backbone; raises KeyboardInterrupt after some."""
    seen: list[int] = []
    real = features._forward

    def counted(backbone, crops, precision, names):  # type: ignore[no-untyped-def]
        if stop_after is not None and len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(len(crops))
        return real(backbone, crops, precision, names)

    monkeypatch.setattr(features, "_forward", counted)
    return seen


def test_features_are_those_of_the_backbone(tmp_path: Path) -> None:
    backbone, images = tiny(), pictures()
    options = Common(batch_size=4, cache=tmp_path)
    found = features.extract(backbone, images, VIEW, options, ("blocks", "mean", "patches"))
    crops = torch.stack([augment.evaluation_view(images[n], *VIEW, backbone.shape.mean, backbone.shape.std) for n in range(6)])
    outputs = backbone.last_blocks(crops, 4)
    assert_close(found.rows("cls4", slice(None)), torch.cat([tokens[:, 0] for tokens in outputs], dim=1))
    assert_close(torch.tensor(found.cls), backbone(crops)[:, 0])
    assert_close(
        found.rows("cls+mean", slice(1, 3)), torch.cat([backbone(crops)[1:3, 0], backbone(crops)[1:3, 1:].mean(dim=1)], dim=1)
    )
    assert_close(torch.tensor(found.arrays["patches"]), backbone(crops)[:, 1:])


def test_features_are_computed_once_and_again_for_other_weights_views_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, images, options = tiny(), pictures(), Common(cache=tmp_path)
    seen = forwards(monkeypatch)
    for expected in (1, 1):
        features.extract(backbone, images, VIEW, options)
        assert len(seen) == expected
    with torch.no_grad():
        backbone.norm.bias[0] += 1e-3
    first = features.extract(backbone, images, VIEW, options)
    assert len(seen) == 2
    features.extract(backbone, images, View(40, 32), options)
    features.extract(backbone, images, VIEW, Common(cache=tmp_path, precision="bfloat16"))
    assert len(seen) == 4
    changed = Held("pictures", np.stack([images[n] for n in range(6)]) ^ np.uint8(1))
    assert not np.array_equal(features.extract(backbone, changed, VIEW, options).cls, first.cls) and len(seen) == 5


def test_a_changed_file_is_noticed(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "val", tmp_path / "val")
    before = open_images(str(tmp_path / "val"), None).fingerprint()
    assert open_images(str(tmp_path / "val"), None).fingerprint() == before
    file = next((tmp_path / "val").rglob("*.png"))
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    assert open_images(str(tmp_path / "val"), None).fingerprint() != before


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, images, options = tiny(), pictures(7), Common(batch_size=2, cache=tmp_path / "broken", workers=0)
    with monkeypatch.context() as inside:
        forwards(inside, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            features.extract(backbone, images, VIEW, options)
    seen = forwards(monkeypatch)
    found = features.extract(backbone, images, VIEW, options)
    assert seen == [2, 1]
    whole = features.extract(backbone, images, VIEW, Common(cache=tmp_path / "whole"))
    assert_close(torch.tensor(found.cls), torch.tensor(whole.cls))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(workers: int, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "val", tmp_path / "val")
    broken = next((tmp_path / "val").rglob("*.png"))
    broken.write_bytes(b"no picture")
    images = open_images(str(tmp_path / "val"), None)
    with pytest.raises(UserError, match=rf"{broken.name} cannot be used .*repair it or take it out"):
        features.extract(tiny(), images, VIEW, Common(cache=tmp_path / "cache", workers=workers))


def test_the_nearest_are_found_piece_by_piece_and_by_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    bank, queries = torch.randn(103, 8), F.normalize(torch.randn(9, 8), dim=1)
    slow = (queries @ F.normalize(bank, dim=1).T).topk(20, dim=1)
    monkeypatch.setattr(neighbours, "PIECE", 17)
    monkeypatch.setattr(neighbours, "BLOCK", 4)
    for way in search.WAYS.values():
        found = neighbours.nearest(queries, bank.numpy(), 20, within=way, unit=True)
        assert_close(found.similarity, slow.values)
        assert torch.equal(found.row, slow.indices)
    assert neighbours.nearest(queries, bank, 200).row.shape == (9, 103)


def test_nobody_is_his_own_neighbour() -> None:
    torch.manual_seed(0)
    bank = F.normalize(torch.randn(30, 4), dim=1)
    similarity = bank @ bank.T
    similarity.fill_diagonal_(-2)
    found = neighbours.nearest(bank, bank, 5, others=True)
    assert torch.equal(found.row, similarity.topk(5, dim=1).indices)
    same = torch.ones(6, 4)
    assert (neighbours.nearest(same, same, 5, others=True).row != torch.arange(6)[:, None]).all()


def test_all_heads_together_are_each_of_them_alone() -> None:
    torch.manual_seed(0)
    lrs, classes, width = (0.01, 0.3, 2.0), 5, 7
    heads = Heads(lrs, classes, width, seed=3, device=CPU)
    alone = [torch.nn.Linear(width, classes) for _ in lrs]
    for head, weight, bias in zip(alone, heads.weight, heads.bias, strict=True):
        head.load_state_dict({"weight": weight, "bias": bias})
    solvers = [torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9) for head, lr in zip(alone, lrs, strict=True)]
    for _ in range(20):
        x, labels = torch.randn(16, width), torch.randint(classes, (16,))
        heads.step(x, labels, 0.5)
        for head, solver, lr in zip(alone, solvers, lrs, strict=True):
            solver.param_groups[0]["lr"] = 0.5 * lr
            solver.zero_grad()
            F.cross_entropy(head(x), labels).backward()
            solver.step()
    for number, head in enumerate(alone):
        assert_close(heads.weight[number], head.weight.detach(), rtol=1e-4, atol=1e-5)
        assert_close(heads.bias[number], head.bias.detach(), rtol=1e-4, atol=1e-5)
    right = heads.right(x, labels)
    for number, head in enumerate(alone):
        order = head(x).argsort(dim=1, descending=True)
        assert right[0, number] == (order[:, 0] == labels).sum()
        assert right[1, number] == (order[:, :5] == labels[:, None]).any(dim=1).sum()


def linear_flags(run: Path, folders: Path, out: Path, *more: str) -> list[str]:
    flags = ["--ckpt", str(run), "--data", str(folders), "--batch-size", "32", "--epochs", "4", "--lr", "0.01", "0.1", "1"]
    return [*flags, "--out", str(out), *more]


def test_a_linear_probe_that_was_interrupted_ends_where_an_unbroken_one_does(
    run: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
    assert run_command(linear.main, linear_flags(run, folders, whole, "--mode", "paper", "--workers", "0")) == DONE
    with monkeypatch.context() as inside:
        real, saves = store.save_file, []

        def stopping(path: Path, content: dict) -> Path:
            saves.append(real(path, content))
            if len(saves) == 2:
                raise KeyboardInterrupt
            return saves[-1]

        inside.setattr(store, "save_file", stopping)
        assert run_command(linear.main, linear_flags(run, folders, broken, "--mode", "paper", "--workers", "0")) == 130
    assert not broken.exists()
    capsys.readouterr()
    assert run_command(linear.main, linear_flags(run, folders, broken, "--mode", "paper", "--workers", "0")) == DONE
    assert "going on after epoch 2" in capsys.readouterr().out
    assert json.loads(whole.read_text())["metrics"] == json.loads(broken.read_text())["metrics"]
    heads = [store.read_safetensors(tmp_path / f"{name}_head.safetensors")[0] for name in ("whole", "broken")]
    assert torch.equal(heads[0]["weight"], heads[1]["weight"])
    assert not list(tmp_path.glob("*.state.pt"))


def test_the_kept_head_gives_the_reported_number(run: Path, folders: Path, tmp_path: Path) -> None:
    assert run_command(linear.main, linear_flags(run, folders, tmp_path / "one.json", "--mode", "cached")) == DONE
    weights, metadata = store.read_safetensors(tmp_path / "one_head.safetensors")
    loaded, images = load_backbone(run), open_images(str(folders), "val")
    assert metadata["about"]["features"] == "cls4" and metadata["about"]["classes"] == list(images.classes)
    view = View(*metadata["about"]["view"])
    found = features.extract(loaded.backbone, images, view, Common()).rows("cls4", slice(None))
    said = (found @ weights["weight"].T + weights["bias"]).argmax(dim=1)
    top1 = 100 * (said.numpy() == images.labels).mean()
    assert json.loads((tmp_path / "one.json").read_text())["metrics"]["top1"] == pytest.approx(top1, abs=1e-3)


def test_val_split_never_looks_at_the_test_images(run: Path, folders: Path, tmp_path: Path) -> None:
    """With other test images the same head and epoch are chosen; with `--select test` the number is the best of all."""
    honest = linear_flags(run, folders, tmp_path / "a.json", "--select", "val-split", "--mode", "cached")
    other = linear_flags(run, folders, tmp_path / "b.json", "--select", "val-split", "--mode", "cached")
    assert run_command(linear.main, honest) == run_command(linear.main, [*other, "--val", str(folders / "train")]) == DONE
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert [one["metrics"][key] for key in ("best_lr", "best_epoch")] == [
        two["metrics"][key] for key in ("best_lr", "best_epoch")
    ]
    assert one["protocol"]["selected_on"] == "a tenth of the training images"
    trained = linear_run.Trained(
        np.array([[[1.0, 5.0], [9.0, 9.0]], [[4.0, 2.0], [9.0, 9.0]]]), np.zeros((2, 2, 2)), torch.zeros(1, 1), torch.zeros(1)
    )
    assert linear.chosen(trained, (0.1, 0.2))[:2] == (0.2, 1) and linear.chosen(trained, (0.1, 0.2), last=True)[:2] == (0.1, 2)


def test_the_held_out_tenth_is_even_over_the_classes() -> None:
    images = pictures(40)
    images.labels = np.arange(40) % 4
    kept, apart = linear.split(images, linear.Options())
    assert len(kept) == 36 and sorted(apart.labels.tolist()) == [0, 1, 2, 3]  # type: ignore[union-attr]


def test_logistic_regression_is_scikit_learns() -> None:
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(4, 6, dtype=torch.float64), dim=1)
    labels = torch.arange(200) % 4
    x = F.normalize(centres[labels] + 0.7 * torch.randn(200, 6, dtype=torch.float64), dim=1)
    for strength in (0.01, 1.0):
        ours = logistic.fit(x, labels, 4, strength)
        theirs = LogisticRegression(C=1 / strength, fit_intercept=False, tol=1e-8, max_iter=10_000).fit(x.numpy(), labels.numpy())
        assert_close(ours, torch.tensor(theirs.coef_), rtol=1e-2, atol=1e-2 * float(np.abs(theirs.coef_).max()))
        assert torch.equal((x @ ours.T).argmax(dim=1), torch.tensor(theirs.predict(x.numpy())))


def test_accuracy_of_clusters_is_that_of_the_best_matching() -> None:
    generator = np.random.default_rng(0)
    labels, clusters = generator.integers(0, 4, 60), generator.integers(0, 4, 60)
    best = max((np.array(names)[clusters] == labels).mean() for names in itertools.permutations(range(4)))
    assert cluster.agreement(clusters, labels).acc == pytest.approx(100 * best)
    perfect = cluster.agreement((labels + 1) % 4 * 3, labels)
    assert perfect[:4] == pytest.approx((100, 100, 100, 100)) and perfect.used == 4


def test_clusters_by_the_head_are_the_teachers_prototypes(run: Path, folders: Path) -> None:
    loaded = load_backbone(run, full=True)
    head = cluster.head_of(loaded, "teacher")
    weights = loaded.contents.network("teacher", loaded.path)
    tokens = torch.randn(5, 64)
    x = tokens
    for layer in (0, 2, 4):
        x = x @ weights[f"head.mlp.{layer}.weight"].T + weights[f"head.mlp.{layer}.bias"]
        x = F.gelu(x) if layer < 4 else F.normalize(x, dim=1)
    rows = weights["head.last_layer.weight_g"] * F.normalize(weights["head.last_layer.weight_v"], dim=1)
    assert_close(head.cls(head.bottleneck(tokens)), x @ rows.T)


def test_a_backbone_without_a_head_is_refused_not_scored(run: Path, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--ckpt", str(run / store.BACKBONE), "--data", str(folders)]
    assert run_command(cluster.main, [*flags, "--method", "head"]) == WRONG_COMMAND
    assert "has no projection head: give a full checkpoint" in capsys.readouterr().err


def test_parts_are_the_patches_that_cls_looks_at_most() -> None:
    backbone, crops = tiny(), torch.randn(3, 3, 32, 32)
    found = features.represent(backbone, crops, ("parts2", "parts16"))
    attention = backbone.last_attention(crops).mean(dim=1)
    x = backbone.embed(crops)
    for block in backbone.blocks:
        x = block(x)
    for image in range(3):
        most = attention[image, 0, 1:].argsort(descending=True)[:2]
        assert_close(found["parts2"][image], x[image, 1 + most].mean(dim=0))
        assert_close(found["parts16"][image], x[image, 1:].mean(dim=0))


def test_few_labels_are_even_over_the_classes_or_as_listed(folders: Path, tmp_path: Path) -> None:
    images = open_images(str(folders), "train")
    some = subsets.part_of(images, 25.0, None, seed=1)
    assert np.bincount(some.labels).tolist() == [2] * 10  # type: ignore[arg-type]
    names = [Path(images.where(number)).name for number in (3, 40)]
    (tmp_path / "few.txt").write_text("\n".join(names))
    assert [Path(one.where(0)).name for one in [subsets.part_of(images, None, tmp_path / "few.txt")]] == names[:1]


@pytest.mark.parametrize(
    ("main", "more", "record", "metric"),
    [
        (knn.main, "--baselines", "knn", "top1_k200"),
        (knn.main, "--leave-one-out --k 3", "knn", "top1_k3"),
        (linear.main, "--epochs 2", "linear", "top1_last"),
        (linear.main, "--epochs 1 --mode paper --untrained", "linear_untrained", "top1"),
        (logistic.main, "", "logistic", "top1_strength0.1"),
        (cluster.main, "", "cluster", "head_nmi"),
        (parts.main, "--epochs 2", "parts", "top1_k16"),
        (semi.main, "--percent 20 --epochs 2 --frozen", "semi", "linear_20%"),
        (semi.main, "--percent 20 --epochs 2 --tuned-epochs 6", "semi", "fine-tuned, head layer kept_20%"),
    ],
)
def test_every_probe_runs_on_class_folders_and_leaves_a_record(
    main, more: str, record: str, metric: str, run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    flags = ["--ckpt", str(copy), "--data", str(folders), "--limit", "60", "--batch-size", "16", "--device", "cpu"]
    assert run_command(main, [*flags, *more.split()]) == DONE
    content = json.loads((copy / "results" / f"{record}.json").read_text())
    assert 0 <= content["metrics"][metric] <= 100 and content["data"]["val_images"] == 60
    assert "record written to" in capsys.readouterr().out


def test_two_processes_measure_what_one_does(run: Path, folders: Path, tmp_path: Path) -> None:
    flags = ["--ckpt", str(run), "--data", str(folders), "--batch-size", "32", "--workers", "0"]
    found = []
    for name, start in (("one", ["-m"]), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"])):
        out, cache = tmp_path / f"{name}.json", str(tmp_path / name)
        words = [*start, "probes.linear", *flags, "--epochs", "2", "--lr", "0.1", "1", "--mode", "paper", "--out", str(out)]
        done = subprocess.run(**command(*words, "--cache", cache, OMP_NUM_THREADS="1"), check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("record written") == 1
        found.append(json.loads(out.read_text())["metrics"])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (linear.main, "--lr 0", "--lr must be greater than 0"),
        (linear.main, "--epochs 0", "--epochs must be 1 or more"),
        (semi.main, "--epochs 0", "--epochs must be 1 or more"),
        (linear.main, "--device nowhere", "--device nowhere cannot be used here"),
        (linear.main, "--limit 0", "--limit must be 1 or more"),
        (logistic.main, "--strength -1", "--strength must be greater than 0"),
        (knn.main, "--leave-one-out --val VAL", "leave --val out"),
        (knn.main, "--crop 30", "--crop 30 must be divisible by the patch size 8"),
        (cluster.main, "--clusters 1000 --method kmeans", "1000 clusters need at least as many images"),
        (parts.main, "--k 0", "--k must be 1 or more"),
        (semi.main, "--percent 0", "--percent 0 must be greater than 0"),
        (semi.main, "--names nowhere.txt", "nowhere.txt is no readable list"),
        (tables.main, "nowhere", "there is no file or folder nowhere"),
        (tables.main, "--table T99", "there is no table T99: choose from T1"),
    ],
)
def test_a_wrong_probe_command_is_one_sentence_and_exit_code_2(
    main, flags: str, message: str, run: Path, folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(run.parent)
    given = [] if main is tables.main else ["--ckpt", str(run), "--data", str(folders)]
    words = flags.replace("VAL", str(folders / "val")).split()
    where = [str(run)] if main is tables.main and words[0].startswith("--") else []
    assert run_command(main, [*given, *where, *words]) == WRONG_COMMAND
    complained = capsys.readouterr().err
    assert message in " ".join(complained.split()) and "Traceback" not in complained


def test_common_options_name_the_parts_of_a_checkpoint(run: Path, folders: Path) -> None:
    options = Common(ckpt=run, data=str(folders), limit=20)
    with common.subject(options) as subject:
        both = common.labelled_parts(options, 3)
        assert subject.view == (32, 32) and len(both.train) == len(both.val) == 20


def test_the_mean_of_patch_tokens_is_measured_on_request(
    run: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a second forward, as a number of its own that no table of [CLS] takes for its own."""
    monkeypatch.setenv("IBOT_FEATURES", str(tmp_path / "features"))
    out, seen = tmp_path / "records", forwards(monkeypatch)
    common_flags = ["--ckpt", str(run), "--data", str(folders)]
    assert run_command(knn.main, [*common_flags, "--out", str(out / "cls.json")]) == DONE and sum(seen) == 160
    assert run_command(knn.main, [*common_flags, "--features", "patches", "--out", str(out / "knn.json")]) == DONE
    flags = ["--features", "patches", "--mode", "cached", "--epochs", "1", "--out", str(out / "linear.json")]
    assert run_command(linear.main, [*common_flags, *flags]) == DONE and sum(seen) == 160
    backbone = load_backbone(run).backbone
    parts = [open_images(str(folders), name) for name in ("train", "val")]
    spread, means = (backbone.shape.mean, backbone.shape.std), []
    for images in parts:
        crops = torch.stack([augment.evaluation_view(images[n], *VIEW, *spread) for n in range(80)])
        means.append(F.normalize(backbone(crops)[:, 1:].mean(dim=1), dim=1))
    labels = [torch.as_tensor(images.labels) for images in parts]
    nearest = (means[1] @ means[0].T).topk(10, dim=1)
    votes = torch.zeros(80, 10).scatter_add_(1, labels[0][nearest.indices], (nearest.values / 0.07).exp())
    slow = 100 * (votes.argmax(dim=1) == labels[1]).double().mean().item()
    record = json.loads((out / "knn.json").read_text())
    assert record["metrics"]["top1_k10"] == pytest.approx(slow, abs=1.3) and record["protocol"]["features"] == "patches"
    assert record["metrics"] != json.loads((out / "cls.json").read_text())["metrics"]
    lines = tables.measured(tables.read_records([out]))["T1_knn_linear_in1k"]
    assert len(lines) == 1 and lines[0].cells == {"knn": json.loads((out / "cls.json").read_text())["metrics"]["top1"]}
