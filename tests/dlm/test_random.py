"""Random operations, deliveries, views, deaths and time on the bus; the bus's own checks after every step.

Checked all the time: no two incompatible valid handles, fences rise, equal tables at equal positions, every request
answered at most once. Checked at the end: every request answered exactly once, one table everywhere, and empty.
A seed is the whole run: ``test_random[3-17]`` is 3 nodes, seed 17.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.dlm.bus import CLIENT, LEASE, MS, Bus, Node

NAMES = (b"a", b"b", b"c")


FREE = ("expedite", "headque", "noorder", "altpr", "altcw", "nodlckblk", "noqueuebast", "persistent")


def some_flags(rng: random.Random, words: tuple[str, ...] = FREE) -> dict[str, bool]:
    """Mostly none."""
    return {"blocking": rng.random() < 0.5} | {word: True for word in words if rng.random() < 0.06}


def operate(bus: Bus, rng: random.Random, node: Node) -> None:
    """One request of one client of this node."""
    session = rng.choice(sorted(node.service.home.sessions))
    mine = [h for (member, s, h) in bus.handles if member == node.me and s == session]
    asked = [handle.h for handle in node.service.home.sessions[session].handles.values() if handle.request]
    choice = rng.random()
    if mine and choice < 0.35:
        bus.call(node.id, "unlock", session, h=rng.choice(mine), valblk=True, value=b"%d" % bus.rid)
    elif mine and choice < 0.6:
        flags = some_flags(rng, (*FREE[1:], "quecvt", "convdeadlk", "nodlckwt", "ivvalblk"))
        h, mode, noqueue = rng.choice(mine), rng.randrange(6), rng.random() < 0.3
        bus.call(node.id, "convert", session, h=h, mode=mode, noqueue=noqueue, **flags)
    elif asked and choice < 0.7:
        bus.call(node.id, rng.choice(["cancel", "unlock"]), session, h=rng.choice(asked))
    elif choice < 0.72 and len(mine) > 1:
        bus.close(node.id, session)
        node.service.open(session, CLIENT, bus.now)
    elif choice < 0.74:
        bus.call(node.id, "purge", session, node=rng.choice(sorted(bus.nodes)))
    elif choice < 0.77:
        bus.lock(node.id, rng.choice(NAMES), rng.randrange(6), session, orphan=True)
    elif len(mine) + len(asked) < 4:
        bus.lock(
            node.id,
            rng.choice(NAMES),
            rng.choice([0, 1, 2, 3, 4, 5, 5, 5]),
            session,
            noqueue=rng.random() < 0.2,
            no_quorum=rng.choice(["wait", "wait", "fail"]),
            valblk=True,
            **some_flags(rng),
        )


def disturb(bus: Bus, rng: random.Random) -> None:
    """A view of some nodes, a death, a restart."""
    up = [node.id for node in bus.alive()]
    choice = rng.random()
    if choice < 0.05 and len(up) > 1:
        node = bus[rng.choice(up)]
        node.service.leaving(bus.now)
        bus.tokens()
        if rng.random() < 0.7:
            bus.sequence(node.id)
            bus.deliver(node.id)
        bus.kill(node.id)
    elif choice < 0.15 and len(up) > 1:
        bus.kill(rng.choice(up))
    elif choice < 0.4:
        down = [node for node in bus.nodes if node not in up]
        if down:
            bus.boot(rng.choice(down))
    else:
        some = up if rng.random() < 0.5 else [node for node in up if rng.random() < 0.6]
        if some:
            bus.view(some, rng=rng)


def step(bus: Bus, rng: random.Random, operate: Callable[[Bus, random.Random, Node], None] = operate) -> None:
    """One random thing."""
    node = rng.choice(bus.alive())
    choice = rng.random()
    if choice < 0.45:
        operate(bus, rng, node)
    elif choice < 0.6:
        bus.sequence(node.id)
    elif choice < 0.85:
        bus.deliver(node.id, count=rng.randrange(1, 6))
    elif choice < 0.93:
        bus.now += rng.choice([MS, 20 * MS, 150 * MS, 700 * MS])
        bus.tokens()
        for each in bus.alive():
            due = each.service.next_deadline()
            if due is not None and due <= bus.now:
                each.service.fire(bus.now)
    else:
        disturb(bus, rng)
    bus.check_exclusion()
    bus.check()


def unanswered(bus: Bus) -> list[int]:
    """Requests of living clients without an answer."""
    return [
        rid
        for rid, (node, *_) in bus.requests.items()
        if node.alive and rid not in node.answers and rid not in bus.abandoned
    ]


def finish(bus: Bus) -> None:
    """Heal everything, then release until nobody waits."""
    for node in bus.nodes:
        if not bus[node].alive:
            bus.boot(node)
    bus.view(bus.nodes)
    bus.run()
    bus.advance(2 * LEASE)
    for node in bus.nodes:
        bus.call(node, "purge")
    for _ in range(100):
        held = [who for who in bus.handles if bus[who[0].node].me == who[0]]
        for member, session, h in held:
            bus.call(member.node, "unlock", session, h=h)
        bus.run()
        bus.advance(100 * MS)
        if not held and not unanswered(bus):
            break
    bus.check_at_rest()


@pytest.mark.parametrize("seed", range(80))
@pytest.mark.parametrize("nodes", [3, 5])
def test_random(nodes: int, seed: int) -> None:
    rng = random.Random(seed * 10 + nodes)
    bus = Bus(nodes)
    for _ in range(200):
        step(bus, rng)
    finish(bus)
    assert unanswered(bus) == []
    for node in bus.alive():
        for name in node.table.names.values():
            assert name.resource is None or not name.resource.locks
        assert not len(node.service.home.outbox)
        assert not node.service.home.outbox.under_way
