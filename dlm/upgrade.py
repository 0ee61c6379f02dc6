"""Conversion deadlocks within one name, judged by position in the queue (locks.md D1, pitfalls G30).

Two converters block each other for ever when the one in front asks for a mode that conflicts with the mode which
the one behind holds: the first cannot be granted, the second is not first in the queue (Q8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dlm.lock import Lock
from dlm.modes import COMPATIBLE, CONVDEADLK, DEMOTED, HEADQUE, NL, NODLCKWT

__all__ = ["demote", "rival"]


def rival(lock: Lock, converting: Iterable[Lock]) -> Lock | None:
    """A converter that would be in a deadlock with this conversion if that were queued.

    It may be in front of it or, with HEADQUE, behind it (G30).
    """
    if lock.flags & NODLCKWT:
        return None
    if lock.flags & HEADQUE:
        return next((behind for behind in converting if not COMPATIBLE[behind.mode][lock.asked]), None)
    return next((ahead for ahead in converting if not COMPATIBLE[lock.mode][ahead.asked]), None)


def demote(lock: Lock, converting: Iterable[Lock], told: Callable[[Lock, int], None]) -> bool:
    """Resolve it: who would be behind holds NL meanwhile, if it has agreed to (CONVDEADLK).

    ``told`` is told of each, with the mode it had.
    """
    behind = [lock]
    if lock.flags & HEADQUE:
        behind = [other for other in converting if not COMPATIBLE[other.mode][lock.asked]]
    if not all(other.flags & CONVDEADLK for other in behind):
        return False
    for other in behind:
        was, other.mode = other.mode, NL
        other.result |= DEMOTED
        told(other, was)
    return True
