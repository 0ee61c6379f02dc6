"""A node that joins: the ring goes on until it can take the newcomer in at once.

A node that has just started reaches others before they reach it: their connections to it were lost with its last
life, and are made anew after a pause that grows (up to 200 ms with ZeroMQ). A ring that broke up at the newcomer's
first JOIN stood still until then: 220 ms at each join, measured on real daemons.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from world import LOSE, PASS, World

from vsync.engine import State

ROUND_MS = 5.0  #: far more than the hops of a change; far less than any timer


def newcomer(reached_after_ms: float, blind_to: tuple[int, ...] = (1, 2)) -> tuple[World, list[tuple[float, str]]]:
    """Nodes 1 and 2 are a ring and send all the time; node 3 starts and hears ``blind_to`` only some time later.
    The world, and when (in ms) the members were in which state.
    """
    world = World(3)
    world.do("start 1 2")
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 3000)
    world.do("run 20")
    hears_at = world.now + int(reached_after_ms * 1000)
    states: list[tuple[float, str]] = []

    def rule(kind: str, source: int, target: int, frame: bytes) -> str:
        return LOSE if target == 3 and source in blind_to and world.now < hears_at else PASS

    world.rule = rule
    began = world.now
    world.do("start 3")

    def together() -> bool:
        states.append(((world.now - began) / 1000, world.state(1).value))
        return world.ring(1) == world.ring(2) == world.ring(3) == [1, 2, 3]

    world.until(together, 3000)
    return world, states


def standstill_ms(states: list[tuple[float, str]]) -> float:
    """How long node 1 was in no working ring."""
    times = [t for t, state in states if state != State.OPERATIONAL.value]
    return max(times) - min(times) if times else 0.0


def test_the_ring_goes_on_until_the_newcomer_hears_all_of_it() -> None:
    world, states = newcomer(reached_after_ms=170)
    assert standstill_ms(states) < ROUND_MS
    assert states[-1][0] > 170
    assert [view.members for view in world.views[1]][-1] == world.views[3][-1].members
    assert len(world.views[1]) == 2
    world.agree(1, 2, 3)


def test_also_if_it_hears_one_member_long_before_the_other() -> None:
    world, states = newcomer(reached_after_ms=300, blind_to=(2,))
    assert standstill_ms(states) < ROUND_MS
    assert states[-1][0] > 300
    world.agree(1, 2, 3)


def test_who_is_heard_at_once_is_taken_in_at_once() -> None:
    world, states = newcomer(reached_after_ms=0)
    assert states[-1][0] < ROUND_MS
    world.agree(1, 2, 3)


def test_messages_are_ordered_while_a_newcomer_is_waited_for() -> None:
    """They belong to the old ring: all its members deliver them there, the newcomer none of them."""
    world, _ = newcomer(reached_after_ms=0)
    world.do("crash 3", "run 2000")
    assert world.ring(1) == world.ring(2) == [1, 2]
    old = world.views[1][-1].id
    world.rule = lambda kind, source, target, frame: LOSE if target == 3 and source == 2 else PASS
    world.do("restart 3", "run 5", "submit 1 early", "run 20", "submit 2 later", "run 20")
    for node in (1, 2):
        assert [(g.data, g.ring) for g in world.got[node]][-2:] == [(b"early", old), (b"later", old)]
    world.rule = lambda kind, source, target, frame: PASS
    world.until(lambda: world.ring(1) == world.ring(2) == world.ring(3) == [1, 2, 3], 3000)
    assert not [g for g in world.got[3] if g.data in (b"early", b"later")]
    world.agree(1, 2, 3)


def test_who_never_hears_some_of_a_ring_forms_its_own_and_is_dealt_with() -> None:
    """A link that works one way only: the ring does not wait for ever, nor does it break up at each JOIN."""
    world = World(3)
    world.do("start 1 2")
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 3000)
    world.rule = lambda kind, source, target, frame: LOSE if (source, target) == (1, 3) else PASS
    world.do("start 3")
    world.until(lambda: world.ring(3) == [3], 2 * world.engines[1].timing.consensus / 1000)
    assert len(world.views[1]) == 1
    assert world.state(1) is State.OPERATIONAL
    world.until(lambda: world.state(1) is State.GATHER, 1000)
    world.rule = lambda kind, source, target, frame: PASS
    world.until(lambda: world.ring(1) == world.ring(2) == world.ring(3) == [1, 2, 3], 6000)
    world.agree(1, 2, 3)


def test_a_lone_node_goes_on_too() -> None:
    world = World(2)
    world.do("start 1")
    world.until(lambda: world.ring(1) == [1], 3000)
    world.rule = lambda kind, source, target, frame: LOSE if target == 2 else PASS
    world.do("start 2", "run 150")
    assert world.ring(1) == [1]
    world.rule = lambda kind, source, target, frame: PASS
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], world.engines[1].timing.join * 2 / 1000)
    world.agree(1, 2)


def test_the_next_life_of_a_member_is_not_waited_for() -> None:
    """Its former life is dead: there is no ring to go on with."""
    world = World(3).together()
    world.do("crash 3", "restart 3")
    world.until(lambda: world.ring(1) == world.ring(2) == world.ring(3) == [1, 2, 3], ROUND_MS)
    world.agree(1, 2, 3)
