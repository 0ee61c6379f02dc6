"""Sessions with a node inside an asyncio event loop: the same channel, without a thread.

Everything about such a channel happens in its loop: its methods are called there, and push handlers, close handlers
and the callbacks of its futures run there. A socket is read and written when the loop says that it can be
(``add_reader``); frames of a node in the same process come by ``call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from vsync import ipc
from vsync.embedded import LocalBase
from vsync.errors import NotConnected, ProtocolError
from vsync.framing import Decoder, encode
from vsync.ipc import DEFAULT_URL, RECEIVE, BaseChannel, hello, refusal, socket_path, welcomed

if TYPE_CHECKING:
    from vsync.loop import Loop
    from vsync.page import PageReader

__all__ = ["LocalLoopChannel", "LoopChannel", "SocketLoopChannel", "connect", "connect_local"]

BACKLOG_POLL_S = 0.01  #: between attempts while the daemon's backlog is full, of which nothing tells the end


async def connect(url: str | None = None, name: str | None = None) -> SocketLoopChannel:
    """A session with the daemon at ``url``, for the running event loop; arguments and exceptions are those of
    ``vsync.ipc.connect``.
    """
    url = url or os.environ.get("VSYNC_URL") or DEFAULT_URL
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    decoder = Decoder()
    try:
        connection.setblocking(False)
        async with asyncio.timeout(ipc.CONNECT_S):
            await _connect(connection, socket_path(url))
            await loop.sock_sendall(connection, hello(name))
            while (frame := decoder.next()) is None:
                data = await loop.sock_recv(connection, RECEIVE)
                if not data:
                    raise ProtocolError("the connection was closed before a welcome")
                decoder.feed(data)
        welcome, page = welcomed(frame)
    except BaseException as e:
        connection.close()
        if isinstance(e, (OSError, ProtocolError)) and not isinstance(e, NotConnected):
            raise refusal(url, e) from e
        raise
    return SocketLoopChannel(loop, url, connection, decoder, welcome, page)


async def connect_local(node: Loop, name: str = "embedded") -> LocalLoopChannel:
    """A session with the node in this process that runs ``node``, for the running event loop.

    Raises ``NotConnected`` if it is not running.
    """
    channel = LocalLoopChannel(asyncio.get_running_loop())
    await channel.open(node, name)
    return channel


async def _connect(connection: socket.socket, path: str) -> None:
    """Not ``loop.sock_connect``: that takes EAGAIN, which a full backlog gives, for a connection on its way."""
    while True:
        try:
            connection.connect(path)
            return
        except BlockingIOError:
            await asyncio.sleep(BACKLOG_POLL_S)


class LoopChannel(BaseChannel):
    """A session that belongs to an event loop. Not thread-safe: used in its loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop

    def call(self, service: str, verb: str, args: Mapping[str, Any], timeout: float | None = None) -> NoReturn:
        """Not here: it would stop the loop that has to bring the answer."""
        raise RuntimeError("an event loop must not wait; use start()")

    @abstractmethod
    async def flushed(self, timeout: float) -> bool:
        """Wait until the node can read what was sent, at most ``timeout`` seconds; whether that is so."""

    def _take(self, frame: Any) -> None:
        """Handle a frame; the session ends if that fails."""
        try:
            self._handle(frame)
        except ProtocolError as e:
            self._end(self._broken(e))
        except Exception as e:  # noqa: BLE001 - a handler may raise anything
            self.loop.call_exception_handler({"message": f"a handler of {self!r} failed", "exception": e})
            self._end(f"a handler of this program failed: {e!r}")

    def _broken(self, error: ProtocolError) -> str:
        """What to say of a session that the node ended, or broke."""
        return str(error)


