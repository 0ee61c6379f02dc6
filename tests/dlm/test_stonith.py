"""Fencing, the pure part: who is the actor, attempts, pauses, who takes over, and what people are told."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from dlm.agents import Agent
from dlm.messages import Kind
from dlm.options import FENCING
from dlm.recovery import Chosen
from dlm.stonith import HANDLERS, MAX_PAUSE_US, PAUSE_US, RETRY_US, STARTUP_US, Step, Stonith, Try, actor_of
from vsync.types import ClusterConfig, Member, Peer

SECOND = 1_000_000
C = Member(3, 7)  #: who fails in most of these
OFF = Agent("fence_x", retries=1, stdin=b"passwd=s3cret\n", secrets=("s3cret",))


class Machine:
    """One node: its ``Stonith``, and what that asks for."""

    def __init__(self, world: World, node: int, agents: dict[int, Agent]) -> None:
        peers = tuple(Peer(n, "?abcde"[n], (f"127.0.0.1:{n}",)) for n in range(1, 6))
        self.node = node
        self.sent: list[tuple[int, tuple[Any, ...]]] = []
        self.running: dict[int, tuple[list[str], bytes, int]] = {}
        self.killed: list[int] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[int, Any] = {}
        self.failures = world.failures()
        self.me = Member(node, 1)
        host: Any = SimpleNamespace(
            me=self.me,
            config=ClusterConfig("t", node, peers),
            spawn=lambda service, ticket, argv, stdin, time: self.running.update({ticket: (argv, stdin, time)}),
            kill=lambda service, ticket: self.killed.append(ticket),
            event=lambda name, **fields: self.events.append((name, fields)),
            reply=lambda session, rid, result: self.answers.update({rid: result}),
            refuse=lambda session, rid, code, text: self.answers.update({rid: code}),
        )
        self.home: Any = SimpleNamespace(
            host=host,
            open=True,
            holding=False,
            now=0,
            table=SimpleNamespace(failures=self.failures),
            send=lambda kind, body: self.sent.append((kind, body)),
        )
        self.stonith = Stonith(self.home, agents)


class World:
    """Some nodes, one order of messages, one clock; node 3 is the one that fails."""

    def __init__(
        self, *nodes: int, agents: dict[int, dict[int, Agent]] | None = None, pending: Sequence[Member] = (C,)
    ) -> None:
        self.now = 0
        self.pending = list(pending)
        self.said = {node: {3: OFF} if agents is None else agents.get(node, {}) for node in nodes}
        self.machines = {node: Machine(self, node, self.said[node]) for node in nodes}
        self.view(*nodes)

    def failures(self) -> Any:
        """As ``dlm.failures``: each node has its own copy of what is equal at all."""
        every = [SimpleNamespace(member=C, fences=True, since=-9, space="web")]

        def needs(member: Member) -> bool:
            return member in self.pending

        return SimpleNamespace(
            unfenced=lambda: list(self.pending), needs_fencing=needs, tries={}, every=every
        )

    def view(self, *nodes: int, full: Sequence[int] = ()) -> None:
        """A primary view of these nodes."""
        self.members = nodes
        chosen = Chosen(frozenset(full or nodes))
        for node, machine in self.machines.items():
            machine.home.open = node in nodes
            if node in nodes:
                machine.stonith.entered(chosen, {each: tuple(self.said[each]) for each in nodes})
                machine.stonith.look()
            else:
                machine.stonith.frozen()
        self.order()

    def order(self) -> None:
        """Everything that was sent takes its place, and is applied by all."""
        while any(self.machines[node].sent for node in self.members):
            for sender in self.members:
                for kind, body in self.machines[sender].sent:
                    self._apply(sender, kind, body)
                self.machines[sender].sent.clear()

    def _apply(self, sender: int, kind: int, body: tuple[Any, ...]) -> None:
        if kind == Kind.CLEARED:
            assert body[2:4] == ("*", FENCING)
            self.pending = [target for target in self.pending if target != Member(*body[:2])]
            self.cleared = body[4]
        for node in self.members:
            machine = self.machines[node]
            if kind == Kind.FENCE_TRIED:
                HANDLERS[kind](machine.home.table, SimpleNamespace(node=sender), body, [])  # type: ignore[arg-type]
            machine.stonith.look()

    def advance(self, micros: int) -> None:
        """Let time pass, from one deadline to the next."""
        end = self.now + micros
        while True:
            due = [d for n in self.members if (d := self.machines[n].stonith.next_deadline()) is not None]
            self.now = min([*due, end])
            for machine in self.machines.values():
                machine.home.now = self.now
            if self.now > end or not due or min(due) > end:
                return
            for node in self.members:
                self.machines[node].stonith.fire()
            self.order()

    def running(self) -> list[int]:
        """Where an agent runs that nobody has killed."""
        return [n for n, m in self.machines.items() for ticket in m.running if ticket not in m.killed]

    def ends(self, node: int, code: int | None, output: bytes = b"") -> None:
        """The oldest agent of a node ends."""
        machine = self.machines[node]
        ticket = min(machine.running)
        del machine.running[ticket]
        machine.stonith.spawned(ticket, code, output)
        self.order()

    def tries(self) -> Try | None:
        found = [self.machines[node].failures.tries.get(C) for node in self.members]
        assert len(set(found)) == 1, found
        return found[0]


# -- who is the actor


@pytest.mark.parametrize(
    ("order", "last", "actor"),
    [
        ((), None, None),
        ((1, 2), None, 1),
        ((2, 4, 1), None, 2),  # 1 has no table yet
        ((1, 2), Try(2), 2),  # who has it keeps it
        ((1, 2), Try(1, 3, 1, "", True, 1), 2),
        ((1, 2), Try(2, 3, 1, "", True, 2), 1),  # round and round
        ((1,), Try(1, 3, 1, "", True, 1), 1),
        ((1, 4), Try(2), 4),  # gone in the middle of it
        ((1, 2), Try(4), 1),
        ((), Try(1), None),
    ],
)
def test_the_actor(order: tuple[int, ...], last: Try | None, actor: int | None) -> None:
    assert actor_of(order, last) == actor


def test_the_lowest_full_member_with_an_agent_does_it() -> None:
    world = World(1, 2, 4, 5, agents={1: {}, 2: {3: OFF}, 4: {3: OFF}, 5: {3: OFF}})
    world.advance(0)
    assert world.running() == [2]
    world = World(1, 2, 4, pending=[])
    world.pending = [C]
    world.view(1, 2, 4, full=[2, 4])
    world.advance(0)
    assert world.running() == [2]


def test_nobody_shoots_itself() -> None:
    world = World(1, 3, agents={1: {}, 3: {3: OFF}})
    world.advance(60 * SECOND)
    assert world.running() == []
    assert world.machines[1].stonith.words(C) == "no member has an agent for node 3"


# -- attempts


def test_the_agent_gets_its_input_and_success_clears() -> None:
    world = World(1, 2)
    world.advance(0)
    assert list(world.machines[1].running.values()) == [(["fence_x"], b"passwd=s3cret\n", 60 * SECOND)]
    world.ends(1, 0, b"Success: Powered OFF")
    assert world.pending == []
    assert world.cleared == "fence_x at a"
    assert [name for name, _ in world.machines[1].events] == ["dlm.fencing", "dlm.fenced"]
    assert world.machines[1].stonith.next_deadline() is None


def test_nothing_runs_before_the_claim_is_ordered() -> None:
    """Who is about to be cut off must not shoot: it delivers nothing any more."""
    world = World(1, 2, pending=[])
    world.pending = [C]
    machine = world.machines[1]
    machine.stonith.look()
    assert [kind for kind, _ in machine.sent] == [Kind.FENCE_TRIED]
    machine.stonith.look()
    assert len(machine.sent) == 1
    machine.home.now = 3600 * SECOND
    machine.stonith.fire()
    assert machine.running == {}
    world.order()
    assert machine.stonith.next_deadline() == machine.home.now


def test_it_tries_again_and_then_gives_up() -> None:
    world = World(1, 2)
    world.advance(0)
    world.ends(1, 1, b"cannot connect with passwd s3cret\n")
    assert world.tries() == Try(1, 1, 1, "cannot connect with passwd ***")
    world.advance(RETRY_US - 1)
    assert world.running() == []
    world.advance(1)
    assert world.running() == [1]
    world.ends(1, None, b"fence_x: no end in time, killed")
    assert world.tries() == Try(2, 0, None, "", False, 1)  # node 2 has claimed the work
    world.advance(0)
    assert world.running() == [2]
    texts = [str(event) for machine in world.machines.values() for event in machine.events]
    assert not any("s3cret" in text for text in texts)


def test_success_after_failures() -> None:
    """The agent fails twice, then works: at whoever's turn it is."""
    world = World(1, 2)
    world.advance(0)
    for _ in range(2):
        world.ends(1, 1)
        world.advance(RETRY_US)
    world.ends(2, 0)
    assert world.pending == []
    assert world.cleared == "fence_x at b"


