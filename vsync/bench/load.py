"""A service that loads the ring from within, and processes that run a node with it: what the ring can do, without
sessions and their sockets.

A sender keeps ``window`` messages of ``size`` bytes under way: for each of its own that is delivered it submits the
next one.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

from vsync.bench.embedded import configs, joined
from vsync.bench.workers import Handler, Workers
from vsync.clock import boot_us
from vsync.core import Core
from vsync.errors import Backpressure
from vsync.service import Credentials, Host
from vsync.testcluster import free_ports
from vsync.transport.options import TransportConfig
from vsync.types import ClusterConfig, Member, View

__all__ = ["Load", "Measurement", "Nodes"]

REQUEST_S = 20.0
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


class Nodes(Workers):
    """A ring of ``count`` processes with an embedded node each."""

    def __init__(self, options: TransportConfig, count: int = 3) -> None:
        super().__init__([(_node, (config, options)) for config in configs(free_ports(count))])

    def set(self, **settings: Any) -> None:
        """Change ``settings`` of the engines' ``ClusterConfig``."""
        self.each("set", settings)

    def measure(self, size: int, senders: int, window: int, seconds: float) -> Measurement:
        """Under that load; for longer, should nothing be delivered meanwhile on a busy machine."""
        loaded = range(senders)
        self.each("load", {"size": size, "window": window}, which=loaded)
        time.sleep(WARM_S)
        before = self.each("take", {})
        after: list[Any] = [{"count": 0}]
        while not after[0]["count"]:
            time.sleep(seconds)
            after = self.each("take", {})
        self.each("load", {"size": size, "window": 0}, which=loaded)
        while any(answer["under_way"] for answer in self.each("take", {}, which=loaded)):
            time.sleep(0.005)
        spent = after[0]["at"] - before[0]["at"]
        cpu = sum(late["cpu"] - early["cpu"] for early, late in zip(before, after, strict=True))
        times = after[0]["times"]
        return Measurement(after[0]["count"] / spent * 1e6, times, cpu * 1e6 / after[0]["count"])

    def alone(self, size: int, silence_s: float) -> float:
        """µs that a lone message takes from submission to own delivery, after so much silence."""
        self.ask(0, "take", {})
        time.sleep(silence_s)
        self.ask(0, "load", {"size": size, "window": 1})
        self.ask(0, "load", {"size": size, "window": 0})
        times: list[int] = []
        while not times:
            times = self.ask(0, "take", {})["times"]
        return float(times[0])


@contextlib.contextmanager
def _node(config: ClusterConfig, options: TransportConfig) -> Iterator[Handler]:
    """The body of a process: requests to the service."""
    with joined(config, options, [Load()]) as node:
        channel = node.channel()
        yield lambda verb, args: channel.call("bench", verb, args, REQUEST_S)
