"""What sessions of all kinds share: the channel, the handles that live on it, the lease. Nothing here waits.

``dlm.session`` adds waiting for threads, ``dlm.aio.session`` for tasks of an event loop. The state of the handles
changes under ``changed``: with threads that is a condition, in an event loop there is nothing to be kept out.
"""

from __future__ import annotations

import copy
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from dlm import answers
from dlm.arguments import VALUE_LIMIT
from dlm.errors import ForkedProcess, LockTimeout, NotConnected
from dlm.transaction import checked_xid, current_xid
from vsync import errors as vsync_errors

if TYPE_CHECKING:
    from typing import Self

    from dlm.grant import Grant
    from vsync.ipc import Channel

__all__ = [
    "CANCEL_GRACE_S", "HOME_MARGIN_S", "SETTLE_POLL_S", "TRY_PATIENCE_S", "Asked", "Changed", "SessionBase",
    "checked_timeout",
]  # fmt: skip

SERVICE = "dlm"
CANCEL_GRACE_S = 1.0  #: a cancel that has no outcome by then is left to finish behind the caller's back
HOME_MARGIN_S = 0.05  #: the node counts the time-out as well; so long after it the client acts by itself
TRY_PATIENCE_S = 5.0  #: a daemon that does not answer a try by then counts as "no"
SETTLE_POLL_S = 0.01

_process = os.getpid()  # this one: the kernel takes longer to say so than a kept lock takes to be taken again


def _forked() -> None:
    global _process
    _process = os.getpid()


os.register_at_fork(after_in_child=_forked)


class Asked(Protocol):
    """What a request is about: the name to tell people, and the handle that a cancel goes to."""

    name: bytes
    serial: int


