"""Who is told whom it blocks, of the locks of one name (locks.md §1.10).

Holders hear of it if they want to (NOTIFY): when a request is queued behind them, and after grants and releases if
they are still in the way. A holder is told once of each higher mode; ``Lock.high`` remembers which that was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlm.lock import Effect, Key, Lock, State, What
from dlm.modes import COMPATIBLE, CW, EX, NOQUEUEBAST, PR, is_middle

if TYPE_CHECKING:
    from dlm.resource import Resource

__all__ = ["NOBODY", "listen", "queued", "refused", "remaining"]

NOBODY: dict[Key, Lock] = {}  #: the listeners of a name that has none; never changed
_HOLDERS, _WITH_CONVERTERS = (State.GRANTED,), (State.GRANTED, State.CONVERTING)


def listen(resource: Resource, lock: Lock, notify: bool) -> None:
    """Whether the lock wants to be told from now on; a conversion may change it (U8)."""
    lock.notify = notify
    if notify:
        resource.listeners = resource.listeners or {}
        resource.listeners[lock.key] = lock
    elif resource.listeners:
        resource.listeners.pop(lock.key, None)


def queued(resource: Resource, lock: Lock, out: list[Effect], converters: bool = False) -> None:
    """A request has been blocked: tell the holders in its way (B1), or converting ones too (B2).

    A holder is told once of each higher mode (B4); of CW in PR's way, and the reverse, always, unless it has
    heard of EX (B5).
    """
    asked = lock.asked
    states = _WITH_CONVERTERS if converters else _HOLDERS
    due = [other for other in resource.listeners.values() if other.state in states and other is not lock]
    for other in sorted(due, key=lambda one: (one.state, one.key)):
        if not COMPATIBLE[other.mode][asked] and other.high < (EX if is_middle(other.mode, asked) else asked):
            _tell(other, asked, asked, out)


def refused(resource: Resource, lock: Lock, out: list[Effect]) -> None:
    """A request was refused; with NOQUEUEBAST those in its way hear of it all the same (B2)."""
    if lock.flags & NOQUEUEBAST:
        queued(resource, lock, out, converters=True)


def remaining(resource: Resource, out: list[Effect]) -> None:
    """After grants and releases: tell the holders of the highest mode that is still asked for (B3, B5)."""
    if not resource.listeners or not resource.queued:
        return
    asked = {lock.asked for queue in (resource.converting, resource.waiting) for lock in queue}
    high = max(asked)
    for key in sorted(resource.listeners):
        lock = resource.listeners[key]
        if lock.state is not State.GRANTED:
            continue
        if lock.mode == PR and CW in asked:
            if lock.high < EX:
                _tell(lock, CW if high == PR else high, high, out)
        elif lock.high < high and not COMPATIBLE[lock.mode][high]:
            _tell(lock, high, high, out)


def _tell(lock: Lock, mode: int, high: int, out: list[Effect]) -> None:
    lock.high = high
    out.append(Effect(What.BLOCKING, lock.key, mode=mode))
