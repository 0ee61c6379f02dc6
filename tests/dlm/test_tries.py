"""Locks that their clients may have idle: tries wait for their word, the search for deadlocks leaves them out until
then, and each has a block of fence numbers for itself (dlm/tries.py, K14).
"""

from __future__ import annotations

from typing import Any

import pytest

from dlm.messages import key_of
from dlm.modes import EX, NL, PR, PW
from dlm.names import FENCE_BLOCK, Fences, Form
from dlm.upkeep import WORD_AFTER_US
from tests.dlm.bus import LEASE, MS, Bus
from tests.dlm.scene import A, B, Scene

CACHED: dict[str, Any] = {"cache": True, "blocking": True, "fences": 16}
FORMS = ["shared", "private", "owned"]
KEY = key_of("default", b"R")


def bus_with(form: str) -> Bus:
    """A bus where R is shared, private to node 1, or will be owned by node 1 and asked for by others."""
    bus = Bus(3)
    if form == "shared":
        for keeper in (1, 2):
            bus.lock(keeper, mode=NL, session=2)
        bus.run()
    return bus


def held(bus: Bus, node: int = 1, mode: int = EX, **more: Any) -> tuple[int, int]:
    asked = bus.lock(node, mode=mode, **{**CACHED, **more})
    bus.run()
    assert bus.granted(asked[0])
    return asked


def other(form: str) -> dict[str, int]:
    """Who else asks: another client of the same node if the name is to stay private."""
    return {"node": 1, "session": 2} if form == "private" else {"node": 2, "session": 1}


def word(bus: Bus, verb: str, h: int, node: int = 1) -> None:
    bus.call(node, verb, h=h)
    bus.run()


def told(bus: Bus, h: int, node: int = 1) -> list[int]:
    """Modes of the blocking callbacks of a handle."""
    return [data["mode"] for _, kind, data in bus[node].pushes if kind == "blocking" and data["h"] == h]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("says", "outcome"), [("unlock", "granted"), ("in_use", "again")])
def test_a_try_of_a_cached_lock_waits_for_the_word_of_its_client(form: str, says: str, outcome: str) -> None:
    bus = bus_with(form)
    _, h = held(bus)
    asked, _ = bus.lock(**other(form), noqueue=True)
    bus.run()
    assert bus.result(asked) is None
    assert told(bus, h) == [EX]
    word(bus, says, h)
    assert bus.granted(asked) if outcome == "granted" else bus.result(asked) == outcome
    assert bus[1].table.names[KEY].form is (Form.PRIVATE if form == "private" else Form.SHARED)


@pytest.mark.parametrize("form", FORMS)
def test_a_client_that_does_not_say_so_has_it_in_use(form: str) -> None:
    bus = bus_with(form)
    held(bus)
    asked, _ = bus.lock(**other(form), noqueue=True)
    bus.advance(WORD_AFTER_US - 100 * MS)
    assert bus.result(asked) is None
    bus.advance(300 * MS)
    assert bus.result(asked) == "again"
    again, _ = bus.lock(**other(form), noqueue=True)
    bus.run()
    assert bus.result(again) == "again", "the word is asked for once"


@pytest.mark.parametrize("form", FORMS)
def test_a_try_that_meets_an_ordinary_lock_is_refused_at_once(form: str) -> None:
    bus = bus_with(form)
    bus.lock(1, blocking=True)
    asked, _ = bus.lock(**other(form), noqueue=True)
    bus.run()
    assert bus.result(asked) == "again"


def test_a_try_is_refused_when_one_of_two_readers_is_in_use() -> None:
    bus = bus_with("shared")
    _, one = held(bus, 1, PR)
    _, two = held(bus, 3, PR)
    asked, _ = bus.lock(2, noqueue=True)
    bus.run()
    word(bus, "unlock", one)
    assert bus.result(asked) is None
    word(bus, "in_use", two, 3)
    assert bus.result(asked) == "again"


def test_tries_behind_each_other_have_the_outcome_that_they_would_have_without_the_cached_lock() -> None:
    bus = bus_with("shared")
    _, h = held(bus)
    reader, _ = bus.lock(2, mode=PR, noqueue=True)
    second, _ = bus.lock(3, mode=PR, noqueue=True)
    writer, _ = bus.lock(3, mode=EX, noqueue=True)
    bus.run()
    assert bus.result(writer) == "again"
    word(bus, "unlock", h)
    assert bus.granted(reader)
    assert bus.granted(second)


