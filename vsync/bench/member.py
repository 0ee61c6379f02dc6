"""Programs that measure a ring as its users do: members of one group, a process each, the first of them sends.

Either clients of three ``vsyncd``, or programs with a node each in them; both iterate over the group and look at
each message, who sent it and its position.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from vsync import client
from vsync.bench.rows import Sample, sample
from vsync.clock import boot_us
from vsync.errors import Backpressure, NotConnected, VsyncError
from vsync.events import Message
from vsync.node import Node
from vsync.testcluster import LocalCluster, free_ports
from vsync.transport.options import TransportConfig
from vsync.types import ClusterConfig, Peer

__all__ = ["ClientMembers", "EmbeddedMembers", "Members"]

GROUP = "bench"
FORM_S = 30.0
WINDOWS = {64: 1024, 1000: 512, 8000: 128}  #: messages under way, by their size
START_S = 0.1


class Members:
    """See the module. ``with`` starts and ends them."""

    def __init__(self) -> None:
        self._pipes: list[Connection] = []
        self._stack = contextlib.ExitStack()
        self.pids: list[int] = []  #: of all processes that belong to it

    def latency(self, size: int, count: int, order: str = "agreed") -> Sample:
        """From submission to own delivery, one message at a time."""
        return sample(self._ask("latency", size, count, order))

    def alone(self, size: int, silence_s: float) -> float:
        """The same for one message, after so much silence, in µs."""
        time.sleep(silence_s)
        return float(self._ask("latency", size, 1, "agreed")[0])

    def throughput(self, size: int, seconds: float, order: str = "agreed") -> Sample:
        """Messages per second, delivered to all members."""
        before = self._cpu_s()
        count, spent = self._ask("throughput", size, seconds, order)
        cpu_us = (self._cpu_s() - before) / count * 1e6
        return Sample(count / spent, cpu_us=cpu_us)

    def _start(self, bodies: Sequence[tuple[Callable[[Any], AbstractContextManager[client.Group]], Any]]) -> None:
        """A process for each body; the first one is asked, and ready when it is."""
        context = multiprocessing.get_context("spawn")
        for number, (body, argument) in enumerate(bodies):
            ours, theirs = context.Pipe()
            arguments = (theirs, body, argument, number, len(bodies))
            process = context.Process(target=_member, args=arguments, daemon=True)
            process.start()
            assert process.pid is not None
            self.pids.append(process.pid)
            self._stack.callback(process.join)
            self._stack.callback(process.terminate)
            self._stack.callback(ours.close)
            theirs.close()
            self._pipes.append(ours)
        for pipe in self._pipes:
            _answer(pipe)

    def _ask(self, *command: Any) -> Any:
        self._pipes[0].send(command)
        return _answer(self._pipes[0])

    def _cpu_s(self) -> float:
        return sum(map(_cpu_s, self.pids))

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._pipes.clear()


class ClientMembers(Members):
    """Clients of ``vsyncd``."""

    def __init__(self, transport: str, *, encrypted: bool = False, nodes: int = 3) -> None:
        super().__init__()
        self._cluster = LocalCluster(nodes, settings={"transport": transport}, key=encrypted)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            cluster = stack.enter_context(self._cluster)
            self.pids = [node.pid for node in cluster.nodes]
            self._stack = stack
            self._start([(_as_client, node.url) for node in cluster.nodes])
            self._stack = stack.pop_all()
        return self


class EmbeddedMembers(Members):
    """Programs with a node in them."""

    def __init__(self, options: TransportConfig, nodes: int = 3) -> None:
        super().__init__()
        self._options = options
        ports = free_ports(nodes)
        self._peers = tuple(Peer(n, f"n{n}", (f"127.0.0.1:{port}",)) for n, port in enumerate(ports, 1))

    def __enter__(self) -> Self:
        configs = [ClusterConfig("bench", peer.node, self._peers) for peer in self._peers]
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._start([(_as_node, (config, self._options)) for config in configs])
            self._stack = stack.pop_all()
        return self


# -- in the processes


@contextlib.contextmanager
def _as_client(url: str) -> Iterator[client.Group]:
    with client.connect(url, "bench") as session:
        yield session.join(GROUP)


@contextlib.contextmanager
def _as_node(known: tuple[ClusterConfig, TransportConfig]) -> Iterator[client.Group]:
    config, options = known
    with Node(config=config, transport=options, services=[]) as node:
        for view in node.views():
            if len(view.members) == len(config.peers) and not view.transitional:
                break
        yield node.join(GROUP)


def _member(pipe: Connection, body: Any, argument: Any, number: int, count: int) -> None:
    """The body of a process: until the pipe is closed."""
    try:
        with body(argument) as group:
            while group.view is None or len(group.view.members) < count:
                next(group)
            if number:
                threading.Thread(target=_receive, args=(group,), daemon=True).start()
            pipe.send(None)
            while True:
                what, *how = pipe.recv()
                pipe.send({"latency": _latency, "throughput": _throughput}[what](group, *how))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as e:  # noqa: BLE001 - told to the parent
        with contextlib.suppress(OSError):
            pipe.send(VsyncError(repr(e)))


def _receive(group: client.Group) -> None:
    """What a user's program does: look at each message."""
    count = 0
    with contextlib.suppress(NotConnected):
        for event in group:
            if isinstance(event, Message) and event.sender and event.seq:
                count += len(event.data)


def _latency(group: client.Group, size: int, count: int, order: Any) -> list[int]:
    times = []
    data = bytes(size)
    for _ in range(count):
        began = boot_us()
        group.send(data, order=order)
        while not isinstance(next(group), Message):
            pass
        times.append(boot_us() - began)
    return times


def _throughput(group: client.Group, size: int, seconds: float, order: Any) -> tuple[int, float]:
    """A number of messages is kept under way; those of the time after the start are counted."""
    data, window = bytes(size), WINDOWS.get(size, max(16, 1_000_000 // size))
    began = boot_us()
    counted_from, until = began + int(START_S * 1e6), began + int((START_S + seconds) * 1e6)
    under_way = count = first = now = 0
    while now < until or not count:
        with contextlib.suppress(Backpressure):  # what comes back makes room
            while under_way < window:
                group.send(data, order=order)
                under_way += 1
        came = sum(isinstance(next(group), Message) for _ in range(max(1, window // 8)))
        under_way -= came
        now = boot_us()
        if first:
            count += came
        elif now >= counted_from:
            first = now
    while under_way:
        under_way -= isinstance(next(group), Message)
    return count, (now - first) / 1e6


def _answer(pipe: Connection) -> Any:
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise VsyncError(f"a member failed: {answer}")
    return answer


def _cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
