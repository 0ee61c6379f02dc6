"""What broke in corosync's token handling, commit and recovery, told to this engine (history.md, 1 to 19)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import LOSE, PASS, TWICE, World

from vsync.engine import State
from vsync.wire import PacketFlag, Token, decode_token, encode_token


def lossy_recovery(world: World, times: int) -> None:
    """The first so many recoveries break: their regular tokens are lost."""
    broken: set[object] = set()

    def rule(kind: str, source: int, target: int, frame: bytes) -> str:
        forming = world.engines[source].forming
        if kind != "TOKEN" or forming is None or world.state(source) is not State.RECOVERY:
            return PASS
        if len(broken) < times:
            broken.add(forming.ring.id)
        return LOSE if forming.ring.id in broken else PASS

    world.rule = rule


def test_01_large_messages_survive_a_member_that_restarts_again_and_again() -> None:
    """corosync e7a82370: fragment buffers were switched before the recovered messages were delivered."""
    world = World(3, packet_bytes=500).together()
    sent = []
    for turn in range(6):
        for node in (1, 2):
            for part in range(4):
                sent.append(b"%d.%d.%d " % (node, turn, part) * 700)
                world.send(node, sent[-1])
        world.do("run 0.7", "crash 3", "run 30", "restart 3", "run 1")
    world.until(lambda: len(world.got[1]) == len(world.got[2]) == len(sent), 20_000)
    assert sorted(world.data(1)) == sorted(sent)
    world.until(lambda: world.ring(1) == world.ring(2) == world.ring(3) == [1, 2, 3], 5000)
    world.agree(1, 2, 3)


def test_02_the_representative_restarts_within_the_token_timeout() -> None:
    """corosync 3675dace: it loaded the ring id it had used, and others sent it what they had long freed."""
    world = World(3).together()
    world.do("submit 2 " + " ".join(f"m{i}" for i in range(50)), "run 20")
    before = world.views[2][-1]
    world.do("crash 1", "restart 1")
    world.until(lambda: world.ring(1) == world.ring(2) == world.ring(3) == [1, 2, 3], 3000)
    world.agree(1, 2, 3)
    after = world.views[2][-1]
    assert after.id.seq > before.id.seq
    assert [m.node for m in after.left] == [m.node for m in after.joined] == [1]
    world.do("submit 1 new", "run 50")
    assert world.data(2)[-1] == world.data(1)[-1] == b"new"


def test_04_two_halves_merge_although_a_third_died_in_the_partition() -> None:
    """corosync cfbb021e: an irrelevant JOIN in OPERATIONAL was not ignored; A and B looped for ever."""
    world = World(3).together()
    world.do("cut 1 2", "cut 1 3", "run 3000", "crash 3", "run 100", "heal")
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 6000)
    views = len(world.views[1])
    world.do("run 5000")
    assert len(world.views[1]) == views
    world.agree(1, 2)


def test_04_a_join_from_a_former_attempt_does_not_break_a_ring() -> None:
    """corosync cfbb021e again, frame by frame."""
    world = World(3)
    joins: list[bytes] = []

    def keep(kind: str, source: int, target: int, frame: bytes) -> str:
        if kind == "JOIN" and target == 1:
            joins.append(frame)
        return PASS

    world.rule = keep
    world.together()
    for frame in joins:
        world.frame(1, frame)
    assert world.state(1) is State.OPERATIONAL


def test_05_a_duplicate_commit_token_does_not_start_the_first_token_again() -> None:
    """corosync 4ee84c51: every packet came twice (two links), and the token was lost in recovery."""
    world = World(3)
    first: list[int] = []

    def twice(kind: str, source: int, target: int, frame: bytes) -> str:
        if kind == "TOKEN" and decode_token(frame).token_seq == 2:
            first.append(source)
        return TWICE

    world.rule = twice
    world.together()
    assert len(first) == 1
    world.do("submit 1 a b c", "run 50")
    assert world.data(2) == world.data(3) == [b"a", b"b", b"c"]
    world.agree(1, 2, 3)


def test_06_four_of_five_stop_in_recovery_and_restart() -> None:
    """corosync d99fba72: the restarted ones made the same ring id, and a stale token was accepted in GATHER."""
    world = World(5)
    world.do("start 1 2 3 4 5")
    world.until(lambda: all(world.state(n) is State.RECOVERY for n in range(1, 6)), 2000, step=0.05)
    forming = world.engines[5].forming
    assert forming is not None
    given_up = forming.ring.id
    world.do("crash 1", "crash 2", "crash 3", "crash 4", "run 1", "restart 1 2 3 4")
    world.until(lambda: all(len(world.ring(n)) == 5 for n in range(1, 6)), 5000)
    world.agree(1, 2, 3, 4, 5)
    assert world.views[5][-1].id.seq > given_up.seq


def test_06_a_stale_token_is_not_accepted_in_gather() -> None:
    """corosync d99fba72, frame by frame."""
    world = World(3).together()
    engine = world.engines[2]
    engine.reform("test", world.now)
    world._carry_out(2)
    assert world.state(2) is State.GATHER
    token = Token(engine.ring.id, token_seq=engine.ring.token_seq + 1, seq=engine.ring.high, aru=engine.ring.aru)
    visits = engine.ring.visits
    world.frame(2, encode_token(world.engines[1]._headers[2], token))
    assert (engine.ring.visits, world.state(2)) == (visits, State.GATHER)
    assert world.count(2, "rx_token_dropped")


def test_07_an_old_commit_token_is_not_accepted_after_a_failed_recovery() -> None:
    """corosync 6aa47fde: the ring id was restored when recovery failed, so the old token fitted again."""
    world = World(3).together()
    commits: list[tuple[int, bytes]] = []

    def keep(kind: str, source: int, target: int, frame: bytes) -> str:
        if kind == "COMMIT":
            commits.append((target, frame))
        return LOSE if kind == "TOKEN" else PASS

    world.rule = keep
    world.do("crash 3")
    world.until(lambda: world.state(2) is State.RECOVERY, 4000)
    old = list(commits)
    assert world.engines[2].forming is not None
    given_up = world.engines[2].forming.ring.id
    world.until(lambda: world.state(2) is State.GATHER, 4000)
    for _ in range(2):
        for target, frame in old:
            if target == 2:
                world.frame(2, frame)
    assert world.state(2) is State.GATHER
    assert world.engines[2].ring_seq >= given_up.seq
    world.rule = lambda *_: PASS
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 6000)
    world.agree(1, 2)


@pytest.mark.parametrize("times", [1, 2, 5])
def test_08_09_recoveries_may_fail_any_number_of_times(times: int) -> None:
    """corosync ef05817c, 107ef199: the old ring's state was saved at each commit, or not restored; losses.

    Node 3's last messages reached node 2 only; nodes 1 and 2 lose the token of each recovery.
    """
    world = World(3).together()
    old = world.views[1][-1].id
    world.rule = lambda kind, source, target, frame: LOSE if kind == "DATA" and (source, target) == (3, 1) else PASS
    world.do("submit 3 a b c")
    world.until(lambda: world.data(2) == [b"a", b"b", b"c"], 100)
    world.do("crash 3")
    lossy_recovery(world, times)
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 10_000 + times * 3000)
    assert world.count(1, "recovery_entered") >= times
    assert world.data(1) == world.data(2) == [b"a", b"b", b"c"]
    assert {entry.old_ring for entry in world.views[1][-1].entries.values()} == {old}
    world.agree(1, 2)


def test_10_nothing_is_sent_again_once_recovery_is_over() -> None:
    """corosync 7d5e5889: recovery's messages were freed lazily, and "Retransmit: #" never ended."""
    world = World(3).together()
    world.rule = lambda kind, source, target, frame: LOSE if kind == "DATA" and (source, target) == (3, 1) else PASS
    world.do("submit 3 a b c", "run 0.5", "crash 3")
    world.rule = lambda *_: PASS
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 6000)
    world.do("run 100", "frames", "run 5000")
    assert world.sent["DATA"] == world.count(1, "mcast_retx") + world.count(2, "mcast_retx") == 0
    assert not world.engines[1].ring.packets
    assert not world.engines[2].ring.packets