def test_rounds_go_on_for_ever_with_growing_pauses() -> None:
    world = World(1, 2, agents={1: {3: Agent("x", retries=0)}, 2: {3: Agent("x", retries=0)}})
    pauses = []
    for turn in range(24):
        before = world.now
        world.advance(MAX_PAUSE_US - (world.now - before))
        [node] = world.running()
        started = world.machines[node].stonith.jobs[C]
        assert node == (1, 2)[turn % 2]
        pauses.append(started.due - before)
        world.ends(node, 1)
    rounds = [pauses[i] for i in range(0, 24, 2)]
    assert rounds[:4] == [0, PAUSE_US, 2 * PAUSE_US, 4 * PAUSE_US]
    assert rounds == [pauses[i] for i in range(1, 24, 2)]
    assert max(rounds) == MAX_PAUSE_US == rounds[-1]


def test_the_only_one_goes_on_alone() -> None:
    world = World(1, 2, agents={1: {3: Agent("x", retries=0)}})
    for _ in range(3):
        world.advance(MAX_PAUSE_US)
        assert world.running() == [1]
        world.ends(1, 1)
    tries = world.tries()
    assert tries is not None
    assert tries.given_up == 3


def test_a_delay_comes_before_the_first_attempt_only() -> None:
    late = Agent("x", retries=1, delay=9 * SECOND)
    world = World(1, 2, agents={1: {3: late}, 2: {3: late}})
    world.advance(9 * SECOND - 1)
    assert world.running() == []
    assert world.machines[1].stonith.row(C)["due_us"] == 1
    world.advance(1)
    world.ends(1, 1)
    world.advance(RETRY_US)
    world.ends(1, 1)
    world.advance(0)
    assert world.running() == [2]  # who takes over has no reason to wait again


