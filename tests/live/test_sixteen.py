"""Sixteen nodes: form a ring, survive a rolling restart and a half/half split with a merge."""

from __future__ import annotations

import signal

import pytest

import dlm
from tests.live.helpers import until, view_ids, works
from vsync.testcluster import LocalCluster
from vsync.testing import SimCluster

NODES = 16
#: Sixteen processes on few cores: one that waits for its turn must not be taken for dead.
CALM_MS = {"token_ms": 3000, "consensus_ms": 1500, "lease_ms": 6000}
HALF, OTHER = set(range(1, 9)), set(range(9, 17))


# ---------------------------------------------------------------- simulated


def test_sixteen_simulated_nodes_form_a_ring() -> None:
    with SimCluster(n=NODES, seed=1) as cluster:
        cluster.settle()
        assert all(cluster[n].view.nodes == tuple(range(1, 17)) for n in range(1, 17))
        for n in range(1, 17):
            cluster[n].send(b"hello")
        cluster.run_until(lambda: all(len(cluster[n].delivered) == NODES for n in range(1, 17)), 2, "all messages")
        assert len({tuple(cluster[n].delivered) for n in range(1, 17)}) == 1


@pytest.mark.parametrize("graceful", [True, False], ids=["leave", "crash"])
def test_a_simulated_rolling_restart_keeps_the_majority(graceful: bool) -> None:
    with SimCluster(n=NODES, seed=2) as cluster:
        cluster.settle()
        for n in range(1, 17, 1 if graceful else 4):
            if graceful:
                cluster[n].leave()
                cluster.run_until(lambda n=n: not cluster[n].up, 5, "the end of the leave")
            else:
                cluster.crash(n)
            witness = n % 16 + 1
            cluster[witness].send(b"meanwhile")
            cluster.run_until(lambda n=n, w=witness: n not in cluster[w].view.nodes, 5, "a view without it")
            assert cluster[witness].view.primary
            cluster.restart(n)
            cluster.settle()
        assert cluster[1].view.nodes == tuple(range(1, 17))


def test_a_simulated_split_in_halves_and_a_merge() -> None:
    with SimCluster(n=NODES, seed=3) as cluster:
        cluster.settle()
        cluster.partition(HALF, OTHER)

        def split() -> bool:
            return all(set(cluster[n].view.nodes) == (HALF if n in HALF else OTHER) for n in range(1, 17))

        cluster.run_until(split, 10, "a view of each half")
        assert not any(cluster[n].view.primary for n in range(1, 17))  # nobody has a majority
        for n in (1, 16):
            cluster[n].send(b"from half a cluster")
        cluster.advance(1)
        cluster.heal()
        cluster.settle()
        assert cluster[9].view.nodes == tuple(range(1, 17))
        assert cluster[9].view.primary


# ---------------------------------------------------------------- live


@pytest.mark.live
@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(400)
def test_sixteen_daemons_roll_split_and_merge() -> None:
    """The split is the only one that real daemons of one host can have: a half stands still (SIGSTOP)."""
    with LocalCluster(NODES, timing=CALM_MS) as cluster:
        assert len(set(view_ids(cluster))) == 1
        works(cluster)
        with dlm.connect(cluster["a"].url) as locks, locks.lock("kept", timeout=20) as held:
            for name in cluster.names[1:]:
                assert cluster.leave(name) == 0
                cluster.restart(name)
                cluster.wait_view(cluster.names, 60)
            assert held.valid, held
        half = cluster.names[8:]
        before = view_ids(cluster)[0]
        for name in half:
            cluster.stop(name)
        rest = cluster.names[:8]

        def frozen() -> bool:
            views = [(cluster.status(name) or {}).get("view") or {} for name in rest]
            return all(len(v.get("members", ())) == 8 and not v["primary"] for v in views)

        until(frozen, "a view of half of the nodes", 60)
        for name in half:
            cluster.cont(name)
        view = cluster.wait_view(cluster.names, 60)
        assert view["id"] != before
        works(cluster)
        assert all(cluster[name].process.poll() is None for name in cluster.names)  # type: ignore[union-attr]
        cluster.kill("p", signal.SIGKILL)
        cluster.wait_view(cluster.names[:-1], 60)
