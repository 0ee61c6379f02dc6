"""Deadlocks over several names, through whole lock managers: circles of every kind (locks.md D1–D5, D8).

In the comments ``a>b`` is: owner a waits for owner b. Owners are threads of one client unless it says otherwise.
"""

from __future__ import annotations

import pytest

from dlm.modes import CR, CW, EX, NL, PR
from tests.dlm.bus import CLIENT, Bus
from tests.dlm.scene import A, B, C, Scene

# -- D2, D3, D8: circles of any length -----------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 3, 5, 20])
def test_d2_d3_d8_a_circle_of_any_length(length: int) -> None:
    names = bytes(range(65, 65 + length))
    s = Scene(names)
    who = [chr(ord("a") + i) for i in range(length)]
    held = [s.lock(one, names[i : i + 1]) for i, one in enumerate(who)]
    waits = [s.lock(one, names[i + 1 : i + 2]) for i, one in enumerate(who[:-1])]
    assert [s.result(each) for each in waits] == [None] * (length - 1)
    last = s.lock(who[-1], names[:1])
    assert s.result(last) == "deadlock"
    # The victim first; each waits for the next.
    nodes = [(i % 3) + 1 for i in range(length)]
    expected = [(names[:1], nodes[-1]), *((names[i + 1 : i + 2], nodes[i]) for i in range(length - 1))]
    assert [row[:2] for row in s.cycle(last)] == expected
    assert {row[2:] for row in s.cycle(last)} == {(None, "EX")}
    assert s.found == {1}
    # D8: the refused one keeps what it has, and the others wait until it gives that up.
    assert [s.result(each) for each in waits] == [None] * (length - 1)
    for i in range(length - 1, 0, -1):
        s.unlock(who[i], held[i][1])
        assert s.result(waits[i - 1]) == "granted"
        s.unlock(who[i - 1], waits[i - 1][1])
    s.bus.check_at_rest()


def test_the_cycle_says_whose_they_are() -> None:
    s = Scene()
    s.bus[2].service.open(7, CLIENT.__class__(4711, 0, 0, "other"), s.bus.now)
    s.lock("a", A)
    s.lock("b", B, session=7)
    s.lock("a", B)
    last = s.lock("b", A, session=7, space="default")
    row, other = s.said[last[0]]["cycle"]
    assert row == {
        "name": A, "space": "default", "node": 2, "session": 7, "pid": 4711, "program": "other",
        "mode": None, "asked": "EX",
    }  # fmt: skip
    assert (other["name"], other["node"], other["pid"], other["program"]) == (B, 1, 100, "client")


def test_no_circle_no_victim() -> None:
    s = Scene()
    a = s.lock("a", A)
    b = s.lock("b", B)
    waits = [s.lock("a", B), s.lock("c", A), s.lock("c", B)]  # a>b, c>a, c>b
    s.unlock("b", b[1])
    s.unlock("a", a[1])
    s.unlock("a", waits[0][1])
    assert [s.result(each) for each in waits[1:]] == ["granted", "granted"]
    assert s.found == {0}


def test_who_is_ahead_in_one_queue_and_behind_in_another() -> None:
    """c would get B before a, and then still wait for what a has."""
    s = Scene()
    s.lock("a", A)
    s.lock("b", B)
    s.lock("c", A)  # c>a
    s.lock("c", B)  # c>b, who is free
    assert s.result(s.lock("a", B)) == "deadlock"  # a>c


def test_two_circles_that_share_an_edge_fall_with_one_victim() -> None:
    s = Scene()
    s.lock("a", A)
    s.lock("b", B, PR)
    s.lock("c", B, PR)
    one, two = s.lock("b", A), s.lock("c", A)
    closing = s.lock("a", B)  # a>b>a and a>c>a
    assert [s.result(each) for each in (one, two, closing)] == [None, None, "deadlock"]
    assert s.found == {1}


def test_two_circles_at_once_without_a_common_request() -> None:
    """A name becomes visible with its queue: each circle in it falls by itself, the last to wait first."""
    bus = Bus()
    bus.lock(1, C, owner=1)
    bus.run()  # private to node 1
    s = Scene(b"AB", bus=bus)
    s.lock("b", A)
    s.lock("c", B)
    one = s.send("a", A, owner=1)  # owner 1 waits for both
    two = s.send("a", B, owner=1)
    bus.run()
    closing = [s.send("b", C), s.send("c", C)]
    bus.run()
    # C was handed over with both requests in its list; they wait for owner 1, and it for them.
    assert [s.result(each) for each in (*closing, one, two)].count("deadlock") == 2
    assert [s.result(each) for each in closing] == ["deadlock", "deadlock"]
    assert s.found == {2}
    bus.check_at_rest()


