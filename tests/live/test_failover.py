"""How long locks are out of reach, beside the timers; the figures are made by ``python -m dlm.bench.failover``.

Ratios only: what a loaded machine adds is far below a quarter of the lease, and so is all where nobody waits for a
timer. That a change of the ring at a join is short is shown under virtual time (``scenarios/test_joining.py``).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

import dlm
from dlm.bench.lockers import Locker, shared_name
from tests.live.helpers import counters, status, until, view_ids
from vsync.bench.cables import RelayCables
from vsync.clock import boot_us
from vsync.testcluster import LocalCluster
from vsync.types import Timing

pytestmark = pytest.mark.live

LEASE = Timing().lease
SOON = LEASE // 4  #: nobody has waited for a lease, nor for a lost token
STABLE = '\n[dlm.lockspace.default]\nanswer = "stable"\n'


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster() as cluster:
        yield cluster


@pytest.fixture
def stable() -> Iterator[LocalCluster]:
    cluster = LocalCluster()
    for node in cluster.nodes:
        node.config.write_text(node.config.read_text() + STABLE)
    with cluster:
        yield cluster


class Heir:
    """Somebody at a node who asks for a lock, and when it was granted."""

    def __init__(self, cluster: LocalCluster, node: str, name: str, waits: bool = True) -> None:
        self.granted_at = 0
        self._locks = dlm.connect(cluster[node].url)
        self._thread = threading.Thread(target=self._wait, args=(name,), daemon=True)
        self._thread.start()
        if waits:
            until(lambda: self._locks.contenders(name), f"somebody waits for {name}")

    def _wait(self, name: str) -> None:
        held = self._locks.acquire(name, timeout=30)
        self.granted_at = boot_us()
        held.release(wait=True)

    def spent_us(self, began: int) -> int:
        """Until the grant."""
        self._thread.join()
        self._locks.close()
        assert self.granted_at
        return self.granted_at - began


def all_grant(cluster: LocalCluster) -> None:
    """Wait until every node grants at once: nothing is left of the start."""
    for name in cluster.names:
        with dlm.connect(cluster[name].url) as locks:
            locks.acquire("ready", timeout=20).release(wait=True)


def hears_joins(cluster: LocalCluster, name: str, joins: int) -> None:
    """Wait until a node has heard so many JOINs."""
    until(lambda: counters(cluster, name)["memb_join_rx"] >= joins, f"{name} hears {joins} JOINs")


def test_the_heir_of_a_killed_node_waits_for_its_lease_and_no_longer(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["a"].url) as locks:
        held = locks.acquire("x", timeout=20)
        heir = Heir(cluster, "b", "x")
        deadline = locks.session.lease()[1]
        began = boot_us()
        cluster.kill("a")
        spent = heir.spent_us(began)
        assert began + spent > deadline
        assert spent < LEASE * 101 // 99 + SOON
        until(lambda: held.lost, "its holder knows that it is lost")
        assert held.lost.reason == "daemon_gone"


def test_with_stable_answers_only_what_the_dead_node_had_waits_for_its_lease(stable: LocalCluster) -> None:
    all_grant(stable)
    with dlm.connect(stable["a"].url) as locks:
        held = locks.acquire("held", timeout=20)
        heir = Heir(stable, "b", "held")
        deadline = locks.session.lease()[1]
        began = boot_us()
        stable.kill("a")
        others = [Heir(stable, node, f"free/{node}", waits=False) for node in ("b", "c")]
        assert max(other.spent_us(began) for other in others) < SOON
        assert heir.spent_us(began) + began > deadline
        until(lambda: held.lost, "its holder knows that it is lost")


def test_the_heir_of_a_node_that_leaves_waits_for_nothing(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["a"].url) as locks:
        held = locks.acquire("x", timeout=20)
        heir = Heir(cluster, "b", "x")
        began = boot_us()
        cluster.leave("a")
        assert heir.spent_us(began) < SOON
        until(lambda: held.lost, "its holder knows that it is lost")


def test_who_locks_private_names_does_not_notice_that_another_node_is_killed(cluster: LocalCluster) -> None:
    all_grant(cluster)
    with contextlib.ExitStack() as stack:
        lockers = [stack.enter_context(Locker(cluster[name])) for name in ("b", "c")]
        began = boot_us()
        cluster.kill("a")
        cluster.wait_view(["b", "c"])
        until(lambda: boot_us() > began + LEASE, "the lease of the dead node is over")
        found = [locker.pauses(began, boot_us()) for locker in lockers]
    assert max(pauses.longest["private"] for pauses in found) < SOON
    assert min(pauses.count["private"] for pauses in found)


@pytest.mark.parametrize("transport", ["udp", pytest.param("zmq", marks=pytest.mark.long)])
def test_nobody_waits_for_a_newcomer_that_does_not_hear_anybody_yet(transport: str) -> None:
    """It is heard long before it hears: as if its former connections had yet to be made anew, only longer."""
    timing = {"consensus_ms": 3000, "lease_ms": 6000}
    cluster = LocalCluster(settings={"transport": transport}, timing=timing)
    with contextlib.ExitStack() as stack:
        cables = stack.enter_context(contextlib.closing(RelayCables(cluster, transport)))
        stack.enter_context(cluster)
        all_grant(cluster)
        cluster.leave("c")
        cluster.wait_view(["a", "b"])
        keepers = {name: stack.enter_context(dlm.connect(cluster[name].url)) for name in ("a", "b")}
        kept = [keepers[x].acquire(shared_name(y), dlm.Mode.NL, timeout=20) for x, y in ("ab", "ba")]
        lockers = [stack.enter_context(Locker(cluster[name])) for name in ("a", "b")]
        before = {name: counters(cluster, name)["memb_join_rx"] for name in ("a", "b")}
        cables.relays[2].cut()
        began = boot_us()
        cluster.restart("c")
        for name, joins in before.items():
            hears_joins(cluster, name, joins + 1)
        heard = boot_us()
        for name, joins in before.items():
            hears_joins(cluster, name, joins + 20)
            assert status(cluster, name)["ring"]["state"] == "operational"
        cables.relays[2].heal()
        deaf = boot_us() - heard
        cluster.wait_view(cluster.names)
        assert len(set(view_ids(cluster))) == 1
        found = [locker.pauses(began, boot_us()) for locker in lockers]
        for held in kept:
            held.release()
    assert max(pauses.longest["shared"] for pauses in found) < deaf / 2
