"""What must hold of one name after every event (locks.md, end of §1.18). For tests: everything is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlm.counts import UNITS
from dlm.lock import State
from dlm.modes import COMPATIBLE, NONE, NOQUEUE

if TYPE_CHECKING:
    from dlm.resource import Resource

__all__ = ["check"]


def check(resource: Resource) -> None:
    """Raises ``AssertionError``, with a text."""
    holders = [lock for lock in resource.locks.values() if lock.state is not State.WAITING]
    for i, one in enumerate(holders):
        for other in holders[:i]:
            assert COMPATIBLE[one.mode][other.mode], f"{one.key} and {other.key} hold incompatible modes"
    assert resource.held == sum(UNITS[lock.mode] for lock in holders), "held modes are miscounted"
    assert resource._next() is None, "somebody queued could be granted"
    assert all(lock.mode == NONE for lock in resource.waiting), "a waiter holds something"
    queued = [lock.key for lock in (*resource.converting, *resource.waiting)]
    assert len(set(queued)) == len(queued), "a lock is queued twice"
    states = {key for key, lock in resource.locks.items() if lock.state is not State.GRANTED}
    assert set(queued) == states, "queues and states differ"
    counted: dict[int, int] = {}
    for lock in resource.locks.values():
        counted[lock.key[0]] = counted.get(lock.key[0], 0) + 1
    assert counted == dict(resource.homes), "locks per node are miscounted"
    listening = {key for key, lock in resource.locks.items() if lock.notify}
    assert listening == set(resource.listeners), "listeners are miscounted"
    tried = sum(lock.flags & NOQUEUE for lock in (*resource.converting, *resource.waiting))
    assert resource.tries == tried, "tries are miscounted"
