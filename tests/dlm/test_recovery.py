"""Views: whose state goes on, what is purged, held back, and answered when (pitfalls C, D, K3–K11)."""

from __future__ import annotations

import pytest

from dlm.lease import stretched
from dlm.messages import Kind, key_of
from dlm.modes import EX, NL, PR
from dlm.recovery import Announcement, survivors
from tests.dlm.bus import LEASE, MS, Bus
from vsync.types import NO_RING, Entry, Member, RingId, View

R = key_of("default", b"R")


def shared(bus: Bus, name: bytes = b"R", nodes: tuple[int, ...] = (1, 2)) -> dict[int, int]:
    """Make a name shared by NL keepers; their handles by node."""
    keepers = {}
    for node in nodes:
        _, keepers[node] = bus.lock(node, name, NL)
        bus.run()
    return keepers


def said(
    state: int, applied: int, complete: bool = True, old: int = 0, kept: int = 0
) -> tuple[Announcement, RingId]:
    ring = RingId(state, 1) if state else NO_RING
    return Announcement(ring, applied, complete, kept=kept), RingId(old, 1) if old else NO_RING


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({1: said(0, 0, False), 2: said(0, 0, False)}, set()),
        ({1: said(10, 5, old=10), 2: said(10, 4, old=10), 3: said(0, 0, False)}, {1, 2}),
        ({1: said(10, 5, old=11, kept=5), 2: said(10, 4, old=12)}, {1}),
        ({1: said(10, 5, old=11, kept=4), 2: said(10, 4, old=12)}, {1, 2}),
        ({1: said(10, 5, old=11, kept=5), 2: said(10, 5, old=12, kept=2), 3: said(10, 3, old=13)}, {1, 2, 3}),
        ({1: said(10, 5, old=11), 2: said(10, 5, old=12)}, {1, 2}),
        ({1: said(10, 9, old=11), 2: said(13, 4, old=13)}, {2}),
        ({1: said(10, 6, old=11, kept=5), 2: said(10, 5, old=10), 3: said(10, 4, old=10)}, {1, 2}),
        ({1: said(10, 5, old=11), 2: said(10, 5, old=10, kept=6), 3: said(10, 4, old=10, kept=6)}, {2, 3}),
        ({1: said(10, 5, old=11), 2: said(10, 5, old=10, kept=5), 3: said(10, 4, old=10, kept=6)}, {1, 2, 3}),
        ({1: said(13, 7, False, old=13), 2: said(10, 4, old=11)}, {2}),
        ({1: said(10, 5, False, old=10), 2: said(10, 4, old=10)}, {2}),
    ],
)
def test_k4_whose_state_goes_on(entries: dict[int, tuple[Announcement, RingId]], expected: set[int]) -> None:
    members = tuple(Member(node, 1) for node in entries)
    table = {
        node: Entry(Member(node, 1), old, 1, {1: word.encode()}) for node, (word, old) in entries.items()
    }
    view = View(RingId(20, 1), members, (), (), True, False, "", table)
    assert survivors(view) == expected


def test_k3_held_back_messages_count_if_the_view_is_primary() -> None:
    bus = Bus()
    shared(bus)
    a, _ = bus.lock(1)
    bus.sequence()  # ordered, delivered by nobody
    bus.view([1, 2], rest={1: 1})
    assert bus.result(a) is None  # decided, but not before the horizon
    assert any(lock.fence for lock in bus[2].table.names[R].resource.locks.values() if lock.mode == EX)
    bus.advance(2 * LEASE)
    assert bus.granted(a)
    assert bus.result(a)["fence"] >> 32 == bus[1].table.ring.seq  # B3: in the epoch of the new view
    bus.check_at_rest()


def test_k3_what_follows_a_hole_is_dropped_without_quorum() -> None:
    bus = Bus()
    shared(bus)
    a, _ = bus.lock(1)
    bus.sequence()
    before = bus[1].table.applied
    bus.view([1], rest={1: 1})
    assert bus[1].table.applied == before
    assert bus.result(a) is None
    bus.view([2, 3])
    bus.view([1, 2, 3])
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.granted(a)  # sent again, in the new life
    bus.check_at_rest()