def test_a_node_that_was_never_seen_gets_time_to_come() -> None:
    world = World(1, 2, pending=[Member(3, 0)])
    world.advance(STARTUP_US - 1)
    assert world.running() == []
    world.advance(1)
    assert world.running() == [1]


def test_two_failures_at_once() -> None:
    world = World(1, 2, agents={1: {3: OFF, 4: OFF}, 2: {3: OFF, 4: OFF}})
    world.pending = [C, Member(4, 2)]
    world.view(1, 2)
    world.advance(0)
    assert world.running() == [1, 1]
    world.ends(1, 0)
    assert world.pending == [Member(4, 2)]
    world.ends(1, 0)
    assert world.pending == []


# -- others take over; work that has become void


def test_the_actor_dies() -> None:
    world = World(1, 2)
    world.advance(0)
    world.view(2)
    world.advance(0)
    assert world.machines[1].killed == [1]
    assert world.running() == [2]
    assert world.tries() == Try(2)


def test_the_actor_keeps_the_work_when_a_lower_one_comes() -> None:
    world = World(2, 4, agents={node: {3: OFF} for node in (1, 2, 4)})
    world.advance(0)
    world.said[1] = {3: OFF}
    world.machines[1] = Machine(world, 1, {3: OFF})
    world.machines[1].failures.tries.update(world.machines[2].failures.tries)
    world.view(1, 2, 4)
    world.advance(0)
    assert world.running() == [2]
    assert world.machines[2].killed == []


def test_an_actor_that_was_restarted_begins_again() -> None:
    world = World(1, 2)
    world.advance(0)
    world.ends(1, 1)
    fresh = Machine(world, 1, {3: OFF})
    fresh.failures.tries.update(world.machines[2].failures.tries)
    fresh.home.now = world.now
    world.machines[1] = fresh
    world.view(1, 2)
    world.advance(0)
    assert world.running() == [1]
    world.ends(1, 1)
    assert world.tries() == Try(2, 0, None, "", False, 1)  # one attempt had failed before


