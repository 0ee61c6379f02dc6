"""What a bench measures: a cluster of three nodes that can be hurt by name, and somebody who watches its views."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

__all__ = ["Cabled", "NotSeen", "Subject", "Watch"]


class NotSeen(Exception):
    """A view that was waited for did not come."""


class Watch:
    """Who has seen which members since when. Filled by watching threads, asked by the bench."""

    def __init__(self, watchers: Iterable[str]) -> None:
        self._changed = threading.Condition()
        self._seen: dict[str, tuple[frozenset[str], int]] = {name: (frozenset(), 0) for name in watchers}

    def saw(self, watcher: str, members: Iterable[str], at: int) -> None:
        """``watcher`` was told of a view at boot-clock µs ``at``; who is not watched is ignored."""
        with self._changed:
            if watcher in self._seen:
                self._seen[watcher] = (frozenset(members), at)
                self._changed.notify_all()

    def until(self, members: Iterable[str], timeout_s: float) -> int:
        """Wait until the present view of every watcher is ``members``; when the last one was told (µs).

        Raises ``NotSeen``.
        """
        wanted, end = frozenset(members), time.monotonic() + timeout_s
        with self._changed:
            while any(seen != wanted for seen, _ in self._seen.values()):
                if not self._changed.wait(max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                    raise NotSeen(f"no view of {', '.join(sorted(wanted))} within {timeout_s:g} s: {self._seen}")
            return max(at for _, at in self._seen.values())


class Subject(Protocol):
    """A cluster under test."""

    @property
    def names(self) -> Sequence[str]: ...
    def watch(self, names: Iterable[str]) -> AbstractContextManager[Watch]:
        """Watch the views at these nodes, which run; returns when each has told its present one."""
        ...

    def kill(self, name: str) -> None:
        """SIGKILL."""

    def terminate(self, name: str) -> None:
        """SIGTERM: a graceful leave."""

    def stop(self, name: str) -> None:
        """SIGSTOP: from outside like a host that went silent."""

    def cont(self, name: str) -> None:
        """SIGCONT."""

    def restart(self, name: str) -> None:
        """Start a node that has ended."""

    def settle(self) -> None:
        """Wait until all nodes are in one view, and then until they are at rest."""


class Cabled(Subject, Protocol):
    """A cluster whose nodes have cables."""

    def cut(self, name: str) -> None:
        """A node's cable is pulled."""

    def mend(self, name: str) -> None:
        """It is back."""
