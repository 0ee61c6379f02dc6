"""Private names that their owner has not used lately: their contents are bytes, and nobody sees a difference."""

from __future__ import annotations

from typing import Any

import pytest

from dlm import folded, handles
from dlm.messages import key_of
from dlm.modes import CR, EX, NL, PR
from dlm.names import Form, Name
from dlm.testing.workload import LockPlugin
from tests.dlm.bus import MS, Bus
from vsync.testing import draw, run

A, B, C = (key_of("default", name) for name in (b"a", b"b", b"c"))


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Bus:
    monkeypatch.setattr(folded, "OPEN", 0)
    return Bus()


def name_of(bus: Bus, key: bytes, node: int = 1) -> Name:
    found: Name = bus[node].table.names[key]
    return found


def held(bus: Bus, name: bytes, mode: int = EX, **args: Any) -> int:
    """A lock of node 1."""
    rid, h = bus.lock(1, name, mode, **args)
    bus.run()
    assert bus.granted(rid)
    return h


def test_a_name_that_is_held_is_folded_and_opens_for_its_next_use(bus: Bus) -> None:
    h = held(bus, b"a")
    assert name_of(bus, A).folded is not None
    assert name_of(bus, A).resource is None
    rid = bus.call(1, "convert", h=h, mode=PR)
    bus.run()
    assert bus.granted(rid)
    [lock] = bus[1].table.local(A).locks.values()
    assert (lock.mode, lock.key) == (PR, (1, 1, h))


def test_those_used_last_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded, "OPEN", 2)
    bus = Bus()
    first = held(bus, b"a")
    held(bus, b"b")
    bus.call(1, "convert", h=first, mode=PR)
    bus.run()
    held(bus, b"c")
    assert [name_of(bus, key).folded is None for key in (A, B, C)] == [True, False, True]


def test_nothing_is_lost_between_folding_and_opening(bus: Bus) -> None:
    writer = held(bus, b"a", EX)
    bus.call(1, "convert", h=writer, mode=CR, valblk=True, value=b"v")
    bus.run()
    held(bus, b"a", CR, session=2, blocking=True, persistent=True)
    name = name_of(bus, A)
    assert name.folded is not None
    seen = folded.contents(A, name)
    assert seen is not None
    fences = bus[1].table.numbers
    opened = bus[1].table.local(A)
    assert opened.encode() == seen.encode()
    assert [lock.since for lock in opened.locks.values()] == [bus.now, bus.now]
    assert (opened.value, opened.valid, len(opened.listeners), opened.homes) == (b"v", True, 1, {1: 2})
    assert opened.mint() == opened.locks[1, 2, bus.h].fence + 1
    assert bus[1].table.numbers == fences  # what had been set aside for the name is still there
    opened.invariants()


def test_a_name_with_a_queue_or_without_locks_stays_open(bus: Bus) -> None:
    h = held(bus, b"a")
    rid, _ = bus.lock(1, b"a", EX, session=2)
    assert name_of(bus, A).folded is None
    bus.call(1, "unlock", h=h)
    bus.run()
    assert bus.granted(rid)
    assert name_of(bus, A).folded is not None
    bus.call(1, "unlock", session=2, h=bus.h)
    bus.run()
    assert name_of(bus, A).folded is None
    bus.advance(11_000 * MS)
    assert A not in bus[1].table.names  # idle, and given back


def test_a_stranger_gets_what_was_folded(bus: Bus) -> None:
    h = held(bus, b"a", PR)
    rid, _ = bus.lock(2, b"a", PR)
    bus.run()
    assert bus.granted(rid)
    for node in (1, 2, 3):
        name = name_of(bus, A, node)
        assert (name.form, name.folded) == (Form.SHARED, None)
        assert name.resource is not None
        assert sorted(name.resource.locks) == [(1, 1, h), (2, 1, bus.h)]


def test_people_see_it_without_opening_it(bus: Bus) -> None:
    held(bus, b"a")
    rid = bus.call(1, "ls", prefix=b"")
    [row] = bus.result(rid)
    assert (row["state"], row["mode"], len(row["holders"])) == ("private", "EX", 1)
    assert name_of(bus, A).folded is not None


def test_a_view_takes_locks_of_a_dead_node_and_leaves_what_is_folded(bus: Bus) -> None:
    h = held(bus, b"a")
    bus.lock(2, b"b", EX)
    bus.run()
    bus.kill(2)
    bus.view([1, 3])
    bus.advance(10_000 * MS)
    assert B not in bus[1].table.names
    rid = bus.call(1, "convert", h=h, mode=NL)
    bus.run()
    assert bus.granted(rid)


@pytest.mark.parametrize("seed", range(1, 5))
def test_nobody_sees_a_difference(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator, which compares everything with everything: it runs as if all were open, handles as well."""
    traces = []
    for limit in (folded.OPEN, 0):
        monkeypatch.setattr(folded, "OPEN", limit)
        monkeypatch.setattr(handles, "OPEN", limit)
        result = run(draw(seed, 3), [LockPlugin(seed)])
        assert result.violation is None
        traces.append(result.trace.hash)
    assert traces[0] == traces[1]
