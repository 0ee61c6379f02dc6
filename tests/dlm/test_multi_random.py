"""Random runs as in ``test_random``, with multi-locks between the single ones.

The bus checks after every event that no table shows a multi-lock held in part, and with ``Table.invariants``
that none waits which could be granted; here, that each request has one answer, for all names or for none, and
that at the end nothing has stayed.
"""

from __future__ import annotations

import random

import pytest

from tests.dlm import test_random
from tests.dlm.bus import Bus, Node
from tests.dlm.test_random import finish, unanswered

NAMES = (*test_random.NAMES, b"d")


def operate(bus: Bus, rng: random.Random, node: Node) -> None:
    """One request about several names, or about one."""
    if rng.random() < 0.5:
        test_random.operate(bus, rng, node)
        return
    session = rng.choice(sorted(node.service.home.sessions))
    mine = [h for (member, s, h) in bus.handles if member == node.me and s == session]
    asked = [handle.h for handle in node.service.home.sessions[session].handles.values() if handle.group]
    choice = rng.random()
    if mine and choice < 0.5:
        some = rng.sample(mine, rng.randint(1, len(mine)))
        locks = [{"h": h, "valblk": True, "value": b"%d" % bus.rid} for h in some]
        bus.call(node.id, "unlock_all", session, locks=locks)
    elif asked and choice < 0.6:
        bus.call(node.id, rng.choice(["cancel", "unlock"]), session, h=rng.choice(asked))
    elif len(mine) + len(asked) < 8:
        names = rng.sample(NAMES, rng.choice([1, 2, 2, 3, 4]))
        bus.lock_all(
            node.id,
            *[(name, rng.choice([0, 1, 2, 3, 4, 5, 5, 5])) for name in names],
            session=session,
            noqueue=rng.random() < 0.2,
            no_quorum=rng.choice(["wait", "wait", "fail"]),
            valblk=True,
            blocking=rng.random() < 0.3,
            timeout_us=rng.choice([0, 0, 30_000, 400_000]),
        )


@pytest.mark.parametrize("seed", range(80))
@pytest.mark.parametrize("nodes", [3, 5])
def test_multi_random(nodes: int, seed: int) -> None:
    rng = random.Random(seed * 10 + nodes)
    bus = Bus(nodes)
    for _ in range(200):
        test_random.step(bus, rng, operate)
    finish(bus)
    assert unanswered(bus) == []
    for node in bus.alive():
        for name in node.table.names.values():
            assert name.resource is None or not name.resource.locks
        assert not len(node.service.home.outbox)
        assert not node.service.home.outbox.under_way
        assert not node.service.home._on_name