def test_11_recovery_of_thousands_of_packets_with_holes() -> None:
    """corosync adf8d6db, 80d621e2, a3d98f16, 2ec4ddb0: lock-up after 206 messages, crashes and losses at gaps."""
    world = World(3, packet_bytes=80, send_queue=10_000).together()
    turn = {1: 0, 2: 1}
    world.rule = lambda kind, source, target, frame: (
        LOSE if kind == "DATA" and source == 3 and frame[-1] % 3 == turn.get(target) else PASS
    )
    for number in range(1500):
        world.engines[3].submit(b"%04d" % number + b"." * 60 + bytes([97 + number % 3]), world.now)
    world._carry_out(3)
    world.until(lambda: world.engines[3].ring.high > 900, 3000, step=1)
    world.do("crash 3")
    world.rule = lambda *_: PASS
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 10_000)
    assert world.data(1) == world.data(2)
    assert len(world.data(1)) > 900
    world.agree(1, 2)


@pytest.mark.parametrize("holders", [(1,), (2,), (3,), (1, 3), (2, 3), (1, 2)])
def test_12_13_whoever_has_the_packets_gives_them_to_all(holders: tuple[int, ...]) -> None:
    """corosync b4367e60, be835fb3, 6df910fb: recovery ended early or never, or skipped what was due."""
    world = World(4, packet_bytes=100).together()
    world.rule = lambda kind, source, target, frame: (
        LOSE if kind == "DATA" and source == 4 and target not in holders else PASS
    )
    for number in range(40):
        world.engines[4].submit(b"%d" % number * 40, world.now)
    world._carry_out(4)
    world.until(lambda: world.engines[holders[0]].ring.high >= 15, 500)
    world.do("crash 4")
    world.rule = lambda *_: PASS
    world.until(lambda: all(world.ring(n) == [1, 2, 3] for n in (1, 2, 3)), 6000)
    assert world.data(1) == world.data(2) == world.data(3)
    assert len(world.data(1)) >= 15
    world.agree(1, 2, 3)


