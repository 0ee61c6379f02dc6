"""Leases and horizons: the pitfalls D of the design (docs/pitfalls-tests.md)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlm.modes import EX, NL, PR
from tests.dlm.bus import Bus
from tests.dlm.test_sim import IDLE, Stage
from vsync.testing.options import scaled
from vsync.testing.rules import TYPE_AT
from vsync.types import Timing
from vsync.wire import FrameType

L_S = scaled(0.2).lease / 1_000_000  #: of a stage, in seconds


def primary(stage: Stage, *nodes: int) -> bool:
    views = [stage.cluster[node].view for node in nodes]
    return all(view is not None and view.primary and view.nodes == nodes for view in views)


@pytest.mark.parametrize("shared", [False, True])
def test_d1_killed_right_after_a_grant_that_nobody_else_has_seen(shared: bool) -> None:
    """The daemon dies, its client lives on, and counts on a lock that no survivor has heard of: so no grant is told
    before its lease must have run out (the simulator's rule GRANT-Q2 watches).
    """
    told = 0
    for moment in range(16):
        stage = Stage(seed=moment)
        stage.cluster.advance(L_S + 0.1)  # the cluster itself has just begun
        if shared:
            for node in (2, 3):
                stage.holding(node, mode=NL)
        client, other = stage.client(1), stage.client(2)
        operation = stage.locks.lock(client, b"r")
        stage.cluster.advance(0.0003 * moment)
        stage.cluster.crash(1)
        later = stage.locks.lock(other, b"r")
        stage.granted(later)
        if operation.ok:
            told += 1
            assert later.handle.fence > operation.handle.fence
            assert not operation.handle.valid()
        stage.end()
    assert told > 2


@pytest.mark.parametrize("late", [1.0, 2.0])
def test_d2_a_token_that_lies_in_a_buffer_for_two_leases(late: float) -> None:
    """It is sent to 1 and not taken before 2 and 3 have left that ring and given 1's lock away. What 1 makes of it
    then counts from before it was sent, not from its reception.
    """
    for seed in range(4):
        stage = Stage(seed)
        _, held = stage.holding(1)
        waits = stage.locks.lock(stage.client(2), b"r")
        stage.cluster.advance(0.05)
        on_its_way: list[int] = []

        def note(src: int, dst: int, frame: bytes, to: list[int] = on_its_way) -> bool:
            if dst == 1 and frame[TYPE_AT] == FrameType.TOKEN:
                to.append(src)
            return False

        stage.cluster.network.drop = note
        stage.until(lambda: bool(on_its_way))  # noqa: B023 - at once
        stage.cluster.network.drop = None
        stage.cluster[1].pause()  # the token arrives at a process that does not run
        stage.cluster.advance(late * L_S)
        stage.granted(waits)
        assert waits.handle.valid()
        stage.cluster[1].resume()
        assert not held.valid()
        stage.cluster.advance(0.5)
        assert not held.valid()
        stage.end()


def test_d2_clocks_that_drift() -> None:
    """The horizon outlasts the lease by what two clocks may drift apart; a busy ring leaves no slack."""
    for seed in range(16):
        stage = Stage(seed, drift_ppm=10_000, timing=Timing())
        _, held = stage.holding(1)
        operation = stage.locks.lock(stage.client(2), b"r")
        for _ in range(60):
            for node in stage.cluster.nodes.values():
                node.send(b"traffic")
            stage.cluster.advance(0.002)
        stage.cluster[1].pause()  # a stopped daemon notices nothing; its client goes by the page
        stage.granted(operation)
        assert not held.valid()
        stage.end()


def test_d3_two_of_three_restart_inside_a_lease() -> None:
    """They have an empty table and know of no lock, but they know that they do not know."""
    stage = Stage()
    _, held = stage.holding(1)
    stage.cluster.partition({1}, {2, 3})
    for node in (2, 3):
        stage.cluster.crash(node)
        stage.cluster.restart(node)
    stage.until(lambda: primary(stage, 2, 3))
    operation = stage.locks.lock(stage.client(2), b"r")
    stage.granted(operation)
    assert not held.valid()
    stage.end()


def test_d3_the_wait_outlasts_further_views() -> None:
    """1's daemon is killed. Others come and go within its lease; each view begins with what the last one knew."""
    stage = Stage(nodes=5)
    _, held = stage.holding(1)
    waits = stage.locks.lock(stage.client(2), b"r")
    stage.cluster.advance(0.05)
    stage.cluster.crash(1)
    for node in stage.cluster.nodes.values():
        node.peer_gone(1)
    stage.until(lambda: primary(stage, 2, 3, 4, 5))
    stage.cluster[5].leave()
    stage.until(lambda: primary(stage, 2, 3, 4))
    assert held.valid()
    assert waits.ok is None
    stage.granted(waits)
    assert not held.valid()
    stage.end()


def orphan(bus: Bus, node: int) -> None:
    """A client of this node dies and leaves a persistent lock."""
    bus.lock(node, mode=EX, session=2, persistent=True)
    bus.run()
    bus.close(node, session=2)
    bus.run()


def test_d7_a_third_party_takes_a_lock_from_the_last_node_of_the_ring() -> None:
    """1 has 3's orphan purged; 3 misses the frame. Whoever has delivered it may not act upon it: only the lock's
    home takes it away, by a message of its own, after it has ended what there was.
    """
    bus = Bus()
    for node in (1, 2):
        bus.lock(node, mode=NL)
        bus.run()
    orphan(bus, 3)
    waits, _ = bus.lock(2)
    bus.run()
    assert bus.result(waits) is None
    bus.call(1, "purge", node=3)
    bus.sequence()
    bus.deliver(1, 2)
    bus.advance(0)
    assert bus.result(waits) is None
    assert any(key[0] == 3 for key in bus[2].table.names[b"\0R"].resource.locks)
    bus.deliver(3)
    bus.run()
    assert bus.granted(waits)
    bus.check_at_rest()


def test_d7_who_may_be_demoted_does_not_count_on_its_mode_meanwhile() -> None:
    """Two convert from PR to EX. The second agrees to give up what it has (CONVDEADLK); it may be NL for others
    long before it hears so: its client relies on nothing from the moment at which it asks.
    """
    for seed in range(6):
        stage = Stage(seed)
        _, one = stage.holding(1, mode=PR)
        _, two = stage.holding(2, mode=PR)
        stage.holding(3, mode=NL)
        first = stage.locks.convert(one, EX)
        second = stage.locks.convert(two, EX, convdeadlk=True)
        assert two.mode == NL
        assert stage.granted(first).valid()
        assert second.ok is None
        stage.locks.unlock(one)
        assert stage.granted(second).valid()
        stage.end()


def test_d9_a_client_that_reads_its_socket_late() -> None:
    """1 is excluded, its lock goes to 2; 1 is readmitted and has a lease again. A client there that has not read of
    its loss yet sees a deadline in the future – of another generation.
    """
    stage = Stage(habits=replace(IDLE, late=1))
    client, held = stage.holding(1)
    client.lag = 10_000_000
    stage.cluster.partition({1}, {2, 3})
    operation = stage.locks.lock(stage.client(2), b"r")
    stage.granted(operation)
    stage.cluster.heal()
    stage.until(lambda: primary(stage, 1, 2, 3))
    stage.cluster.advance(0.2)
    assert held.held, "the client believes in it"
    assert client.page.deadline > stage.cluster[1].clock(), "there is a lease"
    assert client.inbox
    assert not held.valid()
    assert operation.handle.valid()
    client.lag = 0
    stage.end()


def test_d9_an_evicted_holder_stays_evicted() -> None:
    """The same, when it has read all."""
    stage = Stage()
    _, held = stage.holding(1)
    stage.cluster.partition({1}, {2, 3})
    operation = stage.locks.lock(stage.client(2), b"r")
    stage.granted(operation)
    stage.cluster.heal()
    stage.cluster.settle()
    assert held.over, "the client has been told"
    assert operation.handle.valid()
    stage.end()


