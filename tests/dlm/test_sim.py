"""Locks on whole clusters under virtual time: seeds, and scenarios that have a name.

``python -m dlm.testing --seeds 1..2000 --budget-seconds 600`` hunts for longer than a test may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from dlm.modes import EX, NONE, PR
from dlm.testing.clients import Client, Handle, Operation
from dlm.testing.workload import LockOptions, LockPlugin, lock_plugins
from tests.seeds import LONG_S, hunt_for
from vsync.testing import SimCluster, draw, quiet, run
from vsync.testing.main import main
from vsync.testing.options import scaled
from vsync.types import Timing

BUDGET_S = 8.0  # real time in the default selection
NODES = (5, 3, 5, 4, 5, 3, 5, 2)  # by seed
IDLE = LockOptions(clients=0, names=1, interval=1_000_000, own=0.0, end=0.0, late=1, modes=(EX,))


def test_seeds(record_property: Callable[[str, object], None]) -> None:
    """Chaos, healing, and every rule, for as many seeds as there is time."""
    hunt_for(BUDGET_S, "dlm.testing", lock_plugins, NODES, record_property, most=40)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_many_seeds(record_property: Callable[[str, object], None]) -> None:
    hunt_for(LONG_S, "dlm.testing", lock_plugins, NODES, record_property, jobs=2)


@pytest.mark.long
def test_what_is_rare_is_met() -> None:
    """A rule that no run comes near is not checked."""
    missing = {"altmode", "valnotvalid", "orphan", "timeout", "deadlock", "advice", "together"}
    for seed in range(1, 301):
        plugin = LockPlugin(seed)
        assert run(draw(seed, 3), [plugin]).violation is None
        missing -= set(plugin.met)
        if not missing:
            return
    raise AssertionError(f"not met in 300 runs: {missing}")


def test_locks_are_granted_in_these_runs() -> None:
    plugins = [LockPlugin(seed) for seed in range(1, 6)]
    for seed, plugin in enumerate(plugins, 1):
        assert run(draw(seed, 3), [plugin]).violation is None
    assert sum(plugin.granted for plugin in plugins) > 20


def test_a_client_that_answers_at_once_is_heard_behind_what_its_node_has_decided() -> None:
    """Seed 5919: it was heard in the middle of a list of outputs, and a view came before the messages before it."""
    assert run(draw(5919, 3), [LockPlugin(5919)]).violation is None


def test_a_seed_replays_exactly() -> None:
    first, second = (run(draw(5, 4), [LockPlugin(5)]) for _ in range(2))
    assert first.trace.hash == second.trace.hash


def test_who_lends_and_has_no_room_does_not_want_to_donate_at_once() -> None:
    """Found here: without room for what it lends a node never came to its chunks, and asked to be called for them
    again at once, for ever.
    """
    assert run(draw(30007, 5), [LockPlugin(30007)]).violation is None


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--nodes", "3"], "dlm.testing", lambda seed: (LockPlugin(seed),)) == 0
    assert "seed 3: ok" in capsys.readouterr().out


class Stage:
    """A cluster of three with short timers and clients that do what the test says."""

    def __init__(
        self,
        seed: int = 1,
        drift_ppm: int = 0,
        timing: Timing | None = None,
        nodes: int = 3,
        habits: LockOptions = IDLE,
    ) -> None:
        self.locks = LockPlugin(seed, habits)
        options = replace(quiet(seed, nodes, timing or scaled(0.2)), drift_ppm=drift_ppm)
        self.cluster = SimCluster(options=options, plugins=[self.locks])
        self.cluster.__enter__()
        self.cluster.settle()

    def client(self, node: int) -> Client:
        return self.locks.connect(self.cluster[node])

    def holding(self, node: int, name: bytes = b"r", mode: int = EX) -> tuple[Client, Handle]:
        """A client of this node that has been granted the lock."""
        client = self.client(node)
        return client, self.granted(self.locks.lock(client, name, mode))

    def until(self, condition: object, within: float = 5.0) -> None:
        self.cluster.run_until(condition, within)  # type: ignore[arg-type]

    def answered(self, operation: Operation, within: float = 5.0) -> Operation:
        """Wait for the one answer."""
        self.until(lambda: operation.ok is not None, within)
        return operation

    def granted(self, operation: Operation, within: float = 5.0) -> Handle:
        """Wait for a grant."""
        assert self.answered(operation, within).ok, operation.data
        return operation.handle

    def in_some_order(self, operations: list[Operation]) -> Iterator[Operation]:
        """Each of these as it is granted; the caller releases it before it asks for the next."""
        waiting = list(operations)
        while waiting:
            self.until(lambda: any(o.ok for o in waiting))
            done = next(o for o in waiting if o.ok)
            waiting.remove(done)
            yield done

    def end(self) -> None:
        """Everybody back, everything released: all tables equal, no ghost."""
        self.cluster.heal()
        self.until(lambda: not any(node.leaving for node in self.cluster.nodes.values()))
        for node in self.cluster.nodes.values():
            node.resume()
            node.start()
        self.locks.settle(self.cluster)
        self.cluster.settle()
        self.locks.finish(self.cluster)


class TestFrames:
    """How many messages an operation costs."""

    def sent(self, stage: Stage) -> int:
        return sum(locker.status()["sent"] for locker in stage.locks.lockers.values())

    def test_a_private_name_costs_none(self) -> None:
        stage = Stage()
        client, handle = stage.holding(1)
        stage.locks.unlock(handle)
        before = self.sent(stage)
        for _ in range(20):
            operation = stage.locks.lock(client, b"r")
            assert operation.ok, "answered at once, without the network"
            assert stage.locks.unlock(operation.handle).ok
        stage.cluster.advance(1)
        assert self.sent(stage) == before
        stage.end()

    def test_a_shared_name_costs_one_multicast_an_operation(self) -> None:
        stage = Stage()
        stage.holding(1, mode=PR)
        stage.holding(2, mode=PR)  # a stranger's request has made the name Shared
        stage.cluster.advance(0.5)
        client = stage.client(3)
        for verb in ("lock", "unlock"):
            before = self.sent(stage)
            if verb == "lock":
                operation = stage.locks.lock(client, b"r", PR)
            else:
                operation = stage.locks.unlock(operation.handle)
            stage.granted(operation)
            assert self.sent(stage) == before + 1
        stage.end()


class TestScenarios:
    """What operators expect; those of the pitfalls are in ``scenarios/test_pitfalls_*.py``."""

    def test_a_holder_keeps_its_lock_over_another_nodes_death(self) -> None:
        stage = Stage()
        _, held = stage.holding(1)
        stage.cluster.crash(3)
        stage.until(lambda: stage.cluster[1].view is not None and stage.cluster[1].view.nodes == (1, 2))
        stage.cluster.advance(1.0)
        assert held.valid()
        stage.end()

    def test_a_minority_grants_nothing_and_its_handles_lapse(self) -> None:
        stage = Stage()
        _, held = stage.holding(1)
        stage.cluster.partition({1}, {2, 3})
        stage.cluster.advance(2.0)
        assert not held.valid()
        client = stage.client(1)
        waits = stage.locks.lock(client, b"new")
        fails = stage.locks.lock(client, b"newer", no_quorum="fail")
        stage.cluster.advance(1.0)
        assert waits.ok is None
        assert fails.ok is False
        assert fails.data["code"] == "no_quorum"
        stage.cluster.heal()
        stage.granted(waits)
        stage.end()

    def test_a_dead_clients_locks_go_at_once(self) -> None:
        stage = Stage()
        client, _ = stage.holding(1)
        operation = stage.locks.lock(stage.client(2), b"r")
        stage.cluster.advance(0.3)
        assert operation.ok is None
        stage.locks.end(client)
        stage.granted(operation, within=0.1)
        stage.end()

    def test_a_graceful_leave_costs_no_lease(self) -> None:
        stage = Stage()
        _, held = stage.holding(1)
        operation = stage.locks.lock(stage.client(2), b"r")
        stage.cluster.advance(0.3)
        stage.cluster[1].leave()
        stage.granted(operation, within=0.2)  # a lease is 0.4 s
        assert held.mode == NONE or not held.valid()
        stage.end()
