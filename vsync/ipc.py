"""The client's side of a session with a node: requests out, replies and pushes in.

``Channel`` is what client libraries (``vsync.client``, ``dlm``) are written against. There are two kinds:
``SocketChannel`` speaks to a daemon over a Unix stream socket, ``vsync.embedded.LocalChannel`` to a node
in the same process. Both share their bookkeeping, ``BaseChannel``.

Every channel has one reader thread; push handlers, close handlers and the callbacks of futures run on it
and must not block (after ``close()``, close handlers run on the caller's thread). A handler may make a call; what
comes before its answer is handled meanwhile. All public methods may be called from any thread.

A thread that waits for an answer of a ``SocketChannel`` reads by itself, and the reader thread rests meanwhile
(``vsync.turns``): so a push that follows on an answer may be handled some milliseconds later.
A signal handler that interrupts such a thread must not wait for the node: that is a ``RuntimeError``.
``vsync.aio`` has channels without a thread, for event loops.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import struct
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from vsync.answer import Answer
from vsync.errors import ForkedProcess, NotConnected, ProtocolError, RequestFailed
from vsync.framing import PROTOCOL_VERSION, Inbox, encode
from vsync.page import PageError, PageReader
from vsync.turns import Turns

__all__ = [
    "CONNECT_S", "DEFAULT_URL", "RECEIVE", "BaseChannel", "Channel", "SocketChannel", "connect", "hello", "refusal",
    "report", "socket_path", "welcomed",
]  # fmt: skip

DEFAULT_URL = "unix:///run/vsync/vsyncd.sock"
CONNECT_S = 5.0
RECEIVE = 1 << 16
_POLL_MOST = 1 << 30  # milliseconds
_TIMEVAL = struct.Struct("ll")


class Channel(Protocol):
    """A session with a node."""

    welcome: Mapping[str, Any]  #: session, node, cluster, page, lease_us, services
    local: bool  #: the node is in this process

    def call(self, service: str, verb: str, args: Mapping[str, Any], timeout: float | None = None) -> Any:
        """Request and wait for the answer.

        Raises ``RequestFailed`` with the service's code, ``NotConnected`` when the node is gone,
        ``TimeoutError`` after ``timeout`` seconds (the request goes on; its answer is dropped).
        """
        ...

    def start(self, service: str, verb: str, args: Mapping[str, Any]) -> Future[Any]:
        """Request without waiting; the future raises what ``call`` would.

        To wait, use its ``result`` or ``exception``, which may read the answer by themselves;
        ``concurrent.futures.wait`` may hear of it some milliseconds later.
        """
        ...

    def post(self, service: str, verb: str, args: Mapping[str, Any]) -> None:
        """Request that is not answered. Raises ``NotConnected`` when the node is gone."""
        ...

    def on_push(self, service: str, handler: Callable[[str, Any], None], quick: bool = False) -> None:
        """Call ``handler(kind, data)`` on the reader thread for every push of ``service``.

        ``quick``: it neither waits nor runs code of the program, so any thread may call it, one at a time.
        """
        ...

    def on_close(self, handler: Callable[[str], None]) -> None:
        """Call ``handler(reason)`` once at the session's end, before pending calls fail; now if it has ended."""
        ...

    @property
    def turns(self) -> Turns | None:
        """Who reads, for those who wait for what quick handlers put somewhere; ``None``: they need not read."""
        ...

    @property
    def frame(self) -> int:
        """For a quick handler: the number of the frame, if it may be called twice for the same one; else 0."""
        ...

    def lease_deadline(self) -> tuple[int, int]:
        """(generation, deadline in µs of CLOCK_BOOTTIME); (0, 0) when the session is over."""
        ...

    def close(self) -> None:
        """End the session. Idempotent; close handlers run first, then pending calls fail."""
        ...


def connect(url: str | None = None, name: str | None = None) -> SocketChannel:
    """A session with the daemon at ``url``: ``unix:///path`` or a path; default $VSYNC_URL, else the
    system's.

    ``name`` is what operators see; default: the program's. Raises ``NotConnected`` naming URL and remedy.
    """
    return SocketChannel(url or os.environ.get("VSYNC_URL") or DEFAULT_URL, name)


