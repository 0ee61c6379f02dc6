"""The service as a whole: arguments, limits, a full send queue, copies of messages, what clients are pushed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlm.home import LOCKS_PER_NAME
from dlm.messages import Kind
from dlm.modes import EX, NL
from dlm.service import NUMBERS_LIMIT
from tests.dlm.bus import LEASE, MS, Bus, FakeHost
from vsync.errors import Backpressure
from vsync.service import Credentials
from vsync.types import MAX_MESSAGE, QuorumConfig


def test_spaces_do_not_meet() -> None:
    bus = Bus()
    bus.call(2, "space_create", space="other")
    bus.run()
    first, _ = bus.lock(1, b"x", EX)
    second, _ = bus.lock(2, b"x", EX, space="other")
    bus.run()
    assert bus.granted(first)
    assert bus.granted(second)
    rows = bus.result(bus.call(1, "ls", space="other"))
    assert [(row["name"], row["space"], row["owner"]) for row in rows] == [(b"x", "other", 2)]


@pytest.mark.parametrize("policy", ["two_node", "none"])
def test_no_locks_under_a_policy_that_does_not_exclude(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """C8: both parts of a cut cluster would grant."""
    config, told = Bus.config, []
    monkeypatch.setattr(Bus, "config", lambda bus, node: replace(config(bus, node), quorum=quorum))
    monkeypatch.setattr(FakeHost, "refuse", lambda host, session, rid, *why, **more: told.append(why))
    for unsafe in (False, True):
        quorum = QuorumConfig(policy, unsafe=unsafe)
        bus = Bus()
        rid, _ = bus.lock(1, b"x", EX)
        bus.run()
        if unsafe:
            assert bus.granted(rid)
    [(code, text)] = told
    assert code == "unsafe"
    assert f"policy = {policy!r}" in text
    assert "unsafe = true" in text


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
        ("nonsense", {}, "unknown_verb"),
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


def test_the_largest_publication_fits_into_one_message() -> None:
    bus = Bus()
    bus[1].service.close(1, bus.now)
    bus[1].service.open(1, Credentials(4_000_000, 0, 0, "a name that nobody would choose " * 9), bus.now)
    requests = [bus.lock(1, b"n" * 64, EX)[0] for _ in range(LOCKS_PER_NAME)]
    assert bus.result(bus.lock(1, b"n" * 64, EX)[0]) == "too_many"
    assert bus.granted(bus.lock(1, b"other", EX)[0]) is False
    bus.run()
    assert bus.granted(requests[0])
    theirs, _ = bus.lock(2, b"n" * 64, EX)
    bus.sequence(2)
    bus.deliver()
    assert bus.kinds(1) == [Kind.PUBLISH]
    assert len(bus[1].queue[0]) < MAX_MESSAGE // 2
    bus.run()
    bus.close(1)
    bus.run()
    assert bus.granted(theirs)
    bus.check_at_rest()


def test_the_ring_re_forms_before_fence_numbers_run_out() -> None:
    bus = Bus()
    for node in bus.alive():
        node.table.numbers = NUMBERS_LIMIT
    first, h = bus.lock(1, b"a")
    bus.lock(2, b"b")
    bus.run()
    assert [len(node.host.reformed) for node in bus.alive()] == [1, 1, 1]
    bus.view([1, 2, 3])
    assert bus[1].table.numbers == 0
    bus.call(1, "unlock", h=h)
    again, _ = bus.lock(3, b"a")
    bus.run()
    assert bus.result(again)["fence"] > bus.result(first)["fence"]


def test_suspended_is_always_followed_by_resumed() -> None:
    bus = Bus()
    bus.lock(2, mode=EX)
    bus.run()
    bus.lock(1, mode=EX)
    bus.run()
    bus.view([1])
    bus.view([2, 3])
    bus.view([1, 2, 3])
    bus.run()
    assert [kind for _, kind, _ in bus[1].pushes] == ["suspended", "resumed"]
    assert bus[2].pushes == []
