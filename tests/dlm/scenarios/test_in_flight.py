"""Operations under way when somebody goes, and one view change in another (docs/lock-history.md, S1 to S16).

In the kernel a lock has a master, and what was sent to it when it died is sent again, faked, or forgotten by rules
of its own for each operation. Here it was ordered or it was not.
"""

from __future__ import annotations

import itertools

import pytest

from dlm.messages import Kind, key_of
from dlm.modes import EX, NL, PR
from tests.dlm.bus import CLIENT, LEASE, MS, Bus

R = key_of("default", b"R")


def shared(bus: Bus, *nodes: int) -> dict[int, int]:
    """R with an NL lock of each of these nodes: Shared. Their handles."""
    handles = {}
    for node in nodes:
        _, handles[node] = bus.lock(node, mode=NL)
        bus.run()
    return handles


def free(bus: Bus, node: int = 3) -> None:
    """The name can be locked by somebody who does not want to wait."""
    bus.advance(2 * LEASE)
    rid, h = bus.lock(node, mode=EX, noqueue=True)
    bus.run()
    assert bus.granted(rid), bus.result(rid)
    bus.call(node, "unlock", h=h)
    bus.run()
    bus.check_at_rest()


@pytest.mark.parametrize("delivered", range(4))
def test_s01_an_unlock_that_nobody_could_answer(delivered: int) -> None:
    """The name's first owner dies between the unlock and its delivery: it is answered, and the lock is gone."""
    bus = Bus()
    shared(bus, 1)
    _, h = bus.lock(2)
    bus.run()
    rid = bus.call(2, "unlock", h=h)
    bus.sequence(2)
    for node in range(1, 1 + delivered):
        bus.deliver(node)
    bus.kill(1)
    bus.view([2, 3])
    bus.run()
    assert bus.result(rid) == {}
    free(bus)


def test_s02_a_request_that_went_to_an_owner_who_is_dead() -> None:
    """The request is ordered and waits for the publication of an owner who will not make it."""
    bus = Bus()
    bus.lock(1)
    bus.run()
    rid, _ = bus.lock(2)
    bus.sequence()
    bus.deliver()
    assert bus.kinds(1) == [Kind.PUBLISH]
    bus.kill(1)
    bus.view([2, 3])
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.granted(rid)


@pytest.mark.parametrize("delivered", [(), (2,), (3,), (2, 3), (1, 2, 3)])
def test_s03_a_request_its_answer_and_a_release_around_a_view(delivered: tuple[int, ...]) -> None:
    """No stray lock stays, whether the request counted before the view or was sent again."""
    bus = Bus()
    shared(bus, 1, 3)
    rid, h = bus.lock(2)
    bus.sequence(2)
    bus.deliver(*delivered) if delivered else None
    bus.kill(1)
    bus.view([2, 3])
    release = bus.call(2, "unlock", h=h)
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.result(release) == {}
    assert bus.result(rid) == "canceled" or bus.granted(rid)
    assert [key[0] for key in bus[3].table.names[R].resource.locks] == [3]
    free(bus)


@pytest.mark.parametrize("second", [2, 3, 5])
def test_s04_another_one_dies_while_the_first_is_being_dealt_with(second: int) -> None:
    bus = Bus(5)
    shared(bus, 1, 2)
    bus.lock(1)
    waits, _ = bus.lock(4)
    bus.sequence()
    bus.deliver(4, count=1)
    bus.kill(1)
    left = [node for node in (2, 3, 4, 5) if node != second]
    bus.view([2, 3, 4, 5])
    bus.kill(second)
    bus.view(left)
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.granted(waits)
    bus.check_at_rest()


@pytest.mark.parametrize("first", ["fails", "is withdrawn", "is released", "dies"])
@pytest.mark.parametrize("owner", [True, False])
def test_s05_the_first_of_two_requests_fails_and_the_second_takes_over(first: str, owner: bool) -> None:
    bus = Bus()
    held = 0
    if owner:
        _, held = bus.lock(1)
        bus.run()
    one, h = bus.lock(2, noqueue=first == "fails")
    two, _ = bus.lock(2, session=2)
    if first == "is withdrawn":
        bus.call(2, "cancel", h=h)
    elif first == "is released":
        bus.call(2, "unlock", h=h)
    elif first == "dies":
        bus.close(2)
    bus.run()
    if owner:
        assert bus.result(two) is None
        bus.call(1, "unlock", h=held)
        bus.run()
    assert owner or first not in ("fails", "is withdrawn") or bus.granted(one)  # it came first, and a grant is kept
    if bus.granted(one):
        bus.call(2, "unlock", h=h)
        bus.run()
    assert bus.granted(two)
    bus.check_at_rest()


