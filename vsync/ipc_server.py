"""The daemon's side of the Unix socket, without a thread of its own: a part of the node's loop.

The server never blocks and does a bounded amount of work per turn. Whatever a client does – nonsense,
silence, not reading – ends at worst that client's own connection. A client's end of file is the end of its
session, at once: so a killed client's locks are free without any timeout.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import shutil
import socket
import struct
import time
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from vsync.errors import ProtocolError, TransportError
from vsync.framing import PROTOCOL_VERSION, Decoder, encode
from vsync.logs import get_logger
from vsync.page import Page
from vsync.service import Credentials

__all__ = ["Server", "SessionHost", "SocketSession"]

MAX_CONNECTIONS = 4096
MAX_UNSENT = 16 << 20  #: bytes; a client that lets more than this wait for it is disconnected
PAUSE_UNSENT = 1 << 20  #: bytes; while more than this waits for a client to read, its requests wait too
FRAMES_PER_TURN = 128  #: requests taken from all clients in one turn
TURN_S = 0.005  #: no further requests in a turn that has taken so long: the token must not wait for clients
FRAMES_PER_CLIENT = 16  #: of these, from one client before the next has its turn
ACCEPTS_PER_TURN = 16
_RECEIVE = 1 << 16
_SEND = 1 << 18
_EVENTS = 256  #: connections looked at in one turn
_TEXT = {str}
_UCRED = struct.Struct("3i")

_log = get_logger("vsync.ipc")


class SessionHost(Protocol):
    """What the server needs of the node."""

    def new_session(self) -> int:
        """A number that no other session of this node has had."""
        ...

    def session_opened(self, session: SocketSession, who: Credentials) -> None:
        """A client said hello; must begin with ``session.welcome``."""

    def session_request(self, session: int, rid: int, service: str, verb: str, args: dict[str, Any]) -> None:
        """A well-formed request."""

    def session_closed(self, session: int) -> None:
        """The session is over; called once, also when the server closed it."""


class SocketSession:
    """One connection, and – after its hello – one session."""

    def __init__(self, server: Server, connection: socket.socket) -> None:
        self.number = 0  #: the session's, 0 before the hello
        self.connection = connection
        self.decoder = Decoder()
        self.credentials = _credentials(connection)
        self.page: Page | None = None
        self.events = select.EPOLLIN
        self.open = True
        self.paused = False  #: no requests are taken until the client has read its answers
        self._server = server
        self.unsent: deque[bytes] = deque()
        self.unsent_size = 0

    def reply(self, rid: int, ok: bool, data: Any) -> None:
        """Queue the answer to request ``rid``."""
        self._put([rid, ok, data])

    def push(self, service: str, kind: str, data: Any) -> None:
        """Queue an unsolicited event."""
        self._put([0, service, kind, data])

    def lease(self, generation: int, deadline: int) -> None:
        """Publish until when the session's locks are valid."""
        if self.page is not None:
            self.page.write(generation, deadline)

    def flush(self) -> None:
        """Send what is queued, as far as the client reads it."""
        self._server.flush(self)

    def end(self, code: str, text: str) -> None:
        """Close the session from the node's side, with a last word."""
        self._server.refuse(self, code, text)

    def welcome(self, body: Mapping[str, Any]) -> None:
        """Queue the answer to the hello."""
        page = str(self.page.path) if self.page else None
        self._put(["welcome", PROTOCOL_VERSION, {**body, "session": self.number, "page": page}])

    def farewell(self, code: str, text: str) -> None:
        """Queue the last frame."""
        self._put(["error", code, text])

    def _put(self, frame: list[Any]) -> None:
        if not self.open:
            return
        try:
            data = encode(frame)
        except (ProtocolError, TypeError, ValueError, OverflowError) as e:
            # The mistake of a service, not of the client: say so instead of leaving a call without an answer.
            _log.error("answer_not_sent", session=self.number, error=str(e))
            if not (isinstance(frame[0], int) and frame[0] > 0):
                return
            data = encode([frame[0], False, {"code": "too_large", "message": f"the answer cannot be sent: {e}"}])
        self.unsent.append(data)
        self.unsent_size += len(data)
        self._server.touched.add(self)

    def send_some(self) -> None:
        """One non-blocking send of what is queued. Raises ``OSError`` when the connection is broken."""
        data = self.unsent.popleft()
        if self.unsent and len(data) < _SEND:
            parts = [data]
            size = len(data)
            while self.unsent and size < _SEND:
                parts.append(self.unsent.popleft())
                size += len(parts[-1])
            data = b"".join(parts)
        try:
            sent = self.connection.send(data)
        except BlockingIOError:
            sent = 0
        self.unsent_size -= sent
        if sent < len(data):
            self.unsent.appendleft(data[sent:])


