"""What all members have, what waits for it, and in which order it is told: the pure parts."""

from __future__ import annotations

from dlm.backlog import Backlog
from dlm.handle import Handle, Request
from dlm.messages import Kind
from dlm.settled import Settled
from dlm.withheld import FAILURE, HORIZON, LEASE, STABLE


class TestSettled:
    def test_nothing_is_settled_before_all_have_it(self) -> None:
        settled = Settled()
        settled.whole(7)
        for position, applied in ((10, 8), (11, 9), (30, 10)):
            settled.delivered(position, applied)
        assert settled.applied == 7
        assert not settled.token(10)
        assert settled.token(12)
        assert settled.applied == 9
        assert not settled.token(30), "positions below it"
        assert settled.token(31)
        assert settled.applied == 10
        assert not settled.token(1000)

    def test_a_view_settles_what_came_before_and_knows_nothing_of_its_positions(self) -> None:
        settled = Settled()
        settled.delivered(5, 3)
        settled.whole(4)
        assert settled.applied == 4
        settled.delivered(2, 5)
        assert not settled.token(2)
        assert settled.token(3)
        assert settled.applied == 5

    def test_another_table_may_be_shorter(self) -> None:
        settled = Settled()
        settled.whole(100)
        settled.whole(0)
        assert settled.applied == 0


def handle(h: int, after: int = 0) -> Handle:
    made = Handle(1, h, b"\0R", Request(Kind.LOCK, h, 5, 0, None))
    made.after = after
    return made


class TestBacklog:
    def test_each_reason_is_looked_at_when_it_may_be_over(self) -> None:
        backlog = Backlog()
        handles = [handle(h, after=h) for h in range(1, 6)]
        for each, why in zip(handles, (HORIZON, STABLE, LEASE, STABLE, FAILURE), strict=True):
            backlog.add(each, why, 7)
        assert len(backlog) == len(list(backlog)) == 5
        assert backlog.take_settled(1) == []
        assert backlog.take_settled(2) == [handles[1]]
        assert backlog.take_soon() == [handles[0], handles[2]]
        assert backlog.take_failed() == [handles[4]]
        assert backlog.take_all() == [handles[3]]
        assert len(backlog) == 0

    def test_who_has_gone_is_forgotten(self) -> None:
        backlog = Backlog()
        first, second = handle(1), handle(2)
        backlog.add(first, FAILURE, 7)
        backlog.add(second, FAILURE, 7)
        backlog.forget(first)
        backlog.forget(first)
        assert backlog.take_failed() == [second]

    def test_another_handle_of_that_number_stays(self) -> None:
        backlog = Backlog()
        backlog.add(handle(1), STABLE, 7)
        backlog.forget(handle(1))
        assert len(backlog) == 1

    def test_releases_that_have_written(self) -> None:
        backlog = Backlog()
        backlog.wrote(3, 1, 10, now=7)
        backlog.wrote(5, 2, 11, now=9)
        assert backlog.unsettled_since == 7
        assert list(backlog.take_writes(2)) == []
        assert list(backlog.take_writes(3)) == [(1, 10)]
        assert list(backlog.take_writes(None)) == [(2, 11)]
