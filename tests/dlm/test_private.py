"""Private, Shared, Handover: who decides, what it costs, and the crossings of pitfalls A1–A9."""

from __future__ import annotations

import pytest

from dlm import queries
from dlm.messages import Kind, key_of
from dlm.modes import EX, NL, PR
from dlm.names import Form
from dlm.table import Table
from dlm.upkeep import GIVE_BACK_AFTER_US, YIELD_AFTER_US
from tests.dlm.bus import MS, Bus

R = key_of("default", b"R")


def form(bus: Bus, node: int = 1) -> str:
    """The form of R and its owner at a node."""
    name = bus[node].table.names.get(R)
    return "unknown" if name is None else f"{name.form.name.lower()}{name.owner or ''}"


def test_claim_then_no_messages() -> None:
    bus = Bus()
    first, h = bus.lock(1)
    assert bus.result(first) is None
    bus.run()
    assert bus.granted(first)
    assert form(bus, 2) == "private1"
    sent = bus.submitted
    bus.call(1, "unlock", h=h)
    fences = []
    for _ in range(50):
        again, h = bus.lock(1)
        fences.append(bus.result(again)["fence"])
        assert bus.result(bus.call(1, "unlock", h=h)) == {}
    assert bus.submitted == sent
    assert fences == sorted(set(fences))
    assert bus[1].service.status()["fast"] == 101


def test_numbers_are_refilled_without_stopping_the_fast_path() -> None:
    bus = Bus()
    _, h = bus.lock(1)
    bus.run()
    bus.call(1, "unlock", h=h)
    sent = bus.submitted
    for _ in range(5000):
        rid, h = bus.lock(1)
        assert bus.granted(rid)
        bus.call(1, "unlock", h=h)
        if bus[1].queue:
            bus.run()
    assert bus.submitted - sent == 1  # one refill, no operation
    bus.check_at_rest()


def test_shared_name_costs_one_multicast_each() -> None:
    bus = Bus()
    bus.lock(1, mode=NL)
    bus.run()
    bus.lock(2, mode=NL)
    bus.run()
    assert form(bus) == "shared"
    sent = bus.submitted
    rid, h = bus.lock(3, mode=EX)
    bus.run()
    assert bus.granted(rid)
    assert bus.submitted == sent + 1
    bus.call(3, "unlock", h=h)
    bus.run()
    assert bus.submitted == sent + 2


def test_stranger_handover_publish() -> None:
    bus = Bus()
    mine, h = bus.lock(1)
    bus.run()
    theirs, _ = bus.lock(2)
    bus.sequence()
    bus.deliver()
    assert form(bus) == form(bus, 3) == "handover1"
    assert bus.kinds(1) == [Kind.PUBLISH]
    bus.run()
    assert form(bus, 3) == "shared"
    assert bus.result(theirs) is None
    bus.call(1, "unlock", h=h)
    bus.run()
    assert bus.granted(theirs)
    assert bus.result(theirs)["fence"] > bus.result(mine)["fence"]
    bus.check_at_rest()


def test_a1_cancel_right_after_a_claim() -> None:
    bus = Bus()
    x, _ = bus.lock(1, session=1)
    y, hy = bus.lock(1, session=2)
    bus.sequence()
    bus.deliver(count=1)
    assert bus.granted(x)
    assert form(bus) == "private1"
    cancel = bus.call(1, "cancel", session=2, h=hy)  # y's request is still under way: no fast path (K12)
    assert bus.result(cancel) is None
    bus.run()
    assert bus.result(y) == "canceled"
    assert bus.result(cancel) == {"canceled": True}
    assert [lock.key[1] for lock in bus[1].table.local(R).locks.values()] == [1]


def test_a2_give_back_crosses_a_strangers_request() -> None:
    bus = Bus()
    _, h = bus.lock(1)
    bus.run()
    bus.call(1, "unlock", h=h)
    bus.now += GIVE_BACK_AFTER_US + MS
    bus.tokens()
    bus[1].service.fire(bus.now)
    assert bus.kinds(1) == [Kind.GIVE_BACK]
    own, _ = bus.lock(1)  # after sending it, the owner may not grant alone
    assert bus.result(own) is None
    theirs, h2 = bus.lock(2)
    bus.sequence(2, 1)  # the stranger's request comes first
    bus.run()
    outcomes = [bus.granted(theirs), bus.granted(own)]
    assert outcomes == [True, False]
    bus.call(2, "unlock", h=h2)
    bus.run()
    assert bus.granted(own)
    bus.check_at_rest()


