"""What broke in dlm_controld's POSIX locks and in openais' lock service (docs/lock-history.md, S58 to S73).

Both are replicated tables fed by a total order, as this one is: their bugs are the nearest relatives.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from dlm import transfer
from dlm.messages import Kind, decode, encode, key_of
from dlm.modes import CR, EX, MODES, NL, PR
from dlm.table import Table
from tests.dlm.bus import CLIENT, LEASE, Bus
from vsync.types import RingId

R = key_of("default", b"R")


def rejoin(bus: Bus, node: int = 3) -> None:
    bus.boot(node)
    bus.view([1, 2, 3])
    bus.run()
    assert bus[node].service.complete


def without(bus: Bus, node: int = 3) -> None:
    bus.kill(node)
    bus.view([other for other in (1, 2, 3) if other != node])
    bus.advance(2 * LEASE)


def test_s58_what_was_ordered_before_the_state_is_not_applied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages on both sides of the transfer's position, among them some that a second time would do harm."""
    monkeypatch.setattr(transfer, "CHUNK_SIZE", 64)
    bus = Bus()
    without(bus)
    _, h = bus.lock(1)
    bus.lock(2, session=2)
    bus.sequence()
    bus.boot(3)
    bus.view([1, 2, 3], rest={1: 2})
    bus.call(1, "unlock", h=h)
    for _ in range(40):
        bus.sequence()
        bus.deliver(count=1)
    bus.run()
    bus.check_at_rest()
    assert [key[0] for key in bus[3].table.names[R].resource.locks] == [2]


@pytest.mark.parametrize("to", ["the others", "one that joins"])
def test_s59_queues_move_with_the_name(to: str) -> None:
    """Waiting and converting locks, in their order, with what they asked for."""
    bus = Bus()
    if to == "one that joins":
        without(bus)
    asked = []
    for session, mode in enumerate((PR, PR, EX, CR, PR, EX), start=10):
        bus[1].service.open(session, CLIENT, bus.now)
        asked.append(bus.lock(1, mode=mode, session=session)[1])
        bus.run()
    bus.call(1, "convert", 10, h=asked[0], mode=EX)
    bus.run()
    before = bus[1].table.names[R].resource.encode()
    bus.lock(2, mode=EX)
    bus.run()
    if to == "one that joins":
        rejoin(bus)
    for node in bus.alive():
        resource = node.table.names[R].resource
        assert [lock.key[1] for lock in resource.waiting] == [12, 13, 14, 15, 1]
        assert [lock.key[1] for lock in resource.converting] == [10]
        for rows, were in zip(resource.encode()[2:4], before[2:4], strict=True):
            assert [row[:-2] for row in rows] == [row[:-2] for row in were]  # all but when each began to wait


def test_s60_a_transferred_state_is_the_donors_byte_for_byte() -> None:
    """In every mode and state a lock can be in."""
    bus = Bus()
    without(bus)
    for mode in MODES:
        for other in MODES:
            name = b"%d%d" % (mode, other)
            _, h = bus.lock(1, name, mode)
            bus.lock(2, name, other, blocking=True, persistent=True)
            bus.lock(1, name, EX, valblk=True, session=2)
            bus.run()
            bus.call(1, "convert", h=h, mode=other, valblk=True, value=b"v")
            bus.run()
    rejoin(bus)
    assert bus[3].table.encode() == bus[1].table.encode()
    assert Table.decode(3, bus[3].table.encode(), 0).encode() == bus[1].table.encode()


def test_s61_all_come_at_once_and_nobody_has_a_state() -> None:
    """The first time, and after all have died: they know that nobody knows, and begin."""
    bus = Bus()
    rid, _ = bus.lock(1)
    bus.run()
    assert bus.granted(rid)
    for node in (1, 2, 3):
        bus.kill(node)
        bus.boot(node)
    bus.view([1, 2, 3])
    assert all(node.service.complete for node in bus.alive())
    again, _ = bus.lock(2)
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.granted(again)


@pytest.mark.parametrize("end", ["its process", "its node"])
def test_s62_nobody_waits_who_is_dead(end: str) -> None:
    """A waiter in front of others, in the table and in a handover."""
    for shared in (False, True):
        bus = Bus()
        _, h = bus.lock(1, mode=PR)
        bus.run()
        if shared:
            bus.lock(3, mode=NL)
            bus.run()
        bus.lock(2, mode=EX)
        bus.sequence()
        bus.deliver()
        if end == "its process":
            bus.close(2)
        else:
            bus.kill(2)
            bus.view([1, 3])
        after, _ = bus.lock(3, mode=PR)
        bus.run()
        bus.advance(2 * LEASE)
        assert bus.granted(after)
        assert h


def test_s63_a_close_is_not_answered() -> None:
    """Nothing is said to a session that has gone, whatever it still had under way."""
    bus = Bus()
    bus.lock(3, mode=NL)
    bus.run()
    said: list[int] = []
    for name in ("reply", "refuse", "push"):
        monitored: Any = getattr(bus[2].host, name)
        setattr(bus[2].host, name, _noting(said, monitored))
    bus.lock(2, mode=PR, blocking=True)
    _, h = bus.lock(2, b"own")
    bus.run()
    bus.lock(2, mode=EX)
    bus.call(2, "unlock", h=h)
    said.clear()
    bus.close(2)
    bus.lock(3, mode=EX, session=2)
    bus.run()
    bus.advance(LEASE)
    assert said == []


def _noting(said: list[int], call: Any) -> Any:
    def noted(session: int, *args: Any, **more: Any) -> None:
        if session == 1:
            said.append(session)
        call(session, *args, **more)

    return noted


