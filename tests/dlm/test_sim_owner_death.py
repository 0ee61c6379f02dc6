"""The seed scenario (locks.md §2.6): A asks about a resource that B owns, and B drops out, and A does not know yet.

B meets its fate before, between and after every step of A's operation: the runs differ only in how many events
of the simulated world come before it. Each has exactly one outcome, A's caller is answered once, and all survivors
have the same table (the rules of ``dlm.testing.rules`` watch all the time).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dlm.modes import EX, NL, PR
from dlm.testing.clients import Handle, Operation
from dlm.testing.workload import LockOptions, LockPlugin
from vsync.testing import SimCluster
from vsync.testing.options import scaled

A, B = 1, 2
IDLE = LockOptions(clients=0, names=1, interval=1_000_000, own=0.0, end=0.0, late=1, modes=(EX,))
STEPS = (0, 1, 2, 3, 4, 5, 6, 8, 11, 16)  # events before B's fate; A is answered after 1 to 10 if B lives


class Run:
    """One cell of the matrix at one moment."""

    def __init__(self, seed: int) -> None:
        self.locks = LockPlugin(seed, IDLE)
        self.cluster = SimCluster(n=3, seed=seed, timing=scaled(0.2), plugins=[self.locks])
        self.cluster.__enter__()
        self.cluster.settle()
        self.asker, self.owner = (self.locks.connect(self.cluster[node]) for node in (A, B))

    def granted(self, operation: Operation) -> Handle:
        self.answered(operation)
        assert operation.ok, operation.data
        return operation.handle

    def answered(self, operation: Operation) -> None:
        self.cluster.run_until(lambda: operation.ok is not None, 10.0, "the answer to A")

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.cluster.scheduler.step(self.cluster.scheduler.now + 10**8)

    def end(self) -> None:
        """B comes back, all is released: equal tables, no ghost."""
        self.cluster.heal()
        self.cluster.run_until(lambda: not self.cluster[B].leaving, 5.0, "the end of B's leave")
        for node in self.cluster.nodes.values():
            node.start()
        self.locks.settle(self.cluster)
        self.cluster.settle()
        self.locks.finish(self.cluster)


def lost_with_its_node(operation: Operation, fate: Callable[[Run], None]) -> bool:
    """Where A itself was outvoted, its handle may be lost; its caller is told so (C12)."""
    return fate is is_cut_off_with_the_majority and operation.ok is False and operation.data["code"] == "lost"


# -- A's operation: what stands before it, the operation, and what it must come to ---------------


def lock(run: Run, steps: int, fate: Callable[[Run], None]) -> None:
    """B holds EX, A wants it: A gets it in the end, and with a higher fence."""
    held = run.granted(run.locks.lock(run.owner, b"r"))
    operation = run.locks.lock(run.asker, b"r")
    run.steps(steps)
    fate(run)
    assert run.granted(operation).fence > held.fence


def trylock(run: Run, steps: int, fate: Callable[[Run], None]) -> None:
    """B holds EX, A does not want to wait: refused if B's lock counts, else granted."""
    run.granted(run.locks.lock(run.owner, b"r"))
    operation = run.locks.lock(run.asker, b"r", noqueue=True)
    run.steps(steps)
    fate(run)
    run.answered(operation)
    assert operation.ok or operation.data["code"] in ("again", "no_quorum")


def lock_beside(run: Run, steps: int, fate: Callable[[Run], None]) -> None:
    """B owns the name but holds nothing in A's way."""
    run.granted(run.locks.lock(run.owner, b"r", NL))
    operation = run.locks.lock(run.asker, b"r")
    run.steps(steps)
    fate(run)
    run.granted(operation)


def convert(run: Run, steps: int, fate: Callable[[Run], None]) -> None:
    """Both hold PR; A wants EX, and gets it once B is out."""
    run.granted(run.locks.lock(run.owner, b"r", PR))
    handle = run.granted(run.locks.lock(run.asker, b"r", PR))
    fence = handle.fence
    operation = run.locks.convert(handle, EX)
    run.steps(steps)
    fate(run)
    run.answered(operation)
    if lost_with_its_node(operation, fate):
        return
    assert run.granted(operation).fence > fence


