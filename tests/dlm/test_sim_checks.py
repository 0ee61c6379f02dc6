"""Replicas that differ, on whole clusters under virtual time: found, and never without reason."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from dlm import checks
from dlm.modes import EX, NL, PR
from dlm.table import Table
from dlm.testing.losses import LossRules
from dlm.testing.rules import TableRules
from dlm.testing.workload import LockOptions, LockPlugin
from vsync.testing import SimCluster, draw, run
from vsync.testing.options import scaled
from vsync.testing.trace import Noted

BUDGET_S = 5.0  # real time for the seeds
IDLE = LockOptions(clients=0, names=1, interval=1_000_000, own=0.0, end=0.0, late=1, modes=(EX,))


class Listening(LockPlugin):
    """Writes down what the lock managers tell operators."""

    told: list[Noted]

    def begin(self, cluster: SimCluster) -> None:
        super().begin(cluster)
        self.told = []
        cluster.trace.subscribe(Noted, self.told.append)

    def named(self, *names: str) -> list[Noted]:
        return [note for note in self.told if note.name in names]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "EVERY", 5)


def test_no_false_alarm() -> None:
    """Seeds with chaos, for as long as there is time: nobody is found to have diverged."""
    began, seed, compared = time.monotonic(), 1, 0
    while time.monotonic() - began < BUDGET_S and seed < 200:
        plugin = Listening(seed)
        result = run(draw(seed, (5, 3, 5, 4, 5, 3, 5, 2)[seed % 8]), [plugin])
        assert result.violation is None, f"seed {seed}: {result.violation}"
        wrong = plugin.named("dlm.diverged", "dlm.transfer_damaged")
        assert not wrong, f"seed {seed}: {wrong[0].text()}"
        compared += sum(locker.checker.checked > 0 for locker in plugin.lockers.values())
        seed += 1
    print(f"seeds 1 to {seed - 1}, {compared} lock managers have compared marks")
    assert compared > 0


def fence(table: Table) -> None:
    contents = table.names[b"\0r"].resource
    assert contents is not None
    contents.locks[min(contents.locks)].fence += 1


def forgotten(table: Table) -> None:
    table.forget(b"\0r")
    table.waits.entries.clear()


def position(table: Table) -> None:
    table.applied += 3


@pytest.mark.parametrize("guilty", [1, 2, 3])
@pytest.mark.parametrize("flip", [fence, forgotten, position])
def test_a_flip_is_found_and_mended(
    flip: Callable[[Table], None], guilty: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = Listening(1, IDLE)
    with SimCluster(n=3, seed=guilty, timing=scaled(0.2), plugins=[locks]) as cluster:
        cluster.settle()
        clients = {node: locks.connect(cluster[node]) for node in (1, 2, 3)}
        held = [locks.lock(client, b"r", PR) for client in clients.values()]
        cluster.run_until(lambda: all(operation.ok for operation in held), 5.0)
        locks._tables.check = lambda node, service: None  # type: ignore[method-assign]  # it would find it first
        monkeypatch.setattr(LossRules, "check", lambda *args: None)  # and so would this one
        flip(locks.lockers[guilty].table)
        busy, other = (clients[node] for node in (1, 2, 3) if node != guilty)
        for _ in range(30):
            operation = locks.lock(busy, b"s", NL)
            locks.lock(other, b"s", NL)  # the name is shared
            cluster.run_until(lambda: operation.ok is not None, 5.0)  # noqa: B023 - at once
            locks.unlock(operation.handle)
        cluster.run_until(lambda: len(locks.named("dlm.diverged")) >= 3, 5.0)
        assert {tuple(note.fields["nodes"]) for note in locks.named("dlm.diverged")} == {(guilty,)}
        cluster.settle()
        assert all(locker.complete for locker in locks.lockers.values())
        locks._tables = TableRules()
        monkeypatch.undo()
        for node, operation in zip(clients, held, strict=True):
            assert (operation.handle.h in clients[node].handles) == (node != guilty)
            assert all(any(key[0] == node for key in _keys(locker.table)) == (node != guilty)
                       for locker in locks.lockers.values())  # fmt: skip
        again = locks.lock(clients[guilty], b"r", PR)
        cluster.run_until(lambda: again.ok is not None, 5.0)
        assert again.ok
        locks.settle(cluster)
        cluster.settle()
        locks.finish(cluster)


def _keys(table: Table) -> list[tuple[int, int, int]]:
    contents = table.names[b"\0r"].resource
    assert contents is not None
    return list(contents.locks)
