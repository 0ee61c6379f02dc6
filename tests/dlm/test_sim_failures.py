"""Options of lockspaces on simulated clusters: what waits after a failure, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlm.modes import NL, PR
from dlm.options import Options
from dlm.testing.clients import Client, Operation
from dlm.testing.workload import LockOptions, LockPlugin
from tests.dlm.test_sim import IDLE, Stage
from vsync.testing import SimCluster, draw, quiet, run
from vsync.testing.options import scaled

LEASE_S = 0.4  #: of the scaled timers


class Failure(Stage):
    """A stage whose lockspace ``default`` has options."""

    def __init__(self, space: Options, seed: int = 1, drift_ppm: int = 0) -> None:
        self.locks = LockPlugin(seed, replace(IDLE, space=space))
        options = replace(quiet(seed, 3, scaled(0.2)), drift_ppm=drift_ppm)
        self.cluster = SimCluster(options=options, plugins=[self.locks])
        self.cluster.__enter__()
        self.cluster.settle()

    def steps(self, count: int) -> None:
        """So many events."""
        for _ in range(count):
            self.cluster.scheduler.step(10**9)

    def kill_with_what_is_on_its_way(self, node: int) -> None:
        """The process ends, and nothing that it has just sent arrives."""
        self.cluster.network.options = replace(self.cluster.network.options, cut_in_flight=True)
        self.cluster.partition({node}, {1, 2, 3} - {node})
        self.cluster.crash(node)

    def keepers(self, *nodes: int) -> None:
        """NL locks that keep R shared, with its value block."""
        for node in nodes:
            self.holding(node, mode=NL)

    def survivors(self) -> None:
        """Until 1 and 2 are alone."""
        self.until(lambda: all(self.nodes_of(node) == (1, 2) for node in (1, 2)))

    def nodes_of(self, node: int) -> tuple[int, ...]:
        view = self.cluster[node].view
        return () if view is None or not view.primary else view.nodes

    def reads(self, client: Client) -> Operation:
        """A grant that brings the value block."""
        operation = self.locks.lock(client, b"R", PR, valblk=True)
        self.granted(operation)
        return operation


def test_stable_killed_right_after_a_grant_that_nobody_else_has_seen() -> None:
    """D1, without a wait for names that nobody had: rule GRANT-Q2 watches."""
    told = 0
    for steps in range(0, 40, 2):
        stage = Failure(Options(stable=True), seed=steps)
        stage.cluster.advance(2 * LEASE_S)  # it has just started
        operation = stage.locks.lock(stage.client(1), b"r")
        other = stage.client(2)
        stage.steps(steps)
        stage.kill_with_what_is_on_its_way(1)
        told += operation.ok is True
        later = stage.locks.lock(other, b"r")
        stage.granted(later)
        if operation.ok:
            assert later.handle.fence > operation.handle.fence
        stage.end()
    assert 0 < told < 20, "both sides of the instant were tried"


def test_stable_names_that_the_dead_node_did_not_hold_do_not_wait() -> None:
    stage = Failure(Options(stable=True))
    stage.holding(3, b"held")
    stage.cluster.crash(3)
    stage.survivors()
    free = stage.locks.lock(stage.client(1), b"free")
    held = stage.locks.lock(stage.client(2), b"held")
    stage.granted(free, within=LEASE_S / 8)
    assert held.ok is None
    stage.granted(held)
    stage.end()


def test_delivery_all_names_wait() -> None:
    stage = Failure(Options())
    stage.cluster.crash(3)
    stage.survivors()
    free = stage.locks.lock(stage.client(1), b"free")
    stage.cluster.advance(LEASE_S / 8)
    assert free.ok is None
    stage.granted(free)
    stage.end()


@pytest.mark.parametrize("space", [Options(), Options(stable=True)])
def test_c14_the_writer_is_killed_after_its_release(space: Options) -> None:
    """A client that was told that its value is written finds it, or a block that is not valid, at any survivor."""
    told = 0
    for steps in range(0, 40, 2):
        stage = Failure(space, seed=steps)
        stage.keepers(1, 2)
        _, handle = stage.holding(3, b"r")
        value = handle.fence.to_bytes(8, "big")
        operation = stage.locks.unlock(handle, valblk=True)
        stage.steps(steps)
        stage.kill_with_what_is_on_its_way(3)
        told += operation.ok is True
        read = stage.locks.lock(stage.client(1), b"r", PR, valblk=True)
        stage.granted(read)
        if operation.ok and read.data["value_valid"]:
            assert read.data["value"] == value
        stage.end()
    assert 0 < told < 20, "both sides of the instant were tried"


@pytest.mark.parametrize("drift", [0, 10_000])
def test_lock_delay(drift: int) -> None:
    stage = Failure(Options(lock_delay_ms=3000), drift_ppm=drift)
    stage.holding(3)
    stage.cluster.crash(3)
    waiting = stage.locks.lock(stage.client(1), b"r")
    free = stage.locks.lock(stage.client(2), b"free")
    stage.granted(free, within=1.5)
    stage.cluster.advance(1.5)
    assert waiting.ok is None
    stage.granted(waiting)
    stage.end()


def test_an_application_recovers() -> None:
    stage = Failure(Options(recovery=True))
    stage.holding(3)
    stage.cluster.crash(3)
    waiting = stage.locks.lock(stage.client(1), b"r")
    stage.granted(waiting)
    assert stage.locks.met["recovered"]
    stage.end()


def test_fencing_at_random_and_recovery_after_it() -> None:
    """The agents of the workload: some fail, some hang, some switch the host off."""
    fenced = 0
    for seed in range(4):
        stage = Failure(Options(fencing=True, recovery=True), seed=seed)
        stage.holding(3)
        stage.cluster.partition({1, 2}, {3})
        waiting = stage.locks.lock(stage.client(1), b"r")
        stage.granted(waiting, within=20.0)
        fenced += stage.locks.met["fenced"]
        stage.end()
    assert fenced >= 4


@pytest.mark.parametrize("space", [Options(), Options(True, 5000, True, True)])
class TestNobodyWaits:
    def test_for_a_crashed_client(self, space: Options) -> None:
        stage = Failure(space)
        client, _ = stage.holding(1)
        operation = stage.locks.lock(stage.client(2), b"r")
        stage.cluster.advance(0.3)
        assert operation.ok is None
        stage.locks.end(client)
        stage.granted(operation, within=0.1)
        stage.end()

    def test_for_a_clean_leaver(self, space: Options) -> None:
        stage = Failure(space)
        stage.holding(1)
        operation = stage.locks.lock(stage.client(2), b"r")
        stage.cluster.advance(0.3)
        stage.cluster[1].leave()
        stage.granted(operation, within=0.2)
        stage.end()


@pytest.mark.parametrize("space", [Options(True), Options(True, 20), Options(fencing=True), Options(recovery=True)])
def test_seeds_with_options(space: Options) -> None:
    """A few seeds of the usual chaos for each of them."""
    for seed in (3, 11):
        drawn = draw(seed, 3)
        locks = LockOptions.draw(seed, drawn.chaos, drawn.timing.token)
        result = run(drawn, [LockPlugin(seed, replace(locks, space=space))])
        assert result.violation is None, result.violation


def test_options_are_drawn() -> None:
    found = {LockOptions.draw(seed, 1_000_000, 200_000).space for seed in range(60)}
    assert Options() in found
    for word in Options._fields:
        assert any(getattr(space, word) for space in found), word
