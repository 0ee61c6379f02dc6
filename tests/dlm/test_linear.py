"""The linearizability checker of locks: good histories pass, and each way to be bad is caught by its rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dlm.modes import COMPATIBLE, NAMES
from dlm.testing.calls import Note, Result, Verb, What, parse
from tests.dlm.story import LEASE, Story

GOOD: list[Callable[[Story], object]] = []
BAD: list[tuple[str, Callable[[Story], object]]] = []

NO, UNKNOWN = Result.NO, Result.UNKNOWN


def good(story: Callable[[Story], object]) -> Callable[[Story], object]:
    """A history in which nothing is wrong."""
    GOOD.append(story)
    return story


def bad(*rules: str) -> Callable[[Callable[[Story], object]], Callable[[Story], object]]:
    """A history that breaks just these rules."""

    def add(story: Callable[[Story], object]) -> Callable[[Story], object]:
        BAD.append((" ".join(sorted(rules)), story))
        return story

    return add


# -- good ones ---------------------------------------------------------------------------------------------------


@good
def nothing_happens(s: Story) -> None:
    pass


@good
def one_after_the_other(s: Story) -> None:
    s.held("a", 10, 20, 1)
    s.held("b", 20, 30, 2)
    s.held("a", 31, 40, 3)


@good
def readers_share_and_are_answered_in_any_order(s: Story) -> None:
    s.held("a", 10, 50, 2, "PR", asked=5)
    s.held("b", 20, 60, 1, "PR", asked=4)


@good
def names_have_nothing_to_do_with_each_other(s: Story) -> None:
    s.held("a", 10, 50, 2)
    s.held("b", 20, 60, 1, name="m")


@good
def compatible_modes_are_held_at_once(s: Story) -> None:
    """All pairs, each on a name of its own."""
    t = 10
    for one in range(6):
        for two in range(6):
            if COMPATIBLE[one][two]:
                s.held("a", t, t + 100, 1, NAMES[one], name=f"{one}{two}")
                s.held("b", t + 2, t + 50, 2, NAMES[two], name=f"{one}{two}")
                t += 200


@good
def a_release_that_is_answered_late_ends_the_hold_at_its_call(s: Story) -> None:
    handle = s.lock("a", 1, 10, 1)
    s.release("a", handle, 20, 90)
    s.held("b", 25, 40, 2)


@good
def an_answer_may_come_long_after_the_grant(s: Story) -> None:
    """b was granted first, and was told only when c had been told already."""
    s.held("b", 80, 90, 1, "PR", asked=5)
    s.held("c", 20, 60, 2, "PR", asked=6)


@good
def a_request_in_vain_leaves_nothing(s: Story) -> None:
    s.held("a", 10, 50, 1)
    s.ask("b", 20, 30)
    s.ask("c", 21, 22, reason="busy", patient=False)
    s.held("b", 60, 70, 2)


@good
def a_request_of_unknown_outcome_stands_in_nobodys_way(s: Story) -> None:
    s.ask("a", 5, 30, UNKNOWN)
    s.held("b", 10, 50, 1)
    s.held("c", 60, 70, 3)


@good
def a_client_that_is_killed_while_it_asks_needs_no_answer(s: Story) -> None:
    s.ask("a", 5, None)
    s.died("a", 30)
    s.held("b", 10, 50, 1)


@good
def a_client_that_is_killed_held_it_while_it_was_last_seen(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1)
    s.seen("a", handle, 50, 50 + LEASE)
    s.died("a", 60)
    s.held("b", 51, 70, 2)


@good
def a_lost_lock_is_anothers_after_its_lease(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, deadline=100)
    s.lost("a", handle, 500)  # noticed late: it stood still
    s.held("b", 100, 200, 2)
    s.release("a", handle, 510, result=NO)


@good
def a_loss_that_is_pushed_ends_it_before_the_lease(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1)
    s.lost("a", handle, 40, "daemon_gone")
    s.held("b", 40, 60, 2)


@good
def a_suspended_lock_goes_on_with_its_fence(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, deadline=100)
    s.lost("a", handle, 101, "lease")
    s.seen("a", handle, 200, 300)
    s.release("a", handle, 250)
    s.held("b", 251, 260, 2)


@good
def a_release_after_a_suspension_can_be_in_time_again(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, deadline=100)
    s.lost("a", handle, 101, "lease")
    s.release("a", handle, 150)
    s.held("b", 151, 160, 2)


@good
def a_leaving_node_ends_leases_early(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, node="x")
    s.seen("a", handle, 40, 40 + LEASE)
    s.note("nemesis", What.LEAVING, 50, name="x")
    s.held("b", 60, 70, 2)
    s.lost("a", handle, 90, "leaving")


@good
def what_a_conversion_takes_away_is_free_at_its_call(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1)
    s.convert("a", handle, "PR", 20, 50, 1)
    s.held("b", 25, 40, 2, "PR")
    s.convert("a", handle, "NL", 60, 61, 1)
    s.held("c", 62, 70, 3)
    s.convert("a", handle, "EX", 65, 80, 4)
    s.release("a", handle, 90)


@good
def an_upgrade_waits_for_the_other_reader(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, "PR")
    s.held("b", 12, 40, 2, "PR")
    s.convert("a", handle, "EX", 20, 41, 3)
    s.release("a", handle, 50)


@good
def a_conversion_between_readers_and_writers_excludes_what_either_excludes(s: Story) -> None:
    """Until its answer nothing but CR is relied upon: another reader may be told of its grant first."""
    handle = s.lock("a", 5, 10, 1, "CW")
    s.convert("a", handle, "PR", 20, 50, 2)
    s.held("b", 30, 45, 3, "PR", asked=21)
    s.release("a", handle, 60)


@good
def a_conversion_in_vain_keeps_the_mode(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, "PR")
    s.held("b", 12, 60, 2, "PR")
    s.convert("a", handle, "EX", 20, 40, result=NO)
    s.release("a", handle, 50)


@good
def a_conversion_of_unknown_outcome_leaves_what_both_modes_allow(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, "EX")
    s.convert("a", handle, "CR", 20, 30, result=UNKNOWN)
    s.held("b", 25, 40, 2, "PW")
    s.release("a", handle, 50)


@good
def an_unknown_upgrade_may_have_been_granted(s: Story) -> None:
    """Then there is a fence in between that nobody has seen, and a later conversion downwards has it."""
    handle = s.lock("a", 5, 10, 1, "CR")
    s.convert("a", handle, "PR", 20, 30, result=UNKNOWN)
    s.convert("a", handle, "NL", 40, 50, 2)
    s.release("a", handle, 60)


@good
def a_grant_that_was_lost_before_its_answer_was_read_is_nobodys(s: Story) -> None:
    """The client stood still; its node was cut off meanwhile."""
    handle = s.lock("a", 5, 400, 1, deadline=100)
    s.lost("a", handle, 401)
    s.held("b", 150, 500, 2)


@good
def a_wait_of_any_length_for_somebody_is_no_wait_for_nothing(s: Story) -> None:
    s.calm(1, 100_000)
    s.held("a", 10, 50_000, 1)
    s.held("b", 50_100, 60_000, 2, asked=20)


@good
def in_trouble_one_may_wait_for_nothing(s: Story) -> None:
    s.held("b", 50_100, 60_000, 2, asked=20)
    s.calm(49_000, 100_000)


# -- and each way to be bad --------------------------------------------------------------------------------------


@bad("exclusion")
def two_writers(s: Story) -> None:
    s.held("a", 10, 30, 1)
    s.held("b", 29, 40, 2, asked=5)


@bad("exclusion")
def a_writer_beside_a_reader(s: Story) -> None:
    s.held("a", 10, 30, 1, "PR")
    s.held("b", 20, 40, 2, "PW", asked=5)


@bad("exclusion")
def readers_beside_concurrent_writers(s: Story) -> None:
    s.held("a", 10, 30, 1, "CW")
    s.held("b", 20, 40, 2, "PR", asked=5)


@bad("exclusion")
def an_upgrade_past_another_reader(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, "PR")
    s.held("b", 12, 40, 2, "PR")
    s.convert("a", handle, "EX", 20, 30, 3)
    s.release("a", handle, 50)


@bad("exclusion")
def a_lease_that_is_still_running(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, deadline=100)
    s.held("b", 99, 200, 2)
    s.lost("a", handle, 500)


@bad("exclusion")
def a_suspended_lock_that_was_given_away_and_goes_on(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, deadline=100)
    s.lost("a", handle, 101, "lease")
    s.held("b", 120, 130, 2)
    s.seen("a", handle, 200, 300)
    s.release("a", handle, 250)


@bad("exclusion")
def a_failed_conversion_gave_the_old_mode_away(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, "PR")
    s.convert("a", handle, "EX", 20, 40, result=NO)
    s.held("b", 25, 30, 2, "CW")
    s.release("a", handle, 50)


@bad("exclusion")
def the_lock_of_a_client_before_its_death(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1)
    s.seen("a", handle, 50, 50 + LEASE)
    s.died("a", 60)
    s.held("b", 49, 70, 2)


@bad("exclusion", "revived")
def a_lost_lock_that_is_held_again(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, deadline=200)
    s.seen("a", handle, 150, 250)
    s.lost("a", handle, 300)
    s.held("b", 160, 400, 2)
    s.seen("a", handle, 350, 500)
    s.release("a", handle, 360, result=NO)


@bad("revived")
def a_lost_lock_that_is_released_as_if_it_were_held(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1)
    s.lost("a", handle, 20)
    s.release("a", handle, 30)


@bad("fence")
def one_fence_for_two_grants(s: Story) -> None:
    s.held("a", 10, 20, 7)
    s.held("b", 30, 40, 7)


@bad("fence")
def a_grant_without_a_fence(s: Story) -> None:
    s.held("a", 10, 20, 0)


@bad("order")
def a_fence_that_goes_backwards(s: Story) -> None:
    s.held("a", 10, 20, 7)
    s.held("b", 30, 40, 6)


@bad("order")
def a_fence_that_goes_backwards_among_readers(s: Story) -> None:
    """They may share; but b asked when a was granted already."""
    s.held("a", 10, 90, 7, "PR")
    s.held("b", 30, 40, 6, "PR")


@bad("fence")
def an_upgrade_without_a_new_fence(s: Story) -> None:
    handle = s.lock("a", 5, 10, 3, "PR")
    s.convert("a", handle, "EX", 20, 30, 3)
    s.release("a", handle, 40)


@bad("fence")
def a_downgrade_with_another_fence(s: Story) -> None:
    handle = s.lock("a", 5, 10, 3)
    s.convert("a", handle, "PR", 20, 30, 4)
    s.release("a", handle, 40)


@bad("order")
def an_upgrade_with_a_fence_from_before_another_reader(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1, "PR")
    s.held("b", 12, 19, 3, "PR")
    s.convert("a", handle, "EX", 20, 30, 2)
    s.release("a", handle, 40)


@bad("order")
def a_writer_between_a_reader_and_its_upgrade(s: Story) -> None:
    """No two are valid at once, as b learnt of its grant only after its lease; yet no order explains the fences."""
    handle = s.lock("a", 5, 10, 1, "PR")
    other = s.lock("b", 6, 25, 2, "CW", deadline=20)
    s.lost("b", other, 26)
    s.convert("a", handle, "EX", 20, 30, 3)
    s.release("a", handle, 40)


@bad("invocation")
def a_grant_that_nobody_asked_for(s: Story) -> None:
    s.answer("a", 9, 10, Result.OK, mode="EX", fence=3)


@bad("invocation")
def a_grant_of_another_name(s: Story) -> None:
    s.lock("a", 5, 10, 1, name="n", verb=Verb.ACQUIRE)
    s.notes[-1] = Note(**{**_fields(s.notes[-1]), "name": "m"})
    s.release("a", 1, 20)


@bad("invocation")
def a_grant_of_another_mode(s: Story) -> None:
    op = s.call("a", 5, Verb.ACQUIRE, handle=1, name="n", mode="PR")
    s.answer("a", op, 10, Result.OK, mode="EX", fence=1, deadline=LEASE)
    s.release("a", 1, 20)


@bad("once")
def two_answers(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1)
    s.answer("a", 1, 11, Result.NO, reason="timeout")
    s.release("a", handle, 20)


@bad("answer")
def no_answer(s: Story) -> None:
    s.ask("a", 5, None)
    s.held("b", 10, 20, 1)


@bad("end")
def a_loss_that_nobody_was_told_of(s: Story) -> None:
    s.lock("a", 5, 10, 1, deadline=100)
    s.held("b", 2100, 2200, 2)


@bad("sequence")
def a_conversion_of_what_was_never_granted(s: Story) -> None:
    handle = s.ask("a", 5, 10)
    s.convert("a", handle, "PR", 20, 30, 1)


@bad("sequence")
def a_conversion_after_the_release(s: Story) -> None:
    handle = s.held("a", 10, 20, 1)
    s.convert("a", handle, "PR", 30, 31, 1)


@bad("sequence")
def a_lock_that_is_seen_after_its_release(s: Story) -> None:
    handle = s.held("a", 10, 20, 1)
    s.seen("a", handle, 30, 30 + LEASE)


@bad("sequence")
def two_conversions_at_once(s: Story) -> None:
    handle = s.lock("a", 5, 10, 1)
    first = s.convert("a", handle, "PR", 20, None)
    second = s.convert("a", handle, "CR", 21, None)
    s.answer("a", first, 30, Result.OK, mode="PR", fence=1)
    s.answer("a", second, 31, Result.OK, mode="CR", fence=1)
    s.release("a", handle, 40)


@bad("time")
def an_answer_before_the_call(s: Story) -> None:
    s.as_told = True
    op = s.call("a", 20, Verb.ACQUIRE, handle=1, name="n", mode="PR")
    s.answer("a", op, 10, Result.NO, reason="timeout")


@bad("progress")
def a_free_lock_that_is_not_given(s: Story) -> None:
    s.calm(1, 100_000)
    s.held("a", 10, 20, 1)
    s.ask("b", 15, 9_000)


@bad("progress")
def a_free_lock_that_is_given_too_late(s: Story) -> None:
    s.calm(1, 100_000)
    s.held("a", 10, 20, 1)
    s.held("b", 9_000, 9_010, 2, asked=15)


@bad("progress")
def an_upgrade_of_the_only_one_that_is_not_given(s: Story) -> None:
    s.calm(1, 100_000)
    handle = s.lock("a", 5, 10, 1, "PR", deadline=99_000)
    s.convert("a", handle, "EX", 20, 9_000, result=NO)
    s.release("a", handle, 9_010)


@bad("progress")
def a_try_that_is_refused_for_nobody(s: Story) -> None:
    s.calm(1, 100_000)
    s.held("a", 10, 20, 1)
    s.ask("b", 9_000, 9_001, reason="busy", patient=False)


def _fields(note: Note) -> dict[str, object]:
    return {name: getattr(note, name) for name in Note.__dataclass_fields__}


# -- the tests ---------------------------------------------------------------------------------------------------

BOUND = 5_000


@pytest.mark.parametrize("story", GOOD, ids=lambda story: story.__name__)
def test_good(story: Callable[[Story], object]) -> None:
    told = Story()
    story(told)
    verdict = told.verdict(BOUND)
    assert verdict.good, verdict.report()


@pytest.mark.parametrize(("rules", "story"), BAD, ids=lambda each: getattr(each, "__name__", each))
def test_bad(rules: str, story: Callable[[Story], object]) -> None:
    told = Story()
    story(told)
    verdict = told.verdict(BOUND)
    found = {problem.rule for problem in verdict.problems}
    if found >= {"exclusion", "order"} and "order" not in rules.split():
        found.discard("order")  # a second hold has no instant either
    assert " ".join(sorted(found)) == rules, verdict.report()


def test_there_are_enough_and_every_rule_is_broken() -> None:
    assert len(GOOD) >= 20
    assert len(BAD) >= 20
    broken = {rule for rules, _ in BAD for rule in rules.split()}
    assert broken == {
        "answer", "end", "exclusion", "fence", "invocation", "once", "order", "progress", "revived", "sequence",
        "time",
    }  # fmt: skip


def test_a_problem_says_who_and_when() -> None:
    told = Story()
    told.held("a", 10, 30, (0xAB << 32) + 1)
    told.held("b", 29, 40, (0xAB << 32) + 2, asked=5)
    text = told.verdict().report()
    assert "n is held twice for 0.001 ms: a op 1 at node a: EX fence ab.1 from 0.000010 to 0.000030; b op 1" in text


def test_the_numbers() -> None:
    told = Story()
    handle = told.lock("a", 1, 2, 1)
    told.convert("a", handle, "PR", 3, 4, 1)
    told.lost("a", handle, 5)
    told.ask("b", 2, 3)
    told.ask("c", 2, 3, UNKNOWN)
    verdict = told.verdict()
    counts = verdict.grants, verdict.conversions, verdict.refused, verdict.lost, verdict.unknown
    assert counts == (1, 1, 1, 1, 1)


def test_notes_survive_being_written() -> None:
    told = Story()
    told.held("a", 10, 30, 3)
    told.calm(5, 6)
    data = b"".join(note.line() for note in told.notes)
    assert list(parse(data + b'{"t": 1, "half')) == told.notes
    with pytest.raises(ValueError):
        list(parse(b'{"t":1,"client":"a","what":"nonsense"}\n'))
