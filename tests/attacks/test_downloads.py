"""Servers, commands and neighbours that would have us keep a file that is not the published one."""

import http.client
import http.server
import io
import json
import os
import resource
import shutil
import subprocess
import tarfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints import download, store, zoo
from checkpoints.architecture import Architecture
from checkpoints.cli import UserError, WorkError
from pretrain.images import hubs
from pretrain.images.open import open_images
from pretrain.models.backbone import load_backbone, make
from tests.support.commands import program
from tests.support.networks import VIT

OTHER = VIT._replace(patch_size=16)
LISTED = {"arch": "vit", "patch_size": 8, "holds": "the teacher's backbone"}


class Answer(http.server.BaseHTTPRequestHandler):
    """What the server's `script` says: one function a request, the last for all that follow."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        with self.server.turn:
            place = min(len(self.server.asked), len(self.server.script) - 1)
            self.server.asked.append(self.headers.get("Range", ""))
        self.close_connection = True
        self.server.script[place](self)

    def send(self, status: int, body: bytes, *, cut: int | None = None, **headers: Any) -> None:
        """A whole answer, or its first `cut` bytes."""
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *_: object) -> None:
        pass


Step = Callable[[Answer], None]


class Server(http.server.ThreadingHTTPServer):
    script: list[Step]
    asked: list[str]
    turn: threading.Lock

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("IBOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WDS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    with Server(("127.0.0.1", 0), Answer) as running:
        running.script, running.asked, running.turn = [], [], threading.Lock()
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(zoo, "names", lambda: {"little": {"address": running.address, **LISTED}})
        monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
        yield running
        running.shutdown()


def checkpoint(seed: int, shape: Architecture = VIT) -> bytes:
    torch.manual_seed(seed)
    file = io.BytesIO()
    torch.save(make(shape, maskable=False).state_dict(), file)
    return file.getvalue()


OLD, NEW = checkpoint(0), checkpoint(1)
HALF = len(OLD) // 2


def whole(body: bytes, **headers: Any) -> Step:
    return lambda answer: answer.send(200, body, **headers)


def broken(body: bytes, **headers: Any) -> Step:
    return lambda answer: answer.send(200, body, cut=HALF, **headers)


def rest(body: bytes, start: int | None = None, **headers: Any) -> Step:
    """The rest of a body that was asked for by range, whatever has changed; from another place if `start` is given."""

    def step(answer: Answer) -> None:
        wanted = answer.headers.get("Range")
        if not wanted:
            return answer.send(200, body, **headers)
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if start is None else start
        size: dict[str, Any] = {"Content_Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"}
        answer.send(206, body[begin:], **{**size, **headers})

    return step


def honest(body: bytes, etag: str) -> Step:
    """The rest if it is still the same file, else all of it (RFC 9110, 13.1.5)."""

    def step(answer: Answer) -> None:
        same = answer.headers.get("If-Range", etag) == etag
        (rest if same else whole)(body, ETag=etag)(answer)

    return step


def attempts(tries: int = 3) -> Path | None:
    """A user who starts again when it fails."""
    for _ in range(tries):
        try:
            return load_backbone(Path("little")).path
        except (UserError, WorkError):
            continue
    return None


CHANGES: dict[str, list[Step]] = {
    "the server says so": [broken(OLD, ETag='"1"'), honest(NEW, '"2"')],
    "the server overlooks our condition": [broken(OLD, ETag='"1"'), rest(NEW, ETag='"2"')],
    "the rest has no tag": [broken(OLD, ETag='"1"'), rest(NEW)],
    "there are no tags": [broken(OLD), rest(NEW)],
    "tags are weak": [broken(OLD, ETag='W/"1"'), rest(NEW, ETag='W/"1"')],
    "another place": [broken(NEW, ETag='"2"'), rest(NEW, start=HALF - 1000, ETag='"2"'), honest(NEW, '"2"')],
    "no place": [broken(NEW, ETag='"2"'), rest(NEW, ETag='"2"', Content_Range=""), honest(NEW, '"2"')],
    "another length": [
        broken(NEW, ETag='"2"'),
        rest(NEW + b"more", ETag='"2"'),
        honest(NEW, '"2"'),
    ],
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_changes_between_two_parts_is_never_a_mixture(server: Server, how: str) -> None:
    """46c01a2 asked for the rest without a condition, did not look at what it got, and sealed the mixture."""
    assert len(OLD) == len(NEW)
    server.script = CHANGES[how]
    path = attempts()
    assert path is not None and path.read_bytes() == NEW


def test_the_rest_of_the_same_file_is_continued(server: Server) -> None:
    """So that the tests above are not passed by never continuing. 46c01a2 sent no condition with its request."""
    conditions = []

    def noted(answer: Answer) -> None:
        conditions.append(answer.headers.get("If-Range"))
        honest(NEW, '"2"')(answer)

    server.script = [broken(NEW, ETag='"2"'), noted]
    path = attempts()
    assert path is not None and path.read_bytes() == NEW
    assert server.asked == ["", f"bytes={HALF}-"] and conditions == ['"2"']


PAGE = b"<!DOCTYPE html><title>Please sign in</title>" + b" " * 2000
REFUSED: dict[str, tuple[Step, str]] = {
    "sign-in page": (whole(PAGE), "is a web page"),
    "cut off at the server": (whole(NEW[:-3000]), "is not a readable checkpoint"),
    "nothing": (whole(b""), "is empty"),
    "no length, cut off": (lambda answer: answer.send(200, NEW[:-3000], Content_Length=""), "does not say how long"),
    "no length": (lambda answer: answer.send(200, NEW, Content_Length=""), "does not say how long"),
    "length of many digits": (lambda answer: answer.send(200, NEW, Content_Length="9" * 5000), "does not say how long"),
    "compressed": (whole(NEW, Content_Encoding="gzip"), "encoded as gzip"),
    "another status": (lambda answer: answer.send(203, NEW), "answered 203"),
    "a part nobody asked for": (
        lambda answer: answer.send(206, NEW[9:], Content_Range=f"bytes 9-{len(NEW) - 1}/{len(NEW)}"),
        "another part",
    ),
    "another network": (whole(checkpoint(1, OTHER)), "of patch size 16, not a vit of 8"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_is_not_the_file_is_not_kept(server: Server, tmp_path: Path, how: str) -> None:
    """46c01a2 kept and sealed every one of these under the published name, for ever."""
    step, words = REFUSED[how]
    server.script = [step]
    with pytest.raises(WorkError, match=words):
        load_backbone(Path("little"))
    assert not list((tmp_path / "cache").iterdir())
    server.script, server.asked = [whole(NEW)], []
    assert load_backbone(Path("little")).path.read_bytes() == NEW


def endless(answer: Answer) -> None:
    """Pieces without an end, by a server that never says how many there are."""
    answer.send_response(200)
    answer.send_header("Transfer-Encoding", "chunked")
    answer.end_headers()
    try:
        while True:
            answer.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")
    except OSError:
        pass


def dripping(answer: Answer) -> None:
    """A byte now and then, so that no single wait is long."""
    answer.send_response(200)
    answer.send_header("Content-Length", str(len(NEW)))
    answer.end_headers()
    try:
        for start in range(len(NEW)):
            answer.wfile.write(NEW[start : start + 1])
            time.sleep(0.01)
    except OSError:
        pass


@pytest.mark.parametrize("how", ["most", "spare", "claimed", "slow"])
def test_an_answer_without_an_end_fills_no_disk_and_no_day(
    how: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """46c01a2 read on until the disk was full, or for ever."""
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(download, "MOST", 3 << 20 if how == "most" else 1 << 60)
    monkeypatch.setattr(download, "SPARE", free - (3 << 20) if how == "spare" else 0)
    if how == "claimed":
        monkeypatch.setattr(download, "MOST", 1 << 10)
    if how == "slow":
        monkeypatch.setattr(download, "WINDOW", 0.2)
    server.script = [whole(NEW) if how == "claimed" else dripping if how == "slow" else endless]
    said = {"claimed": "it is larger than", "slow": "fewer than 1 MB came"}.get(how, "has more than")
    with pytest.raises(WorkError, match=said):
        load_backbone(Path("little"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_of_another_digest_than_the_known_one_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """46c01a2 knew no digests: it kept whatever came first."""
    server.script = [whole(OLD)]
    (tmp_path / "new").write_bytes(NEW)
    known = store.sha256(tmp_path / "new")
    monkeypatch.setattr(zoo, "names", lambda: {"little": {"address": server.address, "sha256": known, **LISTED}})
    with pytest.raises(WorkError, match=f"is not the file that is known by this name .*not {known}"):
        load_backbone(Path("little"))
    assert not list((tmp_path / "cache").iterdir())
    (tmp_path / "cache" / "little.pth").write_bytes(OLD)  # by hand
    with pytest.raises(UserError, match="is not the file that is known by this name"):
        load_backbone(Path("little"))
    server.script = [whole(NEW)]
    (tmp_path / "cache" / "little.pth").unlink()
    assert load_backbone(Path("little")).path.read_bytes() == NEW


def test_what_breaks_off_without_a_tag_is_not_kept(server: Server, tmp_path: Path) -> None:
    """46c01a2 kept it as a part and continued it with whatever came next. The tries are counted."""
    server.script = [broken(NEW)]
    with pytest.raises(WorkError, match=rf"only {HALF} of {len(NEW)} bytes came\): try again"):
        load_backbone(Path("little"))
    assert len(server.asked) == 3 and not list((tmp_path / "cache").iterdir())


LEADS = ["http://127.0.0.1:{port}/file", "ftp://127.0.0.1/file", "file:///etc/passwd", "data:,text", "http://["]


@pytest.mark.parametrize("place", LEADS)
def test_https_leads_to_https_only(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """46c01a2 followed from https to http, and ended in a traceback at the last of these; the others are brothers."""

    def https_open(self: Any, request: urllib.request.Request) -> Any:  # the test's server has no certificate
        return self.do_open(http.client.HTTPConnection, request)

    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", https_open)
    address = server.address.replace("http:", "https:")
    monkeypatch.setattr(zoo, "names", lambda: {"little": {"address": address, **LISTED}})
    server.script = [lambda answer: answer.send(302, b"", Location=place.format(port=server.server_port)), whole(NEW)]
    with pytest.raises(WorkError, match="could not be fetched"):
        load_backbone(Path("little"))
    assert len(server.asked) == 1 and not list((tmp_path / "cache").iterdir())
    server.script = [lambda answer: answer.send(308, b"", Location=address), whole(NEW)]
    server.asked = []
    assert load_backbone(Path("little")).path.read_bytes() == NEW


@pytest.mark.parametrize("scheme", ["file", "ftp", "http", "data"])
def test_names_are_fetched_by_https_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """46c01a2 opened any address that urllib knows; `file:` was kept and sealed."""
    (tmp_path / "local").write_bytes(NEW)
    address = {"file": (tmp_path / "local").as_uri(), "data": "data:,x"}.get(scheme, f"{scheme}://example.invalid/x.pth")
    monkeypatch.setenv("IBOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(zoo, "names", lambda: {"little": {"address": address, **LISTED}})
    with pytest.raises(WorkError, match="only https is fetched from"):
        load_backbone(Path("little"))


def test_eight_processes_fetch_one_file_once(server: Server, tmp_path: Path) -> None:
    """On 46c01a2 all wrote one part: most failed, and the file was a mixture."""

    def slow(answer: Answer) -> None:
        answer.send(200, NEW, cut=0)
        for start in range(0, len(NEW), 20_000):
            answer.wfile.write(NEW[start : start + 20_000])
            time.sleep(0.05)

    server.script = [slow]
    entry = json.dumps({"address": server.address, **LISTED})
    done = subprocess.run(**program("fetch_in_eight", entry), check=False, timeout=300)
    assert done.stdout.strip() == "8", done.stderr
    assert len(server.asked) == 1 and (tmp_path / "cache" / "little.pth").read_bytes() == NEW
    assert sorted(file.name for file in (tmp_path / "cache").iterdir()) == ["little.pth", "little.sha256"]


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_a_part_that_is_something_else_is_not_written_to(server: Server, tmp_path: Path, kind: str) -> None:
    """46c01a2 wrote through the link into the file that it led to, and waited for ever at the pipe."""
    victim, part = tmp_path / "victim", tmp_path / "cache" / "little.pth.part"
    victim.write_bytes(b"")
    {"link": lambda: part.symlink_to(victim), "hard link": lambda: os.link(victim, part), "pipe": lambda: os.mkfifo(part)}[kind]()
    server.script = [whole(NEW)]
    path = load_backbone(Path("little")).path
    assert victim.read_bytes() == b"" and path.read_bytes() == NEW and not path.is_symlink()


def test_what_cannot_be_stored_is_one_sentence_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    """46c01a2 left what it had written on a disk that was full, and kept it as the beginning of any other file."""
    server.script = [whole(NEW)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))  # as a full disk does
    try:
        with pytest.raises(WorkError, match=r"could not be stored .*make room"):
            load_backbone(Path("little"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "cache").iterdir())
    (tmp_path / "cache" / "little.pth.part").mkdir()
    with pytest.raises(WorkError, match=r"could not be stored \(Is a directory: .*little\.pth\.part\)"):
        load_backbone(Path("little"))
    (tmp_path / "cache" / "little.pth").mkdir()
    with pytest.raises(UserError, match=r"little\.pth is no file"):
        load_backbone(Path("little"))


def test_a_servers_words_do_not_reach_the_terminal_as_they_are(server: Server) -> None:
    """46c01a2 printed the reason of a status line with its escape sequences."""

    def step(answer: Answer) -> None:
        answer.wfile.write(b"HTTP/1.1 404 \x1b]0;owned\x07\r\nContent-Length: 0\r\n\r\n")

    server.script = [step]
    with pytest.raises(WorkError, match="could not be fetched") as refused:
        load_backbone(Path("little"))
    assert "owned" in str(refused.value) and "\x1b" not in str(refused.value)


# Shards


def shard(count: int, value: int = 0) -> bytes:
    """A tar of so many images."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(count):
            picture = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(picture, "PNG")
            member = tarfile.TarInfo(f"{number:03}.png")
            member.size = len(picture.getvalue())
            archive.addfile(member, io.BytesIO(picture.getvalue()))
    return file.getvalue()


