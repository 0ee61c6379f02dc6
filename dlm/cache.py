"""Locks that a client keeps after their release, for the case that it wants them again: which, how long, with what.

The daemon goes on holding such a lock for the session, and takes it for cached (``dlm.tries``). Here each is an
*entry*: in use by one handle (``user``, a number), idle, or gone. An idle one is taken again without a word to the
daemon, if the lease of its generation has not run out, with the next number of its block of fences: each use has
its own, the block was reserved at the grant for this lock alone, and the next holder's numbers are above it (K14).
When the block is used up the lock is asked for anew, with a block of twice the size; after one of which not a
quarter was used, with half of it.

When the lock is in somebody's way, an idle entry is given up at once; one in use at its release, and the daemon is
told that it is in use. A key has the owner in it (the thread), as the search for deadlocks goes by owners.

Pure: the time is an argument, in µs. Not thread-safe: ``dlm.caching`` guards it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dlm.modes import EX, MAX_FENCES, PR, PW

__all__ = ["FIRST_FENCES", "LIMIT", "MODES", "PATIENCE_US", "Cache", "Entry", "Key"]

Key = tuple[str, bytes, int, int]  #: lockspace, name, mode, owner
MODES = (PR, PW, EX)  #: under the others somebody else may write, so a copy of the value block would grow old
LIMIT = 1000  #: idle locks
PATIENCE_US = 10_000_000  #: an idle lock is kept for so long
FIRST_FENCES = 16  #: numbers that the first grant brings

IDLE, GONE = 0, -1  #: instead of a user
_KNOWN = 4096  #: keys whose sizes are remembered


class Entry:
    """One lock of the session, in use or idle."""

    __slots__ = (
        "called", "end", "fence", "fences", "generation", "holder", "key", "serial", "since", "user", "value",
        "value_valid",
    )  # fmt: skip

    def __init__(self, key: Key, serial: int, user: int, fences: int) -> None:
        self.key = key
        self.serial = serial  #: the number of the lock in the session
        self.user = user
        self.fences = fences  #: how many numbers to ask for
        self.called = False  #: it is in somebody's way: given up as soon as nobody uses it
        self.fence = 0  #: the number of the use in progress, or of the last one
        self.end = 0  #: of its block of numbers
        self.generation = 0  #: of the lease that backs it
        self.since = 0  #: when it became idle
        self.holder: Callable[[], Any] | None = None  #: whose use it is, for who guards the cache
        self.value, self.value_valid = b"", True  #: the value block: nobody else can change it meanwhile


class Cache:
    """The entries of one session. Methods that make idle locks go return their serials: whoever calls releases
    them, and nobody else will.
    """

    def __init__(self, limit: int = LIMIT, patience: int = PATIENCE_US) -> None:
        self.limit = limit
        self.patience = patience
        self.entries: dict[int, Entry] = {}  #: those not gone, by serial
        self.idle: dict[Key, Entry] = {}  #: longest idle first
        self.closed = False
        self.hits = 0  #: how often a lock was taken again
        self._by_name: dict[tuple[str, bytes], dict[int, Entry]] = {}
        self._sizes: dict[Key, int] = {}  #: how many numbers the next grant should bring

    # -- one use after the other

    def ask(self, key: Key, serial: int, user: int) -> Entry:
        """A new lock is about to be asked for, with ``entry.fences`` numbers. It is in use from here on."""
        entry = self.entries[serial] = Entry(key, serial, user, self._sizes.get(key, FIRST_FENCES))
        self._by_name.setdefault(key[:2], {})[serial] = entry
        return entry

    def granted(self, entry: Entry, fence: int, count: int, generation: int) -> None:
        """It was granted, with the numbers ``fence .. fence+count-1``."""
        entry.fence, entry.end, entry.generation = fence, fence + count, generation

    def take(self, entry: Entry, user: int, lease: tuple[int, int], now: int) -> bool:
        """Use an idle lock, if its lease (generation, deadline) is good and there is a number left for it. If not,
        it stays, for ``make_room``.
        """
        if entry.user != IDLE or entry.generation != lease[0] or now >= lease[1]:
            return False
        if entry.fence + 1 >= entry.end:
            self._resize(entry.key, min(2 * entry.fences, MAX_FENCES))
            return False
        del self.idle[entry.key]
        entry.user = user
        entry.fence += 1
        self.hits += 1
        return True

    def put(self, entry: Entry, user: int, now: int) -> bool:
        """A use is over. Whether the lock is idle now; if not, it is gone, and to be released. There may be more
        than ``limit`` now: see ``spare``.
        """
        if entry.user != user:
            return False
        if entry.called or self.closed or entry.key in self.idle:
            self.drop(entry, user)
            return False
        entry.user, entry.since = IDLE, now
        self.idle[entry.key] = entry
        return True

    def spare(self) -> list[int]:
        """Those that have been idle longest go, if there are too many."""
        over = len(self.idle) - self.limit
        return self._give_up(list(self.idle.values())[:over]) if over > 0 else []

    def drop(self, entry: Entry, user: int) -> bool:
        """The lock becomes one like any other, if that use goes on: it is not kept after its release."""
        if entry.user != user or user in (IDLE, GONE):
            return False
        self._forget(entry)
        return True

    # -- what others want

    def call(self, serial: int) -> str:
        """The lock is in somebody's way: "idle" if it was, and has to be released now; "used" if the daemon is to
        be told that; else empty.
        """
        entry = self.entries.get(serial)
        if entry is None or entry.called:
            return ""
        entry.called = True
        if entry.user != IDLE:
            return "used"
        self._give_up([entry])
        return "idle"

    def lost(self, serial: int) -> None:
        """The lock has ended. If it was idle nobody need be told."""
        entry = self.entries.get(serial)
        if entry is not None:
            self._forget(entry)

    def make_room(self, space: str, name: bytes) -> list[int]:
        """The session asks for this name in another way: its own idle locks must not be in the way of that."""
        named = self._by_name.get((space, name))
        return self._give_up([entry for entry in named.values() if entry.user == IDLE]) if named else []

    # -- time, and ends

    def expire(self, now: int) -> list[int]:
        """Those that have been idle for too long go."""
        due: list[Entry] = []
        for entry in self.idle.values():
            if now - entry.since < self.patience:
                break  # longest idle first
            due.append(entry)
        return self._give_up(due)

    def clear(self, space: str | None = None) -> list[int]:
        """All that are idle go, or those of one lockspace."""
        return self._give_up([entry for entry in self.idle.values() if space in (None, entry.key[0])])

    def leave(self, space: str) -> list[int]:
        """The same, and those of the lockspace that are in use are not kept after their release."""
        idle = self.clear(space)
        self._give_up([entry for entry in self.entries.values() if entry.key[0] == space])
        return idle

    def close(self) -> None:
        """The session ends, and all its locks with it."""
        self.closed = True
        for entry in list(self.entries.values()):
            self._forget(entry)

    def _give_up(self, entries: list[Entry]) -> list[int]:
        for entry in entries:
            self._forget(entry)
        return [entry.serial for entry in entries]

    def _forget(self, entry: Entry) -> None:
        if entry.user == IDLE:
            del self.idle[entry.key]
        entry.user = GONE
        if entry.fences > FIRST_FENCES and entry.end - entry.fence > entry.fences * 3 // 4:
            self._resize(entry.key, entry.fences // 2)  # numbers are not spent for nothing
        del self.entries[entry.serial]
        named = self._by_name[entry.key[:2]]
        del named[entry.serial]
        if not named:
            del self._by_name[entry.key[:2]]

    def _resize(self, key: Key, fences: int) -> None:
        """So many numbers next time."""
        self._sizes.pop(key, None)
        self._sizes[key] = fences
        if len(self._sizes) > _KNOWN:
            del self._sizes[next(iter(self._sizes))]