def test_k3_the_recovered_prefix_counts_without_quorum_but_is_not_answered() -> None:
    bus = Bus(5)
    shared(bus)
    a, _ = bus.lock(1)
    bus.sequence()
    bus.deliver(2)
    bus.view([1, 2])  # 1 recovers from 2 what it has not delivered itself
    assert bus[1].table.digest() == bus[2].table.digest()
    assert bus.result(a) is None
    bus.view([3, 4], primary=False)
    bus.view([1, 2, 3])
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.granted(a)


def test_c4_purge_is_by_membership_not_by_who_left() -> None:
    bus = Bus()
    keepers = shared(bus, nodes=(2, 3))
    a, _ = bus.lock(1)
    bus.run()
    assert bus.granted(a)
    bus.view([2])
    bus.view([3])
    bus.kill(1)  # dies while the others are apart
    bus.view([2, 3])
    b, _ = bus.lock(2)
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.granted(b)
    assert len(keepers) == 2
    bus.check_at_rest()


def test_c10_queued_messages_of_an_ended_life_do_nothing() -> None:
    bus = Bus()
    bus.lock(1)
    bus.run()
    b, _ = bus.lock(2)
    bus.sequence(2)
    bus.deliver()
    assert bus.kinds(1) == [Kind.PUBLISH]  # composed, stuck in 1's send queue
    stuck, bus[1].queue = bus[1].queue, []
    bus.view([1])
    bus.view([2, 3])
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.granted(b)
    bus[1].queue = stuck
    bus.view([1, 2, 3])
    ignored = bus[2].table.ignored
    bus.run()
    assert bus[2].table.ignored == ignored + 1
    assert [lock.mode for lock in bus[3].table.names[R].resource.locks.values()] == [EX]
    bus.check_at_rest()


def test_c12_waiting_requests_are_made_again_in_the_new_life() -> None:
    bus = Bus()
    bus.lock(2)
    bus.run()
    w, _ = bus.lock(1)
    bus.run()
    bus.view([1])
    assert bus.result(w) is None
    bus.view([2, 3])
    bus.view([1, 2, 3])
    bus.run()
    assert bus.result(w) is None
    bus.kill(2)
    bus.view([1, 3])
    bus.advance(2 * LEASE)
    assert bus.granted(w)


def test_d1_no_grant_is_answered_before_the_horizon() -> None:
    bus = Bus()
    shared(bus, nodes=(2, 3))
    a, _ = bus.lock(1)
    bus.sequence()
    bus.deliver(1)  # granted at 1, heard of by nobody
    assert bus.granted(a)
    bus.kill(1)
    bus.now += 150 * MS
    bus.view([2, 3])
    c, _ = bus.lock(3)
    bus.sequence(3)
    refused, _ = bus.lock(2, noqueue=True)
    bus.run()
    assert len(bus.valid_handles()) >= 3  # 1's client still holds R
    assert bus.result(c) is None
    assert bus.result(refused) == "again"  # refusals do not wait
    bus.advance(LEASE - 300 * MS)
    assert bus.result(c) is None
    bus.advance(500 * MS)
    assert bus.granted(c)


def test_d1_old_private_names_do_not_wait() -> None:
    bus = Bus()
    _, h = bus.lock(2)
    bus.run()
    bus.call(2, "unlock", h=h)
    bus.kill(1)
    bus.view([2, 3])
    old, _ = bus.lock(2)
    assert bus.granted(old)
    new, _ = bus.lock(2, b"unheard-of")
    bus.run()
    assert bus.result(new) is None
    bus.advance(LEASE + 200 * MS)
    assert bus.granted(new)


