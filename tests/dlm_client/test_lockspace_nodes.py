"""``dlm.Lockspace`` on three nodes: tests that other lock managers are tested with, and what a loss looks like."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import dlm
from dlm import Flag, Lksb, Lockspace, Mode, Outcome, Status
from tests.dlm_client.three import Three
from tests.vsync.support import until
from vsync.types import Timing

WAIT_S = 30
TURNS = 8  #: of each node


@pytest.fixture
def three() -> Iterator[Three]:
    with Three.started(Timing()) as three:  # unhurried
        yield three


@pytest.fixture
def spaces(three: Three) -> Iterator[dict[str, Lockspace]]:
    spaces = {name: Lockspace(node) for name, node in three.nodes.items()}
    yield spaces
    for space in spaces.values():
        space.close()


def number(lksb: Lksb) -> int:
    return int.from_bytes(lksb.value, "big")


def test_alternate_lvb(spaces: dict[str, Lockspace]) -> None:
    """The nodes in turn, NL to EX to NL on one lock each, see what the turn before wrote (L4, S17, S18, S24)."""
    seen: list[tuple[int, str]] = []

    def run(name: str, me: int) -> None:
        space = spaces[name]
        lkid = space.lock_wait(Mode.NL, "turns", Flag.VALBLK).lkid
        done = 0
        while done < TURNS:
            up = space.lock_wait(Mode.EX, flags=Flag.CONVERT | Flag.VALBLK, lkid=lkid)
            assert (up.status, up.flags) == (Status.OK, Outcome(0))
            turn = number(up)
            write = turn + 1 if turn % 3 == me else turn
            if write != turn:
                seen.append((turn, name))
                done += 1
            down = space.lock_wait(
                Mode.NL, flags=Flag.CONVERT | Flag.VALBLK, lkid=lkid, value=write.to_bytes(8, "big")
            )
            assert down.status is Status.OK

    threads = [threading.Thread(target=run, args=pair) for pair in (("a", 0), ("b", 1), ("c", 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert seen == [(turn, "abc"[turn % 3]) for turn in range(3 * TURNS)]


def test_ping(spaces: dict[str, Lockspace]) -> None:
    """The nodes pass EX around by blocking callbacks alone, and count in the value block."""
    total = 30
    done = threading.Event()
    counts: list[int] = []
    fences: list[int] = []

    class Player:
        def __init__(self, space: Lockspace) -> None:
            self.space = space
            self.value = b""
            space.lock(Mode.EX, "ball", Flag.VALBLK, ast=self.ast, bast=self.bast)

        def ast(self, lksb: Lksb) -> None:
            if lksb.status is not Status.OK or lksb.mode is not Mode.EX:
                return
            counts.append(number(lksb) + 1)
            fences.append(lksb.fence)
            self.value = counts[-1].to_bytes(8, "big")
            if counts[-1] >= total:
                done.set()

        def bast(self, lksb: Lksb, mode: Mode) -> None:
            if done.is_set():
                return
            self.space.unlock(lksb.lkid, Flag.VALBLK, self.value)
            self.space.lock(Mode.EX, "ball", Flag.VALBLK, ast=self.ast, bast=self.bast)

    keeper = spaces["a"].lock_wait(Mode.NL, "ball")
    players = [Player(space) for space in spaces.values()]
    assert done.wait(WAIT_S), counts
    assert counts[:total] == list(range(1, total + 1))
    assert fences == sorted(set(fences))
    assert keeper.status is Status.OK
    assert len(players) == 3


def test_the_owner_of_ex_is_cut_off(three: Three, spaces: dict[str, Lockspace]) -> None:
    """L7, K10: it is told of the loss; who waited gets the lock, and a value block that is not valid."""
    lost: list[tuple[int, str]] = []
    with Lockspace(three.nodes["c"], on_lost=lambda lkid, reason: lost.append((lkid, reason))) as cut:
        spaces["a"].lock_wait(Mode.NL, "disk")
        held = cut.lock_wait(Mode.EX, "disk", Flag.VALBLK)
        idle = cut.lock_wait(Mode.PR, "other")
        waits = spaces["b"].lock(Mode.EX, "disk", Flag.VALBLK)
        three.cut_off(3)
        assert waits.wait(WAIT_S) is Status.OK
        assert waits.flags == Outcome.VALNOTVALID
        assert waits.fence > held.fence
        with pytest.raises(dlm.LockLost):
            cut.check(held.lkid)
        refused = cut.lock_wait(Mode.EX, "third", Flag.NOQUEUE)
        assert refused.status is Status.ENOTCONN
        assert isinstance(refused.error, dlm.NoQuorum)
        assert cut.unlock_wait(idle.lkid).status is Status.EUNLOCK
        spaces["b"].check(waits.lkid)
    until(lambda: not three.nodes["c"].status()["view"]["primary"], "the minority")
