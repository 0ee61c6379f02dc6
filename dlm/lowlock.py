"""One lock of a lockspace: what is in progress, whom to call, and what its callbacks may still say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from dlm import answers
from dlm.callbacks import Callbacks
from dlm.errors import NotConnected
from dlm.held import Held
from dlm.info import Flag, Mode, Outcome
from dlm.modes import COMPATIBLE, PR
from dlm.status import Lksb, Status, status_of
from vsync.errors import RequestFailed

if TYPE_CHECKING:
    from dlm.session import Session

__all__ = ["KEEP", "Ast", "Bast", "Keep", "LowLock", "OnLost"]

Ast = Callable[[Any], object]
Bast = Callable[[Any, Mode], object]
OnLost = Callable[[int, str], object]


class Keep(Enum):
    """The value of a callback argument that is not given: a conversion keeps what there is."""

    KEEP = 0


KEEP = Keep.KEEP


class Advice:
    """A blocking callback that waits for its turn; at most one of a lock, as later ones are merged with it (B9)."""

    def __init__(self, lock: LowLock, mode: int, bast: Bast, arg: Any) -> None:
        self._lock = lock
        self.mode = mode
        self._bast = bast
        self._arg = arg

    def __call__(self) -> None:
        mode = self._lock.take_advice(self)
        if mode is not None:
            self._bast(self._arg, mode)


class LowLock(Held):
    """A handle with callbacks instead of methods.

    Everything here is called under ``session.changed``. What ends an operation returns the blocks whose waiters
    are to be woken, with ``announce``, outside of it.
    """

    def __init__(
        self, session: Session, callbacks: Callbacks, name: bytes, mode: Mode, on_lost: OnLost | None
    ) -> None:
        super().__init__(session, name, mode)
        self.operation: Lksb | None = None  #: in progress
        self.last = Lksb(self.serial, name)  #: the latest block
        self.unlocking: Lksb | None = None  #: the block of the unlock that is on its way
        self.cancel: object | None = None  #: of the cancel that is on its way
        self.deadlocked = False  #: it shall look like a deadlock
        self.persistent = False
        self.attached = True  #: the answer of the operation in progress will be heard of
        self._callbacks = callbacks
        self._on_lost = on_lost
        self._ast: Ast | None = None
        self._bast: Bast | None = None
        self._astarg: Any = None
        self._told: Mode | None = None  #: the mode in the last completion (B6)
        self._advice: Advice | None = None  #: not called yet, and nothing came after it
        self._early: list[int] = []  #: advice that must not overtake a completion (A1)

    @property
    def told(self) -> Mode | None:
        """The mode in the last completion; ``None`` before it, or if the lock is gone."""
        return self._told

    @property
    def over(self) -> bool:
        """Whether the lock is gone and nothing about it is in progress."""
        return self._released and self.operation is None and (self.unlocking is None or self.unlocking.done)

    # -- operations

    def begin(self, lksb: Lksb, flags: Flag) -> None:
        """An operation has been accepted."""
        self.operation = self.last = lksb
        self.attached = False
        self.persistent = self.persistent or bool(flags & (Flag.PERSISTENT | Flag.ORPHAN))

    def call(self, ast: Ast | Keep | None, bast: Bast | Keep | None, astarg: Any) -> None:
        """Whom to call from now on: the arguments of a conversion count from its acceptance on (U8)."""
        self._ast = self._ast if isinstance(ast, Keep) else ast
        self._bast = self._bast if isinstance(bast, Keep) else bast
        self._astarg = self._astarg if isinstance(astarg, Keep) else astarg
        self.tells = self._bast is not None

    def relied_upon(self, lksb: Lksb, mode: Mode) -> None:
        """What a conversion that begins takes away, it takes away at once (pitfalls D8)."""
        self._mode = lksb.mode = mode

    def not_begun(self, lksb: Lksb, old: Mode) -> None:
        """The conversion could not be sent: nobody is told, as nobody has been given its block."""
        if lksb is self.operation:
            self.operation, self._mode = None, old
            self.attach()

    def attach(self) -> None:
        """From now on the answer cannot be overtaken."""
        self.attached = True
        early, self._early = self._early, []
        for mode in early:
            self.note_blocking(mode)

    def granted(self, lksb: Lksb, result: Mapping[str, Any]) -> list[Lksb]:
        """A request or conversion has succeeded."""
        if lksb.done:
            return []  # its lock was given up, and nobody could say so in time
        if not self._granted:
            self.mark_granted(result)
        else:
            self._mode = Mode(result.get("mode", self._mode))
            self._take(result, written=False)
        lksb.flags, lksb.fence = self.outcome, self._fence
        if result.get("value_read"):
            lksb.value = bytes(result.get("value") or b"")
        return self._complete(lksb, Status.OK)

    def refused(self, lksb: Lksb, failure: BaseException, old: Mode | None) -> list[Lksb]:
        """A request (``old`` is None) or a conversion from ``old`` has failed."""
        if lksb.done:
            return []
        status = status_of(failure)
        if isinstance(failure, RequestFailed):
            lksb.error = answers.refusal(failure, self.name)
            lksb.flags = Outcome(failure.more.get("flags", 0))
        else:
            lksb.error = NotConnected(str(failure))
        if old is None:
            self.mark_withdrawn()
        else:
            self._mode = Mode.NL if lksb.flags & Outcome.DEMOTED else old
        if status is Status.ECANCEL:
            self.cancel = None  # its own answer follows at once
            if self.unlocking is not None:
                status = Status.EUNLOCK
            elif self.deadlocked:
                status = Status.EDEADLK
        return self._complete(lksb, status)

    def gone(self, lksb: Lksb) -> list[Lksb]:
        """The unlock is done; what was in progress has ended with it, without a callback of its own (U4, E22)."""
        if self.operation is not None:
            pending, self.operation = self.operation, None
            pending.mode, pending.status = None, Status.EUNLOCK
            return [pending, *self._complete(lksb, Status.EUNLOCK)]
        return self._complete(lksb, Status.EUNLOCK)

    def _complete(self, lksb: Lksb, status: Status) -> list[Lksb]:
        """Fill in what all outcomes have, and let the completion callback follow, in its place in the order."""
        if lksb is self.operation:
            self.operation = None
            self.deadlocked = False
        holds = self._granted and status is not Status.EUNLOCK and self.lost_reason is None
        lksb.mode = self._mode if holds else None
        lksb.status = status
        self._told = lksb.mode
        self._advice = None
        ours = status is Status.EUNLOCK and lksb is not self.unlocking
        if self._ast is not None and not ours:
            self._callbacks.add(partial(self._ast, lksb if self._astarg is None else self._astarg))
        return [lksb]

    # -- advice

    def note_blocking(self, mode: int) -> None:
        """The lock is in the way of a request for ``mode``."""
        if not self.attached:
            self._early.append(mode)
        elif self._bast is not None and not self._stale(mode):
            if self._advice is None:
                arg = self.last if self._astarg is None else self._astarg
                self._advice = Advice(self, mode, self._bast, arg)
                self._callbacks.add(self._advice)
            elif not PR < self._advice.mode >= mode:
                self._advice.mode = mode

    def take_advice(self, advice: Advice) -> Mode | None:
        """The mode to tell of, if that is still worth it."""
        with self._session.changed:
            if self._advice is advice:
                self._advice = None
            return None if self._stale(advice.mode) else Mode(advice.mode)

    def _stale(self, mode: int) -> bool:
        """Whether the lock has made room by its last completion, or is gone (B6, B10)."""
        if self._told is None or self._released or self.lost_reason is not None:
            return True
        return COMPATIBLE[self._told][mode]

    # -- loss

    def mark_lost(self, reason: str) -> None:
        """See ``Held.mark_lost``."""
        before = self.lost_reason
        super().mark_lost(reason)
        if before is None and self.lost_reason is not None and self._granted and self._on_lost is not None:
            self._callbacks.add(partial(self._on_lost, self.serial, reason))
