"""The seed scenario (locks.md §2.6): A asks about a resource, and B drops out, and A does not know yet.

Once B owns the name and is in A's way; once A owns it, and B has asked for it at the same moment as A.

B meets its fate before, between and after every step of A's operation: the runs differ only in how many events
of the simulated world come before it. Each has exactly one outcome, A's caller is answered once, and all survivors
have the same table (the rules of ``dlm.testing.rules`` watch all the time).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest

from dlm.modes import CW, EX, NL, NONE, PR
from dlm.testing.clients import Handle, Operation
from dlm.testing.workload import LockOptions, LockPlugin
from vsync.testing import SimCluster
from vsync.testing.options import scaled

A, B = 1, 2
IDLE = LockOptions(clients=0, names=1, interval=1_000_000, own=0.0, end=0.0, late=1, modes=(EX,))
STEPS = (0, 1, 2, 3, 4, 5, 6, 8, 11, 16)  # events before B's fate; A is answered after 1 to 10 if B lives


Fate = Callable[["Run"], None]
Operate = Callable[["Run", int, Fate], None]


class Run:
    """One cell of the matrix at one moment. ``mine``: A owns the name."""

    def __init__(self, seed: int, mine: bool) -> None:
        self.mine = mine
        self.locks = LockPlugin(seed, IDLE)
        self.cluster = SimCluster(n=3, seed=seed, timing=scaled(0.2), plugins=[self.locks])
        self.cluster.__enter__()
        self.cluster.settle()
        self.asker, self.owner = (self.locks.connect(self.cluster[node]) for node in (A, B))

    def begin(self, theirs: int, own: int = NONE) -> Handle | None:
        """B holds ``theirs``, then A ``own`` (its handle). If A owns the name: A holds, and B has asked for EX."""
        if self.mine:
            self.granted(self.locks.lock(self.asker, b"r", NL))
            handle = self.granted(self.locks.lock(self.asker, b"r", own)) if own != NONE else None
            self.locks.lock(self.owner, b"r", EX)
            return handle
        self.granted(self.locks.lock(self.owner, b"r", theirs))
        return self.granted(self.locks.lock(self.asker, b"r", own)) if own != NONE else None

    def fate(self, steps: int, fate: Fate) -> None:
        """What happens to B after so many events. If it only asked for the name, its client then gives up."""
        for _ in range(steps):
            self.cluster.scheduler.step(self.cluster.scheduler.now + 10**8)
        fate(self)
        if self.mine and self.owner.connected and self.owner.alive:
            self.locks.end(self.owner)

    def granted(self, operation: Operation) -> Handle:
        self.answered(operation)
        assert operation.ok, operation.data
        return operation.handle

    def answered(self, operation: Operation) -> None:
        self.cluster.run_until(lambda: operation.ok is not None, 10.0, "the answer to A")

    def end(self) -> None:
        """B comes back, all is released: equal tables, no ghost."""
        self.cluster.heal()
        self.cluster.run_until(lambda: not self.cluster[B].leaving, 5.0, "the end of B's leave")
        for node in self.cluster.nodes.values():
            node.start()
        self.locks.settle(self.cluster)
        self.cluster.settle()
        self.locks.finish(self.cluster)


def lost_with_its_node(operation: Operation, fate: Fate) -> bool:
    """Where A itself was outvoted, its handle may be lost; its caller is told so (C12)."""
    alone = fate in (is_cut_off_with_the_majority, keeps_the_majority)
    return alone and operation.ok is False and operation.data["code"] in ("lost", "unknown")


# -- A's operation: what stands before it, the operation, and what it must come to ---------------


def lock(run: Run, steps: int, fate: Fate) -> None:
    """B is in the way, A wants EX: A gets it in the end."""
    run.begin(EX)
    operation = run.locks.lock(run.asker, b"r")
    run.fate(steps, fate)
    run.granted(operation)


def trylock(run: Run, steps: int, fate: Fate) -> None:
    """B is in the way, A does not want to wait: refused if B's lock counts, else granted."""
    run.begin(EX)
    operation = run.locks.lock(run.asker, b"r", noqueue=True)
    run.fate(steps, fate)
    run.answered(operation)
    assert operation.ok or operation.data["code"] in ("again", "no_quorum")


def lock_beside(run: Run, steps: int, fate: Fate) -> None:
    """B has the name but holds nothing in A's way."""
    run.begin(NL)
    operation = run.locks.lock(run.asker, b"r")
    run.fate(steps, fate)
    run.granted(operation)


def convert(run: Run, steps: int, fate: Fate, new: int = EX) -> None:
    """Both hold PR; A wants a mode that B's excludes, and gets it once B is out."""
    handle = run.begin(PR, PR)
    assert handle is not None
    fence = handle.fence
    operation = run.locks.convert(handle, new)
    run.fate(steps, fate)
    run.answered(operation)
    if not lost_with_its_node(operation, fate):
        assert run.granted(operation).fence > fence


