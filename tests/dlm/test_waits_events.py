"""Deadlocks and what else happens: circles that break or close by other events (D6–D8), private names, multi-locks.

In the comments ``a>b`` is: owner a waits for owner b.
"""

from __future__ import annotations

import pytest

from dlm.messages import Kind, key_of
from dlm.modes import CR, EX, NL, PR, PW
from dlm.upkeep import YIELD_AFTER_US
from tests.dlm.bus import CLIENT, LEASE, MS
from tests.dlm.scene import A, B, C, Scene

# -- broken by something else at the same place in the order ---------------------------------------------------


def about_to_close() -> tuple[Scene, tuple[int, int], tuple[int, int]]:
    """a>b; what b holds is wanted by nobody else. b's closing request is still to be sent."""
    s = Scene()
    s.lock("a", A)
    held = s.lock("b", B)
    return s, s.lock("a", B), held


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("how", ["cancel", "unlock", "session"])
def test_a_circle_broken_by_who_waits(how: str, before: bool) -> None:
    s, waits, _ = about_to_close()
    closing = s.send("b", A)
    if how == "session":
        s.bus.close(1)
    else:
        s.bus.call(1, how, h=waits[1])
    s.bus.sequence(*((1, 2) if before else (2, 1)))
    s.bus.run()
    assert s.result(closing) == (("granted" if how == "session" else None) if before else "deadlock")
    assert s.found == {0 if before else 1}
    s.bus.check_at_rest()


@pytest.mark.parametrize("before", [True, False])
def test_a_circle_broken_by_a_timeout(before: bool) -> None:
    s = Scene()
    s.lock("a", A)
    s.lock("b", B)
    waits = s.lock("a", B, timeout_us=300 * MS)
    s.bus.now += 400 * MS
    s.bus.tokens()
    s.bus[1].service.fire(s.bus.now)
    assert s.bus.kinds(1) == [Kind.CANCEL]
    closing = s.send("b", A)
    s.bus.sequence(*((1, 2) if before else (2, 1)))
    s.bus.run()
    assert s.result(closing) == (None if before else "deadlock")
    assert s.result(waits) == "timeout"
    s.bus.check_at_rest()


@pytest.mark.parametrize("before", [True, False])
def test_a_circle_broken_by_the_death_of_a_node(before: bool) -> None:
    s, _, _ = about_to_close()
    closing = s.send("b", A)
    if not before:
        s.bus.run()
    s.bus.kill(1)
    s.bus.view([2, 3])
    s.bus.advance(2 * LEASE)
    assert s.result(closing) == ("granted" if before else "deadlock")
    s.bus.check_at_rest()


def test_all_locks_of_a_session_end_before_it_is_looked_for_circles() -> None:
    """Half of them gone, there would be a circle."""
    s = Scene()
    s.bus[1].service.open(5, CLIENT, s.bus.now)
    s.lock("a", A, owner=50, session=5)  # the first to go
    s.lock("a", C, owner=51, session=5)
    s.lock("b", B)
    one = s.lock("c", A, EX, noorder=True)
    s.lock("b", A, EX, noorder=True)
    s.lock("c", B)  # c>b: closed when c is granted A, were it not for ..
    s.bus.close(1, 5)
    s.bus.run()
    assert s.result(one) == "granted"
    assert s.found == {1}
    s.bus.check_at_rest()


def test_a_view_can_close_a_circle() -> None:
    s = Scene()
    s.lock("a", A)
    s.lock("b", B)
    one = s.lock("c", A, EX, noorder=True)
    s.lock("b", A, EX, noorder=True)
    waits = s.lock("c", B)  # c>b
    s.bus.kill(1)
    s.bus.view([2, 3])
    s.bus.advance(2 * LEASE)
    assert (s.result(one), s.result(waits)) == ("granted", "deadlock")
    assert s.found == {1}
    s.bus.check_at_rest()


def test_a_cancel_on_its_way_is_answered_although_the_request_is_refused() -> None:
    s, _, _ = about_to_close()
    closing = s.send("b", A)
    cancel = s.bus.call(2, "cancel", h=closing[1])
    s.bus.run()
    assert (s.result(closing), s.result(cancel)) == ("deadlock", {"canceled": False})


# -- D7: names that only their owner knows ---------------------------------------------------------------------


def test_d7_private_names_in_a_circle_are_published_and_it_is_found() -> None:
    s = Scene(b"")
    s.lock("a", A, owner=1)
    s.lock("a", B, owner=2)
    one, two = s.lock("a", B, owner=1), s.lock("a", A, owner=2)
    assert (s.result(one), s.result(two)) == (None, None)
    assert s.bus[2].table.names[key_of("default", A)].owner == 1
    s.bus.advance(YIELD_AFTER_US - 50 * MS)
    assert (s.result(one), s.result(two)) == (None, None)
    s.bus.advance(200 * MS)
    assert {s.result(one), s.result(two)} == {None, "deadlock"}
    assert s.found == {1}
    assert {name.owner for name in s.bus[3].table.names.values()} == {0}
    s.bus.check_at_rest()


