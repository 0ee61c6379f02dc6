"""Options of lockspaces with real daemons: what a node's death is waited for, what not, and how that is seen."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import dlm
from tests.live.helpers import holder, run, status, until, works
from vsync.testcluster import LocalCluster, LocalNode

pytestmark = pytest.mark.live


def told(cluster: LocalCluster, **options: object) -> LocalCluster:
    """With these options for ``default`` in everybody's configuration. Before the nodes are started."""
    words = "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
    for node in cluster.nodes:
        node.config.write_text(node.config.read_text() + f"\n[dlm.lockspace.default]\n{words}")
    return cluster


@contextmanager
def waiter(node: LocalNode, name: str, space: str = "default") -> Iterator[list[dlm.Held]]:
    """A request for the lock through this node; gives a list that the grant will be in."""
    found: list[dlm.Held] = []
    with dlm.connect(node.url, space=space) as locks:
        thread = threading.Thread(target=lambda: found.append(locks.acquire(name, timeout=60)))
        thread.start()
        yield found
        thread.join(60)


def horizon_ms(cluster: LocalCluster, name: str) -> int:
    """How long this node's grants still wait for leases of a node that vanished."""
    left: int = status(cluster, name)["services"]["dlm"]["grants_wait_ms"]
    return left


def test_stable_only_what_the_dead_node_held_waits_for_its_lease() -> None:
    with told(LocalCluster(), answer="stable") as cluster:
        works(cluster)
        with holder(cluster["c"], "held"), dlm.connect(cluster["a"].url) as locks:
            cluster.kill("c")
            with waiter(cluster["b"], "held") as found:
                cluster.wait_view("ab")
                with locks.acquire("free", timeout=30):
                    assert horizon_ms(cluster, "a") > 0
                    assert not found
                until(lambda: found, "the grant")
                assert horizon_ms(cluster, "b") == 0


def test_an_application_recovers() -> None:
    with LocalCluster() as cluster:
        assert run("dlm", "--url", cluster["a"].url, "space", "create", "disks", "--recovery").returncode == 0
        held = dlm.connect(cluster["c"].url, space="disks")
        kept = held.acquire("journal", timeout=30)
        with waiter(cluster["b"], "journal", "disks") as found, dlm.connect(cluster["a"].url, space="disks") as app:
            cluster.kill("c")
            recovery = app.next_recovery(timeout=60)
            assert recovery is not None
            assert (recovery.node, recovery.names) == (3, 1)
            text = "waiting for recovery of lockspace disks from the failure of node 3"
            for command in (["ls"], ["show", "journal", "--why"]):
                done = run("dlm", "--url", cluster["b"].url, *command, "--space", "disks")
                assert text in done.stdout, done
                assert "dlm recovered disks 3" in done.stdout
            assert text in run("vsync", "status", "--url", cluster["b"].url).stdout
            assert "disks  3" in run("dlm", "--url", cluster["b"].url, "failures").stdout
            assert not found
            app.recovered(recovery)
            until(lambda: found, "the grant")
            assert text not in run("vsync", "status", "--url", cluster["b"].url).stdout
        until(lambda: kept.lost, "the holder's being told")
        held.close()


def test_the_command_says_so_as_well() -> None:
    with told(LocalCluster(), recovery=True) as cluster:
        works(cluster)
        with holder(cluster["c"], "journal"):
            cluster.kill("c")
            with waiter(cluster["b"], "journal") as found:

                def said() -> bool:
                    return run("dlm", "--url", cluster["a"].url, "recovered", "default", "3").returncode == 0

                assert not said(), "it is too early: its lease runs"
                until(said, "dlm recovered")
                until(lambda: found, "the grant")


def test_a_client_that_crashes_and_a_node_that_leaves_are_not_waited_for() -> None:
    with told(LocalCluster(), recovery=True, lock_delay_ms=600_000) as cluster:
        works(cluster)
        with holder(cluster["c"], "one") as (process, _), waiter(cluster["b"], "one") as found:
            process.kill()
            until(lambda: found, "the grant after the client's death")
        with holder(cluster["c"], "two"), waiter(cluster["b"], "two") as found:
            cluster.leave("c")
            until(lambda: found, "the grant after the node has left")
            assert horizon_ms(cluster, "b") == 0
        assert run("dlm", "--url", cluster["a"].url, "failures").stdout.count("\n") == 1


def test_a_mistake_in_the_section() -> None:
    with LocalCluster(1) as cluster:
        node = told(cluster, answer="stabel")["a"]
        done = run("vsync.daemon", "--config", node.config, "--check-config")
        assert done.returncode == 1
        assert "[dlm.lockspace.default] answer: 'stabel' is not one of delivery, stable" in done.stderr
