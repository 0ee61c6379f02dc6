"""Joiners: the table as it was at their view, while everybody goes on (pitfalls K15, E1–E5)."""

from __future__ import annotations

import random

import pytest

from dlm import transfer
from dlm.catchup import Kept
from dlm.messages import Kind, Message, decode, encode, key_of
from dlm.modes import EX, NL, PR
from dlm.names import Form
from dlm.table import Table
from dlm.transfer import BURST, RATE, READ, ROWS, WINDOW, Donor, Joiner
from dlm.work import ALL, ITEM
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
        bus.work()
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
        bus.work()
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


RING, OTHER = RingId(10, 1), RingId(13, 1)


def table_of(names: int) -> Table:
    """A table with names that others own."""
    table = Table(1)
    table.begin_epoch(RING)
    for number in range(names):
        table.own(key_of("default", b"n%d" % number), 2)
    return table


def send(donor: Donor) -> list[Message]:
    """What it may send now, ordered."""
    sent = []
    for chunk in donor.due():
        sent.append(decode(chunk))
        donor.was_sent()
    return sent


def take(joiner: Joiner, chunk: Message) -> None:
    """It comes, and is read in so many turns as that takes."""
    joiner.on_chunk(chunk, 1)
    while joiner.busy and not joiner.whole:
        before = len(joiner.table.names)
        joiner.catch_up(ALL, 0, Kept())
        assert len(joiner.table.names) - before <= READ // ITEM


def test_chunks_of_another_transfer_are_ignored() -> None:
    joiner = Joiner(RING, 3, 0)
    wrong = decode(encode(Kind.CHUNK, OTHER, 0, (*OTHER, 0, False, b"x")))
    late = decode(encode(Kind.CHUNK, RING, 0, (*RING, 1, True, b"x")))
    joiner.on_chunk(wrong, 1)
    joiner.on_chunk(late, 2)
    assert joiner.received == 0
    assert not joiner.whole


class TestPace:
    def test_a_small_table_goes_at_once(self) -> None:
        table = table_of(BURST - ROWS)
        donor, joiner = Donor(RING, table, 0), Joiner(RING, 3, 0)
        chunks = send(donor)
        assert len(chunks) == BURST // ROWS
        for chunk in chunks:
            donor.on_chunk(chunk)
            take(joiner, chunk)
        assert donor.done
        assert joiner.whole
        assert joiner.table.encode() == table.encode()

    def test_a_large_one_takes_its_time(self) -> None:
        names = 10 * BURST
        table = table_of(names)
        now, sent, most = 0, 0, 0
        donor, joiner = Donor(RING, table, now), Joiner(RING, 3, 0)
        while not donor.done:
            chunks = send(donor)
            assert len(chunks) <= WINDOW
            for chunk in chunks:
                donor.on_chunk(chunk)
                before = len(joiner.table.names)
                take(joiner, chunk)
                most = max(most, len(joiner.table.names) - before)
                sent += len(joiner.table.names) - before
            due = donor.next_deadline()
            if due is not None:
                assert due > now
                assert not send(donor)
                now = due
                donor.refill(now)
        assert sent == names
        assert most <= ROWS
        assert joiner.whole
        assert abs(now - (names - BURST) * 1_000_000 / RATE) < 20_000

    def test_time_alone_does_not_fill_the_send_queue(self) -> None:
        donor = Donor(RING, table_of(10 * BURST), 0)
        first = send(donor)
        donor.refill(100_000_000)
        assert len(first) == WINDOW
        assert send(donor) == []
        donor.on_chunk(first[0])
        assert len(send(donor)) == 1

    def test_a_large_name_goes_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transfer, "LARGEST", 100)
        table = table_of(20)
        donor, joiner = Donor(RING, table, 0), Joiner(RING, 3, 0)
        count = 0
        while not donor.done:
            for chunk in send(donor):
                assert len(chunk.body[4]) <= 100
                donor.on_chunk(chunk)
                take(joiner, chunk)
                count += 1
        assert count > 1
        assert joiner.table.encode() == table.encode()

    def test_the_joiner_reads_so_many_names_in_a_turn(self) -> None:
        table = table_of(BURST - ROWS)
        donor, joiner = Donor(RING, table, 0), Joiner(RING, 3, 0)
        chunks = send(donor)
        assert not joiner.busy
        for chunk in chunks:
            joiner.on_chunk(chunk, 1)
        assert joiner.busy
        assert not joiner.table.names  # all of it has come, and nothing is read
        turns = 0
        while not joiner.whole:
            before = len(joiner.table.names)
            joiner.catch_up(10 * ITEM, 0, Kept())
            assert len(joiner.table.names) - before <= 10
            turns += 1
        assert turns >= (BURST - ROWS) / 10
        assert joiner.table.encode() == table.encode()

    def test_a_node_that_joins_goes_on_between_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dlm.work.TURN", 2 * ITEM)
        bus = populated()
        bus.boot(3)
        bus.view([1, 2, 3])
        bus.sequence()
        bus.deliver()
        service, turns = bus[3].service, 0
        while not service.complete:
            assert service.next_deadline() == bus.now
            service.fire(bus.now)
            turns += 1
        assert turns > len(bus[3].table.names) / 2 - 2
        bus.run()
        bus.check_at_rest()

    def test_the_log_is_applied_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dlm.work.TURN", 5 * ITEM)
        bus = populated()
        bus.boot(3)
        bus.view([1, 2, 3])
        chunks = [payload for payload in bus[1].queue if decode(payload).kind == Kind.CHUNK]
        bus[1].queue[:] = [payload for payload in bus[1].queue if payload not in chunks]
        for number in range(100):  # all before the state comes
            bus.lock(2, b"s%d" % (number % 12), NL, expedite=True)
        bus.sequence()
        bus.deliver()
        assert bus[3].ring is not None
        bus[3].ring.log += [(bus[1].me, payload) for payload in chunks]
        bus.deliver()
        service, turns = bus[3].service, 0
        while not service.complete:
            assert service.next_deadline() == bus.now
            if not turns:
                bus.lock(2, b"s1", NL, expedite=True)
                bus.sequence()
                bus.deliver()  # it goes to the end of the log
            turns += 1
            service.fire(bus.now)
        assert 10 < turns < 40
        bus.run()
        bus.check_at_rest()


def test_the_copy_ends_with_the_view(small_chunks: None) -> None:
    bus = populated()
    bus.boot(3)
    bus.view([1, 2, 3])
    assert [due.holds for due in bus[1].table.dues] == [True]
    assert not bus[2].table.dues  # it would begin from the beginning
    bus.view([1, 2])
    assert not bus[1].table.dues
    bus.view([1, 2, 3])
    bus.run()
    assert not bus[1].table.dues
    bus.check_at_rest()


def test_names_of_the_dead_are_purged_while_a_state_is_copied(small_chunks: None) -> None:
    """A view with both: the copy is of what the purge leaves, and waits for nothing."""
    bus = populated(5)
    bus.kill(2)
    bus.boot(3)
    bus.view([1, 3, 4, 5])
    assert any(due.holds for due in bus[1].table.dues)
    assert not bus[1].table.overdue
    assert not any(2 in name.resource.homes for name in bus[1].table.names.values() if name.resource)
    while not bus[3].service.complete:
        bus.lock(4, b"s3", NL)
        bus.work()
        bus.sequence()
        bus.deliver()
    bus.run()
    bus.check_at_rest()
    assert all(name.form is not Form.PRIVATE or name.owner != 2 for name in bus[3].table.names.values())