TAR = shard(4)
SECOND = tarfile.BLOCKSIZE * 4
"""Where the third of its files begins: each is a block of header and one of content."""


@pytest.mark.usefixtures("server")
def test_every_command_has_a_cached_file_of_its_own(tmp_path: Path) -> None:
    """46c01a2 took `a/b.tar` and `a_b.tar` for one file, and commands that agree in their last 200 letters."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.tar").write_bytes(shard(1, 10))
    (tmp_path / "a_b.tar").write_bytes(shard(1, 20))
    long = "; true " + "x" * 300
    for words in ("", long):
        one = open_images(f"pipe:cat {tmp_path}/a/b.tar{words}")
        other = open_images(f"pipe:cat {tmp_path}/a_b.tar{words}")
        assert (one[0].max(), other[0].max()) == (10, 20)


CUT = {
    "between two files": "head -c {second} {file}",
    "within a header": "head -c {within} {file}",
    "after a failure": "cat {file}; exit 141",
    "after another failure": "cat {file}; exit 23",
    "before a failure": "head -c {second} {file}; exit 3",
    "a page": "echo '<html>sign in</html>'",
    "nothing": "true",
}


@pytest.mark.parametrize("how", CUT)
@pytest.mark.usefixtures("server")
def test_a_shard_that_is_cut_off_or_comes_of_a_failure_is_not_kept(tmp_path: Path, how: str) -> None:
    """46c01a2 took a stream cut between two files for a whole one and kept it; it let commands fail with 141, and left parts.

    A page and nothing at all are brothers that it refused."""
    (tmp_path / "s.tar").write_bytes(TAR)
    command = CUT[how].format(file=tmp_path / "s.tar", second=SECOND, within=SECOND + 100)
    with pytest.raises(UserError, match=r"could not be fetched|no plain, whole tar file"):
        open_images(f"pipe:{command} # .tar")
    assert not list((tmp_path / "cache").iterdir())


ANSWERS: dict[str, Step] = {
    "cut between two files": whole(TAR[:SECOND]),
    "no length": lambda answer: answer.send(200, TAR[:SECOND], Content_Length=""),
    "sign-in page": whole(PAGE),
    "breaks off": lambda answer: answer.send(200, TAR, cut=SECOND),
    "to a file": lambda answer: answer.send(302, b"", Location="file:///etc/passwd"),
    "missing": lambda answer: answer.send(404, PAGE),
}


@pytest.mark.parametrize("how", ANSWERS)
def test_a_shard_from_a_server_is_whole_or_not_kept(server: Server, tmp_path: Path, how: str) -> None:
    """46c01a2 kept what had no length or was cut at the server between two files; the others are brothers."""
    server.script = [ANSWERS[how]]
    address = f"http://me:secret@127.0.0.1:{server.server_port}/s.tar"
    with pytest.raises((UserError, WorkError), match=r"could not be fetched|not kept") as refused:
        open_images(address)
    assert "secret" not in str(refused.value) and not list((tmp_path / "cache").iterdir())

    def guarded(answer: Answer) -> None:
        answer.send(200 if answer.headers["Authorization"] == "Basic bWU6c2VjcmV0" else 401, TAR)

    server.script = [guarded]
    assert len(open_images(address)) == 4
    assert len(open_images(address)) == 4 and "secret" not in next((tmp_path / "cache").iterdir()).name


def test_a_local_shard_that_is_damaged_in_the_middle_does_not_lose_images_in_silence(tmp_path: Path) -> None:
    """46c01a2 took the damaged header for the shard's end: two of four images, and no word."""
    (tmp_path / "s.tar").write_bytes(TAR[:SECOND] + b"x" * 512 + TAR[SECOND + 512 :])
    with pytest.raises(UserError, match="no plain, whole tar file"):
        open_images(str(tmp_path / "s.tar"))


def test_torchvisions_downloads_are_made_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision writes a download in its place; 46c01a2 let all processes do so at once."""
    inside, most = [0], [0]

    def opened(*_: object) -> list[tuple[Image.Image, int]]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.1)
        inside[0] -= 1
        return [(Image.new("RGB", (8, 8)), 0)]

    monkeypatch.setattr(hubs, "_open_part", opened)
    works = [threading.Thread(target=hubs.open_torchvision, args=(f"CIFAR10@{tmp_path / 'data'}", None)) for _ in range(4)]
    for work in works:
        work.start()
    for work in works:
        work.join()
    assert most == [1] and not list((tmp_path / "data").iterdir())
