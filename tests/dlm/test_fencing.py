"""Fencing through whole lock managers on the bus: what waits for it, who does it, and who need not wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dlm.messages import Kind
from dlm.modes import EX
from dlm.stonith import PAUSE_US, RETRY_US, STARTUP_US
from tests.dlm.bus import LEASE, MS
from tests.dlm.fencing import SECOND, FencedBus, Result, Run, powered_off, refused
from vsync.service import Credentials
from vsync.types import QuorumConfig

HORIZON = LEASE + 200 * MS


def hangs(run: Run) -> Result:
    return 3600 * SECOND, None, b""


def held_at_3(agent: Callable[[Run], Result] = powered_off, **more: Any) -> tuple[FencedBus, int]:
    """Node 3 holds R and dies; node 2 asks for R. The request's number."""
    bus = FencedBus(**more)
    bus.agent = agent
    first, _ = bus.lock(3, b"R", EX)
    bus.run()
    assert bus.granted(first)
    rid, _ = bus.lock(2, b"R", EX)
    bus.run()
    bus.kill(3)
    bus.view([1, 2])
    bus.run()
    return bus, rid


def test_a_grant_waits_for_the_fencing() -> None:
    bus = FencedBus()
    bus.agent = lambda run: (10 * SECOND, 0, b"off")
    first, _ = bus.lock(3, b"R", EX)
    bus.run()
    rid, _ = bus.lock(2, b"R", EX)
    other, _ = bus.lock(2, b"unrelated", EX)
    bus.run()
    assert bus.granted(first)
    bus.kill(3)
    bus.view([1, 2])
    bus.advance(9 * SECOND)
    assert bus.granted(other)
    assert not bus.granted(rid)
    assert bus.runs == [Run(1, "n3", "reboot", {"plug": "4"})]
    [row] = bus.rows(2)
    assert (row["node"], row["actor"], row["attempts"], row["exit"]) == (3, 1, 0, None)
    bus.advance(2 * SECOND)
    assert bus.granted(rid)
    assert bus.rows(1) == bus.rows(2) == []
    bus.check_at_rest()


def test_who_said_goodbye_is_not_fenced() -> None:
    bus = FencedBus()
    bus.lock(3, b"R", EX)
    rid, _ = bus.lock(2, b"R", EX)
    bus.run()
    bus[3].service.leaving(bus.now)
    bus.advance(100 * MS)
    bus.kill(3)
    bus.view([1, 2])
    bus.advance(200 * MS)
    assert bus.granted(rid)
    assert bus.runs == []


def test_nor_who_held_nothing_that_is_protected() -> None:
    bus = FencedBus(section={"lockspace": {"web": {"fencing": True}}})
    bus.call(2, "space_create", space="web")
    bus.run()
    bus.lock(3, b"R", EX)
    rid, _ = bus.lock(2, b"R", EX)
    bus.run()
    bus.kill(3)
    bus.view([1, 2])
    bus.advance(HORIZON)
    assert bus.granted(rid)
    assert bus.runs == []


