"""Locks that their clients may keep idle, and requests that are only tried (NOQUEUE) and meet nothing but those.

A client that caches a lock goes on holding it after its release, until it is told that the lock blocks somebody
(``dlm.cache``). So a lock with CACHE is *cached* from its grant on: nobody but its client knows whether it is in
use. When it is in the way its client is told as any holder is, and either ends it or says that it is IN_USE, which
it is then for good: a lock like any other.

Until that word comes,

* a try that would be granted if the cached locks were not there does not fail: it waits in its queue. It is refused
  as soon as it would have to wait for anything else;
* the search for deadlocks takes it that nobody waits for the owner of a cached lock: it may have nothing to end.

Part of ``Resource``, and like it a function of the operations alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlm.counts import BARS, UNITS
from dlm.lock import Effect, Key, Lock, State
from dlm.modes import HEADQUE, NOQUEUE

if TYPE_CHECKING:
    from dlm.resource import Resource

__all__ = ["hopeful", "in_use", "judge"]


def hopeful(resource: Resource, lock: Lock) -> bool:
    """Whether a request, queued or new, stands behind cached locks only: if they all went, it would be granted when
    those ahead of it are.
    """
    cached = [other for other in resource.locks.values() if other.cached and other is not lock]
    if not cached:
        return False
    held = resource.held - sum(UNITS[other.mode] for other in cached)
    for ahead in _ahead(resource, lock):
        if ahead.batch or not _fits(held, ahead):
            return False
        held += UNITS[ahead.asked] - UNITS[ahead.mode]
    return _fits(held, lock)


def judge(resource: Resource, out: list[Effect]) -> bool:
    """Refuse the first try that is not hopeful, if there is one. ``dlm.multi`` judges parts of multi-locks."""
    for lock in (*resource.converting, *resource.waiting):
        if lock.flags & NOQUEUE and not lock.batch and not hopeful(resource, lock):
            resource.deny(lock, "again", out)
            return True
    return False


def in_use(resource: Resource, key: Key, out: list[Effect]) -> None:
    """The client of a lock says that it is in use: from now on others wait for it, or do not."""
    lock = resource.locks.get(key)
    if lock is None or not lock.cached:
        return
    lock.cached = False
    if resource.waits is not None and resource.queued:
        resource.waits.stays(lock)
    resource.scan(out)


def _ahead(resource: Resource, lock: Lock) -> Sequence[Lock]:
    """Those before whom it will not be served."""
    if lock.state is State.GRANTED:
        return resource.converting  # it is about to be converted
    line = [*resource.converting, *resource.waiting]
    if lock.key in resource.locks:
        return line[: line.index(lock)]
    return resource.converting if lock.flags & HEADQUE else line


def _fits(held: int, lock: Lock) -> bool:
    """Whether no other lock holds what conflicts with it, in these counts."""
    return not (held - UNITS[lock.mode]) & BARS[lock.asked]
