"""Multi-locks over whole lock managers: all or none, in every mix of forms, and what each costs (F2–F4)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from dlm import queries
from dlm.arguments import MAX_NAME
from dlm.group import MAX_BATCH, weight
from dlm.home import LOCKS_PER_NAME
from dlm.lock import Lock
from dlm.messages import Kind, encode, key_of
from dlm.modes import CR, EX, NL, PR, PW
from dlm.resource import Resource
from dlm.upkeep import GIVE_BACK_AFTER_US, YIELD_AFTER_US
from tests.dlm.bus import MS, Bus
from tests.dlm.forms import FORMS, A, B, C, form, own, prepare, share
from vsync.types import MAX_MESSAGE, RingId

# -- what it costs -------------------------------------------------------------------------------------------


def test_shared_names_cost_one_message_and_one_more() -> None:
    bus = Bus()
    names = [b"n%d" % i for i in range(10)]
    share(bus, *names)
    sent = bus.submitted
    rid, first = bus.lock_all(3, *names)
    bus.run()
    assert bus.submitted == sent + 1
    rows = bus.result(rid)["locks"]
    assert [row["h"] for row in rows] == list(range(first, first + 10))
    fences = [row["fence"] for row in rows]
    assert fences == list(range(fences[0], fences[0] + 10))  # one each, in the order of the names (F4)
    done = bus.unlock_all(3, first, 10)
    bus.run()
    assert bus.result(done) == {}
    assert bus.submitted == sent + 2
    bus.check_at_rest()


def test_own_names_cost_nothing() -> None:
    bus = Bus()
    own(bus, 1, A, B)
    sent = bus.submitted
    for _ in range(20):
        rid, first = bus.lock_all(1, A, B)
        assert bus.granted(rid)
        assert bus.result(bus.unlock_all(1, first, 2)) == {}
    assert bus.submitted == sent
    bus.advance(GIVE_BACK_AFTER_US + 100 * MS)  # and nothing keeps them
    assert form(bus, A) == form(bus, B) == "unknown"


def test_unknown_names_become_the_askers_own() -> None:
    bus = Bus()
    own(bus, 1, B)
    rid, _ = bus.lock_all(1, A, B, C)
    bus.run()
    assert bus.granted(rid)
    assert {form(bus, name, 2) for name in (A, B, C)} == {"private1"}


def test_names_that_one_node_uses_alone_become_its_own_again() -> None:
    """A5 counts an operation on several names as one on each."""
    bus = Bus()
    share(bus, A, B)
    bus.close(2, 2)
    bus.run()
    for rounds in range(4):
        assert form(bus, A) == form(bus, B) == "shared", rounds
        _, first = bus.lock_all(1, A, B)
        bus.run()
        bus.unlock_all(1, first, 2)
        bus.run()
    assert form(bus, A) == form(bus, B) == "private1"


# -- all or none, whatever the names are ---------------------------------------------------------------------


@pytest.mark.parametrize("forms", list(itertools.product(FORMS, repeat=2)), ids="-".join)
@pytest.mark.parametrize("how", ["wait", "try", "conflict", "try-conflict", "cancel", "close", "unlock"])
def test_every_mix_of_forms(forms: tuple[str, str], how: str) -> None:
    bus = Bus()
    names = (A, B)
    for name, what in zip(names, forms, strict=True):
        prepare(bus, name, what)
    for name, what in zip(names, forms, strict=True):
        if what == "handover":
            bus.lock(3, name, NL)  # a stranger's request is ordered before; the publication comes after
    conflict = how not in ("wait", "try")
    h = 0
    if conflict:  # the second name is taken by a node that may have it without changing what was prepared
        holder = 2 if forms[1] in ("theirs", "handover") else 1
        _, h = bus.lock(holder, B, EX if how != "try-conflict" else PW, session=2)
        if forms[1] != "handover":
            bus.run()
    rid, first = bus.lock_all(1, (A, EX), (B, PW), noqueue=how.startswith("try"))
    bus.sequence(3, 2, 1)
    for node in (1, 2, 3, 2, 1, 3):
        bus.deliver(node, count=1)
        bus.check()
    if how == "cancel":
        canceled = bus.call(1, "cancel", h=first)
    elif how == "close":
        bus.close(1)
    elif how == "unlock":
        ended = bus.call(1, "unlock", h=first + 1)
    bus.run()
    if how in ("wait", "try"):
        assert bus.granted(rid)
        bus.unlock_all(1, first, 2)
    elif how == "conflict":
        assert bus.result(rid) is None
        bus.call(holder, "unlock", 2, h=h)
        bus.run()
        assert bus.granted(rid)
        bus.unlock_all(1, first, 2)
    elif how == "try-conflict":
        assert bus.result(rid) == "again"
    elif how == "cancel":
        assert bus.result(rid) == "canceled"
        assert bus.result(canceled) == {"canceled": True}
    elif how == "unlock":
        assert bus.result(rid) == "canceled"
        assert bus.result(ended) == {}
    bus.run()
    bus.advance(YIELD_AFTER_US + 100 * MS)
    for name in names:  # nothing of it has stayed anywhere
        probe, _ = bus.lock(3, name, PR)
        bus.run()
        bus.advance(YIELD_AFTER_US + 100 * MS)
        assert bus.granted(probe) or (conflict and how != "conflict" and name == B)
    bus.check_at_rest()


def test_nobody_sees_a_part() -> None:
    """The name that is free stays free of it until the other one is free too."""
    bus = Bus()
    share(bus, A, B)
    _, h = bus.lock(2, B)
    bus.run()
    rid, _ = bus.lock_all(1, A, B)
    reader, _ = bus.lock(3, A, PR, noqueue=True)
    bus.run()
    assert bus.result(rid) is None
    assert bus.result(reader) == "again"  # it stands behind: no overtaking
    assert not any(lock.mode == EX for lock in bus[3].table.names[key_of("default", A)].resource.locks.values())
    bus.call(2, "unlock", h=h)
    bus.run()
    assert bus.granted(rid)


def test_first_come_first_served() -> None:
    """Who asked before a multi-lock is served before it, who asked after it is served after it, in each name."""
    bus = Bus()
    share(bus, A, B)
    _, holder = bus.lock(2, A)
    bus.run()
    before, b = bus.lock(3, B)
    bus.run()
    both, first = bus.lock_all(1, A, B)
    bus.run()
    after, _ = bus.lock(2, B, session=2)
    bus.run()
    assert bus.granted(before)
    bus.call(3, "unlock", h=b)
    bus.run()
    assert bus.result(after) is None  # B is free, and waits for the multi-lock
    bus.call(2, "unlock", h=holder)
    bus.run()
    assert bus.granted(both)
    assert bus.result(after) is None
    bus.unlock_all(1, first, 2)
    bus.run()
    assert bus.granted(after)


def test_conversions_go_first() -> None:
    """Q10: a part that fits waits as long as somebody converts there."""
    bus = Bus()
    share(bus, A, B)
    _, reader = bus.lock(2, A, PR)
    _, h = bus.lock(3, A, NL)
    bus.run()
    bus.call(3, "convert", h=h, mode=EX)
    bus.run()
    both, _ = bus.lock_all(1, (A, CR), (B, EX))
    bus.run()
    assert bus.result(both) is None
    bus.call(2, "unlock", h=reader)
    bus.run()
    assert bus.result(both) is None
    bus.call(3, "unlock", h=h)
    bus.run()
    assert bus.granted(both)


def test_circular_wishes_are_no_deadlock() -> None:
    """a+b, b+c, c+a, from three nodes at once, names of every kind: all are served."""
    for forms in itertools.product(("unknown", "mine", "shared"), repeat=3):
        bus = Bus()
        for name, what in zip((A, B, C), forms, strict=True):
            prepare(bus, name, what)
        asked = [(1, (A, B)), (2, (B, C)), (3, (A, C))]
        rids = [(node, *bus.lock_all(node, *names)) for node, names in asked]
        bus.run()
        for _ in range(3):
            bus.advance(YIELD_AFTER_US + 100 * MS)
            held = [(node, first) for node, rid, first in rids if bus.granted(rid) and (node, first)]
            for node, first in held:
                bus.unlock_all(node, first, 2)
            bus.run()
        assert all(bus.granted(rid) for _, rid, _ in rids), forms
        bus.check_at_rest()


def test_modes_each_its_own() -> None:
    bus = Bus()
    share(bus, A, B)
    bus.lock(2, A, PR)
    bus.run()
    rid, first = bus.lock_all(1, (A, PR), (B, EX), valblk=True)
    bus.run()
    assert [row["mode"] for row in bus.result(rid)["locks"]] == [PR, EX]
    bus.call(1, "unlock_all", locks=[{"h": first}, {"h": first + 1, "valblk": True, "value": b"v"}])
    bus.run()
    seen, _ = bus.lock(3, B, PR, valblk=True)
    bus.run()
    assert bus.result(seen)["value"] == b"v"


# -- refusals, limits, and what people see -------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"locks": []},
        {"locks": [(A, EX), (A, PR)]},
        {"locks": [(b"n%d" % i, EX) for i in range(MAX_BATCH + 1)]},
        {"locks": [(A, 6)]},
        {"locks": [(b"", EX)]},
        {"locks": [A]},
        {"locks": A},
        {"locks": [(A, EX)], "headque": True},
        {"locks": [(A, EX)], "persistent": True},
        {"locks": [(A, EX)], "quecvt": True},
        {"locks": [(A, EX)], "no_quorum": "maybe"},
        {"locks": [(A, EX)], "h": 0},
    ],
    ids=str,
)
def test_refused_at_once(bad: dict[str, Any]) -> None:
    bus = Bus()
    rid = bus.call(1, "lock_all", **{"h": 1, **bad})
    assert bus.result(rid) == "invalid"
    assert not bus[1].service.home.sessions[1].handles


def test_a_handle_in_use_is_refused() -> None:
    bus = Bus()
    bus.lock(1, A)
    bus.run()
    rid = bus.call(1, "lock_all", h=1, locks=[(B, EX), (C, EX)])
    assert bus.result(rid) == "exists"


def test_too_many_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlm.home.LOCKS_PER_NAME", 8)
    bus = Bus()
    own(bus, 1, A, B)
    _, h = bus.lock(1, A, session=2)
    rids = [bus.lock_all(1, A, B)[0] for _ in range(8)]
    assert [bus.result(rid) for rid in rids] == [None] * 7 + ["too_many"]
    bus.close(1)
    bus.call(1, "unlock", 2, h=h)
    assert not bus[1].service.home._on_name
    assert bus.granted(bus.lock_all(1, A, B, session=2)[0])


@pytest.mark.parametrize("count", [1, 2, 3, 10, MAX_BATCH])
@pytest.mark.parametrize("length", [1, MAX_NAME])
def test_what_waits_at_home_fits_into_one_publication(count: int, length: int) -> None:
    """Each part carries the names of all, so it counts for more than one lock (A3)."""
    space = "s" * length
    batch = tuple(key_of(space, b"%0*d" % (length, i % 10 if length == 1 else i)) for i in range(count))
    resource = Resource(lambda: 1)
    for h in range(LOCKS_PER_NAME // weight(batch)):
        lock = Lock((1 << 31, 1 << 31, 1 << 31), EX, 1 << 20, None, 1 << 31, "p" * 40, 0, (1 << 63) - 1, 1 << 62)
        lock.key, lock.batch = (1 << 31, 1 << 31, (1 << 31) + h), batch
        resource.enter(lock)
    body = batch[0], 1 << 62, resource.encode()
    assert len(encode(Kind.PUBLISH, RingId(1 << 62, 1 << 31), 1 << 62, body)) <= MAX_MESSAGE


def test_show_says_what_else_is_waited_for() -> None:
    bus = Bus()
    share(bus, A, B)
    bus.lock(2, B)
    bus.run()
    bus.lock_all(1, A, B)
    bus.run()
    key = key_of("default", A)
    waiters = queries.row(key, bus[3].table.names[key])["waiters"]
    assert [row["together"] for row in waiters] == [[A, B]]
