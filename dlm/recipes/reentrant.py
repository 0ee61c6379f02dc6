"""A reentrant lock, on request: a thread that has it may take it again, and it is given back with the last exit.

The owner is the thread (of one client), whichever objects it uses. The fence stays: one grant, one fence (API-R6).
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING

from dlm import answers
from dlm.errors import InvalidRequest, NotHeld
from dlm.info import Holder, Mode
from dlm.modes import COMPATIBLE
from dlm.recipes.deadline import Deadline

if TYPE_CHECKING:
    from dlm.client import Client, OnLost, WhenNoQuorum
    from dlm.held import Held

__all__ = ["Holds", "ReentrantLock"]


class Holds(threading.local):
    """What this thread holds through a client: the grant and how often it was taken, by name."""

    def __init__(self) -> None:
        self.by_name: dict[bytes, tuple[Held, int]] = {}


class ReentrantLock:
    """``client.lock(name, reentrant=True)``: what ``with`` takes, several times over. Thread-safe.

    Each ``acquire`` and each ``with`` needs its ``release`` or exit *in the same thread*; the handle is the same
    each time and is not to be released itself.
    """

    def __init__(
        self,
        client: Client,
        name: str | bytes,
        mode: Mode = Mode.EX,
        timeout: float | None = None,
        no_quorum: WhenNoQuorum = "wait",
        on_lost: OnLost | None = None,
        xid: int | None = None,
    ) -> None:
        self.name = answers.name_bytes(name)
        self.mode = Mode(mode)
        self.timeout = Deadline(timeout).timeout
        self._client = client
        self._no_quorum: WhenNoQuorum = no_quorum
        self._on_lost = on_lost
        self._xid = xid
        self._holds = client._holds()

    def acquire(self) -> Held:
        """Take it, or once more. Raises what ``Client.acquire`` does; if this thread has it, ``LockLost`` if that
        is lost, and ``InvalidRequest`` if it is held in a mode that does not include this one.
        """
        mine = self._holds.by_name
        if self.name not in mine:
            held = self._client.acquire(
                self.name, self.mode, self.timeout, no_quorum=self._no_quorum, on_lost=self._on_lost, xid=self._xid
            )
            mine[self.name] = held, 1
            return held
        held, count = mine[self.name]
        held.check()
        if not _includes(held.mode, self.mode):
            text = f"lock {answers.name_text(self.name)!r} is held in {held.mode.name}, which does not include"
            raise InvalidRequest(f"{text} {self.mode.name}: convert it")
        mine[self.name] = held, count + 1
        return held

    def release(self) -> None:
        """Give it back once; the last time it is free. Raises ``NotHeld``, ``LockLost`` (the last time)."""
        held = self._once_less()
        if held is not None:
            held.release()

    @property
    def count(self) -> int:
        """How often this thread has it."""
        return self._holds.by_name[self.name][1] if self.name in self._holds.by_name else 0

    def holders(self) -> tuple[Holder, ...] | None:
        """See ``Client.holders``."""
        return self._client.holders(self.name)

    def contenders(self) -> tuple[Holder, ...] | None:
        """See ``Client.contenders``."""
        return self._client.contenders(self.name)

    def _once_less(self) -> Held | None:
        """The handle if this was the last time."""
        mine = self._holds.by_name
        if self.name not in mine:
            raise NotHeld(f"lock {answers.name_text(self.name)!r} is not held by this thread", name=self.name)
        held, count = mine[self.name]
        if count > 1:
            mine[self.name] = held, count - 1
            return None
        del mine[self.name]
        return held

    def __enter__(self) -> Held:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held = self._once_less()
        if held is not None:
            held.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<dlm.ReentrantLock {answers.name_text(self.name)!r} {self.mode.name} timeout={self.timeout}>"


def _includes(held: Mode, wanted: Mode) -> bool:
    """Whether ``held`` excludes at least what ``wanted`` does."""
    return all(not COMPATIBLE[held][other] or COMPATIBLE[wanted][other] for other in Mode)
