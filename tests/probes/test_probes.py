"""The frozen probes against slow formulas and other libraries, their cache, and their commands end to end."""

import itertools
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close

from checkpoints import store
from checkpoints.architecture import SWIN_SIZES, Architecture, swin_shape, timm_shape
from checkpoints.cli import DONE, FAILED, WRONG_COMMAND, UserError, WorkError, run_command
from pretrain.evaluate import finite, online_knn, views
from pretrain.evaluate import knn as neighbours
from pretrain.images.open import open_images
from pretrain.images.source import InMemory
from pretrain.models.backbone import Backbone, load_backbone, make
from pretrain.models.measured import Measured
from pretrain.models.vit import ViT
from probes import cluster, knn, logistic, parts, semi, tables
from probes.features import attention, search
from probes.features import cache as features
from probes.finetune import __main__ as finetune
from probes.finetune import subsets
from probes.linear import __main__ as linear
from probes.linear import head as linear_head
from probes.linear import protocol as linear_protocol
from probes.linear import train as linear_train
from probes.linear.sweep import LinearSweep
from probes.paper import cells, protocols
from probes.retrieval import descriptors
from probes.segment import data as segment_data
from probes.segment import features as segment_features
from probes.shared import record as results
from probes.shared import subject as common
from probes.shared.subject import Common, View
from probes.video import propagate
from probes.visualize import inputs
from tests.support import records
from tests.support.commands import command
from tests.support.trainings import trained

CPU = torch.device("cpu")
VIEW = View(32, 32)
Main = Callable[[Sequence[str]], Any]


@pytest.fixture(scope="module")
def folders(more_folders: Path) -> Path:
    return more_folders


@pytest.fixture(scope="module")
def run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch."""
    return trained(tmp_path_factory.mktemp("runs") / "small", "--data", folders, "--epochs", 1)


def tiny() -> ViT:
    torch.manual_seed(0)
    shape = Architecture("vit_tiny", patch_size=8, image_size=32, channels=3, embed_dim=64, depth=5, num_heads=1)
    return ViT(shape, maskable=False).eval().requires_grad_(False)


def pictures(count: int = 6) -> InMemory:
    return InMemory("pictures", np.random.default_rng(0).integers(0, 256, (count, 40, 36, 3), dtype=np.uint8))


def forwards(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Sizes of the batches that go through the backbone; raises KeyboardInterrupt after some."""
    seen: list[int] = []
    real = features._forward

    def counted(backbone: Any, crops: Any, precision: Any, names: Any) -> Any:
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
    crops = torch.stack([views.evaluation_view(images[n], *VIEW, backbone.shape.mean, backbone.shape.std) for n in range(6)])
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
        backbone.get_parameter("norm.bias")[0] += 1e-3
    first = features.extract(backbone, images, VIEW, options)
    assert len(seen) == 2
    features.extract(backbone, images, View(40, 32), options)
    features.extract(backbone, images, VIEW, Common(cache=tmp_path, precision="bfloat16"))
    assert len(seen) == 4
    changed = InMemory("pictures", np.stack([images[n] for n in range(6)]) ^ np.uint8(1))
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
    for way in search.possible(queries.device, 20):
        found = neighbours.nearest(queries, bank.numpy(), 20, within=search.WAYS[way], unit=True)
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
    heads = LinearSweep(lrs, classes, width, seed=3, device=CPU)
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


