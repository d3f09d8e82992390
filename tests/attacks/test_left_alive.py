"""What lives on: processes whose parent was killed with SIGKILL, threads of clients that never say a whole sentence."""

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import ROOT

LONGEST = 120
"""Seconds that a slow machine may take for anything here."""
CLIENTS = 100
"""Many times the connections that are held at a time, and enough complaints to fill a pipe of 64 KiB."""


@contextmanager
def started(*words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Python with these words, one thread; killed at the end."""
    whole = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([sys.executable, *words], env=whole, cwd=ROOT, text=True, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def eventually(wanted: Callable[[], object], what: str) -> None:
    end = time.monotonic() + LONGEST
    while not wanted():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def alive(pid: int) -> bool:
    """Whether it runs: what has ended and waits to be counted does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def named(word: str) -> list[int]:
    """Processes with this word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [int(path.parent.name)] * (word.encode() in path.read_bytes().split(b"\0"))
        except OSError:  # it has ended
            continue
    return found


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=LONGEST) as answer:
            return b"iBOT" in answer.read()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_workers_of_any_loader_end_with_the_process_that_was_killed() -> None:
    """In 46c01a2 all four stayed for ever: each wrote into a full pipe whose reading end it held itself."""
    with started("-m", "tests.support.programs.two_loaders") as process:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 4 and all(map(alive, workers))
        process.kill()
        process.wait()
    try:
        eventually(lambda: not any(map(alive, workers)), "workers live on")
    finally:
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("by", ["step", "torchrun"])
def test_a_command_ends_with_the_one_that_started_it_and_was_killed(by: str, tmp_path: Path) -> None:
    """In 46c01a2 a step of reproduce and a process of torchrun lived on; here they are servers, which can be asked."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "probes.live", str(tmp_path))
    step = ("-m", "tests.support.programs.live_step", str(tmp_path))
    with started(*(step if by == "step" else (*launch, "--port", "0"))) as process:
        assert process.stdout is not None
        said = ""
        if by == "step":
            log = tmp_path / "step.log"
            eventually(lambda: log.exists() and "live report: " in log.read_text(), "the step did not start")
            said = log.read_text()
        while "live report: " not in said:
            said = process.stdout.readline()
            assert said, "torchrun did not start"
        address = re.findall(r"live report: (\S+)", said)[0]
        assert answers(address)
        process.kill()
        process.wait()
    try:
        eventually(lambda: not answers(address), f"{address} lives on")
    finally:
        for pid in named(str(tmp_path)):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="threads are counted in /proc")
def test_clients_that_break_off_or_say_nothing_leave_no_threads(tmp_path: Path) -> None:
    """46c01a2 had a thread for each of 300 half requests, and kept those that complained of 300 others into a full pipe."""
    with started("-m", "probes.live", str(tmp_path), "--port", "0", "--attached", "true") as process:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("live report: ").strip()
        place = ("127.0.0.1", int(re.findall(r":(\d+)/", address)[0]))

        def threads() -> int:
            return int(re.findall(r"Threads:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[0])

        assert answers(address)
        quiet = threads()
        for _ in range(CLIENTS):
            with socket.create_connection(place, timeout=LONGEST) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # breaks off at once
                client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % place[1])
        eventually(lambda: threads() <= quiet + 1, "threads of clients that have gone")
        half = [socket.create_connection(place, timeout=LONGEST) for _ in range(CLIENTS)]
        for client in half:
            try:
                client.sendall(b"GET / HTTP/1.1\r\nX-Never")
            except OSError:  # closed to make room, as it should be
                continue
        assert answers(address), "nobody else is served"
        eventually(lambda: threads() <= quiet + 20, "a thread for each that says nothing")
        assert all(client.recv(1) == b"" for client in half[:1]), "the first of them is still waited for"
        eventually(lambda: threads() <= quiet + 1, "those that say nothing are waited for without end")
        for client in half:
            client.close()
