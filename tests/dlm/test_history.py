"""Who held what at which position: the rings of events, and taking events back."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dlm.history import FORMS, Past, held_at
from dlm.history import _holders as holders_of
from dlm.messages import key_of, prefix_of
from dlm.modes import CW, EX, NL, PR
from dlm.table import Table
from tests.dlm.bus import MS, Bus

KEY = key_of("default", b"R")


def words(bus: Bus, node: int, name: bytes = b"R", **args: Any) -> list[str]:
    """The events of a name at a node: what, and a + for what it has decided alone."""
    answer = bus.result(bus.call(node, "history", name=name, **args))
    return [row["what"] + ("+" if row["own"] else "") for row in answer["events"]]


def shared(bus: Bus) -> tuple[int, int]:
    """The name R: shared, node 1 holds PR and node 2 waits for EX. Their handles."""
    _, one = bus.lock(1, mode=PR)
    bus.run()
    _, two = bus.lock(2, mode=EX)
    bus.run()
    return one, two


class TestEvents:
    def test_the_life_of_a_name(self) -> None:
        bus = Bus()
        one, two = shared(bus)
        bus.call(1, "unlock", h=one)
        bus.run()
        bus.call(2, "unlock", h=two)
        bus.run()
        known = ["private", "handover", "shared", "waiting", "released", "granted", "released"]
        assert words(bus, 2) == words(bus, 3) == known
        assert words(bus, 1) == [
            "private", "granted+", "handover", "shared", "waiting", "released", "granted", "released",
        ]  # fmt: skip

    def test_an_event_says_all(self) -> None:
        bus = Bus()
        one, two = shared(bus)
        bus.call(1, "convert", h=one, mode=NL)
        bus.run()
        rows = bus.result(bus.call(3, "history", name=b"R"))["events"]
        converted, granted = rows[-2:]
        assert (converted["what"], converted["mode"], converted["before"]) == ("converted", "NL", "PR")
        assert (converted["node"], converted["h"], converted["program"]) == (1, one, "client")
        assert (granted["what"], granted["mode"], granted["node"], granted["h"]) == ("granted", "EX", 2, two)
        assert granted["position"] == converted["position"] == bus[3].table.applied
        assert granted["fence"] == bus[3].table.names[KEY].resource.locks[2, 1, two].fence
        published = next(row for row in rows if row["what"] == "shared")
        assert [(one["node"], one["mode"]) for one in published["holders"]] == [(1, "PR")]

    @pytest.mark.parametrize("node", [1, 2, 3])
    def test_refused_cancelled_lost_and_orphaned(self, node: int) -> None:
        bus = Bus()
        _, two = shared(bus)
        bus.lock(3, mode=EX, noqueue=True)
        bus.run()
        bus.call(2, "cancel", h=two)
        bus.run()
        bus.lock(2, mode=PR, persistent=True, session=2)
        bus.lock(3, mode=PR)
        bus.run()
        bus.close(2, session=2)
        bus.run()
        assert words(bus, node)[-5:] == ["refused", "cancelled", "granted", "granted", "orphaned"]
        bus.kill(3)
        bus.view([1, 2])
        bus.advance(100 * MS)
        if node != 3:
            assert words(bus, node)[-1] == "lost"

    def test_limit_and_position(self) -> None:
        bus = Bus()
        shared(bus)
        every = words(bus, 3)
        assert words(bus, 3, limit=2) == every[-2:]
        assert words(bus, 3, position=bus[3].table.applied - 1) == every[:2]
        assert words(bus, 3, name=b"other") == []

    def test_all_members_tell_the_same_of_what_is_ordered(self) -> None:
        bus = Bus()
        shared(bus)
        assert len({tuple(row for row, *_ in bus[node].table.history.shared) for node in (1, 2, 3)}) == 1

    def test_memory_is_bounded(self) -> None:
        bus = Bus()
        for node in (1, 2, 3):
            bus[node].table.history.resize(10)
        shared(bus)
        for _ in range(20):
            _, h = bus.lock(3, mode=NL, expedite=True)
            bus.run()
            bus.call(3, "unlock", h=h)
            bus.run()
        history = bus[3].table.history
        assert len(history.shared) == 10
        assert history.since > 0
        assert bus.result(bus.call(3, "held_at", name=b"R", position=history.since - 1)) == "position"
        assert bus.result(bus.call(3, "held_at", name=b"R", position=history.since))["state"] == "shared"
        assert bus.result(bus.call(3, "held_at", name=b"R", position=10_000)) == "position"

    def test_a_busy_private_name_pushes_nothing_out(self) -> None:
        bus = Bus()
        for node in (1, 2, 3):
            bus[node].table.history.resize(10)
        shared(bus)
        for _ in range(20):
            _, h = bus.lock(3, b"busy")
            bus.run()
            bus.call(3, "unlock", h=h)
        assert bus[3].table.history.since == 0
        assert words(bus, 3) == words(bus, 2)

    def test_a_joiner_knows_what_has_happened_since(self) -> None:
        bus = Bus()
        one, _ = shared(bus)
        bus.kill(3)
        bus.view([1, 2])
        bus.boot(3)
        bus.view([1, 2, 3])
        bus.run()
        began = bus[3].table.history.since
        assert began > 0
        bus.call(1, "unlock", h=one)
        bus.run()
        assert words(bus, 3) == ["released", "granted"]
        past = bus.result(bus.call(3, "held_at", name=b"R", position=began))
        assert [one["node"] for one in past["holders"]] == [1]


# -- taking back ----------------------------------------------------------------------------------------------


class Witness:
    """Writes down what each node knows of each name, as of the end of each position."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.seen: dict[tuple[int, int], dict[bytes, Past]] = {}
        self.tables: dict[int, Table] = {}
        for node in bus.alive():
            self._watch(node.service, node.id)

    def _watch(self, service: Any, node: int) -> None:
        deliver, view = service.deliver, service.view

        def seen_deliver(*args: Any) -> None:
            self.look(node)
            deliver(*args)

        def seen_view(*args: Any) -> None:
            self.look(node)
            view(*args)

        service.deliver, service.view = seen_deliver, seen_view

    def look(self, node: int) -> None:
        table = self.bus[node].table
        if self.tables.setdefault(node, table) is not table:
            self.seen = {place: past for place, past in self.seen.items() if place[0] != node}
            self.tables[node] = table
        known = {key: now(table, key) for key in table.names}
        self.seen[node, table.applied] = known

    def check(self, keys: list[bytes]) -> int:
        count = 0
        for (node, position), known in sorted(self.seen.items(), key=lambda each: each[0]):
            table = self.bus[node].table
            if self.bus[node].service.complete and position >= table.history.since and table.applied > position:
                for key in keys:
                    expected = known.get(key, Past("free", 0, {}))
                    assert held_at(table, key, position) == expected, (node, position, key)
                    count += 1
        return count