def test_idle_names_are_given_back_in_one_message() -> None:
    bus = Bus()
    for i in range(20):
        _, h = bus.lock(1, name=b"n%d" % i)
        bus.run()
        bus.call(1, "unlock", h=h)
    sent = bus.submitted
    bus.advance(GIVE_BACK_AFTER_US + 500 * MS)
    assert bus.submitted == sent + 1
    assert bus[2].table.names == {}
    bus.check_at_rest()


def test_a3_the_publication_is_composed_at_the_delivery_of_the_yield() -> None:
    bus = Bus()
    x, hx = bus.lock(1, session=1)
    bus.run()
    y, _ = bus.lock(1, session=2)
    bus.now += YIELD_AFTER_US + MS
    bus.tokens()
    bus[1].service.fire(bus.now)
    assert bus.kinds(1) == [Kind.YIELD]
    bus.call(1, "unlock", session=1, h=hx)  # ordered now, behind the Yield
    bus.sequence()
    bus.deliver(count=1)
    assert form(bus) == "handover1"
    bus.run()
    assert bus.granted(x)
    assert bus.granted(y)
    assert form(bus) == "shared"
    assert list(bus[2].table.names[R].resource.homes.items()) == [(1, 1)]
    bus.check_at_rest()


def test_the_200_ms_rule_by_the_clock() -> None:
    bus = Bus()
    bus.lock(1, session=1)
    bus.run()
    bus.lock(1, session=2)
    bus.advance(YIELD_AFTER_US - 50 * MS)
    assert form(bus) == "private1"
    bus.advance(200 * MS)
    assert form(bus, 3) == "shared"


@pytest.mark.parametrize("who", ["stranger", "owner"])
def test_a4_client_dies_in_handover(who: str) -> None:
    bus = Bus()
    bus.lock(1)
    bus.run()
    z, _ = bus.lock(2)
    bus.sequence()
    bus.deliver()
    assert form(bus) == "handover1"
    bus.close(2 if who == "stranger" else 1)
    bus.sequence(2, 3)  # the end of the stranger is ordered before the publication
    bus.run()
    name = bus[3].table.names.get(R)
    if who == "stranger":
        assert bus.result(z) is None
        assert name is not None
        assert dict(name.resource.homes) == {1: 1}
    else:
        assert bus.granted(z)
    bus.check_at_rest()


def test_a5_eight_operations_of_one_node_make_it_private_again() -> None:
    bus = Bus()
    _, h1 = bus.lock(1, mode=PR)
    bus.run()
    _, h2 = bus.lock(2, mode=PR)
    bus.run()
    assert form(bus) == "shared"
    bus.call(1, "unlock", h=h1)
    bus.run()
    for mode in (NL, PR, NL, PR, NL, PR, NL):
        bus.call(2, "convert", h=h2, mode=mode)
        bus.run()
    assert form(bus) == "shared"
    top = max(bus.highest[b"R"].values())
    bus.call(2, "convert", h=h2, mode=PR)
    bus.run()
    assert form(bus) == form(bus, 2) == "private2"
    sent = bus.submitted
    rid = bus.call(2, "convert", h=h2, mode=EX)
    assert bus.result(rid)["fence"] > top  # B2: only numbers reserved since this ownership began
    assert bus.submitted == sent
    bus.check_at_rest()


def test_a5_a_keeper_elsewhere_keeps_the_name_shared() -> None:
    bus = Bus()
    bus.lock(1, mode=NL)
    bus.run()
    _, h = bus.lock(2, mode=PR)
    for _ in range(12):
        for mode in (NL, EX):
            bus.call(2, "convert", h=h, mode=mode)
            bus.run()
    assert form(bus) == "shared"


@pytest.mark.parametrize("verb", ["convert", "unlock", "cancel"])
def test_a8_only_a_new_lock_request_claims(verb: str) -> None:
    bus = Bus()
    bus.lock(1, name=b"other")
    bus.run()
    before = bus[2].table.digest()
    home = bus[1].service.home
    home.send(Kind[verb.upper()], (R, 1, 99, 3, 0, None), (R,))
    bus.run()
    assert form(bus) == "unknown"
    assert bus[2].table.digest() != before  # the position moved, nothing else
    bus.check_at_rest()


