"""Checkpoints whose content was chosen by somebody else: they neither choose whom we ask nor end in anything but one sentence.

What a docstring says of 46c01a2 was seen there, by these tests with its names in place of ours, unless it says otherwise.
"""

import copy
import gc
import json
import math
import random
import re
import resource
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from checkpoints import inspect, published, store
from checkpoints.architecture import MEAN, STD, stored_architecture
from checkpoints.cli import DONE, WRONG_COMMAND, UserError, run_command
from pretrain import train
from pretrain.engine import optim
from pretrain.method.ibot import Student, Teacher
from pretrain.models.backbone import load_backbone
from pretrain.options.command_line import read_command_line
from pretrain.run.checkpoint import Run
from pretrain.sample import dense
from pretrain.setup.networks import build
from pretrain.setup.plan import plan_of
from pretrain.tokenizers import dalle, dalle_pickle, kmeans
from probes import knn
from probes.features import cache
from probes.finetune import checkpoint
from probes.finetune.model import optimizer_of
from probes.linear import head, sweep
from probes.linear import train as linear_train
from probes.shared.subject import Common, View
from tests.support.commands import SMALL
from tests.support.finetuning import network_of, options_for
from tests.support.networks import FAN_IN, TWO_STAGES, backbone, write

ARCHITECTURES = ("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", "local-dir:{trap}", "timm/vit_tiny_patch16_224", "{trap}")
MISSING = "(missing)"
VALUES: tuple[Any, ...] = (MISSING, None, "x", [], {}, [[]], -1, 0, 10**7, 2**63, 1e308, math.nan, True, 0.5)
TENSORS: tuple[Any, ...] = (
    torch.zeros(0),
    torch.zeros(3, 2),
    torch.tensor(math.nan),
    torch.zeros(4, dtype=torch.complex64),
    torch.zeros(4, dtype=torch.int64),
)
ROOM = 3 * 2**30
"""Bytes that a refusal may take at most; a network of the sizes below needs many times that."""


class Watched:
    """What was asked of the network, and what was opened below a folder, while it was told to listen."""

    def __init__(self) -> None:
        self.trap: Path | None = None
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.trap is None:
            return
        if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
            self.seen.append(f"{event} {arguments[1:2]}")
        if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(str(self.trap)):
            self.seen.append(f"{event} {arguments[0]}")


WATCHED = Watched()
sys.addaudithook(WATCHED)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is asked or opened that nobody named: `trap` in tmp_path has a model that timm would open."""
    trap = tmp_path / "trap"
    trap.mkdir()
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"tag": "x"}, "num_classes": 0}
    (trap / "config.json").write_text(json.dumps(config))

    def refused(*arguments: object, **more: object) -> None:
        WATCHED.seen.append(f"a connection {arguments[:2]}")
        raise OSError("no network here")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    WATCHED.seen, WATCHED.trap = [], trap
    yield WATCHED.seen
    WATCHED.trap = None


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """What is there before these tests is not gone through at each collection of garbage."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def little_room(frozen: None) -> Iterator[None]:
    """No test may take more than ROOM bytes of address space."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def flags(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a run that has ended after two steps."""
    out = tmp_path_factory.mktemp("runs") / "small"
    found = [*SMALL, "--data", str(folders), "--steps", "2", "--depth", "1", "--knn-every", "0", "--out", str(out)]
    assert run_command(train.main, found) == DONE
    return found


@pytest.fixture(scope="module")
def content(flags: list[str]) -> dict[str, Any]:
    """Of that run's last.pt, without its checksum."""
    found = store.read_torch(Path(flags[-1]) / store.LAST)
    del found["checksum"]
    return found


def one_sentence(error: UserError, path: Path) -> None:
    text = str(error)
    assert str(path.parent) in text and "\n" not in text and len(text) < 2000, text


def refused(work: Callable[[], Any], path: Path) -> bool:
    """Whether it ends in one sentence; anything but that and success fails the test."""
    try:
        work()
    except UserError as error:
        one_sentence(error, path)
        return True
    return False


