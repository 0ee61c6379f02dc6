"""Multi-locks and names that are private to a node, or change hands, and deadlocks."""

from __future__ import annotations

import itertools

import pytest

from dlm import multi
from dlm.messages import key_of
from dlm.modes import NL, PR
from dlm.names import FENCE_BLOCK
from dlm.table import Effects
from dlm.upkeep import GIVE_BACK_AFTER_US, YIELD_AFTER_US
from tests.dlm.bus import LEASE, MS, Bus
from tests.dlm.forms import FORMS, A, B, C, form, own, prepare, share, waiting

# -- private names -------------------------------------------------------------------------------------------


def test_waiting_at_home_without_messages() -> None:
    """Two clients of the owner: one waits for the other, and nobody else hears of it (within 200 ms)."""
    bus = Bus()
    own(bus, 1, A, B, C)
    sent = bus.submitted
    _, first = bus.lock_all(1, A, B)
    second, s = bus.lock_all(1, B, C, session=2)
    third, _ = bus.lock(1, C, session=2)
    assert bus.result(second) is None
    assert bus.result(third) is None
    bus.unlock_all(1, first, 2)
    assert bus.granted(second)
    assert bus.result(third) is None
    bus.call(1, "unlock", 2, h=s + 1)
    assert bus.granted(third)
    assert bus.submitted == sent


def test_one_name_wanted_elsewhere_gives_up_the_others() -> None:
    bus = Bus()
    own(bus, 1, A, B, C)
    _, h = bus.lock(1, A)
    both, first = bus.lock_all(1, A, B)
    chained, _ = bus.lock_all(1, B, C, session=2)
    stranger, _ = bus.lock(2, A)
    bus.run()
    assert {form(bus, name) for name in (A, B, C)} == {"shared"}  # no waiting for 200 ms
    assert waiting(bus, A) == [(1, first), (2, first + 4)]
    assert waiting(bus, B, 3) == [(1, first + 1), (1, first + 2)]
    bus.call(1, "unlock", h=h)
    bus.run()
    assert bus.granted(both)
    assert bus.result(stranger) is None
    bus.unlock_all(1, first, 2)
    bus.run()
    assert bus.granted(stranger)
    assert bus.granted(chained)


def test_contended_at_home_for_long_becomes_shared() -> None:
    bus = Bus()
    own(bus, 1, A, B)
    _, h = bus.lock(1, A)
    both, _ = bus.lock_all(1, A, B)
    bus.advance(YIELD_AFTER_US + 100 * MS)
    assert form(bus, A) == form(bus, B) == "shared"
    bus.call(1, "unlock", h=h)
    bus.run()
    assert bus.granted(both)


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("what", ["cancel", "close", "release", "time"])
def test_anything_while_names_change_hands(steps: int, what: str) -> None:
    """The owner's waiting multi-lock is half published when its client withdraws, dies, or may be served."""
    bus = Bus()
    own(bus, 1, A, B)
    _, h = bus.lock(1, A, session=2)
    both, first = bus.lock_all(1, A, B, timeout_us=50 * MS)
    stranger, _ = bus.lock(2, B)
    for _ in range(steps):
        bus.sequence()
        for node in (3, 1, 2):
            bus.deliver(node, count=1)
            bus.check()
    if what == "cancel":
        bus.call(1, "cancel", h=first)
    elif what == "close":
        bus.close(1)
    elif what == "release":
        bus.call(1, "unlock", 2, h=h)
    bus.run()
    bus.advance(YIELD_AFTER_US)
    if what == "release":
        assert bus.granted(both)
        bus.unlock_all(1, first, 2)
        bus.run()
    elif what != "close":
        assert bus.result(both) == ("canceled" if what == "cancel" else "timeout")
    assert bus.granted(stranger)
    assert not waiting(bus, B)
    bus.check_at_rest()


def test_ordered_on_own_names_reserves_numbers() -> None:
    """K14: whatever an ordered operation grants in a private name, its owner must have a number for it."""
    bus = Bus()
    own(bus, 1, A, B)
    left = [bus[1].table.names[key_of("default", name)].fences.left for name in (A, B)]
    bus.now += 2 * LEASE  # no lease: not alone
    rid, _ = bus.lock_all(1, A, B)
    bus.run()
    bus.advance(LEASE)
    assert bus.granted(rid)
    for name, before in zip((A, B), left, strict=True):
        assert bus[1].table.names[key_of("default", name)].fences.left == before + FENCE_BLOCK - 1