def test_12_13_each_has_what_another_misses() -> None:
    """corosync b4367e60, 6df910fb: every queue has to be sent, and each packet once only."""
    world = World(4, packet_bytes=100).together()
    seen = dict.fromkeys(range(1, 5), 0)

    def rule(kind: str, source: int, target: int, frame: bytes) -> str:
        if kind != "DATA" or source != 4:
            return PASS
        seen[target] += 1
        return PASS if seen[target] % 3 == target - 1 else LOSE

    world.rule = rule
    for number in range(15):
        world.engines[4].submit(b"%d" % number * 50, world.now)
    world._carry_out(4)
    world.until(lambda: all(world.engines[n].ring.high >= 10 for n in (1, 2, 3)), 500)
    world.do("crash 4")
    copies: list[int] = []

    def count(kind: str, source: int, target: int, frame: bytes) -> str:
        if kind == "DATA":
            copies.append(source)
        return PASS

    world.rule = count
    world.until(lambda: all(world.ring(n) == [1, 2, 3] for n in (1, 2, 3)), 6000)
    assert world.data(1) == world.data(2) == world.data(3)
    assert len(world.data(1)) >= 10
    assert set(copies) == {1, 2, 3}


def test_14_a_hole_before_a_thousand_packets_is_filled_at_once() -> None:
    """corosync e48ddf99: the aru did not move over more than 1024 packets; FAILED TO RECEIVE followed."""
    world = World(2, packet_bytes=20, send_queue=5000).together()
    world.rule = lambda kind, source, target, frame: (
        LOSE if kind == "DATA" and frame.endswith(b"the first") else PASS
    )
    world.send(1, b"the first")
    for number in range(1500):
        world.engines[1].submit(b"number %d" % number, world.now)
    world._carry_out(1)
    world.until(lambda: world.engines[2].ring.high > 1400, 3000, step=1)
    assert world.engines[2].ring.aru == 0
    world.rule = lambda *_: PASS
    world.until(lambda: len(world.got[2]) == 1501, 1000)
    assert len(world.views[1]) == 1


def test_15_duplicate_tokens_do_not_count_as_visits() -> None:
    """corosync 79c60fd0: they updated the aru history: false failures to receive, packets freed too early."""
    world = World(2).together()
    world.rule = lambda kind, source, target, frame: (
        TWICE if kind == "TOKEN" else LOSE if kind == "DATA" and world.count(1, "mcast_retx") < 20 else PASS
    )
    world.do("submit 1 a")
    copies = []
    while not world.got[2]:
        world.do("run 0.1")
        copies.append((world.engines[1].ring.released, world.engines[2].ring.aru))
    assert all(released <= aru for released, aru in copies)
    for node in (1, 2):
        assert world.count(node, "rx_token_dropped") > 10
        assert world.engines[node].ring.visits <= world.count(node, "orf_token_rx") + 3