def socket_path(url: str) -> str:
    """The path in ``unix:///path``, or ``url`` itself if it is a path. Raises ``NotConnected`` otherwise."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    if scheme != "unix" or not rest.startswith("/"):
        raise NotConnected(f"{url} is not an address of vsyncd; use unix:///run/vsync/vsyncd.sock or a path")
    return rest


class BaseChannel(ABC):
    """Pending calls, handlers, and the one end of a session. Subclasses carry the requests."""

    local = False

    def __init__(self) -> None:
        self.welcome: Mapping[str, Any] = {}
        self._state = threading.Lock()
        self._pending: dict[int, Future[Any]] = {}
        self._last_rid = 0
        self._push_handlers: dict[str, Callable[[str, Any], None]] = {}
        self._quick: dict[str, Callable[[str, Any], None]] = {}  # those that any thread may call
        self._close_handlers: list[Callable[[str], None]] = []
        self._closed: str | None = None  # the reason, once the session is over
        self._ended = threading.Event()  # set when the close handlers have run
        self._forked = False
        _channels.add(self)

    def call(self, service: str, verb: str, args: Mapping[str, Any], timeout: float | None = None) -> Any:
        """See ``Channel.call``."""
        return self.start(service, verb, args).result(timeout)

    def start(self, service: str, verb: str, args: Mapping[str, Any]) -> Future[Any]:
        """See ``Channel.start``."""
        self._check_fork()
        future = self._promise()
        with self._state:
            closed = self._closed
            self._last_rid += 1
            rid = self._last_rid
            if closed is None:
                self._pending[rid] = future
        if closed is not None:
            _settle(future, None, NotConnected(closed))
            return future
        try:
            self._transmit(rid, service, verb, args)
        except NotConnected:
            pass  # the session's end fails the future, after the close handlers
        except BaseException:
            with self._state:
                self._pending.pop(rid, None)
            raise
        return future

    def post(self, service: str, verb: str, args: Mapping[str, Any]) -> None:
        """See ``Channel.post``."""
        self._check_fork()
        if self._closed is not None:
            raise NotConnected(self._closed)
        self._transmit(0, service, verb, args)

    def on_push(self, service: str, handler: Callable[[str, Any], None], quick: bool = False) -> None:
        """See ``Channel.on_push``."""
        self._push_handlers[service] = handler
        if quick:
            self._quick[service] = handler
        else:
            self._quick.pop(service, None)

    def on_close(self, handler: Callable[[str], None]) -> None:
        """See ``Channel.on_close``."""
        with self._state:
            closed = self._closed
            if closed is None:
                self._close_handlers.append(handler)
        if closed is not None:
            handler(closed)

    @property
    def turns(self) -> Turns | None:
        """See ``Channel.turns``."""
        return None

    @property
    def frame(self) -> int:
        """See ``Channel.frame``."""
        return 0

    @abstractmethod
    def lease_deadline(self) -> tuple[int, int]:
        """See ``Channel.lease_deadline``."""

    def close(self) -> None:
        """See ``Channel.close``."""
        if not self._forked:
            self._end("the session was closed by this program")

    def _promise(self) -> Future[Any]:
        """What ``start`` gives."""
        return Future()

    @abstractmethod
    def _transmit(self, rid: int, service: str, verb: str, args: Mapping[str, Any]) -> None:
        """Carry one request, or raise ``NotConnected`` (then ``_end`` has been or will be called)."""

    @abstractmethod
    def _release(self) -> None:
        """Give up what connects to the node; called once, after the close handlers."""

    def _drop_in_child(self) -> None:
        """Called in a forked child: let go of descriptors, without a word to the node."""
        self._forked = True

    def _check_fork(self) -> None:
        if self._forked:
            raise ForkedProcess(
                f"this session belongs to the process that opened it; connect again in process {os.getpid()}"
            )

    def _handle(self, frame: list[Any]) -> None:
        """A reply or a push, on the reader thread. Raises ``ProtocolError`` for anything else."""
        match frame:
            case [int(rid), True, result] if rid > 0:
                self._resolve(rid, result, None)
            case [int(rid), False, {"code": str(code), "message": str(text), **more}] if rid > 0:
                self._resolve(rid, None, RequestFailed(code, text, {str(k): v for k, v in more.items()}))
            case [0, str(service), str(kind), data]:
                handler = self._push_handlers.get(service)
                if handler is not None:
                    handler(kind, data)
            case ["error", str(code), str(text)]:
                raise ProtocolError(f"{text} ({code})")
            case _:
                raise ProtocolError("the daemon sent a frame that is neither reply nor push")

    def _offer(self, frame: list[Any]) -> bool:
        """Whether a frame was an answer that a thread waits for; it may be called again for the same."""
        match frame:
            case [int(rid), True, result] if rid > 0:
                error = None
            case [int(rid), False, {"code": str(code), "message": str(text), **more}] if rid > 0:
                result, error = None, RequestFailed(code, text, {str(k): v for k, v in more.items()})
            case _:
                return False
        future = self._pending.get(rid)
        if future is not None:
            if not (isinstance(future, Answer) and future.offer(result, error)):
                return False
            self._pending.pop(rid, None)  # last: see above
        return True

    def _resolve(self, rid: int, result: Any, error: Exception | None) -> None:
        with self._state:
            future = self._pending.pop(rid, None)
        if future is not None:
            _settle(future, result, error)

    def _end(self, reason: str) -> None:
        """End the session once: no lease, close handlers, connection closed, pending calls fail – in this
        order.

        That order lets a library mark its handles lost before the node can see the end and give the locks to
        others (design §5.4).
        """
        with self._state:
            if self._closed is not None:
                return
            self._closed = reason
            handlers, self._close_handlers = self._close_handlers, []
        for handler in handlers:
            try:
                handler(reason)
            except Exception as e:  # noqa: BLE001 - the others must be told nevertheless
                report(e)
        self._release()
        with self._state:
            pending, self._pending = self._pending, {}
        for future in pending.values():
            _settle(future, None, NotConnected(reason))
        self._ended.set()


class SocketChannel(BaseChannel):
    """A session over a Unix stream socket."""

    def __init__(self, url: str, name: str | None = None) -> None:
        super().__init__()
        self.url = url
        self._page: PageReader | None = None
        self._writing = threading.Lock()
        self._inbox = Inbox()
        self._turns = Turns(self, self._settle, self._handle)
        self._poll = select.poll()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Not settimeout: with it, connect fails at once when many others are connecting too (EAGAIN).
            limit = _TIMEVAL.pack(int(CONNECT_S), int(CONNECT_S % 1 * 1_000_000))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            self._socket.connect(socket_path(url))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(0, 0))
            self._socket.settimeout(CONNECT_S)
            self._greet(name)
            self._socket.settimeout(None)
            self._poll.register(self._socket, select.POLLIN)
        except BaseException as e:
            self._socket.close()
            if isinstance(e, (OSError, ProtocolError)) and not isinstance(e, NotConnected):
                raise refusal(url, e) from e
            raise
        self._reader = threading.Thread(target=self._read, name="vsync-channel", daemon=True)
        self._reader.start()

    def lease_deadline(self) -> tuple[int, int]:
        """What the page says; (0, 0) without a page, after the end, and in a forked child."""
        page = self._page
        if page is None or self._closed is not None or self._forked:
            return 0, 0
        return page.read()

    def _greet(self, name: str | None) -> None:
        self._socket.sendall(hello(name))
        while (frame := self._inbox.peek()) is None:
            if not self._inbox.fill(self._socket.recv, RECEIVE):
                raise ProtocolError("the connection was closed before a welcome")
        self._inbox.take()
        self.welcome, self._page = welcomed(frame)

    def _transmit(self, rid: int, service: str, verb: str, args: Mapping[str, Any]) -> None:
        data = encode([rid, service, verb, args])
        try:
            with self._writing:
                self._socket.sendall(data)
        except OSError as e:
            # The reader sees the end too; whoever is first tells. Its handlers must not run on this thread.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            raise NotConnected(f"the daemon at {self.url} is gone: {e.strerror}") from e

    def _promise(self) -> Future[Any]:
        return Answer(self._turns)

    @property
    def turns(self) -> Turns | None:
        """See ``Channel.turns``."""
        return self._turns

    @property
    def frame(self) -> int:
        """See ``Channel.frame``."""
        return self._inbox.number

    def _settle(self, frame: list[Any]) -> bool:
        """Deal with a frame that any thread may deal with; it may be called again for the same."""
        match frame:
            case [0, str(service), str(kind), data]:
                handler = self._quick.get(service)
                if handler is not None:
                    handler(kind, data)
                return handler is not None
        return self._offer(frame)

    def peek(self) -> Any:
        """See ``Source.peek``."""
        return self._inbox.peek()

    def take(self) -> None:
        """See ``Source.take``."""
        self._inbox.take()

    def more(self, patience: float | None) -> None:
        """See ``Source.more``."""
        if patience is not None and not self._poll.poll(min(math.ceil(patience * 1000), _POLL_MOST)):
            return
        if not self._inbox.fill(self._socket.recv, RECEIVE):
            raise EOFError

    def _read(self) -> None:
        reason = f"the daemon at {self.url} closed the connection"
        try:
            self._turns.run()
        except EOFError:
            pass
        except ProtocolError as e:
            reason = f"the daemon at {self.url} ended the session: {e}"
        except OSError as e:
            reason = f"the connection to {self.url} broke: {e.strerror}"
        except Exception as e:  # noqa: BLE001 - a handler may raise anything
            report(e)
            reason = f"a handler of this program failed: {e!r}"
        finally:
            self._end(reason)

    def _release(self) -> None:
        # shutdown first: close alone does not wake a thread that is blocked in recv
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._turns.end()
        if threading.current_thread() is not self._reader:
            self._reader.join(timeout=1)
        self._socket.close()

    def _drop_in_child(self) -> None:
        super()._drop_in_child()
        self._socket.close()  # without shutdown: the parent goes on using the connection


def _settle(future: Future[Any], result: Any, error: Exception | None) -> None:
    """Complete a future, unless its caller has cancelled it."""
    if isinstance(future, Answer):
        future.settle(result, error)
    elif not future.set_running_or_notify_cancel():
        return
    elif error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def hello(name: str | None) -> bytes:
    """The first frame of a client called ``name``, by default after the program."""
    name = name or os.path.basename(sys.argv[0]) or "python"
    return encode(["vsync", PROTOCOL_VERSION, {"name": name, "pid": os.getpid()}])


def welcomed(frame: Any) -> tuple[dict[str, Any], PageReader | None]:
    """What the daemon's first frame says, and the deadline page that it names. Raises ``ProtocolError``."""
    match frame:
        case ["welcome", int(), dict(welcome)]:
            pass
        case ["error", str(code), str(text)]:
            raise ProtocolError(f"{text} ({code})")
        case _:
            raise ProtocolError("the answer is no welcome: is this a vsyncd socket?")
    if not welcome.get("page"):
        return welcome, None
    try:
        return welcome, PageReader(welcome["page"])
    except PageError as e:
        raise ProtocolError(f"{e}; the client needs read access to the daemon's runtime_dir") from e


