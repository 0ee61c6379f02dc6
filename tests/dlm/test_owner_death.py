"""The matrix of the seed scenario (locks.md §2.6) on the bus: B goes away around each step of A's operation.

Whatever happens: the caller is answered exactly once (a second answer is an error in the bus), all survivors have
one table, nobody holds what another holds validly, and in the end the name can be locked again. Once B owns the
name, or held it first; once A owns it, and B has just asked for it.
"""

from __future__ import annotations

import pytest

from dlm.messages import key_of
from dlm.modes import CW, EX, NL, PR
from tests.dlm.bus import CLIENT, LEASE, MS, Bus

R = key_of("default", b"R")
A, B, C = 2, 1, 3

VERBS = ("lock", "trylock", "up", "down", "middle", "unlock", "write", "cancel")

#: How far A's operation has come when B goes away: before it is sent; sent and not ordered; ordered and not
#: delivered at some; delivered at all.
STEPS = ("before it is sent", "sent", "ordered", "at B", "at A", "at C", "everywhere", "answered by all")

#: B's fate. "has the majority": A is alone, and comes back. "is back": before A has noticed anything.
ENDS = ("dies", "is cut off", "has the majority", "leaves", "is back")


def rest(bus: Bus) -> None:
    """Whatever can come, comes; all leases of those who have gone run out."""
    bus.run()
    bus.advance(2 * LEASE, step=500 * MS)


def prepare(bus: Bus, verb: str, owner: str) -> int:
    """A has whatever its operation needs: its handle. B is in the way, and owns the name or asks for it."""
    if owner == "A":
        bus.lock(A, mode=NL, session=2)
        bus.run()
        h = _hold(bus, verb)
        bus.lock(B, mode=EX)
        return h
    bus.lock(B, mode={"lock": EX, "trylock": EX, "up": PR, "middle": PR, "unlock": PR, "cancel": EX}.get(verb, NL))
    bus.run()
    return _hold(bus, verb)


def _hold(bus: Bus, verb: str) -> int:
    if verb in ("lock", "trylock"):
        return 0
    if verb == "cancel":
        bus.lock(C, mode=PR)
        bus.run()
    _, h = bus.lock(A, mode={"down": EX, "write": EX, "cancel": EX}.get(verb, PR))
    bus.run()
    return h


def act(bus: Bus, verb: str, h: int) -> int:
    """A's operation."""
    if verb in ("lock", "trylock"):
        return bus.lock(A, mode=EX, noqueue=verb == "trylock")[0]
    if verb in ("up", "down", "middle"):
        return bus.call(A, "convert", h=h, mode={"up": EX, "down": NL, "middle": CW}[verb])
    if verb == "write":
        return bus.call(A, "unlock", h=h, valblk=True, value=b"v")
    return bus.call(A, verb, h=h)


def proceed(bus: Bus, step: str) -> None:
    """Let the operation come as far as ``step`` says."""
    if step in STEPS[2:]:
        bus.sequence()
    if step.startswith("at "):
        bus.deliver({"at B": B, "at A": A, "at C": C}[step])
    elif step == "everywhere":
        bus.deliver()
    elif step == "answered by all":
        bus.run()


def depart(bus: Bus, how: str) -> None:
    """B goes away, or A does, and what is left forms a view."""
    if how == "leaves":
        bus[B].service.leaving(bus.now)
        bus.tokens()
        bus.run()
        assert bus[B].service.may_leave()
    if how == "is cut off":
        bus.view([B])
    elif how == "has the majority":
        bus.view([A])
    else:
        bus.kill(B)
    bus.now += 150 * MS
    if how == "is back":
        bus.boot(B)
        bus.view([A, B, C])
    elif how == "has the majority":
        bus.view([B, C])
    else:
        bus.view([A, C])


def come_back(bus: Bus, how: str) -> None:
    """Whoever was cut off is in the view again; B gives up what it still has."""
    if how in ("is cut off", "has the majority"):
        bus.view([A, B, C])
        bus.run()
        bus.check_at_rest()
    give_up(bus, B)
    give_up(bus, C)


def give_up(bus: Bus, node: int) -> None:
    """Its clients end."""
    if bus[node].alive:
        for session in (1, 2):
            bus.close(node, session)
        rest(bus)


def judge(bus: Bus, verb: str, rid: int, how: str) -> None:
    """What became of the operation fits what it was, and what happened."""
    answer = bus.result(rid)
    assert answer is not None
    if verb == "lock":
        assert bus.granted(rid)
    elif verb == "trylock":
        assert bus.granted(rid) or answer in ("again", "no_quorum")
    elif verb in ("up", "down", "middle"):
        assert bus.granted(rid) or (how == "has the majority" and answer in ("lost", "unknown"))
    elif verb == "cancel":
        assert answer in ({"canceled": True}, {"canceled": False})
    elif verb == "write" and how == "has the majority":
        assert answer in ({}, "unknown", "lost")  # whether the value block was written is not known
    else:
        assert answer == {} or (how == "has the majority" and answer == "unknown")


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("owner", ["A", "B"])
def test_the_owner_goes_away(owner: str, verb: str, step: str, how: str) -> None:
    bus = Bus()
    h = prepare(bus, verb, owner)
    rid = None
    if step != STEPS[0]:
        rid = act(bus, verb, h)
        proceed(bus, step)
    depart(bus, how)
    if rid is None:
        rid = act(bus, verb, h)
    rest(bus)
    come_back(bus, how)
    judge(bus, verb, rid, how)
    give_up(bus, A)
    bus[C].service.open(3, CLIENT, bus.now)
    last, _ = bus.lock(C, mode=EX, session=3)
    rest(bus)
    assert bus.granted(last)
    bus.check_at_rest()


@pytest.mark.parametrize("verb", ["write", "unlock"])
@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("step", STEPS)
def test_what_was_written_is_read_or_known_to_be_lost(verb: str, step: str, how: str) -> None:
    """A writes the value block with its release; C keeps it, and reads it in the end."""
    bus = Bus()
    bus.lock(C, mode=NL, session=2)
    bus.run()
    h = prepare(bus, "write", "B")
    if step != STEPS[0]:
        act(bus, verb, h)
        proceed(bus, step)
    depart(bus, how)
    if step == STEPS[0]:
        act(bus, verb, h)
    rest(bus)
    if how in ("is cut off", "has the majority"):
        bus.view([A, B, C])
        bus.run()
    rid, _ = bus.lock(C, mode=PR, valblk=True)
    rest(bus)
    answer = bus.result(rid)
    assert (answer["value"], answer["value_valid"]) in ((b"v" if verb == "write" else b"", True), (b"", False))
    if how != "has the majority":
        assert answer["value_valid"]  # A went on with the others: its release counts
