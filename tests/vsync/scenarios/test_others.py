"""What broke in Spread, JGroups, knet and Derecho, told to this engine (history.md)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import LOSE, PASS, World

from vsync.engine import State
from vsync.types import RingId
from vsync.wire import Token, encode_token
from vsync.wire_forming import Commit, encode_commit


def split(world: World, *sides: tuple[int, ...]) -> None:
    """Cut all links between the sides and wait until each is a ring."""
    world.cuts |= {(a, b) for s in sides for t in sides if s != t for a in s for b in t}
    world.until(lambda: all(world.ring(n) == list(s) for s in sides for n in s), 10_000)


class TestSpread:
    def test_a_foreign_rings_token_does_not_lower_the_aru(self) -> None:
        """A token of another ring lowered the aru: duplicates."""
        world = World(3).together()
        world.do("submit 1 a b c", "run 20")
        ring = world.engines[2].ring
        known = (ring.aru, ring.stable, ring.visits)
        token = Token(RingId(ring.id.seq + 1, 1), token_seq=ring.token_seq + 1, seq=0, aru=0)
        world.frame(2, encode_token(world.engines[1]._headers[2], token))
        assert (ring.aru, ring.stable, ring.visits) == known

    def test_a_commit_token_of_another_membership_is_not_accepted(self) -> None:
        """The commit set contained stale members."""
        world = World(3).together()
        engine = world.engines[2]
        engine.reform("test", world.now)
        world._carry_out(2)
        members = tuple(world.engines[n].me for n in (1, 2))
        forged = Commit(RingId(engine.ring_seq + 5, 1), 1, members, [None, None])
        world.frame(2, encode_commit(world.engines[1]._headers[4], forged))
        assert world.state(2) is State.GATHER

    def test_a_change_ends_although_every_token_is_slow(self) -> None:
        """Endless rounds of EVS recovery: the number of visits does not depend on how much is missing."""
        world = World(3).together()
        world.rule = lambda kind, source, target, frame: 40 if kind in ("TOKEN", "COMMIT") else PASS
        world.do("submit 1 a b c", "crash 3")
        world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 6000)
        assert world.count(1, "recovery_entered") == 2  # the first ring, and this one


class TestJGroups:
    @pytest.mark.parametrize("chosen", ["agreed", "safe"])
    def test_nothing_is_delivered_twice_when_the_coordinator_fails(self, chosen: str) -> None:
        """JGRP-1458: SEQUENCER delivered twice after failover; 1449, 1452: forwarded messages were dropped."""
        world = World(3).together()
        for turn in range(40):
            for node in (2, 3):
                world.send(node, b"%d.%d" % (node, turn), safe=chosen == "safe")
            world.do("run 0.2")
            if turn == 20:
                world.do("crash 1")
        world.until(lambda: world.ring(2) == world.ring(3) == [2, 3] and len(world.got[2]) == 80, 6000)
        world.do("run 100")
        assert world.data(2) == world.data(3)
        for node in (2, 3):
            own = [g.data for g in world.got[2] if g.origin == node]
            assert own == [b"%d.%d" % (node, turn) for turn in range(40)]

    def test_the_order_holds_in_a_merge(self) -> None:
        """JGRP-1468, 1484, 1495: order broken in a merge, a message before its view."""
        world = World(4).together()
        split(world, (1, 2), (3, 4))
        world.do("heal")
        while not all(len(world.ring(n)) == 4 for n in (1, 2, 3, 4)):
            for node in (1, 2, 3, 4):
                world.send(node, b"%d at %d" % (node, world.now))
            world.do("run 1")
        world.do("run 200")
        last = world.views[1][-1].id
        in_merged = [[g.data for g in world.got[n] if g.ring == last] for n in (1, 2, 3, 4)]
        assert in_merged[0]
        assert all(data == in_merged[0] for data in in_merged)
        world.agree(1, 2, 3, 4)

    def test_many_rings_become_one_in_one_view(self) -> None:
        """JGRP-1876, 1910: wrong subgroups, repeated MergeViews."""
        world = World(6).together()
        split(world, *((n,) for n in range(1, 7)))
        before = len(world.views[1])
        world.do("heal")
        world.until(lambda: all(len(world.ring(n)) == 6 for n in range(1, 7)), 6000)
        assert len(world.views[1]) - before <= 2

    def test_overlapping_partitions_end_in_cells(self) -> None:
        """JGRP-1031, 940: A:{A,B}, B:{A,B}, C:{A,B,C}; no pair of nodes may disagree about who is together."""
        world = World(3).together()
        world.do("cut 1 3", "run 20000")
        for a in (1, 2, 3):
            for b in world.ring(a):
                assert world.ring(b) in (world.ring(a), [])
        world.do("heal")
        world.until(lambda: all(world.ring(n) == [1, 2, 3] for n in (1, 2, 3)), 10_000)
        world.agree(1, 2, 3)

    @pytest.mark.parametrize("victim", [1, 3])
    @pytest.mark.parametrize("state", [State.GATHER, State.COMMIT, State.RECOVERY])
    def test_a_merge_survives_the_death_of_its_leaders(self, victim: int, state: State) -> None:
        """JGRP-1426, 1682, 1735: stuck for ever after the merge leader died; nobody could join any more."""
        world = World(4).together()
        split(world, (1, 2), (3, 4))
        world.do("heal")
        world.until(lambda: world.state(victim) is state, 5000, step=0.05)
        world.do(f"crash {victim}")
        rest = [n for n in (1, 2, 3, 4) if n != victim]
        world.until(lambda: all(world.ring(n) == rest for n in rest), 8000)
        world.do(f"restart {victim}")
        world.until(lambda: all(len(world.ring(n)) == 4 for n in (1, 2, 3, 4)), 8000)
        world.agree(1, 2, 3, 4)

    @pytest.mark.parametrize("leavers", [(1, 2), (1, 4), (1, 2, 3), (2, 3)])
    def test_several_leave_at_once(self, leavers: tuple[int, ...]) -> None:
        """JGRP-2277, 2293: concurrent leaves of the coordinator and others."""
        world = World(4).together()
        began = world.now
        for node in leavers:
            world.do(f"leave {node}")
        rest = [n for n in (1, 2, 3, 4) if n not in leavers]
        world.until(lambda: all(world.ring(n) == rest for n in rest), 2000)
        assert world.now - began < 200_000
        world.agree(*rest)

    def test_a_frozen_coordinator_is_left_behind(self) -> None:
        """JGRP-2262: frozen, not dead: it answered nothing, and nobody took over."""
        world = World(3).together()
        world.pause(1)
        world.until(lambda: world.ring(2) == world.ring(3) == [2, 3], 3000)
        world.resume(1)
        world.until(lambda: all(world.ring(n) == [1, 2, 3] for n in (1, 2, 3)), 6000)
        world.agree(1, 2, 3)

    def test_a_coordinator_that_joins_and_leaves_at_once(self) -> None:
        """JGRP-1724."""
        world = World(3)
        world.do("start 2 3", "run 1500", "start 1")
        world.until(lambda: world.state(1) is not State.GATHER, 2000, step=0.05)
        world.do("leave 1")
        world.until(lambda: world.ring(2) == world.ring(3) == [2, 3], 3000)
        world.agree(2, 3)

    def test_a_full_window_does_not_keep_a_view_from_coming(self) -> None:
        """JGRP-2875, 2880: the view was multicast like a message and blocked on the full window."""
        world = World(3, packet_bytes=50, send_queue=3000).together()
        world.rule = lambda kind, source, target, frame: LOSE if kind == "DATA" and target == 3 else PASS
        for number in range(2900):
            world.engines[1].submit(b"%d" % number * 12, world.now)
        world._carry_out(1)
        world.do("run 300", "leave 3")
        world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 500, step=1)
        world.until(lambda: len(world.got[2]) == 2900, 10_000, step=1)
        world.agree(1, 2)

    def test_views_grow_at_every_node(self) -> None:
        """JGRP-3036 (#1048): views passed up out of order since 2011."""
        world = World(4).together()
        for turn in range(6):
            a = turn % 4 + 1
            world.do(f"crash {a}", "run 700", f"restart {a}", "run 900")
        for node in (1, 2, 3, 4):
            ids = [view.id for view in world.views[node]]
            assert ids == sorted(set(ids))


class TestKnet:
    @pytest.mark.parametrize("gap_ms", [0, 1, 10, 100, 900])
    def test_a_peer_that_restarts_at_once_is_heard(self, gap_ms: int) -> None:
        """62271c5c, 28ddb87a: its new packets were refused by the window of its former life (#506: no way back)."""
        world = World(3).together()
        world.do("submit 2 " + " ".join(f"m{i}" for i in range(60)), "run 20")
        world.do("crash 2", f"run {gap_ms}", "restart 2")
        world.until(lambda: all(world.ring(n) == [1, 2, 3] for n in (1, 2, 3)), 4000)
        world.do("submit 2 again", "run 50")
        assert world.data(1)[-1] == world.data(3)[-1] == b"again"

    def test_half_a_message_of_a_dead_sender_is_not_kept(self) -> None:
        """dcaefd40, 234755d5, 3fb0166e: buffers of messages that never became whole were kept, or mixed."""
        world = World(2, packet_bytes=200).together()
        for _ in range(5):
            world.do("large 2 100000", "run 0.7", "crash 2")
            world.until(lambda: world.ring(1) == [1], 5000)
            assert not world.engines[1].ring.assembling
            world.do("restart 2")
            world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 5000)
        world.do("submit 2 whole", "run 50")
        assert world.data(1) == [b"whole"]