def now(table: Table, key: bytes) -> Past:
    name = table.names[key]
    return Past(FORMS[name.form], name.owner, None if name.resource is None else holders_of(name.resource))


def test_the_checksum_does_not_depend_on_how_a_table_was_got() -> None:
    """A joiner has the locks of a name in another order than who saw them come; what is purged counts the same."""
    bus = Bus()
    for node, mode in ((2, NL), (3, NL), (3, NL), (1, NL)):
        bus.lock(node, mode=mode)
        bus.run()
    bus.lock(2, mode=NL)
    bus.run()
    table = bus[1].table
    copy = Table.decode(1, table.encode(), bus.now)
    for each in (table, copy):
        each.begin_epoch(each.ring._replace(seq=each.ring.seq + 4))
        each.end_lives([each.lives.pop(node) for node in (2, 3)], [])
    assert table.digest() == copy.digest()


@pytest.mark.parametrize("seed", range(30))
def test_held_at_any_position_is_what_was_seen_then(seed: int) -> None:
    """Random operations of three nodes on three names, with deaths and views: every position, at every node."""
    rng, bus = random.Random(seed), Bus()
    witness = Witness(bus)
    names = [b"R", b"S", b"T"]
    handles: list[tuple[int, int]] = []
    for step in range(60):
        node = rng.randint(1, 3)
        choice = rng.random()
        if choice < 0.45 or not handles:
            _, h = bus.lock(node, rng.choice(names), rng.choice([NL, CW, PR, EX]), noqueue=rng.random() < 0.2)
            handles.append((node, h))
        elif choice < 0.6:
            node, h = rng.choice(handles)
            bus.call(node, "convert", h=h, mode=rng.choice([NL, PR, EX]), convdeadlk=rng.random() < 0.5)
        elif choice < 0.65:
            node, h = rng.choice(handles)
            bus.call(node, "cancel", h=h)
        else:
            node, h = handles.pop(rng.randrange(len(handles)))
            bus.call(node, "unlock", h=h)
        if rng.random() < 0.7:
            bus.sequence(*rng.sample([1, 2, 3], 2))
            bus.deliver(rng.randint(1, 3), count=rng.randint(1, 3))
        if step % 20 == 19:
            bus.run()
            left = rng.randint(1, 3)
            bus.view([n for n in (1, 2, 3) if n != left])
            bus.run()
            bus.view([1, 2, 3])
            bus.run()
            handles = [(n, h) for n, h in handles if n != left]
    bus.run()
    assert witness.check([prefix_of("default") + name for name in names]) > 50
