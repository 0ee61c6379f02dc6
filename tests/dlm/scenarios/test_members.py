"""Members that come, go, and come back (docs/lock-history.md, S39 to S57)."""

from __future__ import annotations

import pytest

from dlm.messages import Kind, key_of
from dlm.modes import EX, NL, PR
from tests.dlm.bus import LEASE, MS, Bus

R = key_of("default", b"R")


def granted_in_the_end(bus: Bus, rid: int) -> bool:
    bus.run()
    bus.advance(2 * LEASE)
    return bus.granted(rid)


def test_s40_a_partition_and_its_end_are_two_changes() -> None:
    """dlm_controld matched the start messages of one to the other. A view is one event, with all it needs."""
    bus = Bus(5)
    bus.lock(1, mode=PR)
    bus.run()
    waits, _ = bus.lock(5)
    bus.run()
    first = bus.view([1, 2, 3])
    bus.view([4, 5])
    second = bus.view([1, 2, 3, 4, 5])
    bus.run()
    assert {node.table.ring for node in bus.alive()} == {second}
    assert second > first
    bus.close(1)
    assert granted_in_the_end(bus, waits)
    bus.check_at_rest()


def test_s42_the_verdict_on_quorum_comes_with_the_members() -> None:
    """No instant at which the one is known and the other is not: nothing is granted in the view without quorum."""
    bus = Bus()
    for node in (1, 2, 3):
        bus.view([node])
    requests = [bus.lock(node)[0] for node in (1, 2, 3)]
    bus.advance(2 * LEASE)
    assert not any(bus.granted(rid) for rid in requests)
    bus.view([2, 3])
    bus.advance(2 * LEASE)
    assert sorted(bus.granted(rid) for rid in requests) == [False, False, True]
    assert not bus.granted(requests[0])


def test_s43_everything_goes_on_when_quorum_is_back() -> None:
    bus = Bus()
    _, h = bus.lock(1)
    bus.run()
    waits, _ = bus.lock(2)
    bus.run()
    for _ in range(3):
        for node in (1, 2, 3):
            bus.view([node])
        bus.advance(LEASE)
        bus.view([1, 2, 3])
        bus.run()
    assert bus.result(waits) is None
    bus.call(1, "unlock", h=h)
    assert granted_in_the_end(bus, waits)


def test_s45_a_node_that_is_back_quickly_does_not_shorten_the_wait() -> None:
    """It has forgotten its locks; its former clients may still rely on them until their lease ends."""
    bus = Bus()
    bus.lock(1)
    bus.run()
    bus.kill(1)
    bus.boot(1)
    bus.view([1, 2, 3])
    later, _ = bus.lock(1)
    bus.run()
    assert bus.result(later) is None
    assert len(bus.valid_handles()) == 1
    assert granted_in_the_end(bus, later)


@pytest.mark.parametrize("halves", [([1, 2], [3, 4]), ([1, 4], [2, 3])])
def test_s46_two_halves_do_not_kill_each_other(halves: tuple[list[int], list[int]]) -> None:
    """Neither has a majority; when they meet, what was held is still held."""
    bus = Bus(4)
    _, h = bus.lock(1)
    bus.run()
    waits, _ = bus.lock(3)
    bus.run()
    for half in halves:
        bus.view(half)
    bus.advance(3 * LEASE)
    assert bus.result(waits) is None
    bus.view([1, 2, 3, 4])
    bus.run()
    assert (1, 1, h) in bus[3].table.names[R].resource.locks
    assert all(node.alive and not node.host.reformed for node in bus.nodes.values())
    bus.call(1, "unlock", h=h)
    assert granted_in_the_end(bus, waits)
    bus.check_at_rest()


def test_s47_nobody_waits_for_one_that_left_in_order() -> None:
    bus = Bus()
    _, h = bus.lock(1)
    bus.run()
    waits, _ = bus.lock(2)
    bus.run()
    bus[1].service.leaving(bus.now)
    bus.tokens()
    bus.run()
    assert bus.granted(waits)  # before the view, and before any lease ran out
    bus.kill(1)
    bus.view([2, 3])
    bus.call(2, "unlock", h=bus.h)
    again, _ = bus.lock(3)
    bus.run()
    assert bus.granted(again)
    assert h


def test_s50_leaving_needs_no_quorum() -> None:
    """With and without something to say."""
    for holds in (False, True):
        bus = Bus()
        if holds:
            bus.lock(1)
            bus.run()
        bus.view([1])
        bus[1].service.leaving(bus.now)
        assert bus[1].service.may_leave()
        fresh = Bus(3, bootstrap=False)
        fresh[1].service.leaving(fresh.now)
        assert fresh[1].service.may_leave()