def test_a_head_that_is_not_finite_has_nothing_right_and_is_never_chosen() -> None:
    """On 46c01a2 NaN logits counted every image as right."""
    torch.manual_seed(0)
    heads, x, labels = LinearSweep((0.1, 1.0, 2.0), 4, 6, seed=0, device=CPU), torch.randn(9, 6), torch.arange(9) % 4
    before = heads.right(x, labels)
    heads.weight[1, 2, 3], heads.bias[2, 0] = torch.nan, torch.inf
    after = heads.right(x, labels)
    assert torch.equal(after[:, 0], before[:, 0]) and not after[:, 1:].any() and heads.lost.tolist() == [False, True, True]
    heads.weight[1], heads.bias[2] = 0.0, 0.0
    assert not heads.right(x, labels)[:, 1:].any()
    again = LinearSweep((0.1, 1.0, 2.0), 4, 6, seed=1, device=CPU)
    again.load(heads.state(), Path("state.pt"))
    assert torch.equal(again.right(x, labels), after)
    choosing = np.array([[[50.0, 90.0, 0.0], [0.0] * 3], [[60.0, 0.0, 0.0], [0.0] * 3]])
    trained = linear_train.Trained(choosing, choosing, torch.zeros(1, 1), torch.zeros(1), excluded=(1, 2))
    assert linear_protocol.chosen(trained, (0.1, 1.0, 2.0))[:2] == (0.1, 2)