class SocketLoopChannel(LoopChannel):
    """A session over a Unix stream socket. Made by ``connect``.

    What the socket does not take at once is kept until it does, without a bound: a caller who waits for answers
    is held up by those.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        url: str,
        connection: socket.socket,
        decoder: Decoder,
        welcome: Mapping[str, Any],
        page: PageReader | None,
    ) -> None:
        super().__init__(loop)
        self.url = url
        self.welcome = welcome
        self._socket = connection
        self._decoder = decoder
        self._page = page
        self._unsent = bytearray()
        self._sent: asyncio.Future[None] | None = None  #: done when nothing is unsent
        loop.add_reader(connection, self._readable)
        if decoder.has_frame():  # it came with the welcome
            loop.call_soon(self._take_frames)

    def lease_deadline(self) -> tuple[int, int]:
        """What the page says; (0, 0) without a page, after the end, and in a forked child."""
        if self._page is None or self._closed is not None or self._forked:
            return 0, 0
        return self._page.read()

    async def flushed(self, timeout: float) -> bool:
        """See ``LoopChannel.flushed``."""
        if not self._unsent:
            return True
        if self._sent is None:
            self._sent = self.loop.create_future()
        try:
            await asyncio.wait_for(asyncio.shield(self._sent), timeout)
        except TimeoutError:
            return False
        return True

    def _transmit(self, rid: int, service: str, verb: str, args: Mapping[str, Any]) -> None:
        waiting = bool(self._unsent)
        self._unsent += encode([rid, service, verb, args])
        if not waiting and not self._write():
            raise NotConnected(f"the daemon at {self.url} is gone")

    def _write(self) -> bool:
        """Send what the socket takes; false if it is broken."""
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            # The reader sees the end too, and tells: handlers must not run in the middle of a call.
            self._unsent.clear()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            return False
        if self._unsent:
            self.loop.add_writer(self._socket, self._writable)
        return True

    def _writable(self) -> None:
        self._write()
        if not self._unsent:
            self.loop.remove_writer(self._socket)
            self._all_sent()

    def _all_sent(self) -> None:
        sent, self._sent = self._sent, None
        if sent is not None and not sent.done():
            sent.set_result(None)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            self._end(f"the connection to {self.url} broke: {e.strerror}")
            return
        if not data:
            self._end(f"the daemon at {self.url} closed the connection")
            return
        self._decoder.feed(data)
        self._take_frames()

    def _take_frames(self) -> None:
        try:
            while self._closed is None and (frame := self._decoder.next()) is not None:
                self._take(frame)
        except ProtocolError as e:
            self._end(self._broken(e))

    def _broken(self, error: ProtocolError) -> str:
        return f"the daemon at {self.url} ended the session: {error}"

    def _release(self) -> None:
        if not self.loop.is_closed():
            self.loop.remove_reader(self._socket)
            self.loop.remove_writer(self._socket)
        self._all_sent()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _drop_in_child(self) -> None:
        super()._drop_in_child()
        self._socket.close()  # without shutdown: the parent goes on using the connection


class LocalLoopChannel(LoopChannel, LocalBase):
    """A session with a node in the same process. Made by ``connect_local``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._inbox: deque[Any] = deque()
        self._called = False  #: ``_drain`` is on its way
        self._opened: asyncio.Future[Any] | None = None

    async def open(self, node: Loop, name: str) -> None:
        """Wait for the welcome: at the node's end every session, this one included, gets a last frame."""
        self._opened = self.loop.create_future()
        self._attach(node, name, self._put)
        try:
            self._welcome(await self._opened)
        except BaseException:
            self._end("the session was not opened")
            raise

    async def flushed(self, timeout: float) -> bool:
        """See ``LoopChannel.flushed``: what was sent stands in the node's queue."""
        return True

    def _put(self, frame: list[Any]) -> None:
        """Called by the node's thread, which must not suffer from a loop that has ended."""
        if self.loop.is_closed():
            self._inbox.clear()
            return
        self._inbox.append(frame)
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._called = False  # first: what is put from now on calls again
        while self._inbox:
            frame = self._inbox.popleft()
            if self._opened is not None and not self._opened.done():
                self._opened.set_result(frame)
            elif self._closed is None:
                self._take(frame)