def test_d4_the_table_is_never_delayed_and_a_cancel_before_the_horizon_releases() -> None:
    bus = Bus()
    shared(bus, nodes=(2, 3))
    bus.lock(1)
    bus.run()
    bus.kill(1)
    bus.view([2, 3])
    b, hb = bus.lock(2)
    c, _ = bus.lock(3)
    bus.run()
    assert bus[3].table.names[R].resource.top_mode() == EX
    cancel = bus.call(2, "cancel", h=hb)
    assert bus.result(cancel) == {"canceled": True}
    bus.run()
    assert bus.result(b) == "canceled"
    assert bus.result(c) is None
    bus.advance(LEASE + 200 * MS)
    assert bus.granted(c)
    bus.check_at_rest()


def test_d3_the_horizon_survives_further_views() -> None:
    bus = Bus(5)
    bus.kill(1)
    bus.view([2, 3, 4, 5])
    horizon = bus[2].service.lease_clock.horizon
    assert horizon > bus.now
    bus.view([2, 3, 4, 5])
    bus.view([2])
    bus.view([2, 3, 4, 5])
    assert bus[2].service.lease_clock.horizon >= horizon


def test_d3_an_empty_start_counts_from_the_installation() -> None:
    bus = Bus()
    bus.lock(1)
    bus.run()
    for node in (2, 3):
        bus.kill(node)
        bus.boot(node)
    bus.view([2, 3])
    b, _ = bus.lock(2)
    bus.run()
    assert bus.result(b) is None
    bus.advance(stretched(LEASE) - 100 * MS)
    assert bus.result(b) is None
    bus.advance(200 * MS)
    assert bus.granted(b)


def test_a_joiner_of_a_whole_ring_waits_for_nobody() -> None:
    bus = Bus()
    bus.kill(3)
    bus.view([1, 2])
    bus.advance(2 * LEASE)
    bus.boot(3)
    bus.view([1, 2, 3])
    bus.run()
    rid, _ = bus.lock(3)
    bus.run()
    assert bus.granted(rid)


def test_d9_a_new_life_has_a_new_generation_before_its_first_deadline() -> None:
    bus = Bus()
    bus.lock(1)
    bus.run()
    generation, deadline = bus[1].service.lease(1)
    assert deadline > bus.now
    bus.view([1])
    assert bus[1].service.lease(1) == (generation, 0)  # D5: suspended at once
    bus.view([2, 3])
    bus.view([1, 2, 3])
    assert bus[1].service.lease(1)[0] == generation + 1
    assert bus[2].service.lease(1)[0] == generation


def test_d10_a_goodbye_makes_nobody_wait() -> None:
    bus = Bus()
    shared(bus, nodes=(2, 3))
    a, _ = bus.lock(1)
    c, _ = bus.lock(3)
    bus.run()
    assert bus.granted(a)
    bus[1].service.leaving(bus.now)
    assert bus[1].queue == []  # first the pages have to be written
    assert bus[1].service.next_deadline() == bus.now
    assert not bus[1].service.may_leave()
    bus.tokens()
    assert bus.kinds(1) == [Kind.GOODBYE]
    assert not bus[1].service.may_leave()
    bus.run()
    assert bus[1].service.may_leave()
    assert [kind for _, kind, _ in bus[1].pushes] == ["lost"]
    assert bus.granted(c)  # released by the goodbye itself
    bus.kill(1)
    bus.view([2, 3])
    rid, _ = bus.lock(2, b"other")
    bus.run()
    assert bus.granted(rid)
    bus.check_at_rest()


def test_a7_an_orphaned_handover_goes_to_its_waiting_list() -> None:
    bus = Bus()
    bus.lock(1, valblk=True)
    bus.run()
    b, hb = bus.lock(2, valblk=True)
    c, _ = bus.lock(3, valblk=True)
    bus.sequence(2, 3)
    bus.deliver()
    bus.kill(1)
    bus.view([2, 3])
    bus.run()
    bus.advance(LEASE + 200 * MS)
    assert bus.granted(b)
    assert bus.result(b)["value_valid"] is False
    bus.call(2, "unlock", h=hb)
    bus.run()
    assert bus.granted(c)
    bus.check_at_rest()


