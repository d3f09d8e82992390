"""Several processes that need one published file: one fetches it, and where that fails all end with one sentence."""

import http.server
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from checkpoints import store
from checkpoints.cli import DONE, FAILED, WRONG_COMMAND
from tests.support import networks
from tests.support.commands import ROOT, SMALL


def content() -> bytes:
    file = io.BytesIO()
    torch.save(networks.backbone().state_dict(), file)
    return file.getvalue()


class Answer(http.server.BaseHTTPRequestHandler):
    """What the server's `act` says to every request."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.act(self)

    def send(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    act: Callable[[Answer], None]
    asked = 0


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Answer) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.support.little_zoo"]
LAUNCHERS = {"tools": [sys.executable, str(ROOT / "checkpoints" / "start.py")], "torchrun": [sys.executable, "-m"]}


def two_processes(launcher: str, port: int, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """A training in two processes that begins with `little`; what they have said."""
    words = [*LAUNCHERS[launcher], *TORCHRUN, f"http://127.0.0.1:{port}/file", str(folder), *SMALL, "--steps", "1"]
    words += ["--knn-every", "0", "--init-from", "little", "--out", str(folder / "run"), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "IBOT_CACHE": str(folder / "cache")}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_published_checkpoint_is_fetched_once_and_both_begin_with_it(launcher: str, server: Server, tmp_path: Path) -> None:
    body = content()
    server.act = lambda answer: answer.send(200, body)
    done = two_processes(launcher, server.server_port, tmp_path)
    assert done.returncode == DONE, done.stdout + done.stderr
    assert server.asked == 1 and (tmp_path / "cache" / "little.pth").read_bytes() == body
    weights = {(tmp_path / f"weights-{rank}").read_text() for rank in (0, 1)}
    expected = store.checksum(networks.backbone().state_dict())
    (found,) = weights
    assert found.split()[1] == expected
    assert "waiting for" not in done.stderr  # for a lock: the others have been told to wait


FAILING: dict[str, tuple[Callable[[Answer], None], str]] = {
    "not there": (lambda answer: answer.send(404, b""), "could not be fetched (Not Found)"),
    "overloaded": (lambda answer: answer.send(503, b""), "could not be fetched (Service Unavailable)"),
    "a web page": (
        lambda answer: answer.send(200, b"<!DOCTYPE html><title>Please sign in</title>" + b" " * 999),
        "is a web page",
    ),
    "cut off": (lambda answer: answer.send(200, content()[:5000], length=10_000), "only 5000 of 10000 bytes came"),
}


@pytest.mark.parametrize("how", [*FAILING, "no server"])
def test_a_fetch_that_fails_ends_all_processes_with_one_sentence(how: str, server: Server, tmp_path: Path) -> None:
    """On 46c01a2 each process fetched for itself and said its own sentence, amid torchrun's forty lines."""
    act, words = FAILING.get(how, (lambda answer: None, "could not be fetched ([Errno 111] Connection refused)"))
    server.act, port = act, server.server_port
    if how == "no server":
        server.shutdown()
        server.server_close()
    done = two_processes("tools", port, tmp_path)
    said = [line for line in done.stderr.splitlines() if line.startswith(("failed: ", "error: "))]
    assert done.returncode == FAILED, done.stderr
    assert len(said) == 1 and words in said[0], done.stderr
    assert "Traceback" not in done.stderr and "ChildFailedError" not in done.stderr
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache" / "little.pth").exists()
    tries = 3 if how in ("overloaded", "cut off") else 0 if how == "no server" else 1
    assert server.asked == tries


WRONG = {
    "no such name": ("--init-from", "ibot_vitx"),
    "no such images": ("--data", "nowhere"),
    "other sizes": ("--patch-size", "16", "--local-crops-number", "0"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_for_all_processes_is_said_once(what: str, server: Server, tmp_path: Path) -> None:
    """On 46c01a2 every process said it."""
    body = content()
    server.act = lambda answer: answer.send(200, body)
    done = two_processes("tools", server.server_port, tmp_path, *WRONG[what])
    said = [line for line in done.stderr.splitlines() if line.startswith(("failed: ", "error: "))]
    assert done.returncode == WRONG_COMMAND, done.stderr
    assert len(said) == 1 and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()
