"""A barrier: N parties wait for each other, as often as they like; the dead do not count.

State in locks: a party that has arrived holds a seat, one of N names ``NAME/barrier/GENERATION/0`` … ``N-1``, in
EX, so an arrival ends with its process. Arrivals are one at a time, under the gate ``NAME/barrier`` in EX. Whoever
takes the last free seat opens the barrier: it writes the next generation into the gate's value block. The parties
keep the gate as NL, which keeps the block; a bell (``dlm.recipes.doorbell``) tells them to read it again.

Why not a process group alone: its views order arrivals and deaths, but a party that joins knows nothing of what
was before, and in a minority the group goes on; both would have to be built again, and locks have them.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from dlm import answers
from dlm.errors import InvalidRequest, LockBusy, LockTimeout
from dlm.info import Flag, Mode
from dlm.recipes.asked import Asked, ask, drop, wait_any
from dlm.recipes.deadline import Deadline
from dlm.recipes.doorbell import group_of
from dlm.recipes.entered import Entered
from dlm.session import TRY_PATIENCE_S

if TYPE_CHECKING:
    from dlm.client import Client
    from dlm.held import Held, Loss
    from dlm.recipes.doorbell import Doorbell

__all__ = ["MAX_PARTIES", "Barrier", "Passage"]

MAX_PARTIES = 256
MAX_NAME = 64 - len("/barrier/") - 16 - len("/255")  #: bytes
GRACE_S = 1.0  #: what a party that gives up waits for to learn whether the barrier opened at the last moment
_STATE = struct.Struct(">4sIQ")  #: the gate's value block: magic, parties, generation
_MAGIC = b"bar1"


@dataclass(frozen=True, slots=True)
class Passage:
    """One party's way through: ``number`` 0 … N-1 is a different one for each party of a ``generation``."""

    generation: int
    number: int
    seat: Held
    gate: Held

    @property
    def lost(self) -> Loss:
        """Whether this party has been lost to the others; matters between entering and leaving."""
        return self.seat.lost


