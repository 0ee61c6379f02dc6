"""The rules that judge locks in the simulator, on hand-made histories: good ones pass, bad ones are caught."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from dlm.messages import TAG
from dlm.modes import CR, CW, EX, NL, PR, PW
from dlm.recovery import Announcement
from dlm.resource import Resource
from dlm.testing.clients import Client, Handle, Page
from dlm.testing.rules import ChainRules, FenceRules, HolderRules, QueueRules, TableRules, ValueRules
from tests.dlm.bus import Bus
from vsync.testing.violation import Violation
from vsync.types import NO_RING, Entry, Member, RingId, View


class World:
    """Two hosts whose clocks show true time, with one client each."""

    def __init__(self) -> None:
        self.now = 0
        self.holders, self.fences = HolderRules(), FenceRules()
        self.clients = [self._client(node) for node in (1, 2)]

    def _client(self, node: int) -> Client:
        host: Any = SimpleNamespace(id=node, up=True, incarnation=1)
        host.clock = lambda true=None: self.now if true is None else true
        return Client(host, 100 + node, Page(generation=1, deadline=1_000), 1)

    def grant(self, client: int, mode: int, fence: int, name: bytes = b"r", generation: int = 1) -> Handle:
        handle = self.clients[client].new_handle(name)
        handle.mode = handle.granted = mode
        handle.fence, handle.generation = fence, generation
        self.holders.granted(handle)
        self.fences.granted(handle)
        return handle


@pytest.fixture
def world() -> World:
    return World()


class TestHolders:
    def test_two_at_once(self, world: World) -> None:
        world.grant(0, EX, 1)
        with pytest.raises(Violation, match=r"GRANT-Q2.*holds PR with fence 0\.2 while .*holds EX"):
            world.grant(1, PR, 2)

    def test_compatible_modes_and_other_names_are_fine(self, world: World) -> None:
        world.grant(0, PR, 1)
        world.grant(1, PR, 2)
        world.grant(1, EX, 3, name=b"other")

    def test_after_the_release(self, world: World) -> None:
        first = world.grant(0, EX, 1)
        world.clients[0].drop(first)
        world.grant(1, EX, 2)

    def test_after_the_deadline(self, world: World) -> None:
        world.grant(0, EX, 1)
        world.now = 1_000
        world.clients[1].page.deadline = 2_000
        world.grant(1, EX, 2)

    def test_just_before_the_deadline(self, world: World) -> None:
        world.grant(0, EX, 1)
        world.now = 999
        with pytest.raises(Violation, match="GRANT-Q2"):
            world.grant(1, EX, 2)

    def test_a_dead_daemons_client_lives_until_its_deadline(self, world: World) -> None:
        world.grant(0, EX, 1)
        world.clients[0].node.up = False
        with pytest.raises(Violation, match="GRANT-Q2"):
            world.grant(1, EX, 2)

    def test_a_dead_client_holds_nothing(self, world: World) -> None:
        world.grant(0, EX, 1).over = True
        world.grant(1, EX, 2)

    def test_another_generation_ends_a_handle(self, world: World) -> None:
        world.grant(0, EX, 1)
        world.clients[0].page.generation = 2
        world.grant(1, EX, 2)

    def test_a_deadline_that_revives_a_handle(self, world: World) -> None:
        """D9: the page goes on in the same generation, and the handle meets its successor."""
        first = world.grant(0, EX, 1)
        world.now = 1_500
        world.clients[1].page.deadline = 3_000
        world.grant(1, EX, 2)
        world.clients[0].page.deadline = 3_000
        with pytest.raises(Violation, match="GRANT-Q2"):
            world.holders.check(first)

    @pytest.mark.parametrize(
        ("held", "asked", "relied"),
        [(EX, PR, PR), (PR, EX, PR), (PR, CW, CR), (CW, PR, CR), (PW, NL, NL), (EX, EX, EX)],
    )
    def test_what_a_conversion_may_cost_is_given_up_when_it_is_asked_for(
        self, world: World, held: int, asked: int, relied: int
    ) -> None:
        handle = world.grant(0, held, 1)
        handle.asks_for(asked)
        assert handle.mode == relied


class TestFences:
    def test_backwards(self, world: World) -> None:
        world.clients[0].drop(world.grant(0, EX, 7))
        with pytest.raises(Violation, match=r"FENCE-K14.*PR with fence 0\.5, after EX with 0\.7"):
            world.grant(1, PR, 5)

    def test_readers_among_themselves_need_no_order(self, world: World) -> None:
        world.grant(0, PR, 7)
        world.grant(1, PR, 5)

    def test_the_same_number_twice(self, world: World) -> None:
        world.grant(0, PR, 7)
        with pytest.raises(Violation, match=r"FENCE-K14.*was given to"):
            world.grant(1, PR, 7)

    def test_an_answer_that_comes_too_late_to_count(self, world: World) -> None:
        world.now = 1_500
        world.clients[1].page.deadline = 3_000
        world.grant(1, EX, 9)
        world.grant(0, EX, 7)  # its lease ended at 1000


class Locker:
    """As much of a ``DlmService`` as the table rules ask."""

    def __init__(self, digest: str, applied: int, complete: bool = True, bad: bool = False) -> None:
        def invariants() -> None:
            assert not bad, "two owners"

        self.complete = complete
        self.table = SimpleNamespace(
            ring=RingId(5, 1), applied=applied, digest=lambda: digest, invariants=invariants
        )


class TestTables:
    def test_different_tables_at_one_position(self) -> None:
        rules: Any = TableRules()
        rules.check(1, Locker("a", 10))
        rules.check(2, Locker("b", 11))
        rules.check(3, Locker("?", 10, complete=False))
        with pytest.raises(Violation, match=r"TABLE: nodes 3 and 1 .* 1\.5:10"):
            rules.check(3, Locker("c", 10))

    def test_the_same_number_of_another_view_is_another_position(self) -> None:
        rules: Any = TableRules()
        first, second = Locker("a", 10), Locker("b", 10)
        second.table.ring = NO_RING
        rules.check(1, first)
        rules.check(2, second)

    def test_a_table_that_contradicts_itself(self) -> None:
        rules: Any = TableRules()
        rules.invariants(1, Locker("a", 1))
        with pytest.raises(Violation, match="TABLE: node 1: two owners"):
            rules.invariants(1, Locker("a", 1, bad=True))


class TestValues:
    def write(self, world: World, rules: ValueRules, fence: int, mode: int = EX) -> Handle:
        handle = world.grant(0, mode, fence)
        rules.writes(handle)
        world.clients[0].drop(handle)
        return handle

    def test_the_last_write_is_read(self, world: World) -> None:
        rules = ValueRules()
        for fence in (3, 5):
            self.write(world, rules, fence)
        rules.reads(world.grant(1, PR, 7), bytes(7) + b"\5")
        rules.reads(world.grant(1, PR, 8), b"")

    def test_a_lost_write(self, world: World) -> None:
        rules = ValueRules()
        for fence in (3, 5):
            self.write(world, rules, fence)
        with pytest.raises(Violation, match=r"VALUE.*reads what 0\.3 wrote, and what 0\.5 wrote after that"):
            rules.reads(world.grant(1, PR, 7), bytes(7) + b"\3")

    def test_one_that_does_not_exclude_the_reader_may_be_unread(self, world: World) -> None:
        rules = ValueRules()
        self.write(world, rules, 3)
        self.write(world, rules, 5, PW)
        rules.reads(world.grant(1, CR, 7), bytes(7) + b"\3")

    @pytest.mark.parametrize("value", [b"\7", b"\x09", b"\4"], ids=["its own", "from the future", "nobody's"])
    def test_what_no_predecessor_wrote(self, world: World, value: bytes) -> None:
        rules = ValueRules()
        self.write(world, rules, 3)
        with pytest.raises(Violation, match="VALUE"):
            rules.reads(world.grant(1, PR, 7), bytes(7) + value)

    def test_a_write_that_is_not_known_to_have_happened(self, world: World) -> None:
        rules = ValueRules()
        rules.asks(world.grant(0, EX, 3))
        world.now = 1_000
        rules.reads(world.grant(1, PR, 7), bytes(7) + b"\3")


class TestQueues:
    """On the bus: node 3 holds, 1 and 2 convert and wait, 3 dies."""

    def waiting(self) -> Bus:
        bus = Bus(5)
        for node in (1, 2):
            QueueRules().watch(node, bus[node].service)
        bus.lock(3, mode=PR)
        held = [bus.lock(node, mode=CR)[1] for node in (1, 2)]
        bus.run()
        for node, h in zip((1, 2), held, strict=True):
            bus.call(node, "convert", h=h, mode=PW, nodlckwt=True)
        for node in (2, 1, 2, 1):
            bus.lock(node, mode=EX)
            bus.run()
        return bus

    def test_the_order_is_kept(self) -> None:
        bus = self.waiting()
        bus.kill(3)
        bus.view([1, 2, 4, 5])

    @pytest.mark.parametrize("queue", ["converting", "waiting"])
    def test_another_order(self, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
        purge = Resource.purge

        def kernel(self: Resource, nodes: Any, out: Any) -> None:
            getattr(self, queue).reverse()
            purge(self, nodes, out)

        bus = self.waiting()
        monkeypatch.setattr(Resource, "purge", kernel)
        bus.kill(4)
        bus.lock(5, mode=NL)
        bus.view([1, 2, 3, 5])
        bus.kill(3)
        with pytest.raises(Violation, match=r"QUEUE.*(overtaken|order)"):
            bus.view([1, 2, 5])

    def test_one_that_is_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        purge = Resource.purge

        def kernel(self: Resource, nodes: Any, out: Any) -> None:
            self._remove(self.waiting[-1])
            purge(self, nodes, out)

        bus = self.waiting()
        monkeypatch.setattr(Resource, "purge", kernel)
        bus.kill(3)
        with pytest.raises(Violation, match=r"QUEUE.*lost its place"):
            bus.view([1, 2, 4, 5])

    def test_one_that_is_not_granted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernel needs messages for it."""
        bus = self.waiting()
        monkeypatch.setattr(Resource, "scan", lambda self, out: None)
        bus.kill(3)
        with pytest.raises(Violation, match=r"QUEUE.*could be granted"):
            bus.view([1, 2, 4, 5])


