"""Joining while others work: the pitfalls E of the design (docs/pitfalls-tests.md)."""

from __future__ import annotations

import pytest

from dlm import transfer
from dlm.modes import EX, NL, PR
from dlm.testing.clients import Client, Operation
from tests.dlm.test_sim import Stage

NAMES = [b"n%d" % i for i in range(40)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table takes many messages, and others' messages fall between them."""
    monkeypatch.setattr(transfer, "CHUNK_SIZE", 120)


def full_of_names(seed: int) -> tuple[Stage, list[Client]]:
    """Three nodes whose table has many shared names, and a writer each at 1 and 2."""
    stage = Stage(seed)
    for node in (1, 2):
        keeper = stage.client(node)
        for name in NAMES:
            stage.locks.lock(keeper, name, NL)
    stage.cluster.advance(1.0)
    return stage, [stage.client(node) for node in (1, 2)]


def joins(stage: Stage, node: int) -> None:
    """The node starts again with nothing, and is in everybody's view."""
    stage.cluster.crash(node)
    stage.cluster.advance(1.0)
    stage.cluster.restart(node)
    stage.until(lambda: stage.locks.lockers[node].state == "joining")


def same_tables(stage: Stage) -> bool:
    """When all is quiet."""
    stage.cluster.advance(0.1)
    return len({locker.table.digest() for locker in stage.locks.lockers.values()}) == 1


@pytest.mark.parametrize("seed", range(4))
def test_e1_writers_at_full_rate_during_a_join(seed: int) -> None:
    """Every name changes several times while its part of the table is on its way: the joiner ends with the same
    table as all others (the simulator's rule TABLE compares), and nobody has had to wait for it.
    """
    stage, writers = full_of_names(seed)
    joins(stage, 3)
    joiner, done, slowest = stage.locks.lockers[3], 0, 0.0
    while joiner.state == "joining":
        name, client = NAMES[done % len(NAMES)], writers[done % 2]
        began = stage.cluster.now
        handle = stage.granted(stage.locks.lock(client, name, EX))
        slowest = max(slowest, stage.cluster.now - began)
        if done % 5 == 4:
            stage.locks.end(client)  # with what it holds
            writers[done % 2] = stage.client(client.node.id)
        elif done % 2:
            stage.locks.convert(handle, PR, valblk=True)
        else:
            stage.locks.unlock(handle, valblk=True)
        done += 1
    assert done > 10, "the join takes longer than that"
    assert slowest < 0.1
    waits = stage.locks.lock(stage.client(3), NAMES[0], EX)
    stage.granted(waits)
    assert same_tables(stage)
    stage.end()


@pytest.mark.parametrize("seed", range(3))
def test_e1_the_donor_dies_and_comes_back_during_a_join(seed: int) -> None:
    """Another one begins again, with the table as it was at the next view: parts of two tables are never mixed."""
    stage, writers = full_of_names(seed)
    held = stage.granted(stage.locks.lock(writers[1], b"held", EX))
    joins(stage, 3)
    stage.cluster.advance(0.002)
    assert stage.locks.lockers[3].state == "joining"
    stage.cluster.crash(1)
    stage.cluster.advance(0.5)
    stage.cluster.restart(1)
    stage.until(lambda: all(stage.locks.lockers[node].state == "running" for node in (1, 2, 3)))
    assert held.valid()
    assert same_tables(stage)
    stage.end()


def circle(stage: Stage, writers: list[Client], names: tuple[bytes, bytes]) -> list[Operation]:
    """Each writer holds one name and asks for the other's."""
    for writer, name in zip(writers, names, strict=True):
        stage.granted(stage.locks.lock(writer, name, EX))
    return [stage.locks.lock(writer, name, EX) for writer, name in zip(writers, reversed(names), strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_e2_a_circle_across_names_of_which_the_joiner_has_one(seed: int) -> None:
    """Who is refused depends on both names. The joiner, which may have only one of them at that position, comes to
    the same result when it gets there.
    """
    stage, writers = full_of_names(seed)
    joins(stage, 3)
    asked = circle(stage, writers, (NAMES[0], NAMES[-1]))
    stage.until(lambda: any(operation.ok is False for operation in asked))
    assert stage.locks.lockers[3].state == "joining"
    refused, other = sorted(asked, key=lambda operation: operation.ok is not False)
    assert refused.data["code"] == "deadlock"
    assert other.ok is None
    stage.until(lambda: stage.locks.lockers[3].state == "running")
    assert same_tables(stage)
    stage.locks.end(refused.handle.client)
    stage.granted(other)
    stage.end()
