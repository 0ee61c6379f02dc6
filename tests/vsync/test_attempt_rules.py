"""CHAIN-K7 on hand-made traces: who goes through a view that broke, and who must."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from vsync.testing.attempt_rules import AttemptRules
from vsync.testing.trace import Viewed
from vsync.testing.violation import Violation
from vsync.types import Member, RingId, View

A, B, C = (Member(n, 1) for n in (1, 2, 3))
TRIED, MINE, THEIRS = (RingId(seq, 1) for seq in (20, 21, 30))


def view(ring: RingId, *members: Member, primary: bool = True) -> View:
    return View(ring, members, (), (), primary, False, "test", {})


def judge(*events: tuple[int, Member, View]) -> None:
    rules = AttemptRules()
    for time, who, installed in events:
        rules.on_viewed(Viewed(who, installed, time))


def broken(*events: tuple[int, Member, View]) -> str:
    with pytest.raises(Violation) as caught:
        judge(*events)
    assert caught.value.rule == "CHAIN-K7"
    return str(caught.value)


ATTEMPT = view(TRIED, A, B)
LATER = view(THEIRS, A, B, C)


def test_all_of_its_members_have_it() -> None:
    judge((1, A, ATTEMPT), (5, B, ATTEMPT), (5, B, LATER), (6, A, LATER), (6, C, LATER))


def test_none_has_it() -> None:
    judge((5, A, LATER), (5, B, LATER))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_one_has_gone_through_and_one_has_not(order: Iterable[int]) -> None:
    """B missed it, so it is void where B is."""
    events = [(5, A, ATTEMPT), (5, A, LATER), (5, B, LATER)]
    assert "node 2, a member of that, does not" in broken(*(events[i] for i in order))


def test_through_two_attempts_at_once() -> None:
    second = view(MINE, A, B)
    broken((5, A, ATTEMPT), (5, A, second), (5, A, LATER), (5, B, second), (5, B, LATER))


def test_one_acted_in_it() -> None:
    """A has been in it; B goes on without."""
    found = broken((1, A, ATTEMPT), (4, A, view(MINE, A, primary=False)), (5, B, view(THEIRS, B, C)))
    assert found == "CHAIN-K7: node 2 is in 1.1e and never was in 1.14, in which others were"


def test_one_had_acted_in_it() -> None:
    """As it turns out when A has stayed in it."""
    broken((1, A, ATTEMPT), (1, B, view(THEIRS, B, C)), (2, A, LATER))


def test_alone_it_may_be_gone_through_before_others_tell() -> None:
    """A is alone when it resolves the attempt; B and C know better. It has been in force nowhere."""
    alone = view(MINE, A, primary=False)
    judge((4, A, ATTEMPT), (4, A, alone), (5, B, view(RingId(25, 2), B, C)), (6, B, LATER), (6, A, LATER))


def test_another_life_of_a_member_owes_nothing() -> None:
    again = Member(2, 2)
    judge((1, A, ATTEMPT), (4, again, view(THEIRS, again, C)), (5, A, view(RingId(40, 1), A, again)))


def test_nobody_can_act_where_it_is_not_primary() -> None:
    tried = view(TRIED, A, B, primary=False)
    judge((1, A, tried), (5, A, LATER), (5, B, LATER))
