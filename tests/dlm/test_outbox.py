"""Own messages: kept until applied, sent again in order, not lost to a full send queue (pitfalls K6, K12)."""

from __future__ import annotations

import pytest

from dlm.messages import Kind, decode, encode, key_of, split_key
from dlm.outbox import Outbox
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


def test_an_own_request_comes_back_as_it_was_made() -> None:
    outbox, key = Outbox(), key_of("default", b"n")
    outbox.begin(RING)
    outbox.add(Kind.LOCK, (key, 1, 1000, 5, 0, None, 7, "program", 0, 0), (key,))
    outbox.add(Kind.LOCK, (key, 1, 1001, 5, 0, None, 7, "program", 0, 0), (key,))
    payloads: list[bytes] = []
    outbox.flush(payloads.append)
    first = outbox.as_sent(bytes(payloads[0]))
    assert first == decode(payloads[0])
    assert first is not None
    assert first.body[0] is key  # not another that is equal, for as long as there is the lock
    assert outbox.as_sent(payloads[1]) is None  # what comes out of turn is read like the others' messages
    outbox.applied(1)
    assert outbox.as_sent(payloads[0]) is None
    assert outbox.as_sent(payloads[1]) == decode(payloads[1])


def test_other_own_messages_are_read() -> None:
    outbox = filled(1)
    payloads: list[bytes] = []
    outbox.flush(payloads.append)
    assert outbox.as_sent(payloads[0]) is None
