"""Callers: processes that do one pair of operations after the other, each on names of its own, and count."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import dlm
from dlm.bench.pairs import Pair, made, sent_by
from vsync.bench.rows import Sample, sample
from vsync.bench.workers import Handler, Workers, cpu_s
from vsync.testcluster import LocalCluster

__all__ = ["ALONE", "Busy", "Callers", "Others", "daemons", "timed"]

Description = tuple[str, ...]


class Others(NamedTuple):
    """What belongs to a measurement beside the callers: processes, and the ordered messages of nodes so far."""

    pids: Sequence[int]
    messages: Callable[[], int]


ALONE = Others((), lambda: 0)
KEPT = 20_000  #: times of single pairs that a caller tells


def daemons(cluster: LocalCluster, clients: Sequence[dlm.Client]) -> Others:
    """Those of a cluster; ``clients``: one of each."""

    def messages() -> int:
        return sum(sent_by(client.session.channel.call("node", "status", {})) for client in clients)

    return Others([node.pid for node in cluster.nodes], messages)


class Callers(Workers):
    """One process for each description (``dlm.bench.pairs.made``)."""

    def __init__(self, descriptions: Sequence[Description]) -> None:
        super().__init__([(_caller, (description,)) for description in descriptions])

    def measure(
        self, way: str, seconds: float, which: Sequence[int] | None = None, others: Others = ALONE
    ) -> Sample:
        """Pairs per second of all of them, or of ``which``. ``others``: what else belongs to it."""
        self.each(way, 0.0, which=which)  # makes what the first pair needs
        pids = [*self.pids, *others.pids]
        cpu, messages = sum(map(cpu_s, pids)), others.messages() + self._messages()
        answers: list[tuple[int, float, list[float]]] = self.each(way, seconds, which=which)
        spent, sent = sum(map(cpu_s, pids)) - cpu, others.messages() + self._messages() - messages
        count = sum(pairs for pairs, _, _ in answers)
        rate = sum(pairs / took for pairs, took, _ in answers)
        times = [each for _, _, kept in answers for each in kept]
        return sample(times, value=rate, cpu_us=spent / count * 1e6, messages=sent / count)

    def do(self, way: str, which: int) -> None:
        """Have one caller do something once; "busy" and "calm" begin and end a thread of it that computes."""
        self.ask(which, way, 0.0)

    def _messages(self) -> int:
        return sum(self.each("messages"))


def timed(pair: Pair, seconds: float) -> tuple[int, float, list[float]]:
    """Do it for so long, once at least: how often, how long it took, and µs of single ones (of the first, if there
    are many).
    """
    clock, times = time.perf_counter, []
    began = last = clock()
    until = began + seconds
    count = 0
    while not count or last < until:
        pair()
        now = clock()
        if count < KEPT:
            times.append((now - last) * 1e6)
        count += 1
        last = now
    return count, last - began, times


@contextlib.contextmanager
def _caller(description: Description) -> Iterator[Handler]:
    """The body of a process."""
    with made(description) as caller, contextlib.closing(Busy()) as busy:
        others = {"messages": caller.messages, "busy": busy.start, "calm": busy.close}

        def handle(way: str, seconds: float = 0.0) -> object:
            return others[way]() if way in others else timed(caller.pair(way), seconds)

        yield handle


class Busy:
    """A thread that computes, between ``start`` and ``close``."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._over = False

    def start(self) -> None:
        """Begin, unless it has."""
        if self._thread is None:
            self._over = False
            self._thread = threading.Thread(target=self._compute, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End it, if there is one."""
        if self._thread is not None:
            self._over = True
            self._thread.join()
            self._thread = None

    def _compute(self) -> None:
        number = 1
        while not self._over:
            number = number * 5 % 1_000_003