def test_the_next_one_takes_over_and_all_know_why() -> None:
    bus, rid = held_at_3(lambda run: (0, 2, b"no route") if run.actor == 1 else powered_off(run))
    bus.advance(RETRY_US // 2)
    assert [run.actor for run in bus.runs] == [1]
    assert bus[2].service.home.stonith.words(bus[3].me) == "actor node 1; agent exit 2: no route"
    bus.advance(RETRY_US + HORIZON)
    assert [run.actor for run in bus.runs] == [1, 1, 2]
    assert bus.granted(rid)
    bus.check_at_rest()


def test_it_fails_twice_and_then_works() -> None:
    results = iter([(0, 1, b"busy"), (0, None, b"killed"), (0, 0, b"off")])
    bus, rid = held_at_3(lambda run: next(results), at=[1])
    bus.advance(RETRY_US + HORIZON)
    assert not bus.granted(rid)
    bus.advance(PAUSE_US)
    assert bus.granted(rid)
    assert [run.actor for run in bus.runs] == [1, 1, 1]


def test_an_agent_that_hangs_has_failed() -> None:
    agent = lambda run: hangs(run) if run.actor == 1 else powered_off(run)  # noqa: E731
    bus, rid = held_at_3(agent, timeout_s=5, retries=0)
    bus.advance(4 * SECOND)
    assert [run.actor for run in bus.runs] == [1]
    bus.advance(2 * SECOND)
    assert [run.actor for run in bus.runs] == [1, 2]
    assert bus.granted(rid)


def test_the_actor_dies_in_the_middle_of_it() -> None:
    bus = FencedBus(5, fenced=[1, 5])
    bus.agent = hangs
    bus.lock(5, b"R", EX)
    bus.run()
    rid, _ = bus.lock(3, b"R", EX)
    bus.run()
    bus.kill(5)
    bus.view([1, 2, 3, 4])
    bus.advance(SECOND)
    assert [run.actor for run in bus.runs] == [1]
    bus.kill(1)
    bus.agent = powered_off
    bus.view([2, 3, 4])
    bus.advance(HORIZON)
    assert [(run.actor, run.target) for run in bus.runs] == [(1, "n5"), (2, "n5")]
    assert bus.granted(rid)
    bus.check_at_rest()


def test_two_fail_one_after_the_other() -> None:
    bus = FencedBus(5, fenced=[4, 5])
    bus.agent = lambda run: (6 * SECOND, 0, b"")
    bus.lock(5, b"R", EX)
    bus.lock(4, b"S", EX)
    bus.run()
    rids = [bus.lock(3, name, EX)[0] for name in (b"R", b"S")]
    bus.run()
    bus.kill(5)
    bus.view([1, 2, 3, 4])
    bus.advance(3 * SECOND)
    bus.kill(4)
    bus.view([1, 2, 3])
    bus.advance(4 * SECOND)
    assert [bus.granted(rid) for rid in rids] == [True, False]
    bus.advance(3 * SECOND)
    assert [bus.granted(rid) for rid in rids] == [True, True]
    assert [run.target for run in bus.runs] == ["n5", "n4"]


def test_the_node_comes_back_by_itself() -> None:
    bus, rid = held_at_3(hangs)
    bus.advance(HORIZON)
    assert not bus.granted(rid)
    bus.boot(3)
    bus.view([1, 2, 3])
    bus.advance(HORIZON)
    assert bus.granted(rid)
    assert [run.target for run in bus.killed] == ["n3"]
    assert bus.rows(3) == []
    bus.check_at_rest()


def test_without_quorum_nobody_is_shot() -> None:
    bus, rid = held_at_3(delay_s=3)
    bus.advance(SECOND)
    bus.view([1])
    bus.view([2])
    bus.advance(10 * SECOND)
    assert bus.runs == []
    bus.view([1, 2])
    bus.advance(4 * SECOND)
    assert len(bus.runs) == 1
    assert bus.granted(rid)


def test_the_actor_leaves_in_the_middle_of_it() -> None:
    bus, rid = held_at_3(hangs, nodes=3)
    bus.advance(SECOND)
    bus[1].service.leaving(bus.now)
    assert [run.actor for run in bus.killed] == [1]
    bus.advance(SECOND)
    assert len(bus.runs) == 1  # it does not begin again
    bus.kill(1)
    bus.agent = powered_off
    bus.view([2], primary=True)
    bus.advance(SECOND)
    assert [run.actor for run in bus.runs] == [1, 2]
    assert bus.granted(rid)


def test_a_success_is_told_though_the_actor_was_evicted() -> None:
    """Its agent has hit, and its word about it was lost with its life; the others' agents do not work."""
    bus = FencedBus(5, fenced=[5])
    bus.agent = lambda run: powered_off(run) if run.actor == 1 else refused(run)
    bus.lock(5, b"R", EX)
    bus.run()
    rid, _ = bus.lock(2, b"R", EX)
    bus.run()
    bus.kill(5)
    bus.view([1, 2, 3, 4])
    bus.run()
    bus.tokens()  # node 1 runs its agent, and hears that it has hit; its message does not leave
    bus.tokens()
    assert bus.kinds(1) == [Kind.CLEARED]
    bus.view([1])
    bus.view([2, 3, 4])
    bus.advance(HORIZON)
    assert not bus.granted(rid)
    bus.view([1, 2, 3, 4])
    bus.advance(HORIZON)
    assert [run.actor for run in bus.runs if run.actor == 1] == [1]
    assert bus.granted(rid)
    bus.check_at_rest()


def test_a_joiner_gets_to_know_what_was_tried() -> None:
    bus = FencedBus(4, fenced=[4])
    bus.agent = refused
    bus.lock(4, b"R", EX)
    bus.run()
    rid, _ = bus.lock(2, b"R", EX)
    bus.run()
    bus.kill(3)
    bus.view([1, 2, 4])
    bus.kill(4)
    bus.view([1, 2], primary=True)
    bus.advance(10 * SECOND)
    bus.boot(3)
    bus.view([1, 2, 3])
    bus.advance(50 * MS)
    keys = ("node", "actor", "attempts", "given_up", "exit", "said")
    seen = [[{key: row[key] for key in keys} for row in bus.rows(node)] for node in (1, 2, 3)]
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0]["given_up"] > 0
    bus.agent = powered_off
    bus.advance(4 * PAUSE_US)
    assert bus.granted(rid)
    bus.check_at_rest()


