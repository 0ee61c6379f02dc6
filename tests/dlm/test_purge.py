"""What a view does to names that nobody waits for, now or later: there is no difference (design §2, §5.2)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dlm.failures import Begun
from dlm.history import held_at
from dlm.life import Life
from dlm.messages import Kind, key_of
from dlm.modes import CR, EX, NL, PR
from dlm.names import Form
from dlm.options import PLAIN, Options
from dlm.resource import What
from dlm.table import Effects, Table
from dlm.work import ITEM
from tests.dlm import ordered
from tests.dlm.bus import LEASE, Bus
from tests.dlm.ordered import NODES, Order, keys_in


class Pair:
    """Two replicas of each node: one does everything at once, the other when somebody looks, or by chance."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        keys = keys_in("default", b"a", b"b", b"c", b"d") + keys_in("web", b"x", b"y")
        self.keys = keys
        options = Options(fencing=True, recovery=bool(seed % 4)) if seed % 2 else PLAIN
        self.order = Order(self.rng, keys, ["web"], options)
        self.now = {node: self.order.first(node) for node in NODES}
        self.later = {node: self.order.first(node) for node in NODES}
        self.put_off = 0

    def step(self) -> None:
        order, before = self.order, dict(self.order.lives)
        event = order.next(self.now[1])
        on = ordered.going_on(event, before, order)
        for node in sorted(on):
            one, other = self.now[node], self.later[node]
            out = ordered.apply(one, event, on)
            one.complete()
            assert plain(ordered.apply(other, event, on)) == plain(out), (node, event)
            one.invariants()
            other.invariants()
            order.note(node, out or [], lambda space, table=one: self.busy(table, space))
        live = self.now[min(on)]
        for node in NODES:
            if node not in on:
                self.now[node] = Table.decode(node, live.encode(), 0)
                self.later[node] = Table.decode(node, self.later[min(on)].encode(), 0)
        self.touch()
        assert len({table.encode() for table in (*self.now.values(), *self.later.values())}) == 1, event

    def busy(self, table: Table, space: str) -> bool:
        owned = [table.local(key) for key in self.keys if key.startswith(space.encode())]
        return any(resource is not None and resource.locks for resource in owned)

    def touch(self) -> None:
        """Somebody looks at some names, or there is time for a few."""
        for table in self.later.values():
            self.put_off += bool(table.dues)
            if self.rng.random() < 0.2:
                table.find(self.rng.choice(self.keys))
            if self.rng.random() < 0.2:
                table.tidy(self.rng.randrange(1, 30))


def plain(effects: Effects | None) -> list[Any] | None:
    """What can be compared."""
    if effects is None:
        return None
    return [[each.name for each in effect.failures] if isinstance(effect, Begun) else effect for effect in effects]


@pytest.mark.parametrize("seed", range(24))
def test_it_makes_no_difference_when_it_is_done(seed: int) -> None:
    pair = Pair(seed)
    for _ in range(200):
        pair.step()
    assert pair.put_off > 20
    for table in pair.later.values():
        table.complete()
        assert not table.dues
    for node in NODES:
        assert pair.later[node].names.keys() == pair.now[node].names.keys()
        assert pair.later[node].failures.encode() == pair.now[node].failures.encode()
        assert pair.later[node].handovers == pair.now[node].handovers
        assert pair.later[node].spaces.names == pair.now[node].spaces.names
        pair.later[node].invariants()


class Scene:
    """One table, at node 1, and messages to it."""

    def __init__(self) -> None:
        self.order = Order(random.Random(0), ())
        self.table = self.order.first(1)
        self.h = 0

    def send(self, node: int, kind: Kind, *body: object) -> Effects:
        out = self.table.apply(*self.order.message(node, kind, body))
        assert out is not None
        return out

    def lock(self, node: int, key: bytes, mode: int = EX) -> int:
        self.h += 1
        self.send(node, Kind.LOCK, key, 1, self.h, mode, 0, None, 7, "p", 0, self.h)
        return self.h

    def shared(self, key: bytes, *locks: tuple[int, int]) -> None:
        """A shared name with locks: (node, mode) each."""
        self.lock(2, key, NL)
        name = self.table.names[key]
        self.send(2, Kind.YIELD, key, name.epoch)
        self.send(2, Kind.PUBLISH, key, name.epoch, (b"", True, (), (), ()))
        for node, mode in locks:
            self.lock(node, key, mode)

    def die(self, *nodes: int) -> Effects:
        """A view in which they are not, and then one with new lives of theirs."""
        out: Effects = []
        self.table.begin_epoch(self.table.ring._replace(seq=self.table.ring.seq + 4))
        self.table.end_lives([self.table.lives.pop(node) for node in nodes], out)
        for node in nodes:
            self.order.lives[node] += 1
            self.order.serials[node] = 0
            self.order.rings[node] = self.table.ring
            self.table.lives[node] = Life(node, self.order.lives[node], self.table.ring)
        return out


