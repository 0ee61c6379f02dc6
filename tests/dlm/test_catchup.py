"""Members with a prefix of the state that goes on keep their life and catch up (pitfalls K4, C1, A6)."""

from __future__ import annotations

import random

import pytest

from dlm.catchup import PIECE, Catcher, Kept, Lender
from dlm.messages import TAG, Kind, Message, decode
from dlm.modes import EX, NL
from dlm.recovery import Announcement, survivors
from tests.dlm.bus import LEASE, Bus
from vsync.types import Entry, Member, RingId, View

R = b"\0R"
RING = RingId(7, 1)


def shared(bus: Bus, name: bytes = b"R", nodes: tuple[int, ...] = (1, 2)) -> dict[int, int]:
    """Make a name shared by NL keepers; their handles by node."""
    keepers = {}
    for node in nodes:
        _, keepers[node] = bus.lock(node, name, NL)
        bus.run()
    return keepers


def message(number: int) -> tuple[Member, Message]:
    return Member(1, 1), Message(Kind.UNLOCK, RING, number, (b"\0x", 1, number, 0, 0, None))


def pushed(bus: Bus, node: int) -> list[str]:
    return [kind for _, kind, _ in bus[node].pushes]


class TestKept:
    def test_what_everybody_has_is_not_kept(self) -> None:
        kept = Kept()
        kept.begin(100)
        for place in range(5):
            kept.add(place, *message(place))
        for _ in range(3):
            kept.trim(3)
        assert kept.base == 103
        assert kept.since(103) == [message(3), message(4)]
        assert kept.since(104) == [message(4)]
        assert kept.since(105) == []

    def test_a_line_counts_when_everybody_knows_it(self) -> None:
        """Who has received a message, and not that all have, may leave the ring without having applied it (found by
        the simulator, seed 1043: a SAFE message ended its prefix).
        """
        kept = Kept()
        kept.begin(100)
        for place in range(5):
            kept.add(place, *message(place))
        for line, base in ((2, 100), (3, 100), (4, 102), (4, 103), (4, 104), (4, 104)):
            kept.trim(line)
            assert kept.base == base

    def test_what_goes_back_to_the_view_is_for_who_is_at_its_beginning(self) -> None:
        """It does not know yet where that is."""
        kept = Kept()
        kept.begin(100)
        kept.add(7, *message(7))
        assert kept.offer == 0
        for _ in range(3):
            kept.trim(8)
        assert kept.offer == kept.base == 101

    def test_outside_its_ring_nothing_is_known_of_others(self) -> None:
        kept = Kept()
        kept.begin(100)
        kept.add(1, *message(1))
        kept.stop()
        for _ in range(3):
            kept.trim(1000)  # places of another ring
        assert kept.base == 100
        kept.begin(200)
        assert kept.since(200) == []


class TestLoan:
    def lend(self, lender: Lender, *catchers: Catcher) -> list[object]:
        """Deliver everything; what the catchers make of it."""
        loans: list[object] = [None] * len(catchers)
        while not lender.done:
            for payload in lender.due():
                lender.was_sent()
                piece = decode(payload)
                lender.on_piece(piece)
                loans = [catcher.on_piece(piece) or loan for catcher, loan in zip(catchers, loans, strict=True)]
        return loans

    def test_each_takes_what_it_lacks(self) -> None:
        lender = Lender(RING, 10, [message(11), message(12), message(13)], [message(14)])
        loans = self.lend(lender, Catcher(RING, 10), Catcher(RING, 12), Catcher(RING, 13))
        after = [message(14)]
        before = [message(11), message(12), message(13)]
        assert loans == [(before, after), (before[2:], after), ([], after)]

    def test_much_goes_in_pieces(self) -> None:
        value = bytes(1000)
        rows = [(Member(1, 1), Message(Kind.UNLOCK, RING, n, (b"\0x", 1, n, 0, 0, value))) for n in range(2000)]
        lender = Lender(RING, 0, rows, [])
        assert all(len(piece) < PIECE + 100 for piece in lender.due())
        assert self.lend(lender, Catcher(RING, 0)) == [(rows, [])]

    def test_a_loan_that_begins_too_late_is_refused(self) -> None:
        (payload,) = Lender(RING, 11, [message(12)], []).due()
        with pytest.raises(ValueError, match="begins at position 11, this node stands at 10"):
            Catcher(RING, 10).on_piece(decode(payload))

    def test_pieces_of_another_view_are_nothing(self) -> None:
        (payload,) = Lender(RingId(5, 1), 10, [], []).due()
        assert Catcher(RING, 10).on_piece(decode(payload)) is None


