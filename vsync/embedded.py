"""Sessions with a node in the same process: the same channel, without a socket.

Requests go to the node's thread through its queue. An answer that a thread waits for is given to it by the node's
thread, and what only has to be put into a queue is put there; all else comes to the channel's own reader thread, so
the ring runs no user code. Either way each is handled after what came before it. What is passed are Python objects,
not copies: treat them as read-only.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from vsync.answer import Answer, taken_lock
from vsync.errors import NotConnected, ProtocolError
from vsync.ipc import BaseChannel, report
from vsync.service import Credentials

if TYPE_CHECKING:
    from vsync.loop import Loop

__all__ = ["LocalBase", "LocalChannel", "LocalSession"]


class LocalSession:
    """The node's end: called by the node's thread only. Holds back what it is given until ``flush``."""

    def __init__(self, number: int, put: Callable[[list[Any]], None]) -> None:
        """``put`` takes a frame to the channel's users; it must not block."""
        self.number = number
        self.deadline = (0, 0)  #: read by the channel's users; a tuple is replaced in one piece
        self._put = put
        self._held: list[list[Any]] = []

    def reply(self, rid: int, ok: bool, data: Any) -> None:
        """Queue the answer to request ``rid``."""
        self._held.append([rid, ok, data])

    def push(self, service: str, kind: str, data: Any) -> None:
        """Queue an unsolicited event."""
        self._held.append([0, service, kind, data])

    def welcome(self, body: Mapping[str, Any]) -> None:
        """Queue the first frame."""
        self._held.append(["welcome", 1, {**body, "session": self.number, "page": None}])

    def lease(self, generation: int, deadline: int) -> None:
        """Publish until when the session's locks are valid."""
        self.deadline = (generation, deadline)

    def flush(self) -> None:
        """Hand on what is queued."""
        for frame in self._held:
            self._put(frame)
        self._held.clear()

    def end(self, code: str, text: str) -> None:
        """Close the session from the node's side, with a last word."""
        self.flush()
        self._put(["error", code, text])


class LocalBase(BaseChannel):
    """What channels to a node in the same process have in common, wherever their frames are taken up."""

    local = True
    _loop: Loop
    _session: LocalSession

    def _attach(self, loop: Loop, name: str, put: Callable[[list[Any]], None]) -> None:
        """Open a session with the node that runs ``loop``. Its first frame is the welcome, or an error.

        Raises ``NotConnected`` if the node is not running.
        """
        self._loop = loop
        session = self._session = LocalSession(loop.new_session(), put)
        who = Credentials(os.getpid(), os.getuid(), os.getgid(), name)
        loop.adopt(session)
        loop.post(lambda: loop.session_opened(session, who))

    def lease_deadline(self) -> tuple[int, int]:
        """What the node's thread published last; (0, 0) after the end and in a forked child."""
        if self._closed is not None or self._forked:
            return 0, 0
        return self._session.deadline

    def _welcome(self, frame: Any) -> None:
        """The first frame. Raises ``NotConnected`` if the node has ended."""
        match frame:
            case ["welcome", _, body]:
                self.welcome = body
            case ["error", _, str(text)]:
                raise NotConnected(text)

    def _transmit(self, rid: int, service: str, verb: str, args: Mapping[str, Any]) -> None:
        number, loop = self._session.number, self._loop
        loop.post(lambda: loop.session_request(number, rid, service, verb, dict(args)))

    def _release(self) -> None:
        number, loop = self._session.number, self._loop
        try:
            loop.post(lambda: loop.session_closed(number))
        except NotConnected:
            pass  # the node ended first


class LocalChannel(LocalBase):
    """A session with the node that runs ``loop``. Raises ``NotConnected`` if that node is not running."""

    def __init__(self, loop: Loop, name: str = "embedded") -> None:
        super().__init__()
        self._inbox: SimpleQueue[list[Any] | None] = SimpleQueue()
        self._passed = self._handled = 0  # frames that were left to the reader thread; that it has handled
        self._attach(loop, name, self._put)
        # Bounded only by the node's life: at its end every session, this one included, gets a last frame.
        self._welcome(self._inbox.get())
        self._handled = 1
        self._reader = threading.Thread(target=self._read, name="vsync-channel", daemon=True)
        self._reader.start()

    def wait(self, answer: Answer, timeout: float | None) -> None:
        """See ``Waiting.wait``."""
        if threading.current_thread() is self._reader:
            self._read_on(answer, timeout)
        answer.token = taken_lock()
        if not answer.over:  # else whoever brought it has not seen the token
            answer.token.acquire(timeout=-1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX))

    def attend(self) -> None:
        """See ``Waiting.attend``: the reader thread always does."""

    def _promise(self) -> Future[Any]:
        return Answer(self)

    def _put(self, frame: list[Any]) -> None:
        """Called by the node's thread: hand the frame on at once, if all before it have been and it may."""
        if self._passed != self._handled or not self._hand_on(frame):
            self._passed += 1
            self._inbox.put(frame)

    def _hand_on(self, frame: list[Any]) -> bool:
        """False, also if it fails: the reader thread then meets the same."""
        try:
            if len(frame) == 4:
                _, service, kind, data = frame
                handler = self._quick.get(service)
                if handler is not None:
                    handler(kind, data)
                return handler is not None
            if self._offer(frame):
                return True
            future = self._pending.get(frame[0])
            if isinstance(future, Answer) and future.quick:
                self._handle(frame)
                return True
        except Exception:  # noqa: BLE001 - whatever it is, the node's thread must not suffer from it
            pass
        return False

    def _read(self) -> None:
        reason = "the session was closed"
        try:
            while (frame := self._inbox.get()) is not None:
                self._handle(frame)
                self._handled += 1
        except ProtocolError as e:
            reason = str(e)
        except Exception as e:  # noqa: BLE001 - a handler may raise anything
            reason = f"a handler of this program failed: {e!r}"
            report(e)
        finally:
            self._end(reason)

    def _read_on(self, answer: Answer, timeout: float | None) -> None:
        """A handler makes a call: what comes before the answer is handled meanwhile."""
        limit = None if timeout is None else time.monotonic() + timeout
        while not answer.over:
            try:
                frame = self._inbox.get(timeout=None if limit is None else max(0.0, limit - time.monotonic()))
            except Empty:
                return
            if frame is None:  # for ``_read``; who closes the channel settles the answer
                self._inbox.put(None)
                return
            self._handle(frame)
            self._handled += 1

    def _release(self) -> None:
        self._inbox.put(None)
        super()._release()