class Barrier:
    """``parties`` parties that wait for each other under ``name`` (at most 35 bytes). Reusable, by threads as well.

    ``wait()`` returns when so many are waiting. ``with barrier:`` is a double barrier: entered together, and left
    together, by all who still live. A party that gives up, by time-out or exception, or that dies, takes its
    arrival with it; the others go on waiting (``threading.Barrier`` would break). One that dies after the last has
    arrived has arrived. Thread-safe.
    """

    def __init__(self, client: Client, name: str | bytes, parties: int, timeout: float | None = None) -> None:
        """``timeout``, in seconds, is the default of every wait (API-R3). Raises ``InvalidRequest``."""
        self.name = answers.name_bytes(name)
        if not 1 <= len(self.name) <= MAX_NAME:
            raise InvalidRequest(f"the name of a barrier is 1..{MAX_NAME} bytes", rule="E2")
        if not 1 <= parties <= MAX_PARTIES:
            raise InvalidRequest(f"a barrier has 1..{MAX_PARTIES} parties, not {parties!r}")
        self.parties = parties
        self.timeout = Deadline(timeout).timeout
        self._client = client
        self._session = client.session
        self._gate = self.name + b"/barrier"
        self._entered: Entered[Passage] = Entered()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all have arrived; returns the number of this party among them, 0 … N-1.

        ``timeout`` in seconds, default that of the barrier. Raises ``LockTimeout``, ``LockLost`` (the node was cut
        off: the arrival is void), ``InvalidRequest`` (others use another number of parties), ``NotConnected``,
        ``ForkedProcess``; nothing is left then.
        """
        passage = self._arrive(Deadline(self.timeout if timeout is None else timeout))
        drop(passage.seat)
        drop(passage.gate)
        return passage.number

    # -- arriving

    def _arrive(self, deadline: Deadline) -> Passage:
        group = group_of(self._session.space, "barrier", self.name)
        with self._client._bells().open(group, deadline) as bell:
            gate = self._client.acquire(self._gate, Mode.EX, deadline.rest())
            try:
                return self._through(gate, bell, deadline)
            except BaseException:
                drop(gate)
                raise

    def _through(self, gate: Held, bell: Doorbell, deadline: Deadline) -> Passage:
        known, generation = self._state(gate)
        number, seat, last = self._sit(generation, deadline)
        try:
            heard, losses = bell.rings, bell.losses
            now = generation + 1 if last else generation
            state = None if known and not last else _STATE.pack(_MAGIC, self.parties, now)
            try:
                gate.convert(Mode.NL, _at_least(GRACE_S, deadline), value=state)
            finally:
                if last:
                    bell.ring()
            if not last:
                self._wait(gate, seat, generation, bell, (heard, losses), deadline)
        except BaseException:
            drop(seat, wait=gate.mode is Mode.EX)
            raise
        return Passage(generation, number, seat, gate)

    def _state(self, gate: Held) -> tuple[bool, int]:
        """Whether the block is there and valid, and the generation that is gathering. The bytes are right also
        where they are not *valid*: only a conversion changes them.
        """
        if len(gate.value) != _STATE.size:
            return False, 0
        magic, parties, generation = _STATE.unpack(gate.value)
        if magic != _MAGIC or parties != self.parties:
            text = f"barrier {answers.name_text(self.name)!r} is in use with {parties} parties, not {self.parties}"
            raise InvalidRequest(text, code="mismatch")
        return gate.value_valid, generation

    def _sit(self, generation: int, deadline: Deadline) -> tuple[int, Held, bool]:
        """A free seat, and whether all the others are taken.

        Under the gate nobody else sits down – but for a party that was cut off, has lost the gate, and does not
        know it yet. It may take one seat, and counts as one that has arrived and died; so nobody takes a second one
        only to see whether it is free. Looking is done in CR, which is in the way of nobody who looks.
        """
        patient = Deadline(TRY_PATIENCE_S) if deadline.timeout == 0 else deadline
        seats = [self._seat(generation, number) for number in range(self.parties)]
        while True:
            free = self._free(seats, patient)
            for number in free:
                asked = ask(self._session, seats[number], Mode.EX, Flag.NOQUEUE)
                try:
                    self._answered(asked, patient)
                    return number, asked.take(patient), len(free) == 1
                except LockTimeout:
                    asked.withdraw()
                except BaseException:
                    asked.withdraw()
                    raise
            if patient.over:
                raise self._too_late(deadline)
            self._until_free(seats, patient)

    def _free(self, seats: list[bytes], patient: Deadline) -> list[int]:
        """The numbers of the seats that nobody has."""
        with contextlib.ExitStack() as stack:
            asked = [stack.enter_context(ask(self._session, seat, Mode.CR, Flag.NOQUEUE)) for seat in seats]
            for one in asked:
                self._answered(one, patient)
            free = []
            for number, one in enumerate(asked):
                try:
                    one.take(patient)
                    free.append(number)
                except LockTimeout:
                    continue
            return free

    def _until_free(self, seats: list[bytes], patient: Deadline) -> None:
        """Wait until any seat is; no thread, which might be found in a circle, waits for all of them."""
        with contextlib.ExitStack() as stack:
            asked = [stack.enter_context(ask(self._session, seat, Mode.EX, apart=True)) for seat in seats]
            wait_any(self._session, asked, patient)

    def _answered(self, asked: Asked, patient: Deadline) -> None:
        if wait_any(self._session, [asked], patient) is None:
            raise self._too_late(patient)

    def _seat(self, generation: int, number: int) -> bytes:
        return b"%s/%x/%d" % (self._gate, generation, number)

    # -- waiting

    def _wait(
        self, gate: Held, seat: Held, generation: int, bell: Doorbell, since: tuple[int, int], deadline: Deadline
    ) -> None:
        """Return when the barrier has opened. Raises ``LockTimeout``, ``LockLost``."""
        heard, losses = since  # what had been heard when it was known not to be open
        try:
            while bell.wait(heard, deadline, lambda: _gone(seat)):
                heard, thorough = bell.rings, bell.losses != losses
                losses = bell.losses
                if thorough:  # whoever died may have held the gate, and opened the barrier or not
                    gate.convert(Mode.EX, deadline.rest())
                gate.convert(Mode.NL, _at_least(GRACE_S, deadline) if thorough else deadline.rest())
                if self._state(gate)[1] > generation:
                    return
        except LockTimeout:
            pass
        if _gone(seat):
            seat.check()
        self._give_up(gate, generation, deadline)

    def _give_up(self, gate: Held, generation: int, deadline: Deadline) -> None:
        """Time is up; whichever comes first in the order decides: the barrier is open, or ``LockTimeout``."""
        try:
            gate.convert(Mode.EX, GRACE_S)
            if self._state(gate)[1] > generation:
                gate.convert(Mode.NL, GRACE_S)
                return
        except (LockTimeout, LockBusy):  # busy: with a conversion that has no outcome yet
            pass
        raise self._too_late(deadline)  # the seat is given back first, then the gate

    def _too_late(self, deadline: Deadline) -> LockTimeout:
        what = f"barrier {answers.name_text(self.name)!r}: not all {self.parties}"
        text = f"{what} within {deadline.timeout or 0:g} s"
        return LockTimeout(text, name=self.name, timeout=deadline.timeout)

    # -- with

    def __enter__(self) -> Passage:
        return self._entered.push(self._arrive(Deadline(self.timeout)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until all have left, or are no more. After an exception leave without waiting."""
        passage, deadline = self._entered.pop(), Deadline(self.timeout)
        try:
            passage.seat.__exit__(kind, error, trace)
            if error is None:
                for number in range(self.parties):
                    with self._client.acquire(self._seat(passage.generation, number), Mode.CR, deadline.rest()):
                        pass
        finally:
            drop(passage.gate)

    def __repr__(self) -> str:
        return f"<dlm.Barrier {answers.name_text(self.name)!r} parties={self.parties} timeout={self.timeout}>"


def _gone(seat: Held) -> bool:
    """Lost for good: the lease alone may come back."""
    return seat.loss_now() not in (None, "lease")


def _at_least(seconds: float, deadline: Deadline) -> float | None:
    """What is left, but so long at least: for what has been decided already, and only must be said."""
    rest = deadline.rest()
    return None if rest is None else max(rest, seconds)