A, B, C = keys_in("default", b"a", b"b", b"c")


class TestAtOnce:
    def test_who_waits_is_granted_in_the_order_of_names(self) -> None:
        scene = Scene()
        for key in (C, A, B):
            scene.shared(key, (3, EX))
        for node, key in ((1, B), (2, A), (1, A), (2, C)):
            scene.lock(node, key)
        out = scene.die(3)
        granted = [(effect.key[0], effect.fence & 0xFFFF) for effect in out]
        assert granted == [(2, 1), (1, 2), (2, 3)]  # A, B, C
        assert not any(name.resource.homes.get(3) for name in scene.table.names.values() if name.resource)
        scene.table.invariants()

    def test_an_orphaned_handover_comes_last_and_gets_what_has_waited(self) -> None:
        scene = Scene()
        scene.lock(3, A)  # private to 3
        scene.lock(1, A)
        scene.lock(2, A)
        scene.shared(B, (3, EX))
        scene.lock(1, B)
        assert scene.table.handovers == {A: None}
        out = scene.die(3)
        assert [effect.key[0] for effect in out if effect.what is What.GRANTED] == [1, 1]
        assert [effect.fence & 0xFFFF for effect in out if effect.what is What.GRANTED] == [1, 2]
        assert scene.table.names[A].form is Form.SHARED
        assert not scene.table.handovers
        scene.table.invariants()

    def test_a_name_of_which_nothing_is_left_is_no_more(self) -> None:
        scene = Scene()
        scene.shared(A, (3, EX), (3, EX))  # the second waits
        scene.shared(B, (3, EX))
        scene.die(3)
        assert A not in scene.table.names
        assert scene.table.find(B) is None
        assert not scene.table.vacant
        scene.table.invariants()


class TestLater:
    def crowd(self, names: int = 1000) -> Scene:
        """Names private to 3, shared with it, or none of its business; somebody waits in one."""
        scene = Scene()
        for number in range(names):
            key = key_of("default", b"n%d" % number)
            if number % 3 == 0:
                scene.lock(3, key)
            elif number % 3 == 1:
                scene.shared(key, (3, CR), (1, CR))
            else:
                scene.shared(key, (1, CR))
        scene.shared(A, (3, EX))
        scene.lock(2, A)
        return scene

    def test_the_event_itself_does_not_look_at_names_in_which_nobody_waits(self) -> None:
        scene = self.crowd()
        looked: list[bytes] = []
        bring = scene.table.bring
        scene.table.bring = lambda key, name: looked.append(key) or bring(key, name)  # type: ignore[method-assign]
        assert [effect.key[0] for effect in scene.die(3)] == [2]
        assert looked == [A]

    def test_a_piece_is_as_large_as_it_may_be(self) -> None:
        scene = self.crowd()
        scene.die(3)
        before = len(scene.table.names)
        changed = []
        while scene.table.dues:
            homes = sum(3 in name.resource.homes for name in scene.table.names.values() if name.resource)
            names = len(scene.table.names)
            scene.table.tidy(20 * ITEM)
            after = sum(3 in name.resource.homes for name in scene.table.names.values() if name.resource)
            changed.append(homes - after + names - len(scene.table.names))
        assert max(changed) <= 20
        assert sum(changed) == 667
        assert len(scene.table.names) == before - 334
        assert scene.table.names.keys() >= {A}
        scene.table.invariants()

    def test_names_that_do_not_change_are_cheap(self) -> None:
        scene = self.crowd()
        scene.die(3)
        scene.table.complete()
        scene.die(3)
        left = scene.table.tidy(1000 * ITEM)
        assert not scene.table.dues
        assert left > 900 * ITEM

    def test_whoever_looks_sees_it_done(self) -> None:
        scene = Scene()
        scene.lock(3, A)
        scene.shared(B, (3, EX), (1, NL))
        scene.shared(C, (3, EX))
        scene.die(3)
        assert {A, B, C} <= scene.table.names.keys()
        scene.lock(2, A)
        assert (scene.table.names[A].form, scene.table.names[A].owner) == (Form.PRIVATE, 2)
        scene.lock(2, B, PR)
        resource = scene.table.names[B].resource
        assert resource is not None
        assert (resource.homes, resource.valid) == ({1: 1, 2: 1}, False)  # L7
        scene.lock(2, C)
        assert scene.table.names[C].owner == 2

    def test_what_came_later_stays_when_two_views_are_due(self) -> None:
        scene = Scene()
        scene.shared(A, (3, NL), (2, NL), (1, NL))
        scene.shared(B, (3, NL), (2, NL))
        scene.die(3)
        scene.lock(3, A, NL)  # another life: it is not meant by that
        scene.die(2)
        assert scene.table.find(B) is None
        name = scene.table.find(A)
        assert name is not None
        assert name.resource is not None
        assert sorted(name.resource.homes) == [1, 3]
        scene.table.complete()
        assert len(scene.table.names) == 1
        scene.table.invariants()

    def test_a_due_that_begins_during_the_walk_is_not_forgotten(self) -> None:
        scene = self.crowd(100)
        scene.die(3)
        scene.table.tidy(50)
        scene.die(1)
        scene.table.complete()
        assert [key for key, name in scene.table.names.items() if name.resource and 1 in name.resource.homes] == []
        scene.table.invariants()

    def test_one_who_has_said_goodbye_is_not_looked_for_again(self) -> None:
        scene = Scene()
        scene.lock(3, A)
        scene.send(3, Kind.GOODBYE)
        scene.table.complete()
        assert A not in scene.table.names
        event = scene.order.view([3])
        ordered.apply(scene.table, event, frozenset({1, 2}))
        assert not scene.table.dues
        assert scene.table.lives[3].incarnation == 2


