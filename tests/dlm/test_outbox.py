"""Own messages: kept until applied, sent again in order, not lost to a full send queue (pitfalls K6, K12)."""

from __future__ import annotations

import pytest

from dlm.messages import Kind, decode, encode, key_of, split_key
from dlm.modes import EX, NL
from dlm.outbox import Outbox
from tests.dlm.bus import LEASE, MS, Bus
from vsync.errors import Backpressure
from vsync.types import RingId

RING = RingId(10, 1)


class Queue:
    """A send queue with room for so many."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken: list[int] = []

    def submit(self, payload: bytes) -> None:
        if len(self.taken) == self.room:
            raise Backpressure("full")
        self.taken.append(decode(payload).serial)


def filled(count: int) -> Outbox:
    outbox = Outbox()
    outbox.begin(RING)
    for i in range(count):
        outbox.add(Kind.CANCEL, (b"n", 1, i), (b"n",))
    return outbox


def test_what_a_full_queue_refuses_goes_later_in_order() -> None:
    outbox, queue = filled(5), Queue(2)
    outbox.flush(queue.submit)
    assert queue.taken == [1, 2]
    outbox.applied(1)
    queue.room = 4
    outbox.flush(queue.submit)
    queue.room = 100
    outbox.flush(queue.submit)
    outbox.flush(queue.submit)
    assert queue.taken == [1, 2, 3, 4, 5]


def test_a_view_sends_again_what_was_not_applied() -> None:
    outbox, queue = filled(4), Queue(100)
    outbox.flush(queue.submit)
    outbox.applied(1)
    outbox.rewind()
    outbox.flush(queue.submit)
    assert queue.taken == [1, 2, 3, 4, 2, 3, 4]


def test_an_old_copy_may_be_applied_before_the_new_one_leaves() -> None:
    outbox, queue = filled(3), Queue(0)
    outbox.rewind()
    outbox.applied(1)
    queue.room = 100
    outbox.flush(queue.submit)
    assert queue.taken == [2, 3]


def test_names_under_way_are_counted() -> None:
    outbox = filled(2)
    assert outbox.under_way == {b"n": 2}
    outbox.applied(1)
    assert outbox.under_way == {b"n": 1}
    outbox.applied(2)
    assert outbox.under_way == {}
    outbox.begin(RING)
    outbox.add(Kind.GOODBYE, ())
    with pytest.raises(AssertionError):
        outbox.applied(2)


def test_messages_round_trip() -> None:
    body = (b"\xff\x00", 1, 2, 5, 0, None, 7, "prog")
    message = decode(encode(Kind.LOCK, RING, 9, body))
    assert (message.kind, message.ring, message.serial, message.body) == (Kind.LOCK, RING, 9, body)
    for broken in (b"\x01", b"\x01\x01", b"\x01\x93\x01\x02\x03"):
        with pytest.raises((ValueError, TypeError)):
            decode(broken)


@pytest.mark.parametrize(("space", "name"), [("default", b"a\x00b"), ("app", b"a"), ("app", b"\xff")])
def test_keys_round_trip(space: str, name: bytes) -> None:
    assert split_key(key_of(space, name)) == (space, name)


def test_spaces_do_not_meet() -> None:
    bus = Bus()
    first, _ = bus.lock(1, b"x", EX)
    second, _ = bus.lock(2, b"x", EX, space="other")
    bus.run()
    assert bus.granted(first)
    assert bus.granted(second)
    rows = bus.result(bus.call(1, "ls", space="other"))
    assert [(row["name"], row["space"], row["owner"]) for row in rows] == [(b"x", "other", 2)]


def test_a_full_send_queue_delays_but_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus()
    node = bus[1]
    accept = node.host.submit

    def submit(payload: bytes) -> None:
        if len(node.queue) >= 3:
            raise Backpressure("full")
        accept(payload)

    monkeypatch.setattr(node.host, "submit", submit)
    requests = [bus.lock(1, b"n%d" % i)[0] for i in range(20)]
    assert len(node.queue) == 3
    bus.advance(2000 * MS)
    assert all(bus.granted(rid) for rid in requests)
    bus.check_at_rest()


def test_copies_from_the_old_ring_count_once() -> None:
    bus = Bus()
    rid, h = bus.lock(1, mode=NL)
    bus.lock(1, b"Q", NL)
    bus.view([1, 2, 3])  # both are still queued, and submitted again
    assert bus.kinds(1) == [Kind.LOCK] * 4
    bus.run()
    assert bus.granted(rid)
    assert bus[2].table.ignored == 2
    bus.call(1, "unlock", h=h)
    bus.advance(LEASE)
    bus.check_at_rest()


@pytest.mark.parametrize(
    ("verb", "args", "answer"),
    [
        ("nonsense", {}, "invalid"),
        ("lock", {"h": 1, "name": b"x", "mode": 6}, "invalid"),
        ("lock", {"h": 0, "name": b"x", "mode": 5}, "invalid"),
        ("lock", {"h": True, "name": b"x", "mode": 5}, "invalid"),
        ("lock", {"h": 1, "name": b"", "mode": 5}, "invalid"),
        ("lock", {"h": 1, "name": b"x" * 65, "mode": 5}, "invalid"),
        ("lock", {"h": 1, "name": 7, "mode": 5}, "invalid"),
        ("lock", {"h": 1, "name": b"x", "mode": 5, "no_quorum": "maybe"}, "invalid"),
        ("lock", {"h": 1, "name": b"x", "mode": 5, "value": b"v" * 2000}, "invalid"),
        ("lock", {"h": 1, "name": b"x", "mode": 5, "space": "a\0b"}, "invalid"),
        ("convert", {"h": 9, "mode": 5}, "unknown"),
        ("unlock", {"h": 9}, "unknown"),
        ("cancel", {"h": 9}, {"canceled": False}),
    ],
)
def test_arguments(verb: str, args: dict[str, object], answer: object) -> None:
    bus = Bus()
    bus.rid += 1
    bus.requests[bus.rid] = (bus[1], 1, "other", {})
    bus[1].service.request(1, bus.rid, verb, args, bus.now)
    assert bus.result(bus.rid) == answer
    assert bus.submitted == 0


def test_a_handle_number_in_use_and_a_busy_handle() -> None:
    bus = Bus()
    bus.lock(2, mode=3)
    bus.run()
    first, h = bus.lock(1, mode=3)
    bus.run()
    assert bus.granted(first)
    assert bus.result(bus.call(1, "lock", h=h, name=b"other", mode=0)) == "exists"
    waiting = bus.call(1, "convert", h=h, mode=EX)
    bus.run()
    assert bus.result(waiting) is None
    assert bus.result(bus.call(1, "convert", h=h, mode=NL)) == "busy"
    released = bus.call(1, "unlock", h=h)
    assert bus.result(bus.call(1, "unlock", h=h)) == "unknown"
    bus.run()
    assert bus.result(waiting) == "canceled"
    assert bus.result(released) == {}
