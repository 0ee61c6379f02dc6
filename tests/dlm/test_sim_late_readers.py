"""Clients that read late what their daemon has told them: what the checkers of the simulator may make of it."""

from __future__ import annotations

import pytest

from dlm.modes import EX
from dlm.testing.clients import Client, Handle
from dlm.testing.workload import LockOptions, LockPlugin
from vsync.testing import SimCluster
from vsync.testing.options import scaled
from vsync.testing.violation import Violation

IDLE = LockOptions(clients=0, names=1, interval=1_000_000, own=0.0, end=0.0, late=1, modes=(EX,))


def advised_and_converting(cluster: SimCluster, locks: LockPlugin) -> tuple[Client, Handle]:
    """A client that has not read yet whom it blocks, and has said since that it does not want to be told."""
    cluster.settle()
    client, other = locks.connect(cluster[1]), locks.connect(cluster[1])
    handle = locks.lock(client, b"r", EX, blocking=True).handle
    cluster.run_until(lambda: handle.granted == EX, 1.0)
    client.lag = 10**9
    locks.lock(other, b"r", EX)
    cluster.run_until(lambda: bool(client.inbox), 1.0)
    locks.convert(handle, EX, False, blocking=False)
    return client, handle


def read(client: Client) -> None:
    while client.inbox:
        client.inbox.popleft()()


def test_old_advice_of_a_daemon_that_has_died_is_nobodys_fault() -> None:
    """Seed 188, 3 nodes: the daemon died with the answer to a conversion that was no longer to be told."""
    locks = LockPlugin(1, IDLE)
    with SimCluster(n=3, seed=1, timing=scaled(0.2), plugins=[locks]) as cluster:
        client, handle = advised_and_converting(cluster, locks)
        cluster.crash(1)
        assert handle.operation is None
        read(client)


def test_advice_that_was_not_asked_for_is_found() -> None:
    locks = LockPlugin(1, IDLE)
    with SimCluster(n=3, seed=1, timing=scaled(0.2), plugins=[locks]) as cluster:
        client, handle = advised_and_converting(cluster, locks)
        handle.operation = None  # as if the conversion had been over before it was told
        with pytest.raises(Violation, match="BLOCKING"):
            read(client)


def test_a_conversion_that_is_refused_by_its_own_node_changes_nothing() -> None:
    """What the client wanted to be told with it, nobody has heard of: it is told what it asked for before."""
    locks = LockPlugin(1, IDLE)
    with SimCluster(n=3, seed=1, timing=scaled(0.2), plugins=[locks]) as cluster:
        cluster.settle()
        client, other = locks.connect(cluster[1]), locks.connect(cluster[2])
        handle = locks.lock(client, b"r", EX, blocking=True).handle
        cluster.run_until(lambda: handle.granted == EX, 1.0)
        cluster.partition({1}, {2}, {3})
        cluster.run_until(lambda: not cluster[1].view.primary, 1.0)
        refused = locks.convert(handle, EX, True, blocking=False)
        cluster.run_until(lambda: refused.ok is False, 1.0)
        assert refused.data["code"] == "no_quorum"
        cluster.heal()
        cluster.settle()
        locks.lock(other, b"r", EX)
        cluster.run_until(lambda: bool(locks.met["advice"]), 1.0)
