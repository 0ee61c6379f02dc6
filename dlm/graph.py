"""What a request waits for, and circles in that (locks.md §5.2, D2–D5).

A request waits for two kinds of things, and the search needs to tell them apart:

* for the *owner* of a lock to end it: of a lock that holds a mode in its way, and of one ahead in the queue whose
  mode, once granted, will be in its way;
* for a lock ahead in the queue to leave the queue, no matter what its owner does then.

An owner (``Lock.waiter``) is stuck while one of its requests is stuck. What nobody outside can break is a circle
in the graph of these two: ``owner -> request -> owner or request -> ..``. No edges come from NODLCKWT requests, and
none go to NODLCKBLK locks (D4), nor to locks that their clients may have idle (``dlm.tries``).

What is found does not depend on the order of any dict: it is the same at every member (D6).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dlm.lock import Key, Lock, State, Step
from dlm.modes import ALTERNATIVES, CONFLICTING, NODLCKBLK, NODLCKWT, NONE, NOORDER
from dlm.resource import Resource

__all__ = ["Blocker", "Queued", "blockers", "circular", "edges", "find", "through"]

Queued = Mapping[Key, Mapping[Lock, Resource]]  #: the locks that wait, by owner, and where

_CLASH = tuple(sum(1 << mode for mode in modes) for modes in CONFLICTING)
_SPECIAL = NOORDER | NODLCKWT | NODLCKBLK  #: who stands behind such a lock does not wait for all that it waits for
_NO_LOCKS: dict[Lock, Resource] = {}


class Blocker(NamedTuple):
    """One thing that a request waits for: that ``lock`` leaves the queue, or (``ends``) that its owner ends it."""

    lock: Lock
    ends: bool


def blockers(resource: Resource, lock: Lock) -> list[Blocker]:
    """All that a queued lock waits for: holders by key first, then those ahead in line; NODLCKBLK ones as well.

    The definition that the search follows with fewer steps; for people and tests.
    """
    bars = _bars(lock)
    holders = sorted((other for other in resource.locks.values() if other is not lock), key=lambda one: one.key)
    found = [Blocker(other, _for_good(other, bars)) for other in holders if _holds(other, bars)]
    if not _overtakes(lock):
        line = [*resource.converting, *resource.waiting]
        for other in line[: line.index(lock)]:
            found.append(Blocker(other, False))
            if not _possible(other) & ~bars:
                found.append(Blocker(other, True))
    return list(dict.fromkeys(found))


def _overtakes(lock: Lock) -> bool:
    """Whether a queued lock waits for nobody's turn (Q7). The parts of a multi-lock do."""
    return bool(lock.flags & NOORDER) and not lock.batch


def _bars(lock: Lock) -> int:
    """The modes (one bit each) that keep a request from every mode it would take."""
    bars = _CLASH[lock.asked]
    for flag, mode in ALTERNATIVES:
        if lock.flags & flag:
            bars &= _CLASH[mode]
    return bars


def _possible(lock: Lock) -> int:
    """The modes (one bit each) that a queued lock may be granted in."""
    modes = 1 << lock.asked
    for flag, mode in ALTERNATIVES:
        if lock.flags & flag:
            modes |= 1 << mode
    return modes


def _holds(lock: Lock, bars: int) -> bool:
    """Whether it holds one of these modes."""
    return lock.mode != NONE and bool(bars >> lock.mode & 1)


def _for_good(lock: Lock, bars: int) -> bool:
    """Whether a holder in the way stays in it when its own conversion, if any, is granted (PR and CW change)."""
    return lock.state is not State.CONVERTING or not _possible(lock) & ~bars


def edges(queued: Queued) -> set[tuple[Key | Step, Key | Step]]:
    """The whole graph, spelled out: for tests. Owners are keys, requests are steps."""
    found: set[tuple[Key | Step, Key | Step]] = set()
    for owner, mine in queued.items():
        for lock, resource in mine.items():
            if lock.flags & NODLCKWT:
                continue
            request = _request(lock, queued)
            found.add((owner, request))
            for other, ends in blockers(resource, lock):
                if not (other.flags & NODLCKBLK or other.cached):
                    found.add((request, other.waiter if ends else _request(other, queued)))
    return found


