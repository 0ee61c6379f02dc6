"""Counters: every change counts, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import dlm

InThread = Callable[[Callable[[], Any]], Any]
Check = Callable[[dlm.Client, str], None]
LONG_S = 20.0


def test_every_change_counts_once(three: Any, name: str, in_thread: InThread, nothing_left: Check) -> None:
    with three.client("a").counter(name, 100) as counter:

        def work(node: str) -> list[int]:
            with three.client(node).counter(name, 100) as mine:
                return [mine.add(timeout=LONG_S) for _ in range(20)]

        threads = [in_thread(lambda node=node: work(node)) for node in "abc"]
        seen = [number for thread in threads for number in thread.outcome()]
        assert sorted(seen) == list(range(101, 161))
        assert counter.value == 160
        assert counter.add(-200) == -40
    nothing_left(three.client("a"), name)
    with three.client("b").counter(name) as again:
        assert again.value == 0


def test_a_change_that_is_not_made(three: Any, name: str) -> None:
    locks = three.client("a")
    with locks.counter(name) as counter:
        assert counter.add(5) == 5
        with three.client("b").acquire(f"{name}/counter", dlm.Mode.EX), pytest.raises(dlm.LockTimeout):
            counter.add(1, timeout=0.05)
        with locks.acquire(f"{name}/counter", dlm.Mode.EX), pytest.raises(dlm.Deadlock):
            counter.add(1)  # it waits for itself
        with pytest.raises(TypeError):
            counter.add("x")  # type: ignore[arg-type]
        assert counter.value == 5
    with pytest.raises(dlm.NotHeld):
        counter.add()
    assert repr(counter) == f"<dlm.Counter {name!r}>"


def test_the_dead_leave_it_as_it_was(three: Any, name: str) -> None:
    ends = three.client("b")
    with three.client("a").counter(name) as counter:
        with ends.counter(name) as other:
            assert other.add(3) == 3
            ends.acquire(f"{name}/counter", dlm.Mode.EX, LONG_S)
            ends.close()
        assert counter.add(timeout=LONG_S) == 4
