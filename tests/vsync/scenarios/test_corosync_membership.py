"""What broke in corosync's membership, sync, packing and groups, told to this engine (history.md, 3, 20 to 37)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import PASS, World

from vsync.engine import Reason, State
from vsync.testing import SimCluster
from vsync.types import MAX_MESSAGE, Timing
from vsync.wire import Token, encode_token


def nodes(cluster: SimCluster, node: int) -> tuple[int, ...]:
    """The members of a node's view."""
    view = cluster[node].view
    return view.nodes if view is not None else ()


def groups(cluster: SimCluster, node: int) -> list[tuple[int, int]]:
    """(node, session) of the members of group g, as a node has them."""
    status = cluster[node].core.status()["services"]["group"]
    return [(p["node"], p["session"]) for p in status.get("g", [])]


def join_group(cluster: SimCluster, node: int, session: int = 7) -> None:
    """A client of this node joins group g."""
    cluster[node].open_session(session, "client")
    cluster[node].request(session, 1, "group", "join", {"group": "g"})


@pytest.mark.parametrize("after_ms", [0, 1, 2, 3, 5, 8, 12])
def test_03_a_member_that_dies_in_the_change_that_took_it_in_leaves_no_ghost(after_ms: int) -> None:
    """corosync 2ab885ab: its join list was replayed in the next round; a ghost member for ever."""
    with SimCluster(n=3, seed=after_ms) as cluster:
        cluster.settle()
        for node in (1, 2, 3):
            join_group(cluster, node)
        cluster.run_until(lambda: len(groups(cluster, 1)) == 3, within=1)
        cluster.partition({1, 2}, {3})
        cluster.run_until(lambda: nodes(cluster, 1) == (1, 2) and nodes(cluster, 3) == (3,), within=5)
        cluster.heal()
        cluster.run_until(lambda: 3 in nodes(cluster, 1), within=5)  # it is being taken in ..
        cluster.advance(after_ms / 1000)
        cluster.crash(3)  # .. and dies
        cluster.run_until(lambda: nodes(cluster, 1) == nodes(cluster, 2) == (1, 2), within=5)
        cluster.advance(0.2)
        assert groups(cluster, 1) == groups(cluster, 2) == [(1, 7), (2, 7)]


def test_20_what_was_queued_during_a_pause_is_sent_in_the_ring_that_takes_the_node_back() -> None:
    """corosync 40263892, 92e0f9c7: it went out before the sync barrier, in pieces or from an "Unknown node"."""
    world = World(3, packet_bytes=500).together()
    world.pause(3)
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 5000)
    world.resume(3)
    world.do("submit 3 a", "large 3 3000", "submit 3 queued")
    world.until(lambda: all(world.ring(n) == [1, 2, 3] for n in (1, 2, 3)), 10_000)
    world.do("run 100")
    world.agree(1, 2, 3)
    for node in (1, 2, 3):
        assert world.data(node) == [b"a", b"x" * 3000, b"queued"]


@pytest.mark.parametrize("timers_first", [True, False])
def test_21_stale_joins_after_a_pause_do_not_shake_the_others(timers_first: bool) -> None:
    """corosync e448603f: a process pause, then old JOINs: the membership imploded. 99faa3b8: ring flapping."""
    world = World(4).together()
    world.pause(4)
    world.until(lambda: all(world.ring(n) == [1, 2, 3] for n in (1, 2, 3)), 5000)
    world.do("submit 1 a", "run 2000", "submit 2 b")
    world.resume(4, timers_first)
    world.until(lambda: all(world.ring(n) == [1, 2, 3, 4] for n in (1, 2, 3, 4)), 6000)
    world.do("run 3000")
    assert [len(v.members) for v in world.views[1]] == [4, 3, 4]
    world.agree(1, 2, 3, 4)


def test_22_a_goodbye_is_heard_although_the_hearer_was_stopped() -> None:
    """corosync 53f67a2a: after a pause everything received was flushed, the LEAVE too: a crash, they thought."""
    world = World(3).together()
    world.pause(3)
    world.do("run 1", "leave 2", "run 100")
    world.resume(3)
    began = world.now
    world.until(lambda: world.ring(1) == world.ring(3) == [1, 3], 1000)
    assert world.now - began < world.engines[1].timing.consensus
    assert Reason.LEAVE.value in world.views[3][-1].reason