def test_c1_a_blip_of_all_links_costs_nobody_its_lock() -> None:
    """Each has delivered another part of the order when all links fail; then all meet again."""
    bus = Bus()
    shared(bus)
    b, hb = bus.lock(2)
    bus.sequence()
    bus.deliver(2)  # B's grant is delivered at B only
    assert bus.granted(b)
    x, _ = bus.lock(1, b"X", EX)
    for node in (1, 2, 3):
        bus.view([node])
    assert pushed(bus, 2) == ["suspended"]
    bus.view([1, 2, 3])
    bus.run()
    bus.advance(2 * LEASE)
    a, _ = bus.lock(1)
    bus.run()
    assert bus.result(a) is None  # B still holds it
    assert bus.granted(x)
    assert pushed(bus, 1) == pushed(bus, 2) == ["suspended", "resumed"]
    assert bus[1].service.home.teller.lost == 0
    bus.check_at_rest()
    bus.call(2, "unlock", h=hb)
    bus.run()
    assert bus.granted(a)


def test_a_handle_resumes_with_its_fence_only_when_its_node_has_caught_up() -> None:
    bus = Bus()
    keepers = shared(bus, nodes=(1, 2, 3))
    a, ha = bus.lock(1, b"mine")
    bus.run()
    fence, generation = bus.result(a)["fence"], bus[1].service.lease_clock.generation
    bus.call(2, "convert", h=keepers[2], mode=EX)
    bus.sequence()
    bus.deliver(2)
    for node in (1, 2, 3):
        bus.view([node])
    bus.view([1, 2, 3])
    assert bus[1].service.state == "catching up"
    assert bus[2].service.state == "running"
    assert bus[1].service.lease(1)[1] == 0  # it has nothing that it could rely upon yet
    bus.run()
    bus.advance(LEASE // 4)
    assert bus[1].service.state == "running"
    assert bus[1].service.lease_clock.valid(bus.now)
    assert bus[1].service.lease_clock.generation == generation
    assert bus[1].service.home.sessions[1].handles[ha].fence == fence
    bus.check_at_rest()


def test_a6_the_owner_that_was_behind_decides_about_its_names() -> None:
    """A stranger has asked for the name, which its owner learns by the loan: it publishes then."""
    bus = Bus()
    a, ha = bus.lock(1)
    bus.run()
    assert bus.granted(a)
    b, _ = bus.lock(2)
    bus.sequence()
    bus.deliver(2)  # a handover at B, nobody else knows
    for node in (1, 2, 3):
        bus.view([node])
    bus.view([1, 2, 3])
    bus.run()
    bus.advance(2 * LEASE)
    assert bus[3].table.names[R].resource is not None
    assert bus.result(b) is None
    bus.call(1, "unlock", h=ha)
    bus.run()
    assert bus.granted(b)
    bus.check_at_rest()


def test_own_messages_that_came_through_are_not_sent_twice() -> None:
    bus = Bus()
    shared(bus)
    a, ha = bus.lock(1)
    bus.sequence()
    bus.deliver(2)  # A's request is delivered at B only
    for node in (1, 2, 3):
        bus.view([node])
    assert len(bus[1].service.home.outbox) == 1
    bus.view([1, 2, 3])
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.granted(a)
    assert len(bus[1].service.home.outbox) == 0
    assert [lock.key[0] for lock in bus[2].table.names[R].resource.locks.values() if lock.mode == EX] == [1]
    bus.call(1, "unlock", h=ha)
    bus.run()
    bus.check_at_rest()


def test_what_is_ordered_meanwhile_waits_for_the_loan() -> None:
    bus = Bus()
    keepers = shared(bus)
    bus.call(2, "convert", h=keepers[2], mode=EX)
    bus.sequence()
    bus.deliver(2)
    for node in (1, 2, 3):
        bus.view([node])
    bus.view([1, 2, 3])
    c, _ = bus.lock(2, b"other")
    bus.sequence()
    bus.deliver(2)
    assert bus[2].table.applied > bus[1].table.applied
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.granted(c)
    assert b"\0other" in bus[1].table.names
    bus.check_at_rest()


def test_another_view_before_the_loan_has_come_is_a_new_life() -> None:
    """The state in between is in force by then, and this node does not have it: E5."""
    bus = Bus()
    keepers = shared(bus)
    bus.call(2, "convert", h=keepers[2], mode=EX)
    bus.sequence()
    bus.deliver(2)
    for node in (1, 2, 3):
        bus.view([node])
    bus.view([1, 2, 3])
    assert bus[1].service.state == "catching up"
    bus.view([1, 2])
    bus.run()
    bus.advance(2 * LEASE)
    assert pushed(bus, 1) == ["suspended", "lost"]
    assert bus[1].service.complete
    bus.check()
    assert bus[1].table.digest() == bus[2].table.digest()


def test_k7_an_attempt_that_is_installed_on_the_way_brings_no_loan() -> None:
    """Who is behind in an attempt that turns out to be real is behind still when it goes on from there (67)."""
    bus = Bus()
    shared(bus)
    bus.lock(2)
    bus.sequence()
    bus.deliver(2)
    for node in (1, 2, 3):
        bus.view([node])
    entries = {n: Entry(bus[n].me, bus[n].ring.id, 1, {TAG: bus[n].service.announce()}) for n in (1, 2, 3)}
    members = tuple(bus[n].me for n in (1, 2, 3))
    attempt = View(RingId(bus.seq + 3, 1), members, (), (), True, False, "", entries)
    assert survivors(attempt) == {1, 2, 3}
    before, after = (Announcement.decode(bus[1].service.announce(views)) for views in ([], [attempt]))
    assert (after.ring, after.applied, after.life) == (before.ring, before.applied, before.life)
    full = Announcement.decode(bus[2].service.announce([attempt]))
    assert full.ring == attempt.id > after.ring


def test_k7_who_installs_a_view_on_the_way_catches_up_with_those_who_were_in_it() -> None:
    """1 has reached the end of a view that 2 and 3 install and leave; it is at the beginning of their state."""
    bus = Bus(5)
    keepers = shared(bus, nodes=(1, 2, 4))
    a, ha = bus.lock(1, b"own")
    bus.run()
    old = bus.result(a)["fence"]
    bus.view([1, 2, 3, 4], late=(1,))
    bus.call(2, "convert", h=keepers[2], mode=EX)
    bus.sequence(2)
    bus.deliver(2, 3)
    for part in ([2, 3], [4]):
        bus.view(part)
    bus.view([1, 2, 3])
    bus.run()
    bus.advance(2 * LEASE)
    assert bus[1].service.state == "running"
    assert "lost" not in pushed(bus, 1)
    assert keepers[1] in bus[1].service.home.sessions[1].handles
    assert bus[1].service.home.sessions[1].handles[ha].fence == old
    bus.check_at_rest()


def test_who_has_joined_can_lend_from_its_view_on() -> None:
    """Its log goes back to the view, wherever the state ended that it was sent (seed 100021)."""
    bus = Bus()
    bus.view([1, 3])
    keepers = shared(bus, nodes=(1, 3))
    bus.advance(2 * LEASE)
    bus.view([1, 2, 3])  # 2 begins a life
    bus.call(3, "convert", h=keepers[3], mode=EX)
    bus.sequence(3)  # in the order before the last of what 2 is sent
    bus.sequence()
    while bus[2].delivered < len(bus[2].ring.log):
        bus.deliver(1)
        bus.deliver(2)
        bus.work()
        bus.sequence()
    assert bus[2].service.complete
    assert bus[3].table.applied < bus[2].table.applied
    for node in (1, 2, 3):
        bus.view([node])
    bus.view([2, 3])
    bus.run()
    assert bus[3].service.home.teller.lost == 0
    assert keepers[3] in bus[3].service.home.sessions[1].handles
    bus.check()


def test_the_table_that_was_caught_up_with_is_a_donors() -> None:
    """Who has caught up is like all others: its state goes on when those it has it from are gone."""
    bus = Bus()
    keepers = shared(bus)
    bus.call(2, "convert", h=keepers[2], mode=EX)
    bus.sequence()
    bus.deliver(2)
    for node in (1, 2, 3):
        bus.view([node])
    bus.view([1, 2, 3])
    bus.run()
    bus.view([1, 3])
    bus.run()
    assert [bus[node].service.home.teller.lost for node in (1, 3)] == [0, 0]
    assert keepers[1] in bus[1].service.home.sessions[1].handles
    assert not bus[1].table.names[R].resource.homes.get(2)
    bus.check()


@pytest.mark.parametrize("seed", range(60))
def test_any_split_of_a_history(seed: int) -> None:
    """Any part of the order at each node, all apart, all together again: one table, and nothing is lost."""
    rng = random.Random(seed)
    bus = Bus()
    held = [shared(bus, name, nodes=(1, 2, 3)) for name in (b"R", b"S")]
    for _ in range(rng.randint(1, 8)):
        node = rng.randint(1, 3)
        if rng.random() < 0.5:
            bus.lock(node, rng.choice((b"R", b"S", b"new")), rng.choice((NL, EX)))
        else:
            bus.call(node, "convert", h=rng.choice(held)[node], mode=rng.choice((NL, EX)))
        bus.sequence()
        for other in (1, 2, 3):
            if rng.random() < 0.3:
                bus.deliver(other)
    apart = rng.choice(([[1], [2], [3]], [[1, 2], [3]], [[1], [2, 3]]))
    for part in apart:
        bus.view(part, primary=False, rng=rng)
    bus.view([1, 2, 3], rng=rng)
    bus.run()
    bus.advance(2 * LEASE)
    bus.check_at_rest()
    assert [bus[node].service.home.teller.lost for node in (1, 2, 3)] == [0, 0, 0]