def _request(lock: Lock, queued: Queued) -> Step:
    mine = queued[lock.waiter]
    first = _parts(lock, mine)[0]
    return Step.of(mine[first].name, first)


def _parts(lock: Lock, mine: Mapping[Lock, Resource]) -> list[Lock]:
    """The lock, or all parts of its multi-lock, which is granted as a whole. ``mine``: what its owner waits for."""
    if not lock.batch:
        return [lock]
    node, session, h = lock.key
    first = h - lock.batch.index(mine[lock].name)
    return sorted(
        (
            other
            for other, where in mine.items()
            if other.batch == lock.batch and other.key == (node, session, first + lock.batch.index(where.name))
        ),
        key=lambda part: part.key,
    )


# -- the search ----------------------------------------------------------------------------------------------


class _Held(NamedTuple):
    """All that hold one of ``modes`` (one bit each) of a resource, for requests that hold nothing there."""

    resource: Resource
    modes: int


Node = Key | Lock | _Held  #: an owner, the wait of a lock, and one that saves edges


class _Graph:
    """The graph as it is now, with few edges: what follows from others is left out. A multi-lock is one request,
    for which its first part stands.

    Who stands behind another waits for all that the other waits for. So a request needs an edge only to the one
    before it, and looks further ahead only until it comes to one that minds at least the modes which it minds
    itself. A queue of any length has no more edges than it has locks, times the number of modes.
    """

    def __init__(self, queued: Queued) -> None:
        self._queued = queued
        self._lines: dict[Resource, tuple[list[Lock], dict[Lock, int]]] = {}
        self._wholes: dict[Lock, list[Lock]] = {}

    def successors(self, node: Node) -> list[Node]:
        """What has to happen before ``node`` can."""
        if isinstance(node, Lock):
            found: list[Node] = []
            for part in self.parts(node):
                found += self.request(part)
            return found
        if isinstance(node, _Held):
            return self._holders(node.resource, node.modes)
        return list(dict.fromkeys(self._first(lock) for lock in self._queued.get(node, _NO_LOCKS)))

    def parts(self, lock: Lock) -> list[Lock]:
        """The lock, or all parts of its multi-lock."""
        if not lock.batch:
            return [lock]
        if lock not in self._wholes:
            whole = _parts(lock, self._queued[lock.waiter])
            self._wholes.update(dict.fromkeys(whole, whole))
        return self._wholes[lock]

    def _first(self, lock: Lock) -> Lock:
        return self.parts(lock)[0] if lock.batch else lock

    def request(self, lock: Lock) -> list[Node]:
        """What one lock, or one part, waits for."""
        if lock.flags & NODLCKWT:
            return []
        resource, bars = self._queued[lock.waiter][lock], _bars(lock)
        found: list[Node] = []
        if not _overtakes(lock):
            line, where = self._line(resource)
            direct = True
            for index in range(where[lock] - 1, -1, -1):
                ahead = line[index]
                if not ahead.flags & NODLCKBLK:
                    if direct:
                        found.append(self._first(ahead))
                    if not _possible(ahead) & ~bars:
                        found.append(ahead.waiter)
                if not ahead.flags & _SPECIAL:
                    direct = False
                    if not bars & ~_bars(ahead):
                        return found  # it waits for all that is further ahead, and for the holders
        if lock.mode == NONE:
            found.append(_Held(resource, bars))
        else:
            found += self._holders(resource, bars, lock)
        return found

    def _line(self, resource: Resource) -> tuple[list[Lock], dict[Lock, int]]:
        """All that wait for a name, in line, and who stands where."""
        known = self._lines.get(resource)
        if known is None:
            line = [*resource.converting, *resource.waiting]
            known = self._lines[resource] = line, {lock: index for index, lock in enumerate(line)}
        return known

    @staticmethod
    def _holders(resource: Resource, bars: int, lock: Lock | None = None) -> list[Node]:
        return [
            other.waiter if _for_good(other, bars) else other
            for other in resource.locks.values()
            if _holds(other, bars) and other is not lock and not (other.flags & NODLCKBLK or other.cached)
        ]

    def circular(self, roots: Iterable[Node]) -> bool:
        """Whether a circle can be reached: depth first, each node once, without recursion."""
        done: set[Node] = set()
        for root in roots:
            if root in done:
                continue
            above: set[Node] = {root}  # what is on the stack
            stack = [(root, iter(self.successors(root)))]
            while stack:
                node, rest = stack[-1]
                for following in rest:
                    if following in above:
                        return True
                    if following not in done:
                        above.add(following)
                        stack.append((following, iter(self.successors(following))))
                        break
                else:
                    stack.pop()
                    above.discard(node)
                    done.add(node)
        return False

    def reachable(self, roots: Iterable[Node]) -> list[Node]:
        """All that can be reached."""
        todo = list(dict.fromkeys(roots))
        seen = set(todo)
        for node in todo:  # it grows meanwhile
            for following in self.successors(node):
                if following not in seen:
                    seen.add(following)
                    todo.append(following)
        return todo

    def around(self, start: Node) -> list[Node]:
        """A shortest way from a node back to it, empty if there is none."""
        came: dict[Node, Node] = {}
        todo = deque([start])
        while todo:
            node = todo.popleft()
            for following in sorted(self.successors(node), key=self._rank):
                if following == start:
                    way = [node]
                    while way[-1] != start:
                        way.append(came[way[-1]])
                    return way[::-1]
                if following not in came:
                    came[following] = node
                    todo.append(following)
        return []

    def locks(self, way: list[Node]) -> list[Lock]:
        """The queued locks on a circle; of a multi-lock the part that waits for what comes next."""
        found: list[Lock] = []
        for node, following in zip(way, way[1:] + way[:1], strict=True):
            if isinstance(node, Lock):
                found.append(next(part for part in self.parts(node) if following in self.request(part)))
        return found

    def age(self, lock: Lock) -> tuple[int, int, Key]:
        """When its wait began, and if others began at the same position, where it stands (D3)."""
        return lock.order, self._line(self._queued[lock.waiter][lock])[1][lock], lock.key

    def _rank(self, node: Node) -> tuple[int, bytes, Key]:
        """Some order that is the same everywhere."""
        if isinstance(node, Lock):
            return 0, self._name(node), node.key
        if isinstance(node, _Held):
            return 1, node.resource.name, (node.modes, 0, 0)
        return 2, b"", node

    def _name(self, lock: Lock) -> bytes:
        return self._queued[lock.waiter][lock].name


def circular(queued: Queued) -> bool:
    """Whether there is any circle."""
    return _Graph(queued).circular(queued)


def find(queued: Queued, roots: Iterable[Key]) -> list[Lock]:
    """A circle that these owners are in or wait for: the queued locks on it in order, empty if there is none.

    The first is, of all on any such circle, the one whose wait began last. Each waits for the next or for its
    owner, and the last for the first.
    """
    graph = _Graph(queued)
    roots = list(roots)
    if not graph.circular(roots):
        return []
    waiting = [node for node in graph.reachable(roots) if isinstance(node, Lock)]
    for lock in sorted(waiting, key=graph.age, reverse=True):
        way = graph.around(lock)
        if way:
            return graph.locks(way)
    raise AssertionError("a circle without a request")


def through(queued: Queued, lock: Lock) -> list[Lock]:
    """A circle as from ``find`` that begins with this queued lock, or with another part of its multi-lock."""
    graph = _Graph(queued)
    return graph.locks(graph.around(graph.parts(lock)[0]))