def test_s06_names_come_and_go_and_a_node_dies_in_between() -> None:
    """No entry of a name that is gone is left to send requests the wrong way."""
    bus = Bus()
    for turn in range(30):
        node = turn % 3 + 1
        rid, h = bus.lock(node, b"n%d" % (turn % 4))
        bus.run()
        bus.advance(2 * LEASE if turn == 11 else 1)
        assert bus.granted(rid), turn
        bus.call(node, "unlock", h=h)
        bus.run()
        if turn == 10:
            bus.kill(2)
            bus.view([1, 3])
            bus.boot(2)
            bus.view([1, 2, 3])
            bus.run()
    bus.advance(15_000 * MS)
    assert all(node.table.names.keys() == node.table.vacant.keys() for node in bus.alive())
    bus.check_at_rest()


MOMENTS = ["not sent", "ordered", "at its home", "everywhere", "answered"]
OVERLAPS = [["cancel"], ["unlock"], ["cancel", "unlock"]]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("overlap", OVERLAPS, ids="+".join)
@pytest.mark.parametrize("verb", ["lock", "waiting lock", "convert", "waiting convert"])
def test_s07_cancel_and_unlock_overlap_with_what_is_in_flight(verb: str, overlap: list[str], moment: str) -> None:
    """Each of them is answered once (a second answer is an error in the bus), and they agree."""
    bus = Bus()
    shared(bus, 1, 3)
    if verb.startswith("waiting"):
        bus.lock(1, mode=PR)
        bus.run()
    if verb.endswith("convert"):
        _, h = bus.lock(2, mode=NL)
        bus.run()
        rid = bus.call(2, "convert", h=h, mode=EX)
    else:
        rid, h = bus.lock(2)
    if moment != MOMENTS[0]:
        bus.sequence(2)
    if moment == "at its home":
        bus.deliver(2)
    elif moment == "everywhere":
        bus.deliver()
    elif moment == "answered":
        bus.run()
    later = {what: bus.call(2, what, h=h) for what in overlap}
    bus.run()
    answer = bus.result(rid)
    assert answer is not None
    assert bus.granted(rid) or answer == "canceled"
    if "cancel" in later:
        withdrawn = bus.result(later["cancel"])["canceled"]
        assert withdrawn == (answer == "canceled") or "unlock" in later  # or the grant came first, then the release
    if "unlock" in later:
        assert bus.result(later["unlock"]) in ({}, "unknown")  # unknown: the cancel was at its end already
    locks = bus[3].table.names[R].resource.locks
    left = "unlock" not in later and (verb.endswith("convert") or answer != "canceled")
    assert [key for key in locks if key[0] == 2] == ([(2, 1, h)] if left else [])
    bus.check_at_rest()


def test_s08_a_lock_is_released_before_the_request_was_answered() -> None:
    """The client names its handle itself: there is no id to wait for."""
    for first, second in itertools.product(["lock", "private"], [1, 2]):
        bus = Bus()
        if first == "lock":
            shared(bus, 1, 3)
        rid, h = bus.lock(second)
        assert bus.result(rid) is None
        release = bus.call(second, "unlock", h=h)
        bus.run()
        assert (bus.result(rid), bus.result(release)) == ("canceled", {})
        free(bus)


def test_s09_a_cancel_of_somebody_who_waits_elsewhere_and_in_a_conversion_deadlock() -> None:
    bus = Bus()
    a, b = (bus.lock(node, mode=PR)[1] for node in (1, 2))
    bus.run()
    waits, w = bus.lock(3)
    up = bus.call(1, "convert", h=a, mode=EX)
    bus.run()
    stuck = bus.call(2, "convert", h=b, mode=EX, nodlckwt=True)  # asked for: nobody resolves this circle
    bus.run()
    assert [bus.result(rid) for rid in (waits, up, stuck)] == [None] * 3
    done = bus.call(3, "cancel", h=w)
    broken = bus.call(1, "cancel", h=a)
    bus.run()
    assert bus.result(done) == bus.result(broken) == {"canceled": True}
    assert bus.result(waits) == bus.result(up) == "canceled"
    bus.call(1, "unlock", h=a)
    bus.run()
    assert bus.granted(stuck)
    bus.check_at_rest()


