"""What must hold of locks, judged from outside the lock manager.

GRANT-Q2  At no instant of true time are two incompatible handles both valid.
FENCE-K14 Fences of incompatible grants of a name rise in true time, and none is given twice.
LEASE     A kept lock is taken again only within the lease of the life that granted it (D9).
ANSWER    Every operation has exactly one answer (K9), and after healing it comes.
VALUE     What is read as valid was written by a predecessor, and no later write was lost (L4, L7).
MULTI     A multi-lock is granted as a whole and answered as a whole; no table shows a part of it held.
QUEUE     A failure leaves the order of those who still wait as it was, loses nobody, and lets nobody overtake; who
          can be granted then is granted by the view itself, without a message.
CHAIN-K8  A primary view goes on with the state of the last one before it, or with none.
LOSS, FREEZE: see ``losses``.
TABLE     Full members have equal tables at equal positions (K2); the table's own invariants hold.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dlm.folded import contents
from dlm.lock import Key, Lock, State, Step
from dlm.messages import Kind, key_of
from dlm.modes import COMPATIBLE, MODES, NAMES, NOORDER, NOQUEUE, PW
from dlm.multi import keys_of
from dlm.recovery import announcements, survivors
from dlm.resource import Resource
from dlm.testing.clients import Handle, Operation
from vsync.testing.violation import Violation
from vsync.types import RingId, View

if TYPE_CHECKING:
    from dlm.service import DlmService
    from dlm.table import Effects, Table
    from vsync.testing.node import SimNode

__all__ = ["ChainRules", "FenceRules", "HolderRules", "QueueRules", "TableRules", "ValueRules", "WholeRules"]


class HolderRules:
    """GRANT-Q2. Asked whenever a handle becomes valid: at a grant, and when a lapsed lease goes on."""

    def __init__(self) -> None:
        self._believed: dict[bytes, list[Handle]] = {}

    def granted(self, handle: Handle) -> None:
        """A client was told that it holds ``handle.mode``; its page is as it was written last."""
        others = self._believed.setdefault(handle.name, [])
        others[:] = [other for other in others if not other.over]
        if handle not in others:
            others.append(handle)
        self.check(handle)

    def switched_off(self, node: SimNode) -> None:
        """The host with everybody who ran there is off."""
        for handle in (each for believed in self._believed.values() for each in believed):
            handle.over = handle.over or handle.client.node is node

    def check(self, handle: Handle) -> None:
        """Nobody else has a valid incompatible handle at this instant. Raises ``Violation``."""
        if not handle.valid():
            return
        for other in self._believed.get(handle.name, ()):
            if other is not handle and not COMPATIBLE[other.mode][handle.mode] and other.valid():
                raise Violation(
                    "GRANT-Q2",
                    f"{handle.name!r}: {handle} holds {NAMES[handle.mode]} with fence {_f(handle.fence)} while "
                    f"{other} holds {NAMES[other.mode]} with fence {_f(other.fence)}",
                )


class FenceRules:
    """FENCE-K14. Only grants that are valid when they are told count: a late answer may be out of date."""

    def __init__(self) -> None:
        self._highest: dict[bytes, list[int]] = {}  # per mode
        self._given: dict[bytes, dict[int, Handle]] = {}

    def granted(self, handle: Handle) -> None:
        """A client was told a mode and a fence. Raises ``Violation``."""
        given = self._given.setdefault(handle.name, {})
        first = given.setdefault(handle.fence, handle)
        if first is not handle:
            raise Violation(
                "FENCE-K14", f"{handle.name!r}: fence {_f(handle.fence)} for {handle} was given to {first}"
            )
        if not handle.valid():
            return
        highest = self._highest.setdefault(handle.name, [0] * len(MODES))
        for mode in MODES:
            if not COMPATIBLE[mode][handle.mode] and highest[mode] > handle.fence:
                raise Violation(
                    "FENCE-K14",
                    f"{handle.name!r}: {handle} is granted {NAMES[handle.mode]} with fence "
                    f"{_f(handle.fence)}, after {NAMES[mode]} with {_f(highest[mode])}",
                )
        highest[handle.mode] = max(highest[handle.mode], handle.fence)


class ValueRules:
    """VALUE. Who holds PW or EX writes its own fence, so a value says whose it is. An empty one is new (L10)."""

    def __init__(self) -> None:
        self._asked: dict[bytes, set[int]] = {}  # fences that may have been written
        self._written: dict[bytes, list[tuple[int, int]]] = {}  # (fence, mode)

    def asks(self, handle: Handle) -> None:
        """An operation is under way that may leave the holder's fence in the value block."""
        if handle.granted >= PW:
            self._asked.setdefault(handle.name, set()).add(handle.fence)

    def writes(self, handle: Handle) -> None:
        """A release, or a conversion that has succeeded, leaves it there, or the block is not valid."""
        self.asks(handle)
        if handle.granted >= PW:
            self._written.setdefault(handle.name, []).append((handle.fence, handle.granted))

    def reads(self, handle: Handle, value: bytes) -> None:
        """A client was given this as valid, with a new grant. Raises ``Violation``."""
        if not value:
            return
        written = int.from_bytes(value, "big")
        if written >= handle.fence or written not in self._asked.get(handle.name, ()):
            raise Violation(
                "VALUE", f"{handle.name!r}: {handle} with fence {_f(handle.fence)} reads what {_f(written)} wrote"
            )
        for fence, mode in self._written.get(handle.name, []):
            if written < fence < handle.fence and not COMPATIBLE[mode][handle.granted]:
                raise Violation(
                    "VALUE",
                    f"{handle.name!r}: {handle} with fence {_f(handle.fence)} reads what {_f(written)} wrote, and "
                    f"what {_f(fence)} wrote after that is lost although the block is valid",
                )


