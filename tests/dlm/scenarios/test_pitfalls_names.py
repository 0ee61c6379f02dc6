"""Private names, fences, hidden circles: the pitfalls A, B and F of the design (docs/pitfalls-tests.md)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlm.modes import EX, NL
from dlm.names import Form
from dlm.testing.clients import Operation
from tests.dlm.test_sim import IDLE, Stage
from vsync.testing.rules import TYPE_AT
from vsync.wire import FrameType

KEY = b"\0r"
SOON = 20_000  #: µs until a name is yielded, or given back
SWIFT = replace(IDLE, contended=SOON, idle=SOON)
MOMENTS = [moment * 0.0006 for moment in range(-5, 6)]  #: s around the one at which two messages cross


def exactly_one(stage: Stage, operations: list[Operation]) -> None:
    """They exclude each other: each is granted when those before it are released."""
    for operation in stage.in_some_order(operations):
        assert sum(other.handle.held for other in operations) == 1
        stage.locks.unlock(operation.handle)


def form(stage: Stage, node: int = 1) -> Form | None:
    name = stage.locks.lockers[node].table.names.get(KEY)
    return name.form if name is not None else None


@pytest.mark.parametrize("moment", range(8))
def test_a1_a_cancel_right_after_a_claim(moment: int) -> None:
    """Two clients of one node ask for an unknown name. The first message makes it theirs; the second one's client
    gives up meanwhile. Were that decided at once, its request, delivered later, would be granted to nobody.
    """
    stage = Stage(moment)
    stage.cluster.advance(0.5)
    first = stage.locks.lock(stage.client(2), b"r")
    second = stage.locks.lock(stage.client(2), b"r")
    stage.cluster.advance(0.0003 * moment)
    withdrawn = stage.locks.cancel(second.handle)
    stage.granted(first)
    assert stage.answered(withdrawn).ok
    assert stage.answered(second).ok is False
    assert second.data["code"] == "canceled"
    third = stage.locks.lock(stage.client(3), b"r")
    stage.cluster.advance(0.3)
    assert third.ok is None
    stage.locks.unlock(first.handle)
    stage.granted(third)
    stage.end()


@pytest.mark.parametrize("again", [False, True])
def test_a2_a_name_is_given_back_while_a_stranger_asks_for_it(again: bool) -> None:
    """The stranger's request comes first or last in the order, and the owner's own client may want it too: nobody's
    request is lost with the name.
    """
    for seed, moment in enumerate(MOMENTS):
        stage = Stage(seed, habits=SWIFT)
        _, held = stage.holding(2)
        client, other = stage.client(2), stage.client(3)
        stage.locks.unlock(held)
        assert form(stage) is Form.PRIVATE
        stage.cluster.advance(SOON / 1e6 + moment)
        operations = [stage.locks.lock(other, b"r")]
        if again:
            stage.cluster.advance(0.0003)
            operations.append(stage.locks.lock(client, b"r"))
        exactly_one(stage, operations)
        stage.end()


@pytest.mark.parametrize("stranger", [False, True])
def test_a3_a_release_while_the_name_is_yielded(stranger: bool) -> None:
    """One holds and one waits at the owner, which yields the name; the release is ordered before that, after it, or
    after a stranger's request. What is published is what there is at that delivery: no holder who has gone.
    """
    for seed, moment in enumerate(MOMENTS):
        stage = Stage(seed, habits=SWIFT)
        _, held = stage.holding(2)
        waits = [stage.locks.lock(stage.client(2), b"r")]
        other = stage.client(3)
        stage.cluster.advance(SOON / 1e6 + moment)
        if stranger:
            waits.append(stage.locks.lock(other, b"r"))
        stage.locks.unlock(held)
        exactly_one(stage, waits)
        stage.end()


@pytest.mark.parametrize("who", ["the stranger", "who waits at the owner", "the holder"])
def test_a4_a_client_dies_while_a_name_changes_hands(who: str) -> None:
    """Its end is ordered like everything else about the name, and comes after the publication: it leaves the queue,
    wherever it stands by then.
    """
    handovers = 0
    for seed in range(10):
        stage = Stage(seed)
        holder, held = stage.holding(2)
        waiter, stranger, last = stage.client(2), stage.client(3), stage.client(1)
        waits = stage.locks.lock(waiter, b"r")
        asks = stage.locks.lock(stranger, b"r")
        stage.cluster.advance(0.0004 * seed)
        handovers += form(stage, 3) is Form.HANDOVER
        stage.locks.end({"the stranger": stranger, "who waits at the owner": waiter, "the holder": holder}[who])
        after = stage.locks.lock(last, b"r")
        if who != "the holder":
            stage.cluster.advance(0.1)
            stage.locks.unlock(held)
        exactly_one(stage, [operation for operation in (waits, asks, after) if operation.handle.client.alive])
        stage.end()
    assert handovers, "some die meanwhile"


def test_b2_owner_shared_and_owner_again() -> None:
    """Each ownership uses numbers that were reserved when it began: the fences of the name grow throughout."""
    for seed in range(3):
        stage = Stage(seed)
        client, other = stage.client(2), stage.client(3)
        fences: list[int] = []

        def once(by: object, stage: Stage = stage, fences: list[int] = fences) -> None:
            handle = stage.granted(stage.locks.lock(by, b"r"))  # type: ignore[arg-type]
            fences.append(handle.fence)
            stage.locks.unlock(handle)

        for _ in range(2):
            for _ in range(3):
                once(client)
            stage.cluster.advance(0.01)
            assert form(stage) is Form.PRIVATE
            once(other)
            assert form(stage, 3) is Form.SHARED
            keeper = stage.granted(stage.locks.lock(client, b"r", NL))
            while form(stage, 2) is not Form.PRIVATE:
                once(client)
            once(client)
            stage.locks.unlock(keeper)
            assert stage.locks.lockers[2].table.names[KEY].owner == 2
        assert fences == sorted(set(fences))
        assert len(fences) > 16
        stage.end()


@pytest.mark.parametrize("seed", range(3))
def test_b3_two_claims_in_two_parts_of_a_ring(seed: int) -> None:
    """1's claim reaches nobody else, and is granted at its own delivery. 2's claim of that name, behind the hole,
    is delivered when 2 and 3 go on without 1: both count from the same position, so one fence would be given twice
    if the second were counted in the epoch of the ring in which they were sent.
    """
    stage = Stage(seed)
    stage.cluster.advance(0.5)
    clients = [stage.client(1), stage.client(2)]

    def drop(src: int, dst: int, frame: bytes) -> bool:
        return src == 1 and frame[TYPE_AT] == FrameType.DATA

    stage.cluster.network.drop = drop
    first = stage.granted(stage.locks.lock(clients[0], b"r"))
    second = stage.locks.lock(clients[1], b"r")
    stage.cluster.advance(0.02)
    assert second.ok is None
    stage.cluster.partition({1}, {2, 3})
    stage.cluster.network.drop = None
    stage.granted(second)
    assert not first.valid()
    assert second.handle.fence > first.fence
    stage.end()


def test_f1_a_circle_that_is_closed_by_a_publication() -> None:
    """2's two clients hold one name each, and want the other's: one is private, so the others cannot see who waits
    for it; the circle shows when it is published, and is resolved there and then.
    """
    for seed in range(3):
        stage = Stage(seed)
        for node in (1, 3):
            stage.holding(node, b"s", NL)
        (first, r), (second, s) = stage.holding(2, b"r"), stage.holding(3, b"s")
        there = stage.client(2)
        waits_there = stage.locks.lock(there, b"r")  # at the owner, by itself
        assert form(stage) is Form.PRIVATE
        asks_s = stage.locks.lock(first, b"s")
        stage.cluster.advance(0.05)
        assert waits_there.ok is None
        assert asks_s.ok is None
        asks_r = stage.locks.lock(second, b"r")  # makes the name change hands, and closes the circle
        stage.until(lambda: asks_s.ok is False or asks_r.ok is False)  # noqa: B023 - at once
        refused, other = (asks_s, asks_r) if asks_s.ok is False else (asks_r, asks_s)
        assert form(stage, refused.handle.client.node.id) is Form.SHARED
        assert refused.data["code"] == "deadlock"
        assert other.ok is None
        stage.locks.unlock(r if refused is asks_s else s)
        if refused is asks_s:
            stage.locks.unlock(stage.granted(waits_there))
        stage.granted(other)
        stage.end()


def test_f1_a_circle_inside_one_node_of_which_half_is_private() -> None:
    """Both wait at the owner. It need not be published for that: the owner knows all of it, or yields it (K13)."""
    for seed in range(3):
        stage = Stage(seed, habits=SWIFT)
        for node in (1, 3):
            stage.holding(node, b"s", NL)
        (first, r), (second, s) = stage.holding(2, b"r"), stage.holding(2, b"s")
        asks_s = stage.locks.lock(first, b"s")
        asks_r = stage.locks.lock(second, b"r", EX)
        stage.until(lambda: asks_s.ok is False or asks_r.ok is False)  # noqa: B023 - at once
        refused, other = (asks_s, asks_r) if asks_s.ok is False else (asks_r, asks_s)
        assert refused.data["code"] == "deadlock"
        stage.locks.unlock(r if refused is asks_s else s)
        stage.granted(other)
        stage.end()
