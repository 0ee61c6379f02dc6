"""Multi-locks over whole lock managers: all or none, in every mix of forms, and what each costs (F2–F4)."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from dlm import multi, queries
from dlm.arguments import MAX_NAME
from dlm.group import MAX_BATCH, weight
from dlm.home import LOCKS_PER_NAME
from dlm.lock import Lock
from dlm.messages import Kind, encode, key_of
from dlm.modes import CR, EX, NL, PR, PW
from dlm.names import FENCE_BLOCK
from dlm.resource import Resource
from dlm.table import Effects
from dlm.upkeep import GIVE_BACK_AFTER_US, YIELD_AFTER_US
from tests.dlm.bus import LEASE, MS, Bus
from vsync.types import MAX_MESSAGE, RingId

A, B, C = b"a", b"b", b"c"


def form(bus: Bus, name: bytes, node: int = 1) -> str:
    """The form of a name and its owner, as a node has it."""
    found = bus[node].table.names.get(key_of("default", name))
    return "unknown" if found is None else f"{found.form.name.lower()}{found.owner or ''}"


def waiting(bus: Bus, name: bytes, node: int = 1) -> list[tuple[int, int]]:
    """(node, handle) of who waits for a name."""
    resource = bus[node].table.names[key_of("default", name)].resource
    assert resource is not None
    return [(lock.key[0], lock.key[2]) for lock in resource.waiting]


def share(bus: Bus, *names: bytes) -> None:
    """Make these names shared, for good: two nodes hold NL locks on each."""
    for node in (1, 2):
        for name in names:
            bus.lock(node, name, NL, session=2)
        bus.run()
    assert {form(bus, name) for name in names} == {"shared"}


def own(bus: Bus, node: int, *names: bytes) -> None:
    """Make these names private to a node."""
    taken = [bus.lock(node, name, session=2)[1] for name in names]
    bus.run()
    for h in taken:
        bus.call(node, "unlock", 2, h=h)
    bus.run()


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

FORMS = ("unknown", "mine", "theirs", "shared", "handover")


def prepare(bus: Bus, name: bytes, what: str) -> None:
    """Bring a name into this form, as node 1 sees it; nobody is in the way."""
    if what == "shared":
        share(bus, name)
    elif what in ("mine", "theirs", "handover"):
        own(bus, 1 if what == "mine" else 2, name)


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


# -- failures ------------------------------------------------------------------------------------------------


def scene(kind: str) -> tuple[Bus, int, int]:
    """Node 2 wants a, b and c together: a is shared, b private to node 3, c unknown; or all shared, and b taken."""
    bus = Bus()
    share(bus, A)
    if kind == "owner":
        own(bus, 3, B)
        bus.lock(3, B)
        bus.run()
    else:
        share(bus, B, C)
        bus.lock(3, B)
        bus.run()
    rid, first = bus.lock_all(2, A, B, C)
    return bus, rid, first


@pytest.mark.parametrize("kind", ["owner", "shared"])
@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("seed", range(3))
def test_the_owner_dies(kind: str, steps: int, seed: int) -> None:
    """Node 3 dies at each moment of it: then nothing stands in the way."""
    bus, rid, first = scene(kind)
    for step in range(steps):
        bus.sequence()
        bus.deliver(1 + step % 3, count=1)
        bus.check()
    bus.kill(3)
    bus.view([1, 2], rng=random.Random(seed))
    bus.check()
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.granted(rid)
    assert len(bus.result(rid)["locks"]) == 3
    other, _ = bus.lock(1, C, PR)
    bus.run()
    assert bus.result(other) is None
    bus.unlock_all(2, first, 3)
    bus.run()
    assert bus.granted(other)
    bus.check_at_rest()


@pytest.mark.parametrize("kind", ["owner", "shared"])
@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("seed", range(3))
def test_the_home_dies(kind: str, steps: int, seed: int) -> None:
    """Node 2 dies at each moment: nothing of its multi-lock stays, in any queue."""
    bus, _, _ = scene(kind)
    for step in range(steps):
        bus.sequence()
        bus.deliver(1 + step % 3, count=1)
        bus.check()
    bus.kill(2)
    bus.view([1, 3], rng=random.Random(seed))
    bus.run()
    bus.advance(2 * LEASE)
    free = [bus.lock(1, name, PR)[0] for name in (A, C)]
    bus.run()
    bus.advance(YIELD_AFTER_US + 100 * MS)
    assert all(bus.granted(rid) for rid in free)
    bus.check_at_rest()


@pytest.mark.parametrize("steps", range(5))
def test_the_home_is_cut_off_and_returns(steps: int) -> None:
    """In a new life a waiting multi-lock is asked for again, as a whole."""
    bus, rid, _ = scene("shared")
    for step in range(steps):
        bus.sequence()
        bus.deliver(1 + step % 3, count=1)
    bus.view([2])
    bus.view([1, 3])
    bus.run()
    other, h = bus.lock(1, C)
    bus.run()
    bus.view([1, 2, 3])
    bus.run()
    bus.advance(2 * LEASE)
    assert bus.result(rid) is None
    holder = next(who for who, held in bus.handles.items() if held.key == B and held.mode == EX)
    bus.call(3, "unlock", h=holder[2])
    bus.run()
    assert bus.result(rid) is None
    bus.call(1, "unlock", h=h)
    bus.run()
    assert bus.granted(rid)
    assert bus.granted(other)
    bus.check_at_rest()


def test_a_view_between_sending_and_delivery() -> None:
    """What no view delivered is sent again (K6), as one message."""
    bus = Bus()
    share(bus, A, B)
    rid, _ = bus.lock_all(1, A, B)
    bus.sequence()
    bus.view([1, 2, 3])
    bus.run()
    bus.advance(LEASE)
    assert bus.granted(rid)


def test_no_quorum() -> None:
    bus = Bus()
    share(bus, A, B)
    bus.lock(2, A)
    bus.run()
    waits, _ = bus.lock_all(1, A, B)
    fails, _ = bus.lock_all(1, A, B, session=2, no_quorum="fail")
    bus.run()
    bus.view([1])
    assert bus.result(fails) == "no_quorum"
    tried, _ = bus.lock_all(1, A, B, noqueue=True)
    assert bus.result(tried) == "no_quorum"
    assert bus.result(waits) is None


def test_a_joiner_gets_what_waits() -> None:
    """The snapshot holds waiting parts, also those in the waiting list of a handover."""
    bus = Bus(4)
    bus.kill(4)
    bus.view([1, 2, 3])
    bus.advance(2 * LEASE)
    share(bus, A)
    own(bus, 3, B)
    _, h = bus.lock(3, B)
    bus.run()
    rid, _ = bus.lock_all(2, A, B)
    bus.sequence(2)
    bus.deliver()  # the handover of b is under way
    bus.boot(4)
    bus.view([1, 2, 3, 4])
    bus.run()
    bus.advance(2 * LEASE)
    assert bus[4].service.complete
    bus.check_at_rest()
    bus.call(3, "unlock", h=h)
    bus.run()
    assert bus.granted(rid)
    bus.check_at_rest()


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
