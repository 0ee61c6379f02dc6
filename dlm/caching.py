"""The locks that a session keeps after their release: ``dlm.cache`` with a guard, handles, and a thread that looks
at the clock.

Called by the threads of the program, by the channel's reader when the daemon calls a lock back, and by a thread of
its own that gives back what has been idle for too long; it ends when there is nothing to look after. Under the
guard nothing waits, and nothing is sent.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from dlm.cache import MODES, Cache, Entry, Key
from dlm.errors import InvalidRequest
from dlm.held import Held
from dlm.info import Flag, Mode
from dlm.transaction import in_transaction

if TYPE_CHECKING:
    from typing import Any

    from dlm.session import Session

__all__ = ["Caching", "How"]

How = Literal[True, False, "private"]  #: whether a lock is kept; "private": if only its node uses the name

ROUNDS = 4  #: how often the thread looks while a lock may be idle
BATCH = 128  #: locks in one request
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Caching:
    """What one session keeps. Thread-safe."""

    def __init__(self, session: Session, private: bool) -> None:
        """``private``: names that only this node uses are kept without being asked for."""
        self.cache = Cache()
        self.private = private
        self._session = session
        # Reentrant: a handler of a signal may come in between, and close the client.
        self._guard = threading.RLock()
        self._users = itertools.count(1)
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()

    # -- taking and giving back

    def again(self, session: Session, name: str | bytes, mode: Mode) -> Held | None:
        """A handle for an idle lock of this thread in the session's lockspace, if there is one that is good."""
        cache = self.cache
        try:
            key = name.encode() if isinstance(name, str) else name
            entry = cache.idle.get((session.space, key, mode._value_, session.owner()))
        except (AttributeError, TypeError):
            return None  # not a name, or not a mode: who asks the node with it is told
        if entry is None or in_transaction() or session.foreign:
            return None
        user = next(self._users)
        try:
            with self._guard:
                if not cache.take(entry, user, session.channel.lease_deadline(), session.clock_us()):
                    return None
                return Held.again(session, entry, mode, user)
        except BaseException:  # an interrupt: nobody will release it
            self._abort(entry, user)
            raise

    def put(self, held: Held) -> bool:
        """The handle is released, and its lock is idle from now on. ``False`` if that cannot be: then it is for the
        caller to release both.
        """
        session, cache, entry, user = self._session, self.cache, held.entry, held.user
        if session.foreign:
            return False
        now = session.clock_us()
        generation, deadline = session.channel.lease_deadline()
        if entry is None or generation != entry.generation or now >= deadline or not held.may_be_kept():
            self.drop(held)
            return False
        try:
            with self._guard:
                if held.released or entry.user != user:
                    return False
                held.end_use()  # first, as nobody may have it when somebody else can
                if not cache.put(entry, user, now):
                    held.end_use(False)
                    return False
                entry.holder = None
        except BaseException:
            self._abort(entry, user)
            raise
        if len(cache.idle) > cache.limit:
            with self._guard:
                spare = cache.spare()
            self._release(spare)
        if held.observed:
            with session.changed:
                session.changed.notify_all()
        return True

    def ask(self, held: Held, how: How) -> Mapping[str, Any]:
        """A lock is about to be asked for: what to say besides. Own idle locks of that name go first."""
        self.make_room(held.space, (held.name,))
        if not how:
            return NOTHING
        user = next(self._users)
        with self._guard:
            entry = self.cache.ask(self._key(held), held.serial, user)
        held.entry, held.user = entry, user
        blocking = {} if how == "private" else {"blocking": True}
        return {"cache": how, "fences": entry.fences, **blocking}

    def granted(self, held: Held, how: How) -> None:
        """It was granted, and is kept after its release; else ``drop``."""
        entry = held.entry
        if entry is None:
            return
        if how == "private" and held.fences == 1:
            self.drop(held)  # others use the name
            return
        with self._guard:
            self.cache.granted(entry, held.fence, held.fences, held.generation)
            entry.value, entry.value_valid = held.value, held.value_valid
        if self._thread is None and not self._session.closed:
            self._watch()

    def drop(self, held: Held) -> None:
        """The lock of this handle is not kept after its release."""
        entry, held.entry = held.entry, None
        if entry is not None and not self._session.foreign:
            with self._guard:
                if self.cache.drop(entry, held.user):
                    self._session.register(held)

    def make_room(self, space: str, names: Iterable[bytes]) -> None:
        """The session asks for these names in another way."""
        if self.cache.entries:
            with self._guard:
                room = [serial for name in names for serial in self.cache.make_room(space, name)]
            self._release(room)

    def hide(self, space: str, names: Iterable[bytes] | None = None) -> None:
        """Somebody looks at these names, or at all of a lockspace: what is kept without having been asked for is
        not to be seen.
        """
        if self.private and self.cache.idle:
            if names is None:
                self.give_back(space)
            else:
                self.make_room(space, names)

    def give_back(self, space: str | None = None) -> None:
        """All that are idle, or those of one lockspace."""
        with self._guard:
            room = self.cache.clear(space)
        self._release(room)

    def leave(self, space: str) -> None:
        """Nothing of this lockspace is kept, what is in use neither."""
        with self._guard:
            self._known(entry for entry in self.cache.entries.values() if entry.key[0] == space)
            idle = self.cache.leave(space)
        self._release(idle)

    def close(self) -> None:
        """The session is about to end: nothing is kept any more, and what is idle is given back."""
        with self._guard:
            idle = self.cache.clear()
            self._known(self.cache.entries.values())
            self.cache.close()
        self._wake.set()
        self._release(idle)

    def ended(self) -> None:
        """The session has ended."""
        with self._guard:
            self._known(self.cache.entries.values())
            self.cache.close()
        self._wake.set()

    def how(self, cache: bool | None, mode: Mode, flags: Flag, xid: int) -> How:
        """How such a lock is kept. Asked for with ``cache=True`` and for a transaction it is an ordinary one, as
        nobody else will come for it. Raises ``InvalidRequest`` for what is a mistake.
        """
        if cache is None:
            return "private" if self.private and not xid and not flags and mode in MODES else False
        if not cache:
            return False
        if mode not in MODES:
            raise InvalidRequest(f"only locks in PR, PW and EX are cached, not in {mode.name}")
        if flags:
            raise InvalidRequest(f"a cached lock takes no flags, and here is {flags!r}")
        return not xid

    # -- pushes, on the reader thread

    def called(self, serial: int) -> None:
        """The lock is in somebody's way."""
        with self._guard:
            self._known_by(serial)
            state = self.cache.call(serial)
        if state:
            self._session.post("unlock" if state == "idle" else "in_use", {"h": serial})

    def lost(self, serial: int) -> None:
        """The lock is lost."""
        with self._guard:
            self._known_by(serial)
            self.cache.lost(serial)

    # -- the clock

    def _watch(self) -> None:
        thread = threading.Thread(target=self._run, name="dlm-cache", daemon=True)
        with self._guard:
            if self._thread is not None or self.cache.closed:
                return
            self._thread = thread
        thread.start()

    def _run(self) -> None:
        while True:
            self._wake.wait(self.cache.patience / 1e6 / ROUNDS)
            with self._guard:
                due = self.cache.expire(self._session.clock_us())
                if not self.cache.entries or self.cache.closed:
                    self._thread = None
            self._release(due)
            if self._thread is not threading.current_thread():
                return

    # -- the parts

    def _key(self, held: Held) -> Key:
        return held.space, held.name, int(held.mode), self._session.owner()

    def _known_by(self, serial: int) -> None:
        entry = self.cache.entries.get(serial)
        if entry is not None:
            self._known((entry,))

    def _known(self, entries: Iterable[Entry]) -> None:
        """Those who use them are to be found by the session: kept locks are taken without its knowing."""
        for entry in entries:
            held = entry.holder and entry.holder()
            if held is not None:
                self._session.register(held)

    def _abort(self, entry: Entry, user: int) -> None:
        with self._guard:
            mine = self.cache.drop(entry, user)
        if mine:
            self._session.post("unlock", {"h": entry.serial})

    def _release(self, serials: list[int]) -> None:
        if len(serials) == 1:
            self._session.post("unlock", {"h": serials[0]})
            return
        for start in range(0, len(serials), BATCH):
            self._session.post("unlock_all", {"locks": [{"h": h} for h in serials[start : start + BATCH]]})
