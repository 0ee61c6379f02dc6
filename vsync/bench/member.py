"""Programs that measure a ring as its users do: members of one group, a process each, the first of them sends.

Either clients of three ``vsyncd``, or programs with a node each in them; both iterate over the group and look at
each message, who sent it and its position.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from vsync import client
from vsync.bench.embedded import configs, joined
from vsync.bench.rows import Sample, sample
from vsync.bench.workers import Handler, Job, Workers, cpu_s
from vsync.clock import boot_us
from vsync.errors import Backpressure, NotConnected
from vsync.events import Message
from vsync.testcluster import LocalCluster, free_ports
from vsync.transport.options import TransportConfig
from vsync.types import ClusterConfig

__all__ = ["ClientMembers", "EmbeddedMembers", "Members"]

GROUP = "bench"
WINDOWS = {64: 1024, 1000: 512, 8000: 128}  #: messages under way, by their size
START_S = 0.3


class Members:
    """See the module. ``with`` starts and ends them, and the daemons that they are clients of, if any."""

    def __init__(self, jobs: Sequence[Job], daemons: LocalCluster | None = None) -> None:
        self._workers = Workers(jobs)
        self._daemons = daemons
        self._stack = contextlib.ExitStack()

    def latency(self, size: int, count: int, order: str = "agreed") -> Sample:
        """From submission to own delivery, one message at a time."""
        return sample(self._workers.ask(0, "latency", size, count, order))

    def alone(self, size: int, silence_s: float) -> float:
        """The same for one message, after so much silence, in µs."""
        time.sleep(silence_s)
        return float(self._workers.ask(0, "latency", size, 1, "agreed")[0])

    def throughput(self, size: int, seconds: float, order: str = "agreed") -> Sample:
        """Messages per second, delivered to all members."""
        before = self._cpu_s()
        count, spent = self._workers.ask(0, "throughput", size, seconds, order)
        cpu_us = (self._cpu_s() - before) / count * 1e6
        return Sample(count / spent, cpu_us=cpu_us)

    def _cpu_s(self) -> float:
        daemons = self._daemons.nodes if self._daemons is not None else ()
        return self._workers.cpu_s() + sum(cpu_s(node.pid) for node in daemons)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self._daemons is not None:
                stack.enter_context(self._daemons)
            stack.enter_context(self._workers)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class ClientMembers(Members):
    """Clients of ``vsyncd``."""

    def __init__(self, transport: str, *, encrypted: bool = False, nodes: int = 3) -> None:
        cluster = LocalCluster(nodes, settings={"transport": transport}, key=encrypted)
        jobs = [(_as_client, (node.url, number, nodes)) for number, node in enumerate(cluster.nodes)]
        super().__init__(jobs, cluster)


class EmbeddedMembers(Members):
    """Programs with a node in them."""

    def __init__(self, options: TransportConfig, nodes: int = 3) -> None:
        super().__init__([(_as_node, (config, options)) for config in configs(free_ports(nodes))])


# -- in the processes


@contextlib.contextmanager
def _as_client(url: str, number: int, count: int) -> Iterator[Handler]:
    with client.connect(url, "bench") as session:
        yield _member(session.join(GROUP), number, count)


@contextlib.contextmanager
def _as_node(config: ClusterConfig, options: TransportConfig) -> Iterator[Handler]:
    with joined(config, options, []) as node:
        yield _member(node.join(GROUP), config.node - 1, len(config.peers))


def _member(group: client.Group, number: int, count: int) -> Handler:
    """Of ``count`` ones, when all are there. The first sends what it is asked for; the others receive."""
    while group.view is None or len(group.view.members) < count:
        next(group)
    if number:
        threading.Thread(target=_receive, args=(group,), daemon=True).start()
    tasks = {"latency": _latency, "throughput": _throughput}
    return lambda what, *how: tasks[what](group, *how)


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