def test_s64_a_name_without_locks_is_part_of_the_state() -> None:
    """Idle and private: who joins must know whose it is, or would take it for nobody's."""
    bus = Bus()
    _, h = bus.lock(1)
    bus.run()
    bus.call(1, "unlock", h=h)
    bus.kill(3)
    bus.view([1, 2])
    rejoin(bus)
    assert bus[3].table.names[R].owner == 1
    mine, _ = bus.lock(1, session=2)
    theirs, _ = bus.lock(3)
    bus.run()
    bus.advance(LEASE)
    assert (bus.granted(mine), bus.result(theirs)) == (True, None)


def effort(bus: Bus, node: int, name: bytes, **args: Any) -> int:
    """Lines of Python that a lock and its release take, at all nodes together: a clock that is never disturbed."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        _, h = bus.lock(node, name, **args)
        bus.sequence()
        bus.deliver()
        bus.call(node, "unlock", h=h)
        bus.sequence()
        bus.deliver()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("where", ["beside many names", "beside many holders", "behind many others"])
def test_s66_an_operation_does_not_look_at_all_the_others(where: str) -> None:
    """plocks took minutes with 100,000 of them."""
    efforts = []
    for number in (20, 400):
        bus = Bus()
        bus.check_exclusion = bus.check = lambda: None  # type: ignore[method-assign] # these look at everything
        bus.lock(3, mode=CR)
        bus.lock(2, mode=NL)
        bus.run()
        for i in range(number):
            if where == "beside many names":
                bus.lock(1 + i % 3, b"n%d" % i)
            else:
                bus.lock(1 + i % 3, mode=CR if where == "beside many holders" else EX)
        bus.run()
        efforts.append(effort(bus, 2, b"R", mode=NL))
    assert efforts[1] < efforts[0] * 1.1, efforts


def test_s69_a_time_out_is_an_event_in_the_order() -> None:
    """A grant and a withdrawal cross: at every member the same one is first, whoever waited knows which."""
    for first in (1, 2):
        bus = Bus()
        bus.lock(3, mode=NL)
        bus.run()
        _, h = bus.lock(1)
        bus.run()
        waits, w = bus.lock(2)
        bus.run()
        bus.call(1, "unlock", h=h)
        cancel = bus.call(2, "cancel", h=w)
        bus.sequence(first, 3 - first)
        bus.run()
        granted = first == 1
        assert bus.granted(waits) == granted
        assert bus.result(cancel) == {"canceled": not granted}
        locks = [sorted(node.table.names[R].resource.locks) for node in bus.alive()]
        assert locks == [[(2, 1, w), (3, 1, 1)] if granted else [(3, 1, 1)]] * 3


def test_s70_the_same_session_and_handle_at_two_nodes_are_two_locks() -> None:
    """A grant, a refusal, advice and an end concern the home they are addressed to."""
    bus = Bus()
    requests = {}
    for node in (1, 2, 3):
        requests[node] = bus.call(node, "lock", h=7, name=b"R", mode=PR, blocking=True)
        bus.run()
    assert all(bus.granted(rid) for rid in requests.values())
    bus.call(2, "unlock", h=7)
    bus.run()
    bus.call(3, "convert", h=7, mode=EX, blocking=True)
    bus.run()
    assert [len(node.pushes) for node in bus.alive()] == [1, 0, 0]
    assert sorted(bus[1].table.names[R].resource.locks) == [(1, 1, 7), (3, 1, 7)]


def test_s71_a_second_release_does_not_meet_the_next_lock_of_that_number() -> None:
    """The client says it twice, and the ring delivers a copy of the first one late."""
    bus = Bus()
    bus.lock(3, mode=NL)
    bus.run()
    _, h = bus.lock(2)
    bus.run()
    bus.call(2, "unlock", h=h)
    assert bus.result(bus.call(2, "unlock", h=h)) == "unknown"
    bus.run()
    copy = bus[2].ring.log[-1]
    assert decode(copy[1]).kind == Kind.UNLOCK
    again = bus.call(2, "lock", h=h, name=b"R", mode=EX)
    bus.run()
    bus[2].ring.log.append(copy)
    bus.run()
    assert bus.granted(again)
    assert (2, 1, h) in bus[1].table.names[R].resource.locks


@pytest.mark.parametrize("nodes", [(1, 1), (1, 2)], ids=["private", "shared"])
def test_s72_releasing_what_waits_answers_both(nodes: tuple[int, int]) -> None:
    """E22: it leaves its queue; the request has its outcome, and so has the release."""
    bus = Bus()
    bus.lock(nodes[0])
    bus.run()
    waits, h = bus.lock(nodes[1], session=2)
    bus.run()
    release = bus.call(nodes[1], "unlock", 2, h=h)
    bus.run()
    assert (bus.result(waits), bus.result(release)) == ("canceled", {})
    assert all(len(node.table.names[R].resource.locks) == 1 for node in bus.alive() if node.table.names[R].resource)


def test_s73_the_bytes_of_a_message_are_the_same_on_every_machine() -> None:
    ring, body = RingId(0x0102030405, 7), (b"\0R", 1, 2, 5, 0x1000001, b"\0\1", 4242, "program", 0, 0)
    data = bytes.fromhex(
        "01 9e 01 cf0000000102030405 07 2a c4020052 01 02 05 ce01000001 c4020001 cd1092 a770726f6772616d 00 00"
    )
    assert encode(Kind.LOCK, ring, 42, body) == data
    assert decode(data) == (Kind.LOCK, ring, 42, body)
