"""Workers that die or do not answer, little shared memory, many shards, the original's flags, several processes."""

import io
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints import hold, once, store
from checkpoints.cli import DONE, FAILED, UserError, WorkError, parse, run_command
from pretrain import train
from pretrain.batches import feeding
from pretrain.batches.dataset import StepDataset
from pretrain.images import tar_shards
from pretrain.models.backbone import load_backbone
from pretrain.options.command_line import read_command_line
from pretrain.setup.plan import plan_of
from probes import knn
from probes.linear import protocol
from tests.support.commands import QUICK, ROOT, program
from tests.support.feeding import Deadly, eat


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


WORDS = "a folder called checkpoints.cli.UserError: x cannot be read\n  and a second line "


class Refusing(Deadly):
    """Item 3 raises an error for the user."""

    def __init__(self, kind: type[Exception]) -> None:
        super().__init__("")
        self.kind = kind

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 3:
            raise self.kind(WORDS)
        return super().__getitem__(index)


@pytest.mark.parametrize("kind", [UserError, WorkError])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_for_the_user_comes_from_a_worker_word_for_word(kind: type[Exception], workers: int) -> None:
    """Also where whole lists of numbers are asked for. Cutting torch's account of a worker's stack lost half of these words."""
    for numbers, collate in ((range(8), None), ([range(2), range(2, 4)], torch.stack)):
        with pytest.raises(kind) as caught:
            list(feeding.fed(Refusing(kind), numbers, workers, collate=collate))
        assert type(caught.value) is kind and str(caught.value) == WORDS


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
    assert feeding.room_for(Deadly("", 1024), range(8), *wanted) == given
    assert ("--shm-size" in capsys.readouterr().err) == (wanted != given)


class Sized(Deadly):
    """Says how large its batches are."""

    most_bytes = feeding.MOST_WAITING // 16