def test_s51_one_whose_life_has_ended_is_not_listened_to() -> None:
    """It was cut off and goes on sending what it had queued; all the others ignore it alike."""
    bus = Bus()
    _, h = bus.lock(1)
    bus.run()
    bus.lock(2, mode=NL)
    bus.run()
    bus.call(1, "convert", h=h, mode=PR)
    bus.call(1, "unlock", h=h)
    queued = list(bus[1].queue)
    assert len(queued) == 2
    bus.view([1])
    bus.view([2, 3])
    bus.view([1, 2, 3])
    bus[1].queue[:0] = queued
    ignored = bus[2].table.ignored
    bus.run()
    assert bus[2].table.ignored >= ignored + 2
    bus.check_at_rest()


def test_s52_what_arrives_twice_counts_once() -> None:
    """Copies of every message, at once and one view later."""
    bus = Bus()
    bus.lock(1, mode=NL)
    bus.run()
    rid, h = bus.lock(2)
    bus[2].queue *= 2
    bus.run()
    copy = bus[2].ring.log[-1]
    release = bus.call(2, "unlock", h=h)
    bus.run()
    bus[1].ring.log.append(copy)
    bus.run()
    assert bus.granted(rid)
    assert bus.result(release) == {}
    assert [key[0] for key in bus[3].table.names[R].resource.locks] == [1]
    bus.check_at_rest()


def test_s53_the_first_message_of_one_that_joins_counts() -> None:
    bus = Bus()
    bus.lock(1, mode=NL)
    bus.run()
    for turn in range(8):
        bus.kill(3)
        bus.view([1, 2])
        bus.advance(2 * LEASE)
        bus.boot(3)
        first, _ = bus.lock(3)
        if turn % 2:
            bus.sequence()
        bus.view([1, 2, 3])
        bus.run()
        assert bus.granted(first), turn


@pytest.mark.parametrize("end", ["dies", "leaves", "restarts"])
@pytest.mark.parametrize("when", ["before the last operation", "after it", "while it moves on"])
def test_s54_a_node_goes_while_a_name_moves_to_it(end: str, when: str) -> None:
    """A5: eight operations in a row make the name node 2's own, and then there is no node 2."""
    bus = Bus()
    _, h1 = bus.lock(1, mode=NL)
    bus.run()
    _, h2 = bus.lock(2, mode=NL)
    bus.run()
    bus.call(1, "unlock", h=h1)
    bus.run()
    for _ in range(7):
        bus.call(2, "convert", h=h2, mode=NL)
        bus.run()
    bus.call(2, "convert", h=h2, mode=EX)
    if when != "before the last operation":
        bus.sequence()
        bus.deliver()
        assert bus[3].table.names[R].owner == 2
    waits, _ = bus.lock(3)
    if when == "while it moves on":
        bus.sequence()
        bus.deliver()
        assert bus.kinds(2) == [Kind.PUBLISH]
    if end == "leaves":
        bus[2].service.leaving(bus.now)
        bus.tokens()
        bus.run()
    bus.kill(2)
    if end == "restarts":
        bus.boot(2)
    bus.view([node.id for node in bus.alive()])
    assert granted_in_the_end(bus, waits)
    assert {key[0] for node in bus.alive() for key in _locks(bus, node.id)} == {3}
    bus.check_at_rest()


def _locks(bus: Bus, node: int) -> list[tuple[int, int, int]]:
    name = bus[node].table.names.get(R)
    return list(name.resource.locks) if name is not None and name.resource is not None else []


def test_s55_a_name_is_given_back_while_somebody_asks_for_it() -> None:
    """Both orders: the one who asked has the lock, and it is in every table."""
    for first in (1, 2):
        bus = Bus()
        _, h = bus.lock(1)
        bus.run()
        bus.call(1, "unlock", h=h)
        bus.now += 11_000 * MS
        bus.tokens()
        bus[1].service.fire(bus.now)
        assert bus.kinds(1) == [Kind.GIVE_BACK]
        rid, _ = bus.lock(2)
        bus.sequence(first, 3 - first)
        bus.run()
        assert bus.granted(rid)
        name = bus[3].table.names[R]
        assert name.owner == 2 or (2, 1, bus.h) in name.resource.locks
        refused, _ = bus.lock(3, noqueue=True)
        bus.run()
        assert bus.result(refused) == "again"
        bus.check_at_rest()


def test_s57_to_leave_is_not_to_fail() -> None:
    """A goodbye frees what was held; a value block that a writer gave back in order stays valid."""
    bus = Bus()
    bus.lock(2, mode=NL)
    bus.run()
    _, h = bus.lock(1, mode=EX)
    bus.run()
    bus.call(1, "unlock", h=h, valblk=True, value=b"v")
    bus.run()
    bus[1].service.leaving(bus.now)
    bus.tokens()
    bus.run()
    rid, _ = bus.lock(3, mode=PR, valblk=True)
    bus.run()
    assert (bus.result(rid)["value"], bus.result(rid)["value_valid"]) == (b"v", True)
    bus.kill(1)
    bus.view([2, 3])
    again, _ = bus.lock(2, mode=PR)
    bus.run()
    assert bus.granted(again)  # nobody has to wait for leases