def convert_middle(run: Run, steps: int, fate: Fate) -> None:
    """PR to CW is neither up nor down; the kernel cannot know afterwards whether it had been granted."""
    convert(run, steps, fate, CW)


def convert_down(run: Run, steps: int, fate: Fate) -> None:
    """A makes its EX an NL while B waits: it succeeds, and can be reversed once B is out."""
    handle = run.begin(NL, EX)
    assert handle is not None
    run.locks.lock(run.owner, b"r")
    operation = run.locks.convert(handle, NL)
    run.fate(steps, fate)
    run.answered(operation)
    if lost_with_its_node(operation, fate):
        return
    run.granted(operation)
    again = run.locks.convert(handle, EX)
    run.answered(again)
    assert again.ok or lost_with_its_node(again, fate)


def unlock(run: Run, steps: int, fate: Fate) -> None:
    """A gives back what it holds beside B; the name is free for anybody afterwards."""
    handle = run.begin(PR, PR)
    assert handle is not None
    operation = run.locks.unlock(handle)
    run.fate(steps, fate)
    run.answered(operation)
    assert operation.ok or lost_with_its_node(operation, fate)
    run.granted(run.locks.lock(run.asker, b"r"))


def unlock_with_value(run: Run, steps: int, fate: Fate) -> None:
    """A writes the value block with its release; C, who keeps it, reads that or learns that it is not valid."""
    keeper = run.locks.connect(run.cluster[3])
    handle = run.begin(NL, EX)
    assert handle is not None
    run.locks.lock(keeper, b"r", NL, expedite=True)
    operation = run.locks.unlock(handle, valblk=True)
    run.fate(steps, fate)
    run.answered(operation)
    assert operation.ok or lost_with_its_node(operation, fate)
    read = run.locks.lock(keeper, b"r", PR, valblk=True)
    run.granted(read)
    assert not read.data["value_valid"] or read.data["value"] in (handle.fence.to_bytes(8, "big"), b"")


def cancel(run: Run, steps: int, fate: Fate) -> None:
    """A waits behind B and withdraws: withdrawn or granted, and the two answers agree."""
    run.begin(EX)
    if run.mine:
        run.cluster.advance(0.1)
    waiting = run.locks.lock(run.asker, b"r")
    run.cluster.advance(0.1)
    operation = run.locks.cancel(waiting.handle)
    run.fate(steps, fate)
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


def keeps_the_majority(run: Run) -> None:
    """A alone drops out and comes back; B goes on with the others until its client ends."""
    run.cluster.partition({A}, {B, 3})
    run.cluster.advance(1.0)
    run.cluster.heal()
    run.cluster.advance(1.0)
    run.locks.end(run.owner)


def leaves(run: Run) -> None:
    run.cluster[B].leave()


def leaves_and_is_back(run: Run) -> None:
    """In order, and a new process as soon as the old one has gone."""
    run.cluster[B].leave()
    run.cluster.run_until(lambda: not run.cluster[B].leaving, 5.0, "the end of B's leave")
    run.cluster[B].start()


def restarts_unnoticed(run: Run) -> None:
    """A new process before A could notice that the old one is gone."""
    run.cluster.crash(B)
    run.cluster.restart(B)


def is_stopped_for_long(run: Run) -> None:
    """It wakes up when others have gone on, with its old messages still to send."""
    run.cluster[B].pause()
    run.cluster.advance(1.5)
    run.cluster[B].resume()


OPERATIONS = [lock, trylock, lock_beside, convert, convert_middle, convert_down, unlock, unlock_with_value, cancel]
FATES = [
    dies,
    dies_in_the_midst,
    is_cut_off,
    is_cut_off_with_the_majority,
    keeps_the_majority,
    leaves,
    leaves_and_is_back,
    restarts_unnoticed,
    is_stopped_for_long,
]


CELLS = list(itertools.product(OPERATIONS, FATES, (True, False)))


def cell(operation: Operate, fate: Fate, mine: bool, moments: Sequence[int]) -> None:
    """One cell of the matrix at these moments."""
    for steps in moments:
        run = Run(steps, mine)
        operation(run, steps, fate)
        run.end()


def named(cells: Sequence[tuple[Operate, Fate, bool]]) -> list[str]:
    return [f"{operation.__name__}-{fate.__name__}-{'A' if mine else 'B'}" for operation, fate, mine in cells]


@pytest.mark.parametrize("number", range(len(CELLS)), ids=named(CELLS))
def test_owner_drops_out(number: int) -> None:
    """Every cell at three moments, others for other cells; all of them in the long selection."""
    cell(*CELLS[number], STEPS[number % 3 :: 3][:3])


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(CELLS)), ids=named(CELLS))
def test_owner_drops_out_at_every_moment(number: int) -> None:
    cell(*CELLS[number], STEPS)