class Server:
    """Listens at ``path`` and serves sessions.

    ``runtime_dir`` is where deadline pages live. Raises ``TransportError`` if another daemon listens at
    ``path`` or it cannot be bound.
    """

    def __init__(self, path: Path, runtime_dir: Path, host: SessionHost) -> None:
        self.path = path
        self.touched: set[SocketSession] = set()  #: sessions with something to flush
        self.sessions: dict[int, SocketSession] = {}
        self._host = host
        self._pages = runtime_dir / f"{path.name}.pages"
        self._ready: deque[SocketSession] = deque()  # connections with whole frames that were not handled yet
        self._epoll = select.epoll()  # of ``selectors`` the wrapping costs more than the system call
        self._connected: dict[int, SocketSession] = {}
        self._accepting = False
        self._spare = os.open(os.devnull, os.O_RDONLY)
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._lock = _lock(path)
            self._listener = _listen(path)
            shutil.rmtree(self._pages, ignore_errors=True)  # pages of a daemon that was killed
            self._pages.mkdir(mode=0o755, parents=True)
        except OSError as e:
            self._epoll.close()
            os.close(self._spare)
            if isinstance(e, TransportError):
                raise
            raise TransportError(f"the socket {path} cannot be made: {e.strerror or e}; set another one") from e
        self._accept_more(True)
        _servers.add(self)

    def fileno(self) -> int:
        """Polls readable when ``turn`` has something to do."""
        return self._epoll.fileno()

    @property
    def backlog(self) -> bool:
        """Whether requests wait that the last turn had no room for."""
        return bool(self._ready)

    def turn(self) -> None:
        """Accept, read and hand on requests: as much as fits into one turn. Never blocks."""
        for fd, events in self._epoll.poll(0, _EVENTS):
            session = self._connected.get(fd)
            if session is None:
                if fd == self._listener.fileno():
                    self._accept()
                continue
            # An end or an error, which is neither, is found out by whichever is waited for.
            waits = session.events
            if waits & select.EPOLLOUT and events & ~select.EPOLLIN:
                self.flush(session)
            if waits & select.EPOLLIN and events & ~select.EPOLLOUT and session.open:
                self._receive(session)
        budget, limit = FRAMES_PER_TURN, time.monotonic() + TURN_S
        while self._ready and budget > 0 and time.monotonic() < limit:
            session = self._ready.popleft()
            budget -= self._handle(session, min(budget, FRAMES_PER_CLIENT), limit)

    def flush_all(self) -> None:
        """Send what the turn has queued."""
        while self.touched:
            self.flush(self.touched.pop())

    def flush(self, session: SocketSession) -> None:
        """Send what is queued for one session; disconnect a client that lets too much wait."""
        self.touched.discard(session)
        if not session.open:
            return
        if session.unsent:
            try:
                session.send_some()
            except OSError:
                self._close(session)
                return
        if session.unsent_size > MAX_UNSENT:
            _log.warning("client_does_not_read", **self._who(session), unsent=session.unsent_size)
            self._close(session)
        else:
            self._listen_to(session)

    def refuse(self, session: SocketSession, code: str, text: str) -> None:
        """Say why and close this connection; nothing else happens."""
        if session.open:
            session.farewell(code, text)
            self.flush(session)
            self._close(session)

    def close(self, code: str, text: str) -> None:
        """End every session and stop listening. Idempotent."""
        if self._epoll.closed:
            return
        for session in list(self._connected.values()):
            self.refuse(session, code, text)
        self._accept_more(False)
        self._listener.close()
        self._epoll.close()
        self.path.unlink(missing_ok=True)
        shutil.rmtree(self._pages, ignore_errors=True)
        os.close(self._lock)
        os.close(self._spare)

    def drop_in_child(self) -> None:
        """Called in a forked child: let go of the descriptors, so that it does not keep its parent's clients from
        seeing the parent's death. Nothing is unregistered: the child shares the epoll set with its parent.
        """
        if self._epoll.closed:
            return
        for session in self._connected.values():
            session.connection.close()
        self._listener.close()
        self._epoll.close()
        os.close(self._lock)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as e:
                self._turn_away(e)
                return
            connection.setblocking(False)
            session = SocketSession(self, connection)
            self._connected[connection.fileno()] = session
            self._epoll.register(connection, session.events)
            if len(self._connected) >= MAX_CONNECTIONS:
                _log.warning("too_many_connections", limit=MAX_CONNECTIONS)
                self._accept_more(False)
                return

    def _turn_away(self, error: OSError) -> None:
        """Out of descriptors: take the client with the spare one and hang up; else it would poll for ever."""
        _log.error("accept_failed", error=error.strerror)
        if error.errno in (errno.EMFILE, errno.ENFILE):
            os.close(self._spare)
            with contextlib.suppress(OSError):
                self._listener.accept()[0].close()
            self._spare = os.open(os.devnull, os.O_RDONLY)

    def _accept_more(self, more: bool) -> None:
        if more and not self._accepting:
            self._epoll.register(self._listener, select.EPOLLIN)
        elif not more and self._accepting:
            self._epoll.unregister(self._listener)
        self._accepting = more

    def _receive(self, session: SocketSession) -> None:
        # Not while frames wait: the socket's buffer then fills and the client has to wait, as it should.
        if session.decoder.has_frame():
            return
        try:
            data = session.connection.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(session)
            return
        session.decoder.feed(data)
        if session.decoder.has_frame():
            self._ready.append(session)

    def _handle(self, session: SocketSession, count: int, limit: float) -> int:
        """Handle up to ``count`` frames of one session until ``limit`` (monotonic seconds); returns how many."""
        handled = 0
        try:
            while session.open and handled < count:
                frame = session.decoder.next()
                if frame is None:
                    return max(handled, 1)
                handled += 1
                self._frame(session, frame)
                session.paused = session.unsent_size > PAUSE_UNSENT
                if session.paused or time.monotonic() >= limit:
                    break
        except ProtocolError as e:
            _log.warning("client_protocol_error", **self._who(session), error=str(e))
            self.refuse(session, "protocol", str(e))
            return handled + 1
        if session.open and not session.paused and session.decoder.has_frame():
            self._ready.append(session)
        return max(handled, 1)

    def _frame(self, session: SocketSession, frame: list[Any]) -> None:
        if session.number == 0:
            self._hello(session, frame)
            return
        match frame:
            case [int(rid), str(service), str(verb), dict(args)] if rid >= 0 and type(rid) is int:
                if args and set(map(type, args)) != _TEXT:
                    raise ProtocolError("the keys of a request's arguments must be text")
                self._host.session_request(session.number, rid, service, verb, args)
            case _:
                raise ProtocolError("a request must be [rid >= 0, service, verb, {arguments}]")

    def _hello(self, session: SocketSession, frame: list[Any]) -> None:
        match frame:
            case ["vsync", int(version), {"name": str(name)}]:
                if version != PROTOCOL_VERSION:
                    raise ProtocolError(f"version {version} is not spoken here, only {PROTOCOL_VERSION}")
            case _:
                raise ProtocolError('the first frame must be ["vsync", 1, {"name": ..., "pid": ...}]')
        pid, uid, gid = session.credentials
        number = self._host.new_session()
        try:
            session.page = Page(self._pages / str(number), uid)
        except OSError as e:
            # A full /run: the session would never hold a valid lock; better to say so now.
            raise ProtocolError(f"no deadline page could be made in {self._pages}: {e.strerror}") from e
        session.number = number
        self.sessions[number] = session
        self._host.session_opened(session, Credentials(pid, uid, gid, name[:64]))

    def _close(self, session: SocketSession) -> None:
        if not session.open:
            return
        session.open = False
        self.touched.discard(session)
        with contextlib.suppress(ValueError):
            self._ready.remove(session)
        self._epoll.unregister(session.connection)
        del self._connected[session.connection.fileno()]
        session.connection.close()
        if session.page is not None:
            session.page.close()
        if self.sessions.pop(session.number, None) is not None:
            self._host.session_closed(session.number)
        self._accept_more(True)

    def _listen_to(self, session: SocketSession) -> None:
        """Wait for what the session can do next: read if answers wait, and write unless it is paused."""
        if session.paused and session.unsent_size <= PAUSE_UNSENT:
            session.paused = False
            if session.decoder.has_frame():
                self._ready.append(session)
        events = 0 if session.paused else select.EPOLLIN
        if session.unsent:
            events |= select.EPOLLOUT
        if events != session.events:
            session.events = events
            self._epoll.modify(session.connection, events)

    def _who(self, session: SocketSession) -> dict[str, int]:
        return {"session": session.number, "pid": session.credentials[0], "uid": session.credentials[1]}


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    return pid, uid, gid


def _lock(path: Path) -> int:
    """Hold ``<path>.lock``: only its holder may remove a socket that was left behind."""
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(fd)
        raise TransportError(f"the socket {path} is in use by another daemon; stop it or set another one") from e
    return fd


def _listen(path: Path) -> socket.socket:
    if path.exists() and not path.is_socket():
        # Never unlinked: a wrong path in a configuration must not cost anybody a file.
        raise TransportError(f"{path} exists and is not a socket; remove it or set another socket")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o666)  # who may connect is a matter of the directory's permissions
        listener.listen(1024)  # whoever finds it full waits, as long as the daemon has its turn
    except BaseException:
        listener.close()
        raise
    return listener


_servers: weakref.WeakSet[Server] = weakref.WeakSet()


def _forked() -> None:
    for server in list(_servers):
        server.drop_in_child()


os.register_at_fork(after_in_child=_forked)
