"""Joiners: the table as it was at their view, while everybody goes on (pitfalls K15, E1–E5)."""

from __future__ import annotations

import random

import pytest

from dlm import transfer
from dlm.messages import Kind, decode, encode, key_of
from dlm.modes import EX, NL, PR
from dlm.transfer import Donor, Joiner
from tests.dlm.bus import LEASE, MS, Bus
from vsync.types import RingId

R = key_of("default", b"R")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few bytes, so that a small table takes many."""
    monkeypatch.setattr(transfer, "CHUNK_SIZE", 100)


def populated(nodes: int = 3) -> Bus:
    """A cluster with private, shared and contended names; node 3 is down."""
    bus = Bus(nodes)
    for i in range(12):
        bus.lock(1, b"p%d" % i)
        bus.lock(2, b"s%d" % i, NL)
        bus.run()
        bus.lock(1, b"s%d" % i, EX)
        bus.run()
    bus.lock(2, b"s1", PR)
    bus.run()
    bus.kill(3)
    bus.view([n for n in range(1, nodes + 1) if n != 3])
    bus.advance(2 * LEASE)
    return bus


def test_e1_a_joiner_under_traffic(small_chunks: None) -> None:
    bus = populated()
    bus.boot(3)
    bus.view([1, 2, 3])
    assert not bus[3].service.complete
    rng = random.Random(1)
    steps = 0
    while not bus[3].service.complete:
        steps += 1
        for node in (1, 2):
            bus.lock(node, b"t%d" % rng.randrange(5), rng.randrange(6))
        bus.sequence(rng.choice((1, 2)), rng.choice((1, 2)))
        bus.deliver(rng.choice((1, 2, 3)), count=2)
        assert steps < 1000
    assert steps > 20
    bus.run()
    bus.check_at_rest()


def test_a_joiner_of_a_handover(small_chunks: None) -> None:
    bus = populated()
    bus.lock(1)
    bus.run()
    b, hb = bus.lock(2)
    bus.sequence(2)
    bus.deliver()  # handover, the publication is composed and queued
    bus.boot(3)
    bus.view([1, 2, 3])
    bus.run()
    bus.check_at_rest()
    assert bus[3].table.names[R].resource.homes == {1: 1, 2: 1}
    bus.call(2, "cancel", h=hb)
    bus.run()
    assert bus.result(b) == "canceled"
    bus.check_at_rest()


def test_e3_a_joiner_sends_nothing_before_it_has_caught_up(small_chunks: None) -> None:
    bus = populated()
    bus.boot(3)
    bus.view([1, 2, 3])
    rid, h = bus.lock(3, b"new")
    gone, hg = bus.lock(3, b"gone")
    assert bus[3].queue == []
    assert bus.result(bus.call(3, "unlock", h=hg)) == {}
    assert bus.result(gone) == "canceled"
    while not bus[3].service.complete:
        assert bus[3].queue == []
        bus.sequence(1, 2)
        bus.deliver(count=1)
    bus.run()
    assert bus.granted(rid)
    assert bus.result(bus.call(3, "unlock", h=h)) == {}
    bus.check_at_rest()


def test_the_donor_dies_during_the_transfer(small_chunks: None) -> None:
    bus = populated(5)
    bus.boot(3)
    bus.view([1, 2, 3, 4, 5])
    bus.sequence(1)
    bus.deliver(count=2)
    assert not bus[3].service.complete
    bus.kill(1)
    bus.view([2, 3, 4, 5])
    assert bus.kinds(2)[0] == Kind.CHUNK
    bus.run()
    bus.check_at_rest()
    assert bus[3].service.complete


def test_e5_a_half_transferred_state_counts_for_nothing(small_chunks: None) -> None:
    bus = populated()
    bus.boot(3)
    bus.view([1, 2, 3])
    bus.sequence(1)
    bus.deliver(count=2)
    for node in (1, 2):
        bus.kill(node)
        bus.boot(node)
    bus.view([1, 2, 3])
    assert all(bus[node].table.names == {} for node in (1, 2, 3))
    assert all(bus[node].service.complete for node in (1, 2, 3))
    rid, _ = bus.lock(3, b"s1")
    bus.run()
    assert bus.result(rid) is None  # what the dead granted may still be relied on
    bus.advance(LEASE + 200 * MS)
    assert bus.granted(rid)


def test_a_joiner_that_falls_out_starts_again(small_chunks: None) -> None:
    bus = populated()
    bus.boot(3)
    bus.view([1, 2, 3])
    bus.sequence(1)
    bus.deliver(count=2)
    bus.view([3])
    bus.view([1, 2])
    bus.view([1, 2, 3])
    bus.run()
    bus.check_at_rest()
    assert bus[3].service.complete


def test_chunks_of_another_transfer_are_ignored() -> None:
    ring, other = RingId(10, 1), RingId(13, 1)
    joiner = Joiner(ring)
    wrong = decode(encode(Kind.CHUNK, other, 0, (*other, 0, 1, b"x", b"")))
    late = decode(encode(Kind.CHUNK, ring, 0, (*ring, 1, 2, b"x", b"")))
    assert not joiner.on_chunk(wrong)
    assert not joiner.on_chunk(late)
    assert joiner.received == 0


def test_a_donor_paces_itself() -> None:
    ring = RingId(10, 1)
    donor = Donor(ring, bytes(transfer.CHUNK_SIZE * 10), sending=True)
    sent = []
    for chunk in donor.due():
        sent.append(decode(chunk))
        donor.was_sent()
    assert 0 < len(sent) < 10
    while not donor.done:
        donor.on_chunk(sent[donor.delivered])
        for chunk in donor.due():
            sent.append(decode(chunk))
            donor.was_sent()
    assert len(sent) == 10