class Changed(Protocol):
    """What guards the state of the handles of a session, and tells who waits that it has changed."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def notify_all(self) -> None:
        """A handle has ended, or the lease may have changed."""
        ...


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


class SessionBase(ABC):
    """Everything the handles of one channel have in common.

    The channel calls ``_on_push`` and ``_on_close``, on its reader thread if it has one.
    """

    def __init__(self, channel: Channel, space: str, clock_us: Callable[[], int], changed: Changed) -> None:
        self.channel = channel
        self.space = space
        self.value_limit = VALUE_LIMIT  #: bytes of a value block there
        self.clock_us = clock_us
        self.changed = changed
        self.root: SessionBase = self  #: the one that knows whether the channel is closed; see ``within``
        self._closed: str | None = None
        self._pid = _process
        self._serials = _Serials()
        # Weak, so that a handle which nobody has any more can say so (ResourceWarning).
        self._handles: weakref.WeakValueDictionary[int, Grant] = weakref.WeakValueDictionary()
        self._recoveries: list[dict[str, Any]] = []  #: pushed, and not taken yet
        self.on_recovery: list[Callable[[], None]] = []  #: called when one has come
        channel.on_push(SERVICE, self._on_push)
        channel.on_close(self._on_close)

    def within(self, space: str, value_limit: int = VALUE_LIMIT) -> Self:
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
        return _process != self._pid

    def check_process(self) -> None:
        """Raise ``ForkedProcess`` in a child of the process that opened the session (API-R9)."""
        if _process != self._pid:
            raise ForkedProcess(f"this client belongs to process {self._pid}; connect again in the child process")

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

    def result(self, future: Future[Any], name: bytes = b"", timeout: float | None = None) -> Any:
        """The answer, waited for without limit. Raises the exception that belongs to a refusal."""
        try:
            return future.result()
        except vsync_errors.RequestFailed as failed:
            raise answers.refusal(failed, name, timeout) from None
        except vsync_errors.NotConnected as error:
            raise NotConnected(str(error)) from error

    @staticmethod
    def too_late(name: bytes, timeout: float) -> LockTimeout:
        """The exception for a wait of ``timeout`` seconds that was in vain."""
        text = f"lock {answers.name_text(name)!r} was not granted within {timeout:g} s"
        return LockTimeout(text, name=name, timeout=timeout)

    def withdraw(self, asked: Asked, future: Future[Any] | None) -> None:
        """Take back a lock request whose caller has gone; a grant that raced is released (API-R8)."""
        unlock = {"h": asked.serial}
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

    @abstractmethod
    def owner(self) -> int:
        """The number of the calling thread or task within this session, as owner of the locks it asks for."""

    def identity(self, xid: int | None) -> dict[str, int]:
        """The arguments that say whose a request is: of ``xid``, else of the transaction that this thread or
        task is in, else (0) of the thread or task.
        """
        xid = current_xid(self.root) if xid is None else checked_xid(xid)
        return {"xid": xid, "owner": self.owner()}

    @staticmethod
    def limit(timeout: float | None) -> dict[str, int]:
        """The argument that makes the node count the time-out."""
        return {"timeout_us": max(1, int(timeout * 1e6))} if timeout else {}

    # -- handles

    def register(self, grant: Grant) -> None:
        """Know the handle from before its request is sent, so that no loss can slip by."""
        self._handles[grant.serial] = grant

    def next_serial(self) -> int:
        """A handle number that this session has not used yet."""
        return self._serials.take(1)[0]

    def next_serials(self, count: int) -> range:
        """So many that follow each other."""
        return self._serials.take(count)

    def handles(self) -> list[Grant]:
        """The handles alive, oldest first."""
        return [grant for _, grant in sorted(self._handles.items())]

    def lease(self) -> tuple[int, int]:
        """Generation and deadline (boot-time µs) of the session's lease, as the node last wrote them."""
        return self.channel.lease_deadline()

    def lease_rest_s(self, at_most: float | None = None) -> float:
        """Seconds until the lease runs out if nobody renews it, at least a millisecond."""
        rest = (self.lease()[1] - self.clock_us()) / 1e6
        return max(rest if at_most is None else min(rest, at_most), 0.001)

    def unsettled(self, grant: Grant, limit: float | None) -> bool:
        """Whether a fresh grant still waits for a lease of its generation: the answer may be here before the page
        says so. Raises ``LockLost``, and ``LockTimeout`` when it is later than ``limit`` (monotonic seconds).
        """
        reason = grant.loss_now()
        if reason is None:
            return False
        if reason != "lease":
            raise answers.lost(grant.name, grant.fence, reason)
        if limit is not None and time.monotonic() >= limit:
            text = f"lock {answers.name_text(grant.name)!r} was granted, but without a lease"
            raise LockTimeout(text, name=grant.name)
        return True

    def take_recovery(self) -> dict[str, Any] | None:
        """The next failure in this lockspace that an application has to recover from, if it was pushed."""
        for row in self._recoveries:
            if row["space"] == self.space:
                self._recoveries.remove(row)
                return row
        return None

    # -- endings

    def close(self) -> None:
        """End all handles, then the channel: in this order, as end-of-file means *dead* (pitfalls D10)."""
        self.end_all("session_closed")
        self.channel.close()

    def close_space(self) -> None:
        """End all handles of the session in this lockspace, then close that. The session goes on."""
        with self.changed:
            for grant in self.handles():
                if grant.space == self.space:
                    grant.mark_lost("space_closed")
        self.post("space_close", {"space": self.space})

    def end_all(self, reason: str) -> None:
        """Nothing is held any more."""
        with self.changed:
            self._closed = self._closed or reason
            for grant in self.handles():
                grant.mark_lost(reason)
            self.changed.notify_all()

    def _on_close(self, reason: str) -> None:
        self.end_all("daemon_gone")

    def _called(self, serial: int) -> None:  # noqa: B027 - it need not matter
        """A lock is in somebody's way."""

    def _lost(self, serial: int) -> None:  # noqa: B027
        """A lock is lost."""

    def _on_push(self, kind: str, data: Any) -> None:
        if kind == "blocking":
            self._called(data["h"])
        elif kind == "lost":
            self._lost(data["h"])
        with self.changed:
            if kind == "lost":
                grant = self._handles.get(data["h"])
                if grant is not None:
                    grant.mark_lost(str(data.get("reason", "broken")))
            elif kind == "blocking":
                grant = self._handles.get(data["h"])
                if grant is not None:
                    grant.note_blocking(int(data["mode"]))
            elif kind == "recover":
                self._recoveries.append(dict(data))
                for call in self.on_recovery:
                    call()
            self.changed.notify_all()


def unwritten(args: Mapping[str, Any], name: bytes) -> NotConnected | None:
    """The exception for a release that failed, if it was to write a value block (C14)."""
    if not any(row.get("valblk") or row.get("ivvalblk") for row in args.get("locks", (args,))):
        return None
    text = f"lock {answers.name_text(name)!r} is released, but whether its value block was written is not known"
    return NotConnected(text)


def checked_timeout(timeout: float | None) -> float | None:
    """``None``, 0 or a number of seconds (API-R3). Raises ``ValueError`` for anything else."""
    if timeout is not None and not 0 <= timeout <= threading.TIMEOUT_MAX:
        raise ValueError(f"timeout is None, 0 or a number of seconds, not {timeout!r}")
    return timeout