def convert_down(run: Run, steps: int, fate: Callable[[Run], None]) -> None:
    """A makes its EX an NL while B waits: it succeeds, and B's request dies with B."""
    run.granted(run.locks.lock(run.owner, b"r", NL))
    handle = run.granted(run.locks.lock(run.asker, b"r"))
    run.locks.lock(run.owner, b"r")
    operation = run.locks.convert(handle, NL)
    run.steps(steps)
    fate(run)
    run.answered(operation)
    if lost_with_its_node(operation, fate):
        return
    run.granted(operation)
    again = run.locks.convert(handle, EX)
    run.answered(again)
    assert again.ok or lost_with_its_node(again, fate)


def unlock(run: Run, steps: int, fate: Callable[[Run], None]) -> None:
    """A gives back what it holds beside B; the name is free for anybody afterwards."""
    run.granted(run.locks.lock(run.owner, b"r", PR))
    handle = run.granted(run.locks.lock(run.asker, b"r", PR))
    operation = run.locks.unlock(handle)
    run.steps(steps)
    fate(run)
    run.answered(operation)
    assert operation.ok
    run.granted(run.locks.lock(run.asker, b"r"))


def unlock_with_value(run: Run, steps: int, fate: Callable[[Run], None]) -> None:
    """A writes the value block with its release; C reads that or learns that the block is not valid."""
    run.granted(run.locks.lock(run.owner, b"r", NL))
    handle = run.granted(run.locks.lock(run.asker, b"r"))
    operation = run.locks.unlock(handle, valblk=True, value=b"written")
    run.steps(steps)
    fate(run)
    run.answered(operation)
    assert operation.ok
    read = run.locks.lock(run.locks.connect(run.cluster[3]), b"r", PR)
    run.granted(read)
    assert not read.data["value_valid"] or read.data["value"].rstrip(b"\0") in (b"written", b"")


def cancel(run: Run, steps: int, fate: Callable[[Run], None]) -> None:
    """A waits behind B and withdraws: withdrawn or granted, and the two answers agree."""
    run.granted(run.locks.lock(run.owner, b"r"))
    waiting = run.locks.lock(run.asker, b"r")
    run.cluster.advance(0.1)
    operation = run.locks.cancel(waiting.handle)
    run.steps(steps)
    fate(run)
    run.answered(operation)
    run.answered(waiting)
    assert operation.ok
    assert operation.data["canceled"] == (not waiting.ok)
    if not waiting.ok:
        assert waiting.data["code"] == "canceled"


# -- B's fate -----------------------------------------------------------------------------------


def dies(run: Run) -> None:
    run.cluster.crash(B)


def dies_in_the_midst(run: Run) -> None:
    """Between two of the outputs of one input, or around a write to its disk."""
    run.cluster[B].crash_soon()


def is_cut_off(run: Run) -> None:
    run.cluster.partition({A, 3}, {B})


def is_cut_off_with_the_majority(run: Run) -> None:
    """A is the one that drops out, and comes back before B is missed by anybody."""
    run.cluster.partition({A}, {B, 3})
    run.cluster.advance(1.0)
    run.cluster.crash(B)
    run.cluster.heal()


def leaves(run: Run) -> None:
    run.cluster[B].leave()


def restarts_unnoticed(run: Run) -> None:
    """A new process before A could notice that the old one is gone."""
    run.cluster.crash(B)
    run.cluster.restart(B)


def is_stopped_for_long(run: Run) -> None:
    """It wakes up when others have gone on, with its old messages still to send."""
    run.cluster[B].pause()
    run.cluster.advance(1.5)
    run.cluster[B].resume()


OPERATIONS = [lock, trylock, lock_beside, convert, convert_down, unlock, unlock_with_value, cancel]
FATES = [
    dies,
    dies_in_the_midst,
    is_cut_off,
    is_cut_off_with_the_majority,
    leaves,
    restarts_unnoticed,
    is_stopped_for_long,
]


@pytest.mark.parametrize("fate", FATES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
def test_owner_drops_out(
    operation: Callable[[Run, int, Callable[[Run], None]], None], fate: Callable[[Run], None]
) -> None:
    for steps in STEPS:
        run = Run(seed=steps)
        operation(run, steps, fate)
        run.end()