def test_16_18_a_member_that_gets_tokens_but_no_data_is_failed_and_named() -> None:
    """corosync d4db2ea5, 22471e11: it listed itself as failed; #622, f135b680: 450 s to notice, or a flood."""
    world = World(3).together()
    world.rule = lambda kind, source, target, frame: (
        LOSE if target == 3 and kind == "DATA" and len(frame) > 1000 else PASS
    )
    world.do("large 1 5000")
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 5000)
    assert len(world.data(1)) == len(world.data(2)) == 1
    assert "stopped receiving (node 3)" in world.views[1][-1].reason
    assert world.engines[3].me not in world.engines[3].gathering.failed
    assert world.sent["DATA"] < 20_000
    world.rule = lambda *_: PASS
    world.until(lambda: all(world.ring(n) == [1, 2, 3] for n in (1, 2, 3)), 10_000)
    world.agree(1, 2, 3)


def test_17_a_duplicate_token_does_not_put_off_the_end_of_a_lost_ring() -> None:
    """corosync b8878d2e: the neighbour's retransmissions reset the token timer."""
    world = World(3).together()
    world.do("submit 1 a")
    kept: list[bytes] = []

    def keep(kind: str, source: int, target: int, frame: bytes) -> str:
        if kind == "TOKEN" and (source, target) == (1, 2):
            kept.append(frame)
        return PASS

    world.rule = keep
    world.until(lambda: bool(kept) and world.engines[2].ring.token_seq == decode_token(kept[-1]).token_seq, 100)
    last = world.engines[2].ring.last_accepted
    world.rule = lambda *_: LOSE
    timing = world.engines[2].timing
    while world.state(2) is State.OPERATIONAL:
        world.frame(2, kept[-1])
        world.do("run 50")
        assert world.now - last <= timing.token + 60_000


def test_19_data_that_comes_behind_its_token_is_not_asked_for() -> None:
    """corosync 6646a864: switches delay multicast behind unicast; each packet was retransmitted for nothing."""
    world = World(3).together()
    world.rule = lambda kind, source, target, frame: 0.25 if kind == "DATA" else PASS
    for turn in range(20):
        world.do(f"submit {turn % 3 + 1} a b c", "run 1")
    world.until(lambda: all(len(world.got[n]) == 60 for n in (1, 2, 3)), 1000)
    assert sum(world.count(n, "mcast_retx") for n in (1, 2, 3)) == 0


def test_25_an_encapsulated_packet_stays_within_the_frame_limit() -> None:
    """corosync ee8b8993: a full packet wrapped up for recovery was larger than the maximum."""
    world = World(3, packet_bytes=1000).together()
    frames: list[bytes] = []

    def rule(kind: str, source: int, target: int, frame: bytes) -> str:
        if kind == "DATA" and world.state(source) is State.RECOVERY:
            frames.append(frame)
        return LOSE if kind == "DATA" and (source, target) == (3, 1) else PASS

    world.rule = rule
    for _ in range(8):
        world.engines[3].submit(b"x" * 1000, world.now)
    world._carry_out(3)
    world.until(lambda: len(world.got[2]) >= 8, 100)
    world.do("crash 3")
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 6000)
    assert len(world.got[1]) == len(world.got[2]) == 8
    assert frames
    assert max(map(len, frames)) <= 1000 + 100


def test_a_packet_that_comes_while_committed_is_not_kept() -> None:
    """Spread: a packet that arrived after FORM1 was still listed as a hole. The window is frozen instead."""
    world = World(3).together()
    data: list[bytes] = []

    def keep(kind: str, source: int, target: int, frame: bytes) -> str:
        if kind == "DATA" and target == 2:
            data.append(frame)
        return LOSE if kind == "DATA" else PASS

    world.rule = keep
    world.do("submit 3 late")
    world.until(lambda: bool(data), 10)
    world.do("crash 3")
    world.until(lambda: world.state(2) in (State.COMMIT, State.RECOVERY), 4000, step=0.05)
    world.frame(2, data[0])
    assert not world.engines[2].ring.packets
    world.rule = lambda *_: PASS
    world.until(lambda: world.ring(1) == world.ring(2) == [1, 2], 4000)
    assert world.data(1) == world.data(2)
    world.agree(1, 2)


def test_flags_of_packets_are_distinct_bits() -> None:
    """A piece may be SAFE, and recovery tells packets from messages by a bit of its own."""
    assert sum(PacketFlag) == 15