# -- D1, D8: conversions -------------------------------------------------------------------------------------


def test_d1_a_conversion_deadlock_tells_its_circle_too() -> None:
    s = Scene()
    a, b = s.lock("a", A, PR), s.lock("b", A, PR)
    s.convert("a", a[1], EX)
    refused = s.convert("b", b[1], EX)
    assert s.result(refused) == "deadlock"
    assert s.cycle(refused) == [(A, 2, "PR", "EX"), (A, 1, "PR", "EX")]
    assert s.found == {0}  # it needs no search


def test_d2_d8_a_circle_through_a_conversion_leaves_the_old_mode() -> None:
    s = Scene()
    s.lock("a", A, PR)
    b = s.lock("b", A, PR)
    s.lock("b", B)
    waits = s.lock("a", B)
    refused = s.convert("b", b[1], EX)
    assert s.result(refused) == "deadlock"
    assert s.cycle(refused) == [(A, 2, "PR", "EX"), (B, 1, None, "EX")]
    assert s.bus.handles[s.bus[2].me, 1, b[1]].mode == PR
    writer = s.lock("c", A)
    s.unlock("b", b[1])
    assert s.result(writer) is None  # a still reads A
    assert s.result(waits) is None
    s.bus.check_at_rest()


def test_d8_a_refused_conversion_with_convdeadlk_tells_that_its_mode_is_gone() -> None:
    s = Scene()
    a, b = s.lock("a", A, PR), s.lock("b", A, PR)
    s.lock("b", B)
    s.lock("a", B)  # a>b
    served = s.convert("a", a[1], EX)  # a>b
    demoted = s.convert("b", b[1], EX, convdeadlk=True)  # holds NL meanwhile, so that a is served; then b>a
    assert (s.result(served), s.result(demoted)) == ("granted", "deadlock")
    assert (s.said[demoted]["mode"], s.said[demoted]["flags"]) == (NL, 1)
    assert s.cycle(demoted) == [(A, 2, "NL", "EX"), (B, 1, None, "EX")]
    s.bus.check_at_rest()


def test_a_conversion_granted_past_the_queue_can_close_a_circle() -> None:
    s = Scene()
    a = s.lock("a", A, CR)
    s.lock("b", A, CW)
    s.lock("c", B)
    reader = s.lock("c", A, PR)  # c>b, who is free
    waits = s.lock("a", B)  # a>c
    done = s.convert("a", a[1], CW)  # granted in place: c>a as well
    assert s.result(done) == "granted"
    assert (s.result(reader), s.result(waits)) == (None, "deadlock")  # the last to wait
    assert s.found == {1}


# -- D2 (b): waiting behind others ---------------------------------------------------------------------------


def test_a_circle_through_the_order_of_the_queue_only() -> None:
    s = Scene()
    s.lock("a", A, PR)
    s.lock("c", B)
    s.lock("b", A, EX)  # b>a
    s.lock("a", B)  # a>c
    reader = s.lock("c", A, PR)  # fits with all that is held, but stands behind b
    assert s.result(reader) == "deadlock"
    assert s.cycle(reader) == [(A, 3, None, "PR"), (A, 2, None, "EX"), (B, 1, None, "EX")]


def test_a_converter_waits_behind_converters() -> None:
    s = Scene()
    a, b = s.lock("a", A, CR), s.lock("b", A, NL)
    s.lock("c", A, CW)
    s.lock("b", B)
    s.lock("c", C)
    s.convert("a", a[1], PR)  # a>c
    s.lock("c", B)  # c>b
    refused = s.convert("b", b[1], CR, quecvt=True)  # fits, but stands behind a
    assert s.result(refused) == "deadlock"
    assert s.found == {1}


def test_who_stands_ahead_may_wait_elsewhere() -> None:
    """Behind a request one waits for *it*: when it is granted, and fits, its owner may wait elsewhere for ever."""
    s = Scene()
    c = s.lock("c", A)
    s.lock("a", B)
    reader = s.lock("b", A, PR)  # b>c, who is free
    other = s.lock("b", B)  # b>a
    mine = s.lock("a", A, PR)  # behind b's, but not for b
    assert s.result(mine) is None
    s.unlock("c", c[1])
    assert (s.result(reader), s.result(mine), s.result(other)) == ("granted", "granted", None)
    assert s.found == {0}


