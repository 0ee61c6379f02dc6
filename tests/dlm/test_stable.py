"""``answer = "stable"``: grants are answered when all members have what decided them; and C14 in every lockspace.

On the bus a message is *received* by a member that has delivered it; ``settle`` is the token that says so.
"""

from __future__ import annotations

import pytest

from dlm.modes import EX, NL, PR
from tests.dlm.bus import LEASE, MS, Bus
from tests.dlm.told import Told, done, stable

WITHIN = 50 * MS


def shared(bus: Bus, name: bytes = b"R") -> None:
    """Nodes 2 and 3 have NL locks on the name, so it stays shared, and so does its value block."""
    for node in (2, 3):
        bus.lock(node, name, NL, session=2)
        bus.run()


class TestAnswers:
    def test_not_before_all_have_it(self) -> None:
        bus = stable()
        rid, _ = bus.lock(1)
        bus.sequence()
        bus.deliver(1)
        bus.settle()
        assert not bus.granted(rid)
        bus.deliver()
        assert not bus.granted(rid), "nobody has said so yet"
        bus.settle()
        assert bus.granted(rid)

    def test_with_delivery_at_ones_own(self) -> None:
        bus = Bus()
        rid, _ = bus.lock(1)
        bus.sequence()
        bus.deliver(1)
        assert bus.granted(rid)

    def test_a_private_name_whose_owner_all_know_is_granted_without_a_message(self) -> None:
        bus = stable()
        _, h = bus.lock(1)
        bus.run()
        bus.call(1, "unlock", h=h)
        submitted = bus.submitted
        rid, _ = bus.lock(1)
        assert bus.granted(rid)
        assert bus.submitted == submitted

    def test_a_private_name_whose_owner_not_all_know(self) -> None:
        """The claim is delivered at its sender alone: nothing of the name may be told, without a message either."""
        bus = stable()
        first, _ = bus.lock(1, mode=PR)
        bus.sequence()
        bus.deliver(1)
        second, _ = bus.lock(1, mode=PR)
        assert not bus.granted(first)
        assert not bus.granted(second)
        bus.deliver()
        bus.settle()
        assert bus.granted(first)
        assert bus.granted(second)

    def test_refusals_and_releases_do_not_wait(self) -> None:
        bus = stable()
        bus.lock(2)
        bus.run()
        shared(bus)
        _, mine = bus.lock(1, b"S")
        bus.run()
        refused, _ = bus.lock(1, noqueue=True)
        released = bus.call(1, "unlock", h=mine)
        bus.sequence()
        bus.deliver(1)
        assert bus.result(refused) == "again"
        assert bus.result(released) == {}

    def test_less_than_one_has_does_not_wait(self) -> None:
        bus = stable()
        shared(bus)
        _, h = bus.lock(1)
        bus.run()
        rid = bus.call(1, "convert", h=h, mode=PR)
        bus.sequence()
        bus.deliver(1)
        assert bus.granted(rid)

    def test_more_than_one_has_waits(self) -> None:
        bus = stable()
        shared(bus)
        _, h = bus.lock(1, mode=PR)
        bus.run()
        rid = bus.call(1, "convert", h=h, mode=EX)
        bus.sequence()
        bus.deliver(1)
        assert not bus.granted(rid)
        bus.run()
        assert bus.granted(rid)

    def test_a_time_out_counts(self) -> None:
        bus = stable()
        shared(bus)
        rid, _ = bus.lock(1, timeout_us=20 * MS)
        bus.sequence()
        bus.deliver(1)
        bus.now += 30 * MS
        bus[1].service.fire(bus.now)
        assert bus.result(rid) == "timeout"
        bus.run()
        assert done(bus, 2, "show", name=b"R")["mode"] == "NL"

    def test_several_at_once(self) -> None:
        bus = stable()
        rid, _ = bus.lock_all(1, b"A", b"B", b"C")
        bus.sequence()
        bus.deliver(1)
        bus.settle()
        assert not bus.granted(rid)
        bus.run()
        assert bus.granted(rid)
        assert len(bus[1].service.home.teller.backlog) == 0

    def test_a_view_settles(self) -> None:
        bus = stable()
        shared(bus)
        rid, _ = bus.lock(1)
        bus.sequence()
        bus.deliver(1)
        bus.view([1, 2, 3])
        assert bus.granted(rid)

    def test_the_options_in_force_are_those_of_the_position(self) -> None:
        bus = Bus()
        shared(bus)
        done(bus, 2, "space_set", space="default", answer="stable")
        rid, _ = bus.lock(1)
        bus.sequence()
        bus.deliver(1)
        assert not bus.granted(rid)

    def test_who_has_just_joined_waits_too(self) -> None:
        bus = stable()
        shared(bus)
        bus.kill(1)
        bus.view([2, 3])
        bus.boot(1)
        bus.view([1, 2, 3])
        bus.advance(2 * LEASE)
        rid, _ = bus.lock(1)
        bus.sequence()
        bus.deliver(1)
        assert not bus.granted(rid)
        bus.run()
        assert bus.granted(rid)


