"""Deadlines: what an earlier one stops or moves does not fire."""

from __future__ import annotations

from vsync.engine.states import TIMERS, State
from vsync.engine.timers import Timer, TimerTable


def test_due_timers_come_in_order_and_are_taken_once() -> None:
    table = TimerTable()
    table.set(Timer.TOKEN, 30)
    table.set(Timer.JOIN, 10)
    table.set(Timer.HOLD, 99)
    assert table.next_deadline() == 10
    assert table.due(30) == [Timer.JOIN, Timer.TOKEN]
    assert table.take(Timer.JOIN, 30)
    assert not table.take(Timer.JOIN, 30)
    assert table.next_deadline() == 30


def test_a_timer_that_was_moved_or_stopped_is_not_taken() -> None:
    table = TimerTable()
    table.set(Timer.TOKEN, 5)
    table.set(Timer.JOIN, 5)
    due = table.due(5)
    table.set(Timer.TOKEN, 50)
    table.stop(Timer.JOIN)
    assert [t for t in due if table.take(t, 5)] == []
    assert table.running(Timer.TOKEN)


def test_entering_a_state_stops_what_does_not_belong_to_it() -> None:
    for state in State:
        table = TimerTable()
        for timer in Timer:
            table.set(timer, 1)
        table.keep(*TIMERS[state])
        assert {t for t in Timer if table.running(t)} == TIMERS[state]
