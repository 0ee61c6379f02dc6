"""Flags through the service: argument errors by rule, orphans (P1–P4), advice to holders (B6–B10)."""

from __future__ import annotations

from typing import Any

import pytest

from dlm.modes import CR, CW, EX, NL, PR, PW
from tests.dlm.bus import CLIENT, LEASE, MS, Bus

BAD: list[tuple[str, str, dict[str, Any]]] = [
    ("E1", "lock", {"mode": 6}),
    ("E1", "lock", {"mode": -1}),
    ("E2", "lock", {"name": b"x" * 65}),
    ("E3", "lock", {"cancel": True}),
    ("E4", "lock", {"quecvt": True}),
    ("E4", "lock", {"convdeadlk": True}),
    ("E5", "lock", {"mode": NL, "expedite": True, "noqueue": True}),
    ("E5", "lock", {"mode": CR, "expedite": True}),
    ("E11", "lock", {"space": ""}),
    ("E13", "lock", {"parent": 1}),
    ("E13", "lock", {"range": (0, 9)}),
    ("E1", "convert", {"mode": 9}),
    ("E3", "convert", {"cancel": True}),
    ("E4", "convert", {"convdeadlk": True, "noqueue": True}),
    ("E5", "convert", {"expedite": True}),
    ("E8", "convert", {"h": 99}),
    ("E9", "convert", {"mode": NL, "quecvt": True}),
    ("E9", "convert", {"mode": PR, "quecvt": True}),
    ("E13", "convert", {"range": (0, 9)}),
    ("E20", "unlock", {"headque": True}),
    ("E20", "unlock", {"cancel": True, "forceunlock": True}),
    ("E21", "unlock", {"h": 99}),
]


@pytest.mark.parametrize(("rule", "verb", "args"), BAD, ids=lambda x: str(x))
def test_argument_errors_name_their_rule_and_change_nothing(rule: str, verb: str, args: dict[str, Any]) -> None:
    bus = Bus()
    _, h = bus.lock(1, b"held", PR)
    bus.run()
    said: list[str] = []
    refuse = bus[1].host.refuse

    def on_refuse(session: int, rid: int, code: str, message: str, **more: Any) -> None:
        said.append(more.get("rule", ""))
        refuse(session, rid, code, message, **more)

    bus[1].host.refuse = on_refuse  # type: ignore[method-assign]
    base: dict[str, Any] = {"lock": {"h": 50, "name": b"x", "mode": EX}, "convert": {"h": h, "mode": EX}}.get(
        verb, {"h": h}
    )
    before = bus[1].table.digest()
    rid = bus.call(1, verb, **{**base, **args})
    bus.run()
    assert said == [rule]
    expected = {"E8": "unknown", "E21": "unknown", "E13": "not_supported"}.get(rule, "invalid")
    assert bus.result(rid) == expected
    assert bus[1].table.digest() == before


def test_e10_a_lock_that_waits_or_converts_is_busy() -> None:
    bus = Bus()
    _, a = bus.lock(1, mode=PR)
    bus.lock(2, mode=PR)
    bus.run()
    first = bus.call(1, "convert", h=a, mode=EX)
    assert bus.result(bus.call(1, "convert", h=a, mode=PW)) == "busy"
    bus.run()
    assert bus.result(bus.call(1, "convert", h=a, mode=PW)) == "busy"
    assert bus.result(first) is None


def test_e23_e24_cancels() -> None:
    bus = Bus()
    _, a = bus.lock(1)
    bus.run()
    assert bus.result(bus.call(1, "unlock", h=a, cancel=True)) == {"canceled": False}  # E24: nothing happens
    waits, b = bus.lock(2)
    bus.run()
    one = bus.call(2, "cancel", h=b)
    assert bus.result(bus.call(2, "cancel", h=b)) == "invalid"
    bus.run()
    assert (bus.result(one), bus.result(waits)) == ({"canceled": True}, "canceled")


# -- orphans ------------------------------------------------------------------------------------------------


def orphaned(bus: Bus, shared: bool, mode: int = EX) -> tuple[int, int]:
    """A persistent lock of session 1 at node 1, whose session then goes; (its h, its fence)."""
    rid, h = bus.lock(1, mode=mode, persistent=True)
    bus.run()
    if shared:
        _, other = bus.lock(2, mode=NL)
        bus.run()
        bus.call(2, "unlock", h=other)
        bus.run()
        assert bus[3].table.names[b"\0R"].owner == 0
    bus.close(1)
    bus.run()
    bus[1].service.open(3, CLIENT, bus.now)
    return h, bus.result(rid)["fence"]


@pytest.mark.parametrize("shared", [False, True])
def test_p1_a_persistent_lock_outlives_its_session_and_is_adopted(shared: bool) -> None:
    bus = Bus()
    _, fence = orphaned(bus, shared)
    row = bus.result(bus.call(1, "show", 3, name=b"R"))
    assert [holder["orphan"] for holder in row["holders"]] == [True]
    assert bus.result(bus.lock(1, mode=EX, session=3, noqueue=True)[0]) in ("again", None)
    bus.run()
    other_mode, _ = bus.lock(1, mode=PR, session=3, orphan=True)
    elsewhere, _ = bus.lock(2, mode=EX, orphan=True)
    unknown, _ = bus.lock(1, b"Q", EX, 3, orphan=True)
    adopted, h = bus.lock(1, mode=EX, session=3, orphan=True)
    bus.run()
    assert [bus.result(r) for r in (other_mode, elsewhere, unknown)] == ["again", "unknown", "unknown"]
    assert bus.result(adopted)["mode"] == EX
    assert bus.result(adopted)["fence"] > fence
    assert not bus[1].service.home.orphans
    bus.call(1, "unlock", 3, h=h)
    bus.run()
    free, _ = bus.lock(3, mode=EX, noqueue=True)
    bus.run()
    assert bus.granted(free)
    bus.check_at_rest()


