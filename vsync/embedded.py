"""Sessions with a node in the same process: the same channel, without a socket.

Requests go to the node's thread through its queue; answers and pushes come back to the channel's own
reader thread, so the ring runs no user code. What is passed are Python objects, not copies: treat them as
read-only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

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
        self._attach(loop, name, self._inbox.put)
        # Bounded only by the node's life: at its end every session, this one included, gets a last frame.
        self._welcome(self._inbox.get())
        self._reader = threading.Thread(target=self._read, name="vsync-channel", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        reason = "the session was closed"
        try:
            while (frame := self._inbox.get()) is not None:
                self._handle(frame)
        except ProtocolError as e:
            reason = str(e)
        except Exception as e:  # noqa: BLE001 - a handler may raise anything
            reason = f"a handler of this program failed: {e!r}"
            report(e)
        finally:
            self._end(reason)

    def _release(self) -> None:
        self._inbox.put(None)
        super()._release()