def at(content: Any, place: tuple, value: Any) -> Any:
    """A copy of nested dicts and lists with another value, or none, in one place."""
    if not place:
        return value
    found = dict(content) if isinstance(content, Mapping) else list(content)
    if value is MISSING and len(place) == 1:
        del found[place[0]]
    else:
        found[place[0]] = at(content[place[0]], place[1:], value)
    return found


def sealed(folder: Path, content: Mapping[str, Any]) -> Path:
    """A run's folder with that last.pt, its checksum right."""
    try:
        digest = store.checksum(content)
    except Exception:  # it cannot even be taken
        digest = "0"
    return store.save_file(folder / store.LAST, {**content, "checksum": digest})


def resumed(folder: Path, flags: list[str]) -> tuple[Student, Teacher, torch.optim.Optimizer, Run]:
    """What `pretrain.train` takes up from a folder, and one step of its optimizer."""
    plan = plan_of(read_command_line([*flags[:-1], str(folder)]))
    run = Run(plan, 5, "")  # 40 images, 8 a step
    student, teacher = build(plan, SHAPE)
    optimizer = optim.build_optimizer(plan.options.optimisation.optimizer, student)
    run.resume(student, teacher, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optim.set_values_(optimizer, 0.0, 0.0)
    optimizer.step()
    return student, teacher, optimizer, run


SHAPE = FAN_IN._replace(arch="vit_tiny", depth=1, init="original")


def places(content: Mapping[str, Any]) -> list[tuple]:
    """Every field of a run's checkpoint, and of what is in it one of each kind."""
    weight = "backbone.blocks.0.attn.qkv.weight"
    found: list[tuple] = [(name,) for name in content if name != "format"]
    found += [("shape", name) for name in content["shape"]]
    found += [(who, weight) for who in ("student", "teacher")] + [("centres", "cls"), ("centres", "patch")]
    number = next(iter(content["optimizer"]["state"]))
    found += [("optimizer", "state"), ("optimizer", "param_groups"), ("optimizer", "param_groups", 0)]
    found += [("optimizer", "param_groups", 0, "params"), ("optimizer", "state", number)]
    found += [("optimizer", "state", number, name) for name in ("step", "exp_avg", "exp_avg_sq")]
    return [*found, ("random", 0), ("random", 0, "cpu"), ("random", 0, "cuda")]


HARMLESS = frozenset("version data scaler tokenizer processes random config steps_per_epoch step shape optimizer".split())
"""Fields in which some values are as good as the true one, or are not looked at by a reader that has no use for them."""


def test_a_run_with_any_field_changed_is_refused_in_a_sentence_or_read_as_it_was(
    content: dict[str, Any], flags: list[str], tmp_path: Path
) -> None:
    """On 46c01a2 96 of 220 tries ended in tracebacks, and a depth of 10 million in 6 GB and no end."""
    true = {name: weight.clone() for name, weight in content["student"].items()}
    count = 0
    assert resumed(sealed(tmp_path / "run", content).parent, flags)[3].step == 2
    for number, place in enumerate(places(content)):
        for value in (VALUES + TENSORS)[number % 6 :: 6]:  # all of them, at one place or another
            path = sealed(tmp_path / "run", at(content, place, copy.deepcopy(value)))
            said = [refused(partial(load_backbone, path, key="student"), path)]
            try:
                student, _, _, run = resumed(path.parent, flags)
            except UserError as error:
                one_sentence(error, path)
                said.append(True)
            else:
                said.append(False)
                assert 0 <= run.step < 2**60
                assert all(torch.equal(weight, true[name]) for name, weight in student.state_dict().items()), (place, value)
            assert place[0] in HARMLESS or (said[1] and (said[0] or place[0] == "teacher")), (
                place,
                value,
            )  # the student alone was asked for
            count += 1
    assert count > 90


@pytest.mark.parametrize("name", ["student", "shape", "step", "optimizer", "random"])
def test_the_commands_say_it_too(
    name: str, content: dict[str, Any], flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """46c01a2: tracebacks for `student`, `shape` and `step`; `inspect` did not look at the other two and ended well."""
    path = sealed(tmp_path / "run", {**content, name: "x"})
    commands = [(inspect.main, [str(path)]), (knn.main, ["--ckpt", str(path), "--limit", "8", "--workers", "0"])]
    for main, arguments in [*commands, (train.main, [*flags[:-1], str(path.parent)])]:
        assert run_command(main, arguments) == WRONG_COMMAND
        assert name in capsys.readouterr().err.splitlines()[-1]


def quantised(weight: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to do away with them
        return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


def hostile_weights() -> dict[str, Callable[[torch.Tensor], Any]]:
    """What may stand in a weight's place, by what the sentence should say of it."""
    return {
        "NaN": lambda w: w.clone().fill_(math.nan),
        "infinite": lambda w: w.clone().fill_(math.inf),
        "float64|infinite": lambda w: w.double().fill_(1e308),
        "int32": lambda w: w.int(),
        "bool": lambda w: w.bool(),
        "complex": lambda w: w.to(torch.complex64),
        "sparse": lambda w: w.to_sparse(),
        "quantised|not a readable": quantised,
        "meta": lambda w: w.to("meta"),
        "empty": lambda w: w[:0],
        "bytes exist": lambda w: torch.zeros(1).expand(w.shape),
        "is None|it lacks": lambda w: None,
        r"\[1, 64\]": lambda w: w[:1].contiguous(),
    }


@pytest.mark.filterwarnings("ignore")  # torch's, as it writes what it means to do away with
@pytest.mark.parametrize("words", hostile_weights())
def test_a_weight_that_is_no_weight_is_refused_by_name(words: str, content: dict[str, Any], tmp_path: Path) -> None:
    """46c01a2 loaded NaN, infinite, integer, bool and complex ones and those whose bytes do not exist.

    Sparse, quantised and meta ones and None ended in tracebacks. Another shape it refused, an empty one in other words.
    """
    name = "blocks.0.attn.qkv.weight"
    changed = {name: hostile_weights()[words](content["teacher"][f"backbone.{name}"])}
    bare = {key.removeprefix("backbone."): w for key, w in content["teacher"].items() if key.startswith("backbone.")}
    torch.save({"state_dict": bare | changed}, tmp_path / "theirs.pth")
    ours = sealed(tmp_path, at(content, ("teacher", f"backbone.{name}"), changed[name]))
    for path in (ours, tmp_path / "theirs.pth"):
        with pytest.raises(UserError, match=words) as caught:
            load_backbone(path)
        one_sentence(caught.value, path)
        assert name in str(caught.value) or "not a readable" in str(caught.value)


def test_half_precision_is_read_as_ever_and_a_missing_or_surplus_weight_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    """46c01a2: `inspect` showed a network that lacked weights, or had others, as if nothing were wrong."""
    teacher = content["teacher"]
    half = {name: weight.half() for name, weight in teacher.items()}
    path = sealed(tmp_path, {**content, "teacher": half})
    assert load_backbone(path).backbone.pos_embed.dtype == torch.float32
    less = {name: weight for name, weight in teacher.items() if name != "backbone.norm.bias"}
    for weights, words in ((less, "lacks norm.bias"), (teacher | {"backbone.more": torch.zeros(1)}, "more has no place")):
        path = sealed(tmp_path, {**content, "teacher": weights})
        for read in (load_backbone, lambda p: inspect.main([str(p)])):
            with pytest.raises(UserError, match=words):
                read(path)


def test_a_version_that_is_newer_is_refused_as_such(content: dict[str, Any], flags: list[str], tmp_path: Path) -> None:
    """46c01a2 read any version as its own."""
    path = sealed(tmp_path, {**content, "version": store.VERSION + 1})
    for work in (lambda: published.read(path), lambda: resumed(tmp_path, flags)):
        with pytest.raises(UserError, match="newer version"):
            work()
    older = sealed(tmp_path, {name: value for name, value in content.items() if name != "version"})
    assert published.read(older).step == 2


def test_what_is_nested_without_end_is_refused(
    content: dict[str, Any], flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """46c01a2: a list of itself was a RecursionError; its checksum would have gone through lists of each other 2^60 times."""
    assert store.MOST_PARTS < 10**7
    monkeypatch.setattr(store, "MOST_PARTS", 10**4)  # the same, sooner
    endless: list = []
    endless.append(endless)
    twice: list = [0]
    for _ in range(60):
        twice = [twice, twice]
    for value in (endless, twice):
        path = sealed(tmp_path, {**content, "tokenizer": ""})
        torch.save({**content, "config": {"data": value}, "checksum": "0"}, path)
        assert refused(lambda: resumed(tmp_path, flags), path)


SIZES = {
    "depth": (10**7, 0, 513),
    "embed_dim": (2**20, 63, 128),
    "num_heads": (0, 7, 10**9),
    "patch_size": (0, 1, 2**40),
    "image_size": (0, 2**31, 36, 31),
    "channels": (0, 10**9, 4),
    "window": (10**9, -1),
    "depths": ([10**7], [1] * 99, [1, 0], "2"),
    "mean": ([math.nan] * 3, [0.5], "xyz", [1e300] * 3),
    "std": ([0.0] * 3, [-1.0] * 3, [1e-300] * 3),
    "init": ("x", 3),
    "more": (1,),
}


@pytest.mark.parametrize("kind", ["vit", "swin"])
@pytest.mark.parametrize("field", SIZES)
def test_sizes_are_bounded_and_those_of_the_weights(field: str, kind: str, tmp_path: Path) -> None:
    """46c01a2: a depth of 10 million took all memory, a width asked for 13 TB, zeros were divisions by zero, a field too many a
    TypeError; `image_size`, `channels`, `window`, `mean`, `std` and `init` were read whatever they said.
    """
    path = write(tmp_path / "backbone.safetensors", FAN_IN if kind == "vit" else TWO_STAGES)
    weights, metadata = store.read_safetensors(path)
    for value in SIZES[field]:
        about = at(metadata["about"], ("shape",), {**metadata["about"]["shape"], field: value})
        store.save_backbone(path, weights, about)
        assert refused(lambda: load_backbone(path), path), value
        assert refused(lambda: inspect.main([str(path)]), path), value


@pytest.mark.parametrize("width", [100_000, 2**16 - 64])
def test_a_few_weights_of_a_huge_network_are_not_made_into_one(width: int, tmp_path: Path) -> None:
    """46c01a2 asked for a block of 51 GB before it saw that its weights were missing; 100,000 was an AssertionError of timm."""
    torch.save(
        {"pos_embed": torch.zeros(1, 2, width), "patch_embed.proj.weight": torch.zeros(width, 1, 1, 1)}
        | {"cls_token": torch.zeros(1, 1, width), "blocks.0.norm1.weight": torch.zeros(width)},
        tmp_path / "wide.pth",
    )
    torch.save(
        {
            "cls_token": torch.zeros(1, 1, 64),
            "pos_embed": torch.zeros(1, 2, 64),
            "blocks.9999999.norm1.bias": torch.zeros(64),
            "patch_embed.proj.weight": torch.zeros(64, 1, 1, 1),
        },
        tmp_path / "deep.pth",
    )
    for name in ("wide.pth", "deep.pth"):
        assert refused(partial(load_backbone, tmp_path / name), tmp_path / name)


def load_and_inspect(path: Path) -> None:
    load_backbone(path, key="student")
    inspect.main([str(path)])


def test_a_file_of_the_original_with_any_field_changed_is_refused_or_read_as_it_was(parity_dir: Path, tmp_path: Path) -> None:
    """46c01a2: tracebacks, first a KeyError of `student`."""
    with torch.serialization.safe_globals(published.ALLOWED):
        content = torch.load(parity_dir / "checkpoint_published_layout.pth", weights_only=True)
    whole, path = published.from_content(content, Path("x")), tmp_path / "checkpoint.pth"
    name = next(iter(content["student"]))
    fields = [*((field,) for field in content), ("student", name), ("ibot_loss", "center"), ("ibot_loss", "center2")]
    fields += [("optimizer", "state"), ("optimizer", "param_groups"), ("optimizer", "param_groups", 0)]
    seen = 0
    for place in fields:
        for value in VALUES + TENSORS:
            torch.save(at(content, place, copy.deepcopy(value)), path)
            if refused(partial(load_and_inspect, path), path):
                seen += 1
            else:
                found = published.read(path).networks["student"]
                assert all(torch.equal(weight, whole.networks["student"][key]) for key, weight in found.items())
    assert seen > 100


def damages(whole: bytes, count: int) -> Iterator[bytes]:
    """The file with a bit turned, a byte replaced, a stretch of zeros, cut off, or longer."""
    draw = random.Random(0)
    size = int.from_bytes(whole[:8], "little") + 8
    for number in range(count):
        changed, place = bytearray(whole), draw.randrange(len(whole) if number % 2 else size)
        kind = number % 10
        if kind < 6:
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 6:
            changed[place] = draw.randrange(256)
        elif kind == 7:
            changed[place : place + 16] = bytes(len(changed[place : place + 16]))
        elif kind == 8:
            changed = changed[: draw.randrange(len(whole))]
        else:
            changed += bytes(draw.randrange(1, 64))
        yield bytes(changed)


def test_a_damaged_backbone_file_is_never_read_as_another(tmp_path: Path) -> None:
    """46c01a2 loaded 1,486 of 1,999 such files with other weights, and ended in a KeyError where a name was damaged."""
    path = write(tmp_path / "backbone.safetensors")
    whole, true = path.read_bytes(), published.read(path)
    noticed = 0
    for changed in damages(whole, 2000):
        path.write_bytes(changed)
        try:
            found = published.read(path)
        except UserError as error:
            one_sentence(error, path)
            noticed += 1
            continue
        assert found._replace(networks={}) == true._replace(networks={})
        assert all(torch.equal(weight, true.networks["teacher"][name]) for name, weight in found.networks["teacher"].items())
    assert noticed > 1900


def fields_of_backbones() -> list[tuple[str, Any]]:
    return [(field, value) for field in ("key", "epoch", "step", "shape") for value in VALUES]


def test_what_a_backbone_file_says_of_itself_is_checked(tmp_path: Path) -> None:
    """46c01a2: a KeyError of `key`, the first field that is missing here."""
    path = write(tmp_path / "backbone.safetensors")
    weights, metadata = store.read_safetensors(path)
    for field, value in fields_of_backbones():
        store.save_backbone(path, weights, at(metadata["about"], (field,), value))
        good = field in ("epoch", "step") and type(value) is int and 0 <= value <= 2**48
        assert refused(lambda: load_backbone(path), path) != good, (field, value)
        refused(lambda: inspect.main([str(path)]), path)
    for text in ("[]", "3", '"x"', "null", "{", '{"version": 9}', '{"version": "x"}', "[" * 10**5):
        save_file(weights, path, {"about": text})
        assert refused(lambda: load_backbone(path), path), text


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_architecture_of_a_file_is_not_looked_for_elsewhere(
    arch: str, asked: list[str], content: dict[str, Any], tmp_path: Path
) -> None:
    """46c01a2 asked huggingface.co for the first, opened the folder of the second; the others were tracebacks of timm."""
    name = arch.format(trap=tmp_path / "trap")
    strange = {f"x.{key}": weight for key, weight in backbone().state_dict().items()}
    weights = {key.removeprefix("x."): weight for key, weight in strange.items()} | {"blocks.0.ls1.gamma": torch.ones(64)}
    files = {"metadata": tmp_path / "metadata.safetensors", "beside": tmp_path / "beside" / "model.safetensors"}
    save_file(weights, files["metadata"], {"architecture": name})
    files["beside"].parent.mkdir()
    save_file(weights, files["beside"])
    (tmp_path / "beside" / "config.json").write_text(json.dumps({"architecture": name}))
    files["about"] = tmp_path / "about.safetensors"
    about: dict[str, Any] = {"key": "teacher", "epoch": 0, "step": 0, "shape": FAN_IN._replace(arch=name)._asdict()}
    store.save_backbone(files["about"], weights, about)
    files["run"] = sealed(tmp_path / "run", at(content, ("shape", "arch"), name))
    for path in files.values():
        for work in (load_backbone, lambda p: inspect.main([str(p)])):
            assert refused(partial(work, path), path)
    tokens = tmp_path / "tokens.safetensors"
    codes = kmeans.About("tokens", 8, 4, MEAN, STD, about["shape"], {})
    kmeans.save(tokens, codes, torch.zeros(4, 64), backbone())
    assert refused(lambda: kmeans.open_kmeans(tokens, MEAN, STD), tokens)
    with pytest.raises(UserError):
        load_backbone(Path(f"timm:{name}"))
    assert asked == []


def test_plain_names_of_timm_are_known_and_no_others(asked: list[str], tmp_path: Path) -> None:
    """46c01a2 handed these to timm, which asked the hub for `hf_hub:a/b`."""
    path, shape = tmp_path / "backbone.safetensors", FAN_IN._asdict()
    for arch in (
        "hf_hub:a/b",
        "HF-HUB:a/b",
        "vit_tiny_patch16_224.augreg_in21k",
        "vit_tiny_patch16_224 ",
        "local-dir:.",
        "",
        "x" * 9999,
    ):
        store.save_backbone(
            path, backbone().state_dict(), {"key": "teacher", "epoch": 0, "step": 0, "shape": {**shape, "arch": arch}}
        )
        with pytest.raises(UserError, match=r"architecture|a text"):
            load_backbone(path)
    assert asked == []


def test_a_refused_step_opens_no_tokenizer_that_this_call_has_not_named(
    asked: list[str], content: dict[str, Any], tmp_path: Path
) -> None:
    """46c01a2 began to fetch DALL-E's encoder as the refused step said; the other two name files, which it opened so too."""
    state = {
        "format": "ibot-refused-step",
        "step": 1,
        "now": {},
        "precision": "fp32",
        "random": torch.get_rng_state(),
        "fused": True,
    }
    state |= {"batches": [], "student": content["student"], "teacher": content["teacher"], "shape": content["shape"]}
    given = tmp_path / "given"
    given.mkdir()
    for targets, name in (("codes", "dalle"), ("codes", f"kmeans:{tmp_path}/trap/config.json"), ("frozen", f"{tmp_path}/trap/x")):
        path = given / "refused-000001-0.pt"
        torch.save({**state, "config": {**content["config"], "targets": targets, "tokenizer": name}}, path)
        with pytest.raises(UserError, match="is not opened: give --tokenizer as the run had it"):
            train.main(["--replay", str(path)])
    for field in (*state, "config"):
        for value in VALUES:
            torch.save(at({**state, "config": content["config"]}, (field,), copy.deepcopy(value)), path)
            refused(lambda: train.main(["--replay", str(path)]), path)
    assert asked == []


def test_a_folder_of_openmmlab_does_not_choose_what_is_fetched(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """46c01a2 refused none and left `last_checkpoint` to MMEngine, which fetches an address and opens any file."""
    pytest.importorskip("mmengine")
    from transfer import train as transfer  # noqa: PLC0415

    monkeypatch.setattr(dense, "COUNTS", {"train": 2, "val": 1})
    out = tmp_path / "out"
    out.mkdir()
    checkpoint = write(tmp_path / "backbone.safetensors", FAN_IN._replace(depth=4))
    chosen = transfer.TransferOptions("ade20k", checkpoint, out=out)
    for name in (
        "http://127.0.0.1/x.pth",
        "torchvision://resnet50",
        str(tmp_path / "trap" / "config.json"),
        "../trap/config.json",
    ):
        (out / "last_checkpoint").write_text(name)
        with pytest.raises(UserError, match="is not opened: remove that file to begin anew"):
            transfer.prepare(chosen, load_backbone(checkpoint))
    assert asked == []


def test_a_fine_tuning_with_any_field_changed_is_refused_or_goes_on_as_it_was(tmp_path: Path) -> None:
    """46c01a2 handed each field on as it stood: not run there (this test needs younger code), read in its `Run.resume`."""
    torch.manual_seed(0)
    chosen = options_for()

    def fresh_network() -> checkpoint.Network:
        network = network_of(ema=0.9)
        return network._replace(optimizer=optimizer_of(network.model, chosen, 0.1))

    network, run = fresh_network(), checkpoint.Run(tmp_path / "run", chosen, "digest", 2)
    answers = torch.zeros(3, 1, dtype=torch.int64)
    run.tested(checkpoint.Tested(1, 50.0, 60.0, 55.0), answers)
    for parameter in network.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    network.optimizer.step()
    run.save(2, network, ["a", "b"], best=False)
    path = tmp_path / "run" / store.LAST
    content = store.read_torch(path)
    del content["checksum"]
    weight = next(iter(content["model"]))
    fields: list[tuple[Any, ...]] = [(name,) for name in content if name not in ("format", "classes", "shape")]
    fields += [("model", weight), ("ema", weight), ("answers", "best"), ("tests", 0), ("tests", 0, 1), ("random", 0, "cpu")]
    fields += [("optimizer", "state"), ("optimizer", "state", 0), ("optimizer", "state", 0, "exp_avg_sq")]
    good = 0
    for number, place in enumerate(fields):
        for value in (VALUES + TENSORS)[number % 3 :: 3]:  # all of them, at one place or another
            sealed(path.parent, at(content, place, copy.deepcopy(value)))
            again, fresh = checkpoint.Run(path.parent, chosen, "digest", 2), fresh_network()
            if not refused(partial(again.resume, fresh), path):
                good += 1
                assert torch.equal(fresh.model.state_dict()[weight], content["model"][weight]), (place, value)
                fresh.optimizer.step()
                assert again.best().top1 >= 0
    assert good < 100


def test_heads_codes_and_features_of_wrong_content_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """46c01a2: a traceback of the first, an IndexError."""
    monkeypatch.setattr(store, "_refuse_not_finite", lambda *_: None)  # as somebody else's program would write them
    network = backbone()
    path = tmp_path / "linear_head.safetensors"
    weights = {"weight": torch.zeros(2, 128), "bias": torch.zeros(2)}
    about: dict[str, Any] = {"features": "cls4", "classes": ["a", "b"]}
    store.save_backbone(path, weights, about)
    head.read_head(path, network, [])
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({**weights, "weight": w}, about) for w in (torch.zeros(2), torch.zeros(2, 9), torch.full((2, 128), math.nan))
    ]
    changes += [({**weights, "bias": torch.zeros(3)}, about), ({"weight": weights["weight"]}, about)]
    changes += [
        ({**weights, "weight": torch.zeros(2, 128, dtype=torch.int64)}, about),
        ({**weights, "more": torch.zeros(1)}, about),
    ]
    changes += [(weights, {**about, "classes": value}) for value in (3, "ab", [1, 2], ["a"], {"a": 1})]
    strange: tuple[Any, ...] = (3, None, [], "x")
    changes += [(weights, {**about, "features": value}) for value in strange]
    for values, said in changes:
        store.save_backbone(path, values, said)
        assert refused(lambda: head.read_head(path, network, []), path), said

    path = tmp_path / "codes.safetensors"
    codes = kmeans.About("tokens", 8, 4, MEAN, STD, FAN_IN._asdict(), {})
    kmeans.save(path, codes, torch.zeros(4, 64), network)
    kmeans.open_kmeans(path, MEAN, STD)
    stored, metadata = store.read_safetensors(path)
    for field in metadata["about"]:
        for value in VALUES:
            store.save_backbone(path, stored, at(metadata["about"], (field,), value))
            assert refused(lambda: kmeans.open_kmeans(path, MEAN, STD), path) or field == "made", (field, value)
    for centroids in (
        torch.zeros(4),
        torch.zeros(4, 63),
        torch.zeros(5, 64),
        torch.full((4, 64), math.nan),
        torch.zeros(4, 64).int(),
    ):
        store.save_backbone(path, {**stored, "centroids": centroids}, metadata["about"])
        assert refused(lambda: kmeans.open_kmeans(path, MEAN, STD), path)

    path = tmp_path / "dalle.safetensors"
    encoder = dalle.Encoder(channels=3, width=8, depth=1, vocabulary=5).state_dict()
    (tmp_path / "source").write_bytes(b"x")
    for name, value in (
        ("blocks.output.conv.w", torch.zeros(5)),
        ("blocks.input.w", torch.zeros(2**18, 1, 1, 1)),
        ("x", torch.ones(1)),
    ):
        dalle_pickle.save(path, {**encoder, name: value}, tmp_path / "source")
        assert refused(lambda: dalle.open_dalle(path, MEAN, STD), path)
    dalle_pickle.save(path, {**encoder, "blocks.output.conv.b": torch.full((5,), math.nan)}, tmp_path / "source")
    assert refused(lambda: dalle.open_dalle(path, MEAN, STD), path)


def test_the_state_of_a_linear_probe_is_checked(tmp_path: Path) -> None:
    """46c01a2 took the fields as they stood: not run there (this test needs younger code), read in its `_taken_up`."""
    path, many = tmp_path / "state.pt", sweep.LinearSweep((0.1, 0.2), 3, 4, 0, torch.device("cpu"))
    state = {"task": "t", "heads": many.state(), "choosing": [[[1.0, 2.0], [3.0, 4.0]]], "test": [[[1.0, 2.0], [3.0, 4.0]]]}
    state |= {"best": torch.tensor([2.0, 1.0]), "weight": torch.zeros(2, 3, 4), "bias": torch.zeros(2, 3)}
    torch.save(state, path)
    assert linear_train._taken_up(path, "t", many)["best"].tolist() == [2.0, 1.0]
    fields = [*((name,) for name in state if name != "task"), *(("heads", name) for name in state["heads"]), ("choosing", 0)]
    for place in fields:
        for value in VALUES + TENSORS:
            torch.save(at(state, place, copy.deepcopy(value)), path)
            assert refused(lambda: linear_train._taken_up(path, "t", many), path), (place, value)


def test_features_that_are_others_are_made_anew(folders: Path, tmp_path: Path) -> None:
    """46c01a2: a traceback of numpy, an EOFError for the empty file."""
    from pretrain.images.open import open_images  # noqa: PLC0415

    images, chosen = open_images(str(folders), "val"), Common(cache=tmp_path, workers=0)
    cache.extract(backbone(), images, View(32, 32), chosen)
    (path,) = tmp_path.glob("*/mean.npy")
    whole = path.read_bytes()
    header = re.sub(rb"\((\d+),", lambda found: b"(" + str(int(found[1]) - 1).encode() + b",", whole, count=1)
    for changed in (
        b"",
        b"x" * 99,
        whole[:100],
        whole[:-8],
        whole.replace(b"<f4", b"|O8", 1),
        whole.replace(b"<f4", b"<i4", 1),
        header,
    ):
        path.write_bytes(changed)
        cache.extract(backbone(), images, View(32, 32), chosen)
        assert path.read_bytes() == whole, changed[:90]


def test_stored_shapes_of_old_files_are_read(content: dict[str, Any]) -> None:
    """Fields that are younger than a file are at their defaults; 46c01a2 took unknown ones for a TypeError."""
    old = {
        name: content["shape"][name]
        for name in ("arch", "patch_size", "image_size", "channels", "embed_dim", "depth", "num_heads")
    }
    assert stored_architecture(old, "x").std == STD
    with pytest.raises(UserError, match="the shape has more"):
        stored_architecture({**old, "more": 1}, "x")
