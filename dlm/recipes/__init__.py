"""What is commonly built from locks, on nothing but locks, and process groups for wake-ups: docs/recipes.md."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from dlm import answers
from dlm.info import Holder, LockInfo, Mode
from dlm.recipes.barrier import Barrier, Passage
from dlm.recipes.counter import Counter
from dlm.recipes.doorbell import Doorbells
from dlm.recipes.election import Election, Leader, Term
from dlm.recipes.reentrant import Holds, ReentrantLock
from dlm.recipes.semaphore import Permit, Semaphore
from dlm.recipes.synchronized import synchronized

if TYPE_CHECKING:
    from dlm.client import Client
    from dlm.session import Session

__all__ = [
    "Barrier",
    "Counter",
    "Election",
    "Leader",
    "Passage",
    "Permit",
    "Recipes",
    "ReentrantLock",
    "Semaphore",
    "Term",
    "synchronized",
]

P = ParamSpec("P")
R = TypeVar("R")
_making = threading.Lock()


class Recipes:
    """The recipes as methods of ``Client``. Thread-safe; nothing is sent before what they give is used."""

    _held_by_thread: Holds | None = None

    def semaphore(self, name: str | bytes, permits: int, timeout: float | None = None) -> Semaphore:
        """``permits`` permits in the whole cluster, first come, first served."""
        return Semaphore(cast("Client", self), name, permits, timeout)

    def election(self, name: str | bytes, identity: str | None = None) -> Election:
        """A candidate for ``name``, or an observer."""
        return Election(cast("Client", self), name, identity)

    def barrier(self, name: str | bytes, parties: int, timeout: float | None = None) -> Barrier:
        """``parties`` parties that wait for each other."""
        return Barrier(cast("Client", self), name, parties, timeout)

    def counter(self, name: str | bytes, start: int = 0) -> Counter:
        """A number that all share, as long as anybody has it open."""
        return Counter(cast("Client", self), name, start)

    def synchronized(
        self,
        template: str,
        mode: Mode = Mode.EX,
        timeout: float | None = None,
        *,
        reentrant: bool = False,
        held_as: str | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """A decorator: calls run under the lock whose name ``template`` makes of their arguments."""
        return synchronized(
            cast("Client", self), template, mode, timeout, reentrant=reentrant, held_as=held_as
        )

    def contenders(self, name: str | bytes) -> tuple[Holder, ...] | None:
        """Who waits for ``name``, in the order in which they will be served, conversions first (API-R13); ``None``
        if only another node knows.
        """
        info = cast("Client", self).show(answers.name_bytes(name))
        if info is None:
            return ()
        return None if info.waiters is None else (info.converting or ()) + info.waiters

    def snapshot(self) -> dict[bytes, LockInfo]:
        """All names that this node knows, as ``Client.ls`` tells them, by name."""
        return {info.name: info for info in cast("Client", self).ls()}

    # -- for the recipes

    def _bells(self) -> Doorbells:
        root = cast("Session", cast("Client", self).session.root)  # its group events go to one place
        with _making:
            if root.doorbells is None:
                root.doorbells = Doorbells(root)
            return root.doorbells

    def _holds(self) -> Holds:
        with _making:
            if self._held_by_thread is None:
                self._held_by_thread = Holds()
            return self._held_by_thread
