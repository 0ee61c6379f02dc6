"""What reviews and the simulator have found in this engine, one story each."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from world import LOSE, PASS, World

from vsync.engine import State


def test_the_first_message_of_a_ring_overtakes_what_waited_for_it() -> None:
    """Who installed sent its waiting messages in the same token visit, before the layers above saw the view."""
    world = World(2).together()
    world.do("cut 1 2", "run 3000", "heal")
    world.at_view = lambda node, view: world.engines[node].submit(b"first %d" % node, world.now, urgent=True)
    world.until(lambda: world.state(1) is State.COMMIT, 3000)
    for node in (1, 2):
        world.send(node, b"waited %d" % node)
    world.until(lambda: len(world.got[1]) == len(world.got[2]) == 4, 1000)
    assert world.data(1) == world.data(2)
    for node in (1, 2):
        own = [g.data for g in world.got[1] if g.origin == node]
        assert own == [b"first %d" % node, b"waited %d" % node]


def test_a_timer_that_an_earlier_one_stopped_or_moved_does_not_fire() -> None:
    """After a pause JOIN and CONSENSUS were due at once: the first began a new attempt, the second judged it."""
    world = World(3).together()
    world.do("crash 3")
    world.until(lambda: world.state(1) is State.GATHER and world.state(2) is State.GATHER, 2000)
    engine = world.engines[1]
    world.until(lambda: engine.gathering.intervals == 3, 1000)  # one more, and node 3 is failed: nobody hears it
    engine.fire(world.now + 600_000)
    assert {m.node for m in engine.gathering.failed} == {3}


def test_a_join_from_before_the_ring_is_not_believed_in_gather() -> None:
    """A JOIN that a member sent before it committed to the last ring tells of failures long outlived."""
    world = World(3)
    world.do("start 1 2", "run 1000", "start 3")
    old: list[bytes] = []

    def keep(kind: str, source: int, target: int, frame: bytes) -> str:
        if kind == "JOIN" and (source, target) == (2, 1):
            old.append(frame)
        return PASS

    world.rule = keep
    world.do("run 1000", "cut 2 3", "cut 1 3")  # node 3 is failed ..
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 5000)
    stale = old[-1]
    world.do("heal")  # .. and comes back
    world.until(lambda: world.ring(1) == world.ring(2) == world.ring(3) == [1, 2, 3], 5000)
    world.engines[1].reform("test", world.now)
    world._carry_out(1)
    world.frame(1, stale)
    assert not world.engines[1].gathering.failed
    world.until(lambda: world.ring(1) == world.ring(2) == world.ring(3) == [1, 2, 3], 200)
    world.agree(1, 2, 3)


def test_who_would_refuse_another_does_not_invite_it() -> None:
    """A node that backed off from another went on probing it: the other broke up its ring in vain."""
    world = World(3).together()
    world.do("cut1 1 2", "run 12000")
    before = len(world.views[1])
    world.do("run 12000")
    assert 1 <= len(world.views[1]) - before <= 3  # one attempt in each back-off of 4 s


def test_who_is_known_by_its_probes_only_is_backed_off_from_too() -> None:
    """Seed 116, 2 nodes: 2 hears nothing of 1, so it never answers; each of its probes cost 1 a ring of its own."""
    world = World(2).together()
    world.do("cut1 1 2", "run 12000")
    before = len(world.views[1])
    world.do("run 12000")
    assert 1 <= len(world.views[1]) - before <= 3  # one attempt in each back-off of 4 s
    world.do("heal")
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 5000)


def test_a_member_that_loses_large_packets_does_not_break_up_the_ring_every_second() -> None:
    """It joined well, stalled at the first large packet, was failed, and was back with the next probe."""
    world = World(3).together()
    world.rule = lambda kind, source, target, frame: (
        LOSE if kind == "DATA" and 3 in (source, target) and len(frame) > 1000 else PASS
    )
    before = len(world.views[1])
    for _ in range(30):
        world.send(1, b"x" * 1200)
        world.do("run 1000")
    assert 4 <= len(world.views[1]) - before <= 16  # out and in again: 1.2, 2.4 and then every 4 s
    world.rule = lambda *_: PASS
    world.until(lambda: world.ring(1) == world.ring(3) == [1, 2, 3], 5000)
    world.do("run 40000")
    assert world.engines[1].backoff  # it is not looked at before the next view ..
    world.do("cut 1 3", "cut 2 3", "run 6000", "heal")
    world.until(lambda: world.ring(1) == world.ring(3) == [1, 2, 3], 5000)
    assert not world.engines[1].backoff  # .. and is forgotten by then


def test_who_lacks_something_has_not_reached_the_end_of_recovery() -> None:
    """Seed 11289, 3 nodes: the token's aru was another's, and had been raised by it; whose own was lower took the
    recovery for complete, promised to deliver a companion's messages, and later delivered some behind a hole.
    """
    world = World(2).together()
    world.rule = lambda kind, source, target, frame: (
        LOSE if kind == "DATA" and source == 2 and len(frame) > 1000 else PASS
    )
    world.send(2, b"x" * 1200)
    world.do("run 5")
    world.send(2, b"small")
    world.until(lambda: 2 in world.engines[1].ring.packets, 1000)
    promised: list[bool] = []

    def look(kind: str, source: int, target: int, frame: bytes) -> str | float:
        """Node 2 hears the first packets of recovery late: then the low aru of the token is its own."""
        promised.append(bool(world.engines[1].ring.obliged))
        if kind == "DATA" and source == 2 and len(frame) > 1000:
            return LOSE
        return 0.5 if kind == "DATA" and source == 1 else PASS

    world.rule = look
    world.engines[1].reform("test", world.now)
    world.do("run 60")
    assert world.state(1) is State.RECOVERY
    assert not any(promised)


def test_the_transitional_view_stands_at_one_place() -> None:
    """Node 2 knew that a SAFE message was stable, node 3 did not: one delivered it before it, one after."""
    world = World(3).together()
    two = world.engines[2].ring
    world.rule = lambda kind, source, *_: LOSE if kind == "TOKEN" and source == 2 and two.stable else PASS
    world.send(1, b"precious", safe=True)
    world.until(lambda: bool(world.got[2]), 1000)
    world.rule = lambda kind, source, target, frame: PASS
    world.do("crash 1")
    world.until(lambda: world.ring(2) == world.ring(3) == [2, 3], 5000)
    assert world.data(3) == [b"precious"]
    assert not world.got[3][0].transitional
    world.agree(2, 3)


def test_a_packet_stays_below_its_limit_however_small_its_messages_are() -> None:
    """Only payloads were counted: thousands of tiny messages made a frame that no datagram can carry."""
    world = World(2).together()
    sizes: list[int] = []

    def measure(kind: str, source: int, target: int, frame: bytes) -> str:
        if kind == "DATA":
            sizes.append(len(frame))
        return PASS

    world.rule = measure
    for _ in range(4000):
        world.engines[1].queue.append((0, b"x" * 15))
    world.send(1, b"")
    world.do("run 500")
    assert len(world.got[2]) == 4001
    assert max(sizes) <= world.engines[1].config.packet_bytes + 100


def test_a_token_is_accepted_from_the_member_before_only() -> None:
    """Misrouted – the successor's address leads back to its sender – a token looked as if it had gone round."""
    world = World(3).together()
    world.do("submit 1 a")
    sent: list[bytes] = []

    def keep(kind: str, source: int, target: int, frame: bytes) -> str:
        if kind == "TOKEN" and source == 1:
            sent.append(frame)
            return LOSE
        return PASS

    world.rule = keep
    world.until(lambda: bool(sent), 1000)
    accepted = world.engines[1].ring.visits
    world.frame(1, sent[-1])
    assert world.engines[1].ring.visits == accepted
