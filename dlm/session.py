"""One session with a node: the channel, the handles that live on it, the lease, and waiting with a way out.

``Client`` and ``Held`` are what people see; this is what they share. All methods may be called by any
thread; the channel's reader thread calls ``_on_push`` and ``_on_close``.
"""

from __future__ import annotations

import copy
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Protocol

from dlm import answers
from dlm.arguments import VALUE_LIMIT
from dlm.errors import DLMError, ForkedProcess, LockCancelled, LockTimeout, NotConnected, NotHeld
from dlm.info import LockInfo
from dlm.transaction import checked_xid, current_xid
from vsync import errors as vsync_errors

if TYPE_CHECKING:
    from dlm.held import Held
    from vsync.ipc import Channel

__all__ = ["CANCEL_GRACE_S", "TRY_PATIENCE_S", "Asked", "Session", "checked_timeout"]

SERVICE = "dlm"
CANCEL_GRACE_S = 1.0  #: a cancel that has no outcome by then is left to finish behind the caller's back
HOME_MARGIN_S = 0.05  #: the node counts the time-out as well; so long after it the client acts by itself
TRY_PATIENCE_S = 5.0  #: a daemon that does not answer a try by then counts as "no"
SETTLE_POLL_S = 0.01


class Asked(Protocol):
    """What a request is about: the name to tell people, and the handle that a cancel goes to."""

    name: bytes
    serial: int


