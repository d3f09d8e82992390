"""Tokenizers: codes against slow formulas, files that come back, files that are refused, commands."""

import http.server
import os
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from checkpoints import store
from checkpoints.architecture import MEAN, STD
from checkpoints.cli import UserError, WorkError, run_command
from pretrain.batches import augment
from pretrain.images.open import open_images
from pretrain.tokenizers import __main__ as tokenizers
from pretrain.tokenizers import dalle, dalle_pickle, kmeans, kmeans_fit
from pretrain.tokenizers import open as tokenizer_open
from pretrain.tokenizers.base import Colour, Tokenizer
from tests.support import networks

GREY = ((0.0,) * 3, (1.0,) * 3)
"""A mean and deviation that change nothing: crops are pixels."""


def crops(count: int = 3, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def normalised(pixels: Tensor) -> Tensor:
    return augment.color_ops.normalise(pixels, MEAN, STD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small pictures, and a file that is none."""
    path, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(12):
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 36), Image.Resampling.BILINEAR).save(path / f"{number}.png")
    (path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return path


# DALL-E


def encoder(seed: int = 0) -> dalle.Encoder:
    made = dalle.Encoder(channels=3, width=8, depth=2, vocabulary=16)
    generator = torch.Generator().manual_seed(seed)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.3, generator=generator)
    return made


def plain_logits(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published network, layer by layer."""

    def convolve(x: Tensor, name: str) -> Tensor:
        w = weights[f"{name}.w"]
        return F.conv2d(x, w, weights[f"{name}.b"], padding=(w.shape[-1] - 1) // 2)

    x = convolve(x, "blocks.input")
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            name = f"blocks.group_{group}.block_{block}"
            y = x
            for layer in (1, 2, 3, 4):
                y = convolve(y.clamp(min=0), f"{name}.res_path.conv_{layer}")
            x = (convolve(x, f"{name}.id_path") if f"{name}.id_path.w" in weights else x) + y / 64
        if group < 4:
            x = F.max_pool2d(x, kernel_size=2)
    return convolve(x.clamp(min=0), "blocks.output.conv")


def test_dalles_codes_are_the_highest_logits_of_the_published_network() -> None:
    made, pixels = encoder(), crops()
    logits = plain_logits(made.state_dict(), 0.8 * pixels + 0.1)
    tokenizer = dalle.Dalle(made, MEAN, STD)
    assert_close(made(0.8 * pixels + 0.1), logits)
    codes = tokenizer(normalised(pixels), (4, 4))
    assert torch.equal(codes, logits.argmax(dim=1)) and len(codes.unique()) > 2
    assert tokenizer.vocabulary == 16 and not codes.requires_grad


def test_dalle_sees_eight_pixels_a_patch_resized_as_pillow_does() -> None:
    pixels, tokenizer = crops(1, 48), dalle.Dalle(encoder(), *GREY)
    planes = [Image.fromarray(plane.numpy()).resize((24, 32), Image.Resampling.BICUBIC) for plane in pixels[0]]
    small = torch.stack([torch.from_numpy(np.array(plane)) for plane in planes])[None].clamp(0, 1)
    expected = plain_logits(tokenizer.encoder.state_dict(), 0.8 * small + 0.1).argmax(dim=1)
    assert torch.equal(tokenizer(pixels, (4, 3)), expected)


def test_the_published_sizes_are_those_of_dall_e() -> None:
    with torch.device("meta"):
        made = dalle.Encoder(channels=3, width=256, depth=2, vocabulary=8192)
    blocks: Any = made.blocks
    assert blocks["group_4"]["block_1"].res_path["conv_1"].w.shape == (512, 1024, 3, 3)
    assert blocks["output"]["conv"].w.shape == (8192, 2048, 1, 1)
    assert sum(weight.numel() for weight in made.parameters()) == 53_786_240


class Conv2d(nn.Module):
    """Named as the published ones are."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.n_in, self.device, self.use_float16 = w.shape[1], torch.device("cpu"), True
        self.w, self.b = nn.Parameter(w, requires_grad=False), nn.Parameter(b)


class EncoderBlock(nn.Module):
    pass


class Encoder(nn.Module):
    pass


@pytest.fixture
def published() -> Iterator[None]:
    """The published modules can be imported while a file is pickled."""
    homes = {"dall_e": (), "dall_e.utils": (Conv2d,), "dall_e.encoder": (Encoder, EncoderBlock)}
    own = Encoder.__module__
    for name, classes in homes.items():
        sys.modules[name] = ModuleType(name)
        for one in classes:
            one.__module__ = name
            setattr(sys.modules[name], one.__name__, one)
    yield
    for name, classes in homes.items():
        sys.modules.pop(name, None)
        for one in classes:
            one.__module__ = own


def look_alike(weights: dict[str, Tensor]) -> Encoder:
    """The module tree of the published file."""

    def convolution(name: str) -> Conv2d:
        return Conv2d(weights[f"{name}.w"], weights[f"{name}.b"])

    def block(name: str) -> EncoderBlock:
        made = EncoderBlock()
        made.id_path = convolution(f"{name}.id_path") if f"{name}.id_path.w" in weights else nn.Identity()
        path: OrderedDict[str, nn.Module] = OrderedDict()
        for layer in (1, 2, 3, 4):
            path[f"relu_{layer}"] = nn.ReLU()
            path[f"conv_{layer}"] = convolution(f"{name}.res_path.conv_{layer}")
        made.res_path = nn.Sequential(path)
        return made

    parts: OrderedDict[str, nn.Module] = OrderedDict(input=convolution("blocks.input"))
    for group in (1, 2, 3, 4):
        blocks = OrderedDict((f"block_{one}", block(f"blocks.group_{group}.block_{one}")) for one in (1, 2))
        pool = OrderedDict(pool=nn.MaxPool2d(kernel_size=2)) if group < 4 else OrderedDict()
        parts[f"group_{group}"] = nn.Sequential(OrderedDict(**blocks, **pool))
    parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=convolution("blocks.output.conv")))
    whole = Encoder()
    whole.blocks = nn.Sequential(parts)
    return whole


def pickled(path: Path, content: Any, *, zipped: bool = True) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files hold the classes' source, which these have not
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.usefixtures("published")
def test_the_published_file_is_read_without_its_classes(tmp_path: Path, zipped: bool) -> None:
    weights = encoder().state_dict()
    path = pickled(tmp_path / "encoder.pkl", look_alike(weights), zipped=zipped)
    for name in ("dall_e", "dall_e.utils", "dall_e.encoder"):
        del sys.modules[name]
    found = dalle_pickle.read(path)
    assert set(found) == set(weights) and all(torch.equal(found[name], weights[name]) for name in weights)
    tokenizer = tokenizer_open.open_tokenizer(f"dalle:{path}", MEAN, STD)
    assert torch.equal(tokenizer(crops(), (4, 4)), dalle.Dalle(encoder(), MEAN, STD)(crops(), (4, 4)))


class Bomb(nn.Module):
    """A module whose file makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.usefixtures("published")
def test_code_in_a_file_is_refused_by_name_and_never_run(tmp_path: Path, zipped: bool) -> None:
    content: Any = look_alike(encoder().state_dict())
    content.blocks.add_module("bomb", Bomb(str(tmp_path / "harm")))
    path = pickled(tmp_path / "encoder.pkl", content, zipped=zipped)
    with pytest.raises(UserError, match=r"mkdir"):
        dalle_pickle.read(path)
    content.blocks.add_module("bomb", nn.Dropout())  # harmless, and not in the published file
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.dropout\.Dropout"):
        dalle_pickle.read(pickled(path, content, zipped=zipped))
    assert not (tmp_path / "harm").exists()


@pytest.mark.usefixtures("published")
def test_convert_writes_a_file_with_the_same_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = pickled(tmp_path / "encoder.pkl", look_alike(encoder().state_dict())), tmp_path / "encoder.safetensors"
    assert run_command(tokenizers.main, ["convert", str(path), "--out", str(out)]) == 0
    assert f"{out}: 16 codes" in capsys.readouterr().out
    one, other = (tokenizer_open.open_tokenizer(f"dalle:{file}", MEAN, STD)(crops(), (4, 4)) for file in (path, out))
    assert torch.equal(one, other)
    assert tokenizer_open.digest(f"dalle:{out}") == store.sha256(out) != tokenizer_open.digest(f"dalle:{path}")


@pytest.mark.usefixtures("published")
def test_the_published_file_is_fetched_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IBOT_CACHE", str(tmp_path / "cache"))
    served = tmp_path / "served"
    served.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(dalle_pickle, "ADDRESS", f"http://127.0.0.1:{server.server_port}/encoder.pkl")
        dalle_pickle.save(served / "encoder.pkl", encoder().state_dict(), Path(__file__))
        with pytest.raises(WorkError, match=r"not kept: dalle_encoder\.pkl is not a readable checkpoint"):  # it is of safetensors
            tokenizer_open.open_tokenizer("dalle", MEAN, STD)
        assert not list((tmp_path / "cache").iterdir())
        pickled(served / "encoder.pkl", look_alike(encoder().state_dict()))
        tokenizer = tokenizer_open.open_tokenizer("dalle", MEAN, STD)
        server.shutdown()
    assert torch.equal(tokenizer(crops(), (4, 4)), dalle.Dalle(encoder(), MEAN, STD)(crops(), (4, 4)))
    assert tokenizer_open.digest("dalle") == store.sha256(served / "encoder.pkl")
    (tmp_path / "cache" / "dalle_encoder.pkl").write_bytes(b"something else")
    with pytest.raises(UserError, match="no longer what was fetched"):
        tokenizer_open.digest("dalle")


# colour


def test_colour_codes_are_three_bits_of_each_mean() -> None:
    pixels = crops(2, 24)
    pixels[0, :, :8, :8], pixels[1, :, 8:, 8:] = 1.0, 0.0
    tokenizer = tokenizer_open.open_tokenizer("colour", MEAN, STD)
    codes, values = tokenizer(normalised(pixels), (3, 3)), pixels.numpy()
    assert tokenizer.vocabulary == 512 and codes[0, 0, 0] == 511 and codes[1, 2, 2] == 0
    for image, row, column in np.ndindex(2, 3, 3):
        patch = values[image, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        red, green, blue = (min(int(level), 7) for level in np.floor(patch.mean(axis=(1, 2)) * 8 + 1e-5))
        assert codes[image, row, column] == 64 * red + 8 * green + blue
    assert tokenizer_open.digest("colour") == "colour"


def test_codes_are_the_same_under_autocast_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = dalle.Dalle(encoder(), MEAN, STD)
    whole = tokenizer(crops(5), (4, 4))
    monkeypatch.setattr("pretrain.tokenizers.base.PIECE", 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer(crops(5), (4, 4)), whole)


# k-means


def brute(points: np.ndarray, centroids: np.ndarray) -> list[int]:
    return [int(np.argmin([((point - centroid) ** 2).sum() for centroid in centroids])) for point in points]


def test_patches_are_the_squares_of_a_crop_row_by_row() -> None:
    pixels = crops(2, 24)
    found = kmeans.patches(pixels, 8)
    assert torch.equal(found[1, 5], pixels[1, :, 8:16, 16:24].flatten())


def about(kind: str, codes: int, shape: dict[str, Any] | None = None) -> kmeans.About:
    return kmeans.About(kind, 8, codes, (0.5,) * 3, (0.25,) * 3, shape, {})


def test_codes_of_raw_patches_are_their_nearest_centroids(tmp_path: Path) -> None:
    pixels, path = crops(2, 24), tmp_path / "patches.safetensors"
    centroids = torch.randn(7, 192, generator=torch.Generator().manual_seed(1))
    kmeans.save(path, about("pixels", 7), centroids, None)
    tokenizer = tokenizer_open.open_tokenizer(f"kmeans:{path}", MEAN, STD)
    codes = tokenizer(normalised(pixels), (3, 3))
    points = kmeans.patches((pixels - 0.5) / 0.25, 8).flatten(0, 1).double().numpy()
    assert codes.flatten().tolist() == brute(points, centroids.double().numpy()) and len(codes.unique()) > 1
    assert tokenizer.vocabulary == 7


@pytest.mark.parametrize("side", [32, 48])
def test_codes_of_tokens_are_those_of_the_backbone_in_the_file(tmp_path: Path, side: int) -> None:
    backbone, path, grid = networks.backbone(), tmp_path / "tokens.safetensors", side // 8
    other = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(2))
    centroids = kmeans.tokens(backbone, normalised(other))[0, :9]
    kmeans.save(path, about("tokens", 9, networks.FAN_IN._asdict())._replace(mean=MEAN, std=STD), centroids, backbone)
    tokenizer, pixels = tokenizer_open.open_tokenizer(f"kmeans:{path}", *GREY), crops(2, side)
    codes = tokenizer(pixels, (grid, grid))
    points = backbone(normalised(pixels))[:, 1:]
    points = (points / points.norm(dim=-1, keepdim=True)).flatten(0, 1).double().numpy()
    assert codes.flatten().tolist() == brute(points, centroids.double().numpy())
    assert not any(weight.requires_grad for weight in tokenizer.parameters())


def test_both_commands_make_files_that_open_the_same_for_a_seed(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = networks.write(tmp_path / "backbone.safetensors")
    kinds = {
        "kmeans": ["--ckpt", str(checkpoint), "--images", "13"],
        "patches": ["--patch-size", "8", "--size", "32", "--share", "1"],
    }
    for kind, flags in kinds.items():
        made: list[Any] = []
        for name, seed in (("one", 0), ("two", 0), ("three", 1)):
            out = tmp_path / f"{kind}_{name}.safetensors"
            command = [kind, *flags, "--data", str(folder), "--codes", "10", "--seed", str(seed), "--out", str(out)]
            assert run_command(tokenizers.main, command) == 0
            printed = capsys.readouterr().out
            assert f"{out}: 10 codes from 192 patches of 12 images: 10 codes used" in printed and f"kmeans:{out}" in printed
            made.append(tokenizer_open.open_tokenizer(f"kmeans:{out}", MEAN, STD))
        assert all(tokenizer.vocabulary == 10 for tokenizer in made)
        assert torch.equal(made[0].centroids, made[1].centroids) and not torch.equal(made[0].centroids, made[2].centroids)
        codes = made[0](normalised(crops(2, 48)), (6, 6))
        assert codes.shape == (2, 6, 6) and codes.min() >= 0 and codes.max() < 10


def test_a_swin_gives_codes_on_its_last_grid_and_other_channels_have_their_own_spread(tmp_path: Path, folder: Path) -> None:
    checkpoint, out = networks.write(tmp_path / "swin.safetensors", networks.TWO_STAGES), tmp_path / "tokens.safetensors"
    command = ["kmeans", "--ckpt", str(checkpoint), "--data", str(folder), "--codes", "6", "--out", str(out)]
    assert run_command(tokenizers.main, command) == 0
    assert tokenizer_open.open_tokenizer(f"kmeans:{out}", MEAN, STD)(crops(), (4, 4)).shape == (3, 4, 4)
    grey = networks.write(tmp_path / "grey.safetensors", networks.FAN_IN._replace(channels=1, mean=(0.4,), std=(0.2,)))
    assert run_command(tokenizers.main, [*command, "--ckpt", str(grey)]) == 0
    assert tokenizer_open.open_tokenizer(f"kmeans:{out}", (0.5,), (0.5,))(crops()[:, :1], (4, 4)).shape == (3, 4, 4)
    assert tokenizer_open.open_tokenizer("colour", (0.5,), (0.5,)).vocabulary == 8


def test_centroids_are_means_of_their_patches(folder: Path) -> None:
    student_forward = kmeans_fit.Look(lambda x: kmeans.patches(x, 8), 32, 4, 192, MEAN, STD, torch.device("cpu"))
    points = kmeans_fit.gather(open_images(str(folder)), student_forward, 5, 0)
    assert points.values.shape == (192, 192) and np.bincount(points.image).tolist()[:3] == [16, 16, 16]
    found = kmeans_fit.cluster(points, 5, 0, torch.device("cpu"))
    assert found.nearest.tolist() == brute(points.values, found.centroids)
    for code in range(5):
        assert_close(found.centroids[code], points.values[found.nearest == code].mean(axis=0), rtol=1e-3, atol=1e-3)


def test_no_more_patches_are_kept_than_the_codes_can_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans_fit, "POINTS", 8)
    student_forward = kmeans_fit.Look(lambda x: kmeans.patches(x, 8), 32, 4, 192, MEAN, STD, torch.device("cpu"))
    points = kmeans_fit.gather(open_images(str(folder)), student_forward, 5, 0)
    assert len(points.values) == 12 * 3  # 13 files, 40 patches wanted: three of each that can be read
    assert not np.array_equal(points.values, kmeans_fit.gather(open_images(str(folder)), student_forward, 5, 1).values)


# what all share


def all_of_them(tmp_path: Path) -> list[Tokenizer]:
    centroids = torch.randn(5, 64)
    kmeans.save(tmp_path / "t.safetensors", about("tokens", 5, networks.FAN_IN._asdict()), centroids, networks.backbone())
    kmeans.save(tmp_path / "p.safetensors", about("pixels", 5), torch.randn(5, 192), None)
    files = [tokenizer_open.open_tokenizer(f"kmeans:{tmp_path}/{name}.safetensors", MEAN, STD) for name in "tp"]
    return [*files, Colour(MEAN, STD), dalle.Dalle(encoder(), MEAN, STD)]


def test_tokenizers_ask_the_device_for_nothing(tmp_path: Path) -> None:
    """On tensors without content, where any question for a number is an error."""
    for tokenizer in all_of_them(tmp_path):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            codes = tokenizer(mode.from_tensor(crops()), (4, 4))
        assert codes.shape == (3, 4, 4) and codes.dtype == torch.int64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tokenizers_on_a_gpu_do_not_wait_for_it_and_agree_with_the_cpu(tmp_path: Path) -> None:
    for tokenizer in all_of_them(tmp_path):
        expected, pixels = tokenizer(crops(), (4, 4)), crops().cuda()
        tokenizer.cuda()(pixels, (4, 4))  # kernels are there by now
        torch.cuda.set_sync_debug_mode("error")
        try:
            codes = tokenizer(pixels, (4, 4))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert (codes.cpu() == expected).float().mean() > 0.9  # sums in another order may change a close call


def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path) -> None:
    kmeans.save(tmp_path / "k.safetensors", about("pixels", 5), torch.randn(5, 192), None)
    dalle_pickle.save(tmp_path / "d.safetensors", encoder().state_dict(), Path(__file__))
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pkl")
    store.save_backbone(tmp_path / "b.safetensors", {"w": torch.zeros(2)}, {"shape": {}})
    cases = {
        "vqgan": "there is no tokenizer vqgan: choose from dalle, dalle:FILE, kmeans:FILE, colour",
        "": r"there is no tokenizer \(nothing\)",
        "colour:x": "there is no tokenizer colour:x",
        "kmeans": "kmeans needs a file: choose from",
        "dalle:": "dalle: needs a file",
        f"kmeans:{tmp_path}/none.safetensors": "there is no file",
        f"kmeans:{tmp_path}/d.safetensors": "holds no k-means codes: open it as dalle:",
        f"kmeans:{tmp_path}/b.safetensors": "holds no k-means codes: make one",
        f"dalle:{tmp_path}/k.safetensors": "is no encoder of DALL-E: open it as kmeans:",
        f"dalle:{tmp_path}/other.pkl": "holds a dict, not the published encoder",
    }
    for spec, message in cases.items():
        with pytest.raises(UserError, match=message):
            tokenizer_open.open_tokenizer(spec, MEAN, STD)
    for spec, channels in ((f"kmeans:{tmp_path}/k.safetensors", 1), (f"dalle:{tmp_path}/d.safetensors", 1), ("colour", 5)):
        with pytest.raises(UserError, match="channels"):
            tokenizer_open.open_tokenizer(spec, (0.5,) * channels, (0.5,) * channels)
    with pytest.raises(UserError, match=r"patches of 8 x 8 pixels.*crops of 32 x 32.*2 x 2.*--patch-size"):
        tokenizer_open.open_tokenizer(f"kmeans:{tmp_path}/k.safetensors", MEAN, STD)(crops(), (2, 2))
    with pytest.raises(UserError, match="do not divide into a grid of 5 x 5"):
        Colour(MEAN, STD)(crops(), (5, 5))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    weights = encoder().state_dict()
    del weights["blocks.group_2.block_1.id_path.w"]
    dalle_pickle.save(tmp_path / "d.safetensors", weights, Path(__file__))
    with pytest.raises(UserError, match=r"it lacks blocks\.group_2\.block_1\.id_path\.w"):
        tokenizer_open.open_tokenizer(f"dalle:{tmp_path}/d.safetensors", MEAN, STD)


def test_commands_refuse_before_they_work(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(folder), "--out", str(tmp_path / "out.safetensors")]
    cases = {
        "needs at least as many patches": [
            "patches",
            *data,
            "--size",
            "32",
            "--patch-size",
            "8",
            "--share",
            "1",
            "--codes",
            "209",
        ],
        "--share 0.0 must lie above 0": ["patches", *data, "--share", "0"],
        "--size 30 is not divisible by --patch-size 8": ["patches", *data, "--size", "30", "--patch-size", "8"],
        "--codes must be 2 or more": ["kmeans", *data, "--codes", "1"],
        "there is no checkpoint at": ["kmeans", *data, "--ckpt", str(tmp_path / "none.pt")],
        "there is no file": ["convert", str(tmp_path / "none.pkl")],
        "say what to make": ["make"],
    }
    for message, command in cases.items():
        assert run_command(tokenizers.main, command) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tokenizers.main, ["--help"]) == 0
    assert "convert,kmeans,patches" in capsys.readouterr().out
    for kind in tokenizers.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            tokenizers.main([kind, "--help"])
        assert stop.value.code == 0 and "--out" in capsys.readouterr().out
