"""A semaphore: N permits in the whole cluster, first come, first served, and a dead holder's permit comes back.

A permit is an exclusive lock on one of N names, ``NAME/permits/0`` … ``NAME/permits/N-1``: what the lock manager
promises for locks – loss, fences, the return of what the dead held – holds for permits. Whoever wants to wait
stands in the queue of the gate, ``NAME/permits``; the first in line, who holds it, asks for all N names at once,
takes what is granted first, and withdraws the rest. The gate's value block has N; it is kept by the NL locks on the
gate that belong to permits, so N can be chosen anew when nobody has any.

Costs: a permit that looks free two requests, else 2 N more for the first in line; others wait with one request.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from dlm import answers
from dlm.errors import InvalidRequest, LockLost, LockTimeout, NotHeld
from dlm.grant import Grant
from dlm.held import Held, Loss
from dlm.info import Flag, LockInfo, Mode
from dlm.recipes.asked import Asked, ask, drop, wait_any
from dlm.recipes.deadline import Deadline
from dlm.recipes.entered import Entered
from dlm.session import TRY_PATIENCE_S

if TYPE_CHECKING:
    from typing import Self

    from dlm.client import Client, WhenNoQuorum

__all__ = ["MAX_PERMITS", "Permit", "PermitBase", "Semaphore", "SemaphoreBase", "taken"]

MAX_PERMITS = 1024
MAX_NAME = 64 - len("/permits/1023")  #: bytes
_COUNT = struct.Struct(">4sI")  #: the gate's value block
_MAGIC = b"sem1"


H = TypeVar("H", bound=Grant)


class PermitBase(Generic[H]):
    """One permit that is held, for threads or tasks.

    ``number`` is 0 … N-1, and no two holders have the same; ``fence`` rises from one holder of it to the next.
    """

    def __init__(self, name: bytes, number: int, slot: H, gate: H) -> None:
        self.name = name
        self.number = number
        self.held = slot  #: the lock that it is
        self._gate = gate

    @property
    def fence(self) -> int:
        """The fencing token: strictly increasing over the holders of this ``number`` (API-R6)."""
        return self.held.fence

    @property
    def valid(self) -> bool:
        """Whether the permit is held for certain at this moment."""
        return self.held.valid

    @property
    def released(self) -> bool:
        """Whether it has been given back."""
        return self.held.released

    def check(self) -> None:
        """Return if the permit is held for certain. Raises ``LockLost``, ``NotHeld``."""
        self.held.check()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.number} of {answers.name_text(self.name)!r}: {self.held!r}>"


class Permit(PermitBase[Held]):
    """One permit that is held. Made by ``Semaphore``; as a context manager it releases at the end. Thread-safe."""

    @property
    def lost(self) -> Loss:
        """Whether the permit has been lost; can be waited for."""
        return self.held.lost

    def release(self, wait: bool = False) -> None:
        """Give the permit back; with ``wait`` return when it is free. Raises ``NotHeld`` the second time, and
        ``LockLost`` if it was not held for certain any more.
        """
        try:
            self.held.release(wait)
        finally:
            drop(self._gate)

    def __enter__(self) -> Self:
        self.held.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.held.__exit__(kind, error, trace)
        finally:
            drop(self._gate)


class SemaphoreBase:
    """What a semaphore is, for threads or tasks: its names, and the number that all agree on."""

    def __init__(self, name: str | bytes, permits: int, timeout: float | None = None) -> None:
        """``timeout`` is what ``with`` waits, in seconds (API-R3). Raises ``InvalidRequest``, ``ValueError``."""
        self.name = answers.name_bytes(name)
        if not 1 <= len(self.name) <= MAX_NAME:
            raise InvalidRequest(f"the name of a semaphore is 1..{MAX_NAME} bytes", rule="E2")
        if not 1 <= permits <= MAX_PERMITS:
            raise InvalidRequest(f"a semaphore has 1..{MAX_PERMITS} permits, not {permits!r}")
        self.permits = permits
        self.timeout = Deadline(timeout).timeout
        self._gate = self.name + b"/permits"
        self._slots = [b"%s/%d" % (self._gate, number) for number in range(permits)]
        self._last = 0  #: the permit that was had last: likely to be free, and this node's own

    def _agree(self, gate: Grant) -> bool:
        """Whether the number of permits is known, and the same. The bytes are right also where the block is not
        *valid*: nothing else was ever written. Raises ``InvalidRequest`` for another number.
        """
        if len(gate.value) != _COUNT.size:
            return False
        magic, permits = _COUNT.unpack(gate.value)
        if magic != _MAGIC or permits != self.permits:
            text = f"semaphore {answers.name_text(self.name)!r} is in use with {permits} permits"
            raise InvalidRequest(f"{text}, not {self.permits}", code="mismatch")
        return True

    def _count(self, gate: Grant) -> bytes | None:
        """What to write into the gate's value block, if it is not known to all."""
        return None if self._agree(gate) and gate.value_valid else _COUNT.pack(_MAGIC, self.permits)

    def _rest(self, looks: Sequence[LockInfo | None]) -> Iterator[tuple[int, bool]]:
        """The permits but the one had last in the order in which to try them: those first that look free."""
        for state in (False, True):
            rest = (number for number, info in enumerate(looks) if taken(info) == state)
            yield from ((number, state) for number in rest if number != self._last)

    def _none_free(self) -> LockTimeout:
        text = f"semaphore {answers.name_text(self.name)!r}: none of {self.permits} permits is free"
        return LockTimeout(text, name=self.name, timeout=0)

    def _too_late(self, timeout: float | None) -> LockTimeout:
        text = f"semaphore {answers.name_text(self.name)!r}: no permit within {timeout or 0:g} s"
        return LockTimeout(text, name=self.name, timeout=timeout)

    def __repr__(self) -> str:
        name = answers.name_text(self.name)
        return f"<dlm.{type(self).__name__} {name!r} permits={self.permits} timeout={self.timeout}>"


