"""Leader election: the leader holds ``NAME/leader`` in EX, and its fence is the term.

The queue of the lock is the line of the candidates. The leader writes its identity into the value block, which the
lock manager marks as not valid when the leader ends without resigning: so what is read there is true, or nothing.
A bell (``dlm.recipes.doorbell``) tells observers when to read again.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from dlm import answers
from dlm.errors import InvalidRequest, LockCancelled, LockLost, LockTimeout, NotHeld
from dlm.grant import Grant
from dlm.info import Flag, Holder, Mode
from dlm.recipes.asked import Asked, ask, wait_any
from dlm.recipes.deadline import Deadline
from dlm.recipes.doorbell import group_of
from dlm.session import TRY_PATIENCE_S

if TYPE_CHECKING:
    from typing import Self

    from dlm.client import Client
    from dlm.held import Held
    from dlm.recipes.doorbell import Doorbell
    from dlm.session_base import SessionBase

__all__ = [
    "Election", "ElectionBase", "Leader", "Term", "TermBase", "TermEnd", "TermEndBase", "leader_in",
]  # fmt: skip

MAX_NAME = 64 - len("/leader")  #: bytes
MAX_IDENTITY = 1000  #: bytes, of the 1024 that a value block has
H = TypeVar("H", bound=Grant)
_HEAD = struct.Struct(">QIQ")  #: term, node, session; the identity follows


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads: the identity it gave, its term, and its session and node."""

    identity: str
    term: int
    node: int
    session: int


class TermEndBase:
    """Whether a term is over, lost or resigned, for threads or tasks."""

    def __init__(self, held: Grant) -> None:
        self._held = held

    @property
    def reason(self) -> str | None:
        """``resigned``, or a word of ``LockLost.reason``; ``None`` while the term lasts."""
        lost = self._held.loss_now()
        return "resigned" if lost is None and self._held.released else lost

    def is_set(self) -> bool:
        """Whether the term is over, or its lease has run out."""
        return self.reason is not None

    __bool__ = is_set

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.reason or 'not over'}>"