def test_23_rings_merge_under_load() -> None:
    """corosync 2429481b: with unicast no foreign message was seen, so no merge while there was traffic."""
    world = World(4).together()
    world.cuts |= {(a, b) for a in (1, 2) for b in (3, 4)} | {(b, a) for a in (1, 2) for b in (3, 4)}
    world.until(lambda: world.ring(1) == [1, 2] and world.ring(3) == [3, 4], 5000)
    world.do("heal")
    began = world.now
    while not all(len(world.ring(n)) == 4 for n in (1, 2, 3, 4)):
        for node in (1, 2, 3, 4):
            world.send(node, b"load")
        world.do("run 0.5")
        assert world.now - began < 3_000_000
    world.agree(1, 2, 3, 4)


@pytest.mark.parametrize("order", [(1, 2, 3, 4), (4, 3, 2, 1), (2, 4, 1, 3)])
def test_24_rolling_restarts_keep_their_consensus(order: tuple[int, ...]) -> None:
    """corosync 9b3782e4, e45bbcc9: a compare function broke the sort; a LEAVE did not fail its sender."""
    world = World(4).together()
    for node in order:
        others = [n for n in (1, 2, 3, 4) if n != node]
        began = world.now
        world.do(f"leave {node}")
        world.until(lambda others=others: all(world.ring(n) == others for n in others), 1000)  # type: ignore[misc]
        assert world.now - began < 50_000
        world.do(f"restart {node}")
        world.until(lambda: all(len(world.ring(n)) == 4 for n in (1, 2, 3, 4)), 2000)
    world.agree(1, 2, 3, 4)


@pytest.mark.parametrize("limit", [1000, 1400, 60_000])
def test_26_sizes_at_every_border_arrive_whole_and_in_order(limit: int) -> None:
    """corosync 105f3ae9, 0ebae6b4, 9898fc87: packing and fragments corrupted messages at size borders."""
    world = World(2, packet_bytes=limit).together()
    sizes = [max(0, limit * k + d) for k in (0, 1, 2) for d in (-6, -5, -4, -1, 0, 1, 4, 5, 6)] + [0, 1, 255, 256]
    sent = [bytes([n % 256]) * size for n, size in enumerate(sizes)]
    for turn in range(2):
        for message in sent:
            world.send(1 + turn, message)
            world.send(2 - turn, b"")
    world.until(lambda: len(world.got[1]) == len(world.got[2]) == 4 * len(sent), 5000, step=1)
    for origin in (1, 2):
        assert [g.data for g in world.got[1] if g.origin == origin and g.data] == [m for m in sent if m]
    world.agree(1, 2)


@pytest.mark.parametrize("below", [0, 1, 7, 60_000])
def test_26_pairs_just_below_the_largest_message(below: int) -> None:
    """The same at 1 MiB; one byte more is refused."""
    world = World(2).together()
    for node in (1, 2):
        world.send(node, bytes([node]) * (MAX_MESSAGE - below))
        world.send(node, b"behind")
    world.until(lambda: len(world.got[1]) == len(world.got[2]) == 4, 3000, step=1)
    assert sorted(map(len, world.data(2))) == [6, 6, MAX_MESSAGE - below, MAX_MESSAGE - below]
    world.agree(1, 2)


def test_27_a_group_message_of_a_merging_node_waits_for_its_list_of_members() -> None:
    """corosync 154895df: a service's message was processed before its init at a merging node (CPG-G2, G4)."""
    with SimCluster(n=2, seed=5) as cluster:
        cluster.settle()
        pushed: dict[int, list[bytes]] = {1: [], 2: []}
        for node in (1, 2):
            join_group(cluster, node)
        cluster.run_until(lambda: len(groups(cluster, 1)) == 2, within=1)
        cluster.partition({1}, {2})
        cluster.run_until(lambda: nodes(cluster, 1) == (1,) and nodes(cluster, 2) == (2,), within=5)
        assert groups(cluster, 1) == [(1, 7)]
        for node in (1, 2):  # keep the services' pushes
            core = cluster[node].core
            def push(session: int, service: str, kind: str, data: Any, node: int = node) -> None:
                if kind == "message":
                    pushed[node].append(data["data"])

            core.push = push  # type: ignore[attr-defined]
        cluster.heal()
        engines = {n: cluster[n].core.engine for n in (1, 2)}  # type: ignore[attr-defined]
        cluster.run_until(lambda: all(e.state.value in ("commit", "recovery") for e in engines.values()), within=5)
        for node in (1, 2):
            cluster[node].request(7, 2, "group", "send", {"group": "g", "data": b"from %d" % node})
        cluster.run_until(lambda: nodes(cluster, 1) == nodes(cluster, 2) == (1, 2), within=5)
        cluster.advance(0.5)
        assert pushed[1] == pushed[2]
        assert sorted(pushed[1]) == [b"from 1", b"from 2"]