def primary(seq: int, *states: int, complete: bool = True) -> View:
    """A primary view whose members bring states of the views with these numbers."""
    entries = {
        node: Entry(
            Member(node, 1),
            NO_RING,
            1,
            {TAG: Announcement(RingId(state, 1), 7, complete).encode()},
        )
        for node, state in enumerate(states, start=1)
    }
    members = tuple(entry.member for entry in entries.values())
    return View(RingId(seq, 1), members, (), (), True, False, "test", entries)


class TestChain:
    def test_each_goes_on_with_the_last(self) -> None:
        rules = ChainRules()
        for view in (primary(1, 0, 0, complete=False), primary(2, 1, 1), primary(5, 2, 1), primary(9, 5)):
            rules.in_force(view)

    def test_an_old_state_comes_back(self) -> None:
        rules = ChainRules()
        rules.in_force(primary(2, 1, 1))
        rules.in_force(primary(5, 2, 2))
        with pytest.raises(Violation, match=r"CHAIN-K8.* 1.7 goes on with the state of 1.2, after 1.5"):
            rules.in_force(primary(7, 2, 1))

    def test_a_view_that_is_installed_late(self) -> None:
        """C3: others have gone on without it already."""
        rules = ChainRules()
        rules.in_force(primary(7, 2, 1))
        with pytest.raises(Violation, match="CHAIN-K8"):
            rules.in_force(primary(5, 2, 2))

    def test_an_empty_start_brings_nothing_back(self) -> None:
        rules = ChainRules()
        rules.in_force(primary(5, 2, 2))
        rules.in_force(primary(7, 0, 0, complete=False))

    def test_nobody_goes_on_with_an_overtaken_state(self) -> None:
        """A mark says that there was a newer view: so the state of 2 is dropped, and that is no finding."""
        rules = ChainRules()
        rules.in_force(primary(5, 2, 2))
        view = primary(7, 2, 2)
        entries = {n: replace(entry, mark=RingId(5, 1), lineage=1) for n, entry in view.entries.items()}
        rules.in_force(replace(view, entries=entries))
