"""Whole clusters under virtual time: seeds, exact replay, the command line, and the API for users' tests.

``python -m vsync.testing --seeds 1..2000 --budget-seconds 600`` hunts for longer than a test may.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.seeds import LONG_S, hunt_for
from vsync.testing import Options, Plugin, SimCluster, Violation, draw, run
from vsync.testing.main import main
from vsync.testing.node import SimNode
from vsync.testing.plugin import no_plugins

ROOT = Path(__file__).parents[2]
BUDGET_S = 12.0  # real time in the default selection
NODES = (5, 3, 5, 4, 5, 2, 5, 7)  # by seed


def test_seeds(record_property: Callable[[str, object], None]) -> None:
    """Chaos, healing, and every property after every event, for as many seeds as there is time."""
    hunt_for(BUDGET_S, "vsync.testing", no_plugins, NODES, record_property, most=60)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_many_seeds(record_property: Callable[[str, object], None]) -> None:
    hunt_for(LONG_S, "vsync.testing", no_plugins, NODES, record_property, jobs=2)


class TestReplay:
    def test_a_seed_replays_exactly(self) -> None:
        assert run(draw(11, 5)).trace.hash == run(draw(11, 5)).trace.hash
        assert run(draw(11, 5)).trace.hash != run(draw(12, 5)).trace.hash

    def test_also_in_another_process_with_other_string_hashes(self) -> None:
        """No iteration over a bare set of strings or bytes may decide anything."""
        hashes = set()
        for salt in ("1", "2"):
            done = subprocess.run(
                [sys.executable, "-m", "vsync.testing", "--seed", "3", "--nodes", "4"],
                cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": salt},
                capture_output=True,
                text=True,
                check=True,
            )
            hashes.add(done.stdout.split()[-1])
        assert hashes == {run(draw(3, 4)).trace.hash}


class Saboteur(Plugin):
    """Breaks a property after some time."""

    def carried_out(self, node: SimNode) -> None:
        if node.cluster.scheduler.steps > 800:
            raise Violation("TEST-1", f"node {node.id} was sabotaged")


class TestCommandLine:
    def test_a_good_seed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--seed", "2", "--nodes", "3"], "vsync.testing", lambda seed: ()) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0].startswith("seed 2, options: seed=2 nodes=3 ")
        assert out[-1].startswith("seed 2: ok; ")
        assert "trace " in out[-1]

    def test_a_broken_property_tells_a_story(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--seeds", "1..9", "--nodes", "3"], "vsync.testing", lambda seed: (Saboteur(),)) == 1
        out = capsys.readouterr().out
        assert "node 1" in out
        assert "node 3" in out
        assert "VIEW" in out
        assert "BROKEN TEST-1: node" in out
        assert "again: python -m vsync.testing --seed 1 --nodes 3" in out

    def test_a_budget_ends_a_hunt(self, capsys: pytest.CaptureFixture[str]) -> None:
        args = ["--seeds", "1..100000", "--nodes", "2", "--budget-seconds", "0.5"]
        assert main(args, "vsync.testing", lambda seed: ()) == 0
        assert "no violation" in capsys.readouterr().out

    def test_the_trace_is_printed_on_request(self, capsys: pytest.CaptureFixture[str]) -> None:
        args = ["--seed", "1", "--nodes", "2", "--seconds", "0.3", "--trace"]
        assert main(args, "vsync.testing", lambda seed: ()) == 0
        out = capsys.readouterr().out
        assert "start #1" in out
        assert " B\n" in out  # frames too

    @pytest.mark.parametrize("args", [["--seeds", "9..1"], ["--seeds", "x"], ["--nodes", "0"], ["--what"]])
    def test_wrong_arguments(self, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(args, "vsync.testing", lambda seed: ())
        assert caught.value.code == 2
        assert "usage:" in capsys.readouterr().err


def nodes(cluster: SimCluster, node: int) -> tuple[int, ...]:
    view = cluster[node].view
    return view.nodes if view is not None else ()


class TestSimCluster:
    """How users test with it."""

    def test_a_partition_and_its_end(self) -> None:
        with SimCluster(n=5, seed=7) as cluster:
            cluster.settle()
            cluster.partition({1, 2}, {3, 4, 5})
            cluster.run_until(lambda: nodes(cluster, 1) == (1, 2), within=5)
            cluster.run_until(lambda: nodes(cluster, 5) == (3, 4, 5), within=5)
            assert not cluster[1].view.primary  # type: ignore[union-attr]
            assert cluster[5].view.primary  # type: ignore[union-attr]
            cluster.heal()
            cluster.settle()
            assert {nodes(cluster, n) for n in range(1, 6)} == {(1, 2, 3, 4, 5)}
            assert {cluster[n].view.id for n in range(1, 6)} == {cluster[1].view.id}  # type: ignore[union-attr]

    def test_messages_come_in_one_order(self) -> None:
        with SimCluster(n=3) as cluster:
            cluster.settle()
            for i in range(10):
                for node in cluster.nodes.values():
                    node.send(b"%d" % i)
            cluster.run_until(lambda: all(len(n.delivered) == 30 for n in cluster.nodes.values()), within=2)
            assert cluster[1].delivered == cluster[2].delivered == cluster[3].delivered
            assert [data for node, data in cluster[1].delivered if node == 2] == [b"%d" % i for i in range(10)]

    def test_a_restart_faster_than_any_timeout_shows_in_both_lists(self) -> None:
        with SimCluster(n=3) as cluster:
            cluster.settle()
            before = cluster[1].view
            cluster.crash(3)
            cluster.restart(3)
            cluster.settle()
            after = cluster[1].view
            assert before is not None
            assert after is not None
            assert (3, 1) in after.left
            assert (3, 2) in after.joined
            assert after.id > before.id

    def test_a_graceful_leave_costs_milliseconds(self) -> None:
        with SimCluster(n=3) as cluster:
            cluster.settle()
            cluster[3].leave()
            cluster.run_until(lambda: not cluster[3].up, within=0.5)
            began = cluster.now
            cluster.run_until(lambda: nodes(cluster, 1) == (1, 2), within=0.5)
            assert cluster.now - began < 0.1

    def test_a_silent_host_is_out_after_token_and_consensus(self) -> None:
        with SimCluster(n=3) as cluster:
            cluster.settle()
            cluster.crash(3)
            timing = cluster.options.timing
            bound = (timing.token + 2 * timing.consensus) / 1e6
            cluster.run_until(lambda: nodes(cluster, 1) == (1, 2), within=bound)

    def test_one_node_alone(self) -> None:
        with SimCluster(n=1) as cluster:
            cluster.settle()
            cluster[1].send(b"x")
            cluster.advance(0.1)
            assert cluster[1].delivered == [(1, b"x")]

    def test_a_wiped_disk_does_not_use_a_ring_id_again(self) -> None:
        with SimCluster(n=3) as cluster:
            cluster.settle()
            cluster.crash(2)
            cluster[2].disk.wipe()
            cluster.restart(2)
            cluster.settle()

    def test_large_messages_cross_a_view_change(self) -> None:
        with SimCluster(n=3) as cluster:
            cluster.settle()
            for node in cluster.nodes.values():
                for _ in range(5):
                    node.send(size=200_000)
            cluster.crash(3)
            cluster.run_until(lambda: nodes(cluster, 1) == (1, 2), within=5)
            cluster.settle()
            assert len([1 for node, _ in cluster[1].delivered if node in (1, 2)]) == 10

    def test_what_does_not_come_is_reported(self) -> None:
        with SimCluster(n=2) as cluster:
            cluster.settle()
            cluster.partition()
            cluster.advance(5)
            with pytest.raises(Violation, match="no calm within"):
                cluster.settle(within=2)

    def test_idle_rings_are_cheap(self) -> None:
        """The representative holds the token: a handful of frames a second."""
        with SimCluster(n=5) as cluster:
            cluster.settle()
            before = cluster.network.sent
            cluster.advance(10)
            assert cluster.network.sent - before < 10 * 5 * 12


def test_options_can_be_written_by_hand() -> None:
    options = Options(seed=4, nodes=3, chaos=1_000_000, crash=1, partition=1, fault_interval=200_000)
    assert run(options).violation is None