def test_a6_ownership_goes_on_with_the_life() -> None:
    bus = Bus()
    a, h = bus.lock(1)
    bus.run()
    for node in (1, 2, 3):
        bus.view([node])
    waiting = bus.call(1, "unlock", h=h)
    assert bus.result(waiting) == {}  # succeeds at once for the caller
    bus.view([1, 2, 3])
    bus.run()
    rid, _ = bus.lock(2)
    bus.advance(2 * LEASE)
    assert bus.granted(rid)
    assert bus.result(rid)["fence"] > bus.result(a)["fence"]
    bus.check_at_rest()


def test_a6_a_publication_in_a_dropped_rest_is_sent_again() -> None:
    bus = Bus()
    bus.lock(1, mode=PR)
    bus.run()
    b, _ = bus.lock(2, mode=PR)
    bus.sequence()
    bus.deliver()
    bus.sequence()  # the publication is ordered, but delivered by nobody
    for node in (1, 2, 3):
        bus.view([node])
    bus.view([1, 2, 3])
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.granted(b)
    assert bus[3].table.names[R].resource.homes == {1: 1, 2: 1}
    bus.check_at_rest()


def test_without_quorum() -> None:
    bus = Bus()
    _, h = bus.lock(1)
    bus.run()
    waiting, _ = bus.lock(2, no_quorum="fail")
    bus.run()
    for node in (1, 2, 3):
        bus.view([node])
    assert bus.result(waiting) == "no_quorum"
    assert bus.result(bus.lock(1, b"a", noqueue=True)[0]) == "no_quorum"
    assert bus.result(bus.lock(1, b"a", no_quorum="fail")[0]) == "no_quorum"
    patient, _ = bus.lock(1, b"a")
    assert bus.submitted == 3  # claim, request, publication: nothing is submitted without quorum
    bus.call(1, "unlock", h=h)
    bus.view([1, 2, 3])
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.granted(patient)
    assert R in bus[3].table.vacant
    bus.check_at_rest()


def test_a_fresh_node_alone_waits_for_quorum() -> None:
    bus = Bus(3, bootstrap=False)
    bus.view([1])
    rid, h = bus.lock(1)
    other, h2 = bus.lock(1, b"x")
    assert bus.result(bus.call(1, "cancel", h=h2)) == {"canceled": True}
    assert bus.result(other) == "canceled"
    bus.view([1, 2, 3])
    bus.advance(2 * LEASE)
    assert bus.granted(rid)
    assert bus.result(bus.call(1, "unlock", h=h)) == {}


def test_a_restarted_node_is_another_life() -> None:
    bus = Bus()
    bus.lock(1)
    bus.run()
    w, _ = bus.lock(2)
    bus.run()
    bus.kill(1)
    bus.boot(1)
    bus.view([1, 2, 3])
    bus.run()
    assert bus.result(w) is None
    bus.advance(LEASE + 200 * MS)
    assert bus.granted(w)
    bus.check_at_rest()


STATES = ["waiting", "granted", "converting", "deferred", "unlocking", "private", "under way", "frozen"]


@pytest.mark.parametrize("state", STATES)
def test_a_session_ends_in_each_state(state: str) -> None:
    bus = Bus()
    keepers = {} if state in ("private", "under way") else shared(bus, nodes=(2, 3))
    blocker = None
    if state == "waiting":
        _, blocker = bus.lock(2)
        bus.run()
    _, h = bus.lock(1, mode=PR if state == "converting" else EX)
    if state != "under way":
        bus.run()
    if state == "converting":
        _, blocker = bus.lock(2, mode=PR)
        bus.run()
        bus.call(1, "convert", h=h, mode=EX)
        bus.run()
    elif state == "unlocking":
        bus.call(1, "unlock", h=h)
    elif state == "frozen":
        for node in (1, 2, 3):
            bus.view([node])
    bus.close(1)
    if state == "frozen":
        bus.view([1, 2, 3])
    bus.run()
    if blocker is not None:
        bus.call(2, "unlock", h=blocker)
        bus.run()
    name = bus[2].table.names.get(R)
    assert name is None or name.resource is None or 1 not in name.resource.homes
    after, _ = bus.lock(2)
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.granted(after)
    bus.check_at_rest()
    assert keepers or name is not None