class TestDerecho:
    def test_a_leader_that_is_not_accepted_by_all_leads_nobody(self) -> None:
        """#92: a new leader took over before everybody had accepted it."""
        world = World(3).together()
        world.rule = lambda kind, source, target, frame: LOSE if kind == "COMMIT" and target == 3 else PASS
        world.do("crash 1", "run 3000")
        led = [[member.node for member in view.members] for n in (2, 3) for view in world.views[n][1:]]
        assert [2, 3] not in led
        world.rule = lambda *_: PASS
        world.until(lambda: world.ring(2) == world.ring(3) == [2, 3], 3000)
        world.agree(2, 3)

    def test_two_leaders_proposals_are_not_mixed(self) -> None:
        """#126: deltas of two leaders were blended into one view."""
        world = World(4).together()
        world.do("cut 1 2", "crash 4", "run 15000", "heal")
        world.until(lambda: all(world.ring(n) == [1, 2, 3] for n in (1, 2, 3)), 10_000)
        for a in (1, 2, 3):
            for b in (1, 2, 3):
                at_b = {view.id: view.members for view in world.views[b]}
                assert all(at_b.get(view.id, view.members) == view.members for view in world.views[a])
        world.agree(1, 2, 3)

    @pytest.mark.parametrize("count", [8, 16])
    def test_a_herd_of_joiners_wedges_nobody(self, count: int) -> None:
        """#213: many joins at once wedged a shard."""
        world = World(count)
        world.do("start 1 2 3", "run 1500")
        for node in range(4, count + 1):
            world.do(f"start {node}", "run 3")
        world.until(lambda: all(len(world.ring(n)) == count for n in range(1, count + 1)), 5000, step=1)
        assert len(world.views[1]) <= count - 2  # fewer than one a joiner
        world.agree(*range(1, count + 1))
