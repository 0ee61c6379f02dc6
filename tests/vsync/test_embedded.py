"""A channel to a node in the same process: what the node's thread hands on by itself, and what it must not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from tests.vsync.served import Served
from tests.vsync.support import until
from vsync.answer import Answer
from vsync.core import Push, Reply
from vsync.embedded import LocalChannel
from vsync.errors import NotConnected

READER = "vsync-channel"


@pytest.fixture
def channel(served: Served) -> Iterator[LocalChannel]:
    with contextlib.closing(LocalChannel(served.loop)) as channel:
        yield channel


def silent(served: Served) -> None:
    served.core.requests.clear()
    served.core.on_request = lambda *_: None


def request(served: Served, number: int) -> Any:
    """That one, when it has come."""
    return until(lambda: served.core.requests[number:])[0]


def step(steps: list[str]) -> bool:
    steps.append("step")
    return True


def put(served: Served, *outputs: Any) -> None:
    served.loop.post(lambda: served.core.out.extend(outputs))


def push(channel: LocalChannel, service: str, data: Any) -> Push:
    return Push(channel.welcome["session"], service, "k", data)


def test_an_answer_wakes_nobody_but_the_thread_that_waits(channel: LocalChannel, served: Served) -> None:
    silent(served)
    for n in range(30):
        asked = channel.start("fake", "x", {})
        assert isinstance(asked, Answer)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(asked.result, 20)
            until(partial(getattr, asked, "waited"))
            session, rid, *_ = request(served, n)
            put(served, Reply(session, rid, True, n))
            assert waiting.result(20) == n
    assert channel._passed == 1  # the welcome


def test_a_quick_handler_is_called_by_the_node(channel: LocalChannel, served: Served) -> None:
    got: list[tuple[int, str]] = []
    channel.on_push("fake", lambda kind, data: got.append((data, threading.current_thread().name)), quick=True)
    put(served, *(push(channel, "fake", n) for n in range(20)))
    until(lambda: len(got) == 20)
    assert got == [(n, served.thread.name) for n in range(20)]


def test_nothing_overtakes_what_the_reader_thread_has_to_do(channel: LocalChannel, served: Served) -> None:
    silent(served)
    got: list[Any] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(kind: str, data: Any) -> None:
        begun.set()
        assert go_on.wait(20)
        got.append(data)

    channel.on_push("slow", slow)
    channel.on_push("fake", lambda kind, data: got.append(data), quick=True)
    asked = channel.start("fake", "x", {})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: got.append(asked.result(20)))
        until(lambda: served.core.requests)
        session, rid, *_ = served.core.requests[0]
        put(served, push(channel, "slow", 1), push(channel, "fake", 2), Reply(session, rid, True, "answer"))
        assert begun.wait(20)
        put(served, push(channel, "fake", 3))
        until(lambda: channel._passed >= 5)
        assert got == []
        go_on.set()
        waiting.result(20)
    until(lambda: len(got) == 4)
    assert [each for each in got if each != "answer"] == [1, 2, 3]
    assert got.index("answer") >= 2


def test_callbacks_of_programs_are_not_run_by_the_node(channel: LocalChannel, served: Served) -> None:
    silent(served)
    names: list[str] = []
    asked = channel.start("fake", "x", {})
    asked.add_done_callback(lambda _: names.append(threading.current_thread().name))
    session, rid, *_ = until(lambda: served.core.requests)[0]
    put(served, Reply(session, rid, True, None))
    until(lambda: names)
    assert names == [READER]


def test_a_quick_callback_may_be(channel: LocalChannel, served: Served) -> None:
    silent(served)
    names: list[str] = []
    asked = channel.start("fake", "x", {})
    assert isinstance(asked, Answer)
    asked.add_quick_callback(lambda _: names.append(threading.current_thread().name), lambda: False)
    session, rid, *_ = until(lambda: served.core.requests)[0]
    put(served, Reply(session, rid, True, None))
    until(lambda: names)
    assert names == [served.thread.name]


def test_a_step_may_be_all_there_is_to_do(channel: LocalChannel, served: Served) -> None:
    silent(served)
    steps: list[str] = []
    for n, ok in enumerate((True, False)):
        asked = channel.start("fake", "x", {})
        assert isinstance(asked, Answer)
        asked.add_quick_callback(lambda _: steps.append("called back"), partial(step, steps))
        session, rid, *_ = request(served, n)
        put(served, Reply(session, rid, ok, {} if ok else {"code": "no", "message": "no"}))
        until(lambda n=n: len(steps) > n)  # type: ignore[misc]
    assert steps == ["step", "called back"]


def test_a_quick_handler_that_fails_ends_the_session_not_the_node(channel: LocalChannel, served: Served) -> None:
    reported: list[Any] = []
    before, threading.excepthook = threading.excepthook, reported.append
    try:
        channel.on_push("fake", lambda kind, data: 1 // data, quick=True)
        put(served, push(channel, "fake", 0))
        until(lambda: reported)
        with pytest.raises(NotConnected, match="a handler of this program failed"):
            channel.call("fake", "echo", {}, 20)
    finally:
        threading.excepthook = before
    assert served.loop.failure is None


def test_a_handler_may_call(channel: LocalChannel, served: Served) -> None:
    got: list[Any] = []
    channel.on_push("fake", lambda kind, data: got.append(channel.call("fake", "echo", {"n": data}, 20)))
    put(served, *(push(channel, "fake", n) for n in range(3)))
    until(lambda: len(got) == 3)
    assert sorted(each["n"] for each in got) == [0, 1, 2]


def test_a_time_out_leaves_the_answer_to_whoever_asks_later(channel: LocalChannel, served: Served) -> None:
    silent(served)
    asked = channel.start("fake", "x", {})
    with pytest.raises(TimeoutError):
        asked.result(0.01)
    session, rid, *_ = until(lambda: served.core.requests)[0]
    put(served, Reply(session, rid, True, "late"))
    assert asked.result(20) == "late"
    assert asked.done()


def test_many_threads_and_pushes_get_each_what_is_theirs_in_order(channel: LocalChannel, served: Served) -> None:
    """The stress: answers offered, passed on and called back, between pushes of both kinds."""
    quick: list[int] = []
    slow: list[int] = []
    channel.on_push("quick", lambda kind, data: quick.append(data), quick=True)
    channel.on_push("slow", lambda kind, data: slow.append(data))

    def work(number: int) -> int:
        called: list[Any] = []
        for n in range(200):
            asked = channel.start("fake", "echo", {"n": (number, n)})
            if n % 7 == 0:
                asked.add_done_callback(called.append)
            if n % 5 == 0:
                until(asked.done)
            assert asked.result(20)["n"] == (number, n)
            put(served, push(channel, "quick" if n % 3 else "slow", number * 1000 + n))
        until(lambda: len(called) == 29)
        return number

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(work, range(4))) == [0, 1, 2, 3]
    until(lambda: len(quick) + len(slow) == 800)
    for got in (quick, slow):
        for number in range(4):
            own = [each for each in got if each // 1000 == number]
            assert own == sorted(own)


def test_close_ends_a_wait(channel: LocalChannel, served: Served) -> None:
    silent(served)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(channel.call, "fake", "x", {}) for _ in range(2)]
        until(lambda: len(served.core.requests) == 2)
        channel.close()
        for each in asked:
            with pytest.raises(NotConnected, match="closed by this program"):
                each.result(20)
