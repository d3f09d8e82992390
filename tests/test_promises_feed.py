"""Workers that die or do not answer, little shared memory, many shards, the original's flags, several processes."""

import io
import os
import resource
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain import feeding, shards

ROOT = Path(__file__).resolve().parent.parent


class Deadly:
    """Tensors; item 3 is what kills or stops the worker that makes it."""

    def __init__(self, end: str, size: int = 100) -> None:
        self.end, self.size = end, size

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 3 and self.end.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.end))
        if index == 3 and self.end.startswith("exit"):
            os._exit(int(self.end[4:]))
        if index == 3 and self.end == "sleep":
            signal.pause()
        return torch.full((self.size,), float(index))


def eat(data: Deadly, workers: int = 2, **more: object) -> list[int]:
    options = {"batch_size": None, "sampler": range(8), **more}
    return [int(item[0]) for item in feeding.fed(data, workers, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "end, said",
    [
        ("SIGKILL", "out of memory"),
        ("SIGBUS", "--shm-size"),
        ("SIGSEGV", "crashed"),
        ("SIGTERM", "SIGTERM"),
        ("exit28", "--shm-size"),
        ("exit1", "exit code 1"),
    ],
)
def test_a_worker_that_dies_is_named_and_its_partners_end(end: str, said: str) -> None:
    with pytest.raises(feeding.Starved, match=r"worker process .*pid .*--workers") as caught:
        eat(Deadly(end))
    assert said in str(caught.value)
    assert eat(Deadly("")) == list(range(8))


def test_a_worker_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "LOOK", 0.2)
    monkeypatch.setattr(feeding, "PATIENCE", 0.5)
    with pytest.raises(feeding.Starved, match="no batch has come"):
        eat(Deadly("sleep"))
    monkeypatch.setattr(feeding, "PATIENCE", 600)
    monkeypatch.setattr(feeding, "AFTER_STOP", 0.1)
    with pytest.raises(feeding.Starved):
        eat(Deadly("sleep"), asked_to_stop=lambda: True)


@pytest.mark.parametrize(
    "free, wanted, given",
    [
        (1 << 40, (2, 4), (2, 4)),
        (9 * 6144, (2, 4), (2, 4)),
        (5 * 6144, (2, 4), (2, 2)),
        (3 * 6144, (2, 4), (2, 1)),
        (2 * 6144, (2, 4), (1, 1)),
        (1 * 6144, (2, 4), (0, 1)),
        (0, (2, 4), (0, 1)),
        (0, (0, 4), (0, 4)),
        (6 * 6144, (10, 4), (5, 1)),
    ],
)
def test_batches_ahead_fit_into_shared_memory(
    free: int, wanted: tuple[int, int], given: tuple[int, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(feeding, "free", lambda: free)
    assert feeding.room_for(Deadly("", 1024), *wanted, {"sampler": range(8)}) == given
    assert ("--shm-size" in capsys.readouterr().err) == (wanted != given)


TINY = """
import sys
sys.path.insert(0, {root!r}); sys.path.insert(0, {tests!r})
import test_promises_feed as t
from pretrain import feeding
if {blind}: feeding.free = lambda: 1 << 40
try:
    print(t.eat(t.Deadly("", {size})))
except feeding.Starved as error:
    print("starved:", error)
"""


@pytest.mark.parametrize("kilobytes, blind, wanted", [(64, False, "[0, 1, 2"), (512, False, "[0, 1, 2"), (256, True, "starved")])
def test_a_tiny_shared_memory_never_makes_a_run_hang(kilobytes: int, blind: bool, wanted: str) -> None:
    """`blind`: although the room was thought to be there, as when another process takes it later."""
    script = TINY.format(root=str(ROOT), tests=str(ROOT / "tests"), blind=blind, size=50_000)
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs /dev/shm && exec "$@"'
    possible = subprocess.run(["unshare", "-m", "sh", "-c", mount, "sh", "true"], capture_output=True, check=False)
    if possible.returncode:
        pytest.skip("needs a mount namespace of its own")
    words = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", script]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith(wanted), done.stdout + done.stderr
    assert "--shm-size" in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_shards_beyond_the_limit_of_open_files_are_read(tmp_path: Path) -> None:
    for number in range(120):
        with tarfile.open(tmp_path / f"{number:03}.tar", "w") as archive:
            content = io.BytesIO()
            Image.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(content, "png")
            member = tarfile.TarInfo(f"{number}.png")
            member.size = content.tell()
            archive.addfile(member, io.BytesIO(content.getvalue()))
    images = shards.open_shards(str(tmp_path / "{000..119}.tar"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + shards.OPEN_FILES + 20, before[1]))
    try:
        for _ in range(2):
            assert [int(images[number][0, 0, 0]) for number in range(120)] == list(range(120))
        assert len(os.listdir("/proc/self/fd")) <= here + shards.OPEN_FILES + 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
