"""Clients with many locks that go: their locks go a few at a time, and nobody can tell the difference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dlm.messages import Kind
from dlm.modes import EX, NL, PR
from dlm.table import Table
from dlm.work import ALL, ITEM, Chores
from tests.dlm.bus import LEASE, Bus

SOME = 10  #: in a turn
MANY = 95


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlm.work.TURN", SOME * ITEM)


def locks_of(table: Table, node: int) -> int:
    """How many a node has, in all names that are visible here."""
    found = (name.resource for name in table.names.values())
    return sum(lock.key[0] == node for resource in found if resource for lock in resource.locks.values())


def holding(nodes: int = 3, persistent: bool = False) -> Bus:
    """Session 1 of node 1 has many locks, half of them in names that node 2 knows."""
    bus = Bus(nodes)
    for number in range(MANY):
        if number % 2:
            bus.lock(2, b"n%d" % number, NL)
    bus.run()
    for number in range(MANY):
        bus.lock(1, b"n%d" % number, EX, persistent=persistent)
    bus.run()
    assert locks_of(bus[1].table, 1) == MANY
    return bus


def turns_to_close(bus: Bus) -> int:
    """Fire until nothing is left to be closed; not more than some locks go in a turn."""
    service, turns = bus[1].service, 0
    while service.home.closings:
        assert service.next_deadline() == bus.now
        ended = bus.kinds(1).count(Kind.END)
        before = locks_of(service.table, 1)
        service.fire(bus.now)
        assert before - locks_of(service.table, 1) <= SOME
        assert bus.kinds(1).count(Kind.END) - ended <= 1
        turns += 1
    return turns


class TestChores:
    def test_each_gets_its_share(self) -> None:
        done: list[str] = []

        def job(name: str, items: int) -> Iterator[int]:
            for _ in range(items):
                done.append(name)
                yield ITEM

        chores = Chores()
        chores.add(job("a", 6))
        chores.add(job("b", 3))
        assert chores.run(4 * ITEM) == 0
        assert done == ["a", "a", "b", "b"]
        assert chores.run(4 * ITEM) == ITEM
        assert done[4:] == ["a", "a", "b"]
        assert chores
        assert chores.run() == ALL - 2 * ITEM
        assert done[7:] == ["a", "a"]
        assert not chores

    def test_a_large_step_is_the_last_one(self) -> None:
        chores = Chores()
        chores.add(iter([100, 1, 1]))
        assert chores.run(10) == -90
        assert chores


def test_a_session_with_many_locks_ends_a_few_at_a_time() -> None:
    bus = holding()
    bus.close(1)
    assert 0 < MANY - locks_of(bus[1].table, 1) <= SOME
    assert turns_to_close(bus) >= MANY / SOME - 1
    bus.run()
    assert all(locks_of(bus[node].table, 1) == 0 for node in (1, 2, 3))
    bus.check_at_rest()


def test_a_session_with_few_locks_ends_at_once() -> None:
    bus = Bus()
    for number in range(SOME - 1):
        bus.lock(1, b"n%d" % number, EX)
    bus.run()
    bus.close(1)
    assert locks_of(bus[1].table, 1) == 0
    bus.run()
    assert not bus[1].service.home.closings
    bus.check_at_rest()


def test_end_messages_have_so_many_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlm.work.TURN", 1000 * ITEM)
    monkeypatch.setattr("dlm.home.END_BATCH", SOME)
    bus = holding()
    bus.close(1)
    bus[1].service.fire(bus.now)
    assert bus.kinds(1).count(Kind.END) == -(-(MANY // 2) // SOME)
    bus.run()
    assert locks_of(bus[2].table, 1) == 0
    bus.check_at_rest()


def test_a_grant_meanwhile_goes_as_well() -> None:
    """A request of the closed session is granted before its turn has come: nobody is told, and it ends."""
    bus = holding()
    _, held = bus.lock(2, b"last", EX)
    bus.run()
    bus.lock(1, b"last", EX)
    bus.run()
    bus.close(1)
    bus[1].service.fire(bus.now)
    bus.call(2, "unlock", h=held)
    bus.sequence(2)
    bus.deliver()
    assert any(key[0] == 1 for key in bus[2].table.names[b"\0last"].resource.locks)
    bus.run()
    assert not any(name.resource and name.resource.homes.get(1) for name in bus[2].table.names.values())
    bus.check_at_rest()


def test_the_life_ends_meanwhile() -> None:
    """The handles of the former life are nothing in the new one, and are not counted any more."""
    bus = holding()
    bus.close(1)
    bus[1].service.fire(bus.now)
    bus.view([1])
    bus.view([2, 3])
    bus.advance(2 * LEASE)
    bus.view([1, 2, 3])
    bus.run()
    assert not bus[1].service.home.closings
    assert not bus[1].service.home._on_name
    assert locks_of(bus[2].table, 1) == 0
    bus.check_at_rest()


def test_a_lockspace_that_is_closed_is_empty_when_the_client_is_told() -> None:
    bus = holding()
    rid = bus.call(1, "space_close", space="default")
    turns = 0
    while bus.result(rid) is None:
        bus[1].service.fire(bus.now)
        turns += 1
    assert turns >= MANY / SOME - 1
    assert not bus[1].service.home.closings
    bus.run()
    assert locks_of(bus[1].table, 1) == 0
    bus.check_at_rest()


def test_orphans_are_all_there_for_who_looks_for_them() -> None:
    """P1, P4: whoever drops a process's orphans just after its session has gone finds all of them."""
    bus = holding(persistent=True)
    bus.close(1)
    rid = bus.call(1, "purge", session=2, pid=0)
    assert bus.result(rid) == {"purged": MANY}
    bus.run()
    assert locks_of(bus[2].table, 1) == 0
    bus.check_at_rest()


def test_an_orphan_can_be_adopted_just_after_its_session_has_gone() -> None:
    bus = holding(persistent=True)
    bus.close(1)
    rid, _ = bus.lock(1, b"n%d" % (MANY - 1), EX, session=2, orphan=True)
    bus.run()
    assert bus.granted(rid)


def test_a_node_that_leaves_has_nothing_left_to_close() -> None:
    bus = holding()
    bus.lock(2, b"n0", PR)
    bus.close(1)
    bus[1].service.fire(bus.now)
    bus[1].service.leaving(bus.now)
    assert not bus[1].service.home.closings
    bus.run()
    assert bus[1].service.may_leave()
    assert locks_of(bus[2].table, 1) == 0