def test_p1_a_pending_conversion_is_withdrawn_and_a_waiter_vanishes() -> None:
    bus = Bus()
    _, a = bus.lock(1, mode=PR, persistent=True)
    bus.lock(2, mode=PR)
    bus.run()
    bus.call(1, "convert", h=a, mode=EX)
    bus.lock(1, mode=EX, persistent=True)
    bus.run()
    bus.close(1)
    bus.run()
    resource = bus[3].table.names[b"\0R"].resource
    assert [(lock.mode, lock.orphan) for _, lock in sorted(resource.locks.items())] == [(PR, True), (PR, False)]
    assert not resource.queued


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("by", [1, 2])
def test_p4_orphans_are_purged(shared: bool, by: int) -> None:
    bus = Bus()
    orphaned(bus, shared)
    waits, _ = bus.lock(3, mode=EX)
    bus.run()
    assert bus.result(waits) is None
    purge = bus.call(by, "purge", 3 if by == 1 else 1, node=1)
    bus.run()
    assert bus.result(purge) == {"purged": 1 if by == 1 else None}
    assert bus.granted(waits)
    assert bus.result(waits)["value_valid"] is True  # no VALBLK was asked for
    assert not bus[1].table.names[b"\0R"].resource.valid  # the EX holder did not end in order (L7)
    bus.check_at_rest()


def test_p4_a_living_process_is_left_alone_and_may_drop_its_own() -> None:
    bus = Bus()
    _, h = bus.lock(1, mode=EX)
    bus.run()
    bus[1].service.open(5, CLIENT.__class__(777, 0, 0, "other"), bus.now)
    assert bus.result(bus.call(1, "purge", 5, pid=100)) == "invalid"
    assert bus.result(bus.call(1, "purge", 1, pid=100)) == {"purged": 1}
    assert bus[1].pushes == [(1, "lost", {"h": h, "reason": "purged"})]
    bus.run()
    assert not bus[1].table.names[b"\0R"].resource.locks


def test_p2_orphans_go_with_their_node() -> None:
    bus = Bus()
    orphaned(bus, shared=True)
    bus.kill(1)
    bus.view([2, 3])
    rid, _ = bus.lock(2, mode=EX)
    bus.advance(2 * LEASE)
    assert bus.granted(rid)


# -- advice -------------------------------------------------------------------------------------------------


def advice(bus: Bus, node: int) -> list[int]:
    """The modes that clients of a node were told they block."""
    return [data["mode"] for _, kind, data in bus[node].pushes if kind == "blocking"]


def test_only_those_who_asked_are_told_and_private_names_need_no_message() -> None:
    bus = Bus()
    bus.lock(1, mode=PR, blocking=True)
    bus.lock(1, mode=PR)
    bus.run()
    sent = bus.submitted
    bus.lock(1, mode=EX, session=2)
    assert advice(bus, 1) == [EX]
    assert bus.submitted == sent


def test_b8_advice_waits_for_the_view_and_for_its_grant() -> None:
    bus = Bus()
    bus.lock(3, mode=NL)
    bus.lock(2, mode=NL)
    bus.run()
    a, _ = bus.lock(1, mode=EX, blocking=True)
    bus.lock(2, mode=PR, session=2)
    bus.sequence(1, 2)
    bus.kill(3)  # holds a lease: grants wait for it (K10)
    bus.view([1, 2], rest={1: 2})
    bus.run()
    bus.advance(100 * MS)
    assert bus.result(a) is None
    assert advice(bus, 1) == []
    bus.advance(2 * LEASE)
    assert bus.granted(a)
    assert advice(bus, 1) == [PR]


def test_b6_advice_that_came_too_late_is_dropped() -> None:
    bus = Bus()
    _, h = bus.lock(1, mode=EX, blocking=True)
    _, o = bus.lock(2, mode=NL)
    bus.run()
    down = bus.call(1, "convert", h=h, mode=CR, blocking=True)
    up = bus.call(2, "convert", h=o, mode=CW)
    bus.sequence(2, 1)  # CW is asked for first: EX blocks it
    bus.view([1, 2, 3], rest={1: 2})  # both are told together, with the view
    bus.run()
    assert (bus.result(down)["mode"], bus.result(up)["mode"]) == (CR, CW)
    assert advice(bus, 1) == []


def test_b10_no_advice_after_the_end() -> None:
    bus = Bus()
    _, h = bus.lock(1, mode=EX, blocking=True)
    bus.lock(2, mode=NL)
    bus.run()
    bus.lock(2, mode=EX)
    bus.sequence(2)
    bus.call(1, "unlock", h=h)
    bus.run()
    assert advice(bus, 1) == []


def test_who_blocks_is_part_of_the_state() -> None:
    """B4 over a handover: the owner publishes what its holders have heard."""
    bus = Bus()
    bus.lock(1, mode=PR, blocking=True)
    bus.run()
    bus.lock(1, mode=EX, session=2)
    assert advice(bus, 1) == [EX]
    bus.lock(2, mode=PW)
    bus.run()
    assert bus[3].table.names[b"\0R"].owner == 0
    assert advice(bus, 1) == [EX]
