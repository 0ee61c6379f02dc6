"""A number in a file, guarded by fencing tokens: the kind of resource that locks are for.

The resource itself keeps its promises – each call is atomic and survives the caller – but it does not exclude
anybody between a read and a write: that is the lock's business. What it does is to remember the largest fence
it has seen and to refuse smaller ones (API-R6). Reading for a write counts as having been seen: otherwise an
old holder could still write between the new one's read and its write.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["FencedCounter", "Refused"]

_WIDTH = 48  #: one fixed record, written with one call


class Refused(Exception):
    """The fence is too old; ``seen`` is the largest that the resource has seen."""

    def __init__(self, seen: int) -> None:
        super().__init__(f"the resource has seen fence {seen}")
        self.seen = seen


class FencedCounter:
    """The counter in the file ``path``; a missing file counts as 0. Safe among processes and threads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def value(self) -> int:
        """What it stands at; for the judge."""
        with self._record() as (_, value, _):
            return value

    def begin(self, fence: int) -> int:
        """Read in order to write: smaller fences are refused from now on. Raises ``Refused``."""
        with self._record() as (fd, value, seen):
            _require(fence, seen)
            _store(fd, value, fence)
            return value

    def look(self, fence: int) -> int:
        """Read only. Raises ``Refused`` if somebody newer has begun to write."""
        with self._record() as (_, value, seen):
            _require(fence, seen)
            return value

    def write(self, value: int, fence: int) -> None:
        """Set it. Raises ``Refused``."""
        with self._record() as (fd, _, seen):
            _require(fence, seen)
            _store(fd, value, fence)

    @contextlib.contextmanager
    def _record(self) -> Iterator[tuple[int, int, int]]:
        """Descriptor, value and fence, while nobody else touches the file."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            words = os.pread(fd, _WIDTH, 0).split()
            value, seen = (int(words[0]), int(words[1])) if words else (0, 0)
            yield fd, value, seen
        finally:
            os.close(fd)  # which unlocks it


def _require(fence: int, seen: int) -> None:
    if fence < seen:
        raise Refused(seen)


def _store(fd: int, value: int, fence: int) -> None:
    os.pwrite(fd, f"{value} {fence}\n".ljust(_WIDTH).encode(), 0)
