"""Deadlocks over several names against a brute-force search: none missed, none invented (locks.md §5.2, D2–D6).

The search here knows nothing of graphs. It plays the dumb models of all names to their end: every owner who waits
for nothing gives up all that it has, and what can be granted then is; whoever still waits in the end is in a
deadlock, or behind one.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from dlm.messages import Kind, Message
from dlm.modes import ORPHAN
from dlm.resource import Effect
from dlm.table import Life, Table
from tests.dlm.model import MODES, Entry, Model, Who
from tests.dlm.test_model import BITS, lawful, plain
from vsync.types import Member, RingId

NODES = (1, 2, 3)
KEEPER = 99  #: a session without which the names would not stay shared
RING = RingId(1, 1)

PLAIN = ["HEADQUE", "NODLCKWT", "NODLCKBLK", "CONVDEADLK", "NOQUEUE", "QUECVT"]
UNFORESEEABLE = ["NOORDER", "ALTPR", "ALTCW"]

Models = dict[bytes, Model]


def owner(entry: Entry) -> tuple[int, int]:
    return entry.who[0], entry.who[1]


def stuck(models: Models) -> set[tuple[bytes, Who]]:
    """Who waits for ever however it goes on: several plays to the end, the steps of each in another order.

    Without flags the queues alone decide who is next, and one play is as good as all.
    """
    lost: set[tuple[bytes, Who]] | None = None
    plain = not any(entry.flags for model in models.values() for entry in model.all())
    for seed in range(1 if plain else 80):
        end = Play(models, seed)
        while end.step():
            pass
        lost = end.left() if lost is None else lost & end.left()
        if not lost:
            return set()
    return lost or set()


class Play:
    """The models of all names on their way to the end.

    NODLCKBLK locks step aside at some time (D4): they are in nobody's way then, but their owners may still wait
    for them to be granted. NODLCKWT requests are taken for granted if nothing else moves: nobody knows what they
    wait for.
    """

    def __init__(self, models: Models, seed: int) -> None:
        self.models = copy.deepcopy(models)
        self.rng = random.Random(seed)
        self.early = seed % 2 == 1  # they step aside before anything forces them to
        self.in_place = seed % 3 == 1  # those aside are served before those behind them
        self.aside: list[tuple[bytes, Entry, set[Who]]] = []  # with those who stand behind it

    def step(self) -> bool:
        """One thing that can happen, in any order. False if there is nothing."""
        steps = [self._somebody_ends, self._one_aside_is_served]
        last = [self._one_steps_aside, self._what_is_no_wait_is_over]
        if self.early:
            steps.append(last.pop(0))
        self.rng.shuffle(steps)
        self.rng.shuffle(last)
        return any(step() for step in [*steps, *last])

    def _somebody_ends(self) -> bool:
        """An owner who waits for nothing gives up a lock."""
        waiting = {owner(entry) for _, entry, _ in self.aside}
        for model in self.models.values():
            waiting |= {owner(entry) for entry in model.queued() if "NODLCKWT" not in entry.flags}
        free = [(model, one) for model in self.models.values() for one in model.all() if owner(one) not in waiting]
        if free:
            model, entry = self.rng.choice(free)
            model.queue_of(entry).remove(entry)
            while self.in_place and self._one_aside_is_served():
                pass
            model.again()
        return bool(free)

    def _one_steps_aside(self) -> bool:
        everything = [(name, entry) for name, model in self.models.items() for entry in model.all()]
        known = [each for each in everything if "NODLCKBLK" in each[1].flags]
        if known:
            name, entry = self.rng.choice(known)
            queue = self.models[name].queue_of(entry)
            if queue is not self.models[name].granted and "NODLCKWT" not in entry.flags:
                self.aside.append((name, entry, {other.who for other in queue[queue.index(entry) + 1 :]}))
            queue.remove(entry)
            self.models[name].again()
        return bool(known)

    def _one_aside_is_served(self) -> bool:
        """It could be granted if it stood in its place, the others aside."""
        for index, (name, entry, behind) in enumerate(self.aside):
            model, one = copy.deepcopy((self.models[name], entry))
            queue = model.converting if one.held else model.waiting
            place = next((i for i, other in enumerate(queue) if other.who in behind), len(queue))
            queue.insert(place, one)
            model.again()
            if one in model.granted:
                del self.aside[index]
                return True
        return False

    def _what_is_no_wait_is_over(self) -> bool:
        for model in self.models.values():
            for entry in model.queued():
                if "NODLCKWT" in entry.flags:
                    model.queue_of(entry).remove(entry)
                    model.granted.append(entry)
                    entry.held = self.rng.choice(entry.wanted())
                    model.again()
                    return True
        return False

    def left(self) -> set[tuple[bytes, Who]]:
        """Who still waits."""
        waiting = {(name, entry.who) for name, model in self.models.items() for entry in model.queued()}
        return waiting | {(name, entry.who) for name, entry, _ in self.aside}


class Trial:
    """A shared table and the models of its names, fed with one random order."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.names = [b"\0%c" % letter for letter in b"abcd"[: self.rng.randint(1, 4)]]
        self.sessions = self.rng.randint(1, 3)
        self.words = self.rng.choice([[], PLAIN, PLAIN + UNFORESEEABLE])
        self.special = self.rng.choice([0.05, 0.2])
        self.tables = [self._table(node) for node in (1, 2)]
        self.serials = dict.fromkeys(NODES, 0)
        self.handles = count(1)
        mint = count(1)
        self.models = {name: Model(mint.__next__) for name in self.names}
        self.graphs = self.refused = 0
        for name in self.names:
            self._keep(name)

    def _table(self, me: int) -> Table:
        table = Table(me)
        table.begin_epoch(RING)
        table.lives = {node: Life(node, 1, RING) for node in NODES}
        return table

    def _keep(self, name: bytes) -> None:
        """An NL lock of each of two nodes: the name is shared, and nobody is kept from anything."""
        effects: list[Any] = []
        for node in (2, 3):
            h = next(self.handles)
            effects += self.order(node, Kind.LOCK, (name, KEEPER, h, 0, 0, None, 0, "", 0, 0))
            self.models[name].request((node, KEEPER, h), "NL", ())
        composed = next(effect for effect in effects if not isinstance(effect, Effect))
        self.order(2, Kind.PUBLISH, tuple(composed))

    def order(self, node: int, kind: Kind, body: tuple[Any, ...]) -> list[Any]:
        """Deliver at both members: the first one's effects. They must be the same, and so must the tables."""
        self.serials[node] += 1
        message = Message(kind, RING, self.serials[node], body)
        found = [table.apply(Member(node, 1), message) for table in self.tables]
        assert found[0] is not None
        if kind not in (Kind.LOCK, Kind.PUBLISH):
            assert found[0] == found[1]
        return found[1] if kind is Kind.LOCK and len(found[1] or ()) > len(found[0]) else found[0]

    # -- one event -------------------------------------------------------------------------------------------

    def step(self) -> None:
        name = self.rng.choice(self.names)
        model = self.models[name]
        mine = [entry for entry in model.all() if entry.who[1] != KEEPER]
        choice = self.rng.random()
        if not mine or (choice < 0.45 and len(mine) < 6):
            self._request(name, model)
            return
        entry = self.rng.choice(mine)
        if choice < 0.8 and entry in model.granted:
            self._convert(name, model, entry)
        elif choice < 0.9:
            self._end(name, model, entry, Kind.UNLOCK)
        elif entry not in model.granted:
            self._end(name, model, entry, Kind.CANCEL)
        elif choice < 0.95:
            self._session_ends(*owner(entry))

    def _request(self, name: bytes, model: Model) -> None:
        node, session = self.rng.choice(NODES), self.rng.randint(1, self.sessions)
        who = node, session, next(self.handles)
        mode = self.rng.choice(MODES[1:])
        flags = self._flags("", mode)
        bits = sum(BITS[word] for word in flags)
        assert not bits & ORPHAN
        body = name, session, who[2], MODES.index(mode), bits, None, 0, "", 0, 0
        self._judge(model.request(who, mode, flags), self.order(node, Kind.LOCK, body), (name, who))

    def _convert(self, name: bytes, model: Model, entry: Entry) -> None:
        mode = self.rng.choice(MODES)
        flags = self._flags(entry.held, mode) - {"NODLCKBLK"} | entry.flags & {"NODLCKBLK"}  # for good
        node, session, h = entry.who
        body = name, session, h, MODES.index(mode), sum(BITS[word] for word in flags), None
        self._judge(model.convert(entry.who, mode, flags), self.order(node, Kind.CONVERT, body), (name, entry.who))

    def _flags(self, held: str, asked: str) -> frozenset[str]:
        given = frozenset(word for word in self.words if self.rng.random() < self.special)
        return lawful(given, held, asked)

    def _end(self, name: bytes, model: Model, entry: Entry, kind: Kind) -> None:
        node, session, h = entry.who
        done = model.cancel(entry.who) if kind is Kind.CANCEL else model.unlock(entry.who)
        assert done is not None
        if kind is Kind.CANCEL:
            done.append(("cancel_done", entry.who, True))
        self._judge(done, self.order(node, kind, (name, session, h, 0, 0, None)), None)

    def _session_ends(self, node: int, session: int) -> None:
        everything = [(name, entry) for name, model in self.models.items() for entry in model.all()]
        locks = [(name, entry.who) for name, entry in everything if owner(entry) == (node, session)]
        done = [effect for name, who in locks for effect in self.models[name].session_ends(who)]
        effects = self.order(node, Kind.END, (session, tuple((name, who[2]) for name, who in locks)))
        self._judge(done, effects, None)

    # -- what must have come of it ---------------------------------------------------------------------------

    def _judge(self, expected: list[Any], effects: list[Any], asked: tuple[bytes, Who] | None) -> None:
        """While somebody is stuck, one whom that helps is refused, and nobody else ever is.

        ``asked`` is the request of this event: if it waits, and nothing else has happened, it is the one (D3).
        """
        seen = [_without_fence(plain(effect)) for effect in effects]
        expected = [_without_fence(effect) for effect in expected]
        victims = [effect.cycle for effect in effects if effect.cycle and plain(effect) not in expected]
        self.graphs += any(model.waiting or model.converting for model in self.models.values())
        while lost := stuck(self.models):
            if not victims and self._open():
                break
            assert victims, f"missed: {sorted(lost)}"
            victim = victims.pop(0)[0]
            if asked is not None and not expected and self.models[asked[0]].find(asked[1]) is not None:
                assert (victim.name, victim.key) == asked, "it was not the one that closed the circle (D3)"
            expected += [_without_fence(effect) for effect in self.models[victim.name].refuse(victim.key)]
            helped = (victim.name, victim.key) in lost or stuck(self.models) < lost
            assert helped, f"false: {victim}, stuck are {sorted(lost)}"
            self.refused += 1
        assert not victims, f"false: {victims}"
        assert seen == expected
        for table in self.tables:
            table.invariants()
        assert self.tables[0].encode() == self.tables[1].encode()

    def _open(self) -> bool:
        """Whether a later grant decides who is in whose way: then the circle closes, and is found, with that."""
        flags = {flag for model in self.models.values() for entry in model.queued() for flag in entry.flags}
        return not flags.isdisjoint(UNFORESEEABLE)


def _without_fence(effect: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*effect[:3], *effect[4:]) if effect[0] == "ok" else effect


def trials(first: int, wanted: int) -> Iterator[Trial]:
    """Random orders until so many graphs were compared."""
    graphs, seed = 0, first
    while graphs < wanted:
        trial = Trial(seed)
        try:
            for _ in range(40):
                trial.step()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, graph {trial.graphs}: {error}") from error
        graphs, seed = graphs + trial.graphs, seed + 1
        yield trial


@pytest.mark.parametrize("first", [1, 1_001, 2_001])
def test_no_false_and_no_missed_victim(first: int) -> None:
    """Together 1,500 graphs."""
    assert sum(trial.refused for trial in trials(first, 500)) > 30


@pytest.mark.long
@pytest.mark.parametrize("first", range(100_000, 1_100_000, 100_000))
def test_no_false_and_no_missed_victim_in_ten_thousand(first: int) -> None:
    assert sum(trial.refused for trial in trials(first, 1_000)) > 60
