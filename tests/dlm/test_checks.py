"""A replica that is not like the others is found, and begins anew; no other ever is (locks.md R4, S60)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dlm import checks, transfer
from dlm.checks import MISSING, Rolling, wrong
from dlm.counts import UNITS
from dlm.life import Life
from dlm.lock import Lock
from dlm.messages import Kind, decode, key_of
from dlm.modes import CR, EX, NL, PR
from dlm.names import Form
from dlm.resource import Resource
from dlm.snapshot import Damage, Reader
from dlm.table import Table
from tests.dlm.bus import LEASE, MS, Bus, Node
from vsync.errors import Backpressure
from vsync.types import NO_RING

KEY = key_of("default", b"R")
EVERY = 8


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "EVERY", EVERY)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, str, dict[str, Any]]]]:
    """What the nodes tell operators."""
    told: list[tuple[int, str, dict[str, Any]]] = []

    def event(host: Any, name: str, **fields: Any) -> None:
        told.append((host.me.node, name, fields))

    monkeypatch.setattr("tests.dlm.bus.FakeHost.event", event)
    return told


def shared(nodes: int = 3) -> Bus:
    """The name R is shared: every node holds CR, node 1 holds more."""
    bus = Bus(nodes)
    for node in range(1, nodes + 1):
        bus.lock(node, mode=CR)
        bus.run()
    return bus


def traffic(bus: Bus, node: int = 1) -> None:
    """Ordered events beyond the mark behind the next look at every name."""
    for _ in range(2 * EVERY):
        _, h = bus.lock(node, mode=NL)
        bus.run()
        bus.call(node, "unlock", h=h)
        bus.run()


def resource(node: Node) -> Resource:
    return node.table.names[KEY].resource


def fence(table: Table) -> None:
    next(iter(table.names[KEY].resource.locks.values())).fence += 1


def mode(table: Table) -> None:
    contents = table.names[KEY].resource
    lock = contents.locks[min(contents.locks)]
    contents.held += UNITS[NL] - UNITS[lock.mode]
    lock.mode = lock.asked = NL


def value(table: Table) -> None:
    table.names[KEY].resource.value = b"other"


def numbers(table: Table) -> None:
    table.numbers += 1


def position(table: Table) -> None:
    table.applied += 1


def life(table: Table) -> None:
    table.lives[1].serial -= 1


def decided(table: Table) -> None:
    """Something was decided otherwise, and nothing of it is left."""
    table.history.rolling.add((1, b"x"))


FLIPS = [fence, mode, value, numbers, position, life, decided]


class TestDivergence:
    @pytest.mark.parametrize("guilty", [1, 2, 3])
    @pytest.mark.parametrize("flip", FLIPS)
    def test_it_is_found_at_the_next_check(
        self, guilty: int, flip: Callable[[Table], None], events: list[tuple[int, str, dict[str, Any]]]
    ) -> None:
        bus = shared()
        bus.check = lambda: None  # type: ignore[method-assign]  # it would find it first
        before = {node: dict(bus[node].table.lives) for node in (1, 2, 3)}
        flip(bus[guilty].table)
        traffic(bus, 2 if guilty == 3 else 3)
        found = [(node, fields) for node, name, fields in events if name == "dlm.diverged"]
        assert {node for node, _ in found} == {1, 2, 3}
        assert all(fields["nodes"] == [guilty] for _, fields in found)
        assert set(found[0][1]["values"]) == {"1", "2", "3"}
        assert [bool(bus[node].host.reformed) for node in (1, 2, 3)] == [node == guilty for node in (1, 2, 3)]
        assert [bus[node].service.complete for node in (1, 2, 3)] == [node != guilty for node in (1, 2, 3)]
        lost = [push for push in bus[guilty].pushes if push[1] == "lost"]
        assert {push[2]["reason"] for push in lost} == {"diverged"}
        assert not any(push[1] == "lost" for node in (1, 2, 3) if node != guilty for push in bus[node].pushes)
        # It comes back with the others' table, in a new life; the others go on.
        del bus.check  # type: ignore[method-assign]
        bus.view([1, 2, 3])
        bus.advance(100 * MS)
        bus.check_at_rest()
        for node in (1, 2, 3):
            assert bus[node].service.complete
            assert guilty not in {key[0] for key in resource(bus[node]).locks}
            assert (bus[1].table.lives[node].ring == before[1][node].ring) == (node != guilty)
        rid, _ = bus.lock(guilty, mode=CR)
        bus.advance(LEASE)
        assert bus.granted(rid)
        events.clear()
        traffic(bus)
        assert not events

    def test_of_two_the_higher_one_leaves(self, events: list[tuple[int, str, dict[str, Any]]]) -> None:
        for guilty in (1, 2):
            events.clear()
            bus = shared(2)
            bus.check = lambda: None  # type: ignore[method-assign]
            fence(bus[guilty].table)
            traffic(bus)
            assert [(node, fields["nodes"]) for node, name, fields in events if name == "dlm.diverged"] == [
                (1, [2]),
                (2, [2]),
            ]

    def test_two_of_five(self, events: list[tuple[int, str, dict[str, Any]]]) -> None:
        bus = shared(5)
        bus.check = lambda: None  # type: ignore[method-assign]
        fence(bus[1].table)
        value(bus[4].table)
        traffic(bus, 2)
        assert {tuple(fields["nodes"]) for _, name, fields in events if name == "dlm.diverged"} == {(1, 4)}
        del bus.check  # type: ignore[method-assign]
        bus.view([1, 2, 3, 4, 5])
        bus.advance(100 * MS)
        bus.check_at_rest()

    def test_what_it_waited_for_is_asked_again(self) -> None:
        bus = shared()
        rid, _ = bus.lock(2, mode=EX)
        bus.run()
        bus.check = lambda: None  # type: ignore[method-assign]
        fence(bus[2].table)
        traffic(bus)
        assert bus.result(rid) is None
        del bus.check  # type: ignore[method-assign]
        bus.view([1, 2, 3])
        bus.run()
        for node in (1, 3):
            for key in [key for key in resource(bus[node]).locks if key[0] == node]:
                bus.call(node, "unlock", session=key[1], h=key[2])
        bus.advance(LEASE)
        assert bus.granted(rid)

    def test_its_handles_end_before_others_can_get_the_locks(self) -> None:
        bus = Bus()
        bus.lock(1, mode=NL)
        bus.lock(2, mode=EX)
        bus.run()
        waiting, _ = bus.lock(3, mode=PR)
        bus.run()
        bus.check = lambda: None  # type: ignore[method-assign]
        value(bus[2].table)
        traffic(bus)
        assert not bus.granted(waiting)
        assert all(held.mode == NL for _, held in bus.valid_handles())
        del bus.check  # type: ignore[method-assign]
        bus.view([1, 2, 3])
        bus.run()
        assert bus.granted(waiting)

    def test_a_view_ends_the_vote_and_the_next_check_finds_it(
        self, events: list[tuple[int, str, dict[str, Any]]]
    ) -> None:
        bus = shared()
        bus.check = lambda: None  # type: ignore[method-assign]
        value(bus[3].table)
        while Kind.VOTE not in bus.kinds(3):
            bus.lock(2, mode=NL, expedite=True)
            bus.sequence()
            bus.deliver()
        bus.view([1, 2, 3])
        bus.run()
        assert not events or {name for _, name, _ in events} == {"dlm.view"}
        traffic(bus)
        assert "dlm.diverged" in {name for _, name, _ in events}


class TestQuiet:
    def test_one_message_for_many_events(self) -> None:
        bus = shared()
        began = bus[1].table.applied
        sent: list[Kind] = []
        for _ in range(50):
            bus.lock(2, mode=NL, expedite=True)
            bus.sequence(2)
            bus.deliver()
            sent += [kind for node in (1, 2, 3) for kind in bus.kinds(node)]
            bus.sequence()
            bus.deliver()
        marks = bus[1].table.applied // EVERY - began // EVERY
        assert marks > 3
        assert (sent.count(Kind.CHECK), sent.count(Kind.LOOK), len(sent)) == (marks, marks, 2 * marks)
        assert bus[3].service.status()["checked"] == bus[3].table.applied // EVERY * EVERY
        assert len({bus[node].service.status()["checksum"] for node in (1, 2, 3)}) == 1

    def test_no_check_of_a_node_alone(self) -> None:
        bus = Bus(1)
        for _ in range(5 * EVERY):
            bus.lock(1, mode=NL, session=1)
            bus.lock(1, b"S", mode=NL)
            bus.run()
        traffic(bus)
        assert bus[1].service.status()["checked"] == 0

    def test_joiners_are_asked_and_have_nothing_to_say(
        self, monkeypatch: pytest.MonkeyPatch, events: list[tuple[int, str, dict[str, Any]]]
    ) -> None:
        monkeypatch.setattr(transfer, "CHUNK_SIZE", 64)
        bus = shared()
        bus.kill(3)
        bus.view([1, 2])
        bus.boot(3)
        bus.view([1, 2, 3])
        bus.check = lambda: None  # type: ignore[method-assign]
        value(bus[2].table)
        for _ in range(EVERY):  # no chunk is delivered: they stay behind
            bus.lock(1, mode=NL, expedite=True)
            queue = bus[1].queue
            queue[:] = [payload for payload in queue if decode(payload).kind != Kind.CHUNK]
            bus.sequence()
            bus.deliver()
        for _ in range(3):
            bus.sequence()
            bus.deliver()
        said = [fields for _, name, fields in events if name == "dlm.diverged"]
        assert said[0]["nodes"] == [2]
        assert said[0]["values"]["3"] == "-"

    def test_a_full_send_queue_delays_a_vote(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bus = shared()
        bus.check = lambda: None  # type: ignore[method-assign]
        value(bus[3].table)
        submit, full = bus[2].host.submit, [True]

        def maybe(payload: bytes) -> None:
            if full and decode(payload).kind == Kind.VOTE:
                raise Backpressure("full")
            submit(payload)

        monkeypatch.setattr(bus[2].host, "submit", maybe)
        traffic(bus)
        assert bus[3].service.complete
        full.clear()
        bus.tokens()
        bus.run()
        assert not bus[3].service.complete

    @pytest.mark.parametrize("seed", range(20))
    def test_never_without_reason(self, seed: int, events: list[tuple[int, str, dict[str, Any]]]) -> None:
        """Random operations, deaths, restarts and views, with a check every 8 events."""
        rng, bus = random.Random(seed), Bus()
        for step in range(150):
            node = rng.randint(1, 3)
            if bus[node].alive:
                _, h = bus.lock(node, rng.choice([b"R", b"S", b"T"]), rng.choice([NL, CR, PR, EX]), noqueue=True)
                if rng.random() < 0.7:
                    bus.call(node, "unlock", h=h)
            if rng.random() < 0.7:
                bus.sequence(*rng.sample([1, 2, 3], 2))
                bus.deliver(rng.randint(1, 3), count=rng.randint(1, 5))
            if step % 30 == 29:
                gone = rng.randint(1, 3)
                if rng.random() < 0.5:
                    bus.kill(gone)
                bus.view([n for n in (1, 2, 3) if n != gone], rng=rng)
                bus.run()
                if not bus[gone].alive:
                    bus.boot(gone)
                bus.view([1, 2, 3], rng=rng)
                bus.run()
        bus.run()
        traffic(bus)
        assert all(bus[node].service.status()["checked"] > 0 for node in (1, 2, 3))
        assert {name for _, name, _ in events} <= {"dlm.view", "dlm.caught_up"}


class TestVotes:
    def test_most_are_right(self) -> None:
        assert wrong({1: 5, 2: 7, 3: 7}) == [1]
        assert wrong({1: 5, 2: 5, 3: None}) == []
        assert wrong({1: 5, 2: 7, 3: None}) == [2]
        assert wrong({1: None, 2: 7, 3: 8}) == [3]
        assert wrong({1: 5, 2: 7, 3: 8}) == [2, 3]
        assert wrong({1: 5, 2: 5, 3: 8, 4: 8}) == [3, 4]
        assert wrong({1: MISSING, 2: 8, 3: 8}) == [1]
        assert wrong({1: None}) == []

    def test_a_checksum_does_not_depend_on_batches(self) -> None:
        rows = [(index, b"name", "granted") for index in range(checks.BATCH * 2 + 3)]
        one, other = Rolling(), Rolling()
        for index, row in enumerate(rows):
            one.add(row)
            other.add(row)
            if index % 7 == 0:
                assert other.value == Rolling(other.value).value
        assert one.value == other.value
        one.add(rows[0])
        assert one.value != other.value

    @pytest.mark.parametrize(("limit", "value"), [("NAMES", 10), ("NAME_BYTES", 40)])
    def test_every_name_has_its_turn(self, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
        monkeypatch.setattr(checks, limit, value)
        bus = shared()
        for index in range(100):
            bus.lock(index % 3 + 1, b"%d" % index)
        bus.run()
        seen: set[bytes] = set()
        everything = set(bus[1].table.names)
        for _ in range(25 * 3 * EVERY):
            if seen >= everything:
                break
            bus.lock(2, mode=NL, expedite=True)
            bus.sequence(2)
            bus.deliver()
            sent = [decode(payload) for node in (1, 2, 3) for payload in bus[node].queue]
            looks = [message.body[0] for message in sent if message.kind == Kind.LOOK]
            sizes = [len(names) if limit == "NAMES" else sum(map(len, names[:-1])) for names in looks]
            assert all(size <= value for size in sizes)  # bytes: the last one may go beyond
            seen |= {name for names in looks for name in names}
            bus.sequence()
            bus.deliver()
        assert seen >= everything


class TestTransfer:
    """R4, S60: the state that has come is compared with its source."""

    def joining(self) -> Bus:
        bus = shared()
        bus.kill(3)
        bus.view([1, 2])
        bus.boot(3)
        bus.view([1, 2, 3])
        bus.sequence()
        return bus

    @pytest.mark.parametrize("damage", ["CR", "byte", "short", "more"])
    def test_damage_is_found_and_the_transfer_begins_again(
        self, damage: str, events: list[tuple[int, str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bus = self.joining()
        events.clear()
        with monkeypatch.context() as patch:
            if damage == "CR":
                patch.setattr(Resource, "decode", classmethod(_swapped))
            else:
                put = Reader.put
                changed = {"byte": _changed, "short": _cut, "more": _longer}[damage]
                patch.setattr(Reader, "put", lambda reader, data: put(reader, changed(data)))
            bus.run()
            assert not bus[3].service.complete
            assert [name for node, name, _ in events if node == 3] == ["dlm.transfer_damaged"]
            assert len(bus[3].host.reformed) == 1
        bus.view([1, 2, 3])
        bus.run()
        assert bus[3].service.complete
        bus.check_at_rest()

    def test_it_gives_up_after_some(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bus = self.joining()
        monkeypatch.setattr(Reader, "_take", _damaged)
        for _ in range(6):
            bus.run()
            bus.view([1, 2, 3])
        bus.run()
        assert len(bus[3].host.reformed) == 3
        assert not bus[3].service.complete


def _damaged(reader: Reader, row: tuple[Any, ...]) -> None:
    raise Damage("a test")


def _changed(data: bytes) -> bytes:
    at = data.rindex(b"client")  # in a row, not in the sum that is compared
    return data[:at] + b"C" + data[at + 1 :]


def _cut(data: bytes) -> bytes:
    return data[:-5]


def _longer(data: bytes) -> bytes:
    return data + b"\x92\0\0"


_read = Resource.decode.__func__  # type: ignore[attr-defined]


def _swapped(cls: type[Resource], row: tuple[Any, ...], mint: Any, now: int) -> Resource:
    """Somebody reads CR as another mode."""
    found: Resource = _read(cls, row, mint, now)
    for lock in found.locks.values():
        if lock.mode == CR:
            found.held[CR] -= 1
            found.held[NL] += 1
            lock.mode = lock.asked = NL
            break
    return found


def test_a_joiner_purges_in_the_same_order() -> None:
    """Seed 207: a snapshot lists holders first, so the locks of a dead node went in another order there."""
    old = Table(1)
    name = old.add(KEY, Form.SHARED, 0)
    old.share(KEY, name, Resource(old.mint))
    assert name.resource is not None
    for h, mode in ((1, PR), (2, EX), (3, PR)):  # the second waits, the third behind it
        name.resource.lock(Lock((2, 1, h), mode), [])
    name.resource.cancel((2, 1, 2), [])
    name.resource.lock(Lock((2, 1, 2), NL), [])
    new = Table.decode(3, old.encode(), 0)
    for table in (old, new):
        table.end_lives([Life(2, 1, NO_RING)], [])
    assert old.encode() == new.encode()
