"""One grant of one lock: what it is, whether it is good, and what operations do to it. Nothing here waits.

When is a handle valid? It has been granted, not released, not reported lost; the session's lease is of the
generation that granted it and has not run out (pitfalls D9). ``valid`` costs a few microseconds and no
message.

A handle ends when release is *called*, and a conversion takes away at its call what the new mode does not
allow (pitfalls D8): what the cluster then does may be known elsewhere before it is known here.

``dlm.held`` is this for threads, ``dlm.aio.held`` for tasks of an event loop.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from dlm import answers
from dlm.errors import InvalidRequest, LockBusy, LockLost, NotHeld
from dlm.info import Flag, Mode, Outcome
from dlm.modes import COMPATIBLE

if TYPE_CHECKING:
    from dlm.session_base import SessionBase

__all__ = ["WRITERS", "Grant", "Losable", "LossBase", "add_loss", "both"]

NO_OUTCOME = Outcome(0)
_MODES = tuple(Mode)  # by value, which is quicker than to ask the class for one

WRITERS = (Mode.PW, Mode.EX)  #: the modes that may write the value block


class Losable(Protocol):
    """What can be lost: one lock, or several together."""

    @property
    def released(self) -> bool:
        """It has been given back."""
        ...

    def loss_now(self) -> str | None:
        """Why it is lost at this moment, if it is."""
        ...


class LossBase:
    """Whether a handle has been lost, with a ``reason``; subclasses know how to wait for that.

    It is set as well while the lease has run out (reason ``lease``), and that alone can pass again.
    """

    def __init__(self, held: Losable) -> None:
        self._held = held

    @property
    def reason(self) -> str | None:
        """Why the lock is lost, a word of ``LockLost.reason``; ``None`` while it is not."""
        return self._held.loss_now()

    def is_set(self) -> bool:
        """Whether the lock is lost or its lease has run out; a lock released in time is not."""
        return self.reason is not None

    __bool__ = is_set

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.reason or 'not lost'}>"


class Grant:
    """One grant of one lock. ``name`` (bytes) and ``held_since`` (``time.time()`` of the grant) are plain
    attributes. It belongs to its session, to no thread or task (API-R7).
    """

    _session: SessionBase

    held_since = 0.0
    # What follows changes under session.changed.
    lost_reason: str | None = None
    generation = 0  #: of the lease that backs it
    blocking: int | None = None  #: a mode it blocks, to be told to ``on_blocking``
    tells = False  #: there is an ``on_blocking``
    outcome = NO_OUTCOME  #: of the last operation that succeeded
    fences = 1  #: so many numbers came with the grant (``dlm.cache``)
    _fence = 0
    _value = b""
    _value_valid = False
    _value_dirty = False
    _granted = False
    _released = False
    _conversion: Future[None] | None = None  #: done when the conversion on its way is over

    def __init__(self, session: SessionBase, name: bytes, mode: Mode, serial: int | None = None) -> None:
        self.name = name
        self.space = session.space  #: the lockspace of the name
        self.serial = session.next_serial() if serial is None else serial
        self._session = session
        self._mode = mode
        session.register(self)

    # -- what it is

    @property
    def mode(self) -> Mode:
        """The mode that may be relied upon; during a conversion what old and new mode both allow."""
        return self._mode

    @property
    def fence(self) -> int:
        """The fencing token: strictly increasing over the grants of a name, across crashes too (API-R6)."""
        return self._fence

    @property
    def value(self) -> bytes:
        """The value block: as the last writer left it, or as set here.

        Setting needs PW or EX; it is written with the release or the conversion downwards. Raises
        ``InvalidRequest`` in other modes, and if it is longer than the lockspace allows (E7).
        """
        return self._value

    @value.setter
    def value(self, value: bytes) -> None:
        if self._mode not in WRITERS:
            raise InvalidRequest(f"mode {self._mode.name} may not write the value block: PW and EX may")
        self._set_value(value)

    def _set_value(self, value: bytes) -> None:
        limit = self._session.value_limit
        if len(value) > limit:  # to be told now: a release that is refused would leave the lock behind
            raise InvalidRequest(f"a value block of lockspace {self.space!r} has at most {limit} bytes", rule="E7")
        self._value, self._value_dirty = bytes(value), True

    @property
    def value_valid(self) -> bool:
        """False if a holder who may have been writing has failed since the block was last written."""
        return self._value_valid

    @property
    def released(self) -> bool:
        """Whether release has been called."""
        return self._released

    @property
    def converting(self) -> bool:
        """Whether a conversion is on its way."""
        return self._conversion is not None

    # -- is it still held?

    def loss_now(self) -> str | None:
        """Why this handle, if not released, is not valid at this moment; ``None`` if it is."""
        self._session.check_process()
        if self.lost_reason is not None or self._released or not self._granted:
            return self.lost_reason
        generation, deadline = self._session.lease()
        if generation > self.generation:
            # The life that granted it has ended, and the push that says so still lies in the socket (D9).
            with self._session.changed:
                self.mark_lost("evicted")
            return self.lost_reason
        current = generation == self.generation and self._session.clock_us() < deadline
        return None if current else "lease"

    @property
    def valid(self) -> bool:
        """Whether the lock is held for certain at this moment."""
        return self._granted and not self._released and self.loss_now() is None

    @property
    def suspended(self) -> bool:
        """Whether the lease has run out and nothing more is known: the lock may be valid again, with the same
        fence, or turn out to be lost.
        """
        return self.loss_now() == "lease"

    def check(self) -> None:
        """Return if the lock is held for certain at this moment.

        Raises ``LockLost`` (``LockSuspended`` if only the lease has run out) or ``NotHeld`` after release.
        """
        lost = self.loss_error()
        if lost is not None:
            raise lost
        self._require_unreleased()

    def loss_error(self) -> LockLost | None:
        """The exception for its being lost at this moment; ``None`` if it is not."""
        reason = self.loss_now()
        return None if reason is None else answers.lost(self.name, self._fence, reason)

    def still_suspended(self) -> bool:
        """For those who wait for the end of a suspension: as ``suspended``, but raises what ``check`` does if the
        lock is lost for good.
        """
        reason = self.loss_now()
        if reason == "lease":
            return True
        self.check()
        return False

    def lease_rest_s(self, at_most: float | None = None) -> float:
        """Seconds until the lease runs out if nobody renews it, at least a millisecond."""
        return self._session.lease_rest_s(at_most)

    # -- changing it

    @contextmanager
    def _convert(
        self, mode: Mode, timeout: float | None, value: bytes | None, invalidate: bool, flags: Flag
    ) -> Iterator[Future[Any]]:
        """Ask for a conversion; the body waits for the answer. If the body fails, the conversion is withdrawn.

        Raises what ``convert`` says; a loss is the news, whatever else has happened, but for an exception that
        must not be held up, such as a cancellation.
        """
        session = self._session
        session.check_process()
        answers.check_friendly(flags)
        with session.changed:
            old, new, args = self._begin_convert(Mode(mode), timeout, value, invalidate, flags)
        future: Future[Any] | None = None
        try:
            future = session.start("convert", args)
            yield future
        except BaseException as failure:
            if future is None:
                self._not_converted(old)
                raise
            if not future.done():
                session.post("cancel", {"h": self.serial})
            # Also if the caller does not wait any longer: the handle must know its mode in the end.
            future.add_done_callback(lambda done: self._converted(old, new, done))
            if self.lost_reason is not None and isinstance(failure, Exception):
                raise answers.lost(self.name, self._fence, self.lost_reason) from None
            raise
        self._converted(old, new, future)
        if self.lost_reason is not None:
            raise answers.lost(self.name, self._fence, self.lost_reason)

    def _begin_convert(
        self, new: Mode, timeout: float | None, value: bytes | None, invalidate: bool, flags: Flag
    ) -> tuple[Mode, Mode, dict[str, Any]]:
        """The handle counts for what both modes allow from here on. Called under ``session.changed``."""
        self._require_unreleased("E8")
        if self.lost_reason is not None:
            raise answers.lost(self.name, self._fence, self.lost_reason)
        if self._conversion is not None:
            raise LockBusy(f"lock {answers.name_text(self.name)!r} is being converted", name=self.name)
        old = self._mode
        args: dict[str, Any] = {"h": self.serial, "mode": int(new), "blocking": self.tells, **flags.args()}
        args["noqueue"] = timeout == 0 or bool(flags & Flag.NOQUEUE)
        args |= self._session.limit(timeout)
        args |= self._block_for(old, new, value, invalidate)
        self._mode = Mode.NL if flags & Flag.CONVDEADLK else both(old, new)
        self._conversion = Future()
        return old, new, args

    def _converted(self, old: Mode, new: Mode, answer: Future[Any]) -> None:
        failure = answer.exception()
        if failure is not None:
            demoted = getattr(failure, "more", {}).get("flags", 0) & Outcome.DEMOTED
            self._not_converted(Mode.NL if demoted else old)
            return
        with self._session.changed:
            self._mode = Mode(answer.result().get("mode", new))
            self._take(answer.result(), written=old in WRITERS and new <= old)
        self._conversion_over()

    def _not_converted(self, old: Mode) -> None:
        self._mode = old
        self._conversion_over()

    def _conversion_over(self) -> None:
        with self._session.changed:
            over, self._conversion = self._conversion, None
        if over is not None:
            over.set_result(None)

    def _block_for(self, old: Mode, new: Mode, value: bytes | None, invalidate: bool) -> dict[str, Any]:
        """The value-block arguments: up reads it, down from a writer's mode writes it if it was set."""
        writes = old in WRITERS and new <= old
        if (value is not None or invalidate) and not writes:
            raise InvalidRequest(f"{old.name} to {new.name} does not write the value block", rule="L2")
        if invalidate:
            self._value_dirty, self._value_valid = False, False
            return {"ivvalblk": True}
        if value is not None:
            self._set_value(value)
        if writes:
            return {"valblk": self._value_dirty, "value": self._value if self._value_dirty else None}
        return {"valblk": True, "value": None}

    def begin_release(self, invalidate: bool) -> dict[str, Any]:
        """The handle ends here; what to ask the node for. Called under ``session.changed``."""
        args: dict[str, Any] = {"h": self.serial}
        if invalidate:
            args["ivvalblk"] = True
        elif self._value_dirty and self._mode in WRITERS:
            args |= {"valblk": True, "value": self._value}
        self._released = True
        return args

    def _end(self, invalidate: bool) -> tuple[LockLost | None, dict[str, Any], Future[None] | None]:
        """The handle ends here: what to raise for a loss, if it was lost; what to ask the node for; the conversion
        that has to end before that, as the node refuses an unlock while it converts.

        Raises ``NotHeld`` the second time.
        """
        session = self._session
        lost = self.loss_error()
        with session.changed:
            self._require_unreleased("E21")
            args, converting = self.begin_release(invalidate), self._conversion
            session.changed.notify_all()
        if converting is not None:
            session.post("cancel", {"h": self.serial})
        return lost, args, converting

    def _unlock(self, args: Mapping[str, Any], after: Future[None] | None) -> None:
        """Tell the node, and do not wait for it."""
        session = self._session
        if after is None:
            session.post("unlock", args)
        else:
            after.add_done_callback(lambda _: session.post("unlock", args))

    # -- events, called under session.changed

    def mark_granted(self, result: Mapping[str, Any]) -> None:
        """The grant has come; ``result`` is the daemon's answer."""
        self._granted = True
        self._mode = _MODES[result["mode"]] if "mode" in result else self._mode
        self.held_since = time.time()
        self._take(result, written=False)

    def mark_lost(self, reason: str) -> None:
        """The lock has been taken away; the first reason stays."""
        if self.lost_reason is None and not self._released:
            self.lost_reason = reason
            self._session.changed.notify_all()

    def note_blocking(self, mode: int) -> None:
        """The lock is in the way of a request for ``mode``. At most one waits to be told: the latest (B9)."""
        self.blocking = mode

    def take_blocking(self) -> Mode | None:
        """The mode to tell ``on_blocking`` of now, if the lock still blocks it (B6, B10)."""
        mode, self.blocking = self.blocking, None
        if mode is None or not self._granted or self._released or self.lost_reason is not None:
            return None
        return None if COMPATIBLE[self._mode][mode] else Mode(mode)

    def mark_withdrawn(self) -> None:
        """The request was taken back before anybody got the handle."""
        self._released = True

    def _take(self, result: Mapping[str, Any], written: bool) -> None:
        self._fence = max(self._fence, int(result["fence"]))  # a later number of a block counts (``dlm.cache``)
        self.fences = int(result.get("fences", 1))
        self.generation = int(result["generation"])
        said = result.get("flags", 0)
        self.outcome = Outcome(said) if said else NO_OUTCOME
        if written:
            self._value_valid = self._value_valid or self._value_dirty  # what was written is valid (L2)
            self._value_dirty = False
        elif result.get("value_read", True) and not self._value_dirty:
            self._value = bytes(result.get("value") or b"")
            self._value_valid = bool(result.get("value_valid"))

    def _require_unreleased(self, rule: str = "") -> None:
        if self._released or not self._granted:
            raise NotHeld(f"lock {answers.name_text(self.name)!r} has been released", name=self.name, rule=rule)

    def __repr__(self) -> str:
        if self._released:
            state = "released"
        elif self.lost_reason is not None:
            state = f"lost: {self.lost_reason}"
        else:
            state = "held" if self._granted else "waiting"
        kind, name = type(self).__name__, answers.name_text(self.name)
        return f"<{kind} {name!r} {self._mode.name} fence={self._fence} {state}>"

    def __del__(self) -> None:
        try:
            leaked = self._granted and not (self._released or self.lost_reason or self._session.foreign)
        except AttributeError:  # the constructor has failed
            return
        if leaked:
            warnings.warn(f"nobody can release {self!r} any more", ResourceWarning, stacklevel=1, source=self)


def add_loss(error: BaseException, lost: BaseException) -> None:
    """The body's own exception is the news; the loss is added to it (API-R5)."""
    if not isinstance(error, LockLost):
        error.add_note(f"meanwhile: {lost}")


def both(a: Mode, b: Mode) -> Mode:
    """The strongest mode that both ``a`` and ``b`` include. The modes form a chain but for CW and PR."""
    if {a, b} == {Mode.CW, Mode.PR}:
        return Mode.CR
    return min(a, b)
