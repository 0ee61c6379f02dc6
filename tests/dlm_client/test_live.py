"""Locks over real daemons: killed, stopped, leaving. A short run; the timers are a third of the default
ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import entry_points

import pytest

import dlm
import vsync
from dlm import Mode
from vsync.testcluster import LocalCluster, free_ports
from vsync.types import ClusterConfig, Peer

TIMING = {"token": 600, "token_retransmit": 150, "hold": 100, "join": 40, "consensus": 250, "lease": 1000}
INSTALLED = any(point.value == "dlm.plugin:service" for point in entry_points(group="vsync.services"))
LONG_S = 30.0

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not INSTALLED, reason="vsync is not installed (pip install -e .): no entry points"),
]


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[LocalCluster]:
    timing = {f"{key}_ms": value for key, value in TIMING.items()}
    with LocalCluster(3, timing=timing) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: LocalCluster) -> LocalCluster:
    """All nodes are up and in one view, whatever the test before has done."""
    for name in shared_cluster.names:
        if shared_cluster[name].running:
            shared_cluster.cont(name)
        else:
            shared_cluster.restart(name)
    shared_cluster.wait_view(shared_cluster.names)
    return shared_cluster


def test_two_nodes_take_turns_with_rising_fences(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["a"].url) as at_a, dlm.connect(cluster["b"].url) as at_b:
        fences = []
        for locks in (at_a, at_b, at_b, at_a, at_b):
            with locks.lock("turns", timeout=LONG_S) as held:
                assert held.valid
                fences.append(held.fence)
        assert fences == sorted(set(fences))


def test_a_lock_that_is_held_elsewhere(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["a"].url) as at_a, dlm.connect(cluster["b"].url) as at_b:
        with at_a.lock("taken", timeout=LONG_S):
            assert at_b.try_lock("taken") is None
            with pytest.raises(dlm.LockTimeout):
                at_b.acquire("taken", timeout=0.2)
            holders = at_b.holders("taken")
            assert holders is not None
            assert [(one.node, one.pid, one.mode) for one in holders] == [(1, os.getpid(), Mode.EX)]
            assert at_b.lock("taken").contenders() == ()
        with at_b.lock("taken", timeout=LONG_S):
            pass


def test_readers_share_and_convert(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["a"].url) as at_a, dlm.connect(cluster["b"].url) as at_b:
        one = at_a.acquire("pages", Mode.PR, LONG_S)
        two = at_b.acquire("pages", Mode.PR, LONG_S)
        with pytest.raises(dlm.LockTimeout):
            one.convert(Mode.EX, timeout=0.1)
        assert one.mode is Mode.PR
        two.release(wait=True)
        before = one.fence
        one.convert(Mode.EX, LONG_S)
        assert one.fence > before
        one.value = b"written"
        one.convert(Mode.PR, LONG_S)
        with at_b.shared("pages", LONG_S) as reader:
            assert (reader.value, reader.value_valid) == (b"written", True)
        one.release()


def test_a_killed_client_frees_its_lock_at_once(cluster: LocalCluster) -> None:
    program = "import dlm, sys; h = dlm.connect(sys.argv[1]).acquire('held'); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program, cluster["a"].url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"held\n"
        with dlm.connect(cluster["b"].url) as locks:
            keeper = locks.acquire("held", Mode.NL, LONG_S)  # of the value block
            assert locks.try_lock("held") is None
            client.kill()
            with locks.lock("held", timeout=LONG_S) as held:
                assert not held.value_valid  # it may have been writing
            keeper.release()


def test_a_killed_node_loses_its_locks_and_others_get_them(cluster: LocalCluster) -> None:
    told = threading.Event()
    with dlm.connect(cluster["a"].url) as at_a, dlm.connect(cluster["b"].url) as at_b:
        old = at_a.acquire("moves", timeout=LONG_S, on_lost=lambda held, reason: told.set())
        cluster.kill("a")
        assert old.lost.wait(LONG_S)
        assert old.lost.reason == "daemon_gone"
        assert told.wait(LONG_S)
        with at_b.lock("moves", timeout=LONG_S) as new:
            assert new.fence >> 32 > old.fence >> 32
        with pytest.raises(dlm.LockLost):
            old.release()
        with pytest.raises(dlm.NotConnected):
            at_a.acquire("moves")


def test_a_stopped_nodes_handle_ends_before_another_is_granted(cluster: LocalCluster) -> None:
    """No push can come from a stopped daemon: the lease on the page ends the handle in time (pitfalls D1)."""
    with dlm.connect(cluster["b"].url) as at_b, dlm.connect(cluster["c"].url) as at_c:
        old = at_b.acquire("frozen", timeout=LONG_S)
        cluster.stop("b")
        with at_c.lock("frozen", timeout=LONG_S) as new:
            assert not old.valid
            assert old.lost.reason == "lease"
            assert new.fence > old.fence
            cluster.cont("b")
            cluster.wait_view(cluster.names)
            cluster.wait(lambda: old.lost.reason == "evicted", "the old handle came back to life")
            assert not old.valid
            assert new.valid
        with pytest.raises(dlm.LockLost):
            old.release()


def test_a_node_alone_waits_for_quorum_or_says_so(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["c"].url) as locks:
        held = locks.acquire("alone", timeout=LONG_S)
        cluster.kill("a")
        cluster.kill("b")
        assert held.lost.wait(LONG_S)  # suspended: nobody can be asked whether it is still ours
        cluster.wait(lambda: _is_refused(locks), "a try is not refused without quorum")
        with pytest.raises(dlm.NoQuorum):
            locks.acquire("alone", no_quorum="fail")
        with pytest.raises(dlm.LockTimeout):
            locks.acquire("other", timeout=0.1)
        cluster.restart("a")
        with locks.lock("other", timeout=LONG_S) as other:
            assert other.valid
        held_still = held.lost.reason is None
        assert held_still == held.valid
        if held_still:
            held.release()


def _is_refused(locks: dlm.Client) -> bool:
    try:
        return locks.try_lock("probe") is None and False
    except dlm.NoQuorum:
        return True


def test_a_leaving_node_ends_its_handles_first(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["a"].url) as at_a, dlm.connect(cluster["b"].url) as at_b:
        held = at_a.acquire("leaves", timeout=LONG_S)
        assert cluster.leave("a") == 0
        assert held.lost.reason == "leaving"
        with at_b.lock("leaves", timeout=LONG_S) as new:
            assert new.fence > held.fence
        with pytest.raises(dlm.LockLost):
            held.release()


def test_a_candidate_that_connects_again_outlives_its_daemon(cluster: LocalCluster) -> None:
    """The loop ends with its session, loudly; the loop around it (docs/recipes.md) leads again."""
    fences: list[int] = []
    ended = threading.Event()

    def lead(times: int) -> None:
        while len(fences) < times:
            try:
                with dlm.connect(cluster["a"].url) as locks:
                    for term in locks.election("scheduler"):
                        fences.append(term.fence)
                        if len(fences) == times:
                            break
                        term.lost.wait()
            except dlm.NotConnected:
                ended.set()
                ended.wait(0.02)

    thread = threading.Thread(target=lead, args=(2,), daemon=True)
    thread.start()
    cluster.wait(lambda: len(fences) == 1, "no first term")
    cluster.kill("a")
    assert ended.wait(LONG_S)
    cluster.restart("a")
    thread.join(LONG_S)
    assert not thread.is_alive()
    assert fences[0] < fences[1]


def test_run_ends_its_command_when_the_node_dies(cluster: LocalCluster) -> None:
    arguments = ["--url", cluster["c"].url, "run", "job", "--", "sh", "-c", "echo $DLM_FENCE; exec sleep 1000"]
    with subprocess.Popen(
        [sys.executable, "-m", "dlm", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert int(run.stdout.readline()) > 1 << 32
        cluster.kill("c", signal.SIGKILL)
        _, err = run.communicate(timeout=LONG_S)
        assert run.returncode == 76
        assert "daemon_gone" in err


def test_the_same_client_over_an_embedded_node(tmp_path: os.PathLike[str]) -> None:
    peer = Peer(1, "solo", (f"127.0.0.1:{free_ports(1)[0]}",))
    config = ClusterConfig("embedded", 1, (peer,))
    with vsync.Node(config=config, state_dir=tmp_path) as node, dlm.Client(node) as locks:
        with locks.lock("x", timeout=LONG_S) as held:
            assert held.valid
            assert locks.try_lock("x") is None
        other = dlm.Client(node)
        kept = other.acquire("x", timeout=LONG_S)
        other.close()
        assert kept.lost.reason == "session_closed"
        with locks.lock("x", timeout=LONG_S) as again:
            assert again.fence > kept.fence