def test_who_stands_ahead_and_will_be_in_the_way_counts() -> None:
    s = Scene()
    s.lock("c", A)
    s.lock("a", B)
    s.lock("b", A, PR)
    s.lock("b", B)
    assert s.result(s.lock("a", A, EX)) == "deadlock"


def test_a_middle_conversion_that_makes_room() -> None:
    """CW to PR: whoever wants to read waits for the conversion, not for its owner."""
    s = Scene()
    b = s.lock("b", A, CW)
    c = s.lock("c", A, CW)
    s.lock("a", B)
    changes = s.convert("b", b[1], PR)  # b>c
    s.lock("b", B)  # b>a
    reader = s.lock("a", A, PR, noorder=True)  # a>c, and b's conversion
    assert s.result(reader) is None
    s.unlock("c", c[1])
    assert (s.result(changes), s.result(reader)) == ("granted", "granted")
    assert s.found == {0}


def test_a_middle_conversion_that_fails_stays_in_the_way() -> None:
    """Who has waited for the conversion waits for its owner from now on (seed 1916 with 3 nodes)."""
    s = Scene()
    b = s.lock("b", A, CW)
    s.lock("c", A, CW)
    s.lock("a", B)
    changes = s.convert("b", b[1], PR)  # b>c
    other = s.lock("b", B)  # b>a
    reader = s.lock("a", A, PR, noorder=True)  # a>c, and b's conversion
    assert s.result(reader) is None
    s.bus.call(2, "cancel", h=b[1])
    s.bus.run()
    assert s.result(changes) == "canceled"
    assert s.result(reader) == "deadlock"  # a>b now
    assert s.result(other) is None
    s.bus.check_at_rest()


def test_d5_a_conversion_that_fails_in_the_way_of_its_own_owner() -> None:
    s = Scene()
    b = s.lock("b", A, CW)
    s.lock("c", A, CW)
    changes = s.convert("b", b[1], PR)  # b>c
    reader = s.lock("b", A, PR)  # behind the conversion, with which it fits
    assert s.result(reader) is None
    s.bus.call(2, "cancel", h=b[1])
    s.bus.run()
    assert (s.result(changes), s.result(reader)) == ("canceled", "deadlock")
    s.bus.check_at_rest()


def test_headque_puts_others_behind() -> None:
    s = Scene()
    s.lock("c", A, PR)
    s.lock("b", B)
    waits = s.lock("b", A, EX)  # b>c, who is free
    assert s.result(s.lock("a", C)) == "granted"
    s.lock("a", B)  # a>b
    first = s.lock("a", A, CW, headque=True)  # in front of b: b>a
    assert (s.result(first), s.result(waits)) == ("deadlock", None)
    assert s.cycle(first)[0] == (A, 1, None, "CW")
    assert s.found == {1}


def test_noorder_waits_for_nobodys_turn() -> None:
    s = Scene()
    c = s.lock("c", A, CW)
    s.lock("a", B)
    s.lock("b", A, EX)  # b>c
    s.lock("b", B)  # b>a
    free = s.lock("a", A, PR, noorder=True)  # a>c only: it may be granted before b
    assert s.result(free) is None
    s.convert("c", c[1], CR)
    assert s.result(free) == "granted"
    assert s.found == {0}


def test_noorder_granted_past_others_can_close_a_circle() -> None:
    s = Scene()
    c = s.lock("c", A)
    s.lock("b", B)
    one = s.lock("a", A, EX, noorder=True)
    s.lock("b", A, EX, noorder=True)  # neither waits for the other
    waits = s.lock("a", B)  # a>b
    assert s.result(waits) is None
    s.unlock("c", c[1])  # a is first: b>a
    assert (s.result(one), s.result(waits)) == ("granted", "deadlock")
    assert s.found == {1}


def test_alternative_modes_wait_for_less() -> None:
    s = Scene()
    s.lock("b", A, PR)
    s.lock("c", A, EX)  # c>b, who is free
    s.lock("a", B)
    s.lock("b", B)  # b>a
    either = s.lock("a", A, EX, altpr=True, headque=True)
    assert s.bus.result(either[0])["mode"] == PR  # does not wait at all
    assert s.found == {0}


# -- D4: those who do not count ------------------------------------------------------------------------------


