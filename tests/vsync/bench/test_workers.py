"""Processes of the bench: asked, in parallel, until the end; whatever goes wrong is told."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vsync.bench import workers
from vsync.bench.workers import Handler, Workers, cpu_s
from vsync.errors import VsyncError


@contextlib.contextmanager
def counting(start: int) -> Iterator[Handler]:
    """Tells its process, or how often it was asked, from ``start``."""
    count = start

    def handle(what: str) -> int:
        nonlocal count
        count += 1
        if what == "die":
            os._exit(3)
        return {"count": count, "pid": os.getpid()}[what]

    yield handle


@contextlib.contextmanager
def broken() -> Iterator[Handler]:
    """Cannot begin."""
    raise ConnectionRefusedError("nobody there")
    yield print


@contextlib.contextmanager
def silent() -> Iterator[Handler]:
    """Never answers."""
    threading.Event().wait()
    yield print


def open_files() -> int:
    """Of this process, without those that only wait for the collector."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def gone(pid: int) -> bool:
    """Whether there is no such process, not even one that nobody has waited for."""
    return not Path(f"/proc/{pid}").exists()


def test_each_is_a_process_with_a_state_of_its_own() -> None:
    with Workers([(counting, (0,)), (counting, (10,))]) as two:
        assert two.each("pid") == two.pids
        assert two.each("count") == [2, 12]
        assert two.each("count", which=[1]) == [13]
        assert two.ask(0, "count") == 3
        assert two.cpu_s() == pytest.approx(sum(map(cpu_s, two.pids)), abs=1)
        pids = list(two.pids)
    assert all(map(gone, pids))


def test_nothing_stays_open() -> None:
    with Workers([(counting, (0,))]):
        pass  # what Python itself keeps for all processes that it starts is there now
    before = open_files()
    with Workers([(counting, (0,)), (counting, (0,))]):
        assert open_files() > before
    assert open_files() == before


def test_what_fails_there_is_told_here() -> None:
    with Workers([(counting, (0,))]) as one, pytest.raises(VsyncError, match=r"KeyError.*nonsense"):
        one.ask(0, "nonsense")
    with Workers([(counting, (0,))]) as one:
        for _ in range(2):  # also when it is asked again
            with pytest.raises(VsyncError, match="has ended"):
                one.ask(0, "die")


def test_one_that_cannot_begin_ends_all() -> None:
    before = open_files()
    both = Workers([(counting, (0,)), (broken, ())])
    with pytest.raises(VsyncError, match="nobody there"), both:
        pass
    assert open_files() <= before + 1  # see above
    with pytest.raises(VsyncError, match="nobody there"), both:  # and it can be tried again
        pass


def test_one_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ANSWER_S", 0.1)
    with pytest.raises(VsyncError, match=r"has not answered within 0\.1 s"), Workers([(silent, ())]):
        pass
