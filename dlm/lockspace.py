"""The lock manager in the vocabulary of libdlm: asynchronous operations, status blocks, callbacks.

::

    with dlm.Lockspace("unix:///run/vsync/vsyncd.sock") as space:
        lksb = space.lock(Mode.PR, "inode/7", ast=granted, bast=wanted)
        ...
        space.unlock(lksb.lkid)

Errors of the caller are raised at once, with the rule they break (locks.md E1–E24), and then nothing follows;
everything else is a ``Status``, known by callback, by waiting for the block, or by a future. ``dlm.Client`` is
the friendlier way in; both may be used over one session.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dlm import answers, arguments
from dlm.callbacks import Callbacks
from dlm.client import Client, HasChannel, connect
from dlm.client_spaces import open_space
from dlm.errors import InvalidRequest, LockBusy, NotConnected, NotHeld
from dlm.held import WRITERS, both
from dlm.info import Flag, Holder, LockInfo, Mode
from dlm.lowlock import KEEP, Ast, Bast, Keep, LowLock, OnLost
from dlm.modes import CANCEL, FORCEUNLOCK, IVVALBLK, VALBLK, WRITES, value_direction
from dlm.session import checked_timeout
from dlm.status import Lksb
from dlm.transaction import checked_xid

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Lockspace"]

NO_FLAGS = Flag(0)
UNLOCK_FLAGS = CANCEL | VALBLK | IVVALBLK | FORCEUNLOCK
SETTLE_S = 1.0  #: a deadline page may lag behind a fresh grant; it is given so long


class Lockspace:
    """The lockspace ``name`` (``None``: that of the client, else ``default``), through a client, an embedded node,
    or the daemon at a URL (``None``: the default). It is made if it is missing, unless ``create=False``.

    ``ast(arg)`` is called once for each accepted operation, ``bast(arg, mode)`` while a lock stands in the way of
    others; ``arg`` is ``astarg``, or the ``Lksb`` of the operation if that is ``None``. A thread of this lockspace
    calls them, or, with ``poll=True``, ``dispatch`` does. ``on_lost(lkid, reason)`` comes among them when a lock
    that was held is taken away.

    Thread-safe; not usable after ``fork``. ``close``, or the end of ``with``, gives back all locks but persistent
    ones, and ends the session if it was made here; no callback comes after it.
    """

    def __init__(
        self,
        over: Client | HasChannel | str | None = None,
        name: str | None = None,
        *,
        create: bool = True,
        poll: bool = False,
        on_lost: OnLost | None = None,
    ) -> None:
        if isinstance(over, Client):
            self._own, shared = None, over.session
        else:
            self._own = connect(over) if over is None or isinstance(over, str) else Client(over)
            shared = self._own.session
        self.name = shared.space if name is None else name
        try:
            with answers.refusing():
                arguments.space({"space": self.name})
            open_space(shared, self.name, create)
        except BaseException:
            if self._own is not None:
                self._own.close()
            raise
        self._session = shared.within(self.name)
        self._changed = self._session.changed
        self._callbacks = Callbacks(poll)
        self._on_lost = on_lost
        self._locks: dict[int, LowLock] = {}
        self._closed = False

    # -- operations

    def lock(
        self,
        mode: int,
        name: str | bytes = b"",
        flags: int = NO_FLAGS,
        *,
        lkid: int = 0,
        value: bytes | None = None,
        ast: Ast | Keep | None = KEEP,
        bast: Bast | Keep | None = KEEP,
        astarg: Any = KEEP,
        xid: int = 0,
        timeout: float | None = None,
        parent: object = None,
        range: object = None,  # noqa: A002 - the field's name for it
    ) -> Lksb:
        """Ask for a lock on ``name``, or with ``Flag.CONVERT`` for another mode of lock ``lkid``.

        The owner, as deadlock detection sees it, is this session or the transaction ``xid``. ``timeout`` in
        seconds is counted by the node; 0 is NOQUEUE. ``value`` is the caller's value block, which VALBLK reads into
        the status block or writes from it.

        Raises ``InvalidRequest`` (E1–E5, E7–E9, E11), ``NotSupported`` (E13), ``NotHeld`` (E8), ``LockBusy`` (E10),
        ``LockLost`` (a conversion), ``NotConnected``, ``ForkedProcess``.
        """
        if flags & Flag.CONVERT:
            return self.convert(
                lkid, mode, flags, value=value, ast=ast, bast=bast, astarg=astarg, timeout=timeout,
                parent=parent, range=range,
            )  # fmt: skip
        args, given = self._arguments(mode, flags, timeout, parent, range)
        key = answers.name_bytes(name)
        with answers.refusing(key):
            args |= {"name": arguments.name({"name": key}), "space": self.name, "xid": checked_xid(xid), "owner": 0}
            arguments.check_lock(args, args["mode"], arguments.flags(args))
        with self._changed:
            self._require_open()
            lock = LowLock(self._session, self._callbacks, key, Mode(mode), self._on_lost)
            lksb = Lksb(lock.serial, key, value or b"")
            lock.call(ast, bast, astarg)
            lock.begin(lksb, given)
            self._locks[lock.serial] = lock
        args |= {"h": lock.serial, "blocking": lock.tells, "no_quorum": "wait"}
        future = None
        try:
            future = self._session.start("lock", args)
            self._attach(lock, future, lambda done: self._answered(lock, lksb, None, done))
        except BaseException:
            with self._changed:
                self._locks.pop(lock.serial, None)
                lock.mark_withdrawn()
            self._session.withdraw(lock, future)
            raise
        return lksb

    def convert(
        self,
        lkid: int,
        mode: int,
        flags: int = NO_FLAGS,
        *,
        value: bytes | None = None,
        ast: Ast | Keep | None = KEEP,
        bast: Bast | Keep | None = KEEP,
        astarg: Any = KEEP,
        timeout: float | None = None,
        parent: object = None,
        range: object = None,  # noqa: A002 - the field's name for it
    ) -> Lksb:
        """Ask for another mode of lock ``lkid``. Callback arguments that are given replace the old ones now (U8).

        A mode that others may not share is not to be relied upon from this call on. Arguments and exceptions as
        for ``lock``.
        """
        args, given = self._arguments(mode, flags, timeout, parent, range)
        with self._changed:
            self._require_open()
            lock = self._find(lkid, "E8")
            if lock.operation is not None or lock.unlocking is not None:
                raise LockBusy(f"lock {lkid}: an operation is in progress", name=lock.name, rule="E10")
            if lock.lost_reason is not None:
                raise answers.lost(lock.name, lock.fence, lock.lost_reason)
            old, new = lock.mode, Mode(mode)
            with answers.refusing(lock.name):
                arguments.check_convert(args, old, new, arguments.flags(args))
            writes = value_direction(old, new) == WRITES
            args |= self._block(given, writes, value)
            lksb = Lksb(lkid, lock.name, lock.last.value if value is None else value, old, lock.fence)
            lock.call(ast, bast, astarg)
            lock.relied_upon(lksb, Mode.NL if given & Flag.CONVDEADLK else both(old, new))
            lock.begin(lksb, given)
            args |= {"h": lkid, "blocking": lock.tells}
        try:
            future = self._session.start("convert", args)
            self._attach(lock, future, lambda done: self._answered(lock, lksb, old, done))
        except BaseException:
            with self._changed:
                lock.not_begun(lksb, old)
            self._session.post("cancel", {"h": lkid})
            raise
        return lksb

    def unlock(
        self, lkid: int, flags: int = NO_FLAGS, value: bytes | None = None, *, astarg: Any = KEEP
    ) -> Lksb:
        """Give lock ``lkid`` back, whatever is in progress; with ``Flag.CANCEL`` see ``cancel``.

        The lock ends with this call; the block says ``EUNLOCK`` when it is free. What waited ends as ``EUNLOCK``
        too, with one callback for both. VALBLK writes ``value`` and IVVALBLK marks the block as not valid, both
        from PW and EX only (L3). Raises ``InvalidRequest`` (E7, E20, E23), ``NotHeld`` (E21), ``LockBusy`` (E22),
        ``NotConnected``, ``ForkedProcess``.
        """
        given = Flag(flags)
        if int(flags) & ~UNLOCK_FLAGS:
            raise InvalidRequest(f"unlock does not take {int(flags) & ~UNLOCK_FLAGS:#x}", rule="E20")
        args: dict[str, Any] = {"h": lkid, **given.args()}
        with answers.refusing():
            arguments.check_unlock(arguments.flags(args))
        if given & Flag.CANCEL:
            return self.cancel(lkid)
        with self._changed:
            self._require_open()
            lock = self._find(lkid, "E21")
            if lock.unlocking is not None:
                if given & Flag.FORCEUNLOCK:
                    raise InvalidRequest(f"lock {lkid} is being unlocked", rule="E23")
                raise LockBusy(f"lock {lkid} is being unlocked", name=lock.name, rule="E22")
            args |= self._block(given, lock.told in WRITERS, value)
            lksb = Lksb(lkid, lock.name, lock.last.value if value is None else value, None, lock.fence)
            lock.call(KEEP, KEEP, astarg)
            lock.unlocking = lock.last = lksb
            lock.mark_withdrawn()
            self._changed.notify_all()
        try:
            future = self._session.start("unlock", args)
        except BaseException as error:
            self._session.post("unlock", args)
            self._unlocked(lock, lksb)
            if not isinstance(error, NotConnected):  # the end of the session has released everything
                raise
        else:
            future.add_done_callback(lambda _: self._unlocked(lock, lksb))
        return lksb

    def cancel(self, lkid: int) -> Lksb:
        """Withdraw what lock ``lkid`` waits for; returns the block of that operation, which then says ``ECANCEL``.

        If the grant came first it says ``OK``: exactly one of the two (U3). A request that is withdrawn is gone
        (U1), a conversion leaves the old mode (U2). On an idle lock nothing happens (E24). Raises
        ``InvalidRequest`` (E23) while another cancel or an unlock is on its way, ``NotHeld`` (E21).
        """
        return self._cancel(lkid, deadlocked=False)

    def deadlock_cancel(self, lkid: int) -> Lksb:
        """``cancel``, but the operation ends with ``EDEADLK``: for programs that look for deadlocks themselves."""
        return self._cancel(lkid, deadlocked=True)

    def _cancel(self, lkid: int, deadlocked: bool) -> Lksb:
        token = object()
        with self._changed:
            self._require_open()
            lock = self._find(lkid, "E21")
            if lock.cancel is not None or lock.unlocking is not None:
                raise InvalidRequest(f"lock {lkid}: a cancel or unlock is in progress", rule="E23")
            lksb = lock.operation
            if lksb is None:
                return lock.last  # E24
            lock.cancel, lock.deadlocked = token, deadlocked

        def answered(_: object) -> None:
            with self._changed:
                if lock.cancel is token:
                    lock.cancel = None

        try:
            self._session.start("cancel", {"h": lkid}).add_done_callback(answered)
        except BaseException:
            answered(None)
            raise
        return lksb

    # -- operations that wait

    def lock_wait(self, mode: int, name: str | bytes = b"", flags: int = NO_FLAGS, **more: Any) -> Lksb:
        """``lock``, and wait for the outcome: look at ``status``. A caller that is interrupted leaves no trace."""
        lksb = self.lock(mode, name, flags, **more)
        try:
            lksb.wait()
        except BaseException:
            self._withdraw(lksb, keep=bool(flags & Flag.CONVERT))
            raise
        return lksb

    def unlock_wait(self, lkid: int, flags: int = NO_FLAGS, value: bytes | None = None) -> Lksb:
        """``unlock``, and wait for the outcome: ``EUNLOCK`` means that the lock is free. With ``Flag.CANCEL`` the
        outcome of what was cancelled, for which its own caller may wait as well.
        """
        lksb = self.unlock(lkid, flags, value)
        lksb.wait()
        return lksb

    def _withdraw(self, lksb: Lksb, keep: bool) -> None:
        try:
            if keep:
                self.cancel(lksb.lkid)
            else:
                self.unlock(lksb.lkid)
        except (InvalidRequest, LockBusy, NotHeld, NotConnected):
            pass  # it is on its way out already

    # -- looking

    def query(self, lock: int | str | bytes) -> LockInfo | None:
        """Who holds, converts and waits for a name, or for the name of a lock of this lockspace by its ``lkid``.

        ``None`` or empty queues if nobody does. Raises ``NotHeld`` (E21) for a lock that is not there.
        """
        key = self._name(lock) if isinstance(lock, int) else answers.name_bytes(lock)
        return self._session.show(key, self.name)

    def blockers(self, lkid: int) -> tuple[Holder, ...]:
        """For what lock ``lkid`` waits: the locks that hold what it may not share, and those queued before it.

        Empty if it does not wait. Raises as ``query``.
        """
        info = self.query(lkid)
        welcome = self._session.channel.welcome
        me = int(welcome.get("node", {}).get("id", 0)), int(welcome.get("session", 0)), lkid
        return () if info is None else info.blockers(*me)

    def check(self, lkid: int) -> None:
        """Return if lock ``lkid`` is held for certain at this moment (see ``Held.check``).

        Raises ``LockLost``, ``LockSuspended``, ``NotHeld``.
        """
        with self._changed:
            lock = self._find(lkid, "E21")
        self._session.catch_up(lock, SETTLE_S)
        lock.check()

    def purge(self, node: int | None = None, pid: int = 0) -> int | None:
        """See ``Client.purge``."""
        return self._session.purge(node, pid)

    # -- callbacks in the caller's context (poll=True)

    def fileno(self) -> int:
        """A descriptor that is readable while callbacks wait. Raises ``InvalidRequest`` without ``poll=True``."""
        return self._callbacks.fileno()

    def dispatch(self) -> int:
        """Run the callbacks that wait now, here; returns how many. What one of them raises is raised, and the rest
        still waits. Raises ``InvalidRequest`` without ``poll=True``.
        """
        return self._callbacks.dispatch()

    # -- the end

    def close(self) -> None:
        """See the class. Idempotent."""
        self._session.check_process()
        self._callbacks.close()
        with self._changed:
            if self._closed:
                return
            self._closed = True
            due = [lock for lock in self._locks.values() if lock.unlocking is None and not lock.persistent]
            if self._own is None:
                for lock in due:
                    lock.mark_withdrawn()
        if self._own is not None:
            self._own.close()
            return
        for lock in due:
            self._session.post("unlock", {"h": lock.serial})

    def release(self, force: int = 0) -> None:
        """Release the lockspace, as ``Client.release_space`` does, and close this. A refusal changes nothing.

        Raises ``SpaceBusy``, ``NoSuchSpace``, ``PermissionDenied``, ``NoQuorum``.
        """
        self._require_open()
        self._session.call("space_release", {"space": self.name, "force": force})
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<dlm.Lockspace {self.name!r}, {'closed' if self._closed else f'{len(self._locks)} locks'}>"

    # -- inside

    def _arguments(
        self, mode: int, flags: int, timeout: float | None, parent: object, extent: object
    ) -> tuple[dict[str, Any], Flag]:
        """What lock and convert have in common."""
        self._session.check_process()
        checked_timeout(timeout)
        given = Flag(flags) & ~Flag.FORCEUNLOCK  # E3: ignored here
        args: dict[str, Any] = {**given.args(), **self._session.limit(timeout), "parent": parent, "range": extent}
        if timeout == 0:
            args["noqueue"] = True
        with answers.refusing():
            args["mode"] = arguments.mode({"mode": int(mode) if isinstance(mode, int) else mode})
        return args, given

    @staticmethod
    def _block(given: Flag, writes: bool, value: bytes | None) -> dict[str, Any]:
        """The caller's value block, if the operation writes it (L2, L3)."""
        if not given & Flag.VALBLK or not writes or given & Flag.IVVALBLK:
            return {}
        if value is None:
            raise InvalidRequest("VALBLK writes the value block here, and there is none", rule="E7")
        return {"value": bytes(value)}

    def _answered(self, lock: LowLock, lksb: Lksb, old: Mode | None, done: Future[Any]) -> None:
        """The answer to a request (``old`` is None) or conversion."""
        failure = done.exception()
        if failure is None:
            self._end(lambda: lock.granted(lksb, done.result()), lock)
        else:
            self._end(lambda: lock.refused(lksb, failure, old), lock)

    def _unlocked(self, lock: LowLock, lksb: Lksb) -> None:
        self._end(lambda: lock.gone(lksb), lock)

    def _end(self, outcome: Callable[[], list[Lksb]], lock: LowLock) -> None:
        with self._changed:
            blocks = outcome()
            if lock.over:
                self._locks.pop(lock.serial, None)
        for block in blocks:
            block.announce()

    def _attach(self, lock: LowLock, future: Future[Any], answered: Callable[[Future[Any]], None]) -> None:
        future.add_done_callback(answered)
        with self._changed:
            lock.attach()

    def _find(self, lkid: int, rule: str) -> LowLock:
        if lkid == 0 and rule == "E8":
            raise InvalidRequest("a conversion needs a lock", rule=rule)
        lock = self._locks.get(lkid)
        if lock is None:
            raise NotHeld(f"there is no lock {lkid} in this lockspace", rule=rule)
        return lock

    def _name(self, lkid: int) -> bytes:
        with self._changed:
            return self._find(lkid, "E21").name

    def _require_open(self) -> None:
        if self._closed:
            raise InvalidRequest(f"lockspace {self.name!r} has been closed", rule="E11")
        if self._session.closed is not None:
            raise NotConnected(f"the session has ended: {self._session.closed}")
