"""Who reads: the thread that waits, while there is one; what runs the program's code is the reader thread alone."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.vsync.served import Served
from tests.vsync.support import until
from vsync import turns
from vsync.answer import Answer
from vsync.core import Push, Reply
from vsync.errors import NotConnected, ProtocolError
from vsync.framing import MAX_IPC_FRAME, Inbox, encode
from vsync.ipc import SocketChannel

NEVER_S = 1000.0


class Counting(SocketChannel):
    """Who has waited for the socket, and who was called."""

    def __init__(self, url: str) -> None:
        self.read_by: list[str] = []
        super().__init__(url)

    def more(self, patience: float | None) -> None:
        self.read_by.append(threading.current_thread().name)
        super().more(patience)


@pytest.fixture
def channel(served: Served) -> Iterator[Counting]:
    with contextlib.closing(Counting(str(served.path))) as channel:
        yield channel


@pytest.fixture
def led(channel: Counting, monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Its reader thread rests, and does not look by itself."""
    monkeypatch.setattr(turns, "ASIDE_S", NEVER_S)
    for n in range(3 * turns.RUN):
        assert channel.call("fake", "echo", {"n": n}, 20) == {"n": n}
    channel.read_by.clear()
    return channel


def answer(served: Served, index: int, data: Any) -> None:
    session, rid, *_ = until(lambda: served.core.requests[index:])[0]
    served.loop.post(lambda: served.core.out.append(Reply(session, rid, True, data)))


def waiting(channel: Counting) -> int:
    """Threads that wait for an answer."""
    return sum(isinstance(each, Answer) and each.waited for each in [*channel._pending.values()])


def silent(served: Served) -> None:
    served.core.requests.clear()
    served.core.on_request = lambda *_: None


def test_a_call_is_one_system_call_each_way_and_no_other_thread_wakes(led: Counting) -> None:
    for n in range(100):
        led.call("fake", "echo", {"n": n})
    assert led.read_by == ["MainThread"] * 100


def test_a_turn_of_the_node_per_request_and_one_question_to_the_core(led: Counting, served: Served) -> None:
    asked = 0
    deadline = served.core.next_deadline

    def next_deadline() -> int | None:
        nonlocal asked
        asked += 1
        return deadline()

    served.core.next_deadline = next_deadline  # type: ignore[method-assign]
    before = served.loop.counters["turns"]
    for n in range(100):
        led.call("fake", "echo", {"n": n})
    spent = served.loop.counters["turns"] - before
    assert 90 <= spent <= 110
    assert asked <= spent + 10


def test_the_reader_thread_comes_back_for_a_push(channel: Counting, served: Served) -> None:
    got: list[tuple[int, str]] = []
    channel.on_push("fake", lambda kind, data: got.append((data, threading.current_thread().name)))
    session = channel.welcome["session"]
    for n in range(5):
        for _ in range(3 * turns.RUN):
            channel.call("fake", "echo", {})
        served.loop.post(lambda n=n: served.core.out.append(Push(session, "fake", "k", n)))  # type: ignore[misc]
        until(lambda n=n: len(got) > n)  # type: ignore[misc]
    assert got == [(n, "vsync-channel") for n in range(5)]


def test_a_push_before_an_answer_is_handled_first_and_by_the_reader_thread(led: Counting, served: Served) -> None:
    got: list[str] = []
    led.on_push("fake", lambda kind, data: got.append(threading.current_thread().name))

    def both(session: int, rid: int, *_: Any) -> None:
        served.core.out += [Push(session, "fake", "k", 1), Reply(session, rid, True, "done")]

    served.core.on_request = both
    for n in range(1, 20):
        assert led.call("fake", "x", {}, 20) == "done"
        assert got == ["vsync-channel"] * n


def test_a_callback_runs_on_the_reader_thread_at_once(led: Counting) -> None:
    got: list[str] = []
    for n in range(1, 10):
        led.start("fake", "echo", {}).add_done_callback(lambda _: got.append(threading.current_thread().name))
        until(lambda n=n: len(got) == n)  # type: ignore[misc]
    assert set(got) <= {"vsync-channel", "MainThread"}  # here, if the answer was first


def test_a_callback_may_ask_for_the_result(led: Counting) -> None:
    got: list[Any] = []
    for n in range(10):
        asked = led.start("fake", "echo", {"n": n})
        asked.add_done_callback(lambda done: got.append((done.exception(), done.result())))
        assert led.call("fake", "echo", {}, 20) == {}
    until(lambda: len(got) == 10)
    assert got == [(None, {"n": n}) for n in range(10)]


def test_who_leads_reads_for_the_others_and_one_of_them_goes_on(led: Counting, served: Served) -> None:
    silent(served)
    order = [3, 0, 5, 1, 4, 2]
    with ThreadPoolExecutor(len(order)) as pool:
        asked = [pool.submit(led.call, "fake", "x", {}) for _ in order]
        until(lambda: len(served.core.requests) == len(order))
        until(lambda: waiting(led) == len(order))
        rows = {rid: n for n, (_, rid, *_) in enumerate(served.core.requests)}
        for index in order:
            answer(served, index, served.core.requests[index][1])
        assert sorted(each.result(20) for each in asked) == sorted(rows)
    assert "vsync-channel" not in led.read_by