@pytest.mark.parametrize("cancel", [False, True])
def test_ordered_on_own_names_is_looked_after(cancel: bool) -> None:
    """K13, A2: what waits in private names becomes shared, what is idle is given back, however it came."""
    bus = Bus()
    own(bus, 1, A, B)
    _, h = bus.lock(1, A, session=2)
    bus.now += 2 * LEASE  # no lease: not alone
    rid, first = bus.lock_all(1, A, B)
    if cancel:
        bus.call(1, "cancel", h=first)
        bus.call(1, "unlock", 2, h=h)
    bus.run()
    assert form(bus, A) == form(bus, B) == "private1"
    if cancel:
        assert bus.result(rid) == "canceled"
        bus.advance(GIVE_BACK_AFTER_US + 100 * MS)
        assert form(bus, A) == form(bus, B) == "unknown"
    else:
        bus.advance(YIELD_AFTER_US + 100 * MS)
        assert form(bus, A) == form(bus, B) == "shared"


@pytest.mark.parametrize("what", ["mine", "shared"])
def test_unlock_all_of_one_part_that_waits(what: str) -> None:
    bus = Bus()
    prepare(bus, A, what)
    prepare(bus, B, what)
    bus.lock(1, A, session=2)
    bus.run()
    rid, first = bus.lock_all(1, A, B)
    bus.run()
    done = bus.unlock_all(1, first + 1, 1)
    bus.run()
    assert bus.result(done) == {}
    assert bus.result(rid) == "canceled"
    assert waiting(bus, A) == []
    assert not bus[1].service.home.sessions[1].handles


def test_half_published_is_granted_nowhere() -> None:
    """F2: one part is published, the other private still: the owner sees both, the others one."""
    bus = Bus()
    own(bus, 1, A, B)
    _, h = bus.lock(1, B, session=2)
    both, first = bus.lock_all(1, A, B)
    bus.lock(2, B)
    bus.sequence(2)
    bus.now += 2 * LEASE  # so that the next operation takes its place in the order
    bus.call(1, "unlock", 2, h=h)
    bus.sequence(1)
    bus.deliver()
    bus.sequence()
    bus.deliver(count=1)  # the publication of b, and in it the end of its holder
    assert (form(bus, A), form(bus, B)) == ("private1", "shared")
    assert waiting(bus, A) == [(1, first)]
    assert waiting(bus, B)[0] == (1, first + 1)
    bus.check()
    bus.run()
    bus.advance(LEASE)
    assert bus.granted(both)
    bus.check_at_rest()


@pytest.mark.parametrize("forms", list(itertools.product(FORMS[1:], repeat=2)), ids="-".join)
def test_a_refusal_takes_all_parts_wherever_they_are(forms: tuple[str, str]) -> None:
    """As a search for deadlocks does: at one position every member drops what it can see, and the rest follows."""
    bus = Bus()
    share(bus, C)
    bus.lock(2, C)
    for name, what in zip((A, B), forms, strict=True):
        prepare(bus, name, what)
    bus.run()
    if "handover" in forms:
        for name, what in zip((A, B), forms, strict=True):
            if what == "handover":
                bus.lock(3, name, NL)
    rid, first = bus.lock_all(1, A, B, C)
    bus.sequence(3, 1)
    bus.deliver()
    key = key_of("default", C)
    for node in (1, 2, 3):
        table = bus[node].table
        part = table.names[key].resource.locks[1, 1, first + 2]
        out: Effects = []
        multi.refuse(table, key, part, "deadlock", out)
        table.sweep(out)
        bus[node].service.home.outcomes(out)
    assert bus.result(rid) == "deadlock"
    bus.check()
    bus.run()
    for name in (A, B):
        probe, _ = bus.lock(2, name, PR)
        bus.run()
        assert bus.granted(probe)
    assert waiting(bus, C) == []
    assert not bus[1].service.home.sessions[1].handles
    bus.check_at_rest()


def test_a_deadlock_takes_the_whole_multi_lock() -> None:
    """Who holds C asks for A and B; who holds B waits for C: the later request is refused."""
    bus = Bus()
    share(bus, A, B, C)
    bus.lock(1, C, owner=1)
    bus.lock(2, B, owner=1)
    bus.run()
    other, _ = bus.lock(2, C, owner=1)
    bus.run()
    rid, _ = bus.lock_all(1, A, B, owner=1)
    bus.run()
    assert bus.result(rid) == "deadlock"
    assert bus.result(other) is None
    assert waiting(bus, A) == waiting(bus, B) == []
    free, _ = bus.lock(3, A, noqueue=True)
    bus.run()
    assert bus.granted(free)


def test_a_deadlock_through_the_part_that_could_go() -> None:
    """A is free, but who waits there behind a multi-lock waits for all of it: B's holder must not."""
    bus = Bus()
    share(bus, A, B)
    _, h = bus.lock(2, B, owner=1)
    bus.run()
    rid, _ = bus.lock_all(1, A, B, owner=1)
    bus.run()
    single, _ = bus.lock(2, A, owner=1)
    bus.run()
    assert bus.result(single) == "deadlock"
    assert bus.result(rid) is None
    bus.call(2, "unlock", h=h)
    bus.run()
    assert bus.granted(rid)