def refusal(url: str, cause: OSError | ProtocolError) -> NotConnected:
    """The exception for a daemon that cannot be reached, with the remedy."""
    if isinstance(cause, (TimeoutError, BlockingIOError)):
        why, remedy = "does not answer", "is the process stopped or overloaded? (systemctl status vsyncd)"
    elif isinstance(cause, PermissionError):
        why, remedy = "may not be used by this user", "ask for access to the socket's directory"
    elif isinstance(cause, (FileNotFoundError, ConnectionRefusedError)):
        why, remedy = "is not there", "start vsyncd, or set VSYNC_URL or --url to its socket"
    else:
        text = cause.strerror if isinstance(cause, OSError) else None
        why, remedy = f"cannot be used: {text or cause}", "look at the daemon's log"
    return NotConnected(f"the daemon at {url} {why}; {remedy}")


def report(error: Exception) -> None:
    """Show a handler's exception through ``threading.excepthook``, as if a thread had died of it."""
    threading.excepthook(
        threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
    )


# A child must neither speak on its parent's sockets nor keep them open: the node would not see the
# parent's death.
_channels: weakref.WeakSet[BaseChannel] = weakref.WeakSet()


def _forked() -> None:
    for channel in list(_channels):
        channel._drop_in_child()


os.register_at_fork(after_in_child=_forked)