def test_the_node_comes_back_by_itself() -> None:
    world = World(1, 2)
    world.advance(0)
    world.pending = []
    world.view(1, 2)
    assert world.machines[1].killed == [1]
    world.ends(1, None, b"killed")
    assert world.machines[1].stonith.rows() == []
    assert world.machines[1].stonith.next_deadline() is None


def test_without_a_primary_view_nothing_is_done() -> None:
    world = World(1, 2)
    world.advance(0)
    world.view()
    assert world.machines[1].killed == [1]
    world.view(1, 2)
    world.advance(0)
    assert world.running() == [1]  # its claim still stands


def test_a_shot_that_hit_counts_later() -> None:
    """The agent was successful just before it was killed: the node is off, whoever has the work by now."""
    world = World(1, 2)
    world.advance(0)
    world.view(2)
    world.ends(1, 0)
    world.view(1, 2)
    assert world.pending == []
    assert world.cleared == "fence_x at a"


def test_success_is_said_again_in_a_new_life() -> None:
    world = World(1, 2)
    world.advance(0)
    machine = world.machines[1]
    machine.stonith.spawned(1, 0, b"")
    assert machine.sent[0][0] == Kind.CLEARED
    machine.sent.clear()  # the life has ended before it was ordered
    machine.stonith.look()
    assert machine.sent == []
    machine.stonith.new_life()
    world.view(1, 2)
    assert world.pending == []


def test_the_last_claim_counts() -> None:
    """Two have claimed the same work, from different views: one of them gives way."""
    world = World(1, 2)
    world.advance(0)
    world.machines[2].sent.append((Kind.FENCE_TRIED, (*C, 0, None, "", False)))
    world.order()
    world.advance(0)
    assert world.running() == [2]
    assert world.machines[1].killed == [1]


def test_a_claim_that_comes_too_late_is_void() -> None:
    world = World(1, 2)
    world.pending = []
    world.machines[2].sent.append((Kind.FENCE_TRIED, (*C, 0, None, "", False)))
    world.order()
    assert world.tries() == Try(1)  # as it was
    world.advance(0)
    assert world.running() == []


def test_who_leaves_gives_way() -> None:
    world = World(1, 2)
    world.advance(0)
    world.machines[1].stonith.leaving()
    assert world.machines[1].killed == [1]
    world.machines[1].stonith.look()
    assert world.machines[1].stonith.next_deadline() is None
    world.view(2)
    world.advance(0)
    assert world.running() == [2]


# -- operators


def test_an_operator_says_that_it_is_down() -> None:
    world = World(1, 2, agents={})
    machine = world.machines[2]
    assert machine.stonith.acknowledge(5, 6, 4, "uid 0") == 0
    assert machine.stonith.acknowledge(5, 6, 3, "uid 0") == 1
    machine.stonith.look()
    assert machine.answers == {}
    world.order()
    assert world.pending == []
    assert world.cleared == "uid 0"
    assert machine.answers == {6: {"node": 3}}


def test_an_operator_hears_when_the_order_was_lost() -> None:
    world = World(1, 2, agents={})
    machine = world.machines[2]
    machine.stonith.acknowledge(5, 6, 3, "uid 0")
    machine.sent.clear()
    machine.stonith.new_life()
    assert machine.answers == {6: "lost"}


def test_what_people_see() -> None:
    world = World(1, 2)
    assert world.machines[2].stonith.words(C) == "actor node 1"
    world.advance(0)
    assert world.machines[1].stonith.row(C)["step"] == Step.RUN.value
    world.ends(1, 1, b"oh\n\nno \x1b route\n")
    for machine in world.machines.values():
        assert machine.stonith.words(C) == "actor node 1; agent exit 1: no   route"
        [row] = machine.stonith.rows()
        wanted = {"node": 3, "name": "c", "incarnation": 7, "actor": 1, "attempts": 1, "exit": 1, "given_up": 0}
        wanted |= {"spaces": ["web"], "since_us": 9}
        assert row.items() >= wanted.items()
