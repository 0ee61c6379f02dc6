"""SAFE delivery (EVS-E22 to E24), through changes that succeed and recoveries that fail half way."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import LOSE, PASS, World

from vsync.engine import State
from vsync.errors import Backpressure


def test_nobody_delivers_before_everybody_has_it() -> None:
    """E22: at the moment of the first delivery every member holds the packet."""
    world = World(4).together()
    world.rule = lambda kind, source, target, frame: 2.5 if kind == "DATA" and target == 4 else PASS
    for node in (2, 3):
        world.send(node, b"from %d" % node, safe=True)
    while not any(world.got.values()):
        world.do("run 0.05")
    assert all(world.engines[n].ring.aru >= 1 for n in (1, 2, 3, 4))
    world.until(lambda: all(len(world.got[n]) == 2 for n in (1, 2, 3, 4)), 100)


def test_what_stands_behind_a_safe_message_waits_for_it() -> None:
    """E24: the barrier holds for agreed messages, too, until after the transitional view."""
    world = World(3).together()
    world.rule = lambda kind, source, target, frame: LOSE if kind == "DATA" and target == 3 else PASS
    world.send(1, b"safe", safe=True)
    world.send(1, b"agreed")
    world.do("run 100")
    assert world.got[1] == world.got[2] == []
    world.do("crash 3")
    world.rule = lambda *_: PASS
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 6000)
    for node in (1, 2):
        assert [(g.data, g.transitional) for g in world.got[node]] == [(b"safe", True), (b"agreed", True)]
    world.agree(1, 2)


@pytest.mark.parametrize("safe", [False, True])
def test_a_promise_made_in_a_recovery_that_failed_is_kept(safe: bool) -> None:
    """E23: node 1 installed with node 3 and delivered; node 3 reached the end only, and left in another way.

    The message stands behind a hole and its sender does not come along: without the promise it would be dropped.
    """
    world = World(4).together()
    world.rule = lambda kind, source, target, frame: LOSE if kind == "DATA" and source == 4 else PASS
    world.send(4, b"the hole")
    world.until(lambda: world.engines[4].ring.high == 1, 50)
    world.send(1, b"promised", safe=safe)
    world.until(lambda: all(2 in world.engines[n].ring.packets for n in (1, 2, 3)), 50)
    world.do("crash 4")
    world.cuts |= {(2, 1), (1, 2), (2, 3), (3, 2)}
    world.rule = lambda kind, source, target, frame: (
        LOSE if kind == "TOKEN" and source == 1 and world.state(1) is State.OPERATIONAL else PASS
    )
    world.until(lambda: world.ring(1) == [1, 3], 6000)
    assert (world.data(1), world.state(3)) == ([b"promised"], State.RECOVERY)
    world.do("crash 1")
    world.cuts.clear()
    world.rule = lambda *_: PASS
    world.until(lambda: world.ring(2) == world.ring(3) == [2, 3], 10_000)
    assert world.data(3) == [b"promised"]
    world.agree(2, 3)


def test_without_a_promise_nothing_behind_a_hole_is_delivered_from_outside() -> None:
    """E15: the same without the failed recovery; whoever goes on cannot know what else its sender had sent."""
    world = World(4).together()
    world.rule = lambda kind, source, target, frame: LOSE if kind == "DATA" and source == 4 else PASS
    world.send(4, b"the hole")
    world.until(lambda: world.engines[4].ring.high == 1, 50)
    world.send(1, b"behind it")
    world.until(lambda: all(2 in world.engines[n].ring.packets for n in (1, 2, 3)), 50)
    world.do("crash 4", "crash 1")
    world.rule = lambda *_: PASS
    world.until(lambda: world.ring(2) == world.ring(3) == [2, 3], 6000)
    assert world.got[2] == world.got[3] == []
    world.agree(2, 3)


def test_back_pressure_reaches_the_submitter_and_ends() -> None:
    """A full queue refuses; what was taken in is delivered, once, in order; large ones are bounded earlier."""
    world = World(2, send_queue=100, packet_bytes=100).together()
    taken = 0
    with pytest.raises(Backpressure, match="100 messages wait"):
        while True:
            world.engines[2].submit(b"%d" % taken, world.now)
            taken += 1
    assert taken >= 100
    with pytest.raises(Backpressure, match="100 messages wait"):
        world.engines[2].submit(b"x" * 1000, world.now)
    world._carry_out(2)
    world.until(lambda: len(world.got[1]) == taken, 2000)
    assert world.data(1) == [b"%d" % n for n in range(taken)]
    for _ in range(64):
        world.engines[2].submit(b"x" * 1000, world.now)
    with pytest.raises(Backpressure, match="too many to take in a large one"):
        for _ in range(10):
            world.engines[2].submit(b"x" * 1000, world.now)
    world.engines[2].submit(b"a small one", world.now)


def test_flow_control_starves_nobody_and_bounds_a_rotation() -> None:
    """All send as fast as they can: each gets its turns, and no rotation carries more than the window."""
    world = World(3, packet_bytes=50).together()
    for node in (1, 2, 3):
        for number in range(600):
            world.engines[node].submit(b"%d" % number * 12, world.now)
        world._carry_out(node)
    rotation: list[int] = []

    def rule(kind: str, source: int, target: int, frame: bytes) -> str:
        if kind == "TOKEN" and source == 1:
            rotation.append(world.engines[1].ring.high)
        return PASS

    world.rule = rule
    world.do("run 10")
    assert max(b - a for a, b in pairwise(rotation)) <= 64 + 3
    shares = [sum(g.origin == node for g in world.got[1]) for node in (1, 2, 3)]
    assert min(shares) > 0.5 * max(shares)
    world.until(lambda: all(len(world.got[n]) == 1800 for n in (1, 2, 3)), 3000)
    world.agree(1, 2, 3)