class _Serials:
    """Handle numbers. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._next = 1

    def take(self, count: int) -> range:
        """The next ones."""
        with self._guard:
            first = self._next
            self._next += count
        return range(first, first + count)


class Session:
    """Everything the handles of one channel have in common.

    ``changed`` guards the state of all of them and is notified when one ends or the lease may have changed.
    """

    def __init__(self, channel: Channel, space: str, clock_us: Callable[[], int]) -> None:
        self.channel = channel
        self.space = space
        self.value_limit = VALUE_LIMIT  #: bytes of a value block there
        self.clock_us = clock_us
        self.changed = threading.Condition()
        self.root = self  #: the one that knows whether the channel is closed; see ``within``
        self._closed: str | None = None
        self._pid = os.getpid()
        self._serials = _Serials()
        self._owners = itertools.count(1)
        self._thread = threading.local()
        # Weak, so that a handle which nobody has any more can say so (ResourceWarning).
        self._handles: weakref.WeakValueDictionary[int, Held] = weakref.WeakValueDictionary()
        channel.on_push(SERVICE, self._on_push)
        channel.on_close(self._on_close)

    def within(self, space: str, value_limit: int = VALUE_LIMIT) -> Session:
        """The same session, for the names of another lockspace."""
        view = copy.copy(self)
        view.space, view.value_limit = space, value_limit
        return view

    @property
    def closed(self) -> str | None:
        """Why the channel is closed, if it is."""
        return self.root._closed

    # -- requests

    @property
    def foreign(self) -> bool:
        """Whether this is a child of the process that opened the session."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raise ``ForkedProcess`` in a child of the process that opened the session (API-R9)."""
        if self.foreign:
            raise ForkedProcess(
                f"this client belongs to process {self._pid}; call dlm.connect() in the child process"
            )

    def start(self, verb: str, args: Mapping[str, Any]) -> Future[Any]:
        """Send a request. Raises ``NotConnected`` when the channel is closed, ``ForkedProcess``."""
        self.check_process()
        try:
            return self.channel.start(SERVICE, verb, args)
        except vsync_errors.NotConnected as error:
            raise NotConnected(str(error)) from error

    def post(self, verb: str, args: Mapping[str, Any]) -> None:
        """Send a request that wants no answer. A closed channel is no error: its end released everything."""
        try:
            self.channel.post(SERVICE, verb, args)
        except vsync_errors.NotConnected:
            pass

    def call(self, verb: str, args: Mapping[str, Any], name: bytes = b"") -> Any:
        """Send a request and wait for its answer. Raises what ``result`` raises."""
        return self.result(self.start(verb, args), name)

    def call_release(self, verb: str, args: Mapping[str, Any], name: bytes) -> None:
        """Release something and wait for the answer; whatever that is, it is free of us."""
        try:
            self.call(verb, args, name)
        except (DLMError, OSError):
            pass  # the session has ended, or the node does not know the lock any more

    def result(self, future: Future[Any], name: bytes, timeout: float | None = None) -> Any:
        """The answer, waited for without limit. Raises the exception that belongs to a refusal."""
        try:
            return future.result()
        except vsync_errors.RequestFailed as failed:
            raise answers.refusal(failed, name, timeout) from None
        except vsync_errors.NotConnected as error:
            raise NotConnected(str(error)) from error

    def outcome(self, future: Future[Any], held: Asked, timeout: float | None) -> tuple[Any, bool]:
        """The answer of a lock or convert request, and whether it came too late.

        The node counts the time-out itself; if it is silent for longer, a cancel follows the request from here,
        and whichever comes first in the order decides: so the answer can be a late grant. Raises
        ``LockTimeout`` when the cancel won, or when there is no outcome within the grace time (the future is not
        done then), and what ``result`` raises.
        """
        if timeout is None:
            return self.result(future, held.name), False
        wait([future], timeout + HOME_MARGIN_S if timeout > 0 else TRY_PATIENCE_S)
        if future.done():
            return self.result(future, held.name, timeout), False
        self.post("cancel", {"h": held.serial})
        wait([future], CANCEL_GRACE_S)
        if not future.done():
            raise self.too_late(held.name, timeout)
        try:
            return self.result(future, held.name, timeout), True
        except LockCancelled:
            raise self.too_late(held.name, timeout) from None

    @staticmethod
    def too_late(name: bytes, timeout: float) -> LockTimeout:
        """The exception for a wait of ``timeout`` seconds that was in vain."""
        text = f"lock {answers.name_text(name)!r} was not granted within {timeout:g} s"
        return LockTimeout(text, name=name, timeout=timeout)

    def withdraw(self, held: Held, future: Future[Any] | None) -> None:
        """Take back a lock request whose caller has gone; a grant that raced is released (API-R8)."""
        unlock = {"h": held.serial}
        if future is None:  # interrupted while sending: the daemon may or may not know the request
            self.post("cancel", unlock)
            self.post("unlock", unlock)
            return
        if not future.done():
            self.post("cancel", unlock)

        def release_if_granted(done: Future[Any]) -> None:
            if not done.cancelled() and done.exception() is None:
                self.post("unlock", unlock)

        future.add_done_callback(release_if_granted)

    # -- who asks, and what all asks have in common

    def owner(self) -> int:
        """The number of the calling thread within this session, as owner of the locks it asks for."""
        number: int | None = getattr(self._thread, "owner", None)
        if number is None:
            number = self._thread.owner = next(self._owners)
        return number

    def identity(self, xid: int | None) -> dict[str, int]:
        """The arguments that say whose a request is: of ``xid``, else of the transaction that this thread or
        task is in, else (0) of the thread.
        """
        xid = current_xid(self.root) if xid is None else checked_xid(xid)
        return {"xid": xid, "owner": self.owner()}

    @staticmethod
    def limit(timeout: float | None) -> dict[str, int]:
        """The argument that makes the node count the time-out."""
        return {"timeout_us": max(1, int(timeout * 1e6))} if timeout else {}

    def purge(self, node: int | None, pid: int) -> int | None:
        """See ``Client.purge``."""
        where = {} if node is None else {"node": node}
        purged: int | None = self.call("purge", {"pid": pid, **where})["purged"]
        return purged

    def show(self, name: bytes, space: str) -> LockInfo | None:
        """See ``Client.show``."""
        try:
            return LockInfo.from_row(self.call("show", {"name": name, "space": space}, name))
        except NotHeld:
            return None

    # -- handles

    def register(self, held: Held) -> None:
        """Know the handle from before its request is sent, so that no loss can slip by."""
        self._handles[held.serial] = held

    def next_serial(self) -> int:
        """A handle number that this session has not used yet."""
        return self._serials.take(1)[0]

    def next_serials(self, count: int) -> range:
        """So many that follow each other."""
        return self._serials.take(count)

    def handles(self) -> list[Held]:
        """The handles alive, oldest first."""
        return [held for _, held in sorted(self._handles.items())]

    def lease(self) -> tuple[int, int]:
        """Generation and deadline (boot-time µs) of the session's lease, as the node last wrote them."""
        return self.channel.lease_deadline()

    def settle(self, held: Held, limit: float | None) -> None:
        """Return when a fresh grant is backed by the lease of its generation (``limit``: monotonic seconds).

        The answer may be here before the page says so. Raises ``LockLost``, ``LockTimeout``.
        """
        with self.changed:
            while (reason := held.loss_now()) is not None:
                if reason != "lease":
                    raise answers.lost(held.name, held.fence, reason)
                if limit is not None and time.monotonic() >= limit:
                    text = f"lock {answers.name_text(held.name)!r} was granted, but without a lease"
                    raise LockTimeout(text, name=held.name)
                self.changed.wait(SETTLE_POLL_S)

    def catch_up(self, held: Held, seconds: float) -> None:
        """Let the page that tells of leases catch up with a fresh grant, but no longer than that."""
        limit = time.monotonic() + seconds
        with self.changed:
            while self.closed is None and self.lease()[0] < held.generation and time.monotonic() < limit:
                self.changed.wait(SETTLE_POLL_S)

    # -- endings

    def close(self) -> None:
        """End all handles, then the channel: in this order, as end-of-file means *dead* (pitfalls D10)."""
        self._end_all("session_closed")
        self.channel.close()

    def close_space(self) -> None:
        """End all handles of the session in this lockspace, then close that. The session goes on."""
        with self.changed:
            for held in self.handles():
                if held.space == self.space:
                    held.mark_lost("space_closed")
        self.post("space_close", {"space": self.space})

    def _end_all(self, reason: str) -> None:
        with self.changed:
            self._closed = self._closed or reason
            for held in self.handles():
                held.mark_lost(reason)
            self.changed.notify_all()

    def _on_close(self, reason: str) -> None:
        self._end_all("daemon_gone")

    def _on_push(self, kind: str, data: Any) -> None:
        with self.changed:
            if kind == "lost":
                held = self._handles.get(data["h"])
                if held is not None:
                    held.mark_lost(str(data.get("reason", "broken")))
            elif kind == "blocking":
                held = self._handles.get(data["h"])
                if held is not None:
                    held.note_blocking(int(data["mode"]))
            self.changed.notify_all()


def checked_timeout(timeout: float | None) -> float | None:
    """``None``, 0 or a number of seconds (API-R3). Raises ``ValueError`` for anything else."""
    if timeout is not None and not 0 <= timeout <= threading.TIMEOUT_MAX:
        raise ValueError(f"timeout is None, 0 or a number of seconds, not {timeout!r}")
    return timeout