@pytest.mark.parametrize(
    "wanted, given", [((4, 4), (4, 4)), ((8, 4), (8, 2)), ((3, 9), (3, 5)), ((20, 4), (20, 1)), ((0, 4), (0, 4))]
)
def test_the_queue_of_batches_is_bounded_in_bytes(
    wanted: tuple[int, int], given: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 46c01a2 ten workers kept 40 batches, whatever their size: 25 to 28 GB of large photographs."""
    monkeypatch.setattr(feeding, "free", lambda: 1 << 50)
    assert feeding.room_for(feeding.Batches(Sized(""), None), range(8), *wanted) == given
    assert feeding.room_for(feeding.Batches(Deadly(""), None), range(8), *wanted) == wanted  # of unknown size


@pytest.mark.parametrize(
    "cores, processes, workers", [(2, "1", 1), (1, "1", 1), (64, "1", 63), (64, "8", 7), (8, "8", 1), (16, "x", 15)]
)
def test_workers_share_the_cores_with_the_machines_other_processes(
    cores: int, processes: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 46c01a2 each of eight processes on 16 cores started ten of them, and one process on 64 cores no more."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert feeding.default_workers() == workers


@pytest.mark.parametrize("kilobytes, blind, wanted", [(64, False, "[0, 1, 2"), (512, False, "[0, 1, 2"), (256, True, "starved")])
def test_a_tiny_shared_memory_never_makes_a_run_hang(kilobytes: int, blind: bool, wanted: str) -> None:
    """`blind`: although the room was thought to be there, as when another process takes it later."""
    process = program("tiny_shared_memory", "blind" if blind else "looks", "50000")
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs /dev/shm && exec "$@"'
    possible = subprocess.run(["unshare", "-m", "sh", "-c", mount, "sh", "true"], capture_output=True, check=False)
    if possible.returncode:
        pytest.skip("needs a mount namespace of its own")
    process["args"] = ["unshare", "-m", "sh", "-c", mount, "sh", *process["args"]]
    done = subprocess.run(**process, timeout=120, check=False)
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
    images = tar_shards.open_shards(str(tmp_path / "{000..119}.tar"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + tar_shards.OPEN_FILES + 20, before[1]))
    try:
        for _ in range(2):
            assert [int(images[number][0, 0, 0]) for number in range(120)] == list(range(120))
        assert len(os.listdir("/proc/self/fd")) <= here + tar_shards.OPEN_FILES + 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


TRAINING = """arch=vit_small patch_size=16 window_size=7 out_dim=8192 patch_out_dim=8192 shared_head=true
shared_head_teacher=True norm_last_layer=false momentum_teacher=0.996 norm_in_head=None act_in_head=gelu
use_masked_im_modeling=true pred_ratio=0.3 pred_ratio_var=0.2 pred_shape=block pred_start_epoch=0 lambda1=1.0 lambda2=1.0
warmup_teacher_temp=0.04 teacher_temp=0.07 warmup_teacher_patch_temp=0.04 teacher_patch_temp=0.07
warmup_teacher_temp_epochs=30 use_fp16=true use_fp16=false use_fp16=True weight_decay=0.04 weight_decay_end=0.4 clip_grad=3.0
batch_size_per_gpu=64 epochs=100 freeze_last_layer=1 lr=0.0005 warmup_epochs=10 min_lr=1e-06 optimizer=adamw drop_path=0.1
global_crops_number=2 local_crops_number=0 data_path=x output_dir=y saveckp_freq=40 seed=0 num_workers=10 dist_url=env://
local_rank=0""".split()
PAIRS = ("--global_crops_scale 0.25 1", "--local_crops_scale 0.05 0.25", "--pred_ratio 0 0.3", "--pred_ratio_var 0 0.2")
REFUSED = ("--load_from checkpoint.pth", "--act_in_head relu", "--norm_in_head bn", "--dist_url tcp://a:1", "--load_from=a.pth")


def test_every_flag_of_the_originals_training_is_taken() -> None:
    for flag in TRAINING:
        name, _, value = flag.partition("=")
        for words in ([f"--{flag}"], [f"--{name.replace('_', '-')}={value}"], [f"--{name}", value]):
            base = [] if name == "arch" else ["--arch", "vit_small"]
            plan_of(read_command_line([*base, *words]))
    for pair in PAIRS:
        read_command_line(pair.split())
    line = [f"--{flag}" for flag in TRAINING[1:] if not flag.startswith(("use_fp16", "out_dir"))]
    found = read_command_line(["--arch", "deit_small", *line, "--use_fp16"])
    assert (found.model.arch, found.run.keep_every, found.machine.precision) == ("vit_small", 40, "auto")
    assert read_command_line(["--use_fp16=false"]).machine.precision == "fp32"


@pytest.mark.parametrize("line", REFUSED)
def test_a_flag_that_something_replaces_says_what(line: str) -> None:
    with pytest.raises(UserError, match=r"of the original: .*(leave it out|--init-from)"):
        read_command_line(line.split())


EVALUATION = """n_last_blocks avgpool_patchtokens arch patch_size window_size pretrained_weights checkpoint_key epochs lr
batch_size_per_gpu dist_url local_rank data_path num_workers val_freq output_dir num_labels load_from nb_knn temperature
dump_features load_features use_cuda""".split()
VALUES = {"batch_size_per_gpu": "2", "num_workers": "2", "nb_knn": "20", "temperature": "0.1", "lr": "0.1", "epochs": "2"}
VALUES |= {"dist_url": "env://", "use_cuda": "true", "checkpoint_key": "teacher"}


def test_every_flag_of_the_originals_evaluation_is_taken_or_answered() -> None:
    for command in (knn.KnnOptions, protocol.LinearOptions):
        for flag in EVALUATION:
            try:
                parse(command, [f"--{flag}", VALUES.get(flag, "1")])
            except UserError as error:
                assert "of the original: " in str(error)  # taken is as good


def test_kept_checkpoints_stay_and_are_never_replaced(tmp_path: Path) -> None:
    store.save_run(tmp_path, {"step": 1})
    assert store.keep(tmp_path, 40) == store.keep(tmp_path, 40) == tmp_path / "epoch-0040.pt"
    before = (tmp_path / "epoch-0040.pt").read_bytes()
    for step in (2, 3):
        store.save_run(tmp_path, {"step": step})
    assert (tmp_path / "epoch-0040.pt").read_bytes() == before
    assert store.keep(tmp_path, 40).name == "epoch-0040-2.pt" and (tmp_path / "epoch-0040.pt").read_bytes() == before
    assert store.read_torch(tmp_path / "epoch-0040.pt")["step"] == 1


def test_a_run_keeps_every_second_epoch_for_any_probe(tmp_path: Path) -> None:
    flags = [*QUICK, "--epochs", "4", "--recipe", "ibot_vits16", "--knn-every", "0"]
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        Image.fromarray(np.full((32, 32, 3), number * 20, dtype=np.uint8)).save(folder / f"{number}.png")
    run = ["--data", str(folder), "--out", str(tmp_path / "run"), "--saveckp_freq", "2"]
    assert run_command(train.main, [*flags, *run]) == DONE
    assert sorted(path.name for path in (tmp_path / "run").glob("epoch-*")) == ["epoch-0002.pt", "epoch-0004.pt"]
    assert load_backbone(tmp_path / "run" / "epoch-0002.pt").path.name == "epoch-0002.pt"


@pytest.mark.parametrize("what, code", [("kill one", 1), ("term one", 75), ("term launcher", 75), ("interrupt group", 75)])
def test_the_end_of_several_processes_is_one_sentence_and_the_right_code(
    what: str, code: int, folders: Path, tmp_path: Path
) -> None:
    flags = [*QUICK, *"--steps 100000 --log-every 1 --recipe ibot_vits16 --knn-every 0".split()]
    launch = [sys.executable, str(ROOT / "checkpoints" / "start.py"), "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", "2", "-m", "pretrain.train", *flags, "--data", str(folders), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(launch, env=environment, text=True, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            log, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
            while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            one, number = int(children[-1]), signal.SIGKILL if what == "kill one" else signal.SIGTERM
            if what == "interrupt group":
                os.killpg(process.pid, signal.SIGINT)
            else:
                os.kill(process.pid if what == "term launcher" else one, number)
            out, errors = process.communicate(timeout=120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, out + errors
    assert "Traceback" not in out + errors and "ChildFailedError" not in errors
    if code == 75:
        assert (tmp_path / "run" / "last.pt").exists()
    else:
        assert errors.count("SIGKILL") == 1 and len(errors.splitlines()) <= 3, errors


def test_a_run_whose_worker_dies_is_saved_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made = StepDataset.__getitem__

    def deadly(self: StepDataset, step: int) -> object:
        if step == 3:
            time.sleep(3)  # what was made before has been used
            os.kill(os.getpid(), signal.SIGKILL)
        return made(self, step)

    monkeypatch.setattr(StepDataset, "__getitem__", deadly)
    flags = [*QUICK, *"--workers 1 --steps 6 --recipe ibot_vits16 --knn-every 0 --data sample --out".split(), str(tmp_path)]
    assert run_command(train.main, flags) == FAILED
    assert "saved after step 3" in capsys.readouterr().err.replace("Saved", "saved")
    assert store.read_torch(tmp_path / "last.pt")["step"] == 3


def test_who_waits_for_another_process_gives_up_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "PATIENCE", 0.3)
    with once.alone(tmp_path / "file"):
        monkeypatch.setattr(once.terminal, "say", lambda *words, **more: None)
        with (
            pytest.raises(WorkError, match=r"process \d+ on .* for 0 hours: end it if it stands still"),
            once.alone(tmp_path / "file"),
        ):
            pass
