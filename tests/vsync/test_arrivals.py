"""Events of a group, taken by the thread that iterates: who reads them, and that each comes once and in order."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.vsync.served import Served
from tests.vsync.support import until
from tests.vsync.test_turns import NEVER_S, Counting
from vsync import turns
from vsync.client import Client, Group
from vsync.core import Push, Reply
from vsync.errors import NotConnected
from vsync.events import Message

ME = {"node": 1, "session": 1, "name": "me", "pid": 1}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Its groups have one member, who is told what it sends."""
    served = Served(tmp_path)
    core = served.core

    def request(session: int, rid: int, service: str, verb: str, args: Mapping[str, Any]) -> None:
        if verb == "echo":
            core.echo(session, rid, service, verb, args)
            return
        core.out.append(Reply(session, rid, True, {}))
        if verb == "sends":
            came = {"group": args["group"], "sender": ME, "seq": "1:1", "batch": args["batch"]}
            core.out.append(Push(session, "group", "messages", came))

    core.on_request = request
    yield served
    served.stop()


@pytest.fixture
def client(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Its reader thread rests, and does not look by itself."""
    with contextlib.closing(Client(Counting(str(served.path)))) as client:
        monkeypatch.setattr(turns, "ASIDE_S", NEVER_S)
        for _ in range(3 * turns.RUN):
            client.channel.call("fake", "echo", {}, 20)
        yield client


def body(group: Group) -> bytes:
    event = next(group)
    assert isinstance(event, Message)
    return event.data


def test_a_message_is_one_system_call_each_way_and_wakes_no_other_thread(client: Client) -> None:
    group = client.join("g")
    assert isinstance(client.channel, Counting)
    client.channel.read_by.clear()
    for n in range(100):
        group.send(b"%d" % n)
        assert body(group) == b"%d" % n
    assert set(client.channel.read_by) == {"MainThread"}
    assert len(client.channel.read_by) <= 200  # answer and message may come apart


def test_threads_that_iterate_read_for_each_other(client: Client) -> None:
    groups = [client.join(f"g{n}") for n in range(4)]

    def work(group: Group) -> None:
        for n in range(200):
            group.send(b"%d" % n)
            assert body(group) == b"%d" % n

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, groups))


def test_who_sends_and_does_not_iterate_is_not_held_up(client: Client) -> None:
    group = client.join("g")
    for n in range(500):
        group.send(b"%d" % n)
    group.send(b"last", wait=True, timeout=20)
    assert [body(group) for _ in range(500)] == [b"%d" % n for n in range(500)]


def test_the_end_of_the_session_ends_the_iteration(client: Client) -> None:
    group = client.join("g")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, group)
        until(lambda: client.channel.turns is not None and client.channel.turns._seat)
        client.close()
        with pytest.raises(NotConnected):
            waiting.result(20)


class Interrupted(BaseException):
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a weak reference's callback
@pytest.mark.timeout(120, method="thread")  # SIGALRM, by which others are bounded, is its own
def test_an_interrupted_reader_neither_loses_nor_doubles_an_event(client: Client) -> None:
    """This thread reads for another one, who counts, and is interrupted anywhere."""
    counted, own = client.join("counted"), client.channel
    stop, got, armed = threading.Event(), list[bytes](), list[int]()

    def count() -> None:
        n = 0
        while not stop.is_set():
            counted.send(b"%d" % n)
            got.append(body(counted))
            n += 1

    def interrupt(*_: Any) -> None:
        if armed:
            raise Interrupted

    rng = random.Random(11)
    before = signal.signal(signal.SIGALRM, interrupt)
    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        for n in range(300):
            with contextlib.suppress(Interrupted):
                try:
                    armed.append(n)
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(2e-5, 1e-3), 0.5)
                    while True:
                        own.call("fake", "echo", {"n": n}, 20)
                finally:
                    armed.clear()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    assert len(got) > 100
    assert got == [b"%d" % n for n in range(len(got))]


def test_an_event_that_came_twice_counts_once(client: Client) -> None:
    """The frame was dealt with, and before it was taken from the inbox its reader was interrupted."""
    group = client.join("g")
    data = {"group": "g", "sender": ME, "seq": "1:1", "batch": msgpack.packb([b"once"])}
    for _ in range(2):
        group.on_push("messages", data)
    group.send(b"next")
    assert [body(group), body(group)] == [b"once", b"next"]
