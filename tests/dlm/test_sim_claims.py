"""What the kernel's lock manager cannot do: a failure costs no message and changes no order (locks.md §8, 1)."""

from __future__ import annotations

import pytest

from dlm.modes import CR, EX, NL, PR, PW
from dlm.names import Form
from dlm.testing.clients import Operation
from tests.dlm.test_sim import Stage

KEY = b"\0r"


def sent(stage: Stage) -> int:
    """Messages that all lock managers together have handed to the ring."""
    return sum(locker.status()["sent"] for locker in stage.locks.lockers.values())


def until_all_have_seen(stage: Stage, survivors: tuple[int, ...]) -> None:
    nodes = [stage.cluster[node] for node in survivors]
    stage.until(lambda: all(node.view is not None and node.view.nodes == survivors for node in nodes))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("what", ["waits", "converts", "waits for a publication", "has a value block to hear of"])
def test_no_message_between_a_view_and_the_first_grant(what: str, seed: int) -> None:
    """Among those that go on; what stands in the way of the answer is the dead node's lease alone."""
    stage = Stage(seed)
    if what == "has a value block to hear of":
        stage.holding(2, mode=NL)
    stage.holding(3, mode=PR if what == "converts" else EX)
    if what == "converts":
        _, handle = stage.holding(1, mode=PR)
        operation = stage.locks.convert(handle, EX)
    else:
        operation = stage.locks.lock(stage.client(1), b"r", EX, valblk=True)
    if what == "waits for a publication":
        table = stage.locks.lockers[1].table
        stage.until(lambda: table.names[KEY].form is Form.HANDOVER)
    else:
        stage.cluster.advance(0.5)
    assert operation.ok is None
    stage.cluster.crash(3)
    before = sent(stage)
    stage.granted(operation)
    assert sent(stage) == before
    if what == "has a value block to hear of":
        assert not operation.data["value_valid"]
    stage.end()


def granted_now(stage: Stage, waiting: list[Operation]) -> Operation:
    stage.until(lambda: any(operation.ok for operation in waiting))
    found = [operation for operation in waiting if operation.ok]
    assert len(found) == 1, "they exclude each other"
    return found[0]


@pytest.mark.parametrize("dead", ["the holder", "a waiter in front", "a waiter in between", "a bystander"])
def test_the_order_of_those_who_wait_outlives_a_failure(dead: str) -> None:
    """The kernel rebuilds its queues from those who are left, in whatever order they report."""
    for seed in range(3):
        stage = Stage(seed)
        places = {"the holder": (3, 1, 2, 1, 2, 2, 1), "a bystander": (1, 2, 1, 2, 2, 1)}
        order = places.get(dead, (1, 3, 2, 1, 2) if dead == "a waiter in front" else (1, 2, 3, 1, 2, 3, 1))
        waiting = []
        for node in order:
            waiting.append(stage.locks.lock(stage.client(node), b"r"))
            stage.cluster.advance(0.3)
        stage.cluster.crash(3)
        until_all_have_seen(stage, (1, 2))
        left = [operation for operation in waiting if operation.handle.client.node.id != 3]
        seen = []
        while left:
            first = granted_now(stage, left)
            seen.append(first)
            left.remove(first)
            stage.locks.unlock(first.handle)
        assert seen == [operation for operation in waiting if operation in seen]
        assert len(seen) == sum(node != 3 for node in order)
        stage.end()


def test_converters_keep_their_order_and_go_before_those_who_wait() -> None:
    for seed in range(3):
        stage = Stage(seed)
        stage.holding(3, mode=CR)
        handles = [stage.holding(node, mode=NL)[1] for node in (1, 2, 1)]
        waits = stage.locks.lock(stage.client(2), b"r", PW)
        assert stage.answered(waits).ok
        ups = []
        for handle in handles:
            ups.append(stage.locks.convert(handle, EX))
            stage.cluster.advance(0.3)
        behind = stage.locks.lock(stage.client(1), b"r", EX)
        stage.cluster.advance(0.3)
        stage.locks.unlock(waits.handle)
        stage.cluster.crash(3)
        seen = []
        everybody = [*ups, behind]
        while everybody:
            first = granted_now(stage, everybody)
            seen.append(first)
            everybody.remove(first)
            stage.locks.unlock(first.handle)
        assert seen == [*ups, behind]
        stage.end()