def test_a_refused_try_holds_nobody_back() -> None:
    bus = bus_with("shared")
    _, h = held(bus, mode=PW)
    tried, _ = bus.lock(2, mode=EX, noqueue=True)
    behind, _ = bus.lock(3, mode=1)  # CR, behind the try
    bus.run()
    assert bus.result(behind) is None
    word(bus, "in_use", h)
    assert bus.result(tried) == "again"
    assert bus.granted(behind)


def test_a_conversion_that_is_only_tried_waits_for_the_word_too() -> None:
    bus = bus_with("shared")
    _, h = held(bus, mode=PR)
    _, mine = bus.lock(2, mode=PR)
    bus.run()
    for says, outcome in (("in_use", "again"), ("unlock", "granted")):
        asked = bus.call(2, "convert", h=mine, mode=EX, noqueue=True)
        bus.run()
        if says == "in_use":
            assert bus.result(asked) is None
        word(bus, says, h)
        if outcome == "again":
            assert bus.result(asked) == "again"
    last = bus.call(2, "convert", h=mine, mode=EX, noqueue=True)
    bus.run()
    assert bus.granted(last)


@pytest.mark.parametrize(("says", "outcome"), [("unlock", "granted"), ("in_use", "again")])
@pytest.mark.parametrize("form", FORMS)
def test_a_multi_lock_that_is_only_tried_waits_for_the_word_too(form: str, says: str, outcome: str) -> None:
    bus = bus_with(form)
    _, h = held(bus)
    who = other(form)
    asked, _ = bus.lock_all(who["node"], b"Q", b"R", session=who["session"], noqueue=True)
    bus.run()
    assert bus.result(asked) is None
    word(bus, says, h)
    assert bus.granted(asked) if outcome == "granted" else bus.result(asked) == outcome


def test_a_multi_lock_is_refused_if_another_of_its_names_is_in_use() -> None:
    bus = bus_with("shared")
    held(bus)
    bus.lock(3, b"Q")
    bus.run()
    asked, _ = bus.lock_all(2, b"Q", b"R", noqueue=True)
    bus.run()
    assert bus.result(asked) == "again"


def test_the_word_of_a_cached_lock_is_wanted_once_and_a_conversion_gives_it() -> None:
    bus = bus_with("shared")
    _, h = held(bus, mode=PR)
    asked, _ = bus.lock(2, noqueue=True)
    bus.run()
    sent = bus.submitted
    bus.call(1, "convert", h=h, mode=PR, blocking=True)
    bus.run()
    assert bus.result(asked) == "again"
    assert bus.submitted == sent + 2
    word(bus, "in_use", h)
    assert bus.submitted == sent + 2


def test_the_word_survives_a_view_in_which_the_node_was_not_primary() -> None:
    bus = bus_with("shared")
    _, h = held(bus)
    asked, _ = bus.lock(2, noqueue=True)
    bus.run()
    bus.view([1], primary=False)
    bus.view([2], primary=False)
    bus.call(1, "in_use", h=h)
    bus.view([1, 2, 3])
    bus.advance(LEASE)
    assert bus.result(asked) == "again"


# -- deadlocks -----------------------------------------------------------------------------------------------


def test_a_lock_that_may_be_idle_makes_no_circle() -> None:
    s = Scene(b"AB")
    _, idle = s.lock("a", A, **CACHED)
    _, used = s.lock("b", B)
    waits = s.lock("b", A)
    back = s.lock("a", B)
    assert s.result(back) is None, "b waits for what a may have idle"
    assert s.found == {0}
    s.unlock("a", idle)
    assert s.result(waits) == "granted"
    s.unlock("b", used)
    assert s.result(back) == "granted"


def test_a_circle_is_found_when_the_lock_turns_out_to_be_in_use() -> None:
    s = Scene(b"AB")
    _, h = s.lock("a", A, **CACHED)
    s.lock("b", B)
    first = s.lock("b", A)
    last = s.lock("a", B)
    word(s.bus, "in_use", h)
    assert s.result(last) == "deadlock"
    assert s.cycle(last) == [(b"B", 1, None, "EX"), (b"A", 2, None, "EX")]
    assert s.result(first) is None
    assert s.found == {1}


def test_a_circle_is_found_although_the_client_is_silent() -> None:
    s = Scene(b"AB")
    s.lock("a", A, **CACHED)
    s.lock("b", B)
    s.lock("b", A)
    last = s.lock("a", B)
    s.bus.advance(WORD_AFTER_US + 200 * MS)
    assert s.result(last) == "deadlock"


def test_who_waits_for_its_own_cached_lock_in_a_private_name_is_refused_when_that_is_in_use() -> None:
    bus = Bus(2)
    _, h = held(bus, owner=7)
    asked, _ = bus.lock(1, owner=7)
    bus.run()
    assert bus.result(asked) is None
    word(bus, "in_use", h)
    assert bus.result(asked) == "deadlock"