class TestPast:
    def test_events_have_the_position_of_the_view(self) -> None:
        scene = Scene()
        scene.lock(3, A)
        scene.shared(B, (3, EX))
        held = scene.table.applied
        scene.die(3)
        gone = scene.table.applied
        for _ in range(5):
            scene.lock(1, C, NL)
        scene.table.complete()
        for key, form in ((A, "private"), (B, "shared")):
            assert held_at(scene.table, key, held).form == form
            assert held_at(scene.table, key, gone).form == "free"
        assert [holder[0] for holder in held_at(scene.table, B, held).holders or ()] == [3]
        words = [event.row[2] for event in scene.table.history.events(B)]
        assert words[-2:] == ["lost", "free"]

    def test_what_has_been_dropped_is_not_known(self) -> None:
        scene = Scene()
        for key in (A, B, C):
            scene.shared(key, (3, EX))
        held = scene.table.applied
        scene.die(3)
        gone = scene.table.applied
        scene.table.history.resize(100)
        scene.table.history.late = type(scene.table.history.late)(maxlen=3)
        scene.table.complete()
        assert scene.table.history.since == gone > held
        with pytest.raises(ValueError, match="known here"):
            held_at(scene.table, A, held)

    def test_the_checksum_does_not_depend_on_when_it_is_done(self) -> None:
        values = set()
        for order in ((A, B), (B, A), ()):
            scene = Scene()
            scene.lock(3, A)
            scene.shared(B, (3, EX), (1, NL))
            scene.die(3)
            for key in order:
                scene.table.find(key)
            scene.lock(1, C)
            values.add(scene.table.history.rolling.value)
        assert len(values) == 1


def test_status_counts_names_by_their_form() -> None:
    bus = Bus()
    bus.lock(1, b"p")
    bus.lock(1, b"s")
    bus.run()
    bus.lock(2, b"s")
    bus.run()
    status = bus[3].service.status()
    assert (status["names"], status["private"], status["shared"], status["handover"]) == (2, 1, 1, 0)
    bus.kill(1)
    bus.view([2, 3])
    bus.advance(2 * LEASE)
    status = bus[3].service.status()
    assert (status["names"], status["private"], status["shared"], status["handover"]) == (1, 0, 1, 0)


def test_a_crowd_is_purged_in_pieces_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand names of a dead node: what is asked of them meanwhile is answered as if they were free already."""
    monkeypatch.setattr("dlm.work.TURN", 10 * ITEM)
    bus = Bus()
    for number in range(300):
        bus.lock(3, b"n%d" % number)
    bus.run()
    bus.kill(3)
    bus.view([1, 2])
    service = bus[1].service
    assert service.table.dues
    assert service.next_deadline() == bus.now
    asked = [bus.lock(1 + number % 2, b"n%d" % (299 - number))[0] for number in range(10)]
    bus.sequence()
    bus.deliver()
    assert service.table.dues
    bus.check()
    bus.advance(2 * LEASE)
    assert all(bus.granted(rid) for rid in asked)
    assert not service.table.dues
    assert len(service.table.names) == 10
    bus.check_at_rest()