class TestHorizon:
    """After an unclean departure."""

    def waiters(self, bus: Bus, *names: bytes) -> dict[bytes, int]:
        return {name: bus.lock(1, name)[0] for name in names}

    def test_only_what_the_dead_node_held_or_owned_waits(self) -> None:
        bus = stable()
        shared(bus, b"held")
        shared(bus, b"queued")
        bus.lock(1, b"queued")
        bus.run()
        bus.lock(3, b"held", PR)
        bus.lock(3, b"queued")
        bus.lock(3, b"owned")
        bus.run()
        bus.kill(3)
        bus.view([1, 2])
        asked = self.waiters(bus, b"held", b"owned", b"free")
        other, _ = bus.lock(2, b"free2")
        bus.run()
        assert bus.granted(other)
        assert {name for name, rid in asked.items() if bus.granted(rid)} == {b"free"}
        bus.advance(LEASE // 2)
        assert not bus.granted(asked[b"held"])
        bus.advance(LEASE)
        assert bus.granted(asked[b"held"])
        assert bus.granted(asked[b"owned"])

    def test_with_delivery_all_wait(self) -> None:
        bus = Bus()
        bus.kill(3)
        bus.view([1, 2])
        rid, _ = bus.lock(1, b"free")
        bus.run()
        assert not bus.granted(rid)

    def test_nl_protects_nothing(self) -> None:
        bus = stable()
        shared(bus)
        bus.kill(3)
        bus.view([1, 2])
        rid, _ = bus.lock(1)
        bus.run()
        assert bus.granted(rid)

    def test_a_name_that_was_changing_hands(self) -> None:
        bus = stable()
        bus.lock(3)
        bus.run()
        rid, _ = bus.lock(1)
        bus.sequence(1)
        bus.deliver(1, 2)
        bus.kill(3)
        bus.view([1, 2])
        bus.run()
        assert not bus.granted(rid)
        bus.advance(2 * LEASE)
        assert bus.granted(rid)

    def test_who_begins_a_new_life_waits_for_all(self) -> None:
        bus = stable(nodes=5)
        bus.kill(5)
        bus.view([1, 2, 3, 4])
        bus.kill(4)
        bus.boot(4)
        bus.view([1, 2, 3, 4])
        bus.run()
        rid, _ = bus.lock(4, b"free")
        knows, _ = bus.lock(1, b"free2")
        bus.run()
        assert bus.granted(knows)
        assert not bus.granted(rid)
        bus.advance(2 * LEASE)
        assert bus.granted(rid)

    def test_a_clean_leaver_costs_nobody_anything(self) -> None:
        bus = stable()
        bus.lock(3)
        bus.run()
        rid, _ = bus.lock(1)
        bus[3].service.leaving(bus.now)
        bus.tokens()
        bus.run()
        assert bus[3].service.may_leave()
        bus.kill(3)
        bus.view([1, 2])
        bus.run()
        assert bus.granted(rid)
        assert not bus[1].service.table.failures.lately

    def test_two_failures_in_a_row(self) -> None:
        """What the first one held is still waited for after the second view."""
        bus = stable(nodes=5)
        bus.lock(5, b"five")
        bus.lock(4, b"four")
        bus.run()
        bus.kill(5)
        bus.view([1, 2, 3, 4])
        bus.run()
        bus.kill(4)
        bus.view([1, 2, 3])
        asked = self.waiters(bus, b"four", b"five", b"free")
        bus.run()
        assert {name for name, rid in asked.items() if bus.granted(rid)} == {b"free"}
        bus.advance(2 * LEASE)
        assert all(map(bus.granted, asked.values()))


class TestValueBlocks:
    """C14: who is told that a value was written, or what it is, need not fear for it. In every lockspace."""

    def writer(self, bus: Bus) -> int:
        shared(bus)
        _, h = bus.lock(1)
        bus.run()
        return h

    def test_c14_a_release_that_writes_is_answered_when_all_have_it(self) -> None:
        bus = Bus()
        h = self.writer(bus)
        rid = bus.call(1, "unlock", h=h, valblk=True, value=b"v2")
        bus.sequence()
        bus.deliver(1)
        bus.settle()
        assert bus.result(rid) is None
        bus.deliver()
        bus.settle()
        assert bus.result(rid) == {}

    def test_c14_the_writer_dies_before_anybody_else_has_it(self) -> None:
        """The survivors read the old value, or know that it is none; but then nobody was told otherwise."""
        bus = Bus()
        h = self.writer(bus)
        rid = bus.call(1, "unlock", h=h, valblk=True, value=b"v2")
        bus.sequence()
        bus.deliver(1)
        bus.kill(1)
        bus.view([2, 3])
        assert bus.result(rid) is None
        read, _ = bus.lock(2, mode=PR, valblk=True)
        bus.advance(2 * LEASE)
        assert bus.result(read)["value_valid"] is False

    def test_c14_neither_the_grant_nor_the_release_has_reached_anybody(self) -> None:
        """The survivors know of no write, and find the old value valid: nobody was told of another one."""
        bus = Bus()
        done(bus, 1, "unlock", h=self.writer(bus), valblk=True, value=b"v1")
        grant, h = bus.lock(1)
        bus.sequence()
        bus.deliver(1)
        assert bus.granted(grant)
        rid = bus.call(1, "unlock", h=h, valblk=True, value=b"v2")
        bus.sequence()
        bus.deliver(1)
        bus.kill(1)
        bus.view([2, 3])
        read, _ = bus.lock(2, mode=PR, valblk=True)
        bus.advance(2 * LEASE)
        assert (bus.result(read)["value"], bus.result(read)["value_valid"]) == (b"v1", True)
        assert bus.result(rid) is None

    def test_a_release_that_writes_nothing_does_not_wait(self) -> None:
        bus = Bus()
        h = self.writer(bus)
        rid = bus.call(1, "unlock", h=h)
        bus.sequence()
        bus.deliver(1)
        assert bus.result(rid) == {}

    @pytest.mark.parametrize("flags", [{"valblk": True, "value": b"v2"}, {"ivvalblk": True}])
    def test_a_conversion_that_writes(self, flags: dict[str, object]) -> None:
        bus = Bus()
        h = self.writer(bus)
        rid = bus.call(1, "convert", h=h, mode=PR, **flags)
        bus.sequence()
        bus.deliver(1)
        assert not bus.granted(rid)
        bus.run()
        assert bus.granted(rid)

    def test_invalidation_is_a_write(self) -> None:
        bus = Bus()
        h = self.writer(bus)
        rid = bus.call(1, "unlock", h=h, ivvalblk=True)
        bus.sequence()
        bus.deliver(1)
        assert bus.result(rid) is None

    def test_a_grant_that_reads_what_not_all_have(self) -> None:
        bus = Bus()
        h = self.writer(bus)
        bus.call(1, "unlock", h=h, valblk=True, value=b"v2")
        reads, _ = bus.lock(2, mode=PR, valblk=True)
        blind, _ = bus.lock(2, mode=PR)
        bus.sequence()
        bus.deliver(1, 2)
        assert bus.granted(blind)
        assert not bus.granted(reads)
        bus.deliver()
        bus.settle()
        assert bus.result(reads)["value"] == b"v2"

    def test_what_is_settled_is_read_at_once(self) -> None:
        bus = Bus()
        h = self.writer(bus)
        done(bus, 1, "unlock", h=h, valblk=True, value=b"v2")
        reads, _ = bus.lock(2, mode=PR, valblk=True)
        bus.sequence()
        bus.deliver(2)
        assert bus.result(reads)["value"] == b"v2"
        assert not bus[2].table.history.written

    def test_several_released_at_once(self) -> None:
        bus = Bus()
        shared(bus, b"A")
        shared(bus, b"B")
        rid, first = bus.lock_all(1, b"A", b"B")
        bus.run()
        assert bus.granted(rid)
        locks = [{"h": first, "valblk": True, "value": b"v"}, {"h": first + 1}]
        rid = bus.call(1, "unlock_all", locks=locks)
        bus.sequence()
        bus.deliver(1)
        assert bus.result(rid) is None
        bus.run()
        assert bus.result(rid) == {}

    def test_a_private_name_has_its_block_to_itself(self) -> None:
        bus = Bus()
        _, h = bus.lock(1)
        bus.run()
        rid = bus.call(1, "unlock", h=h, valblk=True, value=b"v2")
        assert bus.result(rid) == {}

    def test_without_quorum_it_waits_until_it_is_known(self) -> None:
        bus = Bus()
        h = self.writer(bus)
        bus.view([1])
        rid = bus.call(1, "unlock", h=h, valblk=True, value=b"v2")
        assert bus.result(rid) is None
        bus.view([1, 2, 3])
        bus.run()
        assert bus.result(rid) == {}

    def test_and_fails_if_it_never_will_be(self) -> None:
        bus = Bus()
        h = self.writer(bus)
        bus.view([1])
        rid = bus.call(1, "unlock", h=h, valblk=True, value=b"v2")
        bus.view([2, 3])
        bus.run()
        bus.view([1, 2, 3])
        bus.run()
        assert bus.result(rid) == "lost"

    def test_what_was_applied_and_is_lost_is_not_answered_as_done(self) -> None:
        """Node 1 delivers its write alone, and is cut off; the others go on without it."""
        bus = Bus()
        h = self.writer(bus)
        rid = bus.call(1, "unlock", h=h, valblk=True, value=b"v2")
        bus.sequence()
        bus.deliver(1)
        bus.view([1])
        bus.view([2, 3])
        bus.run()
        bus.view([1, 2, 3])
        bus.run()
        assert bus.result(rid) == "lost"


def test_a_mixed_bus_at_rest() -> None:
    """Settled and others side by side."""
    bus = Told({0: {"web": {"answer": "stable"}}})
    for node in (1, 2, 3):
        done(bus, node, "space_create", space="web")
    slow, _ = bus.lock(1, b"x", space="web")
    fast, _ = bus.lock(1, b"x")
    bus.sequence()
    bus.deliver(1)
    assert bus.granted(fast)
    assert not bus.granted(slow)
    bus.run()
    assert bus.granted(slow)
    bus.check_at_rest()