class Semaphore(SemaphoreBase):
    """``permits`` permits under ``name`` (at most 51 bytes). Reusable, also by several threads (API-R2).

    ``with semaphore as permit:`` is entered with a permit or not at all (API-R1). Everybody must ask for the same
    number: while somebody has a permit, another number is refused with ``InvalidRequest``. A permit is owned by
    its handle; a thread may have several, and a wait for a permit is no part of the search for deadlocks, as any
    of N holders may end it.
    """

    def __init__(self, client: Client, name: str | bytes, permits: int, timeout: float | None = None) -> None:
        """``timeout`` is what ``with`` waits, in seconds (API-R3). Raises ``InvalidRequest``, ``ValueError``."""
        super().__init__(name, permits, timeout)
        self._client = client
        self._entered: Entered[Permit] = Entered()

    def acquire(self, timeout: float | None = None) -> Permit:
        """A permit, in the order of the cluster. ``timeout`` in seconds: ``None`` for ever, 0 is a try.

        A caller that gives up, by time-out or exception, leaves nothing behind (API-R8). A try takes what is free
        when it asks, and may pass those who wait further behind than first. Raises ``LockTimeout``,
        ``InvalidRequest`` (others use another number), ``NoQuorum`` (a try), ``NotConnected``, ``ForkedProcess``.
        """
        deadline = Deadline(timeout)
        if timeout == 0:
            return self._try(deadline)
        gate = self._client.acquire(self._gate, Mode.EX, timeout)
        try:
            self._agree(gate)
            found = self._find(deadline, thorough=False) or self._wait(deadline)
            return self._permit(*found, gate, deadline)
        except BaseException:
            drop(gate)
            raise

    def try_acquire(self) -> Permit | None:
        """A permit if one is free, else ``None``. Raises as ``acquire``, but for ``LockTimeout``."""
        try:
            return self.acquire(0)
        except LockTimeout:
            return None

    def holders(self) -> list[LockInfo]:
        """The permits that are in use, as this node knows them: one row each, its name ends in the number."""
        return [info for info in self._look() if info is not None and taken(info)]

    # -- finding a permit

    def _try(self, deadline: Deadline) -> Permit:
        gate = self._client.acquire(self._gate, Mode.NL, 0, flags=Flag.EXPEDITE)
        try:
            if not self._agree(gate):
                gate.convert(Mode.EX, 0)  # refused: at this moment another makes the first use
                self._agree(gate)
            found = self._find(deadline, thorough=True)
            if found is None:
                raise self._none_free()
            return self._permit(*found, gate, deadline)
        except BaseException:
            drop(gate)
            raise

    def _order(self) -> Iterator[tuple[int, bool]]:
        """The permits in the order in which to try them, and whether each looks taken from here: the one had last,
        then those that look free. A look asks the local node only.
        """
        yield self._last, False
        yield from self._rest(self._look())

    def _look(self) -> list[LockInfo | None]:
        """What this node knows of each permit; ``ls`` would go through all names there are."""
        session = self._client.session
        asked = [session.start("show", {"name": slot, "space": session.space}) for slot in self._slots]
        found: list[LockInfo | None] = []
        for slot, future in zip(self._slots, asked, strict=True):
            try:
                found.append(LockInfo.from_row(session.result(future, slot)))
            except NotHeld:
                found.append(None)
        return found

    def _find(self, deadline: Deadline, thorough: bool) -> tuple[int, Held] | None:
        """Try one after the other: so a try elsewhere is never refused for one that we do not keep. ``thorough``:
        also those that look taken.
        """
        session = self._client.session
        for number, looks_taken in self._order():
            if looks_taken and not thorough:
                break
            alone: WhenNoQuorum = "fail" if deadline.timeout == 0 else "wait"
            asked = ask(session, self._slots[number], Mode.EX, Flag.NOQUEUE, no_quorum=alone, apart=True)
            try:
                patient = Deadline(TRY_PATIENCE_S) if deadline.timeout == 0 else deadline
                if wait_any(session, [asked], patient) is None:
                    raise self._too_late(deadline.timeout)
                return number, asked.take(deadline)
            except LockTimeout:
                asked.withdraw()
            except BaseException:
                asked.withdraw()
                raise
        return None

    def _wait(self, deadline: Deadline) -> tuple[int, Held]:
        """Ask for all, take the first, withdraw the rest."""
        session = self._client.session
        asked: list[Asked] = []
        winner: Asked | None = None
        try:
            for slot in self._slots:
                asked.append(ask(session, slot, Mode.EX, apart=True))
            first = wait_any(session, asked, deadline)
            if first is None:
                raise self._too_late(deadline.timeout)
            held = first.take(deadline)
            winner = first
            return asked.index(first), held
        finally:
            for one in asked:
                if one is not winner:
                    one.withdraw()

    def _permit(self, number: int, slot: Held, gate: Held, deadline: Deadline) -> Permit:
        """The gate is opened for the next in line, and stays as NL: it keeps the number of permits."""
        try:
            if gate.mode is Mode.EX:
                try:
                    gate.convert(Mode.NL, deadline.rest(), value=self._count(gate))
                except LockLost:  # while we waited; the permit is a grant of the new life
                    drop(gate)
                    gate = self._client.acquire(self._gate, Mode.NL, deadline.rest(), flags=Flag.EXPEDITE)
                    self._agree(gate)
        except BaseException:
            drop(slot)
            raise
        self._last = number
        return Permit(self.name, number, slot, gate)

    # -- with

    def __enter__(self) -> Permit:
        return self._entered.push(self.acquire(self.timeout))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.pop().__exit__(kind, error, trace)


def taken(info: LockInfo | None) -> bool:
    """Whether somebody has the permit, or asks for it."""
    return info is not None and bool(info.holders or info.converting or info.waiters)
