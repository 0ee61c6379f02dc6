"""The graph of who waits for whom: few edges for many, the same at every member, what it costs (locks.md D2–D6)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Iterable
from itertools import count
from typing import Any

import pytest

from dlm import graph
from dlm.lock import Lock, State
from dlm.messages import Kind, Message
from dlm.modes import (
    ALTCW,
    ALTPR,
    CONVDEADLK,
    CR,
    CW,
    EX,
    HEADQUE,
    NL,
    NODLCKBLK,
    NODLCKWT,
    NOORDER,
    PR,
    PW,
    QUECVT,
    QUECVT_FROM,
)
from dlm.resource import Resource
from dlm.table import Composed, Life, Table
from dlm.waits import Waits, blockers, edges, find
from vsync.types import Member, RingId

RING = RingId(9, 1)
SPECIAL = (HEADQUE, NOORDER, NODLCKWT, NODLCKBLK, ALTPR, ALTCW, CONVDEADLK)


class Names:
    """Some shared names without a search: circles stay."""

    def __init__(self, names: int) -> None:
        self.waits = Waits()
        self.resources = [Resource(count(1).__next__) for _ in range(names)]
        for index, resource in enumerate(self.resources):
            self.waits.take(b"%d" % index, resource)
        self._h = count(1)
        self._order = count(1)

    def lock(self, name: int, owner: int, mode: int = EX, flags: int = 0) -> Lock:
        lock = Lock((1, 1, next(self._h)), mode, flags, owner=owner)
        self.resources[name].lock(lock, [])
        lock.order = next(self._order)
        return lock

    def random_step(self, rng: random.Random, owners: int, special: float) -> None:
        """Somebody asks for, converts or gives up something."""
        resource = rng.choice(self.resources)
        flags = sum(flag for flag in SPECIAL if rng.random() < special)
        granted = [lock for _, lock in sorted(resource.locks.items()) if lock.state is State.GRANTED]
        choice = rng.random()
        if choice < 0.55 or not granted:
            index = self.resources.index(resource)
            self.lock(index, rng.randint(1, owners), rng.choice((CR, CW, PR, PW, EX)), flags & ~CONVDEADLK)
        elif choice < 0.85:
            lock, mode = rng.choice(granted), rng.choice((NL, CR, CW, PR, PW, EX))
            flags |= QUECVT if mode in QUECVT_FROM[lock.mode] and rng.random() < 0.3 else 0
            resource.convert(lock.key, mode, flags, None, 0, [])
            lock.order = next(self._order)
        else:
            resource.unlock(rng.choice(granted).key, 0, None, [])


def circular(pairs: Iterable[tuple[Hashable, Hashable]]) -> bool:
    """Whether a graph has a circle: what has no edge left is taken away until nothing changes."""
    following: dict[Any, set[Any]] = defaultdict(set)
    for one, other in pairs:
        following[one].add(other)
    while True:
        ends = {node for nodes in following.values() for node in nodes} - {n for n in following if following[n]}
        if not ends:
            return any(following.values())
        for node in list(following):
            following[node] -= ends
            if not following[node]:
                del following[node]


@pytest.mark.parametrize("seed", range(8))
def test_the_edges_left_out_follow_from_the_others(seed: int) -> None:
    """Every request and every owner, not only those in circles: from the same nodes circles can be reached."""
    rng = random.Random(seed)
    found = 0
    for _ in range(80):
        names = Names(rng.randint(1, 4))
        special = rng.choice((0.0, 0.05, 0.2))
        for _ in range(rng.randint(5, 25)):
            names.random_step(rng, rng.randint(2, 6), special)
        queued = names.waits.queued
        whole = edges(queued)
        assert graph.circular(queued) == circular(whole)
        for owner in sorted(queued):
            within = reachable(owner, whole)
            reaches = circular(pair for pair in whole if pair[0] in within)
            circle = find(queued, [owner])
            assert bool(circle) == reaches
            if circle:
                found += 1
                check(circle, queued, within, whole)
    assert found > 20


def reachable(start: Any, pairs: set[tuple[Any, Any]]) -> set[Any]:
    following: dict[Any, set[Any]] = defaultdict(set)
    for one, other in pairs:
        following[one].add(other)
    seen, todo = {start}, [start]
    while todo:
        for node in following[todo.pop()] - seen:
            seen.add(node)
            todo.append(node)
    return seen


def check(circle: list[Lock], queued: graph.Queued, within: set[Any], whole: set[tuple[Any, Any]]) -> None:
    """Each waits for the next or its owner; the first is the last to have begun of all that are on any circle."""
    steps = {lock: graph.Step.of(queued[lock.waiter][lock].name, lock) for mine in queued.values() for lock in mine}
    for one, other in zip(circle, [*circle[1:], circle[0]], strict=True):
        assert steps[other] in reachable(steps[one], whole)
    on_circles = [
        lock for lock, step in steps.items()
        if step in within and any(step in reachable(after, whole) for one, after in whole if one == step)
    ]  # fmt: skip
    assert circle[0] is max(on_circles, key=lambda lock: lock.order)


def test_a_queue_of_thousands_is_searched_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers and writers in one queue, whose owners hold what others want: each request is looked at once."""
    looked = edges_seen = 0
    request = graph._Graph.request

    def counting(self: Any, lock: Lock) -> list[Any]:
        nonlocal looked, edges_seen
        found = request(self, lock)
        looked, edges_seen = looked + 1, edges_seen + len(found)
        return found

    monkeypatch.setattr(graph._Graph, "request", counting)
    size = 3000
    names = Names(2)
    names.lock(0, 1)
    for owner in range(2, size):
        names.lock(0, owner, (EX, PR, CR, PW, CW)[owner % 5])
    names.lock(1, size)
    names.lock(1, size + 1)  # somebody waits for the last one
    names.lock(0, size)
    assert names.waits.exposed((1, 1, size))
    assert find(names.waits.queued, [(1, 1, size)]) == []
    assert looked <= size + 2
    assert edges_seen <= 8 * size