def anew(section: dict[str, Any] | None = None) -> FencedBus:
    """Nodes 1 and 2 were restarted while node 3 was away: their table is empty."""
    bus = FencedBus(section=section)
    for node in (1, 2, 3):
        bus.kill(node)
    for node in (1, 2):
        bus.boot(node)
    bus.view([1, 2])
    bus.run()
    return bus


def test_a_table_that_begins_empty_may_have_forgotten_somebody() -> None:
    bus = anew()
    rid, _ = bus.lock(2, b"R", EX)
    bus.advance(STARTUP_US - SECOND)
    assert not bus.granted(rid)
    assert bus.runs == []
    bus.advance(2 * SECOND)
    assert [run.target for run in bus.runs] == ["n3"]
    assert bus.granted(rid)
    bus.check_at_rest()


def test_who_was_forgotten_comes_back() -> None:
    bus = anew()
    rid, _ = bus.lock(2, b"R", EX)
    bus.advance(SECOND)
    bus.boot(3)
    bus.view([1, 2, 3])
    bus.advance(HORIZON)
    assert bus.granted(rid)
    bus.advance(2 * STARTUP_US)
    assert bus.runs == []
    bus.call(1, "space_create", space="web", fencing=True)
    bus.run()
    assert bus.rows(1) == []
    bus.check_at_rest()


def test_lockspaces_that_are_made_later_may_have_been_there_before() -> None:
    bus = anew({"lockspace": {}})
    plain, _ = bus.lock(2, b"R", EX)
    bus.advance(HORIZON)
    assert bus.granted(plain)
    assert bus.rows(1) == []
    bus.call(2, "space_create", space="web", fencing=True)
    bus.run()
    rid, _ = bus.lock(2, b"R", EX, space="web")
    bus.advance(SECOND)
    assert not bus.granted(rid)
    assert [row["spaces"] for row in bus.rows(1)] == [["web"]]
    other, _ = bus.lock(2, b"S", EX)
    bus.run()
    assert bus.granted(other)
    ack = bus.call(1, "fence_ack", node=3)
    bus.run()
    assert bus.result(ack) == {"node": 3}
    assert bus.granted(rid)
    bus.call(2, "space_create", space="more", fencing=True)
    bus.run()
    assert bus.rows(1) == []  # somebody has said that it is down
    bus.check_at_rest()


# -- operators


def test_an_operator_acknowledges() -> None:
    bus, rid = held_at_3(fenced=[])
    bus.advance(HORIZON)
    assert not bus.granted(rid)
    assert bus.rows(2)[0]["actor"] is None
    assert bus.result(bus.call(1, "fence_ack", node=2)) == "unknown"
    ack = bus.call(1, "fence_ack", node=3)
    assert bus.result(ack) is None
    bus.run()
    assert bus.result(ack) == {"node": 3}
    assert bus.granted(rid)
    bus.check_at_rest()


