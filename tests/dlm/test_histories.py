"""The checker of lock histories: good ones pass, and each way to be bad is caught, with a readable sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from dlm.testing.histories import Event, Verdict, What, judge, parse

W = What


def round_of(client: str, number: int, *steps: tuple[Any, ...], name: str = "n", mode: str = "EX") -> list[Event]:
    """Events of one round: ``(time, what, fields)``; name, mode and node belong to the request."""
    events = []
    for time, what, *rest in steps:
        fields: dict[str, Any] = dict(rest[0]) if rest else {}
        if what is W.ASK:
            fields = {"name": name, "mode": mode, "node": "a", **fields}
        events.append(Event(time, client, what, number, **fields))
    return events


def held(
    client: str,
    number: int,
    start: int,
    end: int,
    fence: int,
    *,
    name: str = "n",
    mode: str = "EX",
    asked: int | None = None,
    wrote: int | None = None,
) -> list[Event]:
    """A round without surprises, with an increment to ``wrote`` if that is given."""
    work: list[tuple[Any, ...]] = []
    if wrote is not None:
        work = [
            (start + 1, W.READ, {"value": wrote - 1}),
            (start + 2, W.TRY, {"value": wrote}),
            (start + 3, W.WROTE, {"value": wrote}),
        ]
    return round_of(
        client,
        number,
        (start - 1 if asked is None else asked, W.ASK),
        (start, W.GRANTED, {"fence": fence, "deadline": start + 1000}),
        *work,
        (end, W.RELEASE),
        name=name,
        mode=mode,
    )


def node(time: int, what: What, name: str = "a") -> Event:
    """Something done to a node."""
    return Event(time, "nemesis", what, node=name)


def lost(client: str, number: int, start: int, noticed: int, fence: int, *rest: tuple[Any, ...]) -> list[Event]:
    """A hold that ends with a loss; the lease that was seen runs until ``start + 1000``."""
    return round_of(
        client,
        number,
        (start - 1, W.ASK),
        (start, W.GRANTED, {"fence": fence, "deadline": start + 1000}),
        (noticed, W.LOST, {"reason": "daemon_gone"}),
        *rest,
    )


def broken(verdict: Verdict) -> list[str]:
    """The rules that are broken, each once."""
    return sorted({problem.rule for problem in verdict.problems})


def text(verdict: Verdict) -> str:
    """The sentences."""
    return verdict.report()


# -- good ones


def test_rounds_one_after_the_other_are_good() -> None:
    events = held("c1", 1, 10, 20, 1, wrote=1) + held("c2", 1, 20, 30, 2, wrote=2)
    verdict = judge(reversed_by_client(events), {"n": 2})
    assert verdict.good, text(verdict)
    assert (verdict.acknowledged, verdict.unknown, len(verdict.holds)) == (2, 0, 2)


def reversed_by_client(events: Iterable[Event]) -> list[Event]:
    """The files may be read in any order; within a client the order stays."""
    return sorted(events, key=lambda event: event.client, reverse=True)


def test_readers_share() -> None:
    """Answers to sharers may arrive in another order than their fences."""
    events = held("c1", 1, 10, 50, 2, mode="PR", asked=5) + held("c2", 1, 20, 60, 1, mode="PR", asked=4)
    assert judge(events, {}).good


def test_names_have_nothing_to_do_with_each_other() -> None:
    assert judge(held("c1", 1, 10, 50, 2) + held("c2", 1, 20, 60, 1, name="m"), {}).good


def test_a_request_without_grant_is_an_outcome() -> None:
    events = round_of("c1", 1, (1, W.ASK), (5, W.FAILED, {"reason": "timeout"}))
    verdict = judge(events, {})
    assert verdict.good
    assert verdict.failed == {"timeout": 1}


def test_a_loss_after_the_write_is_a_counted_increment() -> None:
    """The resource took it: it counts, whatever became of the lock."""
    events = round_of(
        "c1", 1,
        (1, W.ASK), (2, W.GRANTED, {"fence": 1, "deadline": 50}),
        (3, W.READ), (4, W.TRY, {"value": 1}), (5, W.WROTE, {"value": 1}), (9, W.LOST, {"reason": "evicted"}),
    )  # fmt: skip
    verdict = judge(events, {"n": 1})
    assert verdict.good, text(verdict)
    assert (verdict.acknowledged, verdict.lost) == (1, {"evicted": 1})


def test_a_write_after_the_loss_is_the_business_of_the_fence() -> None:
    """The resource may take it as long as nobody newer has come, and refuse it afterwards."""
    taken = lost("c1", 1, 10, 20, 1, (21, W.TRY, {"value": 1}), (22, W.WROTE, {"value": 1}))
    refused = lost("c1", 2, 30, 40, 2, (61, W.TRY, {"value": 2}), (62, W.REFUSED, {"fence": 3}))
    verdict = judge(taken + refused + held("c2", 1, 50, 60, 3, wrote=2), {"n": 2})
    assert verdict.good, text(verdict)
    assert (verdict.acknowledged, verdict.refused) == (2, 1)


def test_an_increment_of_a_killed_client_may_have_happened_or_not() -> None:
    events = round_of(
        "c1", 1, (1, W.ASK), (2, W.GRANTED, {"fence": 1, "deadline": 50}), (4, W.TRY, {"value": 1}), (9, W.DIED)
    )
    for final in (0, 1):
        verdict = judge(events, {"n": final})
        assert verdict.good, text(verdict)
        assert verdict.unknown == 1
    assert broken(judge(events, {"n": 2})) == ["count"]


def test_who_writes_after_an_unknown_one_takes_its_value_or_the_next() -> None:
    died = round_of(
        "c1", 1, (1, W.ASK), (2, W.GRANTED, {"fence": 1, "deadline": 50}), (4, W.TRY, {"value": 1}), (9, W.DIED)
    )
    assert judge(died + held("c2", 1, 60, 70, 2, wrote=1), {"n": 1}).good
    assert judge(died + held("c2", 1, 60, 70, 2, wrote=2), {"n": 2}).good
    assert broken(judge(died + held("c2", 1, 60, 70, 2, wrote=3), {"n": 3})) == ["count"]


def test_a_lease_that_runs_out_and_is_renewed_is_one_hold() -> None:
    story = round_of(
        "c1", 1,
        (1, W.ASK), (2, W.GRANTED, {"fence": 1, "deadline": 10}), (20, W.LOST, {"reason": "lease"}),
        (30, W.VALID, {"deadline": 90}), (40, W.RELEASE),
    )  # fmt: skip
    verdict = judge(story, {})
    assert verdict.good, text(verdict)
    assert [(hold.start, hold.end) for hold in verdict.holds] == [(2, 40)]
    assert broken(judge(story + held("c2", 1, 15, 18, 2), {})) == ["overlap"]


def test_a_conversion_downwards_lets_readers_in() -> None:
    story = round_of(
        "c1", 1,
        (1, W.ASK), (2, W.GRANTED, {"fence": 1, "deadline": 90}), (20, W.CONVERT, {"mode": "PR"}), (40, W.RELEASE),
    )  # fmt: skip
    assert judge(story + held("c2", 1, 25, 50, 2, mode="PR"), {}).good
    assert broken(judge(story + held("c2", 1, 15, 50, 2, mode="PR"), {})) == ["overlap"]


def test_a_leaving_node_may_end_leases_early() -> None:
    """It says goodbye after ending its handles; the client may notice a moment later."""
    events = lost("c1", 1, 10, 100, 1) + held("c2", 1, 60, 70, 2)
    assert broken(judge(events, {})) == ["overlap"]
    assert judge([*events, node(50, W.LEAVE), node(200, W.START)], {}).good
    assert broken(judge([*events, node(5, W.LEAVE), node(8, W.START)], {})) == ["overlap"]
    assert broken(judge([*events, node(50, W.LEAVE, "b")], {})) == ["overlap"]


def test_a_grant_that_is_lost_when_it_is_learnt_of_is_no_hold() -> None:
    """Its answer came late; its lease, as far as it was seen, had run out. Only its fence is still its own."""
    late = round_of(
        "c1", 1, (1, W.ASK), (25, W.GRANTED, {"fence": 1, "deadline": 9}), (26, W.LOST, {"reason": "evicted"})
    )
    assert judge(late + held("c2", 1, 20, 30, 2), {}).good
    assert broken(judge(late + held("c2", 1, 20, 30, 1), {})) == ["fence"]


# -- bad ones


def test_two_holders() -> None:
    verdict = judge(held("c1", 1, 10, 30, 1) + held("c2", 7, 29, 40, 2), {})
    assert broken(verdict) == ["overlap"]
    assert text(verdict) == (
        "overlap: n is held twice for 0.001 ms: "
        "c1 round 1 at node a: EX fence 1 from 0.000010 to 0.000030; "
        "c2 round 7 at node a: EX fence 2 from 0.000029 to 0.000040"
    )


def test_two_holders_although_others_came_between() -> None:
    """A long hold against a late one; and a reader beside a writer."""
    events = held("c1", 1, 10, 90, 1, mode="PR") + held("c2", 1, 20, 30, 2, mode="PR") + held("c3", 1, 80, 85, 3)
    assert broken(judge(events, {})) == ["overlap"]


def test_a_lost_lock_is_held_until_its_lease_has_run_out() -> None:
    """Its holder relies on it until it notices; nobody else may have it before."""
    assert judge(lost("c1", 1, 10, 100, 1) + held("c2", 1, 100, 110, 2), {}).good
    assert broken(judge(lost("c1", 1, 10, 100, 1) + held("c2", 1, 99, 110, 2), {})) == ["overlap"]
    assert judge(lost("c1", 1, 10, 5000, 1) + held("c2", 1, 1010, 1020, 2), {}).good
    assert broken(judge(lost("c1", 1, 10, 5000, 1) + held("c2", 1, 1009, 1020, 2), {})) == ["overlap"]


def test_a_killed_client_held_while_it_said_so() -> None:
    died = round_of(
        "c1", 1, (1, W.ASK), (2, W.GRANTED, {"fence": 1, "deadline": 50}), (20, W.VALID), (90, W.DIED)
    )
    assert judge(died + held("c2", 1, 20, 110, 2), {}).good
    assert broken(judge(died + held("c2", 1, 19, 110, 2), {})) == ["overlap"]


def test_a_fence_that_goes_backwards() -> None:
    verdict = judge(held("c1", 1, 10, 20, 7 << 32 | 5) + held("c2", 1, 20, 30, 7 << 32 | 4), {})
    assert broken(verdict) == ["fence"]
    assert "n: the fence goes backwards: c1 round 1 at node a: EX fence 7.5" in text(verdict)


def test_a_fence_that_goes_backwards_behind_a_smaller_one() -> None:
    """Not only neighbours are compared."""
    events = held("c1", 1, 10, 20, 9) + held("c2", 1, 20, 30, 10, mode="PR") + held("c3", 1, 20, 30, 8, mode="PR")
    assert broken(judge(events, {})) == ["fence"]


def test_a_reader_that_asked_later_with_a_smaller_fence() -> None:
    events = held("c1", 1, 10, 20, 5, mode="PR") + held("c2", 1, 30, 40, 4, mode="PR", asked=25)
    verdict = judge(events, {})
    assert broken(verdict) == ["fence"]
    assert "asked for later" in text(verdict)


def test_one_fence_twice() -> None:
    verdict = judge(held("c1", 1, 10, 20, 5, mode="PR") + held("c2", 1, 12, 30, 5, mode="PR"), {})
    assert broken(verdict) == ["fence"]
    assert "one fence for two grants" in text(verdict)


def test_a_lost_update() -> None:
    verdict = judge(held("c1", 1, 10, 20, 1, wrote=1) + held("c2", 1, 20, 30, 2, wrote=1), {"n": 1})
    assert broken(verdict) == ["count"]
    assert "a lost update: c1 round 1 and c2 round 1 both wrote 1" in text(verdict)


@pytest.mark.parametrize("final", [0, 2])
def test_a_wrong_count(final: int) -> None:
    verdict = judge(held("c1", 1, 10, 20, 1, wrote=1), {"n": final})
    assert broken(verdict) == ["count"]
    assert f"n: stands at {final}" in text(verdict)


def test_a_counter_that_vanished_and_one_that_nobody_wrote() -> None:
    assert broken(judge(held("c1", 1, 10, 20, 1, wrote=1), {})) == ["count"]
    assert broken(judge([], {"m": 1})) == ["count"]


def test_a_hold_after_the_loss() -> None:
    verdict = judge(lost("c1", 1, 10, 20, 1, (30, W.VALID)), {})
    assert broken(verdict) == ["after-loss"]
    assert "c1 round 1: valid of EX on n with fence 1 at 0.000030, although it was lost" in text(verdict)


def test_a_release_without_complaint_after_the_loss() -> None:
    assert broken(judge(lost("c1", 1, 10, 20, 1, (30, W.RELEASE)), {})) == ["after-loss"]


def test_a_double_outcome() -> None:
    """Granted and then timed out, or the other way round."""
    late = round_of(
        "c1", 1, (1, W.ASK), (5, W.FAILED, {"reason": "timeout"}), (6, W.GRANTED, {"fence": 1}), (7, W.RELEASE)
    )
    verdict = judge(late, {})
    assert "outcome" in broken(verdict)
    assert "the request has two outcomes, failed and granted" in text(verdict)
    twice = round_of(
        "c1", 1, (1, W.ASK), (5, W.GRANTED, {"fence": 1}), (6, W.FAILED, {"reason": "timeout"}), (7, W.RELEASE)
    )
    assert broken(judge(twice, {})) == ["outcome"]


def test_no_outcome() -> None:
    assert broken(judge(round_of("c1", 1, (1, W.ASK)), {})) == ["outcome"]
    assert judge(round_of("c1", 1, (1, W.ASK), (5, W.DIED)), {}).good


def test_no_end() -> None:
    verdict = judge(round_of("c1", 1, (1, W.ASK), (5, W.GRANTED, {"fence": 1})), {})
    assert broken(verdict) == ["outcome"]
    assert "c1 round 1: the hold of n has no end" in text(verdict)


def test_an_increment_without_an_answer() -> None:
    events = round_of(
        "c1", 1, (1, W.ASK), (2, W.GRANTED, {"fence": 1}), (3, W.TRY, {"value": 1}), (4, W.RELEASE)
    )
    assert broken(judge(events, {"n": 1})) == ["outcome"]


def test_a_valid_lock_that_the_resource_refuses() -> None:
    events = round_of(
        "c1", 1,
        (1, W.ASK), (2, W.GRANTED, {"fence": 4, "deadline": 90}), (3, W.REFUSED, {"fence": 5, "valid": True}),
        (9, W.RELEASE),
    )  # fmt: skip
    verdict = judge(events, {})
    assert broken(verdict) == ["refused"]
    assert "EX on n with fence 4 is valid, but the resource has seen fence 5" in text(verdict)


def test_a_value_that_changes_under_a_shared_lock() -> None:
    steps = [
        (1, W.ASK), (2, W.GRANTED, {"fence": 4, "deadline": 90}), (3, W.READ, {"value": 1}),
        (6, W.READ, {"value": 2}),
    ]  # fmt: skip
    verdict = judge(round_of("c1", 1, *steps, (9, W.VALID), (10, W.RELEASE), mode="PR"), {"n": 0})
    assert broken(verdict) == ["stable"]
    assert "others changed the value: 1, 2" in text(verdict)
    assert judge(round_of("c1", 1, *steps, (9, W.LOST, {"reason": "evicted"}), mode="PR"), {}).good


def test_events_out_of_order() -> None:
    assert broken(judge(round_of("c1", 1, (1, W.GRANTED, {"fence": 1, "deadline": 5})), {})) == ["order", "outcome"]
    assert "order" in broken(judge(held("c1", 1, 10, 20, 1) + held("c1", 1, 30, 40, 2), {}))
    again = [Event(25, "c1", W.VALID, 1)]
    assert broken(judge(held("c1", 1, 10, 20, 1) + again, {})) == ["order"]
    early = round_of("c1", 1, (1, W.ASK), (2, W.READ), (3, W.FAILED, {"reason": "timeout"}))
    assert broken(judge(early, {})) == ["order"]
    answer = (3, W.WROTE, {"value": 1})
    unasked = round_of("c1", 1, (1, W.ASK), (2, W.GRANTED, {"fence": 1}), answer, (4, W.RELEASE))
    assert "order" in broken(judge(unasked, {}))


# -- files


def test_a_history_survives_its_file() -> None:
    events = [*held("c1", 1, 10, 20, 1, wrote=1), *lost("c2", 1, 30, 40, 2), node(5, W.KILL)]
    assert list(parse(b"".join(event.line() for event in events))) == events


def test_a_torn_last_line_is_ignored_and_nothing_else() -> None:
    first, second = held("c1", 1, 10, 20, 1)[:2]
    assert list(parse(first.line() + second.line()[:-5])) == [first]
    with pytest.raises(ValueError):
        list(parse(first.line()[:-5] + b"\n" + second.line()))


def test_the_report_is_bounded() -> None:
    events = [event for number in range(1, 41) for event in round_of("c1", number, (number, W.ASK))]
    lines = judge(events, {}).report(limit=5).splitlines()
    assert len(lines) == 6
    assert lines[-1] == "... and 35 more"