def test_a_publication_with_a_thousand_waiters_is_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    request = graph._Graph.request

    def counting(self: Any, lock: Lock) -> list[Any]:
        nonlocal looked
        looked += 1
        return request(self, lock)

    monkeypatch.setattr(graph._Graph, "request", counting)
    names = Names(1)
    names.lock(0, 1)
    for owner in range(2, 1000):
        names.lock(0, owner)
    assert find(names.waits.queued, list(names.waits.queued)) == []
    assert looked <= 1000


def test_a_circle_of_thousands_of_names_needs_no_stack() -> None:
    size = 4000
    names = Names(size)
    for i in range(size):
        names.lock(i, i + 1)
    waits = [names.lock((i + 1) % size, i + 1) for i in range(size)]
    circle = find(names.waits.queued, [(1, 1, 1)])
    assert len(circle) == size
    assert circle[0] is waits[-1]


def test_nothing_is_searched_for_those_who_cannot_be_in_a_circle() -> None:
    names = Names(2)
    names.lock(0, 1)
    names.lock(1, 2)
    names.lock(0, 2)
    names.lock(0, 3)
    assert not names.waits.exposed((1, 1, 1))  # waits for nothing
    assert not names.waits.exposed((1, 1, 3))  # nobody is behind it
    assert names.waits.exposed((1, 1, 2))  # 3 is behind it
    names.lock(1, 4, NL)
    assert not names.waits.exposed((1, 1, 4))


def test_blockers_for_people() -> None:
    names = Names(1)
    holder = names.lock(0, 1, PR)
    writer = names.lock(0, 2, EX)
    reader = names.lock(0, 3, PR)
    resource = names.resources[0]
    assert blockers(resource, writer) == [(holder, True)]
    assert blockers(resource, reader) == [(writer, False), (writer, True)]


# -- D6: the same everywhere -----------------------------------------------------------------------------------


class Replicas:
    """Three tables under one order: two from the beginning, one made anew from a snapshot now and then."""

    def __init__(self, names: list[bytes]) -> None:
        self.tables = [self._table(node) for node in (8, 9, 7)]
        self.serials = {1: 0, 2: 0}
        for name in names:
            for node in (1, 2):
                out = self.apply(node, Kind.LOCK, name, 9, 1, NL, 0, None, 0, "", 0, 9)
                for effect in out:
                    if isinstance(effect, Composed):
                        self.apply(1, Kind.PUBLISH, *effect)
            if self.tables[0].names[name].owner:
                self._publish(name)

    @staticmethod
    def _table(me: int) -> Table:
        table = Table(me)
        table.begin_epoch(RING)
        table.lives = {node: Life(node, 1, RING) for node in (1, 2)}
        return table

    def _publish(self, name: bytes) -> None:
        """The owner is no table here: what it would say of its keeper."""
        keeper = Resource(count(1 << 40).__next__)
        keeper.lock(Lock((1, 9, 1), NL, owner=9), [])
        self.apply(1, Kind.PUBLISH, name, self.tables[0].names[name].epoch, keeper.encode())

    def apply(self, node: int, kind: Kind, *body: Any) -> list[Any]:
        self.serials[node] += 1
        message = Message(kind, RING, self.serials[node], body)
        one, *others = [table.apply(Member(node, 1), message) for table in self.tables]
        assert one is not None
        assert all(other == one for other in others)
        assert len({table.encode() for table in self.tables}) == 1
        for table in self.tables:
            table.invariants()
        return one

    def renew(self) -> None:
        self.tables[2] = Table.decode(7, self.tables[0].encode(), 5)


@pytest.mark.parametrize("seed", range(6))
def test_d6_equal_victims_circles_and_tables_everywhere(seed: int) -> None:
    rng = random.Random(seed)
    names = [b"\0%d" % i for i in range(4)]
    replicas = Replicas(names)
    held: dict[tuple[int, int], bytes] = {}
    refused = 0
    for h in range(2, 500):
        if rng.random() < 0.1:
            replicas.renew()
        node, name, flags = rng.choice((1, 2)), rng.choice(names), sum(f for f in SPECIAL if rng.random() < 0.05)
        if rng.random() < 0.55 or not held:
            mode = rng.choice((CR, CW, PR, PW, EX))
            out = replicas.apply(
                node, Kind.LOCK, name, 1, h, mode, flags & ~CONVDEADLK, None, 0, "", 0, rng.randint(1, 3)
            )
            held[node, h] = name
        else:
            node, h = rng.choice(sorted(held))
            kind = rng.choice((Kind.UNLOCK, Kind.UNLOCK, Kind.CONVERT))
            mode = rng.choice((CR, CW, PR, PW, EX))
            out = replicas.apply(node, kind, held[node, h], 1, h, mode, flags, None)
            if kind is Kind.UNLOCK:
                del held[node, h]
        for effect in out:
            if effect.cycle:
                refused += 1
                assert effect.cycle[0].key == effect.key
                if effect.mode == -1 and effect.cycle[0].mode == -1:
                    held.pop((effect.key[0], effect.key[2]), None)
    assert refused > 10
