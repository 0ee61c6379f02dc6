"""Processes that lock and unlock all the time, and remember how long each time took: to see who pauses when.

A locker has two names: one that nobody else uses, so that it is private to its node, and one on which sessions at
other nodes have an NL lock, so that it stays shared and every operation is an ordered message. It is a process of
its own, as a busy thread beside it would hold it up.
"""

from __future__ import annotations

import itertools
import json
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import dlm
from vsync.clock import boot_us
from vsync.testcluster import LocalNode, die_with_parent

__all__ = ["KINDS", "Locker", "Pauses", "private_name", "shared_name"]

KINDS = ("private", "shared")
PACE_S = 0.001
MEMORY_S = 120


def private_name(node: str) -> str:
    """That of a locker at this node alone."""
    return f"bench/private/{node}"


def shared_name(node: str) -> str:
    """Used by the locker at this node, and known to others."""
    return f"bench/shared/{node}"


@dataclass(frozen=True, slots=True)
class Pauses:
    """The longest lock and unlock of each kind in some time, in µs, how many there were, and what 99 % of them
    took at most.
    """

    longest: dict[str, int]
    count: dict[str, int]
    p99: dict[str, int]


class Locker:
    """One of these processes, at one node. ``with`` starts and ends it."""

    def __init__(self, node: LocalNode) -> None:
        self.node = node
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dlm.bench.lockers", node.url, node.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent(), process_group=0,
        )  # fmt: skip
        self._line()  # it is at work

    def pauses(self, start: int, end: int) -> Pauses:
        """Of all that was under way between two times (boot-time µs, not more than 120 s ago)."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{start} {end}\n")
        self._process.stdin.flush()
        return Pauses(*json.loads(self._line()))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the locker at node {self.node.name} has ended with {self._process.wait()}")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Log:
    """What was done, as far as it is remembered: (start, end) of each operation."""

    def __init__(self) -> None:
        self._done: list[tuple[int, int]] = []

    def add(self, start: int, end: int) -> None:
        self._done.append((start, end))
        if len(self._done) > 1000 and self._done[500][1] < end - MEMORY_S * 1_000_000:
            del self._done[:500]

    def between(self, start: int, end: int) -> Iterator[int]:
        return (until - since for since, until in self._done if until >= start and since <= end)


def _work(url: str, node: str) -> None:
    """Lock and unlock in turn until the end; answer questions on standard input."""
    logs = {kind: _Log() for kind in KINDS}
    names = {"private": private_name(node), "shared": shared_name(node)}
    with dlm.connect(url, name="locker") as locks:
        for name in names.values():
            locks.acquire(name).release(wait=True)
        print("at work", flush=True)
        for kind in itertools.cycle(KINDS):
            start = boot_us()
            locks.acquire(names[kind]).release(wait=True)
            logs[kind].add(start, boot_us())
            if select.select([sys.stdin], [], [], PACE_S)[0]:
                words = sys.stdin.readline().split()
                if not words:
                    return
                print(json.dumps(_answer(logs, int(words[0]), int(words[1]))), flush=True)


def _answer(logs: dict[str, _Log], start: int, end: int) -> list[dict[str, int]]:
    times = {kind: sorted(log.between(start, end)) for kind, log in logs.items()}
    return [
        {kind: max(each, default=0) for kind, each in times.items()},
        {kind: len(each) for kind, each in times.items()},
        {kind: each[len(each) * 99 // 100] if each else 0 for kind, each in times.items()},
    ]


def main(argv: Sequence[str]) -> None:
    """What ``Locker`` starts; not for people."""
    url, node = argv
    _work(url, node)


if __name__ == "__main__":
    main(sys.argv[1:])
