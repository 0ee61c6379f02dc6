"""Kept locks through real daemons: clients and daemons that are killed or stopped while a lock is idle."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points

import pytest

import dlm
from dlm import Mode
from tests.vsync.support import until
from vsync.testcluster import LocalCluster

TIMING = {"token": 600, "token_retransmit": 150, "hold": 100, "join": 40, "consensus": 250, "lease": 1000}
INSTALLED = any(point.value == "dlm.plugin:service" for point in entry_points(group="vsync.services"))
LONG_S = 30.0
#: Takes a lock, gives it back, keeps it, and waits for the end of its input.
KEEPER = """
import dlm, sys
locks = dlm.connect(sys.argv[1])
with locks.lock(sys.argv[2], cache=True) as held:
    pass
print(held.fence, flush=True)
input()
"""

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not INSTALLED, reason="vsync is not installed (pip install -e .): no entry points"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3, timing={f"{key}_ms": value for key, value in TIMING.items()}) as cluster:
        yield cluster


@contextlib.contextmanager
def keeper(cluster: LocalCluster, name: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Another process that has an idle lock at node a; the fence it had."""
    command = [sys.executable, "-c", KEEPER, cluster["a"].url, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_clients_of_two_daemons_take_turns(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["a"].url) as at_a, dlm.connect(cluster["b"].url) as at_b:
        storage = dlm.FencedResource()
        for turn in range(40):
            locks = (at_a, at_b)[turn % 2]
            for _ in range(50):
                with locks.lock("turns", timeout=LONG_S, cache=True) as held:
                    storage.write(held.fence, b"")
        assert not storage.refused
        assert at_a.session.kept.cache.hits + at_b.session.kept.cache.hits > 1000


@pytest.mark.parametrize("node", ["a", "b"])
def test_a_try_gets_what_another_process_keeps(cluster: LocalCluster, node: str) -> None:
    name = f"tried/{node}"
    with keeper(cluster, name) as (_, fence), dlm.connect(cluster[node].url) as locks:
        # Again if the other process gets no time to say so. Nothing but a try calls the lock back.
        got: dlm.Held = until(lambda: locks.try_lock(name), "the lock")
        assert got.fence > fence
        got.release()


def test_a_killed_client_is_as_one_that_held_it(cluster: LocalCluster) -> None:
    with keeper(cluster, "killed") as (process, fence), dlm.connect(cluster["b"].url) as locks:
        placeholder = locks.acquire("killed", Mode.NL, LONG_S)  # of the value block
        process.kill()
        process.wait()
        with locks.lock("killed", timeout=LONG_S) as held:
            assert held.fence > fence
            assert not held.value_valid
        placeholder.release()


def test_a_stopped_client_has_what_it_keeps_in_use(cluster: LocalCluster) -> None:
    with keeper(cluster, "stopped") as (process, fence), dlm.connect(cluster["b"].url) as locks:
        process.send_signal(signal.SIGSTOP)
        assert locks.try_lock("stopped") is None
        with pytest.raises(dlm.LockTimeout):
            locks.acquire("stopped", timeout=0.2)
        process.send_signal(signal.SIGCONT)
        with locks.lock("stopped", timeout=LONG_S) as held:
            assert held.fence > fence


def test_nothing_is_taken_again_while_the_daemon_is_stopped(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["b"].url) as at_b, dlm.connect(cluster["c"].url) as at_c:
        with at_b.lock("frozen", timeout=LONG_S, cache=True) as old:
            pass
        cluster.stop("b")
        try:
            with at_c.lock("frozen", timeout=LONG_S) as new:
                assert new.fence > old.fence
                with pytest.raises(dlm.LockTimeout):
                    at_b.acquire("frozen", timeout=0.1, cache=True)
        finally:
            cluster.cont("b")
        cluster.wait_view(cluster.names)
        with at_b.lock("frozen", timeout=LONG_S, cache=True) as again:
            assert again.fence > new.fence
            again.check()