class TermEnd(TermEndBase):
    """Whether a term is over, lost or resigned: like ``threading.Event``, with a ``reason``. Thread-safe."""

    _held: Held

    def __init__(self, held: Held) -> None:
        super().__init__(held)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the term is over (``True``) or ``timeout`` seconds are (``False``)."""
        return self._held.lost.wait(timeout) or self.is_set()


class TermBase(Generic[H]):
    """A time as the leader, for threads or tasks.

    ``fence`` is the number of the term: strictly increasing, also across crashes and restarts (API-R6).
    """

    lost: TermEndBase

    def __init__(self, identity: str, held: H) -> None:
        self.identity = identity
        self.fence = held.fence
        self.since = held.held_since  #: ``time.time()`` of the election
        self.held = held  #: the lock that it is
        self._over = False

    @property
    def valid(self) -> bool:
        """Whether this is the leader for certain at this moment."""
        return self.held.valid

    def check(self) -> None:
        """Return if this is the leader for certain. Raises ``LockLost``, ``NotHeld``."""
        self.held.check()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.fence} of {self.identity!r}, {self.lost.reason or 'leading'}>"


class Term(TermBase["Held"]):
    """A time as the leader. Made by ``Election``; as a context manager it resigns at the end. Thread-safe."""

    lost: TermEnd

    def __init__(self, election: Election, held: Held, bell: Doorbell) -> None:
        super().__init__(election.identity, held)
        self.lost = TermEnd(held)
        self._election = election
        self._bell = bell
        self._guard = threading.Lock()

    def resign(self) -> None:
        """Step down; returns when the next one may lead. Once is enough, more is nothing.

        Raises ``LockLost`` if it was not the leader for certain any more.
        """
        with self._guard:
            if self._over:
                return
            self._over = True
        certain = self.held.lost.reason is None
        try:
            if certain:
                self.held.value = b""
            self.held.release(wait=certain)  # whoever is not certain may have a node that does not answer
        finally:
            self._election.ended(self, self._bell, certain)

    def __enter__(self) -> Self:
        if self._over:
            raise NotHeld(f"{self!r} is over", name=self.held.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.resign()
        except LockLost as lost:
            if error is None:
                raise
            if not isinstance(error, LockLost):
                error.add_note(f"meanwhile: {lost}")


class ElectionBase:
    """What an election is, for threads or tasks: its name, and what the leader says of itself."""

    def __init__(self, name: str | bytes, identity: str | None = None) -> None:
        """``identity`` is what others are told of this candidate; default: host and process id."""
        self.name = answers.name_bytes(name)
        if not 1 <= len(self.name) <= MAX_NAME:
            raise InvalidRequest(f"the name of an election is 1..{MAX_NAME} bytes", rule="E2")
        self.identity = f"{socket.gethostname()}/{os.getpid()}" if identity is None else identity
        if len(self.identity.encode()) > MAX_IDENTITY:
            raise InvalidRequest(f"an identity is at most {MAX_IDENTITY} bytes")
        self._key = self.name + b"/leader"

    def _says(self, fence: int, session: SessionBase) -> bytes:
        """What the leader writes into the value block."""
        me = session.channel.welcome
        return _HEAD.pack(fence, int(me["node"]["id"]), int(me["session"])) + self.identity.encode()

    def _cancelled(self) -> LockCancelled:
        return LockCancelled(f"election {answers.name_text(self.name)!r}: resigned", name=self.name)

    def _not_won(self, timeout: float | None) -> LockTimeout:
        text = f"election {answers.name_text(self.name)!r} was not won within {timeout or 0:g} s"
        return LockTimeout(text, name=self.name, timeout=timeout)

    def __repr__(self) -> str:
        return f"<dlm.{type(self).__name__} {answers.name_text(self.name)!r} identity={self.identity!r}>"


class Election(ElectionBase):
    """A candidate for ``name`` (at most 57 bytes). Thread-safe; one term at a time for each thread that campaigns.

    ::

        for term in locks.election("scheduler", identity=host):
            while not term.lost.wait(1):
                tick(epoch=term.fence)

    The loop is entered only as the leader. When its body ends, the term does; then it campaigns again, behind those
    who wait. ``resign()``, ``break`` and an exception end term and candidacy. When the session ends, as the daemon
    has gone, the loop raises ``NotConnected``; a node that was cut off and came back campaigns again.
    """

    def __init__(self, client: Client, name: str | bytes, identity: str | None = None) -> None:
        """``identity`` is what others are told of this candidate; default: host and process id."""
        super().__init__(name, identity)
        self._client = client
        self._session = client.session
        self._terms: list[Term] = []  #: under session.changed, as the next one
        self._resigned = 0  #: how often

    # -- leading

    def campaign(self, timeout: float | None = None) -> Term:
        """Wait until this is the leader. ``with election.campaign() as term:`` leaves with ``LockLost`` if the term
        was lost meanwhile.

        Raises ``LockTimeout``, ``LockCancelled`` (``resign()`` meanwhile), ``NotConnected``, ``ForkedProcess``,
        ``LockLost`` (lost before this could return), ``Deadlock``; nothing is left in the queue then (API-R8).
        """
        return self._campaign(Deadline(timeout), self._resigned)

    def __iter__(self) -> Iterator[Term]:
        """The terms of this candidate, one after the other."""
        resigned = self._resigned
        while resigned == self._resigned:
            try:
                term = self._campaign(Deadline(None), resigned)
            except LockCancelled:
                return
            except LockLost:
                continue
            try:
                yield term
            finally:
                _end(term)

    def resign(self) -> None:
        """End this candidate's term, if it leads, and its candidacy: a waiting ``campaign`` raises
        ``LockCancelled``, a loop ends. Returns when the next one may lead. It may be a candidate again.
        """
        with self._session.changed:
            self._resigned += 1
            terms = list(self._terms)
            self._session.changed.notify_all()
        for term in terms:
            _end(term)

    def _campaign(self, deadline: Deadline, resigned: int) -> Term:
        bell = self._open_bell(deadline)
        try:
            held = self._win(deadline, resigned)
        except BaseException:
            bell.close()
            raise
        term = Term(self, held, bell)
        with self._session.changed:
            self._terms.append(term)
        try:
            held.convert(Mode.EX, deadline.rest(), value=self._says(held.fence, self._session))
            bell.ring()
        except NotHeld:  # resigned, the other way round
            raise self._cancelled() from None
        except BaseException:
            _end(term)
            raise
        if resigned != self._resigned:  # by somebody who did not see the term yet
            _end(term)
            raise self._cancelled()
        return term

    def _win(self, deadline: Deadline, resigned: int) -> Held:
        if deadline.timeout == 0:
            asked = ask(self._session, self._key, Mode.EX, Flag.NOQUEUE, no_quorum="fail")
            patient = Deadline(TRY_PATIENCE_S)
        else:
            asked = ask(self._session, self._key, Mode.EX)
            patient = deadline
        try:
            if wait_any(self._session, [asked], patient, lambda: resigned != self._resigned) is None:
                if resigned != self._resigned:
                    raise self._cancelled()
                raise self._not_won(deadline.timeout)
            return asked.take(deadline)
        except BaseException:
            asked.withdraw()
            raise

    def ended(self, term: Term, bell: Doorbell, certain: bool) -> None:
        """For ``Term``: it is over."""
        with self._session.changed:
            if term in self._terms:
                self._terms.remove(term)
        try:
            bell.ring(wait=certain)
        except ConnectionError:  # then the view tells
            pass
        finally:
            bell.close()

    # -- observing

    def leader(self) -> Leader | None:
        """Who leads, as the cluster knows it; ``None``: nobody, or somebody who has not said so yet. Takes a
        message or two. Waits while the node is not in the primary component.

        Raises ``NotConnected``, ``ForkedProcess``.
        """
        while True:
            with self._look() as asked:
                wait_any(self._session, [asked], Deadline(None))
                try:
                    return _read(asked)
                except LockLost:  # that of the look; look again
                    continue

    def candidates(self) -> tuple[Holder, ...]:
        """Who waits to be elected, in that order; without the leader. Their programs, nodes and process ids: a
        candidate's identity is told when it leads.
        """
        with self._client.acquire(self._key, Mode.NL, flags=Flag.EXPEDITE):  # known to all nodes, while this lasts
            return self._client.lock(self._key).contenders() or ()

    def changes(self) -> Iterator[Leader | None]:
        """The leader now, then every change, for ever; ``None`` when there is none, and while this node is not in
        the primary component. Nothing is polled; changes that follow fast are seen as one.

        Raises ``NotConnected`` when the session ends, ``ForkedProcess``.
        """
        with self._open_bell(Deadline(None)) as bell:
            known: Leader | None = None
            first = True
            while True:
                seen, leader = self._observe(bell)
                if first or leader != known:
                    first, known = False, leader
                    yield leader
                bell.wait(seen, Deadline(None))

    def _observe(self, bell: Doorbell) -> tuple[int, Leader | None]:
        """The leader, and how many rings had been heard before that was asked."""
        while True:
            with self._session.changed:
                seen, primary = bell.rings, bell.primary
            if not primary:
                return seen, None
            with self._look() as asked:
                if wait_any(self._session, [asked], Deadline(None), lambda: not bell.primary) is None:
                    continue
                try:
                    leader = _read(asked)
                except LockLost:
                    continue
            with self._session.changed:
                gone = leader is not None and (leader.node, leader.session) not in bell.members
            # A process leaves the group and gives up its locks by two messages: either will do.
            return seen, None if gone else leader

    def _look(self) -> Asked:
        return ask(self._session, self._key, Mode.NL, Flag.EXPEDITE)

    def _open_bell(self, deadline: Deadline) -> Doorbell:
        return self._client._bells().open(group_of(self._session.space, "election", self.name), deadline)


def _end(term: Term) -> None:
    try:
        term.resign()
    except LockLost:
        pass


def _read(asked: Asked) -> Leader | None:
    """The leader that the value block tells of. Raises what ``Asked.take`` does."""
    return leader_in(asked.take(Deadline(None)))


def leader_in(look: Grant) -> Leader | None:
    """The leader that the value block tells of, as a lock has just read it."""
    if not look.value_valid or len(look.value) < _HEAD.size:
        return None
    term, node, session = _HEAD.unpack_from(look.value)
    return Leader(look.value[_HEAD.size :].decode(errors="replace"), term, node, session)