Place = tuple[list[Key], list[Key]]  #: who converts and who waits, in order


class QueueRules:
    """QUEUE. Looks at the table of every member that goes on, right before and right after a view."""

    def watch(self, node: int, locker: DlmService) -> None:
        """Put an eye on the views that this service is given."""
        inner = locker.view

        def view(view: View, now: int) -> None:
            table = locker.table
            before = {} if view.transitional else _places(table)
            free = _loose(table) | _asked(locker) if before else set()
            lives = {node: life.ring for node, life in table.lives.items()}
            with _refusals(table) as refused:
                inner(view, now)
            free |= refused
            if before and view.primary and locker.table is table:
                going_on = {node for node, life in table.lives.items() if lives.get(node) == life.ring}
                self.judge(node, before, free, going_on, table)

        locker.view = view  # type: ignore[method-assign]

    @staticmethod
    def judge(node: int, before: dict[bytes, Place], free: set[Key], going_on: set[int], table: Table) -> None:
        """``free`` are those who may move: NOORDER, or something of theirs was ordered meanwhile, or they were
        refused because the view has closed a circle.

        ``going_on`` are the nodes whose locks stay. Raises ``Violation``.
        """
        for name, queues in before.items():
            known = table.names.get(name)
            resource = contents(name, known) if known is not None else None
            for queue in queues:
                left = [key for key in queue if key[0] in going_on and key not in free]
                if resource is None:
                    continue  # it went with its owner
                lost = [key for key in left if key not in resource.locks]
                waits = [key for key in left if key not in lost and resource.locks[key].state is not State.GRANTED]
                granted = [key for key in left if key not in lost and key not in waits]
                now = [lock.key for lock in (*resource.converting, *resource.waiting) if lock.key in waits]
                if lost:
                    raise Violation("QUEUE", f"node {node}: {lost[0]} has lost its place for {name!r} by a view")
                if now != waits:
                    raise Violation("QUEUE", f"node {node}: order for {name!r} {waits}, {now} after a view")
                if waits and any(left.index(key) > left.index(waits[0]) for key in granted):
                    raise Violation("QUEUE", f"node {node}: {waits[0]} was overtaken on {name!r} by a view")
        try:
            table.invariants()  # nobody is left who could be granted
        except AssertionError as error:
            raise Violation("QUEUE", f"node {node}: after a view {error}") from error


def _places(table: Table) -> dict[bytes, Place]:
    queued = {key: name.resource for key, name in table.names.items() if name.resource and name.resource.queued}
    return {key: ([x.key for x in one.converting], [x.key for x in one.waiting]) for key, one in queued.items()}