def test_d4_nodlckwt_is_no_waiter() -> None:
    s = Scene()
    s.lock("a", A)
    s.lock("b", B)
    s.lock("a", B)
    b = s.lock("b", A, nodlckwt=True)
    assert s.result(b) is None
    assert s.result(s.lock("c", A)) is None  # neither are those behind it stuck
    s.bus.call(2, "cancel", h=b[1])
    s.bus.run()
    assert s.result(b) == "canceled"
    assert s.found == {0}


def test_d4_nodlckwt_waits_even_for_itself() -> None:
    s = Scene()
    s.lock("a", A)
    assert s.result(s.lock("a", A, nodlckwt=True)) is None


def test_d4_nodlckblk_is_no_blocker() -> None:
    s = Scene()
    s.lock("a", A, nodlckblk=True)  # its owner will give it up when told that it blocks
    s.lock("b", B)
    s.lock("a", B)
    assert s.result(s.lock("b", A)) is None
    assert s.found == {0}


def test_d4_a_failed_conversion_leaves_the_flags_of_the_lock() -> None:
    s = Scene()
    a = s.lock("a", A, PR, nodlckblk=True)
    b = s.lock("b", A, PR)
    convert = s.convert("a", a[1], EX)  # without the flag
    s.lock("a", B)
    s.bus.call(1, "cancel", h=a[1])
    s.bus.run()
    assert s.result(convert) == "canceled"
    s.lock("b", C)
    s.lock("a", C)
    assert s.result(s.convert("b", b[1], EX)) is None
    s.bus.check_at_rest()


# -- D5: owners ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_d5_waiting_for_oneself_is_refused_at_once(shared: bool) -> None:
    s = Scene(b"A" if shared else b"")
    s.lock("a", A)
    mine = s.send("a", A)
    if not shared:
        assert s.result(mine) == "deadlock"  # its node decides alone
    s.bus.run()
    assert s.result(mine) == "deadlock"
    assert s.cycle(mine) == [(A, 1, None, "EX")]
    assert s.result(s.lock("a", A, noqueue=True)) == "again"
    assert s.result(s.lock("a", A, NL, expedite=True)) == "granted"


@pytest.mark.parametrize("shared", [False, True])
def test_d5_an_own_request_in_the_way_is_oneself_too(shared: bool) -> None:
    s = Scene(b"A" if shared else b"")
    s.lock("a", A, PR, owner=9)
    s.lock("a", A, EX)
    assert s.result(s.lock("a", A, EX)) == "deadlock"  # the first would have to be granted and given up before
    s.lock("a", A, PR, owner=7)
    assert s.result(s.lock("a", A, PR, owner=7)) is None  # both can be granted


def test_d5_compatible_locks_of_one_owner_are_no_deadlock() -> None:
    s = Scene()
    assert [s.result(s.lock("a", A, PR)) for _ in range(2)] == ["granted", "granted"]


def test_d5_threads_of_a_client_are_different_owners() -> None:
    s = Scene()
    held = s.lock("a", A, owner=1)
    waits = s.lock("a", A, owner=2)
    assert s.result(waits) is None
    s.unlock("a", held[1])
    assert s.result(waits) == "granted"


def test_d5_a_transaction_over_two_nodes() -> None:
    s = Scene()
    s.lock("a", A, xid=77)
    s.lock("b", B)
    s.lock("b", A)  # b>77
    part = s.lock("c", B, xid=77)  # at another node: 77>b
    assert s.result(part) == "deadlock"
    assert s.result(s.lock("b", A, xid=77)) == "deadlock"  # also with itself


def test_d5_two_transactions_of_one_thread() -> None:
    s = Scene()
    s.lock("a", A, xid=1)
    assert s.result(s.lock("a", A, xid=2)) is None


@pytest.mark.parametrize("how", ["blocks", "adopted"])
def test_a_circle_through_an_orphan(how: str) -> None:
    """It can be in the way, never a victim: its transaction, or who adopts it, is stuck elsewhere."""
    s = Scene()
    s.bus[1].service.open(5, CLIENT, s.bus.now)
    s.lock("a", A, session=5, xid=77, persistent=True)
    s.lock("b", B)
    waits = s.lock("b", A)  # b>77
    s.bus.close(1, 5)
    s.bus.run()
    if how == "blocks":
        assert s.result(s.lock("c", B, xid=77)) == "deadlock"
        return
    other = s.lock("d", B)  # d>b
    assert s.result(other) is None
    adopted = s.lock("d", A, orphan=True)  # now b>d
    assert s.result(adopted) == "granted"
    assert (s.result(waits), s.result(other)) == (None, "deadlock")
    s.bus.check_at_rest()
