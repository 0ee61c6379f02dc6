"""``why``: the chain that blocks, and what holds answers back."""

from __future__ import annotations

from typing import Any

from dlm.modes import EX, NL, PR
from dlm.reasons import Why
from dlm.why import MAX_BLOCKERS, MAX_WAITS
from tests.dlm.bus import LEASE, MS, Bus


def why(bus: Bus, node: int, name: bytes = b"A") -> Why:
    return Why.from_answer(bus.result(bus.call(node, "why", name=name)))


def hold(bus: Bus, node: int, name: bytes, owner: int, mode: int = EX, **args: Any) -> int:
    rid, h = bus.lock(node, name, mode, owner=owner, **args)
    bus.run()
    return h if rid else 0


def test_the_chain() -> None:
    """Node 3 waits for A, which node 2 holds, which waits for B, which node 1 holds, which waits for nothing."""
    bus = Bus()
    first = hold(bus, 1, b"B", 1)
    hold(bus, 2, b"A", 2)
    hold(bus, 2, b"B", 2, PR)
    bus.advance(100 * MS)
    hold(bus, 3, b"A", 3)
    bus.advance(300 * MS)
    for node in (1, 2, 3):
        said = why(bus, node)
        assert said.withheld == ()
        (waiting,) = said.waits
        assert (waiting.party.node, waiting.party.asked, waiting.party.mode) == (3, EX, None)
        assert 0.3 <= waiting.waited_s < 0.4
        (held,) = waiting.by
        assert (held.how, held.party.node, held.party.mode, held.party.program) == ("holds", 2, EX, "client")
        (then,) = held.then
        assert (then.party.name, then.party.asked) == (b"B", PR)
        assert then.waited_s >= 0.4
        (last,) = then.by
        assert (last.party.node, last.party.handle, last.then) == (1, first, ())
        lines = list(said.lines())
        assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 4, 6]
        assert lines[0].startswith("process 100 (client) of node 3 waits for EX on A, 0.")
        assert lines[-1].endswith(", and waits for nothing")
        assert said.to_json()["waits"][0]["by"][0]["then"][0]["by"][0]["node"] == 1


def test_how_long_it_is_held() -> None:
    bus = Bus()
    hold(bus, 1, b"A", 1)
    bus.advance(500 * MS)
    hold(bus, 2, b"A", 2)
    bus.advance(250 * MS)
    held = why(bus, 1).waits[0].by[0].party.held_s
    assert held is not None
    assert 0.75 <= held < 0.9


def test_who_is_ahead_is_explained_once() -> None:
    bus = Bus()
    hold(bus, 1, b"A", 1)
    for owner in (2, 3, 4):
        hold(bus, 2, b"A", owner)
    waits = why(bus, 1).waits
    ways = [[each.how for each in wait.by] for wait in waits]
    assert ways == [["holds"], ["holds", "ahead"], ["holds", "ahead", "ahead"]]
    assert waits[1].by[1].then[0].again
    assert "(see above)" in str(why(bus, 1))


def test_a_circle_ends_where_it_began() -> None:
    """NODLCKWT requests may close one: nobody breaks it."""
    bus = Bus()
    hold(bus, 1, b"A", 1)
    hold(bus, 2, b"B", 2)
    hold(bus, 1, b"B", 1, nodlckwt=True)
    hold(bus, 2, b"A", 2, nodlckwt=True)
    bus.advance(300 * MS)
    (waiting,) = why(bus, 3).waits
    back = waiting.by[0].then[0].by[0].then[0]
    assert (back.party, back.again, back.by) == (waiting.party, True, ())


def test_a_multi_lock_waits_as_a_whole() -> None:
    bus = Bus()
    hold(bus, 1, b"A", 1)
    hold(bus, 1, b"B", 1)
    bus.lock_all(2, b"A", b"C")
    bus.run()
    hold(bus, 3, b"C", 3)
    (waiting,) = why(bus, 1, b"C").waits[1:]
    ahead = waiting.by[0]
    assert ahead.how == "ahead"
    assert [each.party.name for each in ahead.then] == [b"C", b"A"]
    assert ahead.then[1].by[0].party.node == 1
    assert ahead.then[0].together == (b"A", b"C")


def test_private_queues_are_known_to_the_owner_alone() -> None:
    bus = Bus()
    hold(bus, 1, b"A", 1)
    said = why(bus, 2)
    assert (said.known, said.state, said.owner) == (False, "private", 1)
    assert "node 1 alone" in str(said)
    assert why(bus, 1).held[0].mode == EX
    assert "nobody waits for A" in str(why(bus, 1))
    hold(bus, 1, b"A", 7, session=2)
    assert why(bus, 1).waits[0].by[0].party.session == 1


def test_long_queues_are_cut() -> None:
    bus = Bus()
    for _ in range(MAX_WAITS + 5):
        bus.lock(1, b"A")
    bus.lock(2, b"A")
    bus.run()
    said = why(bus, 3)
    assert len(said.waits) == MAX_WAITS
    assert said.others == 5
    assert len(said.waits[-1].by) == MAX_BLOCKERS
    assert said.waits[-1].others == MAX_WAITS - MAX_BLOCKERS


class TestWithheld:
    def test_nothing(self) -> None:
        assert why(Bus(), 1).withheld == ()
        assert str(why(Bus(), 1)) == "nobody waits for A"

    def test_the_horizon_names_who_vanished(self) -> None:
        bus = Bus()
        hold(bus, 3, b"A", 1, NL)
        hold(bus, 2, b"A", 2, EX)
        bus.kill(3)
        bus.view([1, 2])
        bus.lock(1, b"A", mode=NL)
        bus.run()
        (said,) = why(bus, 1).withheld
        assert said.reason == "horizon"
        assert said.nodes == (3,)
        assert said.left_s is not None
        assert 0 < said.left_s <= 2.1
        assert said.text == f"answers wait until the horizon because node 3 vanished: {said.left_s:.1f} s left"
        bus.lock(1, b"A", mode=EX)
        bus.call(2, "unlock", h=2)
        bus.run()
        assert why(bus, 1).untold == 2
        assert "2 answers about this name wait for that" in str(why(bus, 1))
        bus.advance(LEASE + 100 * MS)
        assert why(bus, 1).withheld == ()
        assert why(bus, 1).untold == 0

    def test_no_quorum(self) -> None:
        bus = Bus()
        bus.view([1])
        assert [each.reason for each in why(bus, 1).withheld] == ["quorum", "horizon"]

    def test_joining_and_a_cold_start(self) -> None:
        bus = Bus(bootstrap=False)
        bus.view([1, 2])
        assert [each.reason for each in why(bus, 1).withheld] == ["horizon"]
        assert "the cluster has just started" in str(why(bus, 1))
        bus.view([1, 2, 3])
        assert why(bus, 3).withheld[0].reason == "transfer"

    def test_leaving(self) -> None:
        bus = Bus()
        bus[1].service.leaving(bus.now)
        assert "leaving" in [each.reason for each in why(bus, 1).withheld]