def test_two_threads_may_wait_for_one_answer(led: Counting, served: Served) -> None:
    silent(served)
    for n in range(20):
        asked = led.start("fake", "x", {})
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(asked.result, 20) for _ in range(3)]
            answer(served, n, n)
            assert [each.result(20) for each in waiting] == [n] * 3


def test_a_time_out_lets_another_lead(led: Counting, served: Served) -> None:
    silent(served)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(led.call, "fake", "x", {}, 0.05)
        second = pool.submit(led.call, "fake", "x", {})
        with pytest.raises(TimeoutError):
            first.result(20)
        for index in (0, 1):
            answer(served, index, "late")
        assert second.result(20) == "late"


def test_a_handler_may_call(led: Counting, served: Served) -> None:
    got: list[Any] = []
    led.on_push("fake", lambda kind, data: got.append(led.call("fake", "echo", {"n": data}, 20)))
    session = led.welcome["session"]
    for n in range(3):
        served.loop.post(lambda n=n: served.core.out.append(Push(session, "fake", "k", n)))  # type: ignore[misc]
        assert led.call("fake", "echo", {}, 20) == {}
    until(lambda: len(got) == 3 or led.call("fake", "echo", {}, 20) is None)
    assert sorted(each["n"] for each in got) == [0, 1, 2]  # a push may come while the handler waits


def test_close_by_another_thread_ends_a_wait(led: Counting, served: Served) -> None:
    silent(served)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(led.call, "fake", "x", {}) for _ in range(2)]
        until(lambda: len(served.core.requests) == 2)
        led.close()
        for each in asked:
            with pytest.raises(NotConnected, match="closed by this program"):
                each.result(20)


def test_the_end_of_the_node_ends_a_wait(led: Counting, served: Served) -> None:
    reasons: list[str] = []
    led.on_close(lambda reason: reasons.append(threading.current_thread().name))
    silent(served)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(led.call, "fake", "x", {})
        until(lambda: served.core.requests)
        served.stop()
        with pytest.raises(NotConnected, match="ended the session: left"):
            asked.result(20)
    assert reasons == ["vsync-channel"]


class Interrupted(BaseException):
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a weak reference's callback
@pytest.mark.timeout(120, method="thread")  # SIGALRM, by which others are bounded, is its own
def test_no_interrupt_loses_or_tears_a_frame(channel: Counting) -> None:
    """A timer interrupts the calls of this thread anywhere; those of another thread must not suffer."""
    rng, stop, others, armed = random.Random(7), threading.Event(), list[int](), list[int]()

    def interrupt(*_: Any) -> None:
        if armed:
            raise Interrupted

    def call() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            assert channel.call("fake", "echo", {"other": n}, 10) == {"other": n}
        others.append(n)

    before = signal.signal(signal.SIGALRM, interrupt)
    thread = threading.Thread(target=call)
    thread.start()
    interrupts = 0
    try:
        for n in range(300):
            with contextlib.suppress(Interrupted):
                try:
                    armed.append(n)
                    # Again, if the first one is lost: where nothing can be raised it is swallowed.
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(2e-5, 1e-3), 0.5)
                    while True:
                        assert channel.call("fake", "echo", {"n": n}, 20) == {"n": n}
                finally:
                    armed.clear()
                    interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        stop.set()
        thread.join(20)
    assert others
    assert interrupts == 300
    assert channel.call("fake", "echo", {"n": -1}, 20) == {"n": -1}


# ---------------------------------------------------------------- the inbox


def test_an_inbox_gives_frames_whatever_the_cut_and_keeps_what_is_not_taken() -> None:
    frames = [["vsync", 1, {}], [1, "a", "b", {"x": b"y" * 300}], [0], [3, "long", b"z" * 5000], [2, True, None]]
    data = b"".join(map(encode, frames))
    for size in (1, 2, 3, 5, 7, 100, 1000, 5290, 5320):
        inbox, got = Inbox(), []
        rest = [data[at : at + size] for at in range(0, len(data), size)]
        while rest:
            assert inbox.fill(lambda _: rest.pop(0), 65536)  # noqa: B023 - called at once
            while (frame := inbox.peek()) is not None:
                assert inbox.peek() == frame
                inbox.take()
                got.append(frame)
        assert got == frames


def test_an_inbox_refuses_nonsense_as_often_as_it_is_asked() -> None:
    inbox = Inbox()
    inbox.fill(lambda _: (MAX_IPC_FRAME + 1).to_bytes(4, "big"), 4)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="is announced"):
            inbox.peek()
    assert not inbox.fill(lambda _: b"", 4)


def test_a_failed_reception_changes_nothing() -> None:
    inbox = Inbox()
    with socket.socket(socket.AF_UNIX) as s, pytest.raises(OSError, match="Invalid argument"):
        inbox.fill(s.recv, 4)
    assert inbox.peek() is None