# -- fences --------------------------------------------------------------------------------------------------


def block(bus: Bus, rid: int) -> range:
    """The numbers that a grant brought."""
    answer: Any = bus.result(rid)
    return range(answer["fence"], answer["fence"] + answer.get("fences", 1))


@pytest.mark.parametrize("form", FORMS)
def test_the_next_grant_has_a_number_above_the_whole_block(form: str) -> None:
    bus = bus_with(form)
    last = 0
    for turn in range(6):
        who = other(form) if turn % 2 else {"node": 1, "session": 1}
        rid, h = held(bus, **who)
        numbers = block(bus, rid)
        assert len(numbers) == 16
        assert numbers[0] > last
        last = numbers[-1]
        bus.call(who["node"], "unlock", who["session"], h=h)
        bus.run()
    plain, _ = bus.lock(3)
    bus.run()
    assert block(bus, plain)[0] > last
    assert len(block(bus, plain)) == 1


def test_the_block_of_a_waiter_is_taken_at_its_grant() -> None:
    bus = bus_with("shared")
    _, h = held(bus)
    first, waiting = bus.lock(2, **CACHED)
    second, _ = bus.lock(3)
    bus.run()
    word(bus, "unlock", h)
    bus.call(2, "unlock", h=waiting)
    bus.run()
    assert block(bus, second)[0] == block(bus, first)[-1] + 1


def test_a_joiner_and_a_new_view_go_on_above_the_block() -> None:
    bus = bus_with("shared")
    rid, h = held(bus, fences=1024)
    bus.kill(3)
    bus.view([1, 2])
    bus.boot(3)
    bus.view([1, 2, 3])
    bus.advance(3 * LEASE)
    after, _ = held(bus, 2, PR, name=b"S", fences=64)
    third, _ = bus.lock(3, b"S", PR, **CACHED)
    bus.run()
    assert block(bus, third)[0] > block(bus, after)[-1]
    word(bus, "unlock", h)
    last, _ = bus.lock(3)
    bus.run()
    assert block(bus, last)[0] > block(bus, rid)[-1]
    assert len({node.table.numbers for node in bus.alive()}) == 1


def test_the_block_of_a_dead_owner_is_below_what_follows() -> None:
    bus = Bus(3)
    rid, _ = held(bus, 1, fences=1024)
    asked, _ = bus.lock(2)
    bus.kill(1)
    bus.view([2, 3])
    bus.advance(2 * LEASE)
    assert block(bus, asked)[0] > block(bus, rid)[-1]


def test_an_owner_keeps_numbers_for_grants_that_take_one() -> None:
    fences = Fences()
    fences.add(1, FENCE_BLOCK)
    taken = 0
    while (first := fences.take()) and (more := fences.more(1023)):
        assert first == taken + 1
        taken = first + more
    assert taken == FENCE_BLOCK // 2
    assert fences.low
    assert fences.left == FENCE_BLOCK - taken - 1
    fences.add(10_001, FENCE_BLOCK)
    assert fences.take() == taken + 2
    assert fences.more(1023) == 1023


def test_numbers_of_one_grant_follow_each_other() -> None:
    fences = Fences()
    fences.add(1, 1)
    fences.add(100, FENCE_BLOCK)
    assert fences.take() == 1
    assert fences.more(15) == 0, "those of another block are no continuation"
    assert fences.take() == 100
    assert fences.more(15) == 15
    assert fences.take() == 116


# -- arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": NL},
        {"blocking": False},
        {"persistent": True},
        {"headque": True},
        {"fences": 3},
        {"fences": 2048},
        {"cache": False},
    ],
)
def test_only_plain_locks_are_cached(wrong: dict[str, Any]) -> None:
    bus = Bus(1)
    rid, _ = bus.lock(1, **{**CACHED, **wrong})
    assert bus.result(rid) == "invalid"


def test_a_conversion_is_not_cached() -> None:
    bus = Bus(1)
    _, h = bus.lock(1, blocking=True)
    bus.run()
    assert bus.result(bus.call(1, "convert", h=h, mode=PR, blocking=True, cache=True)) == "invalid"


def test_people_see_that_a_lock_is_cached_until_it_is_said_to_be_in_use() -> None:
    bus = bus_with("shared")
    _, h = held(bus)

    def row() -> dict[str, Any]:
        answer: Any = bus.result(bus.call(2, "show", name=b"R"))
        return next(each for each in answer["holders"] if each["mode"] == "EX")

    assert row()["cached"]
    bus.lock(2)
    bus.run()
    word(bus, "in_use", h)
    assert not row()["cached"]