@pytest.mark.parametrize(("uid", "answer"), [(0, {"node": 3}), (77, {"node": 3}), (78, "permission")])
def test_who_may(uid: int, answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FencedBus.config
    monkeypatch.setattr(FencedBus, "config", lambda bus, node: replace(config(bus, node), uid=77))
    bus, _ = held_at_3(fenced=[])
    bus[1].service.open(9, Credentials(4711, uid, 0, "dlm fence"), bus.now)
    ack = bus.call(1, "fence_ack", session=9, node=3)
    bus.run()
    assert bus.result(ack) == answer


def test_a_minority_cannot_declare_others_dead() -> None:
    bus, _ = held_at_3(fenced=[])
    bus.view([1])
    assert bus.result(bus.call(1, "fence_ack", node=3)) == "no_quorum"


def test_agents_can_be_tried() -> None:
    bus = FencedBus(fenced=[3])
    bus.agent = lambda run: (SECOND, 2, b"Status: OFF") if run.action == "status" else refused(run)
    asked = [bus.call(1, "fence_check", node=node) for node in (2, 3)]
    bus[1].service.open(9, Credentials(4711, 78, 0, "dlm fence"), bus.now)
    asked.append(bus.call(1, "fence_check", session=9, node=3))
    bus.advance(2 * SECOND)
    off = {"node": 3, "exit": 2, "said": "Status: OFF"}
    assert [bus.result(rid) for rid in asked] == ["unknown", off, "permission"]
    assert bus.runs == [Run(1, "n3", "status", {"plug": "4"})]


# -- policies under which both parts of a cut cluster are primary


def pair(policy: str = "two_node", **more: Any) -> FencedBus:
    return FencedBus(2, fenced=more.pop("fenced", (1, 2)), quorum=QuorumConfig(policy), section={}, **more)


def test_two_nodes_need_agents_for_each_other() -> None:
    bus = pair(fenced=[1])  # so node 2 could fence node 1, and node 1 nobody
    assert bus.result(bus.lock(1, b"R", EX)[0]) == "unsafe"
    rid, _ = bus.lock(2, b"R", EX)
    bus.run()
    assert bus.granted(rid)


@pytest.mark.parametrize("policy", ["two_node", "none"])
def test_after_a_cut_only_one_of_two_goes_on(policy: str) -> None:
    """Each waits for the other's fencing with every name; the first one survives, by the stagger."""
    bus = pair(policy)

    def shoot(run: Run) -> Result:
        bus.kill(int(run.target[1:]))
        return 0, 0, b"off"

    bus.agent = shoot
    bus.lock(2, b"R", EX)
    bus.run()
    bus.view([1], primary=True)
    bus.view([2], primary=True)
    rids = [bus.lock(node, b"free", EX)[0] for node in (1, 2)]
    bus.advance(20 * SECOND)
    assert [run.actor for run in bus.runs] == [1]
    assert [bus.granted(rid) for rid in rids] == [True, False]


def test_after_a_cut_nothing_new_is_granted_while_no_agent_works() -> None:
    bus = pair()
    bus.agent = refused
    held, _ = bus.lock(2, b"R", EX)
    bus.run()
    bus.view([1], primary=True)
    bus.view([2], primary=True)
    rids = [bus.lock(node, name, EX)[0] for node in (1, 2) for name in (b"R2", b"free")]
    bus.advance(60 * SECOND)
    assert not any(bus.granted(rid) for rid in rids)
    assert bus.granted(held)
    bus.view([1, 2], primary=True)
    bus.advance(HORIZON)
    assert sum(bus.granted(rid) for rid in rids) == 2  # one of the two who want the same name


def test_who_starts_alone_fences_the_others_first() -> None:
    bus = pair("none")
    bus.kill(1)
    bus.kill(2)
    bus.boot(2)
    bus.view([2], primary=True)
    rid, _ = bus.lock(2, b"R", EX)
    bus.advance(STARTUP_US - SECOND)
    assert bus.runs == []
    assert not bus.granted(rid)
    bus.advance(2 * SECOND)
    assert [run.target for run in bus.runs] == ["n1"]
    assert bus.granted(rid)


def test_who_comes_in_time_is_not_fenced() -> None:
    bus = pair("none")
    bus.kill(1)
    bus.kill(2)
    for node in (1, 2):
        bus.boot(node)
        bus.view([node], primary=True)
    rid, _ = bus.lock(2, b"R", EX)
    bus.advance(5 * SECOND)
    bus.view([1, 2], primary=True)
    bus.advance(HORIZON)
    assert bus.granted(rid)
    bus.advance(2 * STARTUP_US)
    assert bus.runs == []