def test_d7_private_to_two_nodes() -> None:
    s = Scene(b"")
    s.lock("a", A)
    s.lock("b", B)
    one = s.lock("a", B)
    two = s.lock("b", A)
    assert [s.result(one), s.result(two)] == [None, "deadlock"]
    s.bus.check_at_rest()


def test_d7_what_waited_in_the_handover_is_judged_after_all_of_it() -> None:
    s = Scene(b"B")
    s.lock("a", A)  # private to node 1
    s.lock("b", B)
    s.lock("a", B)  # a>b
    closing = s.send("b", A)  # b>a, to be seen when A is published
    s.bus.sequence(2)
    s.bus.deliver()
    s.bus.call(2, "cancel", h=closing[1])
    s.bus.sequence(2, 1)  # ordered before the publication
    s.bus.run()
    assert s.result(closing) == "canceled"
    assert s.found == {0}
    s.bus.check_at_rest()


def test_d7_a_circle_within_one_private_name_is_found_at_once() -> None:
    s = Scene(b"")
    a = s.lock("a", A, PR, owner=1)
    s.lock("a", A, CR, owner=2)
    one = s.lock("a", A, PW, owner=2)  # 2>1
    two = s.convert("a", a[1], EX)  # 1>2
    assert (s.result(one), s.result(two)) == (None, "deadlock")
    assert s.bus[1].table.names[key_of("default", A)].owner == 1


# -- D6: the same everywhere -----------------------------------------------------------------------------------


def test_d6_a_joiner_finds_the_same() -> None:
    s = Scene()
    s.bus.kill(3)
    s.bus.view([1, 2])
    s.bus.advance(2 * LEASE)
    s.lock("a", A)
    s.lock("b", B)
    s.lock("a", B)
    s.bus.boot(3)
    s.bus.view([1, 2, 3])
    s.bus.advance(LEASE)
    s.listen(3)
    c = s.lock("c", C)
    s.lock("b", C)
    closing = s.lock("c", A)  # c>a>b>c
    assert s.result(closing) == "deadlock"
    assert len(s.cycle(closing)) == 3
    assert s.bus[3].service.status()["deadlocks"] == s.bus[1].service.status()["deadlocks"] == 1
    s.unlock("c", c[1])
    s.bus.check_at_rest()


# -- multi-locks -----------------------------------------------------------------------------------------------


def test_a_multi_lock_is_refused_as_a_whole() -> None:
    s = Scene()
    s.lock("a", A)
    b = s.lock("b", B)
    s.lock("a", B)  # a>b
    rid, _ = s.bus.lock_all(2, A, C, owner=2)  # b>a, by one of its parts
    s.bus.run()
    assert s.result(rid) == "deadlock"
    assert s.cycle(rid) == [(A, 2, None, "EX"), (B, 1, None, "EX")]
    assert s.result(s.lock("c", C, noqueue=True)) == "granted"  # no part is left behind
    s.unlock("b", b[1])
    s.bus.check_at_rest()


@pytest.mark.parametrize(("taken", "free"), [(A, B), (B, A)])
def test_a_circle_through_another_part_of_a_multi_lock(taken: bytes, free: bytes) -> None:
    s = Scene()
    s.lock("a", taken)
    s.lock("c", C)
    rid, _ = s.bus.lock_all(2, A, B, owner=2)  # waits for a; its other part could be granted
    s.bus.run()
    behind = s.lock("c", free, PR)  # c waits for the multi-lock, that is for a
    assert (s.result(rid), s.result(behind)) == (None, None)
    closing = s.lock("a", C)  # a>c
    assert s.result(closing) == "deadlock"
    assert [row[0] for row in s.cycle(closing)] == [C, free, taken]


@pytest.mark.parametrize("shared", [False, True])
def test_a_multi_lock_on_what_one_holds_oneself(shared: bool) -> None:
    s = Scene(b"AB" if shared else b"")
    s.lock("a", A, owner=1)
    s.lock("a", B, NL, owner=2)
    rid, _ = s.bus.lock_all(1, A, B, owner=1)
    s.bus.run()
    assert s.result(rid) == "deadlock"
    assert s.result(s.lock("a", B, owner=2, noqueue=True)) == "granted"


def test_multi_locks_in_opposite_order_are_no_deadlock() -> None:
    s = Scene()
    _, h = s.bus.lock_all(1, A, B, owner=1)
    second, _ = s.bus.lock_all(2, B, A, owner=2)
    s.bus.run()
    assert s.bus.result(second) is None
    s.bus.unlock_all(1, h, 2)
    s.bus.run()
    assert {*s.bus.result(second)} == {"locks"}
    assert s.found == {0}
