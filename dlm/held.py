"""A lock that is held: the handle that ``acquire`` and ``with`` give. What it is says ``dlm.grant``."""

from __future__ import annotations

import time
from concurrent.futures import wait as wait_futures
from types import TracebackType
from typing import TYPE_CHECKING, Protocol
from weakref import ref

from dlm.errors import LockLost, NotHeld
from dlm.grant import WRITERS, Grant, LossBase, add_loss, both
from dlm.info import Flag, Mode

if TYPE_CHECKING:
    from typing import Self

    from dlm.cache import Entry
    from dlm.session import Session

__all__ = ["WRITERS", "Held", "Losable", "Loss", "both", "wait_lost"]

_bare = object.__new__

POLL_S = 0.05  #: a lease that comes back is written to the page, and no push need follow


class Losable(Protocol):
    """What can be lost, and waited for: one lock, or several together."""

    @property
    def released(self) -> bool:
        """It has been given back."""
        ...

    def loss_now(self) -> str | None:
        """Why it is lost at this moment, if it is."""
        ...

    def wait_lost(self, timeout: float | None) -> bool:
        """Wait for that."""
        ...


class Loss(LossBase):
    """Whether a handle has been lost: like ``threading.Event``, with a ``reason``.

    It is set as well while the lease has run out (reason ``lease``), and that alone can pass again.
    Thread-safe.
    """

    _held: Losable

    def __init__(self, held: Losable) -> None:
        super().__init__(held)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the lock is lost (``True``) or has been released or ``timeout`` seconds are over."""
        return self._held.wait_lost(timeout)


class Held(Grant):
    """One grant of one lock. Made by ``Client``, never reusable. Thread-safe; owned by no thread (API-R7).

    ``name`` (bytes) and ``held_since`` (``time.time()`` of the grant) are plain attributes. As a context manager it
    releases at the end.
    """

    _session: Session

    entry: Entry | None = None  #: the lock is kept after its release (``dlm.caching``) ..
    user = 0  #: .. and this is its use
    observed = False  #: somebody may wait for its end
    _lost: Loss | None = None  #: made when it is wanted, in ``again``: it and the handle are a cycle

    def __init__(self, session: Session, name: bytes, mode: Mode, serial: int | None = None) -> None:
        super().__init__(session, name, mode, serial)
        self._lost = Loss(self)

    # -- kept locks

    @classmethod
    def again(cls, session: Session, entry: Entry, mode: Mode, user: int) -> Self:
        """The handle for another use of a lock that was kept, which is ``user``'s already."""
        self = _bare(cls)
        self.space, self.name, _, _ = entry.key
        self._session, self._mode, self.entry, self.user = session, mode, entry, user
        self.serial, self._fence, self.generation = entry.serial, entry.fence, entry.generation
        self._value, self._value_valid = entry.value, entry.value_valid
        self.held_since = time.time()
        self._granted = True
        entry.holder = ref(self)
        return self

    def may_be_kept(self) -> bool:
        """Whether nothing has happened to the lock, or is to happen with its release, that others need to know."""
        return self._granted and self.lost_reason is None and self._conversion is None and not self._value_dirty

    def end_use(self, over: bool = True) -> None:
        """The handle is released; or not, after all."""
        self._released = over

    # -- is it still held?

    @property
    def lost(self) -> Loss:
        """Like an event that is set when the lock is lost."""
        self.observed = True
        if self._lost is None:
            self._lost = Loss(self)
        return self._lost

    def wait_lost(self, timeout: float | None) -> bool:
        """See ``Loss.wait``."""
        self.observed = True
        return wait_lost(self._session, self, timeout)

    def wait_valid(self, timeout: float | None = None) -> bool:
        """Wait while the lock is suspended: ``True`` as soon as it is held for certain, with the fence it had;
        ``False`` after ``timeout`` seconds.

        Raises ``LockLost`` when it is lost for good, ``NotHeld`` when it has been released.
        """
        self._session.check_process()
        self.observed = True
        limit = None if timeout is None else time.monotonic() + timeout
        with self._session.changed:
            while self.still_suspended():
                rest = POLL_S if limit is None else min(limit - time.monotonic(), POLL_S)
                if rest <= 0:
                    return False
                self._session.changed.wait(rest)
        return True

    # -- changing it

    def convert(
        self,
        mode: Mode,
        timeout: float | None = None,
        *,
        value: bytes | None = None,
        invalidate: bool = False,
        flags: Flag = Flag(0),  # noqa: B008 - immutable
    ) -> None:
        """Change the mode. Downwards never waits for others; upwards may (``timeout`` as for ``acquire``).

        ``value`` is written to the value block, ``invalidate`` marks that as not valid: both need a conversion
        from PW or EX to the same or a lower mode. With ``Flag.CONVDEADLK`` the handle counts for nothing until
        the conversion is over. ``outcome`` tells what else there is to say, ``mode`` the mode given.

        If it fails the old mode stays. Raises ``LockTimeout``, ``LockLost``, ``NotHeld``, ``LockBusy`` (one
        conversion at a time), ``Deadlock``, ``NoQuorum``, ``NotConnected``.
        """
        self._session.kept.drop(self)
        with self._convert(mode, timeout, value, invalidate, flags) as answer:
            self._session.outcome(answer, self, timeout)

    def release(self, wait: bool = False, *, invalidate: bool = False) -> None:
        """Give the lock back. The handle ends now; returns when the message is on its way, with ``wait`` when
        the lock is free. ``invalidate`` marks the value block as not valid (L3; in PW and EX only). A lock that
        was asked for with ``cache=True`` is kept instead, unless ``wait`` is given or somebody wants it.

        Raises ``NotHeld`` the second time, and ``LockLost`` if the lock was not held for certain any more:
        then what was done under it may have overlapped with others. With ``wait``, ``NotConnected`` if the release
        was to write the value block, and whether it has is not known.
        """
        if self.entry is not None:
            if not wait and not invalidate and self._session.kept.put(self):
                return
            self._session.kept.drop(self)
        lost, args, converting = self._end(invalidate)
        # Also when it is lost: a lock that was lost by mistake must not stay behind.
        if not wait:
            self._unlock(args, converting)
        else:
            if converting is not None:
                wait_futures([converting])
            self._session.call_release("unlock", args, self.name, lost is not None)
        if lost is not None:
            raise lost

    # -- with

    def __enter__(self) -> Self:
        self._require_unreleased()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._released:
            return
        try:
            self.release()
        except (LockLost, NotHeld) as lost:
            if error is None:
                raise
            add_loss(error, lost)


class _Held(Losable, Protocol):
    def lease_rest_s(self, at_most: float | None = None) -> float: ...


def wait_lost(session: Session, held: _Held, timeout: float | None) -> bool:
    """Wait until ``held`` is lost (``True``), released, or ``timeout`` seconds are over."""
    session.check_process()  # before the condition: in a child nobody may ever give it back
    limit = None if timeout is None else time.monotonic() + timeout
    with session.changed:
        while True:
            if held.loss_now() is not None:
                return True
            rest = None if limit is None else limit - time.monotonic()
            if held.released or (rest is not None and rest <= 0):
                return False
            session.changed.wait(held.lease_rest_s(rest))
