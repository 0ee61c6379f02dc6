"""Multi-locks while nodes die, are cut off, and join."""

from __future__ import annotations

import random

import pytest

from dlm.modes import EX, PR
from dlm.upkeep import YIELD_AFTER_US
from tests.dlm.bus import LEASE, MS, Bus
from tests.dlm.forms import A, B, C, own, share

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
