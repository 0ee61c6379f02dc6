"""The way in: ``dlm.connect()`` to a daemon, or ``dlm.Client(node)`` over a node in this process.

::

    with dlm.connect() as locks:
        with locks.lock("reports/nightly", timeout=10) as held:
            storage.write(report, fence=held.fence)

A ``with`` block is entered holding the lock, or not at all (API-R1). A lock has no time to live: it lasts
as long as its session, its node and the primary component do (API-R4); if one of them ends early, ``held``
tells.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, overload

from dlm import answers
from dlm.asking import lock_args, requested, taken_back
from dlm.client_failures import ClientFailures
from dlm.client_looking import ClientLooking
from dlm.client_spaces import ClientSpaces, open_space
from dlm.errors import ConfigError, InvalidRequest, LockTimeout, NotConnected
from dlm.held import Held
from dlm.info import Flag, Holder, LockInfo, Mode
from dlm.recipes import Recipes, ReentrantLock
from dlm.session import Session, checked_timeout
from dlm.together import Together
from dlm.transaction import Transaction, current_xid
from dlm.watch import LossWatch
from vsync import errors as vsync_errors
from vsync.clock import boot_us

if TYPE_CHECKING:
    from typing import Self

    from vsync.ipc import Channel

__all__ = ["Client", "Lock", "connect"]

OnLost = Callable[[Held, str], object]
OnBlocking = Callable[[Held, Mode], object]
NO_FLAGS = Flag(0)
WhenNoQuorum = Literal["wait", "fail"]
LS_LIMIT = 10_000


class HasChannel(Protocol):
    """A ``vsync.Node``, as far as it matters here."""

    def channel(self) -> Channel:
        """A new local session with the node."""
        ...


def connect(
    url: str | None = None, *, space: str = "default", create: bool = True, name: str | None = None
) -> Client:
    """Open a session with the local daemon, under the name ``name`` (default: the program's).

    ``space`` is the lockspace whose names it locks (docs/lockspaces.md). It is made if it is missing, which waits
    for the primary component; with ``create=False`` that is ``NoSuchSpace``, and nothing is waited for.

    ``url`` is ``unix:///path`` or a path; default ``$VSYNC_URL``, else ``unix:///run/vsync/vsyncd.sock``.
    Raises ``NotConnected`` naming the URL, ``ConfigError`` for a URL that is none.
    """
    from vsync import ipc

    url = url or os.environ.get("VSYNC_URL") or ipc.DEFAULT_URL
    try:
        channel = ipc.connect(url, name)
    except vsync_errors.NotConnected as error:
        raise NotConnected(str(error), url=url) from error
    except vsync_errors.ConfigError as error:
        raise ConfigError(str(error)) from error
    return Client.over(channel, space=space, create=create)


class Client(Recipes, ClientSpaces, ClientLooking, ClientFailures, Together):
    """A session with a node, and the locks it takes. Thread-safe; not usable after ``fork`` (API-R9).

    ``close`` (or the end of ``with``) gives back everything that is still held, without asking.
    """

    _session: Session

    def __init__(self, node: HasChannel, *, space: str = "default", create: bool = True) -> None:
        """Over an embedded ``vsync.Node``; ``space`` and ``create`` as for ``connect``. Raises ``NotConnected`` if
        it does not run.
        """
        try:
            channel = node.channel()
        except vsync_errors.NotConnected as error:
            raise NotConnected(str(error)) from error
        self._open(channel, space, create, boot_us)

    @classmethod
    def over(
        cls,
        channel: Channel,
        *,
        space: str = "default",
        create: bool = True,
        clock_us: Callable[[], int] = boot_us,
    ) -> Self:
        """Over any channel. ``clock_us`` is the clock of the lease, in microseconds."""
        self = cls.__new__(cls)
        self._open(channel, space, create, clock_us)
        return self

    def _open(self, channel: Channel, space: str, create: bool, clock_us: Callable[[], int]) -> None:
        self._session = Session(channel, space, clock_us)
        self._watch = LossWatch(self._session)
        try:
            waits: WhenNoQuorum = "wait" if create else "fail"
            self._session.value_limit = open_space(self._session, space, create, waits)
        except BaseException:
            self._session.close()
            raise

    # -- taking locks

    @overload
    def lock(
        self,
        name: str | bytes,
        mode: Mode = Mode.EX,
        timeout: float | None = None,
        *,
        no_quorum: WhenNoQuorum = "wait",
        on_lost: OnLost | None = None,
        xid: int | None = None,
        reentrant: Literal[False] = False,
        cache: bool | None = None,
    ) -> Lock: ...

    @overload
    def lock(
        self,
        name: str | bytes,
        mode: Mode = Mode.EX,
        timeout: float | None = None,
        *,
        no_quorum: WhenNoQuorum = "wait",
        on_lost: OnLost | None = None,
        xid: int | None = None,
        reentrant: Literal[True],
    ) -> ReentrantLock: ...

    def lock(
        self,
        name: str | bytes,
        mode: Mode = Mode.EX,
        timeout: float | None = None,
        *,
        no_quorum: WhenNoQuorum = "wait",
        on_lost: OnLost | None = None,
        xid: int | None = None,
        reentrant: bool = False,
        cache: bool | None = None,
    ) -> Lock | ReentrantLock:
        """A reusable description of a lock, taken by ``with``. Arguments as for ``acquire``; ``reentrant``: a
        thread that has it may take it again, and then ``cache`` is not for you to say.
        """
        key, mode = answers.name_bytes(name), Mode(mode)
        if not reentrant:
            return Lock(self, key, mode, timeout, no_quorum, on_lost, xid, cache)
        if cache:
            raise InvalidRequest("a reentrant lock is not cached")
        return ReentrantLock(self, key, mode, timeout, no_quorum, on_lost, xid)

    def exclusive(self, name: str | bytes, timeout: float | None = None) -> Lock:
        """``lock(name, Mode.EX)``."""
        return self.lock(name, Mode.EX, timeout)

    def shared(self, name: str | bytes, timeout: float | None = None) -> Lock:
        """``lock(name, Mode.PR)``: shared with other readers."""
        return self.lock(name, Mode.PR, timeout)

    def acquire(
        self,
        name: str | bytes,
        mode: Mode = Mode.EX,
        timeout: float | None = None,
        *,
        no_quorum: WhenNoQuorum = "wait",
        on_lost: OnLost | None = None,
        on_blocking: OnBlocking | None = None,
        flags: Flag = NO_FLAGS,
        xid: int | None = None,
        cache: bool | None = None,
    ) -> Held:
        """Take a lock, first come, first served in the order of the whole cluster (API-R13).

        ``timeout`` in seconds: ``None`` waits for ever, 0 is a try (API-R3). A caller that gives up, by
        time-out or by an exception such as ``KeyboardInterrupt``, leaves nothing behind in the queue
        (API-R8).

        ``no_quorum="fail"`` refuses to wait for the primary component; a try always does. ``on_lost(held,
        reason)`` is called once, by a thread of this client's own, when the lock is lost or its lease runs
        out. ``on_blocking(held, mode)`` is called by the same thread when another asks for ``mode`` and this lock
        is in the way: advice, merged where several come at once. ``flags``: see docs/locks.md.

        For the detection of deadlocks the lock belongs to the calling thread, or to the transaction ``xid``
        (default: the ``transaction`` that this thread or task is in; 0 for none).

        With ``cache`` the client keeps the lock after its release until somebody else wants it, or for some
        seconds: who takes it again in the same thread meanwhile needs no word with the daemon (docs/locks.md). For
        PR, PW and EX, without flags. ``None``: where the node is in this process, and only it uses the name.

        Raises ``LockTimeout``, ``NoQuorum``, ``NotConnected``, ``Deadlock``, ``InvalidRequest``,
        ``LockLost`` (lost before this method could return), ``ForkedProcess``.
        """
        session = self._session
        if timeout is not None:
            timeout = checked_timeout(timeout)
        kept = session.kept
        held: Held | None = None
        if (cache or (cache is None and kept.private)) and flags is NO_FLAGS and xid is None:
            held = kept.again(session, name, mode)
        if held is None:
            session.check_process()
            held = Held(session, answers.name_bytes(name), mode if type(mode) is Mode else Mode(mode))
            held.tells = on_blocking is not None
            self._ask(held, timeout, no_quorum, flags, xid, cache)
        if on_lost is not None or on_blocking is not None:
            held.tells, held.observed = on_blocking is not None, True
            self._watch.add(held, on_lost, on_blocking)
        return held

    def _ask(
        self,
        held: Held,
        timeout: float | None,
        no_quorum: WhenNoQuorum,
        flags: Flag,
        xid: int | None,
        cache: bool | None,
    ) -> None:
        """Ask the node for a lock."""
        session = self._session
        how = session.kept.how(cache, held.mode, flags, current_xid(session.root) if xid is None else xid)
        limit = None if timeout is None else time.monotonic() + timeout
        answers.check_friendly(flags)
        args = lock_args(session, held, flags, timeout, no_quorum, xid)
        try:
            args.update(session.kept.ask(held, how))
            with requested(session, "lock", args, taken_back(session, held)) as future:
                result, late = session.outcome(future, held, timeout)
                if late and timeout is not None:
                    raise session.too_late(held.name, timeout)
                with session.changed:
                    held.mark_granted(result)
                session.settle(held, limit)
                session.kept.granted(held, how)
        except BaseException:
            session.kept.drop(held)
            raise

    def try_lock(self, name: str | bytes, mode: Mode = Mode.EX, *, on_lost: OnLost | None = None) -> Held | None:
        """Take a lock if that needs no waiting for other holders, else ``None``. Raises ``NoQuorum`` and
        the like.
        """
        try:
            return self.acquire(name, mode, 0, on_lost=on_lost)
        except LockTimeout:
            return None

    def transaction(self, xid: int | None = None) -> Transaction:
        """``with client.transaction() as tx:`` makes the locks that this thread or task asks for inside belong to
        one owner, ``tx.xid``: 63 random bits, or the ``xid`` of another process that takes part.
        """
        return Transaction(self._session.root, xid)

    # -- looking at locks

    def show(self, name: str | bytes) -> LockInfo | None:
        """Who holds, converts and waits for ``name``, as this node knows it; ``None`` if nobody does."""
        key = answers.name_bytes(name)
        self._session.kept.hide(self._session.space, (key,))
        return self._session.show(key, self._session.space)

    def ls(self, prefix: str | bytes = b"", limit: int = LS_LIMIT) -> list[LockInfo]:
        """All names with locks that begin with ``prefix``, as this node knows them, sorted by name."""
        self._session.kept.hide(self._session.space)
        found: dict[bytes, LockInfo] = {}
        args = {"space": self._session.space, "prefix": answers.name_bytes(prefix), "limit": limit}
        while len(found) < limit:  # a long list comes in several answers
            known = len(found)
            page = [LockInfo.from_row(row) for row in self._session.call("ls", args)]
            found.update((row.name, row) for row in page)
            if len(found) == known:
                break
            args = {**args, "after": max(found), "limit": limit - len(found)}
        return [found[name] for name in sorted(found)]

    def holders(self, name: str | bytes) -> tuple[Holder, ...] | None:
        """The holders of ``name`` in the order of their grants; ``None`` if only another node knows them."""
        info = self.show(name)
        return () if info is None else info.holders

    def purge(self, node: int | None = None, pid: int = 0) -> int | None:
        """Drop the orphans of a process (0: of all) of a node, default this one; with the own ``pid``, all locks of
        this client. Returns how many, ``None`` for another node, which will do it in its place in the order.
        """
        self._session.kept.give_back()
        return self._session.purge(node, pid)

    # -- the session

    @property
    def watch(self) -> LossWatch:
        """Who calls ``on_lost``."""
        return self._watch

    @property
    def session(self) -> Session:
        """What this client shares with the rest of this package."""
        return self._session

    @property
    def closed(self) -> bool:
        """Whether the session has ended, by ``close`` or because the daemon has gone."""
        return self._session.closed is not None

    def close(self) -> None:
        """End the session; handles still held count as lost (``session_closed``) from now on. Idempotent.

        Of a client that ``space`` gave: give back what the session has in that lockspace (``space_closed``).
        """
        self._session.check_process()
        if self._root:
            self._session.close()
        else:
            self._session.close_space()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        welcome = self._session.channel.welcome
        node = welcome.get("node", {}).get("name", "?")
        state = self._session.closed or "open"
        where = "" if self.space_name == "default" else f" in lockspace {self.space_name!r}"
        return f"<dlm.Client session {welcome.get('session', '?')} at node {node}{where}, {state}>"


class Lock:
    """A name with a mode and a time-out: what ``with`` takes. Reusable, also by several threads (API-R2).

    Not reentrant: for that there is ``Client.lock(..., reentrant=True)``.
    """

    def __init__(
        self,
        client: Client,
        name: bytes,
        mode: Mode,
        timeout: float | None,
        no_quorum: WhenNoQuorum,
        on_lost: OnLost | None,
        xid: int | None = None,
        cache: bool | None = None,
    ) -> None:
        self.name = name
        self.mode = mode
        self.timeout = checked_timeout(timeout)
        self._client = client
        self._no_quorum: WhenNoQuorum = no_quorum
        self._on_lost = on_lost
        self._xid = xid
        self._cache = cache
        self._guard = threading.Lock()
        self._entered: list[tuple[int, Held]] = []

    def acquire(self) -> Held:
        """Take it, without ``with``; see ``Client.acquire``."""
        return self._client.acquire(
            self.name,
            self.mode,
            self.timeout,
            no_quorum=self._no_quorum,
            on_lost=self._on_lost,
            xid=self._xid,
            cache=self._cache,
        )

    def holders(self) -> tuple[Holder, ...] | None:
        """See ``Client.holders``."""
        return self._client.holders(self.name)

    def contenders(self) -> tuple[Holder, ...] | None:
        """Who waits, in the order in which they will be served: conversions first (API-R13)."""
        return self._client.contenders(self.name)

    def __enter__(self) -> Held:
        held = self.acquire()
        with self._guard:
            self._entered.append((threading.get_ident(), held))
        return held

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave().__exit__(kind, error, trace)

    def _leave(self) -> Held:
        """The grant that belongs to this exit: the last one entered by this thread, else the last one."""
        me = threading.get_ident()
        with self._guard:
            for index in range(len(self._entered) - 1, -1, -1):
                if self._entered[index][0] == me:
                    return self._entered.pop(index)[1]
            return self._entered.pop()[1]

    def __repr__(self) -> str:
        return f"<dlm.Lock {answers.name_text(self.name)!r} {self.mode.name} timeout={self.timeout}>"
