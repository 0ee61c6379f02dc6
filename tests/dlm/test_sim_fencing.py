"""Fencing on whole simulated clusters: hosts that are powered off by virtual agents, clients included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from dlm.modes import EX
from dlm.service import DlmService
from dlm.testing.clients import Operation
from dlm.testing.workload import LockOptions, LockPlugin
from vsync.service import Service, Spawn
from vsync.testing import SimCluster, draw, quiet, run
from vsync.testing.node import SimNode
from vsync.testing.options import scaled
from vsync.testing.violation import Violation
from vsync.types import ClusterConfig

SECOND = 1_000_000
OPERATOR = 50  #: a session
IDLE = LockOptions(clients=0, names=1, interval=1_000_000, own=0.0, end=0.0, late=1, modes=(EX,))
Result = tuple[int, int | None]  #: after how many µs, exit code


class Power(LockPlugin):
    """Lock traffic, and agents that switch hosts off. ``agent`` says what the next one does."""

    def __init__(
        self, seed: int, fenced: Sequence[int], fencing: bool = True, options: LockOptions | None = IDLE
    ) -> None:
        super().__init__(seed, options)
        table = {"agent": "fence_sim", "timeout_s": 3, "retries": 1}
        self._section = {
            "lockspace": {"default": {"fencing": fencing}},
            "fencing": {f"n{node}": table for node in fenced},
        }
        self.agent: Callable[[int, int], Result] = lambda actor, target: (100_000, 0)
        self.runs: list[tuple[int, int]] = []  #: actor, target
        self.off: list[int] = []
        self.answers: list[tuple[bool, Any]] = []

    def services(self, config: ClusterConfig) -> Sequence[Service]:
        return super().services(replace(config, sections={"dlm": self._section}))

    def program(self, node: SimNode, wanted: Spawn) -> tuple[int, int | None, bytes] | None:
        options = dict(line.split("=", 1) for line in wanted.stdin.decode().splitlines())
        target = int(options["nodename"][1:])
        self.runs.append((node.id, target))
        after, code = self.agent(node.id, target)
        if code == 0:
            self.cluster.scheduler.after(max(0, after - 1), self._switch_off, self.cluster[target])
        return after, code, b"" if code == 0 else b"no power switch"

    def _switch_off(self, node: SimNode) -> None:
        """The whole host: its daemon, and the clients with all that they believe."""
        self.off.append(node.id)
        node.crash()
        for client in self.clients:
            if client.node is node:
                client.alive = False
                for handle in client.handles.values():
                    handle.over = True
        for believed in self._holders._believed.values():
            for handle in believed:
                handle.over = handle.over or handle.client.node is node

    def reply(self, node: SimNode, session: int, rid: int, ok: bool, data: Any) -> None:
        if session == OPERATOR:
            self.answers.append((ok, data))
        else:
            super().reply(node, session, rid, ok, data)


class Chaos(Power):
    """Any traffic, agents that work at times, and hosts whose clocks stand still at any time."""

    def __init__(self, seed: int, nodes: int) -> None:
        super().__init__(seed, range(1, nodes + 1), options=None)
        self._power = Random(f"power/{seed}")
        self._calm = False
        self.agent = self._any

    def _any(self, actor: int, target: int) -> Result:
        slow = self._power.choice([1_000, 100_000, SECOND])
        return self._power.choice([(slow, 0), (slow, 0), (slow, 0), (slow, 1), (10 * SECOND, None)])

    def may_stand_still(self, node: SimNode) -> bool:
        return True

    def _switch_off(self, node: SimNode) -> None:
        if not self._calm:
            super()._switch_off(node)
            self.cluster.scheduler.after(self._power.choice([20_000, 300_000]), node.start)

    def settle(self, cluster: SimCluster) -> None:
        """All hosts are there again: who is not fenced by now comes back by itself."""
        self._calm = True
        self.agent = lambda actor, target: (1_000, 1)
        super().settle(cluster)


def chaos(seeds: Sequence[int]) -> int:
    """Run these; how many hosts were switched off."""
    off = 0
    for seed in seeds:
        nodes = (5, 3, 5, 4)[seed % 4]
        power = Chaos(seed, nodes)
        options = replace(draw(seed, nodes), frozen=0.8, pause=4, nodes_interval=0)
        result = run(options, [power])
        assert result.violation is None, f"seed {seed}: {result.violation}"
        off += len(power.off)
    return off


def test_no_two_holders_whatever_clocks_do() -> None:
    """With fencing exclusion rests on no clock at all."""
    chaos(range(1, 4))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_two_holders_in_many_runs() -> None:
    assert chaos(range(100, 200)) > 20


class Scene:
    """Node ``n`` of a cluster holds R; node 2 waits for it."""

    def __init__(self, nodes: int = 3, fenced: Sequence[int] = (1, 2, 3, 4, 5), fencing: bool = True) -> None:
        fenced = [node for node in fenced if node <= nodes]
        self.locks = Power(1, fenced, fencing)
        self.cluster = SimCluster(options=quiet(1, nodes, scaled(0.2)), plugins=[self.locks])
        self.cluster.__enter__()
        self.cluster.settle()
        self.victim = nodes
        held = self.ask(nodes)
        self.until(lambda: held.ok is not None)
        assert held.ok
        self.handle = held.handle
        self.waiting = self.ask(2)
        self.cluster.advance(0.1)

    def ask(self, node: int) -> Operation:
        return self.locks.lock(self.locks.connect(self.cluster[node]), b"R", EX)

    def until(self, condition: Callable[[], bool], within: float = 10.0) -> None:
        self.cluster.run_until(condition, within)

    def rows(self, node: int) -> list[dict[str, Any]]:
        locker: DlmService = self.locks.lockers[node]
        return locker.home.stonith.rows()

    def granted(self, within: float = 10.0) -> None:
        self.until(lambda: self.waiting.ok is not None, within)
        assert self.waiting.ok, self.waiting.data

    def end(self) -> None:
        """Everybody back, everything released: all tables equal, no ghost."""
        self.locks.agent = lambda actor, target: (1_000, 0)
        for node in self.cluster.nodes.values():
            node.resume()
            node.start()
        self.locks.settle(self.cluster)
        self.cluster.settle()
        self.locks.finish(self.cluster)
        assert not any(self.rows(node) for node in self.cluster.nodes)


def test_the_host_is_off_before_others_get_its_lock() -> None:
    scene = Scene()
    scene.locks.agent = lambda actor, target: (2 * SECOND, 0)
    scene.cluster.crash(3)
    scene.cluster.advance(2)
    assert scene.waiting.ok is None
    scene.granted()
    assert (scene.locks.runs, scene.locks.off) == ([(1, 3)], [3])
    scene.end()


@pytest.mark.parametrize("fencing", [True, False])
def test_a_clock_that_stands_still(fencing: bool) -> None:
    """A virtual machine is paused with its clock: its lease does not run out. Only this helps (design §5.4)."""
    scene = Scene(fencing=fencing)
    scene.cluster[3].pause(frozen=True)
    if not fencing:
        with pytest.raises(Violation, match="GRANT-Q2"):
            scene.granted()
        return
    scene.granted()
    assert scene.locks.off == [3]
    scene.end()


def test_the_agent_fails_twice_and_then_works() -> None:
    scene = Scene()
    results = iter([(10_000, 1), (4 * SECOND, 0), (10_000, 0)])  # the second takes longer than it may
    scene.locks.agent = lambda actor, target: next(results)
    scene.cluster.crash(3)
    scene.until(lambda: len(scene.locks.runs) == 2)
    assert scene.rows(2)[0]["said"] == "no power switch"
    scene.granted()
    assert scene.locks.runs == [(1, 3), (1, 3), (2, 3)]
    scene.end()


def test_the_actor_dies_with_its_agent() -> None:
    scene = Scene(5)
    scene.locks.agent = lambda actor, target: (2 * SECOND, None) if actor == 1 else (10_000, 0)
    scene.cluster.crash(5)
    scene.until(lambda: bool(scene.locks.runs))
    scene.cluster.crash(1)
    scene.granted()
    assert scene.locks.runs[:2] == [(1, 5), (2, 5)]
    scene.end()


def test_the_actor_is_cut_off() -> None:
    """Its agent is killed with its quorum; the others have another one."""
    scene = Scene(5)
    scene.locks.agent = lambda actor, target: (2 * SECOND, None) if actor == 1 else (10_000, 0)
    scene.cluster.crash(5)
    scene.until(lambda: bool(scene.locks.runs))
    scene.cluster.partition({1}, {2, 3, 4, 5})
    scene.granted()
    assert scene.locks.runs[:2] == [(1, 5), (2, 5)]
    scene.cluster.heal()
    scene.end()


def test_the_node_comes_back_by_itself() -> None:
    scene = Scene()
    scene.locks.agent = lambda actor, target: (2 * SECOND, None)
    scene.cluster.crash(3)
    scene.until(lambda: bool(scene.locks.runs))
    scene.cluster.restart(3)
    scene.granted()
    assert scene.locks.off == []
    scene.end()


def test_an_operator_says_that_it_is_down() -> None:
    scene = Scene(fenced=[])
    scene.cluster.crash(3)
    scene.cluster.advance(3)
    assert scene.waiting.ok is None
    scene.cluster[1].open_session(OPERATOR, "operator")
    scene.cluster[1].request(OPERATOR, 1, "dlm", "fence_ack", {"node": 3})
    scene.granted()
    scene.until(lambda: scene.locks.answers == [(True, {"node": 3})])
    scene.end()


def test_a_host_that_hung_while_all_others_started_anew() -> None:
    """Nobody remembers that it holds anything, and its clock stands still: no lease helps."""
    scene = Scene()
    scene.cluster[3].pause(frozen=True)
    for node in (1, 2):
        scene.cluster.crash(node)
    for node in (1, 2):
        scene.cluster.restart(node)
    scene.cluster.advance(3)
    again = scene.ask(1)
    scene.until(lambda: again.ok is not None, 60)
    assert again.ok
    assert (scene.locks.runs, scene.locks.off) == ([(1, 3)], [3])
    scene.end()


def test_all_hosts_fail_and_nobody_is_left_to_fence() -> None:
    """What waited for a fencing in a state that nobody has any more does not wait in the next one."""
    scene = Scene()
    scene.locks.agent = lambda actor, target: (2 * SECOND, None)
    scene.cluster.crash(3)
    scene.until(lambda: bool(scene.locks.runs))
    for node in (1, 2):
        scene.cluster.crash(node)
    for node in (1, 2, 3):
        scene.cluster.restart(node)
    scene.cluster.settle()
    again = scene.ask(1)
    scene.until(lambda: again.ok is not None)
    assert again.ok
    scene.end()
