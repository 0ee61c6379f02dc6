"""A scripted channel: the other end of a lock client, without a daemon."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import pytest

import dlm
from tests.dlm_client.three import Three
from vsync.errors import NotConnected, RequestFailed

PENDING = object()
HOUR_US = 3_600_000_000


def _nothing(args: dict[str, Any]) -> dict[str, Any]:
    return {}


class FakeChannel:
    """Answers every request at once unless told otherwise, and remembers them all.

    ``script[verb]`` is called with the arguments and gives the result, an exception, or ``PENDING``; a
    pending request is answered by ``answer(h, ...)``. ``now`` and ``page`` are the clock and the deadline
    page.
    """

    PENDING = PENDING
    local = False

    def __init__(self) -> None:
        self.welcome: Mapping[str, Any] = {"session": 7, "node": {"id": 1, "name": "a", "incarnation": 5}}
        self.now = 1_000_000
        self.page = (1, HOUR_US)
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.arrived = threading.Condition()
        self.script: dict[str, Callable[[dict[str, Any]], Any]] = {"lock": self.grant, "convert": self.grant}
        self.waiting: dict[int, Future[Any]] = {}
        self.closed = False
        self._fences = itertools.count(1 << 32)
        self._push: Callable[[str, Any], None] = lambda kind, data: None
        self._close: Callable[[str], None] = lambda reason: None

    # what the client calls

    def call(self, service: str, verb: str, args: Mapping[str, Any], timeout: float | None = None) -> Any:
        return self.start(service, verb, args).result(timeout)

    def start(self, service: str, verb: str, args: Mapping[str, Any]) -> Future[Any]:
        assert service == "dlm"
        if self.closed:
            raise NotConnected("the channel is closed")
        future: Future[Any] = Future()
        result = self.script.get(verb, _nothing)(dict(args))
        if result is PENDING:
            self.waiting[args["h"]] = future
        else:
            self._finish(future, result)
        self._record(verb, args)
        return future

    def post(self, service: str, verb: str, args: Mapping[str, Any]) -> None:
        if self.closed:
            raise NotConnected("the channel is closed")
        self.script.get(verb, _nothing)(dict(args))
        self._record(verb, args)

    def on_push(self, service: str, handler: Callable[[str, Any], None]) -> None:
        self._push = handler

    def on_close(self, handler: Callable[[str], None]) -> None:
        self._close = handler

    def lease_deadline(self) -> tuple[int, int]:
        return self.page

    def close(self) -> None:
        if not self.closed:
            self.end("closed")

    # what the test does

    def grant(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The result of a request that is granted."""
        return {
            "fence": next(self._fences),
            "mode": args["mode"],
            "generation": self.page[0],
            "value": b"",
            "value_read": True,
            "value_valid": True,
        }

    def answer(self, h: int, result: Any) -> None:
        """Answer the pending request of handle ``h``."""
        self._finish(self.waiting.pop(h), result)

    def push(self, kind: str, **data: Any) -> None:
        self._push(kind, data)

    def end(self, reason: str) -> None:
        """The connection breaks."""
        self.closed = True
        self._close(reason)
        for future in list(self.waiting.values()):
            future.set_exception(NotConnected(reason))
        self.waiting.clear()

    def verbs(self) -> list[str]:
        """What was sent."""
        return [verb for verb, _ in self.sent]

    def last(self, verb: str) -> dict[str, Any]:
        """The arguments of the last request of that kind."""
        return next(args for sent, args in reversed(self.sent) if sent == verb)

    def wait_sent(self, verb: str, count: int = 1) -> None:
        """Wait until ``verb`` has been sent ``count`` times."""
        with self.arrived:
            enough = self.arrived.wait_for(lambda: sum(sent == verb for sent, _ in self.sent) >= count, timeout=20)
        assert enough, f"{verb} was not sent; sent: {self.sent}"

    def _record(self, verb: str, args: Mapping[str, Any]) -> None:
        with self.arrived:
            self.sent.append((verb, dict(args)))
            self.arrived.notify_all()

    @staticmethod
    def _finish(future: Future[Any], result: Any) -> None:
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


class InThread(threading.Thread):
    """Runs a call; ``outcome()`` gives its result or raises its exception."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._future: Future[Any] = Future()
        self.start()

    def run(self) -> None:
        try:
            self._future.set_result(self._call())
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self._future.set_exception(error)

    def outcome(self) -> Any:
        return self._future.result(timeout=20)


@pytest.fixture
def channel() -> FakeChannel:
    return FakeChannel()


@pytest.fixture
def locks(channel: FakeChannel) -> Iterator[dlm.Client]:
    client = dlm.Client.over(channel, clock_us=lambda: channel.now)
    yield client
    client.close()


@pytest.fixture
def in_thread() -> Callable[[Callable[[], Any]], InThread]:
    return InThread


@pytest.fixture
def refused() -> Callable[..., RequestFailed]:
    return RequestFailed


class Interrupts:
    """Ctrl-C for the main thread, from another one. Insists: one that falls into a destructor is lost, as Python
    does it. Not ``interrupt_main``: that wakes nobody, and is nothing where a shell has SIGINT ignored.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._insist)

    def start(self) -> None:
        """From now on."""
        self._thread.start()

    def end(self) -> None:
        """Not any more: it has come."""
        self._over.set()

    def join(self) -> None:
        """Wait for the thread."""
        self.end()
        if self._thread.ident is not None:
            self._thread.join()

    def _insist(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        while not self._over.wait(5):
            signal.pthread_kill(main, signal.SIGINT)


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """Ctrl-C as it is when a person starts the program."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    found = Interrupts()
    yield found
    found.join()
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def running() -> Iterator[Three]:
    with Three.started() as three:
        yield three


@pytest.fixture
def three(running: Three) -> Iterator[Three]:
    """For tests that leave the nodes in peace."""
    yield running
    running.end_clients()
