"""Callers: processes that do one pair of operations after the other, each on names of its own, and count."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import NamedTuple, Self

from dlm.bench.pairs import Pair, made
from vsync.bench.rows import Sample, sample
from vsync.errors import VsyncError

__all__ = ["ALONE", "Callers", "Others", "cpu_s", "timed"]

Description = tuple[str, ...]


class Others(NamedTuple):
    """What belongs to a measurement beside the callers: processes, and the ordered messages of nodes so far."""

    pids: Sequence[int]
    messages: Callable[[], int]


ALONE = Others((), lambda: 0)
KEPT = 20_000  #: times of single pairs that a caller tells


class Callers:
    """One process for each description (``dlm.bench.pairs.made``). ``with`` starts and ends them."""

    def __init__(self, descriptions: Sequence[Description]) -> None:
        self._descriptions = descriptions
        self._stack = contextlib.ExitStack()
        self._pipes: list[Connection] = []
        self.pids: list[int] = []

    def measure(
        self, way: str, seconds: float, which: Sequence[int] | None = None, others: Others = ALONE
    ) -> Sample:
        """Pairs per second of all of them, or of ``which``. ``others``: what else belongs to it."""
        working = [self._pipes[index] for index in (range(len(self._pipes)) if which is None else which)]
        for pipe in working:  # makes what the first pair needs
            pipe.send((way, 0.0))
        for pipe in working:
            _answer(pipe)
        pids = [*self.pids, *others.pids]
        cpu, messages = sum(map(cpu_s, pids)), others.messages() + self._messages()
        for pipe in working:
            pipe.send((way, seconds))
        answers = [_answer(pipe) for pipe in working]
        spent, sent = sum(map(cpu_s, pids)) - cpu, others.messages() + self._messages() - messages
        count = sum(pairs for pairs, _, _ in answers)
        rate = sum(pairs / took for pairs, took, _ in answers)
        times = [each for _, _, kept in answers for each in kept]
        return sample(times, value=rate, cpu_us=spent / count * 1e6, messages=sent / count)

    def do(self, way: str, which: int) -> None:
        """Have one caller do something once."""
        self._pipes[which].send((way, 0.0))
        _answer(self._pipes[which])

    def _messages(self) -> int:
        for pipe in self._pipes:
            pipe.send(("messages", 0.0))
        return sum(_answer(pipe)[0] for pipe in self._pipes)

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        with contextlib.ExitStack() as stack:
            for description in self._descriptions:
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, description), daemon=True)
                process.start()
                assert process.pid is not None
                self.pids.append(process.pid)
                stack.callback(process.join)
                stack.callback(process.terminate)
                stack.callback(ours.close)
                theirs.close()
                self._pipes.append(ours)
            for pipe in self._pipes:
                _answer(pipe)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def _work(pipe: Connection, description: Description) -> None:
    """The body of a process: until the pipe is closed."""
    try:
        with made(description) as caller:
            pipe.send((0, 0.0, []))
            while True:
                way, seconds = pipe.recv()
                if way == "messages":
                    pipe.send((caller.messages(), 0.0, []))
                else:
                    pipe.send(timed(caller.pair(way), seconds))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as e:  # noqa: BLE001 - told to the parent
        with contextlib.suppress(OSError):
            pipe.send(VsyncError(f"a caller failed: {e!r}"))


def _answer(pipe: Connection) -> tuple[int, float, list[float]]:
    try:
        answer = pipe.recv()
    except EOFError:
        raise VsyncError("a caller has ended") from None
    if isinstance(answer, Exception):
        raise answer
    found: tuple[int, float, list[float]] = answer
    return found
