"""Multi-locks on whole clusters under virtual time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from dlm.modes import EX, PR
from dlm.testing.clients import Operation
from dlm.testing.habits import LockOptions
from dlm.testing.rules import WholeRules
from dlm.testing.workload import LockPlugin
from tests.dlm.test_sim import Stage
from vsync.testing import draw, run
from vsync.testing.violation import Violation


def test_much_contention_and_many_faults() -> None:
    """Every rule, MULTI among them, with clients that mostly ask for several names."""
    met: Counter[str] = Counter()
    for seed in range(8):
        drawn = draw(seed, 4)
        options = LockOptions.draw(seed, drawn.chaos, drawn.timing.token)
        plugin = LockPlugin(seed, replace(options, clients=2, names=3, together=0.8))
        result = run(drawn, [plugin])
        assert result.violation is None, f"seed {seed}: {result.violation}"
        met += plugin.met
    assert met["together"] > 50
    assert met["canceled"] > 5
    assert met["again"] > 5


def test_one_frame_to_take_and_one_to_give_back() -> None:
    """Ten shared names cost as much on the ring as one."""
    with_names = []
    for count in (1, 10):
        stage = Stage(1)
        names = [b"n%d" % i for i in range(count)]
        keepers = [stage.client(1), stage.client(2)]
        for keeper in keepers:
            for name in names:
                stage.locks.lock(keeper, name, 0)
            stage.cluster.settle()
        before = stage.locks.lockers[3].home.outbox.sent
        client = stage.client(3)
        taken = stage.locks.lock_all(client, [(name, EX) for name in names])
        stage.cluster.settle()
        assert taken.ok
        stage.locks.unlock_all(client, list(taken.together))
        stage.cluster.settle()
        with_names.append(stage.locks.lockers[3].home.outbox.sent - before)
        stage.cluster.__exit__(None, None, None)
    assert with_names == [2, 2]


def test_the_rule_can_fail() -> None:
    """MULTI: a part that is granted by itself is found."""
    stage = Stage(2)
    first = stage.client(1)
    stage.locks.lock(stage.client(2), b"b", PR)
    stage.cluster.settle()
    stage.locks.lock(first, b"a", PR)
    stage.cluster.settle()
    asked: Operation = stage.locks.lock_all(stage.client(3), [(b"a", PR), (b"b", EX)])
    stage.cluster.advance(0.5)
    assert asked.ok is None
    locker = stage.locks.lockers[1]
    WholeRules.check(1, locker, [asked])
    resource = locker.table.names[b"\0a"].resource
    assert resource is not None
    resource.admit(resource.waiting[0], [])
    with pytest.raises(Violation, match="held in part"):
        WholeRules.check(1, locker, [asked])