def test_28_who_was_stopped_hears_who_left_meanwhile() -> None:
    """corosync 23e17953, fbe8768f: after its own pause a node did not tell its clients who had left."""
    world = World(3).together()
    world.pause(1)
    world.do("run 1", "crash 2", "run 2000", "restart 2", "run 500")
    world.resume(1)
    world.until(lambda: all(world.ring(n) == [1, 2, 3] for n in (1, 2, 3)), 10_000)
    left = {m for view in world.views[1] for m in view.left}
    joined = {m for view in world.views[1][1:] for m in view.joined}
    assert (2, 1) in left
    assert (2, 2) in joined
    world.agree(1, 2, 3)


@pytest.mark.parametrize("count", [5, 16])
def test_29_a_cold_start_is_one_view(count: int) -> None:
    """corosync 7fb24709, knet #218: one configuration change per member, 20 nodes, a storm above."""
    world = World(count).together()
    assert all(len(world.views[n]) == 1 for n in range(1, count + 1))


def test_30_transitional_views_are_right_with_a_long_token_timeout() -> None:
    """corosync 8671945c: who had restarted within a long token timeout stood in the transitional configuration."""
    timing = Timing(token=30_000_000, token_retransmit=5_000_000, lease=60_000_000)
    world = World(3, timing=timing).together()
    world.do("run 3000", "crash 2", "run 5000", "restart 2")
    world.until(lambda: all(world.ring(n) == [1, 2, 3] for n in (1, 2, 3)), 20_000)
    assert [m.node for m in world.transitional[1][-1].members] == [1, 3]
    assert [m.node for m in world.transitional[2][-1].members] == [2]


@pytest.mark.parametrize("node", [1, 2, 3])
def test_32_an_idle_ring_wakes_up_at_once(node: int) -> None:
    """corosync 2872347a, da51942e: the hold was not cancelled for callbacks: latency of a whole hold."""
    world = World(3).together()
    world.do("run 1000")
    assert world.engines[1].ring.held is not None
    began = world.now
    world.do(f"submit {node} now")
    world.until(lambda: all(world.got[n] for n in (1, 2, 3)), 100)
    assert world.now - began < 3_000


@pytest.mark.parametrize("state", [State.GATHER, State.COMMIT, State.RECOVERY, State.OPERATIONAL])
@pytest.mark.parametrize("kind", ["DATA", "TOKEN", "JOIN", "COMMIT", "PROBE", "CANCEL"])
def test_33_old_frames_of_every_kind_are_harmless_in_every_state(kind: str, state: State) -> None:
    """corosync c1392556, 7839990f and others: what a state did not expect. Here it gets all that was ever sent."""
    world = World(3)
    old: list[bytes] = []

    def keep(what: str, source: int, target: int, frame: bytes) -> str:
        if what == kind and target == 2 and len(old) < 200:
            old.append(frame)
        return PASS

    world.rule = keep
    world.together()
    world.do("submit 3 a b", "run 500", "submit 2 c", "cut 1 2", "cut 3 2", "run 3000", "heal", "run 3000")
    assert old or kind == "CANCEL"
    world.rule = lambda *_: PASS
    before = world.data(2)
    world.do("crash 3")
    world.until(lambda: world.state(2) is state, 5000, step=0.05)
    for frame in old:
        world.frame(2, frame)
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 10_000)
    world.do("submit 1 d", "run 100")
    assert world.data(2) == [*before, b"d"]
    world.agree(1, 2)


def test_37_an_impossible_token_aborts_nobody() -> None:
    """corosync #371, #4: assert(range < 16384) ended the daemon."""
    world = World(2).together()
    engine = world.engines[2]
    token = Token(engine.ring.id, token_seq=engine.ring.token_seq + 1, seq=1 << 40, aru=0)
    world.frame(2, encode_token(world.engines[1]._headers[2], token))
    assert world.noted("bad_frame", 2)
    world.do("submit 1 a", "run 50")
    assert world.data(2) == [b"a"]


def test_37_a_node_alone_does_not_leave_itself() -> None:
    """corosync #384: after the virtual machine had been moved a single node "joined and left itself"."""
    world = World(1).together()
    world.pause(1)
    world.do("run 60000")
    world.resume(1, timers_first=True)
    world.do("submit 1 a", "run 1000")
    assert len(world.views[1]) == 1
    assert world.data(1) == [b"a"]


def test_37_a_reconnected_node_finds_consensus() -> None:
    """corosync #35, pcs #209: asserts on the commit token's index and on the consensus list at a reconnect."""
    world = World(3).together()
    for _ in range(5):
        world.do("cut 1 2", "cut 1 3", "run 1234", "heal", "run 77")
    world.rule = lambda *_: PASS
    world.until(lambda: all(world.ring(n) == [1, 2, 3] for n in (1, 2, 3)), 10_000)
    world.agree(1, 2, 3)