@pytest.mark.parametrize("mode", ["cached", "paper"])
def test_a_rate_that_diverges_is_excluded_by_name(
    mode: str, run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 it won the grid with 100 %."""
    out, flags = tmp_path / "one.json", ["--mode", mode, "--workers", "0"]
    assert run_command(linear.main, linear_flags(run, folders, out, *flags, "--lr", "0.1", "1e40", "1")) == DONE
    record, said = json.loads(out.read_text()), capsys.readouterr().out
    assert "excluded, not finite: lr 1e+40" in said and record["protocol"]["excluded_lr"] == [1e40]
    assert record["metrics"]["best_lr"] in (0.1, 1.0) and record["metrics"]["lr_last"] in (0.1, 1.0)
    weights, _ = store.read_safetensors(tmp_path / "one_head.safetensors")
    assert weights["weight"].isfinite().all()
    none = tmp_path / "none.json"
    assert run_command(linear.main, linear_flags(run, folders, none, *flags, "--lr", "1e40", "2e40")) == FAILED
    assert "no learning rate gave finite weights" in capsys.readouterr().err and not none.exists()


def test_the_head_that_is_kept_is_the_best_that_is_not_excluded(
    run: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though an excluded one was better before: one that is lost in its third epoch."""
    real, passes = LinearSweep.right, []

    def losing(self: Any, features: Any, labels: Any) -> Any:
        passes.append(1)
        if len(passes) == 3:
            self.weight[2] = torch.nan
        found = real(self, features, labels)
        found[:, 2] += 100 * (len(passes) < 3)
        return found

    monkeypatch.setattr(LinearSweep, "right", losing)
    assert run_command(linear.main, linear_flags(run, folders, tmp_path / "a.json", "--mode", "cached")) == DONE
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["protocol"]["excluded_lr"] == [1.0] and record["metrics"]["best_lr"] in (0.01, 0.1)
    weights, _ = store.read_safetensors(tmp_path / "a_head.safetensors")
    images = open_images(str(folders), "val")
    found = features.extract(load_backbone(run).backbone, images, VIEW, Common()).rows("cls4", slice(None))
    top1 = 100 * ((found @ weights["weight"].T + weights["bias"]).argmax(dim=1).numpy() == images.labels).mean()
    assert record["metrics"]["top1"] == pytest.approx(top1, abs=1e-3)


@pytest.mark.parametrize(("count", "batch", "processes"), [(10, 4, 1), (10, 4, 2), (11, 6, 3), (2, 6, 3), (1, 8, 4), (12, 4, 2)])
def test_an_epoch_has_its_last_step_however_few_images_it_has(
    count: int, batch: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process's images are those of torch's DistributedSampler on the same order. 46c01a2 left out what filled no step."""
    options = linear_protocol.LinearOptions(batch_size=batch, seed=3)
    order = np.random.default_rng([3, 1, 5]).permutation(count).tolist()
    monkeypatch.setattr("pretrain.engine.distributed.world_size", lambda: processes)
    for rank in range(processes):
        monkeypatch.setattr("pretrain.engine.distributed.rank", lambda rank=rank: rank)
        steps = [step.tolist() for step in linear_train._steps(count, options, 5)]
        sampler: Any = torch.utils.data.DistributedSampler(order, processes, rank, shuffle=False)
        loader = torch.utils.data.DataLoader(order, batch // processes, sampler=sampler)
        assert steps == [step.tolist() for step in loader]


def lose(backbone: Backbone) -> Backbone:
    """A backbone with one weight that is not finite, in its last block."""
    assert not isinstance(backbone, Measured)
    backbone.get_parameter(f"blocks.{len(backbone.blocks) - 1}.mlp.fc2.bias").data[1] = torch.nan
    return backbone


def test_features_that_are_not_finite_are_refused_wherever_they_come_about(tmp_path: Path) -> None:
    """With the image's and the weight's name. On 46c01a2 each was taken for a feature like any other."""
    backbone, images, crops = lose(tiny()), pictures(), torch.rand(2, 3, 32, 32)
    images.labels, images.classes = np.arange(6) % 2, ["a", "b"]
    frame = np.zeros((64, 64, 3), dtype=np.uint8)
    part = segment_data.Labelled([Path("a.png"), frame], [frame[..., 0] + 1] * 2)
    head = linear_head.Head(torch.zeros(2, 256), torch.zeros(2), "cls4", ("a", "b"))
    how = lambda network, pixels: descriptors.copy(network, pixels, 32)  # noqa: E731
    view = linear_head.View(32, 32)
    for name, act in {
        "pictures 0": lambda: features.extract(backbone, images, VIEW, Common(cache=tmp_path)),
        "pictures 0 ": lambda: features.extract(backbone, images, VIEW, Common(cache=tmp_path), ("raw_mean",)),
        " pictures 0": lambda: features.extract(backbone, images, VIEW, Common(cache=tmp_path), ("parts2",)),
        "pictures 0  ": lambda: online_knn.OnlineKnn(images, images, 32).measure(backbone),
        "  pictures 0": lambda: descriptors.describe(backbone, images, how),
        "frame 3": lambda: propagate.tokens(backbone, crops[:1], "frame 3"),
        "a picture": lambda: inputs.tokens(backbone, crops[:1]),
        "image 1": lambda: segment_features.seen(part, 1, backbone, 32, 1),
        "image 1 of a batch": lambda: linear_head.Classifier(backbone, head).logits(crops),
        " image 1 of a batch": lambda: linear_head.linear_head(backbone, images, view, 4, 0),
    }.items():
        with pytest.raises(
            WorkError, match=rf"the \w+ of {name.strip()} are not finite \(the weight blocks.4.mlp.fc2.bias is not\)"
        ):
            act()
    assert not list(tmp_path.glob("*/done.npy")) or all(path.name.endswith(".partial") for path in tmp_path.iterdir())
    broken = tiny()
    broken.get_parameter("blocks.4.attn.qkv.weight").data[0, 0] = torch.inf
    with pytest.raises(WorkError, match="the attention maps of image 1 of a batch are not finite"):
        attention.cls_attention(broken, crops)
    with pytest.raises(WorkError, match="its largest weight"):
        finite.checked(torch.full((1, 2), 1e30), tiny(), finite.of_batch)


@pytest.mark.parametrize(
    ("main", "more"),
    [
        (knn.main, ""),
        (knn.main, "--features patches"),
        (linear.main, "--mode cached"),
        (linear.main, "--mode paper --workers 0"),
        (logistic.main, ""),
        (cluster.main, "--method kmeans"),
        (parts.main, "--workers 0"),
        (semi.main, "--frozen"),
    ],
)
def test_a_probe_of_a_network_that_is_not_finite_leaves_no_record(
    main: Main,
    more: str,
    run: Path,
    folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On 46c01a2 all but k-means, which ended in a traceback, wrote one; linear with 100 %."""
    real = common.open_backbone
    monkeypatch.setattr(common, "open_backbone", lambda *a, **k: (found := real(*a, **k))._replace(backbone=lose(found.backbone)))
    out = tmp_path / "record.json"
    flags = ["--ckpt", str(run), "--data", str(folders), "--limit", "30", "--cache", str(tmp_path), "--out", str(out)]
    assert run_command(main, [*flags, *more.split()]) == FAILED
    said = " ".join(capsys.readouterr().err.split())
    assert "are not finite (the weight blocks." in said and "png" in said and not list(tmp_path.glob("*.json"))


def test_numbers_that_are_not_finite_are_in_no_record(run: Path, tmp_path: Path) -> None:
    """On 46c01a2 a record held null in their place, and votes beyond float32 were all alike."""
    about: dict = {"probe": "knn", "table": "T1", "data": {}, "protocol": {}, "seconds": 1.0, "device": "cpu"}
    with pytest.raises(WorkError, match="top5 is not finite"):
        results.write(tmp_path / "a.json", loaded=load_backbone(run), metrics={"top1": 1.0, "top5": float("nan")}, **about)
    assert not list(tmp_path.iterdir())
    bank = F.normalize(torch.randn(20, 4), dim=1)
    with pytest.raises(UserError, match=r"a temperature of 0.005 makes votes that are not finite: give a greater one"):
        neighbours.vote(bank, bank, torch.arange(20) % 2, 2, (5,), temperature=0.005)


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
    assert "continuing after epoch 2" in capsys.readouterr().out
    assert json.loads(whole.read_text())["metrics"] == json.loads(broken.read_text())["metrics"]
    heads = [store.read_safetensors(tmp_path / f"{name}_head.safetensors")[0] for name in ("whole", "broken")]
    assert torch.equal(heads[0]["weight"], heads[1]["weight"])
    assert not list(tmp_path.glob("*.state.pt"))


def test_the_kept_head_gives_the_reported_number(run: Path, folders: Path, tmp_path: Path) -> None:
    assert run_command(linear.main, linear_flags(run, folders, tmp_path / "one.json", "--mode", "cached")) == DONE
    weights, metadata = store.read_safetensors(tmp_path / "one_head.safetensors")
    loaded, images = load_backbone(run), open_images(str(folders), "val")
    assert metadata["about"]["features"] == "cls4" and metadata["about"]["classes"] == list(images.classes)
    said, counts = metadata["about"]["protocol"], {"train_images": 80, "val_images": 80}  # on 46c01a2 not said at all
    assert said == json.loads((tmp_path / "one.json").read_text())["protocol"] | counts
    assert said["mode"] == "cached"
    assert said["epochs"] == 4
    assert said["batch_size"] == 32
    assert said["selected_on"] == "test images"
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
    trained = linear_train.Trained(
        np.array([[[1.0, 5.0], [9.0, 9.0]], [[4.0, 2.0], [9.0, 9.0]]]), np.zeros((2, 2, 2)), torch.zeros(1, 1), torch.zeros(1)
    )
    assert linear_protocol.chosen(trained, (0.1, 0.2))[:2] == (0.2, 1) and linear_protocol.chosen(trained, (0.1, 0.2), last=True)[
        :2
    ] == (0.1, 2)


def test_the_held_out_tenth_is_even_over_the_classes() -> None:
    images = pictures(40)
    images.labels = np.arange(40) % 4
    kept, apart = linear_protocol.split(images, linear_protocol.LinearOptions())
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
    attention = backbone.get_last_selfattention(crops).mean(dim=1)
    x = backbone.embed(crops)
    for block in backbone.blocks:
        x = block(x)
    for image in range(3):
        most = attention[image, 0, 1:].argsort(descending=True)[:2]
        assert_close(found["parts2"][image], x[image, 1 + most].mean(dim=0))
        assert_close(found["parts16"][image], x[image, 1:].mean(dim=0))


@pytest.mark.parametrize("size", [{"embed_dim": 192, "num_heads": 3}, {"embed_dim": 384, "num_heads": 6}])
def test_patches_are_their_raw_mean_and_normed_by_name(size: dict[str, Any]) -> None:
    """A mean over the patches of what the last of twelve blocks gives. On 46c01a2 `--features patches` was of normed tokens."""
    torch.manual_seed(0)
    backbone = ViT(Architecture("vit", patch_size=16, image_size=64, channels=3, depth=12, **size), maskable=False).eval()
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
        x = backbone.embed(crops := torch.randn(3, 3, 64, 64))
        for block in backbone.blocks:
            x = block(x)
        kinds = {name: features.array_of(name) for name in ("patches", "patches_norm", "cls+mean")}
        arrays = {name for kind in kinds.values() for name in features.needed(kind)}
        found = features.represent(backbone, crops, sorted(arrays))
        rows = {name: torch.cat(features.side_by_side(found, kind), dim=1) for name, kind in kinds.items()}
        normed = backbone.norm(x)
    assert_close(rows["patches"], x[:, 1:].mean(dim=1))
    assert_close(rows["patches_norm"], normed[:, 1:].mean(dim=1))
    assert_close(rows["cls+mean"], torch.cat([normed[:, 0], normed[:, 1:].mean(dim=1)], dim=1))
    assert not torch.allclose(rows["patches"], rows["patches_norm"], rtol=0.1)


def test_raw_tokens_are_those_before_the_norm_in_every_kind_of_backbone() -> None:
    torch.manual_seed(0)
    swin = swin_shape("swin_tiny", SWIN_SIZES["swin_tiny"], 4, 64, 7, 3)
    for shape in (swin, timm_shape("vit_tiny_patch16_224", 64, 3), tiny().shape):
        backbone = make(shape, maskable=False).eval()
        crops = torch.randn(2, 3, shape.image_size, shape.image_size)
        inner: Any = getattr(backbone, "model", backbone)
        assert_close(inner.norm(backbone.last_patches_before_norm(crops)), backbone(crops)[:, 1:])


def test_few_labels_are_even_over_the_classes_or_as_listed(folders: Path, tmp_path: Path) -> None:
    images = open_images(str(folders), "train")
    some = subsets.part_of(images, 25.0, None, seed=1)
    assert np.bincount(some.labels).tolist() == [2] * 10  # type: ignore[arg-type]
    paths = [Path(images.where(number)) for number in (3, 40)]
    for name, listed in (
        ("bare", [path.name for path in paths]),
        ("classes", [f"{path.parent.name}/{path.name}" for path in paths]),
    ):
        (tmp_path / f"{name}.txt").write_text("\n".join(listed))
        few = subsets.part_of(images, None, tmp_path / f"{name}.txt")
        assert [Path(few.where(number)) for number in range(len(few))] == paths


def test_a_listed_name_that_several_images_have_needs_its_class(tmp_path: Path) -> None:
    """On 46c01a2 the last of them was taken, whatever the list's folder said; of `a (1).png` it knew `1).png`."""
    for place in ("cats/1.png", "dogs/1.png", "dogs/a (1).png"):
        path = tmp_path / "train" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    images, few = open_images(str(tmp_path / "train"), None), tmp_path / "few.txt"
    few.write_text("1.png\n")
    with pytest.raises(UserError, match=r"1.png in .* is the name of 2 images of .*: write CLASS/1.png"):
        subsets.named(images, few)
    few.write_text("cats/1.png\ntrain/a (1).png\n")
    assert [Path(images.where(number)).parent.name for number in subsets.named(images, few).tolist()] == ["cats", "dogs"]
    few.write_text("birds/1.png\n")
    with pytest.raises(UserError, match=r"lacks 1 of the 1 names in .*, birds/1.png for one"):
        subsets.named(images, few)


@pytest.mark.parametrize(
    ("whole", "images", "percent", "names", "name"),
    [
        (1_281_167, 12_811, None, "1percent.txt", "1%"),
        (1_281_167, 128_116, None, "few.txt", "10%"),
        (1000, 102, None, "few.txt", "10%"),
        (1000, 103, None, "few.txt", "few"),
        (1000, 100, 10.0, None, "10%"),
        (1000, 1000, None, None, None),
    ],
)
def test_a_share_is_called_by_what_it_is(
    whole: int, images: int, percent: float | None, names: str | None, name: str | None
) -> None:
    """On 46c01a2 by the list's file, so that the published lists (1percent, 10percent) were in no table."""
    share = subsets.share_of(whole, images, percent, Path(names) if names else None)
    assert share.name == name and share.about["images"] == images
    assert share.about["from"] == ("list" if names else "drawn" if percent else "all")


def listed(folders: Path, out: Path, count: int) -> Path:
    """A list of some training images, spread over the classes."""
    images = open_images(str(folders), "train")
    lines = [Path(images.where(number)) for number in range(0, len(images), len(images) // count)]
    out.write_text("\n".join(f"{path.parent.name}/{path.name}" for path in lines[:count]))
    return out


def test_a_list_of_few_labels_has_its_cell_and_every_part_of_its_protocol(
    run: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 linear_10percent was in no table, mode was always `cached`, and an interruption began anew."""
    names = [str(listed(folders, tmp_path / f"{count}.txt", count)) for count in (8, 20)]
    flags = ["--ckpt", str(run), "--data", str(folders), "--frozen", "--epochs", "2", "--names", *names]
    flags += ["--out", str(tmp_path / "semi.json"), "--workers", "0"]
    real, calls = logistic.measure, []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as inside:
        inside.setattr(logistic, "measure", stopping)
        assert run_command(semi.main, flags) == 130
    capsys.readouterr()
    assert run_command(semi.main, flags) == DONE
    assert capsys.readouterr().out.count("continuing after epoch 2") == 2 and not list(tmp_path.glob("*.state.pt"))
    record = json.loads((tmp_path / "semi.json").read_text())
    assert {f"{name}_{share}" for name in ("k-NN", "linear", "logistic") for share in ("10%", "20")} == record["metrics"].keys()
    protocol = record["protocol"]
    assert protocol["labels"]["10%"] == {"from": "list", "images": 8, "file": "8.txt"}
    assert protocol["linear"]["mode"] == "paper" and protocol["linear"]["batch_size"] == 1024
    mine = [cell for cell in cells.CELLS["semi"] if cell.column == "10pct"]
    for cell in mine:
        differ = protocols.differences(cell.needs, record)
        assert record["metrics"][cell.metric] >= 0 and not [words for words in differ if "not stated" in words], differ
    assert len(mine) == 3
    assert run_command(semi.main, [*flags, "--names", names[0], names[0]]) == WRONG_COMMAND
    assert "two of the shares are called 10%" in capsys.readouterr().err


def test_fine_tuning_says_which_labels_it_had(run: Path, folders: Path, tmp_path: Path) -> None:
    """On 46c01a2 the number of a list's images stood nowhere, so that no cell could ask for it."""
    flags = [
        "--ckpt",
        str(run),
        "--data",
        str(folders),
        "--epochs",
        "1",
        "--folder",
        str(tmp_path / "run"),
        "--warmup-epochs",
        "0",
    ]
    names = str(listed(folders, tmp_path / "a.txt", 8))
    assert run_command(finetune.main, [*flags, "--names", names, "--batch-size", "8", "--out", str(tmp_path / "a.json")]) == DONE
    protocol = json.loads((tmp_path / "a.json").read_text())["protocol"]
    assert protocol["share"] == "10%" and protocol["labels"] == {"from": "list", "images": 8, "file": "a.txt"}


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
    main: Main,
    more: str,
    record: str,
    metric: str,
    run: Path,
    folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    flags = ["--ckpt", str(copy), "--data", str(folders), "--limit", "60", "--batch-size", "16", "--device", "cpu"]
    assert run_command(main, [*flags, *more.split()]) == DONE
    content = json.loads(records.only(copy / "results", record).read_text())
    assert 0 <= content["metrics"][metric] <= 100 and content["data"]["val_images"] == 60
    assert "results written to" in capsys.readouterr().out


def test_two_processes_measure_what_one_does(run: Path, folders: Path, tmp_path: Path) -> None:
    flags = ["--ckpt", str(run), "--data", str(folders), "--batch-size", "32", "--workers", "0"]
    found = []
    for name, start in (("one", ["-m"]), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"])):
        out, cache = tmp_path / f"{name}.json", str(tmp_path / name)
        words = [*start, "probes.linear", *flags, "--epochs", "2", "--lr", "0.1", "1", "--mode", "paper", "--out", str(out)]
        done = subprocess.run(**command(*words, "--cache", cache, OMP_NUM_THREADS="1"), check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("results written") == 1
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
    main: Main,
    flags: str,
    message: str,
    run: Path,
    folders: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(run.parent)
    given = [] if main is tables.main else ["--ckpt", str(run), "--data", str(folders)]
    words = flags.replace("VAL", str(folders / "val")).split()
    where = [str(run)] if main is tables.main and words[0].startswith("--") else []
    assert run_command(main, [*given, *where, *words]) == WRONG_COMMAND
    complained = capsys.readouterr().err
    assert message in " ".join(complained.split()) and "Traceback" not in complained


def test_common_options_name_the_parts_of_a_checkpoint(run: Path, folders: Path) -> None:
    options = Common(ckpt=run, data=str(folders), limit=20)
    with common.open_subject(options) as subject:
        both = common.labelled_parts(options, subject.loaded.backbone.shape)
        assert subject.view[:2] == (32, 32) and len(both.train) == len(both.val) == 20


@pytest.mark.parametrize(("name", "kind", "passes"), [("patches", "raw_mean", 2), ("patches_norm", "mean", 1)])
def test_the_mean_of_patch_tokens_is_measured_on_request(
    name: str, kind: str, passes: int, run: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a number of its own that no table of [CLS] takes for its own; of normed tokens without a second forward."""
    monkeypatch.setenv("IBOT_FEATURES", str(tmp_path / "features"))
    out, seen = tmp_path / "records", forwards(monkeypatch)
    common_flags = ["--ckpt", str(run), "--data", str(folders)]
    assert run_command(knn.main, [*common_flags, "--out", str(out / "cls.json")]) == DONE and sum(seen) == 160
    assert run_command(knn.main, [*common_flags, "--features", name, "--out", str(out / "knn.json")]) == DONE
    flags = ["--features", name, "--mode", "cached", "--epochs", "1", "--out", str(out / "linear.json")]
    assert run_command(linear.main, [*common_flags, *flags]) == DONE and sum(seen) == 160 * passes
    backbone = load_backbone(run).backbone
    assert isinstance(backbone, ViT)
    parts = [open_images(str(folders), name) for name in ("train", "val")]
    spread, means = (backbone.shape.mean, backbone.shape.std), []
    for images in parts:
        crops = torch.stack([views.evaluation_view(images[n], *VIEW, *spread) for n in range(80)])
        x = backbone.embed(crops)
        for block in backbone.blocks:
            x = block(x)
        x = backbone.norm(x) if kind == "mean" else x
        means.append(F.normalize(x[:, 1:].mean(dim=1), dim=1))
    labels = [torch.as_tensor(images.labels) for images in parts]
    nearest = (means[1] @ means[0].T).topk(10, dim=1)
    votes = torch.zeros(80, 10).scatter_add_(1, labels[0][nearest.indices], (nearest.values / 0.07).exp())
    slow = 100 * (votes.argmax(dim=1) == labels[1]).double().mean().item()
    record = json.loads((out / "knn.json").read_text())
    assert record["metrics"]["top1_k10"] == pytest.approx(slow, abs=1.3) and record["protocol"]["features"] == kind
    assert record["metrics"] != json.loads((out / "cls.json").read_text())["metrics"]
    lines = tables.measured(tables.read_records([out]))["T1_knn_linear_in1k"]
    assert len(lines) == 1 and lines[0].cells == {"knn": json.loads((out / "cls.json").read_text())["metrics"]["top1"]}
