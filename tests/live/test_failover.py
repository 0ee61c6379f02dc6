"""How long locks are out of reach, beside the timers; the figures are made by ``python -m dlm.bench.failover``."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import dlm
from tests.live.helpers import until
from vsync.clock import boot_us
from vsync.testcluster import LocalCluster
from vsync.types import Timing

pytestmark = pytest.mark.live

LEASE = Timing().lease
SLACK_US = 300_000  #: what a loaded machine with two processors adds


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster() as cluster:
        yield cluster


class Heir:
    """Somebody at a node who waits for a lock, and when it was granted."""

    def __init__(self, cluster: LocalCluster, node: str, name: str) -> None:
        self.granted_at = 0
        self._locks = dlm.connect(cluster[node].url)
        self._thread = threading.Thread(target=self._wait, args=(name,), daemon=True)
        self._thread.start()
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


def test_the_heir_of_a_killed_node_waits_for_its_lease_and_no_longer(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["a"].url) as locks:
        held = locks.acquire("x", timeout=20)
        heir = Heir(cluster, "b", "x")
        deadline = locks.session.lease()[1]
        began = boot_us()
        cluster.kill("a")
        spent = heir.spent_us(began)
        assert began + spent > deadline
        assert spent < LEASE * 101 // 99 + SLACK_US
        assert held.lost.reason == "daemon_gone"


def test_the_heir_of_a_node_that_leaves_waits_for_nothing(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["a"].url) as locks:
        locks.acquire("x", timeout=20)
        heir = Heir(cluster, "b", "x")
        began = boot_us()
        cluster.leave("a")
        assert heir.spent_us(began) < SLACK_US < LEASE // 4
