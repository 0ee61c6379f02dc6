"""The rules of process groups, on hand-made streams: good ones pass, and each rule catches a bad one."""

from __future__ import annotations

from typing import Any

import pytest

from vsync.testing import Options, run
from vsync.testing.groups_rules import GroupRules
from vsync.testing.violation import Violation
from vsync.types import NO_RING, Member, RingId, View

A, B = Member(1, 1), Member(2, 1)
R1, R2 = RingId(10, 1), RingId(20, 1)
SA, SB = 11, 22  # a session of each


def ring(rules: GroupRules, *members: Member, ring: RingId = R1, previous: RingId = NO_RING) -> None:
    for me in members:
        for transitional in (True, False):
            rules.viewed(me, View(ring, members, (), (), True, transitional, "test", {}, previous))


def row(who: tuple[int, int], reason: str = "") -> dict[str, Any]:
    return {"node": who[0], "session": who[1], "reason": reason}


def change(
    members: list[tuple[int, int]], joined: list[tuple[int, int, str]] = [], left: list[tuple[int, int, str]] = []  # noqa: B006
) -> dict[str, Any]:
    return {
        "group": "g",
        "members": [row(m) for m in members],
        "joined": [row((n, s), r) for n, s, r in joined],
        "left": [row((n, s), r) for n, s, r in left],
    }


def message(sender: tuple[int, int], data: bytes = b"x") -> dict[str, Any]:
    return {"group": "g", "sender": row(sender), "data": data}


def both() -> GroupRules:
    """A and B in one ring, a session of each in the group: A joined at 1, B at 2."""
    rules = GroupRules()
    for me in (A, B):
        rules.started(me)
    ring(rules, A, B)
    rules.placed(A, 1)
    rules.on_view(A, SA, change([(1, SA)], [(1, SA, "join")]))
    for me, session in ((A, SA), (B, SB)):
        rules.placed(me, 2)
        rules.on_view(me, session, change([(1, SA), (2, SB)], [(2, SB, "join")]))
    return rules


def breaks(rule: str, rules: GroupRules, act: Any) -> None:
    with pytest.raises(Violation) as caught:
        act(rules)
    assert caught.value.rule == rule, str(caught.value)


def test_a_good_stream() -> None:
    rules = both()
    for me, session in ((A, SA), (B, SB)):
        rules.placed(me, 3)
        rules.on_message(me, session, message((1, SA)))
    rules.asked_to_leave.add((2, SB, "g"))
    for me, session in ((A, SA), (B, SB)):
        rules.placed(me, 4)
        rules.on_view(me, session, change([(1, SA)], left=[(2, SB, "leave")]))
    rules.placed(A, 5)
    rules.on_message(A, SA, message((1, SA)))
    ring(rules, A, ring=R2, previous=R1)
    rules.finish()
    rules.check_lists({1: {"g": [(1, SA)]}}, {"g": {(1, SA)}})


def test_g1_not_the_same_change() -> None:
    def act(rules: GroupRules) -> None:
        rules.closed(Member(2, 1), 99)
        rules.placed(A, 3)
        rules.on_view(A, SA, change([(1, SA), (2, SB), (2, 98)], [(2, 98, "join")]))
        rules.placed(B, 3)
        rules.on_view(B, SB, change([(1, SA), (2, SB), (2, 97)], [(2, 97, "join")]))

    breaks("CPG-G1", both(), act)


def test_g1_lists_that_do_not_fit() -> None:
    rules = both()
    rules.placed(A, 3)
    breaks("CPG-G1", rules, lambda r: r.on_view(A, SA, change([(1, SA)], [(2, 98, "join")])))


def test_g2_a_message_missed() -> None:
    rules = both()
    rules.placed(A, 3)
    rules.on_message(A, SA, message((1, SA)))
    rules.placed(B, 4)
    breaks("CPG-G2", rules, lambda r: r.finish())


def test_g2_not_missed_by_one_that_died_before() -> None:
    rules = both()
    rules.placed(A, 3)
    rules.on_message(A, SA, message((1, SA)))
    rules.stopped(B)
    rules.finish()


def test_g2_a_message_twice() -> None:
    rules = both()
    rules.placed(A, 3)
    rules.on_message(A, SA, message((1, SA)))
    breaks("CPG-G2", rules, lambda r: r.on_message(A, SA, message((1, SA))))


def test_g2_to_one_that_is_no_member() -> None:
    rules = both()
    breaks("CPG-G2", rules, lambda r: r.on_message(A, 99, message((1, SA))))


def test_g2_another_message_at_the_place() -> None:
    rules = both()
    for me in (A, B):
        rules.placed(me, 3)
    rules.on_message(A, SA, message((1, SA)))
    breaks("CPG-G2", rules, lambda r: r.on_message(B, SB, message((1, SA), b"y")))


def test_g3_a_leave_that_nobody_asked_for() -> None:
    rules = both()
    rules.placed(A, 3)
    breaks("CPG-G3", rules, lambda r: r.on_view(A, SA, change([(1, SA)], left=[(2, SB, "leave")])))


def test_g3_a_node_down_amid_messages() -> None:
    rules = both()
    rules.placed(A, 3)
    breaks("CPG-G3", rules, lambda r: r.on_view(A, SA, change([(1, SA)], left=[(2, SB, "nodedown")])))


def test_g3_leaving_twice() -> None:
    rules = both()
    rules.closed(B, SB)
    rules.placed(A, 3)
    rules.on_view(A, SA, change([(1, SA)], left=[(2, SB, "procdown")]))
    rules.placed(A, 4)
    breaks("CPG-G3", rules, lambda r: r.on_view(A, SA, change([(1, SA)], left=[(2, SB, "procdown")])))


def test_g3_a_ghost() -> None:
    breaks("CPG-G3", both(), lambda r: r.check_lists({1: {"g": [(1, SA), (3, 5)]}}, {"g": {(1, SA)}}))


def test_g4_a_stranger() -> None:
    rules = both()
    rules.placed(A, 3)
    breaks("CPG-G4", rules, lambda r: r.on_message(A, SA, message((3, 5))))


def test_groups_in_a_run() -> None:
    """Joins, leaves, ends of programs and messages on five nodes, through crashes and partitions."""
    options = Options(seed=3, chaos=4_000_000, crash=1, partition=1, fault_interval=400_000, group_interval=15_000)
    result = run(options)
    assert result.violation is None
    assert any("group message" in event.text() for event in result.trace.events)