def test_s10_a_publication_of_a_former_life_makes_no_ghosts() -> None:
    """It is queued when its owner is cut off, and is ordered when others have gone on and the owner is back."""
    bus = Bus()
    bus.lock(1)
    bus.run()
    waits, h = bus.lock(2)
    bus.sequence()
    bus.deliver()
    assert bus.kinds(1) == [Kind.PUBLISH]
    bus.view([1])
    bus.view([2, 3])
    bus.view([1, 2, 3])
    ignored = bus[3].table.ignored
    bus.run()
    assert bus[3].table.ignored > ignored
    bus.advance(2 * LEASE)
    assert bus.granted(waits)
    bus.call(2, "unlock", h=h)
    bus.run()
    name = bus[3].table.names.get(R)
    assert name is None or not name.resource or not name.resource.locks
    free(bus)


def test_s11_views_that_follow_each_other_count_nothing_twice() -> None:
    bus = Bus(5)
    shared(bus, 1, 2)
    requests = [bus.lock(node)[0] for node in (1, 2, 3)]
    for members in ([1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 5], [1, 2, 3, 4, 5]):
        bus.view(members)
    bus.run()
    resource = bus[1].table.names[R].resource
    assert len(resource.locks) == 2 + 3
    assert len(resource.waiting) == 2
    bus.advance(2 * LEASE)
    assert sum(bus.granted(rid) for rid in requests) == 1
    bus.check_at_rest()


def test_s12_two_lockspaces_are_dealt_with_in_one_step() -> None:
    """Their members came in opposite order; the view serves the waiters of both."""
    bus = Bus()
    for space in ("one", "two"):
        bus.call(1, "space_create", space=space)
        bus.run()
        bus.lock(1, b"x", EX, space=space)
    waits = []
    for node, spaces in ((2, ("one", "two")), (3, ("two", "one"))):
        for space in spaces:
            bus.call(node, "space_open", space=space)
            bus.run()
            waits.append(bus.lock(node, b"x", EX, space=space)[0])
    bus.run()
    bus.kill(1)
    bus.view([2, 3])
    bus.advance(2 * LEASE)
    assert sorted(bus.granted(rid) for rid in waits) == [False, False, True, True]
    bus.check_at_rest()


def test_s14_what_was_kept_during_a_change_is_not_overtaken() -> None:
    """A release and a new request of one client: the second one is asked after the view."""
    bus = Bus()
    shared(bus, 1, 3)
    _, h = bus.lock(2)
    bus.run()
    bus.call(2, "unlock", h=h)  # still to be sent
    bus.view([1, 2, 3])
    again, _ = bus.lock(2, noqueue=True)
    bus.run()
    assert bus.granted(again)  # it would be refused if it came before the release


def test_s15_a_node_is_back_before_anybody_saw_it_go() -> None:
    """Its locks go although no view was without the node: members are (node, incarnation)."""
    bus = Bus()
    shared(bus, 1, 3)
    bus.lock(2)
    bus.run()
    waits, _ = bus.lock(3)
    bus.run()
    bus.kill(2)
    bus.boot(2)
    bus.view([1, 2, 3])
    bus.run()
    assert 2 not in bus[1].table.names[R].resource.homes
    bus.advance(2 * LEASE)
    assert bus.granted(waits)


def test_s16_messages_for_one_incarnation_do_nothing_to_the_next() -> None:
    """The same session, handle and serial number: only the life differs."""
    bus = Bus()
    shared(bus, 1, 3)
    bus.lock(2)
    bus.sequence(2)
    old = bus[2].ring.log[-1]
    bus.run()
    bus.kill(2)
    bus.boot(2)
    bus.view([1, 2, 3])
    bus.run()
    assert bus[2].service.home.sessions.keys() == {1, 2}
    bus[2].service.open(3, CLIENT, bus.now)
    bus[1].ring.log.append(old)
    ignored = [node.table.ignored for node in bus.alive()]
    bus.deliver()
    assert [node.table.ignored for node in bus.alive()] == [number + 1 for number in ignored]
    assert 2 not in bus[1].table.names[R].resource.homes
    free(bus, 2)
