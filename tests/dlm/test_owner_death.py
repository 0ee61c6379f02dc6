"""The seed scenario (locks.md §2.6): the owner of a name goes away around each step of another's request.

Whatever happens: the caller is answered exactly once, the survivors have one table, nobody holds what another holds
validly, and in the end the name can be locked again.
"""

from __future__ import annotations

import pytest

from dlm.messages import key_of
from dlm.modes import EX, NL, PR
from tests.dlm.bus import LEASE, MS, Bus

R = key_of("default", b"R")

#: How far the stranger's operation has come when the owner goes away.
STEPS = ("before it is sent", "sent", "ordered", "at the owner", "at the stranger", "everywhere", "answered by all")
ENDS = ("dies", "is cut off", "restarts", "leaves")
VERBS = ("lock", "trylock", "up", "down", "middle", "unlock", "write", "cancel")


def prepare(bus: Bus, verb: str) -> int:
    """Node 1 owns R (or held it first); node 2 has whatever its operation needs. Its handle."""
    if verb in ("lock", "trylock"):
        bus.lock(1, mode=EX)
        bus.run()
        return 0
    bus.lock(1, mode=NL if verb in ("write", "down") else PR if verb != "middle" else NL)
    bus.run()
    mode = {"up": PR, "down": EX, "middle": PR, "unlock": PR, "write": EX, "cancel": EX}[verb]
    _, h = bus.lock(2, mode=mode)
    if verb != "cancel":
        bus.run()
    else:
        bus.sequence()
        bus.deliver()
        bus.run()
    return h


def act(bus: Bus, verb: str, h: int) -> int:
    """Node 2's operation."""
    if verb in ("lock", "trylock"):
        return bus.lock(2, mode=EX, noqueue=verb == "trylock")[0]
    if verb in ("up", "down", "middle"):
        return bus.call(2, "convert", h=h, mode={"up": EX, "down": NL, "middle": 2}[verb])
    if verb == "write":
        return bus.call(2, "unlock", h=h, valblk=True, value=b"v")
    return bus.call(2, verb, h=h)


def proceed(bus: Bus, step: str) -> None:
    """Let the operation come as far as ``step`` says."""
    if step in STEPS[2:]:
        bus.sequence()
    if step == "at the owner":
        bus.deliver(1)
    elif step == "at the stranger":
        bus.deliver(2)
    elif step == "everywhere":
        bus.deliver()
    elif step == "answered by all":
        bus.run()


def depart(bus: Bus, how: str) -> None:
    """The owner goes away, and what is left forms a view."""
    if how == "leaves":
        bus[1].service.leaving(bus.now)
        bus.tokens()
        bus.run()
        assert bus[1].service.may_leave()
    if how == "is cut off":
        bus.view([1])
    else:
        bus.kill(1)
    bus.now += 150 * MS
    if how == "restarts":
        bus.boot(1)
        bus.view([1, 2, 3])
    else:
        bus.view([2, 3])


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("verb", VERBS)
def test_the_owner_goes_away(verb: str, step: str, how: str) -> None:
    bus = Bus()
    h = prepare(bus, verb)
    rid = None
    if step != STEPS[0]:
        rid = act(bus, verb, h)
        proceed(bus, step)
    depart(bus, how)
    if rid is None:
        rid = act(bus, verb, h)
    bus.run()
    bus.advance(2 * LEASE)
    bus.check_at_rest()
    answer = bus.result(rid)
    assert answer is not None  # exactly once: a second answer is an error in the bus
    expected_free = verb in ("unlock", "write", "cancel") or answer in ("again", "canceled")
    if verb in ("lock", "up", "down", "middle"):
        assert bus.granted(rid)
    elif verb == "cancel":
        assert answer in ({"canceled": True}, {"canceled": False})
    if how == "is cut off":
        bus.view([1, 2, 3])
        bus.run()
        bus.check_at_rest()
    for handle in [who for who in bus.handles if who[0] == bus[2].me]:
        bus.call(2, "unlock", h=handle[2])
    bus.run()
    last, _ = bus.lock(3, mode=EX)
    bus.run()
    bus.advance(2 * LEASE)
    for handle in [who for who in bus.handles if who[0] == bus[1].me]:
        bus.call(1, "unlock", h=handle[2])
    bus.run()
    assert bus.granted(last)
    assert expected_free or bus.granted(rid) or answer == "again"
    bus.check_at_rest()
