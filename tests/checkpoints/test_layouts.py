"""Files of others: every layout is read into the same weights, and everything that is no checkpoint is refused in a sentence."""

import http.server
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from checkpoints import checked, download, inspect, published, resolve, store, zoo
from checkpoints.architecture import Architecture, shape_of
from checkpoints.cli import DONE, FAILED, WRONG_COMMAND, UserError, WorkError, run_command
from pretrain.backbones import open as open_kinds
from pretrain.models import backbone
from pretrain.models.backbone import load_backbone, make
from pretrain.models.timm_vit import AnyViT
from probes import knn
from tests.support.bomb import Bomb
from tests.support.networks import SHAPES, SWIN, VIT, bare, moved, original_names


def backbone_file(state: dict, path: Path) -> Path:
    """As the original publishes backbones."""
    torch.save({"state_dict": state}, path)
    return path


def wrapped(state: dict, path: Path) -> Path:
    torch.save({"teacher": {f"module.backbone.{name}": weight for name, weight in state.items()}}, path)
    return path


def safe(state: dict, path: Path) -> Path:
    path = path.with_suffix(".safetensors")
    save_file({name: weight.contiguous() for name, weight in state.items()}, path)
    return path


def dino(state: dict, path: Path) -> Path:
    """As DINO publishes full checkpoints."""
    backbone = {f"backbone.{name}": weight for name, weight in state.items()}
    head = {"head.mlp.0.weight": torch.zeros(4, 64), "head.last_layer.weight_v": torch.zeros(9, 4)}
    both = {"student": {f"module.{name}": weight for name, weight in (backbone | head).items()}, "teacher": backbone | head}
    center = {"center": torch.zeros(1, 9)}
    torch.save(
        {
            **both,
            "optimizer": {"state": {}},
            "epoch": 7,
            "args": published.argparse.Namespace(arch="deit_small"),
            "dino_loss": center,
        },
        path,
    )
    return path


@pytest.mark.parametrize("write", [backbone_file, wrapped, bare, safe, dino])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.arch}{shape.embed_dim}w{shape.window}")
def test_every_layout_gives_the_same_tokens(shape: Architecture, write: Callable[[dict, Path], Path], tmp_path: Path) -> None:
    path, network = write(original_names(shape), tmp_path / "file.pth"), moved(shape)
    loaded = load_backbone(path)
    assert loaded.backbone.shape._replace(arch=shape.arch) == shape
    images = torch.randn(2, 3, shape.image_size, shape.image_size)
    with torch.no_grad():
        assert torch.equal(loaded.backbone(images), network(images))
    parts, lacks = loaded.contents.parts(), loaded.contents.lacks()
    if write is dino:
        assert loaded.epoch == 7
        assert lacks == []
        assert "centres" in parts
        assert "of the original DINO" in loaded.contents.layout
    else:
        assert parts == ["one backbone"] and "heads" in lacks
    assert loaded.contents.ignored == (("head.weight", "head.bias") if write is bare else ())


@pytest.mark.parametrize("shape", [VIT, SWIN], ids=["vit", "swin"])
def test_a_strange_or_missing_weight_is_named(shape: Architecture, tmp_path: Path) -> None:
    state = original_names(shape)
    last = [name for name in state if name.endswith("norm2.weight")][-1]
    torch.save({"state_dict": {name: weight for name, weight in state.items() if name != last}}, tmp_path / "less.pth")
    with pytest.raises(UserError, match=re.escape(last)):
        load_backbone(tmp_path / "less.pth")
    torch.save({"state_dict": {**state, last: torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=re.escape(f"{last} is [3]")):
        load_backbone(tmp_path / "other.pth")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AnyViT]:
    """A file as DINOv2 publishes it, made of timm's model: positions and tokens apart, a mask token beside them."""
    torch.manual_seed(0)
    network = make(shape_of("vit_small_patch14_reg4_dinov2", 14, 56), maskable=False).eval()
    assert isinstance(network, AnyViT)
    state = {name.removeprefix("model."): weight.clone() for name, weight in network.state_dict().items()}
    width = state["cls_token"].shape[-1]
    state["cls_token"] = torch.randn(1, 1, width)
    network.load_state_dict({f"model.{name}": weight for name, weight in state.items()})
    position = torch.randn(1, 1, width)
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - position
    state["register_tokens"], state["mask_token"] = state.pop("reg_token"), torch.zeros(1, width)
    path = tmp_path_factory.mktemp("dinov2") / "dinov2_vits14_reg4_pretrain.pth"
    torch.save(state, path)
    return path, network


def test_a_published_dinov2_is_recognised_with_its_registers(dinov2: tuple[Path, AnyViT]) -> None:
    path, network = dinov2
    loaded = load_backbone(path)
    assert loaded.backbone.shape.arch == "vit_small_patch14_reg4_dinov2" and loaded.backbone.shape.image_size == 56
    images = torch.randn(1, 3, 56, 70)
    with torch.no_grad():
        assert_close(loaded.backbone(images), network(images), rtol=1e-5, atol=1e-5)


def test_timms_files_of_other_vits_need_their_name_or_a_config_beside_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=3, qk_norm=True)
    strange = tmp_path / "strange.safetensors"
    save_file(model.state_dict(), strange)
    with pytest.raises(UserError, match=r"--ckpt timm:NAME@.*strange\.safetensors"):
        load_backbone(strange)
    model = timm.create_model("deit3_small_patch16_224", num_classes=3)
    file = tmp_path / "deit3.safetensors"
    save_file(model.state_dict(), file)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.eval().forward_features(images)
        assert_close(load_backbone(Path(f"timm:deit3_small_patch16_224@{file}")).backbone(images), expected, rtol=1e-4, atol=1e-5)
        (tmp_path / "config.json").write_text('{"architecture": "deit3_small_patch16_224"}')
        assert_close(load_backbone(file).backbone(images), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="timm has no model vit_smal_patch16_224"):
        load_backbone(Path(f"timm:vit_smal_patch16_224@{file}"))
    with pytest.raises(UserError, match="does not fit"):
        load_backbone(Path(f"timm:vit_small_patch14_reg4_dinov2@{file}"))