def test_a9_the_state_at_delivery_counts() -> None:
    bus = Bus()
    a, _ = bus.lock(1)
    b, _ = bus.lock(2)
    c, _ = bus.lock(3, noqueue=True)
    bus.sequence(2, 1, 3)
    bus.run()
    assert bus.granted(b)
    assert bus.result(a) is None
    assert bus.result(c) == "again"
    bus.check_at_rest()


def test_b1_the_fence_grows_over_give_back_and_new_claims() -> None:
    bus = Bus()
    fences = []
    for node in (1, 2, 3, 1):
        rid, h = bus.lock(node)
        bus.run()
        fences.append(bus.result(rid)["fence"])
        bus.call(node, "unlock", h=h)
        bus.advance(GIVE_BACK_AFTER_US + 500 * MS)
        assert form(bus) == "unknown"
    assert fences == sorted(set(fences))


def test_outside_the_lease_the_owner_decides_nothing_alone() -> None:
    bus = Bus()
    _, h = bus.lock(1)
    bus.run()
    bus.call(1, "unlock", h=h)
    bus.now += 3_000_000  # no token for longer than a lease
    rid, _ = bus.lock(1)
    assert bus.result(rid) is None
    assert bus.kinds(1) == [Kind.LOCK]


def test_last_unlock_makes_a_new_value_block() -> None:
    bus = Bus()
    _, h = bus.lock(1, valblk=True)
    bus.run()
    bus.call(1, "unlock", h=h, valblk=True, value=b"v")
    rid, h = bus.lock(1, valblk=True)
    assert bus.result(rid)["value"] == b""
    assert bus.result(rid)["value_valid"] is True


def test_forms_are_told_to_people() -> None:
    bus = Bus()
    bus.lock(1)
    bus.run()
    rows = {node: bus.result(bus.call(node, "ls", space="default", limit=10)) for node in (1, 2)}
    assert rows[1][0]["state"] == rows[2][0]["state"] == Form.PRIVATE.name.lower()
    assert rows[1][0]["owner"] == rows[2][0]["owner"] == 1
    assert rows[1][0]["holders"][0]["h"] == 1
    assert rows[2][0]["holders"] is None
    assert bus.result(bus.call(2, "show", name=b"nothing")) == "unknown"


class TestTurns:
    """Two nodes that take turns on a name: it is handed over once, not at every turn."""

    def test_they_cost_two_messages_a_turn(self) -> None:
        bus = Bus()
        for turn in range(6):
            before, node = bus.submitted, 1 + turn % 2
            _, h = bus.lock(node)
            bus.run()
            bus.call(node, "unlock", h=h)
            bus.run()
            if turn > 1:
                assert bus.submitted - before == 2
        assert bus[3].table.names[R].form is Form.SHARED
        assert R in bus[3].table.vacant

    def test_the_value_block_goes_with_the_last_lock(self) -> None:
        """L10, also where the name stays."""
        bus = Bus()
        _, one = bus.lock(1, valblk=True)
        bus.run()
        _, two = bus.lock(2, mode=NL)
        bus.run()
        bus.call(1, "unlock", h=one, valblk=True, value=b"old")
        bus.run()
        bus.call(2, "unlock", h=two)
        bus.run()
        rid, _ = bus.lock(2, valblk=True)
        bus.run()
        answer = bus.result(rid)
        assert (answer["value"], answer["value_valid"]) == (b"", True)

    def test_a_vacant_name_is_not_shown(self) -> None:
        bus = Bus()
        for node in (1, 2):
            _, h = bus.lock(node)
            bus.run()
            bus.call(node, "unlock", h=h)
            bus.run()
        assert queries.listing(bus[3].table, "default", b"", 10) == []

    def test_the_eldest_goes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dlm.table.VACANT_KEPT", 3)
        bus = Bus()
        for number in range(5):
            for node in (1, 2):
                _, h = bus.lock(node, b"n%d" % number)
                bus.run()
                bus.call(node, "unlock", h=h)
                bus.run()
        assert list(bus[3].table.vacant) == [key_of("default", b"n%d" % number) for number in (2, 3, 4)]
        assert bus[1].table.names.keys() == bus[3].table.vacant.keys()

    def test_a_joiner_knows_them(self) -> None:
        bus = Bus()
        for node in (1, 2):
            _, h = bus.lock(node)
            bus.run()
            bus.call(node, "unlock", h=h)
            bus.run()
        table = Table.decode(3, bus[1].table.encode(), 0)
        assert list(table.vacant) == [R]
        assert table.encode() == bus[1].table.encode()
