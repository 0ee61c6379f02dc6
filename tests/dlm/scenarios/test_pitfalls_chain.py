"""Whose lock state goes on: the pitfalls C of the design, on whole clusters (docs/pitfalls-tests.md)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlm.modes import EX, NL
from dlm.testing.clients import Handle, Operation
from tests.dlm.test_sim import Stage
from vsync.testing.node import SimNode
from vsync.testing.rules import TYPE_AT
from vsync.wire import FrameType

DATA = FrameType.DATA


def nodes_of(node: SimNode) -> tuple[int, ...]:
    return node.view.nodes if node.view is not None else ()


def until_apart(stage: Stage, *parts: tuple[int, ...]) -> None:
    """Until the nodes of each part have a view of their own."""
    stage.until(lambda: all(nodes_of(stage.cluster[n]) == part for part in parts for n in part))


def data_only_within(stage: Stage, *groups: set[int]) -> None:
    """Packets go to nodes of the same group, tokens to all."""

    def drop(src: int, dst: int, frame: bytes) -> bool:
        return frame[TYPE_AT] == DATA and not any({src, dst} <= group for group in groups)

    stage.cluster.network.drop = drop


def exactly_one(stage: Stage, operations: list[Operation]) -> None:
    """They exclude each other: each is granted when those before it are released."""
    for operation in stage.in_some_order(operations):
        assert sum(other.handle.held for other in operations) == 1
        assert operation.handle.valid()
        stage.locks.unlock(operation.handle)


def test_c1_a_blip_of_all_links_with_traffic() -> None:
    """All links fail for a moment while requests are under way: the halves have different prefixes of one order.
    They meet again, and nobody loses a lock, as no primary view has come in between.
    """
    for seed in range(6):
        stage = Stage(seed=seed)
        kept = [stage.holding(node, f"kept{node}".encode())[1] for node in (1, 2, 3)]
        _, held = stage.holding(2)
        fences = [handle.fence for handle in (*kept, held)]
        waiting = [stage.locks.lock(stage.client(node), b"r") for node in (1, 3, 2)]
        stage.cluster.advance(0.0015 * seed)
        stage.cluster.partition()
        stage.cluster.advance(1.0)
        assert not any(handle.valid() for handle in (*kept, held))
        assert not any(operation.ok for operation in waiting)
        stage.cluster.heal()
        stage.until(lambda: all(handle.valid() for handle in (*kept, held)))  # noqa: B023 - at once
        assert [handle.fence for handle in (*kept, held)] == fences
        assert not stage.locks.met["lost"]
        stage.locks.unlock(held)
        exactly_one(stage, waiting)
        stage.end()


@pytest.mark.parametrize("seed", range(3))
def test_c2_two_claims_behind_a_lost_message(seed: int) -> None:
    """Five nodes; a message of 5 reaches nobody, then 1 and 3 claim the same name. Each part delivers only its own
    claim behind the hole. None of them may be told that it has the lock, and when all meet one of them gets it.
    """
    stage = Stage(seed, nodes=5)
    before = stage.client(5), stage.client(1), stage.client(3)
    data_only_within(stage, {1, 2}, {3, 4}, {5})
    lost = stage.locks.lock(before[0], b"lost")
    stage.cluster.advance(0.02)
    claims = [stage.locks.lock(client, b"r") for client in before[1:]]
    stage.cluster.advance(0.02)
    assert {operation.ok for operation in (lost, *claims)} <= {None, True}
    stage.cluster.partition({1, 2}, {3, 4}, {5})
    until_apart(stage, (1, 2), (3, 4), (5,))
    stage.cluster.advance(2.0)
    assert [claim.ok for claim in claims] == [None, None]
    stage.cluster.network.drop = None
    stage.cluster.heal()
    exactly_one(stage, claims)
    assert stage.answered(lost).ok
    stage.end()


def test_c3_the_ring_breaks_between_two_installations() -> None:
    """3 holds; 1 and 2 form a primary view without it, that only one of them has installed when it breaks. It
    may grant 3's lock to its own client. So the other, which meets 3, must not go on with what 3 has.
    """
    stage = Stage()
    _, held = stage.holding(3)
    stage.cluster.network.options = replace(stage.cluster.network.options, cut_in_flight=True)
    stage.cluster.partition({1, 2}, {3})
    both = [stage.cluster[node] for node in (1, 2)]
    stage.until(lambda: any(nodes_of(node) == (1, 2) for node in both))
    first = next(node for node in both if nodes_of(node) == (1, 2))
    other = next(node for node in both if node is not first)
    assert nodes_of(other) == (1, 2, 3)
    operation = stage.locks.lock(stage.client(first.id), b"r")
    stage.cluster.partition({first.id}, {other.id, 3})
    stage.until(lambda: nodes_of(other) == tuple(sorted((other.id, 3))))
    assert other.view is not None
    assert other.view.primary
    stage.until(lambda: held.over)
    stage.granted(stage.locks.lock(stage.client(other.id), b"r"))
    assert operation.ok is None
    stage.end()


@pytest.mark.parametrize("shared", [False, True])
def test_c4_a_node_dies_while_all_are_apart(shared: bool) -> None:
    """Its locks go although no view ever says that it left: purged is who is not in the view."""
    stage = Stage()
    if shared:
        for node in (2, 3):
            stage.holding(node, mode=NL)
    stage.holding(1)
    other = stage.client(2)
    stage.cluster.partition()
    stage.cluster.advance(1.0)
    stage.cluster.crash(1)
    stage.cluster.heal()
    operation = stage.locks.lock(other, b"r")
    stage.granted(operation)
    for node in (2, 3):
        assert not any(name.owner == 1 for name in stage.locks.lockers[node].table.names.values())
    stage.end()


def test_c5_one_of_the_last_primary_has_lost_its_disk() -> None:
    """3 is cut off and its lock goes to 2. Then 1 comes back with an empty disk and meets 3: they are a majority,
    but neither knows of the view in which 2 got it; 1's emptiness must not vote for 3's old state.
    """
    stage = Stage()
    _, held = stage.holding(3)
    stage.cluster.partition({1, 2}, {3})
    newer = stage.granted(stage.locks.lock(stage.client(2), b"r"))
    stage.cluster.partition({1, 3}, {2})
    stage.cluster.crash(1)
    stage.cluster[1].disk.wipe()
    stage.cluster.restart(1)
    until_apart(stage, (1, 3), (2,))
    waits = stage.locks.lock(stage.client(1), b"r")
    stage.cluster.advance(2.0)
    assert not stage.cluster[3].core.view.primary
    assert not held.valid()
    assert waits.ok is None
    fence = newer.fence
    stage.cluster.heal()
    stage.until(lambda: newer.valid() and held.over)
    assert newer.fence == fence
    stage.locks.unlock(newer)
    assert stage.granted(waits).fence > fence
    stage.end()


def test_c5_all_that_knew_of_the_newer_state_restart() -> None:
    """1 holds, is cut off, loses its lock to 2; then 2 and 3 restart and meet 1, who must not go on."""
    stage = Stage()
    _, held = stage.holding(1)
    stage.cluster.partition({1}, {2, 3})
    stage.granted(stage.locks.lock(stage.client(2), b"r"))
    for node in (2, 3):
        stage.cluster.crash(node)
    stage.cluster.heal()
    for node in (2, 3):
        stage.cluster.restart(node)
    stage.cluster.settle()
    stage.cluster.advance(1.0)
    assert not held.valid()
    stage.end()


def stop_with_a_publication_in_its_queue(stage: Stage) -> tuple[Handle, Operation]:
    """1 owns a name, 2 asks for it, and 1 is stopped right after it has composed its publication."""
    _, held = stage.holding(1)
    operation = stage.locks.lock(stage.client(2), b"r")
    outbox = stage.locks.lockers[1].home.outbox
    while not len(outbox):
        stage.cluster.scheduler.step(10**9)
    assert stage.locks.lockers[1].table.names[b"\0r"].form.name == "HANDOVER"
    stage.cluster[1].pause()
    return held, operation


def test_c10_an_old_publication_comes_out_in_a_later_view() -> None:
    """The stopped owner is excluded, its lock goes to another; when it is back and its queue drains, the
    publication of its former life must not overwrite what has become of the name.
    """
    for seed in range(4):
        stage = Stage(seed)
        held, operation = stop_with_a_publication_in_its_queue(stage)
        stage.granted(operation)
        assert not held.valid()
        stage.cluster[1].resume()
        stage.until(lambda: nodes_of(stage.cluster[1]) == (1, 2, 3))  # noqa: B023 - at once
        stage.cluster.advance(0.5)
        assert held.over
        assert operation.handle.valid()
        for locker in stage.locks.lockers.values():
            resource = locker.table.names[b"\0r"].resource
            assert locker.table.names[b"\0r"].owner == 2 or (resource and list(resource.homes) == [2])
        stage.end()


def breaks_off(stage: Stage, pair: tuple[int, int]) -> tuple[SimNode, SimNode]:
    """These two form a ring; who has reached the end of its recovery first, and the other, which has not."""
    both = [stage.cluster[node] for node in pair]

    def reached(node: SimNode) -> bool:
        forming = node.core.engine.forming  # type: ignore[attr-defined]
        return forming is not None and forming.reached > 0

    stage.until(lambda: any(map(reached, both)))
    first = next(node for node in both if reached(node))
    other = next(node for node in both if node is not first)
    assert not reached(other)
    assert nodes_of(first) != pair
    return first, other


@pytest.mark.parametrize("times", [1, 2])
def test_c11_the_token_is_lost_between_recovered_and_installed(times: int) -> None:
    """1's lock request is received by nobody else; 2 and 3 try the same lock. They begin a ring: one of them
    reaches the end of recovery, in which its own try would be granted, the other breaks off – once or twice –,
    meets 1 and hears that 1 was first. What it then tells its client must be true of the state that goes on.
    """
    for seed in range(4):
        stage = Stage(seed)
        for node in (2, 3):
            stage.holding(node, mode=NL)
        clients = [stage.client(node) for node in (1, 2, 3)]
        stage.cluster.network.options = replace(stage.cluster.network.options, cut_in_flight=True)
        data_only_within(stage, {1}, {2, 3})
        first_of_all = stage.locks.lock(clients[0], b"r", EX)
        stage.until(lambda: first_of_all.ok is not None)  # noqa: B023 - at once
        tries = {node: stage.locks.lock(clients[node - 1], b"r", EX, noqueue=True) for node in (2, 3)}
        stage.cluster.advance(0.004)
        stage.cluster.network.drop = None
        stage.cluster.partition({1}, {2, 3})
        first, other = breaks_off(stage, (2, 3))
        if times == 2:
            stage.cluster.partition({1}, {2}, {3})
            stage.cluster.advance(0.05)
            stage.cluster.partition({1}, {2, 3})
            first, other = breaks_off(stage, (2, 3))
        stage.cluster.partition({1, other.id}, {first.id})
        until_apart(stage, tuple(sorted((1, other.id))))
        stage.cluster.advance(0.5)
        told = tries[other.id]
        stage.cluster.partition({1}, {2, 3})
        until_apart(stage, (2, 3))
        stage.cluster.advance(1.0)
        stage.cluster.heal()
        stage.cluster.advance(2.0)
        for operation in tries.values():
            assert operation.ok is not None
            if not operation.ok:
                assert operation.data["code"] in ("again", "lost", "no_quorum")
        holders = [o.handle for o in (first_of_all, *tries.values()) if o.ok and o.handle.valid()]
        assert len(holders) <= 1
        assert told.ok is not None
        stage.end()


@pytest.mark.parametrize("seed", range(3))
def test_c14_a_write_that_nobody_else_has_is_not_acknowledged(seed: int) -> None:
    """1 locks and writes, both delivered at itself alone, and dies: the others have the older value, which is
    valid. So its client must not have been told that the value was written.
    """
    stage = Stage(seed)
    for node in (2, 3):
        stage.holding(node, mode=NL)
    client = stage.client(1)
    first = stage.granted(stage.locks.lock(client, b"r", EX))
    assert stage.answered(stage.locks.unlock(first, valblk=True)).ok
    data_only_within(stage, {1}, {2, 3})
    second = stage.granted(stage.locks.lock(client, b"r", EX))
    written = stage.locks.unlock(second, valblk=True)
    stage.cluster.advance(0.05)
    assert not stage.locks.lockers[1].home.outbox.under_way, "it has been delivered at 1"
    assert written.ok is None
    stage.cluster.crash(1)
    stage.cluster.network.drop = None
    reader = stage.locks.lock(stage.client(2), b"r", EX, valblk=True)
    stage.granted(reader)
    assert reader.data["value_valid"]
    assert reader.data["value"] == first.fence.to_bytes(8, "big")
    stage.end()


@pytest.mark.parametrize("steps", range(0, 60, 6))
def test_c14_what_was_acknowledged_is_read_or_known_to_be_lost(steps: int) -> None:
    """The same with a daemon that dies at any moment after the release was called."""
    stage = Stage(steps)
    for node in (2, 3):
        stage.holding(node, mode=NL)
    client = stage.client(1)
    held = stage.granted(stage.locks.lock(client, b"r", EX))
    written = stage.locks.unlock(held, valblk=True)
    for _ in range(steps):
        stage.cluster.scheduler.step(10**9)
    stage.cluster.crash(1)
    reader = stage.locks.lock(stage.client(2), b"r", EX, valblk=True)
    stage.granted(reader)
    if written.ok and reader.data["value_valid"]:
        assert reader.data["value"] == held.fence.to_bytes(8, "big")
    stage.end()