def test_timms_own_weights_are_asked_for_and_their_absence_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkError, match=r"could not be fetched .*timm:vit_small_patch16_224\.dino@FILE"):
        load_backbone(Path("timm:vit_small_patch16_224.dino"))  # no test asks the network for anything
    real = timm.create_model

    def offline(name: str, pretrained: bool = False, **settings: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return real(name, **settings)

    monkeypatch.setattr("checkpoints.resolve.timm.create_model", offline)
    loaded = load_backbone(Path("timm:vit_tiny_patch16_224"))
    half: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # of timm's tag; 46c01a2 took ImageNet's for plain ViTs
    assert loaded.backbone.shape == shape_of("vit_tiny", 16, 224)._replace(**half) and loaded.contents.lacks()


def spoiled(root: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no checkpoints, and what is said of each."""
    whole = backbone_file(original_names(VIT), root / "whole.pth").read_bytes()
    save_file({"a": torch.zeros(3)}, root / "one.safetensors")
    contents = {
        "half.pth": (whole[: len(whole) // 2], "it is damaged or cut off"),
        "page.pth": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "is a web page, not a checkpoint"),
        "upper.pth": (b"\n  <HTML><title>Sign in</title>", "is a web page, not a checkpoint"),
        "text.pth": (b"epoch 3, loss 4.2\n" * 10, "is a text file, not a checkpoint"),
        "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        "empty.pth": (b"", "is empty"),
        "empty.safetensors": (b"", "is empty"),
        "plain.pkl": (pickle.dumps(Bomb()), "a pickle that torch has not written"),
        "plain2.pkl": (pickle.dumps(Bomb(), protocol=2), "holds code (posix.system)"),
        "half.safetensors": ((root / "one.safetensors").read_bytes()[:30], "damaged or cut off"),
        "page.safetensors": (b"<html></html>", "is a web page"),
    }
    found = {}
    for name, (content, words) in contents.items():
        (root / name).write_bytes(content)
        found[name] = (root / name, words)
    torch.save({"state_dict": {"a": Bomb()}}, root / "bomb.pth")
    torch.save({"fc.weight": torch.zeros(2, 2), "conv1.weight": torch.zeros(2, 2)}, root / "resnet.pth")
    torch.save({"student": {}, "teacher": {}, "loss": 1}, root / "method.pth")
    vit = original_names(VIT)
    inside = {f"backbone.{name}": weight for name, weight in vit.items()}
    torch.save({"state_dict": inside | {"rpn_head.rpn_conv.weight": torch.zeros(1)}}, root / "detector.pth")
    torch.save({"state_dict": inside | {"decode_head.conv_seg.weight": torch.zeros(1)}}, root / "segmenter.pth")
    torch.save({"state_dict": vit | {"norm.bias": torch.full((64,), float("nan"))}}, root / "nan.pth")
    torch.save({"a": vit, "b": vit}, root / "two.pth")
    found["bomb.pth"] = (root / "bomb.pth", "holds code")
    found["resnet.pth"] = (
        root / "resnet.pth",
        "no backbone that is known here: its weights begin with fc.weight, conv1.weight (2 in all)",
    )
    found["method.pth"] = (root / "method.pth", "it has no weights at all")
    found["detector.pth"] = (
        root / "detector.pth",
        "is a detector (rpn_head), trained on from a backbone: give the backbone's own",
    )
    found["segmenter.pth"] = (root / "segmenter.pth", "is a segmentation network (decode_head), trained on from a backbone")
    found["nan.pth"] = (root / "nan.pth", "norm.bias is a tensor with NaN or infinite numbers")
    found["two.pth"] = (root / "two.pth", "holds several backbones, and none is named a teacher beside one other: a., b.")
    found["one"] = (root / "one.safetensors", "no backbone that is known here: its weights begin with a (1 in all)")
    found["nowhere"] = (root / "nowhere.pth", "there is no checkpoint at")
    return found


def test_everything_else_is_one_clear_sentence_and_no_code_ever_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, words in spoiled(tmp_path).values():
        for command, flags in ((inspect.main, [str(path)]), (knn.main, ["--ckpt", str(path)])):
            assert run_command(command, flags) == WRONG_COMMAND, path
            said = capsys.readouterr().err
            assert words in said and said.count("\n") == 1 and "Traceback" not in said, said
    assert not (tmp_path / "exploded").exists()


def test_inspect_says_what_a_file_is(tmp_path: Path, parity_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = parity_dir / "checkpoint_published_layout.pth"
    assert run_command(inspect.main, [str(file)]) == DONE
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "a full checkpoint of the original iBOT",
        "student, teacher, heads, centres, optimizer",
        store.sha256(file)[:20],
    ):
        assert words in said, words
    loaded = load_backbone(file)
    assert f"backbone {sum(w.numel() for w in loaded.backbone.state_dict().values()):,}" in said
    assert run_command(inspect.main, [str(backbone_file(original_names(SWIN), tmp_path / "swin.pth"))]) == DONE
    said = " ".join(capsys.readouterr().out.split())
    assert "swin, patch 4, window 3, 64 wide, 6 blocks" in said and "lacks │ student, teacher, heads, centres, optimizer" in said
    assert run_command(inspect.main, ["--zoo"]) == DONE
    assert "ibot_vits16" in capsys.readouterr().out


def test_the_zoo_is_complete_and_addresses_are_plain() -> None:
    names = zoo.names()
    assert {"ibot_vits16", "ibot_vitb16", "ibot_vitl16", "ibot_swint7", "ibot_swint14", "ibot_vitb16_in22k"} <= names.keys()
    for name, entry in names.items():
        if "as" in entry:
            assert entry.keys() == {"as", "method", "data", "published"} and re.fullmatch(r"[a-z0-9_]+", name)
            continue
        assert re.fullmatch(r"https://.*\.pth(\.tar)?", entry["address"]), name
        assert zoo.kept(name).name == name + (".pth.tar" if entry["method"] == "MoCo v3" else ".pth")
        shape_of(entry["arch"], entry["patch_size"], 224, window=entry.get("window", 7))


def test_names_that_stand_for_timms_and_the_hubs_are_opened_as_these(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """46c01a2 knew iBOT, DINO and DINOv2 by name. Tags are timm's own, so that means, deviations and activations are."""
    monkeypatch.chdir(tmp_path)

    def opened(said: str) -> None:
        raise UserError(f"opened {said}")

    for scheme in ("timm:", "hf:"):
        monkeypatch.setitem(open_kinds.SCHEMES, scheme, opened)
    others = {name: entry["as"] for name, entry in zoo.names().items() if "as" in entry}
    assert {entry["method"] for entry in zoo.names().values()} >= {"DINOv3", "MAE", "MoCo v3", "CLIP", "SigLIP", "iBOT"}
    for name, stands_for in others.items():
        with pytest.raises(UserError, match=f"^opened {stands_for}$"):
            open_kinds.open_backbone(Path(name))
        assert stands_for.startswith("hf:") or resolve.pretrained_config(stands_for.removeprefix("timm:"))
    (tmp_path / "clip_vitb16").mkdir()  # what is there is meant first
    assert zoo.meant(Path("clip_vitb16")) == Path("clip_vitb16")


def test_every_name_of_the_zoo_is_recognised_as_what_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A right file must not be refused when it is fetched; without memory. The largest differ by width and depth alone."""
    kinds = {
        (entry["arch"], entry["patch_size"], entry.get("window")): entry for entry in zoo.names().values() if "as" not in entry
    }
    kinds = {kind: entry for kind, entry in kinds.items() if "large" not in kind[0] and "giant" not in kind[0]}
    monkeypatch.setattr(checked, "tensor", lambda value, where, shape=None: value)  # which would look at their numbers
    for (arch, patch_size, window), entry in kinds.items():
        with torch.device("meta"):
            shape = shape_of(arch, patch_size, 224, window=window or 7)
            own = moved(shape).state_dict()
            weights = {f"backbone.{name.removeprefix('model.')}": weight for name, weight in own.items()}
            contents = published.Contents("", {"teacher": weights, "student": weights}, arch=arch if shape.kind == "timm" else "")
            monkeypatch.setattr(published, "read", lambda path, contents=contents: contents)
            said = backbone._as_listed(entry, Path("file"))
            assert said.endswith(f"{arch} of patch size {patch_size}")
            with pytest.raises(UserError, match=f"holds a {arch} of patch size {patch_size}, not a vit_base of 7"):
                backbone._as_listed(entry | {"arch": "vit_base", "patch_size": 7}, Path("file"))


class Server(http.server.ThreadingHTTPServer):
    """Gives one file, breaks off the first answer, and writes down what it was asked for."""

    content: bytes
    asked: list[str]
    breaks: int


ETAG = '"one"'


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.asked.append(wanted)
        if self.path != "/file.pth":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        assert not start or self.headers["If-Range"] == ETAG
        body, size = self.server.content[start:], len(self.server.content)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", ETAG)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        if self.server.breaks > 0:
            self.server.breaks -= 1
            body = body[: len(body) // 3]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.content = backbone_file(original_names(VIT), tmp_path / "served.pth").read_bytes()
    running.asked, running.breaks = [], 0
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{running.server_address[1]}"
    monkeypatch.setenv("IBOT_CACHE", str(tmp_path / "cache"))
    entry = {"arch": "vit", "patch_size": VIT.patch_size, "holds": "the teacher's backbone"}
    listed = {"little": {"address": f"{address}/file.pth", **entry}, "little_gone": {"address": f"{address}/gone.pth", **entry}}
    monkeypatch.setattr(zoo, "names", lambda: listed)
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    yield running
    running.shutdown()
    running.server_close()


def test_a_name_of_the_zoo_is_fetched_once_and_a_broken_download_goes_on(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.breaks = 2
    assert run_command(inspect.main, ["little"]) == FAILED
    said = capsys.readouterr().err
    part, size = tmp_path / "cache" / "little.pth.part", len(server.content)
    first = size // 3
    second = first + (size - first) // 3
    assert "could not be fetched (only" in said and f"stays at {part}" in said and part.stat().st_size == second
    loaded = load_backbone(Path("little"))
    assert server.asked == ["", f"bytes={first}-", f"bytes={second}-"]
    assert loaded.path == tmp_path / "cache" / "little.pth" and loaded.path.read_bytes() == server.content
    digest = store.sha256(loaded.path)
    assert f"vit of patch size {VIT.patch_size}; sha256 {digest} (none is known of it" in capsys.readouterr().err
    assert sorted(file.name for file in loaded.path.parent.iterdir()) == ["little.pth", "little.sha256"]
    assert (tmp_path / "cache" / "little.sha256").read_text() == f"{digest}  little.pth\n"
    assert load_backbone(Path("little")).path == loaded.path and len(server.asked) == 3
    assert capsys.readouterr().err == ""
    loaded.path.write_bytes(server.content[:500] + b"changed" + server.content[507:])
    with pytest.raises(UserError, match="its checksum differs"):
        load_backbone(Path("little"))


def test_a_file_put_into_the_cache_by_hand_is_looked_into_and_kept(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cache" / "little.pth"
    file.parent.mkdir()
    file.write_bytes(server.content)
    assert run_command(inspect.main, ["little"]) == DONE
    assert "its first fetch alone (no digest is known)" in capsys.readouterr().out
    assert server.asked == [] and file.with_suffix(".sha256").is_file()
    backbone_file(original_names(VIT._replace(patch_size=VIT.patch_size * 2, image_size=VIT.image_size * 2)), file)
    file.with_suffix(".sha256").write_text(store.sha256(file) + "\n")  # as it was written before anything was looked into
    with pytest.raises(UserError, match=f"of patch size {VIT.patch_size * 2}, not a vit of {VIT.patch_size}"):
        load_backbone(Path("little"))


def test_a_missing_address_is_said(server: Server) -> None:
    with pytest.raises(WorkError, match=r"gone\.pth could not be fetched \(Not Found\): try again"):
        load_backbone(Path("little_gone"))
    assert server.asked == [""]
    with pytest.raises(UserError, match="the zoo has little, little_gone"):
        load_backbone(Path("little_typo"))
