"""What answers wait for, since when, until when, and what to do: every kind of record, over the bus."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from dlm.modes import NL, PR
from dlm.reasons import Withheld
from dlm.waiting import FOR, _span, records
from tests.dlm.bus import LEASE, MS, Bus
from tests.dlm.fencing import FencedBus, refused
from tests.dlm.told import Told, done, stable

SECOND = 1000 * MS
HORIZON = LEASE + 200 * MS


def waits(bus: Bus, node: int, **about: Any) -> dict[str, dict[str, Any]]:
    """By what they are for; every record can be sent, and be read by a client."""
    bus[node].service.fire(bus.now)  # it has no clock of its own
    rows = records(bus[node].service, **about)
    for row in rows:
        assert msgpack.unpackb(msgpack.packb(row)) == row
        assert row["for"] in FOR
        assert row["text"]
        assert row["remedy"]
        assert next(Withheld.from_row(row).lines()) == row["text"]
    assert [FOR.index(row["for"]) for row in rows] == sorted(FOR.index(row["for"]) for row in rows)
    return {row["for"]: row for row in rows}


def fail_3(bus: Bus, *names: bytes) -> None:
    """Node 3 holds these, and fails."""
    for name in names:
        bus.lock(3, name)
        bus.run()
    bus.kill(3)
    bus.view([1, 2])
    bus.run()


def test_nothing() -> None:
    assert waits(Bus(), 1) == {}


def test_quorum() -> None:
    bus = Bus()
    bus.view([1])
    bus.advance(12 * SECOND)
    row = waits(bus, 1)["quorum"]
    assert row["since_us"] == 12 * SECOND
    assert row["until_us"] is None
    assert row["text"] == "no answers: this node is not in the primary component since 12 s"
    assert "n2, n3" in row["remedy"]


def test_transfer() -> None:
    bus = Bus()
    bus.kill(3)
    bus.view([1, 2])
    bus.boot(3)
    bus.view([1, 2, 3])
    assert "transfer" in waits(bus, 3)
    bus.run()
    assert "transfer" not in waits(bus, 3)


def test_lease() -> None:
    bus = Bus()
    bus.now += LEASE + 3 * SECOND
    row = waits(bus, 1)["lease"]
    assert 3 * SECOND <= row["since_us"] <= 3 * SECOND + 200 * MS
    bus.tokens()
    assert waits(bus, 1) == {}


def test_leaving() -> None:
    bus = Bus()
    bus[1].service.leaving(bus.now)
    assert list(waits(bus, 1)) == ["leaving"]


def test_horizon() -> None:
    bus = Bus()
    fail_3(bus)
    bus.advance(SECOND)
    row = waits(bus, 1)["horizon"]
    assert (row["node"], row["nodes"]) == (3, [3])
    assert row["since_us"] == SECOND
    assert 0 < row["until_us"] < LEASE
    bus.advance(HORIZON)
    assert waits(bus, 1) == {}


def test_horizon_of_a_name_in_a_lockspace_that_settles() -> None:
    bus = stable()
    fail_3(bus, b"A")
    assert "horizon" in waits(bus, 1, key=b"\0A")
    assert waits(bus, 1, key=b"\0free") == {}


def test_fencing() -> None:
    """As in the purpose: since when, who does it, and how the agent ended."""
    bus = FencedBus(retries=9)
    bus.agent = refused
    fail_3(bus, b"A", b"B")
    bus.advance(41 * SECOND)
    row = waits(bus, 1)["fencing"]
    assert row["text"].startswith("waiting for fencing of node 3 since 41 s; actor node 1; agent exit 1")
    assert (row["node"], row["since_us"], row["until_us"]) == (3, 41 * SECOND, None)
    assert "repair the agent" in row["remedy"]
    assert "dlm fence-ack n3" in row["remedy"]
    assert waits(bus, 2, key=b"\0A")["fencing"]["text"].startswith("waiting for fencing of node 3")
    assert "fencing" not in waits(bus, 2, key=b"\0free")


def test_fencing_without_an_agent() -> None:
    bus = stable(fencing=True)
    fail_3(bus, b"A")
    row = waits(bus, 1)["fencing"]
    assert row["text"].endswith("no member has an agent for node 3")
    assert row["remedy"].startswith("configure an agent, [dlm.fencing.n3]")


def test_recovery() -> None:
    bus = stable(recovery=True)
    fail_3(bus, b"A")
    row = waits(bus, 1)["recovery"]
    assert "too early" in row["text"]
    bus.advance(HORIZON)
    row = waits(bus, 1)["recovery"]
    assert row["text"] == "waiting for recovery of lockspace default from the failure of node 3 since 2.2 s"
    assert row["remedy"].endswith("dlm recovered default 3")
    assert (row["node"], row["space"]) == (3, "default")


def test_delay() -> None:
    bus = stable(lock_delay_ms=10_000)
    fail_3(bus, b"A")
    bus.advance(4 * SECOND)
    row = waits(bus, 1)["delay"]
    assert row["since_us"] == 4 * SECOND
    assert 6 * SECOND <= row["until_us"] <= 6_300 * MS
    assert "6.2 s left" in row["text"]


def test_stable() -> None:
    bus = stable()
    for _ in range(2):
        bus.lock(1, mode=PR)
    bus.sequence()
    bus.deliver(1)
    bus.now += SECOND
    row = waits(bus, 1)["stable"]
    assert row["text"].startswith("2 answers wait until all members have what decided them, since 1.0 s")
    bus.run()
    assert waits(bus, 1) == {}


def test_a_write_to_a_value_block() -> None:
    bus = Bus()
    for node in (2, 3):
        bus.lock(node, mode=NL)
        bus.run()
    _, h = bus.lock(1)
    bus.run()
    bus.call(1, "unlock", h=h, valblk=True, value=b"v")
    bus.sequence()
    bus.deliver(1)
    assert waits(bus, 1)["stable"]["text"].startswith("1 answer wait")


def test_only_what_concerns_the_lockspace() -> None:
    bus = Told({0: {"web": {"recovery": True}}})
    done(bus, 3, "space_create", space="web")
    bus.lock(3, b"A", space="web")
    bus.run()
    bus.kill(3)
    bus.view([1, 2])
    bus.advance(HORIZON)
    assert list(waits(bus, 1)) == list(waits(bus, 1, space="web")) == ["recovery"]
    assert waits(bus, 1, space="default") == {}


def test_it_is_in_the_status_and_an_answer() -> None:
    bus = stable(recovery=True)
    fail_3(bus, b"A")
    rows = bus[1].service.status()["waiting"]
    assert [row["for"] for row in rows] == ["horizon", "recovery"]
    assert bus.result(bus.call(1, "waiting", space="default")) == rows
    assert [row["for"] for row in bus.result(bus.call(1, "why", name=b"A"))["withheld"]] == ["horizon", "recovery"]


@pytest.mark.parametrize(
    ("us", "text"),
    [(0, "0.0 s"), (340_000, "0.3 s"), (41 * SECOND, "41 s"), (119 * SECOND, "119 s"), (600 * SECOND, "10 min"),
     (7200 * SECOND, "2 h"), (864_000 * SECOND, "10 days")],
)  # fmt: skip
def test_spans(us: int, text: str) -> None:
    assert _span(us) == text