def _loose(table: Table) -> set[Key]:
    resources = [name.resource for name in table.names.values() if name.resource is not None]
    locks = [lock for one in resources for lock in one.locks.values()]
    # What is only tried waits for names that change hands, or for the word of holders who may be idle.
    return {lock.key for lock in locks if lock.flags & (NOORDER | NOQUEUE)}


@contextmanager
def _refusals(table: Table) -> Iterator[set[Key]]:
    """The locks that are refused meanwhile as parts of circles."""
    refused: set[Key] = set()
    inner = table.refuse

    def refuse(resource: Resource, lock: Lock, cycle: tuple[Step, ...], out: Effects) -> None:
        refused.update(key for _, key in keys_of(resource.name, lock)) if lock.batch else refused.add(lock.key)
        inner(resource, lock, cycle, out)

    table.refuse = refuse  # type: ignore[method-assign]
    yield refused
    table.refuse = inner  # type: ignore[method-assign]


def _asked(locker: DlmService) -> set[Key]:
    """The locks that the messages which are held back are about."""
    found: set[Key] = set()
    for _, origin, message in locker._held:
        if message.kind <= Kind.CANCEL or message.kind == Kind.IN_USE:
            found.add((origin.node, message.body[1], message.body[2]))
        elif message.kind in (Kind.END, Kind.UNLOCK_ALL):
            found |= {(origin.node, message.body[0], row[1]) for row in message.body[1]}
        elif message.kind == Kind.CANCEL_ALL:
            found |= {(origin.node, message.body[0], h) for _, h in message.body[2]}
    return found


class WholeRules:
    """MULTI: no table shows a multi-lock that is held in part."""

    @staticmethod
    def check(node: int, service: DlmService, operations: Iterable[Operation]) -> None:
        """Look at the multi-locks that are on their way."""
        for operation in operations:
            states: set[str] = set()
            left = operation.given_up or any(handle.over for handle in operation.together)
            for handle in operation.together:
                key = key_of("default", handle.name)
                name = service.table.names.get(key)
                resource = contents(key, name) if name is not None else None
                if resource is not None:
                    client = handle.client
                    lock = resource.locks.get((client.node.id, client.session, handle.h))
                    states.add("waits" if lock and lock.batch else "held" if lock else "missing")
            if states == {"held", "waits"} or (states == {"held", "missing"} and not left):
                text = f"the multi-lock of {operation.handle} is held in part: {sorted(states)}"
                raise Violation("MULTI", f"node {node}: {text}")


class ChainRules:
    """CHAIN-K8: nobody goes on with an old state after a newer one was in force."""

    def __init__(self) -> None:
        self._went_on_with: dict[RingId, RingId] = {}  # by primary view; not those that began empty
        self._views: list[RingId] = []

    def in_force(self, view: View) -> None:
        """Somebody works in this primary view. Raises ``Violation``."""
        states = [said.ring for _, said in announcements(view).values() if said.complete]
        if survivors(view):
            self._went_on_with[view.id] = max(states)
        insort(self._views, view.id)
        for later, state in self._went_on_with.items():
            between = bisect_right(self._views, state)
            if self._views[between] < later:
                raise Violation(
                    "CHAIN-K8",
                    f"primary view {later} goes on with the state of {state}, after {self._views[between]}",
                )


class TableRules:
    """TABLE: replicas agree."""

    def __init__(self) -> None:
        self._digests: dict[tuple[RingId, int], tuple[int, str]] = {}
        self._last: dict[int, tuple[RingId, int]] = {}

    def check(self, node: int, service: DlmService) -> None:
        """Compare this node's table with the others' at the same position, if it has moved."""
        if not service.complete:
            return
        table = service.table
        place = (table.ring, table.applied)
        if self._last.get(node) == place:
            return
        self._last[node] = place
        digest = table.digest()
        other, expected = self._digests.setdefault(place, (node, digest))
        if digest != expected:
            raise Violation(
                "TABLE", f"nodes {node} and {other} have different tables at position {place[0]}:{place[1]}"
            )

    def invariants(self, node: int, service: DlmService) -> None:
        """The table's own view of itself."""
        try:
            service.table.invariants()
        except AssertionError as error:
            raise Violation("TABLE", f"node {node}: {error}") from error

    def forget(self, node: int) -> None:
        """A process has ended."""
        self._last.pop(node, None)


def _f(fence: int) -> str:
    return f"{fence >> 32}.{fence & 0xFFFF_FFFF}"
