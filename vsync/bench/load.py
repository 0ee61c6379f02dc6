"""A service that loads the ring from within, and processes that run a node with it: what the ring can do, without
sessions and their sockets.

A sender keeps ``window`` messages of ``size`` bytes under way: for each of its own that is delivered it submits the
next one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, NamedTuple

from vsync.clock import boot_us
from vsync.core import Core
from vsync.errors import Backpressure, VsyncError
from vsync.node import Node
from vsync.service import Credentials, Host
from vsync.testcluster import free_ports
from vsync.transport.options import TransportConfig
from vsync.types import ClusterConfig, Member, Peer, View

__all__ = ["Load", "Measurement", "Nodes"]

FORM_S = 20.0
WARM_S = 0.15
_HEAD = struct.Struct("!BQ")  # tag, submitted at


class Load:
    """See ``Service``. Requests: ``set`` changes fields of the engine's ``ClusterConfig`` under way; ``load {size,
    window}``; ``take {}`` returns what was delivered since the last one, and the CPU time of the process so far.
    """

    name = "bench"
    tag = 250

    def __init__(self) -> None:
        self._host: Host | None = None
        self._size = self._window = self._under_way = self._count = 0
        self._spent: list[int] = []  # µs, of own messages

    def attach(self, host: Host, now: int) -> None:
        self._host = host

    def announce(self, attempts: Sequence[View] = ()) -> bytes:
        return b""

    def deliver(self, origin: Member, position: int, payload: bytes, installing: bool, now: int) -> None:
        assert self._host is not None
        self._count += 1
        if origin == self._host.me:
            self._under_way -= 1
            self._spent.append(boot_us() - _HEAD.unpack_from(payload)[1])
            self._submit()

    def view(self, view: View, now: int) -> None:
        pass

    def open(self, session: int, who: Credentials, now: int) -> None:
        pass

    def close(self, session: int, now: int) -> None:
        pass

    def request(self, session: int, rid: int, verb: str, args: Mapping[str, Any], now: int) -> None:
        assert self._host is not None
        if verb == "set":
            assert isinstance(self._host, Core)
            self._host.engine.config = replace(self._host.engine.config, **args)
            self._host.reply(session, rid, {})
        elif verb == "load":
            self._size, self._window = args["size"], args["window"]
            self._host.reply(session, rid, {})
            self._submit()
        else:
            taken = {"count": self._count, "at": boot_us(), "under_way": self._under_way}
            self._host.reply(session, rid, {**taken, "cpu": time.process_time(), "times": self._spent})
            self._count, self._spent = 0, []

    def token(self, now: int) -> None:
        pass

    def fire(self, now: int) -> None:
        pass

    def next_deadline(self) -> int | None:
        return None

    def leaving(self, now: int) -> None:
        self._window = 0

    def may_leave(self) -> bool:
        return True

    def status(self) -> dict[str, Any]:
        return {}

    def _submit(self) -> None:
        assert self._host is not None
        with contextlib.suppress(Backpressure):  # the next delivery will make room
            while self._under_way < self._window:
                self._host.submit(_HEAD.pack(self.tag, boot_us()).ljust(self._size, b"."))
                self._under_way += 1


class Measurement(NamedTuple):
    """Messages that each node delivered in a second, of all senders; µs from submission to own delivery of each
    of the first sender's; µs of CPU time of all nodes for a message.
    """

    rate: float
    times: list[int]
    cpu_us: float

    @property
    def p50_ms(self) -> float:
        """The median of the times."""
        return median(self.times) / 1000


class Nodes:
    """A ring of ``count`` processes with an embedded node each. ``with`` starts and ends it.

    Raises ``VsyncError``.
    """

    def __init__(self, options: TransportConfig, count: int = 3) -> None:
        ports = free_ports(count)
        self._count = count
        peers = tuple(Peer(n, f"n{n}", (f"127.0.0.1:{port}",)) for n, port in enumerate(ports, 1))
        self._config = ClusterConfig("bench", 1, peers)
        self._options = options
        self._stack = contextlib.ExitStack()
        self._pipes: list[Connection] = []

    def __enter__(self) -> Nodes:
        context = multiprocessing.get_context("spawn")
        with contextlib.ExitStack() as stack:
            for number in range(1, self._count + 1):
                ours, theirs = context.Pipe()
                config = replace(self._config, node=number)
                arguments = (theirs, config, self._options, self._count)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                process.start()
                stack.callback(process.join)
                stack.callback(process.terminate)
                stack.callback(ours.close)
                theirs.close()  # so that it hears of our end
                self._pipes.append(ours)
            for pipe in self._pipes:
                _answer(pipe)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def set(self, **settings: Any) -> None:
        """Change ``settings`` of the engines' ``ClusterConfig``."""
        self._each(range(self._count), "set", settings)

    def measure(self, size: int, senders: int, window: int, seconds: float) -> Measurement:
        """Under that load; for longer, should nothing be delivered meanwhile on a busy machine."""
        loaded = range(senders)
        everybody = range(self._count)
        self._each(loaded, "load", {"size": size, "window": window})
        time.sleep(WARM_S)
        before = self._each(everybody, "take", {})
        after: list[Any] = [{"count": 0}]
        while not after[0]["count"]:
            time.sleep(seconds)
            after = self._each(everybody, "take", {})
        self._each(loaded, "load", {"size": size, "window": 0})
        while any(answer["under_way"] for answer in self._each(loaded, "take", {})):
            time.sleep(0.005)
        spent = after[0]["at"] - before[0]["at"]
        cpu = sum(late["cpu"] - early["cpu"] for early, late in zip(before, after, strict=True))
        times = after[0]["times"]
        return Measurement(after[0]["count"] / spent * 1e6, times, cpu * 1e6 / after[0]["count"])

    def alone(self, size: int, silence_s: float) -> float:
        """µs that a lone message takes from submission to own delivery, after so much silence."""
        self._each([0], "take", {})
        time.sleep(silence_s)
        self._each([0], "load", {"size": size, "window": 1})
        self._each([0], "load", {"size": size, "window": 0})
        times: list[int] = []
        while not times:
            (answer,) = self._each([0], "take", {})
            times = answer["times"]
        return float(times[0])

    def _each(self, which: Sequence[int], verb: str, args: Mapping[str, Any]) -> list[Any]:
        for index in which:
            self._pipes[index].send((verb, args))
        return [_answer(self._pipes[index]) for index in which]


def _answer(pipe: Connection) -> Any:
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise VsyncError(f"a node failed: {answer}")
    return answer


def _serve(pipe: Connection, config: ClusterConfig, options: TransportConfig, count: int) -> None:
    """The body of a process: requests to the service come through the pipe until it is closed."""
    try:
        with Node(config=config, transport=options, services=[Load()]) as node:
            _wait_ring(node, count)
            channel = node.channel()
            pipe.send(None)
            while True:
                verb, args = pipe.recv()
                pipe.send(channel.call("bench", verb, args, FORM_S))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as e:  # noqa: BLE001 - told to the parent
        pipe.send(VsyncError(repr(e)))


def _wait_ring(node: Node, count: int) -> None:
    end = time.monotonic() + FORM_S
    while len((node.status()["view"] or {"members": ()})["members"]) < count:
        if time.monotonic() > end:
            raise VsyncError(f"no ring of {count}")
        time.sleep(0.02)
