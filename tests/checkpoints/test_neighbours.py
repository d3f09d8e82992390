"""Threads spin for a moment while they are alone, and sleep at once beside other work."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from checkpoints import neighbours, start
from tests.support.commands import command

STAT = """cpu  999 999 999 999 999 999 999 999 0 0
cpu0 100 20 30 4000 500 1 2 3 7 7
cpu1 200 0 0 8000 0 0 0 0 0 0
cpu12 5000 0 0 0 0 0 0 0 0 0
intr 1 2 3
"""


@pytest.mark.parametrize("given", [(), *start.WAITING])
def test_how_threads_wait_is_set_unless_the_user_has_set_it(given: str | tuple[()], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in start.WAITING:
        monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv(given, "7")
    start.wait_shortly()
    set_now = {name: os.environ[name] for name in start.WAITING if name in os.environ}
    assert set_now == ({given: "7"} if given else start.SHORT)


@pytest.mark.parametrize(("cores", "ticks"), [({0}, 156), ({1}, 200), ({0, 1}, 356), ({2}, 0), ({12}, 5000)])
def test_busy_seconds_are_those_of_the_own_cores(cores: set[int], ticks: int) -> None:
    assert neighbours.busy_seconds(STAT, cores) == ticks / os.sysconf("SC_CLK_TCK")


def test_what_this_process_uses_is_not_the_others() -> None:
    assert neighbours.cores_of_others((10.0, 50.0, 5.0), (12.0, 53.0, 7.0)) == pytest.approx(0.5)
    assert neighbours.cores_of_others((10.0, 50.0, 5.0), (10.0, 50.0, 5.0)) == 0.0


def test_what_a_child_computes_is_this_process_own() -> None:
    before = neighbours.own_seconds()
    busy = "import os\nwhile sum(os.times()[:2]) < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "\n"
        assert neighbours.own_seconds() - before >= 0.45
        child.communicate("\n")
    assert neighbours.own_seconds() - before >= 0.45


def test_the_pool_is_there_while_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([(0.0, 0.0, 0.0), (1.0, 2.0, 2.0), (2.0, 4.0, 3.5), (3.0, 6.0, 5.25), (4.0, 8.0, 7.25)])
    monkeypatch.setattr(neighbours.Watch, "_now", staticmethod(lambda: next(moments)))
    watch, states = neighbours.Watch(), []
    for _ in range(4):  # others: 0, 0.5, 0.25 (between the two bounds) and 0 cores
        watch.look()
        states.append(watch.pool.is_open)
    assert states == [False, True, True, False]
    assert not any(thread.name == "idle pool" for thread in threading.enumerate())


@pytest.mark.parametrize("setting", [{}, {"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "5"}])
def test_nothing_is_watched_where_the_user_has_set_how_threads_wait(
    setting: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for name, value in {**start.SHORT, **setting}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1024)
    begun: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: begun.append(thread.name))
    neighbours.watch()
    assert begun == ([] if setting else ["neighbours"])


def test_threads_sleep_between_operations_while_the_pool_is_open() -> None:
    """The rule is libgomp's: it must hold for the one that torch brings. The pauses are shorter than the time of spinning."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    words = command("-m", "tests.support.programs.sleeping", cores, OMP_NUM_THREADS="2", **start.SHORT)
    words["env"].pop("OMP_WAIT_POLICY", None)
    done = subprocess.run(**words, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500
