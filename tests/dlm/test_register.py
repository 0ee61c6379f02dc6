"""The judge of fenced registers, and the search for an order that it rests on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from dlm.testing.calls import Result, Verb
from dlm.testing.wgl import NEVER, Call, Undecided, linearize
from tests.dlm.story import Story

OPEN, READ, WRITE = Verb.OPEN, Verb.READ, Verb.WRITE
NO, UNKNOWN = Result.NO, Result.UNKNOWN


# -- good ones ---------------------------------------------------------------------------------------------------


def one_after_the_other(s: Story) -> None:
    for client, start, fence in (("a", 10, 1), ("b", 110, 2)):
        handle = s.lock(client, start, start + 1, fence)
        s.use(client, handle, OPEN, start + 2, start + 3, fence, value=fence - 1)
        s.use(client, handle, WRITE, start + 4, start + 5, fence, value=fence)
        s.use(client, handle, READ, start + 6, start + 7, fence, value=fence)
        s.release(client, handle, start + 10)


def who_was_too_slow_is_refused(s: Story) -> None:
    slow = s.lock("a", 5, 10, 1, deadline=20)
    s.use("a", slow, OPEN, 11, 12, 1)
    s.held("b", 30, 60, 2)
    s.use("b", 1, OPEN, 31, 32, 2)
    s.use("a", slow, WRITE, 40, 41, 1, value=7, result=NO)
    s.use("b", 1, WRITE, 42, 43, 2, value=8)
    s.lost("a", slow, 50)


def a_slow_write_may_come_before_anybody_has_opened_it(s: Story) -> None:
    slow = s.lock("a", 5, 10, 1, deadline=20)
    s.held("b", 30, 60, 2)
    s.use("a", slow, WRITE, 35, 36, 1, value=7)
    s.use("b", 1, OPEN, 40, 41, 2, value=7)
    s.lost("a", slow, 50)


def a_write_of_a_killed_client_may_have_happened(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1)
    s.use("a", handle, WRITE, 11, None, 1, value=7)
    s.died("a", 15)
    s.held("b", 2000, 2010, 2)
    s.use("b", 1, OPEN, 2001, 2002, 2, value=7)


def or_not(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1)
    s.use("a", handle, WRITE, 11, None, 1, value=7)
    s.died("a", 15)
    s.held("b", 2000, 2010, 2)
    s.use("b", 1, OPEN, 2001, 2002, 2)


def readers_do_not_count(s: Story) -> None:
    """A reader with a newer fence keeps nobody from writing: there are writers beside CR."""
    writer = s.lock("a", 5, 10, 1, "PW")
    s.held("b", 20, 60, 2, "CR")
    s.use("b", 1, READ, 21, 22, 2)
    s.use("a", writer, WRITE, 23, 24, 1, value=7)
    s.release("a", writer, 30)


GOOD = [
    one_after_the_other, who_was_too_slow_is_refused, a_slow_write_may_come_before_anybody_has_opened_it,
    a_write_of_a_killed_client_may_have_happened, or_not, readers_do_not_count,
]  # fmt: skip


@pytest.mark.parametrize("story", GOOD, ids=lambda story: story.__name__)
def test_good(story: Callable[[Story], None]) -> None:
    told = Story()
    story(told)
    assert told.verdict().good, told.verdict().report()


# -- bad ones ----------------------------------------------------------------------------------------------------


def an_old_fence_is_taken(s: Story) -> None:
    slow = s.lock("a", 5, 10, 1, deadline=20)
    s.held("b", 30, 60, 2)
    s.use("b", 1, WRITE, 31, 32, 2, value=8)
    s.use("a", slow, WRITE, 40, 41, 1, value=7)
    s.lost("a", slow, 50)


def an_old_fence_is_taken_although_the_newer_one_only_opened(s: Story) -> None:
    slow = s.lock("a", 5, 10, 1, deadline=20)
    s.held("b", 30, 60, 2)
    s.use("b", 1, OPEN, 31, 32, 2)
    s.use("a", slow, OPEN, 40, 41, 1)
    s.lost("a", slow, 50)


def a_value_that_nobody_wrote(s: Story) -> None:
    s.held("a", 10, 30, 1)
    s.use("a", 1, READ, 11, 12, 1, value=3)


def a_read_of_what_was_overwritten(s: Story) -> None:
    s.held("a", 10, 30, 1)
    for t, value in ((11, 3), (13, 4)):
        s.use("a", 1, WRITE, t, t + 1, 1, value=value)
    s.use("a", 1, READ, 20, 21, 1, value=3)


def a_lost_write(s: Story) -> None:
    s.held("a", 10, 30, 1)
    s.use("a", 1, WRITE, 11, 12, 1, value=3)
    s.held("b", 40, 60, 2)
    s.use("b", 1, OPEN, 41, 42, 2)


def a_write_after_the_death_of_its_client(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1)
    s.use("a", handle, WRITE, 11, None, 1, value=7)
    s.died("a", 15)
    s.held("b", 2000, 2030, 2)
    s.use("b", 1, READ, 2001, 2002, 2)
    s.use("b", 1, READ, 2003, 2004, 2, value=7)


def a_valid_holder_is_refused(s: Story) -> None:
    s.held("a", 10, 30, 1)
    s.use("a", 1, WRITE, 11, 12, 1, value=3, result=NO)


def a_refusal_without_a_reason(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, deadline=20)
    s.use("a", handle, WRITE, 30, 31, 1, value=3, result=NO)
    s.lost("a", handle, 32)


BAD = {
    an_old_fence_is_taken: "register stale",
    an_old_fence_is_taken_although_the_newer_one_only_opened: "register stale",
    a_value_that_nobody_wrote: "register",
    a_read_of_what_was_overwritten: "register",
    a_lost_write: "register",
    a_write_after_the_death_of_its_client: "register",
    a_valid_holder_is_refused: "refused register",
    a_refusal_without_a_reason: "register",
}


@pytest.mark.parametrize("story", BAD, ids=lambda story: story.__name__)
def test_bad(story: Callable[[Story], None]) -> None:
    told = Story()
    story(told)
    assert " ".join(told.rules()) == BAD[story], told.verdict().report()


def test_the_end_counts() -> None:
    told = Story()
    one_after_the_other(told)
    assert told.rules(final={"n": 2}) == []
    assert told.rules(final={"n": 1}) == ["register"]


def test_a_problem_says_what_has_no_place_and_what_was_before() -> None:
    told = Story()
    a_lost_write(told)
    text = told.verdict().report()
    assert "no order explains b op 3, open of n" in text
    assert "(value 3, fence 1)" in text


# -- the search --------------------------------------------------------------------------------------------------


def queue(state: tuple[int, ...], what: tuple[str, int]) -> tuple[int, ...] | None:
    """A first-in-first-out queue of numbers; 0 is what an empty one gives."""
    verb, number = what
    if verb == "put":
        return (*state, number)
    if not state:
        return state if number == 0 else None
    return state[1:] if state[0] == number else None


def test_a_queue_that_is_one() -> None:
    calls = [Call(0, 10, ("put", 1)), Call(0, 10, ("put", 2)), Call(5, 20, ("get", 2)), Call(21, 22, ("get", 1))]
    found = linearize(calls, (), queue)
    assert found.good
    assert found.order == (1, 0, 2, 3)


def test_a_queue_that_is_none() -> None:
    calls = [Call(0, 1, ("put", 1)), Call(2, 3, ("put", 2)), Call(4, 5, ("get", 2))]
    found = linearize(calls, (), queue)
    assert not found.good
    assert (found.order, found.stuck) == ((0, 1), 2)


def test_optional_calls_may_have_happened_or_not() -> None:
    maybe = Call(0, NEVER, ("put", 1), optional=True)
    assert linearize([maybe, Call(4, 5, ("get", 1))], (), queue).order == (0, 1)
    assert linearize([maybe, Call(4, 5, ("get", 0))], (), queue).good
    ended = Call(0, 3, ("put", 1), optional=True)
    assert not linearize([ended, Call(4, 5, ("get", 0)), Call(6, 7, ("get", 1))], (), queue).good


def test_at_one_instant_the_order_is_open() -> None:
    assert linearize([Call(5, 5, ("get", 1)), Call(5, 5, ("put", 1))], (), queue).good


def test_the_search_gives_up_where_it_was_told_to() -> None:
    calls = [Call(0, 100, ("put", number)) for number in range(9)] + [Call(101, 102, ("get", 99))]
    with pytest.raises(Undecided, match="more than 50 situations of 10 calls"):
        linearize(calls, (), queue, limit=50)


def brute(calls: list[Call[tuple[str, int]]]) -> bool:
    """The definition: all subsets that leave out optional calls only, in all orders."""
    optional = [index for index, call in enumerate(calls) if call.optional]
    for out in itertools.product((False, True), repeat=len(optional)):
        dropped = {index for index, drop in zip(optional, out, strict=True) if drop}
        for order in itertools.permutations(set(range(len(calls))) - dropped):
            now, state = 0, ()
            for index in order:
                now = max(now, calls[index].called)
                after = queue(state, calls[index].what) if now <= calls[index].returned else None
                if after is None:
                    break
                state = after
            else:
                return True
    return False


@pytest.mark.parametrize("seed", range(40))
def test_the_search_is_the_definition(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(20):
        calls: list[Call[tuple[str, int]]] = []
        for _ in range(chance.randint(1, 5)):
            called = chance.randint(0, 12)
            verb = chance.choice(("put", "get"))
            number = chance.randint(0 if verb == "get" else 1, 2)
            returned = called + chance.randint(0, 6)
            calls.append(Call(called, returned, (verb, number), chance.random() < 0.2))
        assert linearize(calls, (), queue).good == brute(calls), calls
